"""Queues: bounds read from the API, the tree, fair shares, capacity gates, order (KAI's proportion plugin)."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from decimal import Decimal

from capstan.api import clock, quantity
from capstan.api.scheduling import MAX_RUNTIME, REQUEUE_DELAY, QueueResource
from capstan.api.scheduling import Queue as ApiQueue
from capstan.scheduling import durations
from capstan.scheduling.model import GPU, GPU_RESOURCE, RESOURCES, UNLIMITED, Amounts, Gang, Queue

UNITS = (1, 1, GPU)
"""The unit in which left-over fair share is handed out: a millicore, a byte, a whole GPU."""
_SCALES = (1, 1_000_000, GPU)
"""Queue specs count CPU in millicores, memory in 10^6 bytes, GPUs in devices."""
DEFAULT_PRIORITY = 100


def parse_queue(obj: ApiQueue) -> Queue:
    """A queue as written. Wrong numbers become its `error`; nothing is scheduled under it until they are corrected."""
    spec = obj.spec
    problems: list[str] = []
    bounds: list[list[int]] = [[], []]
    weights: list[float] = []
    resources = spec.resources
    for name, scale in zip(RESOURCES, _SCALES, strict=True):
        bound = getattr(resources, name) if resources is not None else QueueResource(quota=UNLIMITED)
        for field, into in (("quota", bounds[0]), ("limit", bounds[1])):
            into.append(_amount(getattr(bound, field), scale, f"{name}.{field}", problems))
        weight = bound.over_quota_weight
        if not math.isfinite(weight) or weight < 0:
            problems.append(f"{name}.overQuotaWeight is {weight}; write a number of at least 0")
            weight = 0.0
        weights.append(weight)
    runtimes: list[float | None] = []
    for field, text in (
        ("preemptMinRuntime", spec.preempt_min_runtime),
        ("reclaimMinRuntime", spec.reclaim_min_runtime),
    ):
        try:
            runtimes.append(durations.seconds(text) if text else None)
        except ValueError as malformed:
            problems.append(f"{field}: {malformed}")
            runtimes.append(None)
    longest: list[float | None] = []
    for name in (MAX_RUNTIME, REQUEUE_DELAY):
        text = obj.metadata.annotations.get(name)
        try:
            longest.append(durations.positive(text, name) if text is not None else None)
        except ValueError as malformed:
            problems.append(str(malformed))
            longest.append(None)
    return Queue(
        name=obj.metadata.name,
        parent_name=spec.parent_queue,
        priority=DEFAULT_PRIORITY if spec.priority is None else spec.priority,
        created=clock.parse(obj.metadata.creation_timestamp),
        quota=(bounds[0][0], bounds[0][1], bounds[0][2]),
        limit=(bounds[1][0], bounds[1][1], bounds[1][2]),
        weight=(weights[0], weights[1], weights[2]),
        preempt_min_runtime=runtimes[0],
        reclaim_min_runtime=runtimes[1],
        max_runtime=longest[0],
        requeue_delay=longest[1],
        error="; ".join(problems),
    )


def _amount(value: float, scale: int, field: str, problems: list[str]) -> int:
    if not math.isfinite(value) or (value < 0 and value != UNLIMITED):
        problems.append(f"{field} is {value}; write a number of at least 0, or -1 for unlimited")
        return 0
    return UNLIMITED if value == UNLIMITED else round(value * scale)


def link(queues: Mapping[str, Queue]) -> list[Queue]:
    """Build the tree in place and return its roots in order of creation. Broken branches get an `error`."""
    ordered = sorted(queues.values(), key=lambda queue: (queue.created, queue.name))
    for rank, queue in enumerate(ordered):
        queue.rank, queue.children, queue.parent, queue.depth = rank, [], None, 0
    roots = []
    for queue in ordered:
        parent = queues.get(queue.parent_name)
        if not queue.parent_name:
            roots.append(queue)
        elif parent is None:
            queue.error = queue.error or f"its parent queue {queue.parent_name} does not exist"
        elif _circular(queue, queues):
            queue.error = queue.error or "its chain of parents is a circle"
        else:
            queue.parent = parent
            parent.children.append(queue)
    for queue in ordered:
        path = queue.path()
        queue.depth = len(path) - 1
        above = next((ancestor for ancestor in path[1:] if ancestor.error), None)
        if above is not None and not queue.error:
            queue.error = f"its parent queue {above.name} is not usable: {above.error}"
    return roots


def _circular(queue: Queue, queues: Mapping[str, Queue]) -> bool:
    seen = {queue.name}
    current = queues.get(queue.parent_name)
    while current is not None:
        if current.name in seen:
            return True
        seen.add(current.name)
        current = queues.get(current.parent_name)
    return False


# -- fair share --------------------------------------------------------------------------------------------------


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
    fair: int = 0
    entitled: int = 0

    @property
    def requestable(self) -> int:
        return self.request if self.limit == UNLIMITED else min(self.request, self.limit)


def divide(total: int, claimants: Sequence[Claimant], unit: int = 1, k: float = 1.0) -> None:
    """Set every claimant's fair share of `total`: deserved first, then by priority level and weight, then remainders.

    Differs from KAI's resource division in one point: when the deserved amounts exceed the total, they are cut in
    proportion, so that no level hands out more than it has.
    """
    deserved = [max(0, min(total if c.quota == UNLIMITED else c.quota, c.requestable)) for c in claimants]
    for claimant, amount in zip(claimants, deserved, strict=True):
        claimant.entitled = amount
    if sum(deserved) > total:
        _cut(total, claimants, deserved, unit)
        return
    remaining = total
    for claimant, amount in zip(claimants, deserved, strict=True):
        claimant.fair = amount
        remaining -= amount
    for level in sorted({claimant.priority for claimant in claimants}, reverse=True):
        if remaining <= 0:
            return
        remaining = _divide_level(remaining, [c for c in claimants if c.priority == level], unit, k)


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


def _divide_level(remaining: int, claimants: list[Claimant], unit: int, k: float) -> int:
    """Hand out the over-quota part of one priority level; returns what is left."""
    left_over: dict[str, float] = {}
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
                left_over.pop(claimant.name, None)
                again = again or want < share
            else:
                give = int(share // unit) * unit
                claimant.fair += give
                remaining -= give
                left_over[claimant.name] = share - give
    for claimant in sorted(claimants, key=lambda c: (-left_over.get(c.name, 0.0), c.rank)):
        if claimant.name in left_over and remaining > 0:
            give = min(unit, remaining, claimant.requestable - claimant.fair)
            claimant.fair += give
            remaining -= give
    return remaining


def set_fair_shares(roots: Sequence[Queue], total: Amounts, usage: Mapping[str, Mapping[str, float]], k: float) -> None:
    """Divide the cluster top-down among all queues, each resource on its own, and set `fair` and `share`.

    `usage`: queue -> resource -> part of the capacity it used of late; `k`: how much that counts.
    """
    _divide_children(roots, total, usage, k)


def _divide_children(
    queues: Sequence[Queue], total: Sequence[int], usage: Mapping[str, Mapping[str, float]], k: float
) -> None:
    for i in range(3):
        claimants = [
            Claimant(
                q.name,
                q.priority,
                q.rank,
                q.quota[i],
                q.limit[i],
                q.weight[i],
                q.requested[i],
                usage[q.name].get(RESOURCES[i], 0.0) if q.name in usage else 0.0,
            )
            for q in queues
            if not q.error
        ]
        divide(max(0, total[i]), claimants, UNITS[i], k)
        fair = {claimant.name: claimant for claimant in claimants}
        for q in queues:
            own = fair.get(q.name)
            q.fair[i] = own.fair if own is not None else 0
            q.entitled[i] = max(own.entitled, own.fair) if own is not None else 0
            q.share[i] = _allocatable(q, i)
    for q in queues:
        if q.children:
            _divide_children(q.children, q.fair, usage, k)


def _allocatable(queue: Queue, i: int) -> int:
    quota, limit = queue.quota[i], queue.limit[i]
    if quota == UNLIMITED:
        return limit
    return max(quota, queue.fair[i]) if limit == UNLIMITED else min(max(quota, queue.fair[i]), limit)


# -- gates -------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Exceeded:
    """A queue bound that a unit would break. Amounts in the units of `model`."""

    queue: Queue
    resource: int
    bound: int
    used: int
    asked: int
    quota: bool
    """The quota, which gangs that are not preemptible must stay within; otherwise the limit."""


def exceeded(gang: Gang, demand: Amounts) -> Exceeded | None:
    """The first bound, leaf first, that `demand` more would break; None when all hold."""
    level = gang.queue
    fixed = not gang.preemptible
    while level is not None:
        limit = level.limit
        for i in (2, 0, 1):
            if demand[i] and limit[i] != UNLIMITED and level.allocated[i] + demand[i] > limit[i]:
                return Exceeded(level, i, limit[i], level.allocated[i], demand[i], quota=False)
        if fixed:
            quota = level.quota
            for i in (2, 0, 1):
                if demand[i] and quota[i] != UNLIMITED and level.fixed[i] + demand[i] > quota[i]:
                    return Exceeded(level, i, quota[i], level.fixed[i], demand[i], quota=True)
        level = level.parent
    return None


# -- order -------------------------------------------------------------------------------------------------------


class Share(tuple[int, int, int]):
    """An allocatable share in the order of queues: it comes first where it is smaller in no resource larger.

    Shares of which neither is smaller count as equal, so that what follows in a key decides.
    """

    def __lt__(self, other: tuple[int, ...]) -> bool:
        return tuple(self) != tuple(other) and all(_no_larger(a, b) for a, b in zip(self, other, strict=True))

    def __eq__(self, other: object) -> bool:
        assert isinstance(other, Share)
        return not self < other and not other < self

    __hash__ = tuple.__hash__


def _no_larger(a: int, b: int) -> bool:
    return b == UNLIMITED or (a != UNLIMITED and a <= b)


QueueKey = tuple[bool, bool, int, bool, float, float, Share, int]


def queue_key(queue: Queue, demand: Amounts, removed: Amounts, total: Sequence[int]) -> QueueKey:
    """Smaller comes first. `demand` is that of the queue's best job, `removed` what its victims so far would free."""
    allocated, fair, quota, share = queue.allocated, queue.fair, queue.quota, queue.share
    over = fair[0] < allocated[0] and fair[1] < allocated[1] and fair[2] < allocated[2]
    fits = True
    zero = False
    for i in range(3):
        used = allocated[i] + demand[i]
        if quota[i] != UNLIMITED and used > quota[i]:
            fits = False
        if used > 0 and share[i] == 0:
            zero = True
    return (
        over,
        not fits,
        -queue.priority,
        zero,
        dominant_share(queue, [allocated[i] + demand[i] - removed[i] for i in range(3)], total),
        dominant_share(queue, allocated, total),
        Share(share),
        queue.rank,
    )


