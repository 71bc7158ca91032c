"""Who would have to make room, in which order, and whether fairness allows it.

Victims come one unit at a time (`gangs.shrink`), from the queue that is most over its share and there from the least
important, newest gang. `Fairness` admits a unit only while its queue may still lose something, so that any prefix of
the admitted victims is a fair set.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from heapq import heapify, heappop, heappush
from operator import add, neg, sub
from typing import Literal

from capstan.scheduling.amounts import FIRST_PRODUCT, UNLIMITED, Amounts
from capstan.scheduling.gangs import Part, shrink
from capstan.scheduling.model import Gang, Queue, Status, Task
from capstan.scheduling.order import demand_of
from capstan.scheduling.policy import Policy
from capstan.scheduling.queues import QueueKey, by_importance, dominant_share, levelled, queue_key
from capstan.scheduling.users import user_of
from capstan.scheduling.world import World

Allowed = Literal["all", "surplus", "none"]
Answer = Literal["take", "skip", "exhausted"]


@dataclass(frozen=True, slots=True)
class Victim:
    """A unit that a gang could give up."""

    gang: Gang
    tasks: list[Task]
    part: Part
    amounts: Amounts
    whole: Amounts
    """What its gang has left, this unit included."""


Listed = tuple[tuple[int, float, str], Gang]
"""An entry of `Queue.active`."""
Victims = Generator[Victim, bool | None, None]
"""Victims one after another. `send(False)` instead of `next` says that the last one is not ended after all."""


def gives(gang: Gang) -> Allowed:
    """What may be taken of a gang by its preemptibility alone."""
    return "all" if gang.preemptible else "surplus" if gang.semi else "none"


def victims_of(queue: Queue, allowed: Callable[[Gang], Allowed], total: Sequence[int]) -> Victims:
    """The units of a leaf queue: lowest priority first, there surplus before cores, newest first.

    Where users take turns, those of the user who has most come first within a priority.
    """
    if queue.users is None:
        # A copy: what the caller does about a victim changes the queue's own list.
        return _units(queue.active[:], queue, allowed)
    return _units_by_user(queue, allowed, total)


def _units_by_user(queue: Queue, allowed: Callable[[Gang], Allowed], total: Sequence[int]) -> Victims:
    by_user: dict[str, list[Listed]] = {}
    for entry in queue.active:
        by_user.setdefault(user_of(entry[1]), []).append(entry)
    held = {user: list((queue.users or {}).get(user, [0] * len(total))) for user in by_user}
    streams = {user: _units(gangs, queue, allowed) for user, gangs in by_user.items()}
    heads = {user: first for user, stream in streams.items() if (first := next(stream, None)) is not None}

    def last(user: str) -> tuple[int, float, tuple[int, float, str]]:
        gang = heads[user].gang
        return (-gang.priority, dominant_share(queue, held[user], total), gang.order)

    while heads:
        user = max(heads, key=last)
        victim = heads[user]
        if (yield victim) is not False:
            held[user][:] = map(sub, held[user], victim.amounts)
        following = next(streams[user], None)
        if following is None:
            del heads[user]
        else:
            heads[user] = following


def _units(gangs: Sequence[Listed], queue: Queue, allowed: Callable[[Gang], Allowed]) -> Victims:
    """The units of some of a queue's gangs, which are given in their order."""
    elastic = [gang for _, gang in gangs if gang.key in queue.elastic] if queue.elastic else []
    rest: dict[tuple[str, str], list[Victim]] = {}
    broken: list[Gang] = []
    """Those below their minimum come last of their priority: while they wait for the rest, they come first."""
    for _, gang in reversed(gangs):
        if broken and broken[0].priority != gang.priority:
            for each in broken:
                yield from _cores(each, rest, queue, allowed)
            broken.clear()
        while elastic and elastic[-1].priority <= gang.priority:
            growing = elastic.pop()
            if _settled(growing) and (verdict := allowed(growing)) != "none":
                units = _shrinking(growing)
                rest[growing.key] = [unit for unit in units if unit.part == "core"] if verdict == "all" else []
                core = {task.uid for task in growing.core()} if growing.semi else set()
                for unit in units:
                    if unit.part != "core" and not any(task.uid in core for task in unit.tasks):
                        yield unit
        if gang.root.satisfied:
            yield from _cores(gang, rest, queue, allowed)
        else:
            broken.append(gang)
    for each in broken:
        yield from _cores(each, rest, queue, allowed)


