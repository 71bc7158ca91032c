"""What a cycle counts about its own work, as plain numbers. Whoever runs the cycle makes metrics of them.

The engine has no clock: it calls a `Lap` whenever a part of its work ends, and a stopwatch at the rim does the rest.
"""

from __future__ import annotations

from collections.abc import Callable

import msgspec

Lap = Callable[[str, str], None]
"""Called with (phase, "") at the end of a phase, and with (action, result) at the end of each search for victims.

Phases, in order: `refresh` (bring the World up to date), `proportion` (divide fair shares), each action by its name,
`plan` (verdicts and what to write), `adopt` (keep the decisions as assumed). Results: see `Work.searches`.
"""


def untimed(phase: str, result: str) -> None:
    """A `Lap` for those who do not measure."""


class Work(msgspec.Struct, gc=False):
    """What one action did."""

    tried: int = 0
    """Gangs it looked at."""
    placed: int = 0
    """Gangs of which it placed a unit."""
    simulated: int = 0
    """Sets of victims whose eviction it simulated."""
    rejected: int = 0
    """Simulations that did not bring the winner in, or ended unfairly."""
    filtered: int = 0
    """Sets of victims that a bound refused before any simulation."""
    searches: dict[str, int] = {}
    """Gangs by outcome: `solved`, `generators_exhausted` (no set works) or `not_attempted` (one like it has failed)."""


class Measures(msgspec.Struct, gc=False):
    work: dict[str, Work] = {}
    """By action."""
    waits: list[tuple[str, float]] = []
    """(queue, seconds since its creation) of each gang that starts as a whole in this cycle."""
    moves: int = 0
    """Entries of the undo journal at the end of the actions: tasks moved."""
    grants: int = 0
    """Entries of the undo journal: claims granted and nodes drained."""
    devices: int = 0
    """Entries of the inventory's undo journal."""

    def of(self, action: str) -> Work:
        return self.work.setdefault(action, Work())
