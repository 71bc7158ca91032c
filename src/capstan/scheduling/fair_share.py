"""Fair shares: every level of the queue tree divides what its parent gets, each resource on its own."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from capstan.scheduling.amounts import UNLIMITED, Amounts, dealt
from capstan.scheduling.model import Queue


@dataclass(slots=True)
class Claimant:
    """One queue's part in the division of one resource."""

    name: str
    priority: int
    rank: int
    quota: int
    limit: int
    weight: float
    request: int
    usage: float = 0.0
    lending: int = UNLIMITED
    fair: int = 0

    @property
    def requestable(self) -> int:
        return self.request if self.limit == UNLIMITED else min(self.request, self.limit)

    @property
    def kept(self) -> int:
        """The part of the quota that it neither asks for nor lends."""
        return kept_back(self.quota, self.limit, self.lending, self.requestable)


def kept_back(quota: int, limit: int, lending: int, used: int) -> int:
    """What a queue that uses (or asks for) `used` keeps of its quota for itself."""
    if lending == UNLIMITED or quota == UNLIMITED:
        return 0
    usable = quota if limit == UNLIMITED else min(quota, limit)
    return max(0, usable - lending - used)


def divide(total: int, claimants: Sequence[Claimant], unit: int = 1, k: float = 1.0) -> bool:
    """Set every claimant's fair share of `total`: deserved first, then by priority level and weight in whole units,
    then what is left to the largest remainders, level by level.

    What a claimant deserves, does not ask for and does not lend is given to nobody. Differs from KAI's resource
    division in one point: when the deserved amounts exceed the total, they are cut in proportion, so that no level
    hands out more than it has. Returns whether they were.
    """
    total, deserved = _deserved(total, claimants)
    if sum(deserved) > total:
        _cut(total, claimants, deserved, unit)
        return True
    _divide_rest(total, claimants, deserved, unit, k)
    return False


def promise(total: int, claimants: Sequence[Claimant], unit: int = 1, k: float = 1.0) -> None:
    """As `divide`, but for the cut: everybody gets what it deserves, be it together more than there is."""
    total, deserved = _deserved(total, claimants)
    _divide_rest(total, claimants, deserved, unit, k)


def _deserved(total: int, claimants: Sequence[Claimant]) -> tuple[int, list[int]]:
    """What can be divided, and what everybody deserves of it, as far as it is asked for."""
    guaranteed = sum(min(c.quota, c.requestable) for c in claimants if c.quota != UNLIMITED)
    total = max(total - sum(c.kept for c in claimants), min(total, guaranteed))
    return total, [max(0, min(total if c.quota == UNLIMITED else c.quota, c.requestable)) for c in claimants]


def _divide_rest(total: int, claimants: Sequence[Claimant], deserved: Sequence[int], unit: int, k: float) -> None:
    remaining = total
    for claimant, amount in zip(claimants, deserved, strict=True):
        claimant.fair = amount
        remaining -= amount
    levels = [
        [c for c in claimants if c.priority == level] for level in sorted({c.priority for c in claimants}, reverse=True)
    ]
    rests: list[dict[str, float]] = []
    for level in levels:
        if remaining <= 0:
            return
        remaining, rest = _divide_level(remaining, level, unit, k)
        rests.append(rest)
    for level, rest in zip(levels, rests, strict=True):
        for claimant in sorted((c for c in level if c.name in rest), key=lambda c: (-rest[c.name], c.rank)):
            give = min(unit, remaining)
            claimant.fair += give
            remaining -= give


def _cut(total: int, claimants: Sequence[Claimant], deserved: Sequence[int], unit: int) -> None:
    """Whole units in proportion to what is deserved; the rest to the largest remainders, the oldest first."""
    whole = sum(deserved)
    rest = total
    remainders: list[tuple[int, int, Claimant]] = []
    for claimant, amount in zip(claimants, deserved, strict=True):
        claimant.fair = amount * total // whole // unit * unit
        rest -= claimant.fair
        remainders.append((-(amount * total - claimant.fair * whole), claimant.rank, claimant))
    for _, _, claimant in sorted(remainders, key=lambda item: item[:2]):
        give = min(unit, rest, claimant.requestable - claimant.fair)
        claimant.fair += give
        rest -= give