def dominant_share(queue: Queue, allocated: Sequence[int], total: Sequence[int]) -> float:
    """The largest ratio of allocated to allocatable share over the resources."""
    largest = 0.0
    for i in range(3):
        share = _bounded(queue.share[i], total[i])
        ratio = allocated[i] / share if share else allocated[i] / UNITS[i] * 1000
        if ratio > largest:
            largest = ratio
    return largest


def _bounded(share: int, total: int) -> int:
    return total if share == UNLIMITED else share


# -- status ------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class QueueStatus:
    """What a queue and everything below it hold and ask for, as API quantities (`cpu`, `memory`, `nvidia.com/gpu`)."""

    children: tuple[str, ...]
    allocated: dict[str, str]
    allocated_non_preemptible: dict[str, str]
    requested: dict[str, str]
    fair_share: dict[str, str]
    error: str = ""
    """Why nothing is scheduled under the queue; empty when it is usable."""


def status_of(queue: Queue) -> QueueStatus:
    return QueueStatus(
        children=tuple(child.name for child in queue.children),
        allocated=_quantities(queue.allocated),
        allocated_non_preemptible=_quantities(queue.fixed),
        requested=_quantities(queue.requested),
        fair_share=_quantities(queue.fair),
        error=queue.error,
    )


def _quantities(amounts: Sequence[int]) -> dict[str, str]:
    cpu, memory, gpu = amounts
    return {
        "cpu": quantity.render(Decimal(cpu) / 1000),
        "memory": quantity.render(memory),
        GPU_RESOURCE: quantity.render(Decimal(gpu) / GPU),
    }
