"""Queues: bounds read from the API, the tree, capacity gates, order (KAI's proportion plugin)."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from decimal import Decimal
from functools import cache
from typing import Literal

from capstan.api import clock, quantity
from capstan.api.scheduling import MAX_RUNTIME, REQUEUE_DELAY, QueueResource
from capstan.api.scheduling import Queue as ApiQueue
from capstan.scheduling import durations
from capstan.scheduling.amounts import (
    FIRST_PRODUCT,
    GPU,
    GPU_RESOURCE,
    RESOURCES,
    UNITS,
    UNLIMITED,
    Amounts,
    dealt,
    unit_of,
)
from capstan.scheduling.fair_share import kept_back
from capstan.scheduling.model import GPU_PRODUCT_LABEL, UNBOUNDED, Bounds, Gang, Pool, Queue

DEFAULT_PRIORITY = 100
_MOST_NAMED = 5
"""Queues of a circle."""


def parse_queue(obj: ApiQueue) -> Queue:
    """A queue as written. Wrong numbers become its `error`; nothing is scheduled under it until they are corrected."""
    spec = obj.spec
    problems: list[str] = []
    bounds, gpu_types = UNBOUNDED, {}
    if spec.resources is not None:
        bounds = {
            name: _bounds(getattr(spec.resources, name), unit.queue, name, problems) for name, unit in UNITS.items()
        }
        gpu_types = {
            product: _bounds(said, GPU, f"gpuTypes.{product}", problems)
            for product, said in sorted(spec.resources.gpu_types.items())
        }
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
    if spec.user_fairness not in ("", "None", "DominantShare"):
        problems.append(f"userFairness is {spec.user_fairness!r}; write DominantShare, or None")
    return Queue(
        name=obj.metadata.name,
        parent_name=spec.parent_queue,
        priority=DEFAULT_PRIORITY if spec.priority is None else spec.priority,
        created=clock.parse(obj.metadata.creation_timestamp),
        bounds=bounds,
        gpu_types=gpu_types,
        preempt_min_runtime=runtimes[0],
        reclaim_min_runtime=runtimes[1],
        max_runtime=longest[0],
        requeue_delay=longest[1],
        user_fairness=spec.user_fairness == "DominantShare",
        flaw="; ".join(problems),
    )


def _bounds(said: QueueResource, scale: int, where: str, problems: list[str]) -> Bounds:
    weight = said.over_quota_weight
    if not math.isfinite(weight) or weight < 0:
        problems.append(f"{where}.overQuotaWeight is {weight}; write a number of at least 0")
        weight = 0.0
    quota = _amount(said.quota, scale, f"{where}.quota", problems)
    limit = _amount(said.limit, scale, f"{where}.limit", problems)
    lending = _amount(said.lending_limit, scale, f"{where}.lendingLimit", problems)
    if lending != UNLIMITED and quota == UNLIMITED:
        problems.append(f"{where}.lendingLimit says how much of the quota is lent, but the quota is unlimited; set one")
    return Bounds(quota, limit, weight, lending)


def _amount(value: float, scale: int, field: str, problems: list[str]) -> int:
    if not math.isfinite(value) or (value < 0 and value != UNLIMITED):
        problems.append(f"{field} is {value}; write a number of at least 0, or -1 for unlimited")
        return 0
    return UNLIMITED if value == UNLIMITED else round(value * scale)


def resources_of(queues: Mapping[str, Queue]) -> tuple[str, ...]:
    """What is divided: RESOURCES, and every GPU product that a queue names."""
    return (*RESOURCES, *sorted({product for queue in queues.values() for product in queue.gpu_types}))


def link(queues: Mapping[str, Queue], resources: tuple[str, ...]) -> list[Queue]:
    """Build the tree in place and return its roots in order of creation. Broken branches get an `error`.

    All sums are 0 after it.
    """
    ordered = sorted(queues.values(), key=lambda queue: (queue.created, queue.name))
    for rank, queue in enumerate(ordered):
        queue.measure(resources)
        queue.rank, queue.children, queue.parent, queue.depth = rank, [], None, 0
        queue.error, queue.lenders, queue.pool = queue.flaw, (), None
    roots = []
    for queue in ordered:
        parent = queues.get(queue.parent_name)
        if not queue.parent_name:
            roots.append(queue)
        elif parent is None:
            queue.error = queue.error or f"its parent queue {queue.parent_name} does not exist"
        elif circle := _circle(queue, queues):
            queue.error = queue.error or f"its chain of parents is a circle: {circle}"
        else:
            queue.parent = parent
            parent.children.append(queue)
    for queue in ordered:
        path = queue.path()
        queue.depth = len(path) - 1
        above = next((ancestor for ancestor in path[1:] if ancestor.error), None)
        if above is not None and not queue.error:
            queue.error = f"its parent queue {above.name} is not usable: {above.error}"
    _link_lenders(roots, ordered)
    return roots


def _link_lenders(roots: list[Queue], queues: Sequence[Queue]) -> None:
    if not any(amount != UNLIMITED for queue in queues for amount in queue.lending):
        return
    pool = Pool(roots, (0,) * len(queues[0].resources))
    for level in (roots, *(queue.children for queue in queues)):
        lenders = [q for q in level if not q.error and any(amount != UNLIMITED for amount in q.lending)]
        for queue in level:
            queue.lenders, queue.pool = lenders, pool


def _circle(queue: Queue, queues: Mapping[str, Queue]) -> str:
    """The chain of parents up to the queue that comes twice, if one does: `a, b, a`."""
    chain = {queue.name: None}
    current = queues.get(queue.parent_name)
    while current is not None:
        if current.name in chain:
            named = [*chain][:_MOST_NAMED] + ["..."] * (len(chain) > _MOST_NAMED)
            return ", ".join((*named, current.name))
        chain[current.name] = None
        current = queues.get(current.parent_name)
    return ""


def levelled(left: Queue, right: Queue) -> tuple[Queue, Queue]:
    """The first ancestors, from the root down, in which the paths of two queues differ."""
    pair = (left, right)
    for a, b in zip(reversed(left.path()), reversed(right.path()), strict=False):
        pair = (a, b)
        if a is not b:
            break
    return pair


# -- gates -------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Exceeded:
    """A bound that a unit would break. Amounts in the units of `model`.

    `limit`: what the queue may use; `quota`: what gangs that are not preemptible must stay within; `share`: what others
    may be evicted for; `lending`: what is left for a queue beyond its quota when others keep what they do not lend
    (`kept`). `used` is what the queue holds; of `lending`, what the queue above it (none: the cluster) has given out.
    """

    queue: Queue
    resource: int
    kind: Literal["limit", "quota", "share", "lending"]
    bound: int
    used: int
    asked: int
    kept: int = 0

    @property
    def left(self) -> int:
        return max(0, self.bound - self.used - self.kept)


@cache
def by_importance(size: int) -> tuple[int, ...]:
    """The places of amounts in the order in which they are checked and spoken of: GPU products, GPUs, CPU, memory."""
    return (*range(FIRST_PRODUCT, size), 2, 0, 1)


def exceeded(gang: Gang, demand: Amounts) -> Exceeded | None:
    """The first bound, leaf first, that `demand` more would break; None when all hold."""
    level = gang.queue
    fixed = gang.bound_by_quota
    order = by_importance(len(demand))
    while level is not None:
        limit = level.limit
        for i in order:
            if demand[i] and limit[i] != UNLIMITED and level.allocated[i] + demand[i] > limit[i]:
                return Exceeded(level, i, "limit", limit[i], level.allocated[i], demand[i])
        if fixed:
            quota = level.quota
            for i in order:
                if demand[i] and quota[i] != UNLIMITED and level.fixed[i] + demand[i] > quota[i]:
                    return Exceeded(level, i, "quota", quota[i], level.fixed[i], demand[i])
        level = level.parent
    if gang.queue is not None and gang.queue.pool is not None:
        return _not_lent(gang.queue, gang.queue.pool, demand)
    return None


def _not_lent(queue: Queue, pool: Pool, demand: Amounts) -> Exceeded | None:
    """What the queue would take beyond its quota of amounts that others do not lend.

    At every level from which it borrows, what siblings keep counts as taken, there and in all levels above.
    """
    kept = [0] * len(demand)
    level = queue
    while True:
        above = level.parent
        for i in by_importance(len(demand)):
            quota = level.quota[i]
            if demand[i] and (quota == UNLIMITED or level.allocated[i] + demand[i] > quota):
                siblings = (q for q in level.lenders if q is not level)
                kept[i] += sum(kept_back(q.quota[i], q.limit[i], q.lending[i], q.allocated[i]) for q in siblings)
            if not kept[i]:
                continue
            bound = pool.total[i] if above is None else above.limit[i]
            used = sum(root.allocated[i] for root in pool.roots) if above is None else above.allocated[i]
            if bound != UNLIMITED and used + demand[i] + kept[i] > bound:
                return Exceeded(level, i, "lending", bound, used, demand[i], kept[i])
        if above is None:
            return None
        level = above


def over_product(gang: Gang, place: int, gpus: int, *, within_share: bool) -> Exceeded | None:
    """The bound that `gpus` more of the GPU product at `place` would break.

    For gangs of which only the chosen node shows what products they get. `within_share`: nor may the queue go beyond
    its share of the product, for others are to be evicted.
    """
    queue = gang.queue
    if queue is None or not gpus:
        return None
    bound = exceeded(gang, tuple(gpus if i == place else 0 for i in range(len(queue.resources))))
    share, held = queue.share[place], queue.allocated[place]
    if bound is None and within_share and share != UNLIMITED and held + gpus > share:
        return Exceeded(queue, place, "share", share, held, gpus)
    return bound


def too_many_of_a_product(gang: Gang) -> bool:
    """Whether a queue on the gang's path holds more GPUs of a product than it may."""
    level = gang.queue
    while level is not None:
        for i in range(FIRST_PRODUCT, len(level.resources)):
            quota, limit = level.quota[i], level.limit[i]
            if limit != UNLIMITED and level.allocated[i] > limit:
                return True
            if not gang.preemptible and quota != UNLIMITED and level.fixed[i] > quota:
                return True
        level = level.parent
    return False


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
    allocated, due, quota, share = queue.allocated, queue.entitled, queue.quota, queue.share
    over = due[0] < allocated[0] and due[1] < allocated[1] and due[2] < allocated[2]
    fits = True
    zero = False
    for i, asked in enumerate(demand):
        used = allocated[i] + asked
        if quota[i] != UNLIMITED and used > quota[i]:
            fits = False
        if used > 0 and share[i] == 0:
            zero = True
    return (
        over,
        not fits,
        -queue.priority,
        zero,
        dominant_share(queue, [a + d - r for a, d, r in zip(allocated, demand, removed, strict=True)], total),
        dominant_share(queue, allocated, total),
        Share(share),
        queue.rank,
    )


