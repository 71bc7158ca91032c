"""Bounds that end a hopeless branch of the search early. They never say no wrongly, so they never remove a solution.

For the requests ahead: each must still have a way to be satisfied whose values the match constraints can agree on; all
together need enough different devices, different values where values must differ (bipartite matchings), and counters.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterable, Sequence

from capstan.allocation.claims import Alternative, Candidate, Request
from capstan.allocation.constraints import Constraint, DistinctAttribute, MatchAttribute
from capstan.allocation.model import Number
from capstan.allocation.pools import AttributeValue, Device, PoolKey

Possible = Callable[[Request, Alternative, Candidate], bool]
Left = Callable[[PoolKey, str], dict[str, Number]]


class Way:
    """One alternative of a request ahead, with the candidates that are still possible."""

    __slots__ = ("alternative", "candidates", "count")

    def __init__(self, alternative: Alternative, count: int, candidates: list[Candidate]) -> None:
        self.alternative = alternative
        self.count = count
        self.candidates = candidates

    @property
    def open(self) -> bool:
        return len(self.candidates) >= self.count

    @property
    def exclusive(self) -> bool:
        """Whether its devices cannot be taken by anybody else."""
        return not self.alternative.admin and all(candidate.takes is None for candidate in self.candidates)


Current = tuple[Request, Alternative, int, Iterable[Candidate]]


def hopeful(current: Current | None, ahead: Sequence[Request], possible: Possible, left: Left) -> bool:
    """Whether the rest may be satisfiable: all requests ahead, and the current one's alternative, which needs so many
    more of its candidates."""
    slots: list[list[Way]] = []
    if current is not None:
        request, alternative, need, candidates = current
        slots.append([Way(alternative, need, [c for c in candidates if possible(request, alternative, c)])])
    known: dict[tuple[int, ...], list[Candidate]] = {}
    for request in ahead:
        ways = []
        for option in request.alternatives:
            if option.blocked is None:
                key = (id(option.candidates), request.claim.index, *map(id, option.constraints))
                found = known.get(key)
                if found is None:
                    found = known[key] = [c for c in option.reachable() if possible(request, option, c)]
                ways.append(Way(option, len(option.candidates) or 1 if option.every else option.count, found))
        slots.append(ways)
    if not _agree(slots):
        return False
    return _devices_suffice(slots) and _values_suffice(slots) and _counters_suffice(slots, left)


def _agree(slots: list[list[Way]]) -> bool:
    """Removes candidates whose values some other request of a match constraint cannot have; False if a request has no
    way left."""
    matches = {
        c: None for ways in slots for way in ways for c in way.alternative.constraints if isinstance(c, MatchAttribute)
    }
    changed = True
    while changed:
        changed = False
        for ways in slots:
            ways[:] = [way for way in ways if way.open]
            if not ways:
                return False
        for constraint in matches:
            allowed: set[AttributeValue] | None = None
            for ways in slots:
                if all(constraint in way.alternative.constraints for way in ways):
                    own = set().union(*(_values_for(constraint, way) for way in ways))
                    allowed = own if allowed is None else allowed & own
            if allowed is None:
                continue
            for ways in slots:
                for way in ways:
                    if constraint in way.alternative.constraints:
                        kept = [c for c in way.candidates if not constraint.values(c).isdisjoint(allowed)]
                        if len(kept) < len(way.candidates):
                            way.candidates, changed = kept, True
    return True


def _values_for(constraint: Constraint, way: Way) -> set[AttributeValue]:
    """The values that enough candidates have for the way to be satisfied with it."""
    counts: dict[AttributeValue, int] = {}
    for candidate in way.candidates:
        for value in constraint.values(candidate):
            counts[value] = counts.get(value, 0) + 1
    return {value for value, count in counts.items() if count >= way.count}


def _devices_suffice(slots: list[list[Way]]) -> bool:
    needs: list[tuple[int, list[Device]]] = []
    for ways in slots:
        if all(way.exclusive for way in ways):
            devices = {candidate.device: None for way in ways for candidate in way.candidates}
            needs.append((min(way.count for way in ways), list(devices)))
    return _matching(needs)


def _values_suffice(slots: list[list[Way]]) -> bool:
    distinct = {
        c: None
        for ways in slots
        for way in ways
        for c in way.alternative.constraints
        if isinstance(c, DistinctAttribute)
    }
    for constraint in distinct:
        needs: list[tuple[int, list[AttributeValue]]] = []
        for ways in slots:
            if all(constraint in way.alternative.constraints for way in ways):
                own = {v: None for way in ways for c in way.candidates for v in sorted(constraint.values(c), key=repr)}
                needs.append((min(way.count for way in ways), list(own)))
        if not _matching(needs):
            return False
    return True


def _matching(slots: Sequence[tuple[int, Sequence[Hashable]]]) -> bool:
    """Whether every slot can get its number of things with no thing used twice (augmenting paths)."""
    owner: dict[Hashable, int] = {}

    def augment(slot: int, seen: set[Hashable]) -> bool:
        for thing in slots[slot][1]:
            if thing not in seen:
                seen.add(thing)
                holder = owner.get(thing)
                if holder is None or augment(holder, seen):
                    owner[thing] = slot
                    return True
        return False

    order = sorted(range(len(slots)), key=lambda slot: len(slots[slot][1]))
    return all(augment(slot, set()) for slot in order for _ in range(slots[slot][0]))


def _counters_suffice(slots: list[list[Way]], left: Left) -> bool:
    demand: dict[str, Number] = {}
    sets: dict[tuple[PoolKey, str], None] = {}
    for ways in slots:
        needs: dict[str, Number] | None = None
        for way in ways:
            for candidate in way.candidates:
                sets.update(((candidate.device.pool, name), None) for name in candidate.device.counter_sets)
            least = _least(way)
            needs = least if needs is None else {n: min(a, least[n]) for n, a in needs.items() if n in least}
        for name, amount in (needs or {}).items():
            demand[name] = demand.get(name, 0) + amount
    available: dict[str, Number] = {}
    for key in sets if demand else ():
        for counter, amount in left(*key).items():
            available[counter] = available.get(counter, 0) + max(0, amount)
    return all(available.get(name, 0) >= amount for name, amount in demand.items())


def _least(way: Way) -> dict[str, Number]:
    """What the way takes at least, per counter name; shared devices may take nothing more."""
    least: dict[str, Number] | None = None
    if not way.exclusive:
        return {}
    for candidate in way.candidates:
        takes: dict[str, Number] = {}
        for _, taken in (*candidate.device.consumption, *candidate.drawn):
            for counter, amount in taken:
                takes[counter] = takes.get(counter, 0) + amount
        least = takes if least is None else {n: min(a, takes[n]) for n, a in least.items() if n in takes}
    return {name: amount * way.count for name, amount in (least or {}).items()}