def _cores(
    gang: Gang, rest: Mapping[tuple[str, str], list[Victim]], queue: Queue, allowed: Callable[[Gang], Allowed]
) -> Victims:
    """What is left of a gang when its surplus is gone: of growing gangs that is in `rest`."""
    units = rest.get(gang.key)
    if units is None:
        if gang.key in queue.elastic or not _settled(gang) or allowed(gang) != "all":
            return
        tasks = [task for _, task in gang.root.active]
        amounts = demand_of(tasks)
        units = [Victim(gang, tasks, "core", amounts, amounts)]
    for unit in units:  # noqa: UP028 - a list cannot be sent what became of its victims
        yield unit


def _shrinking(gang: Gang) -> list[Victim]:
    """All units of a gang, in the order in which it gives them up."""
    units: list[Victim] = []
    for tasks, part in reversed(list(shrink(gang))):
        amounts = demand_of(tasks)
        whole = tuple(map(add, amounts, units[-1].whole)) if units else amounts
        units.append(Victim(gang, tasks, part, amounts, whole))
    return units[::-1]


def _settled(gang: Gang) -> bool:
    """Whether no pod of the gang was promised or given devices in this very cycle: that is not taken back."""
    for leaf in gang.root.leaves():
        for _, task in leaf.active:
            if task.status == Status.PIPELINED or (task.status == Status.ALLOCATED and task.held):
                return False
    return True


class VictimOrder:
    """Merges the victims of many leaf queues: always from the queue that comes last in scheduling order.

    A queue is compared by what its best leaf would have left without the gangs that gave something up so far and
    without the next one. They count as a whole each time, as KAI has it: a queue that began to shrink goes on to.
    """

    def __init__(
        self,
        world: World,
        leaves: Iterable[Queue],
        allowed: Callable[[Gang], Allowed],
        admit: Callable[[Victim], Answer],
    ) -> None:
        self._total, self._nothing = world.total, world.nothing
        self._admit = admit
        self._popped: dict[str, Amounts] = {}
        """Leaf -> what the gangs held that gave something up, or would have had it been admitted."""
        self._next: dict[str, Victim] = {}
        self._streams: dict[str, Victims] = {}
        self._below: dict[str, list[tuple[Reversed | None, int, Queue]]] = {}
        self._queues: dict[str, Queue] = {}
        for leaf in leaves:
            stream = victims_of(leaf, allowed, world.total)
            first = next(stream, None)
            if first is not None:
                self._streams[leaf.name], self._next[leaf.name] = stream, first
                self._hang(leaf)
        for queue in sorted(self._queues.values(), key=lambda queue: -queue.depth):
            self._below.setdefault(_parent(queue), []).append((None, -queue.rank, queue))
        for siblings in self._below.values():
            if len(siblings) > 1:
                siblings[:] = [(self._key(queue), rank, queue) for _, rank, queue in siblings]
                heapify(siblings)

    def _hang(self, queue: Queue | None) -> None:
        while queue is not None and queue.name not in self._queues:
            self._queues[queue.name] = queue
            queue = queue.parent

    def _key(self, queue: Queue) -> Reversed:
        leaf = queue
        while self._below.get(leaf.name):
            leaf = self._below[leaf.name][0][2]
        removed = self._popped.get(leaf.name, self._nothing)
        if leaf.name in self._next:
            removed = tuple(map(add, removed, self._next[leaf.name].whole))
        return Reversed(queue_key(queue, self._nothing, removed, self._total))

    def __iter__(self) -> Iterator[Victim]:
        """Admitted victims. A queue whose victims are exhausted for good is not asked again."""
        while self._below.get(""):
            leaf = self._below[""][0][2]
            while self._below.get(leaf.name):
                leaf = self._below[leaf.name][0][2]
            victim = self._next[leaf.name]
            answer = self._admit(victim)
            following = None if answer == "exhausted" else _after(self._streams[leaf.name], taken=answer == "take")
            if following is None:
                del self._next[leaf.name]
            else:
                self._next[leaf.name] = following
            self._popped[leaf.name] = tuple(map(add, self._popped.get(leaf.name, self._nothing), victim.whole))
            self._advance(leaf)
            if answer == "take":
                yield victim

    def _advance(self, leaf: Queue) -> None:
        queue: Queue | None = leaf
        while queue is not None:
            siblings = self._below[_parent(queue)]
            _, rank, top = heappop(siblings)
            assert top is queue
            if queue.name in self._next or self._below.get(queue.name):
                heappush(siblings, (self._key(queue) if siblings else None, rank, queue))
            queue = queue.parent


