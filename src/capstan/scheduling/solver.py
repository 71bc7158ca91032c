"""Proving that a gang starts once certain victims are gone, with as few of them as possible.

The solver takes victims in order until a counting bound says that the unit could fit, then simulates on the journal:
evict, place, and only if everything is placed keep going. The number of victims gallops up and is then halved down to
the smallest that works. Victims that turn out not to be needed get their places back, the most important first; the
others are placed elsewhere if there is room.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence

from capstan.api.resource import AllocationResult
from capstan.scheduling import verdicts
from capstan.scheduling.amounts import GPU, GPU_COLUMN, Amounts
from capstan.scheduling.filters import dynamic_reason, needs_company
from capstan.scheduling.gangs import next_unit, smallest_start
from capstan.scheduling.model import Gang, Node, Status, Task, Zones
from capstan.scheduling.order import JobOrder, demand_of
from capstan.scheduling.queues import exceeded, levelled, queue_key
from capstan.scheduling.session import Refusal, Session
from capstan.scheduling.shape import Shape
from capstan.scheduling.topology import slots
from capstan.scheduling.victims import Victim
from capstan.scheduling.world import World


class Solver:
    """Finds the smallest prefix of victims that lets the unit start, and carries it out in the World.

    `replace`: try to give victims another place; `every`: all of them must get one; `judge`: the last word on those
    that do not.
    """

    def __init__(
        self,
        session: Session,
        gang: Gang,
        unit: Sequence[Task],
        action: str,
        *,
        replace: bool,
        every: bool = False,
        judge: Callable[[list[Victim]], bool] | None = None,
    ) -> None:
        self.session, self.gang, self.unit, self.action = session, gang, unit, action
        self.replace, self.every, self.judge = replace, every, judge
        self.taken: list[Victim] = []
        self.room = Bound(session, unit)
        self.spending = session.spending()
        self._work = session.measures.of(action)
        self._lost: list[Victim] = []
        self._kept: set[int] = set()
        """Victims (by id) of the simulation that have their place again, because they come before the winner."""
        self._was: dict[str, tuple[Status, Node | None, tuple[str, ...], Zones, Amounts]] = {}
        self._had: dict[str, list[AllocationResult | None]] = {}
        """What victims held by claims, where all of them are placed anew."""

    def solve(self, victims: Iterable[Victim]) -> bool:
        """Try; on success the World holds the outcome, on failure it is as before."""
        stream = iter(victims)
        taken = self.taken
        failed_at = 0
        step = 1
        open_ = True
        while open_:
            wanted = len(taken) + step if self.room.enough() and taken else len(taken) + 1
            while len(taken) < wanted or not self.room.enough():
                victim = next(stream, None)
                if victim is None:
                    open_ = False
                    break
                taken.append(victim)
                self.room.add(victim)
            if len(taken) == failed_at or not taken or not self.room.enough():
                self._work.filtered += 1
                return False
            mark = self.session.world.mark()
            works = self._try(len(taken))
            if works and max(failed_at, self.room.too_few) == len(taken) - 1:
                self._finish(len(taken))
                return True
            self.session.world.rollback(mark)
            if works:
                smallest = self._smallest(max(failed_at, self.room.too_few), len(taken))
                self._simulate(smallest)
                self._finish(smallest)
                return True
            step = 1 if failed_at == 0 else step * 2
            failed_at = len(taken)
        return False

    def fits_as_it_is(self) -> bool:
        """Try without victims: earlier evictions of this cycle may have left more room than their winners took."""
        if not self.room.enough():
            return False
        mark = self.session.world.mark()
        if self._simulate(0):
            self._finish(0)
            return True
        self.session.world.rollback(mark)
        return False

    def _smallest(self, failed: int, worked: int) -> int:
        """The smallest number of victims that works, between one that fails and one that works."""
        while worked - failed > 1:
            middle = (failed + worked) // 2
            if self._probe(middle):
                worked = middle
            else:
                failed = middle
        return worked

    def _probe(self, count: int) -> bool:
        world = self.session.world
        mark = world.mark()
        works = self._try(count)
        world.rollback(mark)
        return works

    def _try(self, count: int) -> bool:
        works = self._simulate(count)
        self._work.simulated += 1
        self._work.rejected += not works
        return works

    def _simulate(self, count: int) -> bool:
        """Evict the first `count` victims and place the unit; with conditions on the victims, those too."""
        mark = self.session.world.mark()
        if self._attempt(count, aside=False):
            return True
        if self.judge is None or not self._kept:
            return False
        # Where all that counts is who loses its place, those who come before the winner may change theirs.
        self.session.world.rollback(mark)
        return self._attempt(count, aside=True)

    def _attempt(self, count: int, *, aside: bool) -> bool:
        session = self.session
        self._was.clear()
        for victim in self.taken[:count]:
            for task in victim.tasks:
                self._was[task.uid] = (task.status, task.node, task.devices, task.zones, task.charge)
                if self.every:
                    self._had[task.uid] = self.session.world.allocations(task)
                self._evict(task)
        if self.every:
            return self._rearrange(count)
        self._keep_higher(count, aside=aside)
        if exceeded(self.gang, session.world.least_charge(self.unit)) is not None:
            return False
        session.placer.within_share = self.action == "reclaim"
        placed = session.place(self.gang, self.unit, later=True)
        session.placer.within_share = False
        if not placed:
            return False
        if self.judge is None:
            return True
        self._lost = self._spare(count)
        return self.judge(self._lost)

    def _evict(self, task: Task) -> None:
        """End a task; one that was only placed in this cycle simply goes back to waiting."""
        world = self.session.world
        if task.status == Status.ALLOCATED:
            world.move(task, Status.PENDING, None, charge=world.charge(task, None))
        elif self.every and task.node is not None:
            place = (task.node, task.devices)
            world.move(task, Status.PENDING, None, leaving=place, charge=world.charge(task, None))
        else:
            world.move(task, Status.RELEASING, task.node, task.devices, zones=task.zones)

    def _keep_higher(self, count: int, *, aside: bool) -> None:
        """Whoever would be scheduled before the winner, were both waiting, is not evicted for it.

        It keeps its place, or goes `aside` to the best there is for it.
        """
        self._kept.clear()
        ours = self.gang.queue
        total = self.session.world.total
        assert ours is not None
        by_queue: dict[str, list[Victim]] = {}
        for victim in self.taken[:count]:
            if victim.gang.queue is not ours:
                by_queue.setdefault(victim.gang.queue_name, []).append(victim)
        demand, nothing = demand_of(self.unit), self.session.world.nothing
        for victims in by_queue.values():
            theirs = victims[0].gang.queue
            assert theirs is not None
            our_side, their_side = levelled(ours, theirs)
            if our_side is their_side:
                continue
            while victims:
                best = victims.pop()  # the most important was taken last
                if exceeded(best.gang, best.amounts) is not None or _incomplete(best):
                    continue
                theirs_first = queue_key(their_side, best.amounts, nothing, total)
                if theirs_first > queue_key(our_side, demand, nothing, total):
                    break
                if not aside:
                    for task in best.tasks:
                        self._put_back(task)
                elif not self._move(best):
                    continue
                self._kept.add(id(best))

    def _rearrange(self, count: int) -> bool:
        """Place the winner and all victims in queue order, as if none had a place yet; all have to get one."""
        session, world = self.session, self.session.world
        victims = [task for victim in self.taken[:count] for task in victim.tasks]
        gangs = {gang.key: gang for gang in (self.gang, *(victim.gang for victim in self.taken[:count]))}
        order = JobOrder(world, gangs.values())
        while (gang := order.pop()) is not None:
            unit = list(self.unit) if gang is self.gang else next_unit(gang)
            if not unit or session.over(gang, unit) is not None or not session.place(gang, unit, later=True):
                return False
            for task in unit:
                # Whoever gets other devices of its node by its claims has to end for that.
                if self._stays(task) and world.allocations(task) == self._had[task.uid]:
                    self._put_back(task)
            unplaced = gang is not self.gang and any(t.gang is gang and t.node is None for t in victims)
            order.done(gang if unplaced else None)
        return all(task.node is not None for task in victims)

    def _stays(self, task: Task) -> bool:
        """Whether a victim has been placed where it is: node, shared devices and NUMA zones."""
        if task.leaving is None:
            return False
        return task.leaving == (task.node, task.devices) and task.zones == self._was[task.uid][3]

    def _put_back(self, task: Task) -> None:
        status, node, devices, zones, charge = self._was[task.uid]
        self.session.world.move(task, status, node, devices, zones=zones, charge=charge)

    def _finish(self, count: int) -> None:
        """Record what the simulation of `count` victims has left in the World."""
        session = self.session
        if not self.every and self.judge is None:
            self._lost = self._spare(count)
        evicted = displaced = False
        reason = self._reason()
        winner = self.gang.name.removeprefix("pod/")
        for victim in self.taken[:count]:
            for task in victim.tasks:
                if task.status == Status.RELEASING or task.leaving is not None:
                    session.evicted[task.uid] = (task, self.action, f"{self.gang.namespace}/{winner}", reason)
                    evicted = True
                elif task.status == Status.PENDING:
                    session.refuse(victim.gang, Refusal("PodSchedulingErrors", f"gave way: {reason}"))
                    displaced = True
        # Only where everyone who gives way was about to start in this very cycle, nothing has to end first.
        if evicted or not displaced or not session.start_now(self.unit):
            session.won.append(self.gang)

    def _spare(self, count: int) -> list[Victim]:
        """Give victims their place back where it is still free, others a new one; returns those without any."""
        # The most important come first, which is the reverse of the order in which they were chosen.
        homeless, broken = [], _Broken()
        for victim in reversed(self.taken[:count]):
            if id(victim) in self._kept:
                continue
            if broken.concerns(victim) or not self._restore(victim):
                homeless.append(victim)
                broken.add(victim)
        if not self.replace:
            return homeless
        hopeless: set[int] = set()
        lost, broken = [], _Broken()
        for victim in homeless:
            shapes = {task.shape.number for task in victim.tasks}
            if broken.concerns(victim) or shapes & hopeless or not self._move(victim):
                lost.append(victim)
                broken.add(victim)
                if len(victim.tasks) == 1 and not victim.tasks[0].claims:
                    hopeless |= shapes
        return lost

    def _restore(self, victim: Victim) -> bool:
        world = self.session.world
        if any(_crowded(task, self._was[task.uid][1]) for task in victim.tasks):
            return False
        if exceeded(victim.gang, victim.amounts) is not None:
            return False
        mark = world.mark()
        bars = self.session.bars(victim.gang, victim.tasks)
        for task in victim.tasks:
            _, node, devices, zones, _ = self._was[task.uid]
            barred = node is not None and bars is not None and bars(task, node)
            if node is None or barred or not _still_free(world, task, node, devices, zones):
                world.rollback(mark)
                return False
            self._put_back(task)
        return True

    def _move(self, victim: Victim) -> bool:
        session = self.session
        needs = [session.world.charge(task, None) for task in victim.tasks]
        if exceeded(victim.gang, tuple(map(sum, zip(*needs, strict=True)))) is not None:
            return False
        by_order = sorted(victim.tasks, key=lambda task: task.order)
        if not session.place(victim.gang, by_order, later=True):
            return False
        for task in by_order:
            if self._stays(task):
                self._put_back(task)
        if all(self._was[task.uid][0] == Status.ALLOCATED for task in by_order):
            session.start_now(by_order)  # nothing of it runs yet, so nothing has to end first
        return True

    def _reason(self) -> str:
        gang = self.gang
        assert gang.queue is not None
        demand = demand_of(self.unit)
        spoken = verdicts.leading(demand, gang.queue)
        needs = verdicts.amount(demand[spoken[1]], spoken[0]) if spoken else "room"
        winner = f"{gang.namespace}/{gang.name.removeprefix('pod/')}"
        if self.action == "reclaim":
            return f"queue {gang.queue.name} takes back {needs} for {winner}, within its fair share"
        if self.action == "preempt":
            return f"{winner} has priority {gang.priority} in the same queue and needs {needs}"
        return f"moved to make {needs} free in one place for {winner}"

    def lacking(self) -> int:
        """Millionths of GPUs that the unit lacks even if what is free and what the victims hold were in one place."""
        return demand_of(self.unit)[2] - self.session.free_gpus() - sum(victim.amounts[2] for victim in self.taken)

    def refusal(self, where: str) -> Refusal:
        """Why there was no solution, with the bound that decided."""
        demand, queue = demand_of(self.unit), self.gang.queue
        spoken = verdicts.leading(demand, queue) if queue is not None else None
        kept = self.spending.text()
        if spoken is None or (not self.taken and self.action == "preempt"):
            return also(self.session, self.gang, kept)
        resource, i = spoken
        freed = sum(victim.amounts[i] for victim in self.taken)
        wanted = verdicts.amount(demand[i], resource)
        text = f"needs {wanted}, {verdicts.bare(freed, resource)} {where}"
        return also(self.session, self.gang, f"{text}; {kept}" if kept else text)


def also(session: Session, gang: Gang, text: str) -> Refusal:
    """What was said of the gang before, and one more reason; a queue bound that was broken says enough by itself."""
    before = session.refusals.get(gang.key) or Refusal("PodSchedulingErrors", "")
    if before.reason != "PodSchedulingErrors":
        return before
    parts = [part for part in (before.message, text) if part]
    return Refusal(before.reason, "; ".join(parts), before.details, before.task)


def _incomplete(victim: Victim) -> bool:
    """Whether its gang ran with less than its minimum, so that it could not start as what it was."""
    return victim.part == "core" and len(victim.tasks) < smallest_start(victim.gang.root)


class _Broken:
    """Gangs and subgroups that lose what they cannot do without: their surplus is of no use any more."""

    def __init__(self) -> None:
        self._gangs: set[tuple[str, str]] = set()
        self._leaves: set[int] = set()

    def add(self, victim: Victim) -> None:
        if victim.part == "core":
            self._gangs.add(victim.gang.key)
        elif victim.part == "subgroup":
            self._leaves |= {id(task.group) for task in victim.tasks}

    def concerns(self, victim: Victim) -> bool:
        if victim.gang.key in self._gangs:
            return True
        return bool(self._leaves) and any(id(task.group) in self._leaves for task in victim.tasks)


def _crowded(task: Task, node: Node | None) -> bool:
    """A quick no: whether the columns of a victim's old place have no room for it."""
    if node is None:
        return True
    later = node.later
    for column, amount in task.shape.requests:  # noqa: SIM110  # asked for thousands of victims
        if later[column] < amount:
            return True
    return False