def dominant_share(queue: Queue, allocated: Sequence[int], total: Sequence[int]) -> float:
    """The largest ratio of allocated to allocatable share over the resources."""
    largest = 0.0
    for i, held in enumerate(allocated):
        share = _bounded(queue.share[i], total[i])
        ratio = held / share if share else held / dealt(i) * 1000
        if ratio > largest:
            largest = ratio
    return largest


def _bounded(share: int, total: int) -> int:
    return total if share == UNLIMITED else share


# -- status ------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class QueueStatus:
    """What a queue and everything below it hold and ask for, as API quantities.

    Keys are `cpu`, `memory`, `nvidia.com/gpu` and the GPU products that the queue names or holds.
    """

    children: tuple[str, ...]
    allocated: dict[str, str]
    allocated_non_preemptible: dict[str, str]
    requested: dict[str, str]
    fair_share: dict[str, str]
    error: str = ""
    """Why nothing is scheduled under the queue; empty when it is usable."""
    warnings: tuple[str, ...] = ()
    """What is probably a mistake, although the queue works."""


def status_of(queue: Queue, total: Sequence[int]) -> QueueStatus:
    return QueueStatus(
        children=tuple(child.name for child in queue.children),
        allocated=quantities(queue, queue.allocated),
        allocated_non_preemptible=quantities(queue, queue.fixed),
        requested=quantities(queue, queue.requested),
        fair_share=quantities(queue, queue.fair),
        error=queue.error,
        warnings=tuple(_warnings(queue, total)),
    )


