"""Constraints across the devices of one claim, with exact undo.

Both kinds compare sets of values; a scalar attribute is a set of one (KEP-5491). Every device that a constraint names
must have the attribute. A constraint never becomes true again by adding devices, so a violated one ends a branch of
the search.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Protocol, TypeVar

from capstan.allocation.pools import AttributeValue, Device, values
from capstan.api.resource import DeviceConstraint

Values = frozenset[AttributeValue]


class Candidate(Protocol):
    """What a constraint needs to know of a candidate of a request."""

    @property
    def device(self) -> Device: ...

    @property
    def derived(self) -> Mapping[str, Values] | None:
        """Derived attributes by name; they belong to the request, not to the device."""


C = TypeVar("C", bound=Candidate)


class Constraint:
    """`add` says whether one more device may join and remembers it; `remove` undoes the latest add."""

    __slots__ = ("_read", "attribute", "requests")

    def __init__(self, attribute: str, requests: list[str]) -> None:
        self.attribute = attribute
        self.requests = frozenset(requests)
        self._read: dict[Device, Values] = {}

    def covers(self, base: str, name: str) -> bool:
        """Whether it applies to the request `base`, or its subrequest `name` (`base/sub`). No names: to all
        requests."""
        return not self.requests or base in self.requests or name in self.requests

    def values(self, candidate: Candidate) -> Values:
        """The candidate's values of the attribute, a derived one before the device's own (KEP-6080); empty when it has
        none, which no constraint accepts."""
        if candidate.derived and self.attribute in candidate.derived:
            return candidate.derived[self.attribute]
        found = self._read.get(candidate.device)
        return self.published(candidate.device) if found is None else found

    def published(self, device: Device) -> Values:
        """The values that the device itself has."""
        found = self._read.get(device)
        if found is None:
            attribute = device.attribute(self.attribute)
            found = self._read[device] = frozenset() if attribute is None else values(attribute)
        return found

    def admits(self, candidate: Candidate) -> bool:
        raise AssertionError("a constraint is one of the two kinds below")

    def add(self, candidate: Candidate) -> None:
        raise AssertionError("a constraint is one of the two kinds below")

    def remove(self) -> None:
        raise AssertionError("a constraint is one of the two kinds below")


class MatchAttribute(Constraint):
    """All devices share at least one value."""

    __slots__ = ("_by_value", "_shared")

    def __init__(self, attribute: str, requests: list[str]) -> None:
        super().__init__(attribute, requests)
        self._shared: list[Values] = []
        """What all devices so far share, once per added device: removing one restores the set before it."""
        self._by_value: dict[int, dict[AttributeValue, list[Any]]] = {}
        """Candidates by value, for each list of candidates by its identity."""

    @property
    def value(self) -> AttributeValue | None:
        """The one value that the devices so far leave; None if there are none yet, or several values."""
        if not self._shared or len(self._shared[-1]) != 1:
            return None
        (value,) = self._shared[-1]
        return value

    def among(self, candidates: list[C]) -> list[C]:
        """The candidates that may join, in order; found by value where the devices so far leave one. The list must
        live as long as the constraint, and not change."""
        value = self.value
        if value is None:
            return candidates
        by_value = self._by_value.get(id(candidates))
        if by_value is None:
            by_value = self._by_value[id(candidates)] = {}
            for candidate in candidates:
                for value in self.values(candidate):
                    by_value.setdefault(value, []).append(candidate)
        return by_value.get(value, [])

    def admits(self, candidate: Candidate) -> bool:
        own = self.values(candidate)
        return not own.isdisjoint(self._shared[-1]) if self._shared else bool(own)

    def add(self, candidate: Candidate) -> None:
        own = self.values(candidate)
        self._shared.append(own & self._shared[-1] if self._shared else own)

    def remove(self) -> None:
        self._shared.pop()


class DistinctAttribute(Constraint):
    """No two devices share a value."""

    __slots__ = ("_taken",)

    def __init__(self, attribute: str, requests: list[str]) -> None:
        super().__init__(attribute, requests)
        self._taken: list[Values] = []

    def admits(self, candidate: Candidate) -> bool:
        own = self.values(candidate)
        return bool(own) and all(own.isdisjoint(taken) for taken in self._taken)

    def add(self, candidate: Candidate) -> None:
        self._taken.append(self.values(candidate))

    def remove(self) -> None:
        self._taken.pop()


def build(constraint: DeviceConstraint) -> Constraint | None:
    """None for a kind that this version does not know: the claim must be refused, not half checked."""
    if constraint.match_attribute:
        return MatchAttribute(constraint.match_attribute, constraint.requests)
    if constraint.distinct_attribute:
        return DistinctAttribute(constraint.distinct_attribute, constraint.requests)
    return None
