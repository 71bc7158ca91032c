"""What every benchmark reports: medians over several runs, and a ratio to something measured in the same run."""

from __future__ import annotations

import os
import platform
import statistics
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Figure:
    """`goal` and `compared` are texts for people; `compared` states a ratio to a peer measured beside it."""

    name: str
    value: float
    unit: str
    goal: str = ""
    compared: str = ""


def cpu_seconds(pid: int) -> float:
    """Processor time that a process has used, all threads together. On a busy machine it tells more than the clock."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def resident_mb(pid: int) -> float:
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith("VmRSS:"):
            return int(line.split()[1]) / 1024
    return 0.0


def median(measure: Callable[[], float], runs: int = 5) -> float:
    return statistics.median(measure() for _ in range(runs))


def report(title: str, figures: Sequence[Figure]) -> None:
    """Print figures as aligned lines, with the interpreter they come from."""
    print(f"\n{title}  ({platform.python_implementation()} {platform.python_version()}, {sys.executable})")
    width = max(len(figure.name) for figure in figures)
    for figure in figures:
        notes = "; ".join(note for note in (figure.goal and f"goal {figure.goal}", figure.compared) if note)
        print(f"  {figure.name:<{width}}  {figure.value:>12,.2f} {figure.unit:<10} {notes}")