def _divide_level(remaining: int, claimants: list[Claimant], unit: int, k: float) -> tuple[int, dict[str, float]]:
    """Hand out the over-quota part of one priority level in whole units.

    Returns what is left, and whose share was rounded down by how much: they get of what no level could divide.
    """
    rest: dict[str, float] = {}
    again = True
    while again and remaining > 0:
        again = False
        hungry = [c for c in claimants if c.requestable > c.fair and c.weight > 0]
        weights = sum(c.weight for c in hungry)
        if weights <= 0:
            break
        shares = {c.name: max(0.0, c.weight / weights + k * (c.weight / weights - c.usage)) for c in hungry}
        if not any(c.usage for c in hungry):
            shares = {c.name: c.weight for c in hungry}
        whole = sum(shares.values())
        if whole <= 0:
            break
        amount = remaining
        for claimant in hungry:
            share = amount * shares[claimant.name] / whole
            want = claimant.requestable - claimant.fair
            if want <= share:
                claimant.fair += want
                remaining -= want
                rest.pop(claimant.name, None)
                again = again or want < share
            else:
                give = int(share // unit) * unit
                claimant.fair += give
                remaining -= give
                if share > give:
                    rest[claimant.name] = share - give
    return remaining, rest


Usage = Mapping[str, Mapping[str, float]]


def set_fair_shares(roots: Sequence[Queue], total: Amounts, usage: Usage, k: float) -> None:
    """Divide the cluster top-down among all queues, each resource on its own, and set `fair`, `entitled` and `share`.

    `usage`: queue -> resource -> part of the capacity it used of late; `k`: how much that counts.
    """
    if roots and roots[0].pool is not None:
        roots[0].pool.total = total
    _divide_children(roots, total, total, usage, k)


def _divide_children(
    queues: Sequence[Queue], total: Sequence[int], promised: Sequence[int], usage: Usage, k: float
) -> None:
    """`promised`: what the parent is entitled to, at least the `total` that it gets."""
    usable = [queue for queue in queues if not queue.error]
    for i, (amount, more) in enumerate(zip(total, promised, strict=True)):
        for queue in queues:
            queue.fair[i] = queue.entitled[i] = 0
        claimants = _claimants(usable, i, usage)
        cut = divide(max(0, amount), claimants, dealt(i), k)
        entitled = claimants
        if cut or more != amount:
            entitled = _claimants(usable, i, usage)
            promise(max(0, more), entitled, dealt(i), k)
        for queue, own, due in zip(usable, claimants, entitled, strict=True):
            queue.fair[i], queue.entitled[i] = own.fair, max(own.fair, due.fair)
        for queue in queues:
            queue.share[i] = _allocatable(queue, i)
    for queue in queues:
        if queue.children:
            _divide_children(queue.children, queue.fair, queue.entitled, usage, k)


def _claimants(queues: Sequence[Queue], i: int, usage: Usage) -> list[Claimant]:
    return [
        Claimant(
            q.name,
            q.priority,
            q.rank,
            q.quota[i],
            q.limit[i],
            q.weight[i],
            q.requested[i],
            usage[q.name].get(q.resources[i], 0.0) if q.name in usage else 0.0,
            q.lending[i],
        )
        for q in queues
    ]


def _allocatable(queue: Queue, i: int) -> int:
    quota, limit = queue.quota[i], queue.limit[i]
    if quota == UNLIMITED:
        return limit
    return max(quota, queue.fair[i]) if limit == UNLIMITED else min(max(quota, queue.fair[i]), limit)
