"""What a cycle does, action by action."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from bench.naive.gangs import demand, tasks_to_place
from bench.naive.order import Order
from bench.naive.placing import Simulation
from bench.naive.search import Search
from capstan.scheduling.amounts import GPU, GPU_COLUMN, UNLIMITED
from capstan.scheduling.model import Gang, Group, Status, Task
from capstan.scheduling.queues import levelled
from capstan.scheduling.session import Refusal, Session
from capstan.scheduling.victims import preempt_protection, reclaim_min_runtime, runtime
from capstan.scheduling.world import World


def allocate(session: Session) -> None:
    world, simulation = session.world, Simulation(session)
    world.standing.clear()
    order = Order(session, list(session.candidates()), victims=False)
    nodes = list(world.nodes.values())
    while (gang := order.pop()) is not None:
        unit = tasks_to_place(gang.root)
        if unit and simulation.place_job(gang, unit, nodes, later=False):
            _pipeline_together(world, gang, unit)
            session.refusals.pop(gang.key, None)
            if gang.pending:
                order.push(gang)
        else:
            session.refuse(gang, Refusal("PodSchedulingErrors", "no room"))


def _pipeline_together(world: World, gang: Gang, unit: list[Task]) -> None:
    """Where a subgroup has promised pods and too few others, nothing of the unit starts before they can."""
    for leaf in gang.root.leaves():
        promised = sum(task.status == Status.PIPELINED for _, task in leaf.active)
        if promised and len(leaf.active) - promised < leaf.minimum:
            for task in unit:
                if task.status == Status.ALLOCATED:
                    world.move(task, Status.PIPELINED, task.node, task.devices, zones=task.zones)


def _each(session: Session, attempt: Callable[[Session, Gang], bool], *, only_preemptible: bool = False) -> None:
    gangs = [
        gang
        for gang in session.candidates()
        if session.now - gang.created >= gang.preemption_delay and (gang.preemptible or not only_preemptible)
    ]
    order = Order(session, gangs, victims=False)
    while (gang := order.pop()) is not None:
        attempt(session, gang)


def _within(allocated: Sequence[int], more: Sequence[int], bound: Sequence[int]) -> bool:
    return all(bound[i] == UNLIMITED or allocated[i] + more[i] <= bound[i] for i in range(3))


def reclaim(session: Session) -> None:
    _each(session, _reclaim)


def _reclaim(session: Session, gang: Gang) -> bool:
    queue = gang.queue
    assert queue is not None
    if queue is session.world.free_queue:
        return False
    asked = demand(tasks_to_place(gang.root))
    if not _within(queue.allocated, asked, queue.entitled):
        return False
    if not gang.preemptible and not _within(queue.fixed, asked, queue.quota):
        return False
    start = {q.name: list(q.allocated) for q in session.world.queues.values()}
    fixed = {q.name: list(q.fixed) for q in session.world.queues.values()}

    def candidate(victim: Gang) -> bool:
        other = victim.queue
        if other is queue or other is None or not victim.preemptible:
            return False
        protected = runtime(victim, session.now) < reclaim_min_runtime(other, queue, session.policy)
        if protected and not _elastic(victim):
            return False
        ours, theirs = levelled(queue, other)
        if not _within(ours.allocated, asked, ours.quota):
            return not _within(theirs.allocated, (0, 0, 0), theirs.share)
        under = False
        for i in range(3):
            if asked[i] <= 0 or theirs.quota[i] == UNLIMITED:
                continue
            if theirs.allocated[i] > theirs.quota[i]:
                return True
            under = under or theirs.allocated[i] < theirs.quota[i]
        return not under

    def judge(lost: list[tuple[Gang, list[Task]]]) -> bool:
        remaining: dict[str, list[int]] = {}
        involved: dict[str, set[int]] = {}
        asked_for = {i for i in range(3) if asked[i] > 0}
        for victim, tasks in lost:
            other = victim.queue
            assert other is not None
            if runtime(victim, session.now) < reclaim_min_runtime(other, queue, session.policy) and (
                sum(len(leaf.active) for leaf in victim.root.leaves()) < _smallest(victim.root)
            ):
                return False
            ours, theirs = levelled(queue, other)
            rest = remaining.setdefault(theirs.name, list(start[theirs.name]))
            over_share = not _within(rest, (0, 0, 0), theirs.share)
            over_quota = _within(start[ours.name], asked, ours.quota) and not _within(rest, (0, 0, 0), theirs.quota)
            if not over_share and not over_quota:
                return False
            amounts = demand(tasks)
            for level in other.path():
                left = remaining.setdefault(level.name, list(start[level.name]))
                for i in range(3):
                    left[i] -= amounts[i]
                involved.setdefault(level.name, set()).update(i for i in range(3) if amounts[i])
        for level in queue.path():
            have = remaining.get(level.name, start[level.name])
            for name in list(remaining):
                sibling = session.world.queues[name]
                if sibling.parent is not level.parent or sibling is level:
                    continue
                for i in involved[name] | asked_for:
                    ours_, theirs_ = level.entitled[i], sibling.entitled[i]
                    used = have[i] + asked[i]
                    mine = used / ours_ if ours_ else (float("inf") if used > 0 else 0.0)
                    other_ = remaining[name][i] / theirs_ if theirs_ else 0.0
                    if mine > 1 and theirs_ > 0 and mine * session.policy.saturation_multiplier >= other_:
                        return False
            if not gang.preemptible and not _within(fixed[level.name], asked, level.quota):
                return False
        return True

    return Search(session, gang, "reclaim", candidate, judge).solve()


def _elastic(gang: Gang) -> bool:
    """Whether more pods exist than are needed, running or not."""
    return any(sum(task.group is leaf for task in gang.tasks.values()) > leaf.minimum for leaf in gang.root.leaves())


def _smallest(group: Group) -> int:
    if not group.children:
        return group.minimum
    return sum(sorted(_smallest(child) for child in group.children)[: group.minimum])


def preempt(session: Session) -> None:
    _each(session, _preempt)


def _preempt(session: Session, gang: Gang) -> bool:
    queue = gang.queue
    assert queue is not None
    asked = demand(tasks_to_place(gang.root))
    if not gang.preemptible and any(not _within(level.fixed, asked, level.quota) for level in queue.path()):
        return False

    def candidate(victim: Gang) -> bool:
        if victim.queue is not queue or not victim.preemptible or victim.priority >= gang.priority:
            return False
        return _elastic(victim) or not preempt_protection(victim, session.policy, session.now)

    def judge(lost: list[tuple[Gang, list[Task]]]) -> bool:
        return not any(
            preempt_protection(victim, session.policy, session.now)
            and sum(len(leaf.active) for leaf in victim.root.leaves()) < _smallest(victim.root)
            for victim, _ in lost
        )

    return Search(session, gang, "preempt", candidate, judge).solve()


def consolidate(session: Session) -> None:
    if session.policy.max_consolidation_victims == 0:
        return
    if "spread" in (session.policy.gpu_placement, session.policy.cpu_placement):
        return
    _each(session, _consolidate, only_preemptible=True)


def _most(session: Session) -> int | None:
    allowed = session.policy.max_consolidation_victims
    return None if allowed < 0 else allowed + 1


def _consolidate(session: Session, gang: Gang) -> bool:
    free = 0
    for node in session.world.nodes.values():
        free += node.later[GPU_COLUMN] * GPU
        free += sum(GPU - d.used_later for d in node.devices.values() if d.users_later)
    unit = tasks_to_place(gang.root)
    if demand(unit)[2] > free:
        return False
    search = Search(
        session, gang, "consolidate", lambda victim: victim.preemptible, lambda lost: not lost, most=_most(session)
    )
    return search.solve()


STEPS: dict[str, Callable[[Session], None]] = {
    "allocate": allocate,
    "consolidate": consolidate,
    "reclaim": reclaim,
    "preempt": preempt,
}
