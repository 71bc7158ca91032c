"""What every benchmark reports: medians over several runs, and a ratio to something measured in the same run."""

from __future__ import annotations

import platform
import statistics
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Figure:
    """`goal` and `compared` are texts for people; `compared` states a ratio to a peer measured beside it."""

    name: str
    value: float
    unit: str
    goal: str = ""
    compared: str = ""


def median(measure: Callable[[], float], runs: int = 5) -> float:
    return statistics.median(measure() for _ in range(runs))


def report(title: str, figures: Sequence[Figure]) -> None:
    """Print figures as aligned lines, with the interpreter they come from."""
    print(f"\n{title}  ({platform.python_implementation()} {platform.python_version()}, {sys.executable})")
    width = max(len(figure.name) for figure in figures)
    for figure in figures:
        notes = "; ".join(note for note in (figure.goal and f"goal {figure.goal}", figure.compared) if note)
        print(f"  {figure.name:<{width}}  {figure.value:>12,.2f} {figure.unit:<10} {notes}")
