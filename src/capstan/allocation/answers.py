"""What searches have found before, told in positions, so that it holds for every node that is alike."""

from __future__ import annotations

from collections.abc import Hashable
from itertools import count
from typing import NamedTuple

from capstan.allocation.model import Number
from capstan.allocation.pools import Device, PoolKey

_REMEMBERED = 50_000
"""Answers, and as many kinds; beyond that all are found anew. Alike nodes with 8 whole devices have 255 states."""


class Choice(NamedTuple):
    """One device of an answer."""

    position: int
    """Among the devices that the request matches."""
    options: int
    cost: int
    parts: tuple[tuple[str, int], ...]


class Answer(NamedTuple):
    choices: tuple[Choice, ...]
    steps: int
    proven: bool


class Kind(NamedTuple):
    """The devices of a node that a request matches."""

    number: int
    """Equal for nodes whose devices compare alike."""
    devices: list[Device]
    ids: list[tuple[PoolKey, str]]
    """Pool and name of each."""
    takes: list[dict[str, Number] | None]
    """What a request that names no amount takes of each; None for all of it."""
    sets: list[tuple[tuple[str, dict[str, Number]], ...]]
    """The counter sets that each takes from, with what they declare."""


Touched = tuple[int, tuple[Number, ...]]
"""A free device by position, and what is left of a counter set that it takes from and others have taken from."""

Key = tuple[int, int, tuple[Touched, ...], int, int]
"""Kind, free devices as bits, touched ones, how many are wanted, budget of the search."""


class Answers:
    """Only ever a cache."""

    def __init__(self) -> None:
        self._fresh = count()
        self._numbers: dict[Hashable, int] = {}
        self._found: dict[Key, Answer] = {}

    def number(self, signature: Hashable) -> int:
        """The number of a kind, equal for equal signatures."""
        known = self._numbers.get(signature)
        if known is None:
            if len(self._numbers) >= _REMEMBERED:
                self._numbers.clear()
            known = self._numbers[signature] = next(self._fresh)
        return known

    def get(self, key: Key) -> Answer | None:
        return self._found.get(key)

    def put(self, key: Key, answer: Answer) -> None:
        if len(self._found) >= _REMEMBERED:
            self._found.clear()
        self._found[key] = answer