def quantities(queue: Queue, amounts: Sequence[int]) -> dict[str, str]:
    """Amounts as API quantities, by resource name; without those that are unlimited."""
    found = {}
    for resource, amount in zip(queue.resources, amounts, strict=False):
        if amount != UNLIMITED and (amount or resource in UNITS or resource in queue.gpu_types):
            name = GPU_RESOURCE if resource == "gpu" else resource
            found[name] = quantity.render(Decimal(amount) / unit_of(resource).quantity)
    return found


def _warnings(queue: Queue, total: Sequence[int]) -> Iterator[str]:
    if queue.user_fairness and queue.children:
        yield "userFairness has no effect: the queue has child queues; set it on those that hold jobs"
    for i, resource in enumerate(queue.resources):
        if resource in queue.gpu_types and not total[i]:
            yield f"gpuTypes: no node has GPUs of the product {resource} (node label {GPU_PRODUCT_LABEL})"
        quota = queue.quota[i]
        promised = [child.quota[i] for child in queue.children if not child.error]
        if quota != UNLIMITED and sum(amount for amount in promised if amount != UNLIMITED) > quota:
            unit = unit_of(resource).queue
            has, wants = quota / unit, sum(amount for amount in promised if amount != UNLIMITED) / unit
            yield f"{resource}: the quotas of its child queues are {wants:g} in all, more than its own {has:g}"
