"""The parts a demonstration is told with: steps that act on clusters, wait for what should happen, and read it back.

A step is verified only by what the API server says afterwards. It ends with evidence, a few lines of what was seen, or
raises `NotShown` with what was seen instead.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from typing import Generic, Literal, TypeVar

import msgspec

T = TypeVar("T")
S = TypeVar("S")

PATIENCE_SECONDS = 20.0


class NotShown(Exception):
    """Something that a step promises did not happen; the message says what was seen instead."""


@dataclass(frozen=True, slots=True)
class Step(Generic[S]):
    """`parts` says what ran: e.g. `simulated GPUs, real scheduler`."""

    title: str
    parts: str
    tell: Callable[[S], Awaitable[list[str]]]


class Shown(msgspec.Struct, rename="camel"):
    """The outcome of one step. `evidence` are lines for people."""

    title: str
    parts: str
    verified: bool
    seconds: float
    evidence: list[str]


@dataclass(frozen=True, slots=True)
class Moment:
    """Progress for who watches: a step begins, or it ended (`shown`)."""

    kind: Literal["begins", "ended"]
    title: str
    shown: Shown | None = None


@dataclass(slots=True)
class Story(Generic[S]):
    """Steps told in order; after one that fails the rest is still tried, for each says something of its own."""

    steps: Sequence[Step[S]]
    shown: list[Shown] = field(default_factory=list)

    async def tell(self, stage: S) -> AsyncIterator[Moment]:
        for step in self.steps:
            yield Moment("begins", step.title)
            started = time.perf_counter()
            try:
                evidence, verified = await step.tell(stage), True
            except NotShown as error:
                evidence, verified = [str(error)], False
            shown = Shown(step.title, step.parts, verified, round(time.perf_counter() - started, 2), evidence)
            self.shown.append(shown)
            yield Moment("ended", step.title, shown)

    @property
    def verified(self) -> bool:
        return len(self.shown) == len(self.steps) and all(step.verified for step in self.shown)


async def until(
    look: Callable[[], Awaitable[T | None]], what: str, *, patience: float = PATIENCE_SECONDS, pause: float = 0.05
) -> T:
    """Look until something is seen (not None, not False). Raises NotShown after `patience` seconds."""
    deadline = time.monotonic() + patience
    while True:
        seen = await look()
        if seen is not None and seen is not False:
            return seen
        if time.monotonic() > deadline:
            raise NotShown(f"within {patience:g} s it was not seen that {what}")
        await asyncio.sleep(pause)