class Reversed:
    """A key of the scheduling order that sorts the other way round."""

    __slots__ = ("key",)

    def __init__(self, key: QueueKey) -> None:
        self.key = key

    def __lt__(self, other: Reversed) -> bool:
        return other.key < self.key

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Reversed) and self.key == other.key

    __hash__ = None  # type: ignore[assignment]


def _after(victims: Victims, *, taken: bool) -> Victim | None:
    try:
        return victims.send(taken)
    except StopIteration:
        return None


def _parent(queue: Queue) -> str:
    return queue.parent.name if queue.parent is not None else ""


# -- protection ----------------------------------------------------------------------------------------------------


def runtime(gang: Gang, now: float) -> float:
    """Seconds since the gang's last full start; infinite when that is not known."""
    return float("inf") if gang.last_start is None else now - gang.last_start


def preempt_protection(gang: Gang, policy: Policy, now: float) -> bool:
    """Whether its minimum run time protects the gang's core from preemption: the first value, leaf to root."""
    queue = gang.queue
    while queue is not None:
        if queue.preempt_min_runtime is not None:
            return runtime(gang, now) < queue.preempt_min_runtime
        queue = queue.parent
    return runtime(gang, now) < policy.preempt_min_runtime


def reclaim_min_runtime(victim: Queue, reclaimer: Queue, policy: Policy) -> float:
    """The minimum run time that protects gangs of a queue from reclaim.

    The first value found from the queue below the lowest common ancestor (or from the leaf) upwards.
    """
    queue: Queue | None = victim
    if policy.reclaim_min_runtime_method == "lca":
        queue = levelled(reclaimer, victim)[1]
    while queue is not None:
        if queue.reclaim_min_runtime is not None:
            return queue.reclaim_min_runtime
        queue = queue.parent
    return policy.reclaim_min_runtime


# -- fairness ------------------------------------------------------------------------------------------------------


