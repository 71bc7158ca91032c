"""`capstan demo`: the whole story in under a minute, live for people, as JSON for machines."""

from __future__ import annotations

import asyncio
import logging
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from capstan.cli.output import escape, hanging, machine
from capstan.cli.up import raise_file_limit

if TYPE_CHECKING:
    from capstan.embedded.story import Shown


@click.command()
@click.option("--json", "as_json", is_flag=True, help="Print the outcome as JSON and nothing else.")
@click.option(
    "--log-level", type=click.Choice(["debug", "info", "warning", "error"]), default="error", show_default=True
)
def demo(as_json: bool, log_level: str) -> None:
    """Show what the platform does, step by step, each step verified by reading the clusters back.

    Starts two embedded clusters on simulated GPUs in this process and removes them at the end. Exits 0 only if every
    step was verified.

    \b
    Examples:
      capstan demo
      capstan demo --json | jq '.steps[] | select(.verified | not)'
    """
    logging.basicConfig(level=log_level.upper(), format="%(asctime)s %(levelname)s %(name)s: %(message)s")
    raise_file_limit()
    started = time.perf_counter()
    shown, verified = asyncio.run(_tell(as_json))
    seconds = time.perf_counter() - started
    if as_json:
        machine({"verified": verified, "seconds": round(seconds, 1), "steps": shown}, "json")
    else:
        _print_outcome(shown, verified, seconds)
    if not verified:
        raise click.exceptions.Exit(1)


async def _tell(quiet: bool) -> tuple[list[Shown], bool]:
    from capstan.embedded import demo as story

    with tempfile.TemporaryDirectory(prefix="capstan-demo-") as scratch:
        watcher = _Quiet() if quiet else _Live()
        with watcher:
            watcher.begins("Start two clusters")
            async with story.stage(Path(scratch)) as stage:
                watcher.ended(
                    "Start two clusters", True, [f"{p.name}: {p.summary}" for p in (stage.training, stage.edge)]
                )
                told = story.story()
                async for moment in told.tell(stage):
                    if moment.shown is None:
                        watcher.begins(moment.title)
                    else:
                        watcher.ended(moment.title, moment.shown.verified, moment.shown.evidence)
                return told.shown, told.verified


class _Quiet:
    """Watches nothing."""

    def __enter__(self) -> None:
        return None

    def __exit__(self, *_: object) -> None:
        return None

    def begins(self, title: str) -> None:
        """A step starts."""

    def ended(self, title: str, verified: bool, evidence: list[str]) -> None:
        """A step is over."""


class _Live(_Quiet):
    """A spinner on the step that runs, a check mark and the evidence on each that is over."""

    def __init__(self) -> None:
        from rich.console import Console

        self._console = Console(highlight=False)
        self._status: Any = self._console.status("")

    def __enter__(self) -> None:
        self._status.start()

    def __exit__(self, *_: object) -> None:
        self._status.stop()

    def begins(self, title: str) -> None:
        self._status.update(f"{title} …")

    def ended(self, title: str, verified: bool, evidence: list[str]) -> None:
        self._console.print(f"[{'green' if verified else 'red'}]{'✔' if verified else '✘'}[/] [bold]{title}[/]")
        for line in evidence:
            self._console.print(hanging(escape(line)), style="dim" if verified else "red")


def _print_outcome(shown: list[Shown], verified: bool, seconds: float) -> None:
    from rich.console import Console
    from rich.table import Table

    table = Table(title=None, box=None, pad_edge=False, header_style="dim")
    for column in ("", "SHOWN", "RAN ON", "SECONDS"):
        table.add_column(column, justify="right" if column == "SECONDS" else "left")
    for step in shown:
        mark = "[green]✔[/]" if step.verified else "[red]✘[/]"
        table.add_row(mark, step.title, step.parts, f"{step.seconds:.1f}")
    console = Console(highlight=False)
    console.print()
    console.print(table)
    proven = sum(step.verified for step in shown)
    console.print(
        f"\n{proven} of {len(shown)} steps verified in {seconds:.0f} s.", style="bold" if verified else "bold red"
    )
