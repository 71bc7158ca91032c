"""One cycle in progress: what actions share, from placing a unit of a gang to recording why it could not be placed."""

from __future__ import annotations

from collections import Counter
from collections.abc import Hashable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace

import msgspec

from capstan.scheduling import devices, runtimes, verdicts
from capstan.scheduling.budgets import Spending
from capstan.scheduling.filters import dynamic_reason, likeness, needs_company, node_reason
from capstan.scheduling.measures import Lap, Measures, untimed
from capstan.scheduling.model import Gang, Group, Node, Queue, Status, Task
from capstan.scheduling.order import demand_of
from capstan.scheduling.placement import Placer
from capstan.scheduling.plan import Verdict
from capstan.scheduling.policy import Policy
from capstan.scheduling.queues import Exceeded, exceeded
from capstan.scheduling.reservations import Bars, Book, Reservation
from capstan.scheduling.runtimes import Ends
from capstan.scheduling.shape import Shape
from capstan.scheduling.topology import ANYWHERE, Scope, contradiction, scopes
from capstan.scheduling.world import World

_NODES_TOLD = 50
"""In a verdict that names nodes one by one."""


@dataclass(slots=True)
class Refusal:
    """Why a unit was not placed: the reason, and the task that found no node after `placed` others had."""

    reason: str
    message: str
    details: dict[str, object] = field(default_factory=dict)
    task: Task | None = None


_REASONS = {"limit": "OverLimit", "quota": "NonPreemptibleOverQuota", "lending": "OverLendingLimit"}