class Fairness:
    """What reclaim may take (KAI's reclaim strategies), kept up to date while victims are added one after another."""

    def __init__(
        self,
        reclaimer: Queue,
        demand: Amounts,
        multiplier: float,
        before: Mapping[str, Sequence[int]] | None = None,
    ) -> None:
        self.reclaimer, self.demand, self.multiplier = reclaimer, demand, multiplier
        self._before = before or {}
        """Queue -> what it had before the simulation that is judged; otherwise what it has."""
        self.left: dict[str, list[int]] = {}
        """What the queues that lose something would have left."""
        self.given: dict[str, list[int]] = {}
        """What their victims so far give up."""
        self._touched: list[Queue] = []
        self._path = reclaimer.path()
        self._leaves: dict[str, tuple[Queue, Queue, list[Queue]]] = {}
        self._wanted = [i for i, amount in enumerate(demand) if amount > 0]

    def may_reclaim(self, *, preemptible: bool) -> bool:
        """Whether the reclaimer stays within its fair share, and within its quota if it cannot be preempted."""
        queue = self.reclaimer
        if self.beyond_share() is not None:
            return False
        return preemptible or _within(queue.fixed, self.demand, queue.quota)

    def beyond_share(self) -> int | None:
        """The first resource of which the reclaimer would have more than it is entitled to."""
        queue, demand = self.reclaimer, self.demand
        # What it holds of products that it does not ask for now is no reason against others.
        concerned = (i for i in by_importance(len(demand)) if i < FIRST_PRODUCT or demand[i])
        return next((i for i in concerned if queue.allocated[i] + demand[i] > queue.entitled[i]), None)

    def candidate(self, leaf: Queue) -> bool:
        """Whether the queue can lose anything at all."""
        ours, theirs = levelled(self.reclaimer, leaf)
        if not _within(ours.allocated, self.demand, ours.quota):
            return _exceeds(theirs.allocated, theirs.share)
        under = False
        for i in self._wanted:
            quota = theirs.quota[i]
            if quota == UNLIMITED:
                continue
            if theirs.allocated[i] > quota:
                return True
            under = under or theirs.allocated[i] < quota
        return not under

    def _held(self, queue: Queue) -> Sequence[int]:
        return self._before.get(queue.name, queue.allocated)

    def admit(self, victim: Victim) -> Answer:
        """Count the victim in if its queue may lose it: before it, the queue has more than it is entitled to."""
        leaf = victim.gang.queue
        assert leaf is not None
        known = self._leaves.get(leaf.name)
        if known is None:
            known = self._leaves[leaf.name] = (*levelled(self.reclaimer, leaf), leaf.path())
        ours, theirs, path = known
        left = self.left.get(theirs.name, self._held(theirs))
        bound: Sequence[int] = theirs.share
        if not _exceeds(left, bound):
            bound = theirs.quota
            if not _within(self._held(ours), self.demand, ours.quota) or not _exceeds(left, bound):
                return "exhausted"
        if len(left) > FIRST_PRODUCT and not _concerned(victim.amounts, left, bound):
            return "skip"
        self._take(path, victim.amounts)
        if self._balanced():
            return "take"
        self._take(path, tuple(map(neg, victim.amounts)))
        return "skip"

    def _take(self, path: list[Queue], amounts: Amounts) -> None:
        for queue in path:
            left, given = self.left.get(queue.name), self.given.get(queue.name)
            if left is None or given is None:
                left, given = self.left[queue.name], self.given[queue.name] = (
                    list(self._held(queue)),
                    [0] * len(amounts),
                )
                self._touched.append(queue)
            left[:] = map(sub, left, amounts)
            given[:] = map(add, given, amounts)

    def _balanced(self) -> bool:
        """No queue on the reclaimer's path ends up fuller, relative to its fair share, than a sibling that lost."""
        for queue in self._path:
            have = self.left.get(queue.name, self._held(queue))
            for sibling in self._touched:
                if sibling.parent is not queue.parent or sibling is queue:
                    continue
                given = self.given[sibling.name]
                rest = self.left[sibling.name]
                for i, asked in enumerate(self.demand):
                    if not given[i] and not asked:
                        continue
                    ratio = _ratio(have[i] + asked, queue.entitled[i])
                    if (
                        ratio > 1
                        and sibling.entitled[i] > 0
                        and ratio * self.multiplier >= _ratio(rest[i], sibling.entitled[i])
                    ):
                        return False
        return True


def _within(allocated: Sequence[int], demand: Amounts, bounds: Amounts) -> bool:
    return not any(
        bound != UNLIMITED and held + asked > bound
        for held, asked, bound in zip(allocated, demand, bounds, strict=True)
    )


def _exceeds(allocated: Sequence[int], bounds: Sequence[int]) -> bool:
    for held, bound in zip(allocated, bounds, strict=True):  # noqa: SIM110  # asked for every victim
        if held > bound and bound != UNLIMITED:
            return True
    return False


def _concerned(amounts: Amounts, left: Sequence[int], bounds: Sequence[int]) -> bool:
    """Whether a victim brings a queue nearer to its bounds.

    Of too many GPUs of a product, only GPUs of that product do; of too much CPU, memory or GPUs, any victim (KAI).
    """
    if _exceeds(left[:FIRST_PRODUCT], bounds[:FIRST_PRODUCT]):
        return True
    given = list(zip(amounts, left, bounds, strict=True))[FIRST_PRODUCT:]
    return any(amount and bound != UNLIMITED and held > bound for amount, held, bound in given)


def _ratio(allocated: int, fair: int) -> float:
    if fair == 0:
        return float("inf") if allocated > 0 else 0.0
    return allocated / fair
