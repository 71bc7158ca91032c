"""How answers are printed: JSON and YAML for machines, rich tables for people."""

from __future__ import annotations

import os
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

import click
import msgspec

from capstan.api import manifests

if TYPE_CHECKING:
    from rich.padding import Padding
    from rich.table import Table


_UNWRAPPED = 100_000
"""Columns that no line reaches."""


def machine(value: Any, output: str) -> None:
    """Print `value` (structs, dicts, lists, scalars) as JSON or YAML."""
    plain = msgspec.to_builtins(value)
    if output == "json":
        click.echo(msgspec.json.format(msgspec.json.encode(plain), indent=2).decode())
    else:
        click.echo(manifests.dump(plain), nl=False)


def table(title: str, columns: Iterable[str], rows: Iterable[Iterable[object]]) -> Table:
    """A table whose columns are right-aligned where every cell is a number."""
    from rich.markup import escape as escaped
    from rich.table import Table

    cells = [[str(cell) for cell in row] for row in rows]
    built = Table(title=title, title_justify="left", title_style="bold", box=None, pad_edge=False, header_style="dim")
    for index, column in enumerate(columns):
        numeric = bool(cells) and all(row[index].replace(".", "").replace("/", "").isdigit() for row in cells)
        built.add_column(column, justify="right" if numeric else "left", no_wrap=index == 0)
    for row in cells:
        built.add_row(*map(escaped, row))
    return built


def escape(text: str) -> str:
    """Text of others, whose brackets are no markup of ours."""
    from rich.markup import escape as escaped

    return escaped(text)


def hanging(markup: str) -> Padding:
    """An indented paragraph."""
    from rich.padding import Padding

    return Padding(markup, (0, 0, 0, 4), expand=False)


def show(*renderables: Any) -> None:
    """Print for people. Into a file or a pipe nothing is wrapped, so that others find whole lines."""
    from rich.console import Console

    console = Console(highlight=False)
    if not console.is_terminal and "COLUMNS" not in os.environ:
        console.width = _UNWRAPPED
    with console.capture() as printed:
        for renderable in renderables:
            console.print(renderable)
    click.echo("\n".join(line.rstrip() for line in printed.get().split("\n")), nl=False)