class Session:
    def __init__(self, world: World, policy: Policy, now: float, lap: Lap = untimed) -> None:
        self.world, self.policy, self.now = world, policy, now
        self.measures = Measures()
        self._details: dict[object, dict[str, object]] = {}
        """By queue, gang and amounts: a long backlog is refused for the same numbers."""
        self._lap = lap
        self.placer = Placer.of(world, policy)
        self.placer.said.clear()
        self.refusals: dict[tuple[str, str], Refusal] = {}
        self.evicted: dict[str, tuple[Task, str, str, str]] = {}
        """uid -> task, action, for which gang, why"""
        self.stale: dict[Gang, float | None] = {}
        """Gangs that became stale in this cycle, with the time, or are no longer (None)."""
        self.requeued: dict[Gang, float] = {}
        """Gangs that ran too long, with the time from which they may start again."""
        known, assumed = _ends(world, policy, now), _ends(world, policy, now, policy.assumed_runtime)
        self.book = Book(known, assumed, world.reservations)
        self.ends_read = 0
        """How many ends backfill has gone through."""
        self.held: set[tuple[str, str]] = set()
        """Gangs that found room which they may not have."""
        self.hopeless: set[tuple[str, str]] = set()
        """Gangs that no node could take even if it were empty: nobody is evicted for them."""
        self._bars: Bars | None = None
        self.won: list[Gang] = []
        """Gangs that wait for room which was, or is being, cleared for them."""
        self._stuck: Task | None = None
        self._placed = 0

    # -- which gangs ---------------------------------------------------------------------------------------------------

    def candidates(self) -> Iterator[Gang]:
        """Gangs with something to place, in no particular order; the others get their refusal."""
        world = self.world
        for queue in (*world.queues.values(), world.free_queue, world.nowhere):
            for _, gang in queue.pending:
                refusal = self._unfit(gang, queue)
                if refusal is None:
                    yield gang
                else:
                    self.refusals[gang.key] = refusal

    def _unfit(self, gang: Gang, queue: Queue) -> Refusal | None:
        if gang.error:
            return Refusal("InvalidPodGroup", gang.error)
        if queue is self.world.nowhere:
            what = f"queue {gang.queue_name} does not exist" if gang.queue_name else "no queue is given"
            return Refusal("QueueDoesNotExist", what)
        if queue.error:
            return Refusal("QueueDoesNotExist", f"queue {queue.name} cannot be used: {queue.error}")
        if queue.children:
            return Refusal("QueueDoesNotExist", f"queue {queue.name} has child queues; name one of its leaves")
        for group in _all_groups(gang.root):
            wrong = contradiction(self.world, group.levels) if group.levels is not None else ""
            if wrong:
                return Refusal("InvalidTopology", wrong)
        for leaf in gang.root.leaves():
            for _, task in leaf.pending:
                wrong = task.error or (devices.missing(self.world, task) if task.claims else "")
                if wrong:
                    return Refusal("InvalidRequest", f"pod {task.name}: {wrong}")
        if not gang.root.ready:
            return Refusal("NotReady", verdicts.not_ready(gang))
        early = runtimes.requeued(gang, self.now)
        return Refusal("RequeueDelayNotElapsed", early) if early else None

    # -- placing -------------------------------------------------------------------------------------------------------

    def over(self, gang: Gang, unit: Sequence[Task]) -> Refusal | None:
        """The queue bound that the unit would break, as a refusal."""
        demand = self.world.least_charge(unit)
        bound = exceeded(gang, demand)
        if bound is None:
            return None
        queue = bound.queue
        alike = (queue.name, gang.bound_by_quota, demand, tuple(queue.allocated), tuple(queue.requested))
        details = self._details.get(alike)
        if details is None:
            details = self._details[alike] = verdicts.bound_details(bound, gang, demand)
        return Refusal(_REASONS[bound.kind], verdicts.over_bound(bound), details)

    def place(self, gang: Gang, unit: Sequence[Task], *, later: bool) -> bool:
        """Place all tasks of a unit or none, without delaying a reservation of others.

        Where a promise is among them, the start waits as a whole.
        """
        self._bars = None
        if not self.book.made:
            return self._place(gang, unit, later=later)
        if any(task.leaving is not None or task.status == Status.RELEASING for task in unit):
            self.book.known.restart(gang, self.now)
        self._bars = self.bars(gang, unit)
        return self._place_between(gang, unit, self._bars, later=later)

    def place_at(self, gang: Gang, unit: Sequence[Task], start: float) -> bool:
        """Place a unit that starts later than now, on what will be free then by the World as it stands."""
        known = self.book.known
        before = known.of_gang(gang)
        known.restart(gang, start)
        bars = self.book.bars(gang, demand_of(unit), start, self.world.gangs)
        placed = self._place_between(gang, unit, bars, later=True)
        known.set(gang, before)
        return placed

    def bars(self, gang: Gang, unit: Sequence[Task]) -> Bars | None:
        """What reservations of others keep from the unit; None in the usual case: nothing."""
        return self.book.bars(gang, demand_of(unit), self.now, self.world.gangs) if self.book.made else None

    def _place_between(self, gang: Gang, unit: Sequence[Task], bars: Bars | None, *, later: bool) -> bool:
        self.placer.barred = bars
        try:
            return self._place(gang, unit, later=later)
        finally:
            self.placer.barred = None

    def _place(self, gang: Gang, unit: Sequence[Task], *, later: bool) -> bool:
        self._stuck, self._placed = None, 0
        if len(unit) == 1 and gang.root.levels is None and not gang.root.children:
            self._stuck = unit[0]
            return self.placer.place(unit[0], later=later) is not None
        if self._too_few_devices(gang, unit):
            return False
        mark = self.world.mark()
        by_leaf: dict[int, list[Task]] = {}
        for task in unit:
            by_leaf.setdefault(id(task.group), []).append(task)
        if not self._place_group(gang.root, by_leaf, ANYWHERE, later):
            self.world.rollback(mark)
            if not self._place_modestly(gang, unit, by_leaf, later):
                return False
        if not later:
            self._wait_together(unit)
        return True

    def _too_few_devices(self, gang: Gang, unit: Sequence[Task]) -> bool:
        """The quick no for gangs whose pods claim alike: fewer devices than they need, wherever those are."""
        if not any(task.claims for task in unit) or any(t.held for t in gang.tasks.values()):
            return False
        alike: Counter[Hashable] = Counter()
        for task in unit:
            bound = self.placer.claim_slots(task)
            if bound is None:
                continue
            name, most = bound
            alike[name] += 1
            if alike[name] > most:
                self._stuck, self._placed = task, most
                self.placer.said[task.uid] = f"there are devices for at most {most} pods with such claims"
                return True
        return False

    def _place_modestly(self, gang: Gang, unit: Sequence[Task], by_leaf: dict[int, list[Task]], later: bool) -> bool:
        """Let all pods give up the alternatives they prefer, one rank after another, so that the gang fits."""
        if not any(task.claims for task in unit):
            return False
        mark = self.world.mark()
        stuck, placed = self._stuck, self._placed
        try:
            for skip in range(1, devices.alternatives(self.world, unit)):
                self.placer.skip = skip
                if self._place_group(gang.root, by_leaf, ANYWHERE, later):
                    return True
                self.world.rollback(mark)
        finally:
            self.placer.skip = 0
        self._stuck, self._placed = stuck, placed
        return False

    def _place_group(self, group: Group, tasks: dict[int, list[Task]], scope: Scope, later: bool) -> bool:
        if group.levels is None:
            return self._place_inside(group, tasks, scope, later)
        own = [task for leaf in group.leaves() for task in tasks.get(id(leaf), ())]
        active = [task for leaf in group.leaves() for _, task in leaf.active]
        if not own:
            return True
        for narrower in scopes(self.world, group.levels, own, active, scope):
            mark = self.world.mark()
            if self._place_inside(group, tasks, narrower, later):
                return True
            self.world.rollback(mark)
        self._stuck = self._stuck or own[0]
        return False

    def _place_inside(self, group: Group, tasks: dict[int, list[Task]], scope: Scope, later: bool) -> bool:
        if group.children:
            ordered = sorted(group.children, key=lambda child: (not child.children, child.rank))
            return all(self._place_group(child, tasks, scope, later) for child in ordered)
        place = self.placer.place
        for task in tasks.get(id(group), ()):
            if place(task, later=later, scope=scope) is None:
                self._stuck = task
                return False
            self._placed += 1
        return True

    def free_gpus(self) -> int:
        """Millionths of devices that are free in the whole cluster once terminating pods are gone."""
        return self.placer.free_gpus.total()

    def slot_count(self, shape: Shape) -> int:
        """How many pods of the shape the cluster takes by its columns, terminating pods taken as gone."""
        return self.placer.slots(shape).total()

    def _wait_together(self, unit: Sequence[Task]) -> None:
        """If the minimum of a subgroup depends on promised tasks, none of the unit may start yet."""
        promised = {task.group for task in unit if task.status == Status.PIPELINED}
        if all(group is None or _satisfied_now(group) for group in promised):
            return
        for task in unit:
            if task.status == Status.ALLOCATED:
                self.world.move(task, Status.PIPELINED, task.node, task.devices, zones=task.zones)

    def start_now(self, unit: Sequence[Task]) -> bool:
        """Turn the promises of a unit into starts if all it needs is free already; False when it has to wait."""
        world = self.world
        mark = world.mark()
        for task in unit:
            node = task.node
            if task.status != Status.PIPELINED or node is None or task.held or task.leaving is not None:
                world.rollback(mark)
                return False
            free = all(node.idle[column] >= amount for column, amount in task.shape.requests)
            if not free or not devices.open_now(task, node):
                world.rollback(mark)
                return False
            world.move(task, Status.ALLOCATED, node, task.devices, zones=task.zones)
        return True

    def evict(self, task: Task, action: str, winner: str, reason: str) -> None:
        """End a running task for a reason of its own: nobody has to be placed for it."""
        self.evicted[task.uid] = (task, action, winner, reason)
        self.world.move(task, Status.RELEASING, task.node, task.devices, zones=task.zones)

    def spending(self) -> Spending:
        """What disruption budgets still allow, for one search: evictions in flight and of this cycle are counted."""
        return Spending(self.world.budgets, self.world.pod, self._under_way)

    def _under_way(self) -> Iterator[Task]:
        tasks = self.world.tasks
        yield from (tasks[uid] for uid in self.world.evictions if uid in tasks)
        for task, *_ in self.evicted.values():
            if task.status == Status.RELEASING or task.leaving is not None:
                yield task

    def finish(self) -> None:
        """No pod starts whose gang still waits for the rest of its minimum; who has a place needs no reservation."""
        gangs = {task.gang: None for task, *_ in self.world.moves if task.status == Status.ALLOCATED}
        for gang in gangs:
            if gang is not None:
                self._wait_together([task for leaf in gang.root.leaves() for _, task in leaf.active])
        made = self.book.made
        for key in [key for key, room in made.items() if not self._waits(room)]:
            del made[key]

    def _waits(self, room: Reservation) -> bool:
        tasks = (self.world.tasks.get(uid) for uid in room.places)
        return all(task is not None and task.status == Status.PENDING for task in tasks)

    def searched(self, action: str, result: str) -> None:
        """Count a gang for which an action looked for victims; see `measures.Work.searches`."""
        work = self.measures.of(action)
        work.tried += 1
        work.placed += result == "solved"
        work.searches[result] = work.searches.get(result, 0) + 1
        if result != "not_attempted":
            self._lap(action, result)

    # -- explaining ----------------------------------------------------------------------------------------------------

    def refuse(self, gang: Gang, refusal: Refusal) -> None:
        self.refusals[gang.key] = refusal

    def no_room(self, gang: Gang, unit: Sequence[Task]) -> Refusal:
        """The refusal after `place` has failed: for lack of nodes, or because they are reserved."""
        if self._bars is not None and self._bars.hit is not None and self._would_fit(gang, unit):
            self.held.add(gang.key)
            return Refusal("ReservedForOthers", verdicts.would_delay(self._bars.hit))
        largest = self.placer.largest()
        for task in {task.shape.number: task for task in unit}.values():
            never = verdicts.never(self.world, task.shape, largest)
            if never:
                self.hopeless.add(gang.key)
                return Refusal("PodSchedulingErrors", verdicts.no_room(unit, self._placed, never), {}, task)
        task = self._stuck or unit[0]
        narrow = (verdicts.too_narrow(self.world, group, unit) for group in _all_groups(gang.root))
        text = next(filter(None, narrow), "") or verdicts.no_room(unit, self._placed)
        said = self.placer.said.get(task.uid)
        return Refusal("PodSchedulingErrors", f"{text}; {said}" if said else text, {}, task)

    def _would_fit(self, gang: Gang, unit: Sequence[Task]) -> bool:
        mark, stuck, placed = self.world.mark(), self._stuck, self._placed
        fits = self._place(gang, unit, later=False)
        self.world.rollback(mark)
        self._stuck, self._placed = stuck, placed
        return fits

    def verdicts(self) -> list[Verdict]:
        """A verdict for every gang that still waits, in order of namespace and name."""
        found = []
        counted: dict[Hashable, dict[str, int]] = {}
        waiting = {gang.key: gang for queue in self._queues() for _, gang in queue.pending}
        strays: dict[Gang, list[Task]] = {}
        for task in self.world.strays.values():
            if task.gang is not None:
                strays.setdefault(task.gang, []).append(task)
        for gang in (*strays, *(task.gang for task in self.world.gated.values())):
            if gang is not None:
                waiting[gang.key] = gang
        for key in sorted(waiting):
            gang = waiting[key]
            refusal = self.refusals.get(key)
            if gang in strays and (refusal is None or refusal.reason == "NotReady"):
                refusal = Refusal(*_astray(gang, strays[gang]))
            if refusal is None:
                gated = [task for task in gang.tasks.values() if task.status == Status.GATED]
                if not gated:
                    continue
                refusal = Refusal("SchedulingGated", verdicts.gated(gated))
            made = self.book.made.get(key)
            if made is not None:
                message = "; ".join(part for part in (refusal.message, verdicts.reserved(made)) if part)
                details = {**refusal.details, **verdicts.reservation_details(made)}
                refusal = replace(refusal, message=message, details=details)
            nodes: dict[str, int] = {}
            if refusal.task is not None:
                likes = likeness(refusal.task)
                if likes not in counted:
                    counted[likes] = self.node_reasons(refusal.task)
                nodes = counted[likes]
            told = verdicts.verdict(gang, refusal.reason, refusal.message, refusal.details, nodes)
            if self.policy.detailed_fit_errors and refusal.task is not None:
                told = msgspec.structs.replace(told, message=f"{told.message}; {self._node_by_node(refusal.task)}")
            found.append(told)
        return found

    def _queues(self) -> Iterable[Queue]:
        return (*self.world.queues.values(), self.world.free_queue, self.world.nowhere)

    def node_reasons(self, task: Task) -> dict[str, int]:
        """How many nodes refuse the task, by reason, most frequent first."""
        closed = self.placer.closed(task)
        if not needs_company(self.world, task) and not closed:
            return self.placer.reasons(task.shape).counts()
        nodes = self.world.nodes.values()
        return verdicts.by_frequency(Counter(self._reason(task, node, closed) for node in nodes))

    def _node_by_node(self, task: Task) -> str:
        nodes, closed = sorted(self.world.nodes.items()), self.placer.closed(task)
        told = [f"{name}: {self._reason(task, node, closed)}" for name, node in nodes[:_NODES_TOLD]]
        return "; ".join(told + [f"and {len(nodes) - _NODES_TOLD} more nodes"] * (len(nodes) > _NODES_TOLD))

    def _reason(self, task: Task, node: Node, closed: Mapping[str, Exceeded]) -> str:
        reason = node_reason(task.shape, node) or verdicts.short_of(self.world, task.shape, node)
        if not reason and node.product in closed:
            reason = verdicts.over_bound(closed[node.product])
        return reason or dynamic_reason(self.world, task, node, later=False) or verdicts.ROOM


def _astray(gang: Gang, tasks: Sequence[Task]) -> tuple[str, str]:
    return ("InvalidPodGroup", gang.error) if gang.error else ("InvalidRequest", verdicts.astray(gang, tasks))


def _ends(world: World, policy: Policy, now: float, assumed: float | None = None) -> Ends:
    history = world.history if policy.learn_runtimes else None
    return Ends(world.timed, now, history=history, quantile=policy.runtime_quantile, assumed=assumed)


def _all_groups(group: Group) -> Iterator[Group]:
    yield group
    for child in group.children:
        yield from _all_groups(child)


def _satisfied_now(leaf: Group) -> bool:
    """As `Group.satisfied`, without promised tasks."""
    return sum(task.status != Status.PIPELINED for _, task in leaf.active) >= leaf.minimum
