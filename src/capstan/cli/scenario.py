"""`capstan scenario`: run scheduling scenario files offline (`capstan.simulate`)."""

from __future__ import annotations

import sys
from pathlib import Path

import click

from capstan.simulate import InvalidScenario, load
from capstan.simulate import run as play


@click.group()
def scenario() -> None:
    """Check scheduling scenarios offline: a small cluster, what waits in it, what must come of it.

    \b
    Example:
      capstan scenario run scenarios.yaml
    """


@scenario.command()
@click.argument("files", nargs=-1, required=True, type=click.Path(exists=True, dir_okay=False, path_type=Path))
@click.option("-v", "--verbose", is_flag=True, help="Name the scenarios that pass, too.")
def run(files: tuple[Path, ...], verbose: bool) -> None:
    """Run every scenario in FILES (YAML or JSON, one or many a file).

    Prints the differences of each scenario that fails and, last, `N passed, M failed`; exits 0 only if none failed.

    \b
    Example:
      capstan scenario run -v scenarios.yaml
    """
    passed = failed = 0
    for path in files:
        try:
            scenarios = load(path.read_text(encoding="utf-8"))
        except (InvalidScenario, UnicodeDecodeError) as wrong:
            failed += 1
            click.echo(f"FAILED  {path}: {wrong}")
            continue
        for entry in scenarios:
            if isinstance(entry, InvalidScenario):
                failed += 1
                click.echo(f"FAILED  {path}: {entry}")
            elif differences := play(entry):
                failed += 1
                click.echo(f"FAILED  {path}: {entry.name}")
                for text in differences:
                    click.echo(f"        {text}")
            else:
                passed += 1
                if verbose:
                    click.echo(f"passed  {path}: {entry.name}")
    click.echo(f"{passed} passed, {failed} failed")
    sys.exit(1 if failed else 0)