def _still_free(world: World, task: Task, node: Node, devices: tuple[str, ...], zones: Zones) -> bool:
    """Whether a victim's old place was not given away."""
    if world.is_drained(node) and (task.claims or task.implied is not None):
        return False
    for column, amount in task.shape.requests:
        if node.later[column] < amount:
            return False
    if devices and task.shape.share is not None:
        portion = task.shape.share.on(node.gpu_memory)
        fresh = 0
        for name in devices:
            device = node.devices.get(name)
            if device is not None and device.used_later + portion > GPU:
                return False
            fresh += device is None or not device.users_later
        if fresh > node.later[GPU_COLUMN]:
            return False
    by_name = {zone.name: zone for zone in node.zones}
    for name, resource, amount in zones:
        zone = by_name.get(name)
        if zone is not None and zone.capacity.get(resource, 0) - zone.used.get(resource, 0) < amount:
            return False
    if needs_company(world, task):
        return not dynamic_reason(world, task, node, later=True)
    return True


class Bound:
    """A quick no: by columns alone, how many of the unit's pods could be placed once the victims so far are gone."""

    def __init__(self, session: Session, unit: Sequence[Task]) -> None:
        self.wanted: dict[int, int] = {}
        self.shapes: dict[int, Shape] = {}
        for task in unit:
            self.shapes[task.shape.number] = task.shape
            self.wanted[task.shape.number] = self.wanted.get(task.shape.number, 0) + 1
        self.found = {number: session.slot_count(shape) for number, shape in self.shapes.items()}
        self.too_few = 0
        """So many victims are certainly not enough."""
        self._count = 0
        self._freed: dict[str, dict[int, int]] = {}
        self._slots: dict[tuple[int, str], int] = {}
        self._shares = any(shape.share is not None for shape in self.shapes.values())

    def enough(self) -> bool:
        """Shares and claims are not counted by columns; for them only the simulation decides."""
        if self._shares:
            return True
        found = self.found
        for number, count in self.wanted.items():  # noqa: SIM110  # asked for thousands of victims
            if found[number] < count:
                return False
        return True

    def add(self, victim: Victim) -> None:
        if not self.enough():
            self.too_few = self._count
        self._count += 1
        for task in victim.tasks:
            self.free(task)

    def free(self, task: Task) -> None:
        """Count what a task holds as free."""
        if task.node is None:
            return
        shared = ((GPU_COLUMN, len(task.devices)),) if task.devices else ()
        self.give(task.node, (*task.shape.requests, *shared))

    def give(self, node: Node, amounts: Iterable[tuple[int, int]]) -> None:
        """Count (column, amount) of a node as free, or (negative) as taken."""
        freed = self._freed.get(node.name)
        if freed is None:
            freed = self._freed[node.name] = {}
        for column, amount in amounts:
            freed[column] = freed.get(column, 0) + amount
        for number, shape in self.shapes.items():
            before = self._slots.get((number, node.name))
            if before is None:
                before = slots(shape, node)
            after = self._slots[(number, node.name)] = slots(shape, node, freed)
            self.found[number] += after - before

    def takes(self, node: Node) -> bool:
        """Whether a pod of the unit could be on a node of which something was freed."""
        return any(self._slots.get((number, node.name), 0) > 0 for number in self.shapes)
