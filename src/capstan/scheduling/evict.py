"""The actions that make room: consolidate, reclaim, preempt, and the eviction of stale gangs.

One solver serves the first three: nothing is evicted unless the simulation has placed the winner.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence

from capstan.scheduling import verdicts
from capstan.scheduling.amounts import GPU_COLUMN
from capstan.scheduling.filters import likeness
from capstan.scheduling.gangs import next_unit
from capstan.scheduling.model import ACTIVE, HOLDS_NOW, Gang, Group, Queue, Status, Task
from capstan.scheduling.order import JobOrder, demand_of
from capstan.scheduling.policy import Policy
from capstan.scheduling.queues import exceeded, levelled
from capstan.scheduling.session import Refusal, Session
from capstan.scheduling.solver import Solver, also
from capstan.scheduling.topology import slots
from capstan.scheduling.victims import (
    Allowed,
    Fairness,
    Victim,
    VictimOrder,
    gives,
    preempt_protection,
    reclaim_min_runtime,
    runtime,
    victims_of,
)

_UNTRIED = Refusal("", "")
"""What says nothing about gangs that are alike: its own queue or kind forbids it."""
_NODE_TRIES = 64
"""Consolidation tries so many single nodes to empty before it only combines several."""


def reclaim(session: Session) -> None:
    """Take back from queues that have more than their share, for a queue that has less."""
    _each(session, "reclaim", _reclaim_for)


def preempt(session: Session) -> None:
    """Make room for a gang by ending less important ones of the same queue."""
    _each(session, "preempt", _preempt_for)


def consolidate(session: Session) -> None:
    """Move running gangs together so that a pending one fits; every victim gets a new place."""
    if session.policy.max_consolidation_victims == 0:
        return
    if "spread" in (session.policy.gpu_placement, session.policy.cpu_placement):
        return  # moving pods together is the opposite of what spreading wants
    _each(session, "consolidate", _consolidate_for)


def _each(session: Session, action: str, attempt: Callable[[Session, Gang, Sequence[Task]], Refusal | None]) -> None:
    """Pop waiting gangs in queue order, each for one unit; one that is like another that failed is not tried again."""
    order = JobOrder(session.world, list(session.candidates()), session.policy.queue_depth.get(action))
    failed: dict[object, Refusal] = {}
    while (gang := order.pop()) is not None:
        unit = next_unit(gang) if gang.key not in session.held and gang.key not in session.hopeless else []
        refusal = _too_early(session, gang) if unit else None
        if not unit or refusal is not None:
            if refusal is not None:
                session.refuse(gang, refusal)
            order.done()
            continue
        signature = _signature(gang, unit, action)
        refusal = failed.get(signature)
        if refusal is not None:
            session.searched(action, "not_attempted")
        else:
            refusal = attempt(session, gang, unit)
            session.searched(action, "generators_exhausted" if refusal else "solved")
            if refusal is None:
                session.refusals.pop(gang.key, None)
                order.done()
                continue
            if refusal is not _UNTRIED:
                failed[signature] = refusal
        if refusal.message:
            session.refuse(gang, refusal)
        order.done()


def _too_early(session: Session, gang: Gang) -> Refusal | None:
    waited = max(0.0, session.now - gang.created)
    if waited >= gang.preemption_delay:
        return None
    text = f"waits {gang.preemption_delay:g} s before others may be evicted for it, {waited:.0f} s have passed"
    return Refusal("PreemptionDelayNotElapsed", text)


def _signature(gang: Gang, unit: Sequence[Task], action: str) -> object:
    counts = Counter(map(likeness, unit))
    own = gang.key if any(task.claims for task in unit) or gang.root.levels or gang.root.children else None
    assert gang.queue is not None
    queue = None if action == "consolidate" else gang.queue.name
    return (queue, gang.bound_by_quota, gang.priority, own, frozenset(counts.items()))


# -- reclaim -------------------------------------------------------------------------------------------------------


def _reclaim_for(session: Session, gang: Gang, unit: Sequence[Task]) -> Refusal | None:
    world, policy, queue = session.world, session.policy, gang.queue
    assert queue is not None
    if queue is world.free_queue:
        return Refusal("", "")
    demand = demand_of(unit)
    fairness = Fairness(queue, demand, policy.saturation_multiplier)
    if not fairness.may_reclaim(preemptible=not gang.bound_by_quota):
        i = fairness.beyond_share()
        if i is None:
            return Refusal("", "")
        if not world.total[i]:
            return Refusal("", "")  # there is none of it at all, which has been said
        resource, held, share = queue.resources[i], queue.allocated[i], queue.entitled[i]
        needs, holds = verdicts.amount(demand[i], resource), verdicts.bare(held, resource)
        text = f"needs {needs}, which with {holds} already held is over the fair share"
        if not demand[i]:
            text = f"holds {verdicts.amount(held, resource)} already, more than the fair share"
        return also(session, gang, f"{text} {verdicts.bare(share, resource)} of {queue.name}")

    leaves = [q for q in _leaves(world.queues.values()) if q is not queue and fairness.candidate(q)]
    protected = {leaf.name: reclaim_min_runtime(leaf, queue, policy) for leaf in leaves}

    def allowed(victim: Gang) -> Allowed:
        if not victim.preemptible:
            return gives(victim)
        return "surplus" if runtime(victim, session.now) < protected[victim.queue_name] else "all"

    solver = Solver(session, gang, unit, "reclaim", replace=policy.reclaim_may_consolidate)
    order = VictimOrder(world, leaves, allowed, solver.spending.guard(fairness.admit))
    if (_anyone(leaves, allowed) and solver.fits_as_it_is()) or solver.solve(order):
        return None
    lacking = solver.lacking()
    if policy.reclaim_may_consolidate and leaves and (lacking <= 0 or lacking < _largest(queue, leaves)):
        # Victims that get another place are not taken from anybody: look again, and judge only what is really lost.
        before = {name: tuple(q.allocated) for name, q in world.queues.items()}

        def fair(lost: list[Victim]) -> bool:
            rule = Fairness(queue, demand, policy.saturation_multiplier, before)
            return all(rule.admit(victim) == "take" for victim in lost)

        again = Solver(session, gang, unit, "reclaim", replace=True, judge=fair)
        everyone = VictimOrder(world, leaves, allowed, again.spending.guard(lambda victim: "take"))
        if again.solve(everyone):
            return None
    return solver.refusal(f"reclaimable for queue {queue.name}")


def _largest(reclaimer: Queue, leaves: Iterable[Queue]) -> int:
    """By how much less than this the best choice of victims may free more GPUs than the victims in order do.

    A queue may lose units as long as it is above its bound, so that the last one may be its largest.
    """
    largest: dict[str, int] = {}
    for leaf in leaves:
        side = levelled(reclaimer, leaf)[1].name
        most = largest.get(side, 0)
        for _, gang in leaf.active:
            if not gang.preemptible:
                continue
            alone = gang.active == 1 and gang.root.active  # most gangs are of one pod
            held = alone[0][1].charge[2] if alone else _gpus_held(gang)
            if held > most:
                most = held
        largest[side] = most
    return sum(largest.values())


def _gpus_held(gang: Gang) -> int:
    return sum(task.charge[2] for leaf in gang.root.leaves() for _, task in leaf.active)


def _anyone(leaves: Iterable[Queue], allowed: Callable[[Gang], Allowed]) -> bool:
    """Whether there is a gang to take from, be it one that was itself placed in this cycle."""
    return any(
        answer == "all" or (answer == "surplus" and gang.key in leaf.elastic)
        for leaf in leaves
        for _, gang in leaf.active
        for answer in (allowed(gang),)
    )


def _leaves(queues: Iterable[Queue]) -> Iterator[Queue]:
    return (queue for queue in queues if queue.active and not queue.children and not queue.error)


# -- preempt -------------------------------------------------------------------------------------------------------


def _preempt_for(session: Session, gang: Gang, unit: Sequence[Task]) -> Refusal | None:
    policy, queue = session.policy, gang.queue
    assert queue is not None
    bound = exceeded(gang, session.world.least_charge(unit))
    if bound is not None and bound.kind == "quota":
        return session.over(gang, unit)  # victims are preemptible: ending them does not free quota of this kind

    def allowed(victim: Gang) -> Allowed:
        if not victim.preemptible or victim.priority >= gang.priority:
            return gives(victim) if victim.priority < gang.priority else "none"
        return "surplus" if preempt_protection(victim, policy, session.now) else "all"

    solver = Solver(session, gang, unit, "preempt", replace=policy.reclaim_may_consolidate)
    victims = solver.spending.keep(victims_of(queue, allowed, session.world.total))
    if (_anyone([queue], allowed) and solver.fits_as_it_is()) or solver.solve(victims):
        return None
    return solver.refusal("preemptible at lower priority" + (f" in queue {queue.name}" if queue.name else ""))


# -- consolidate ---------------------------------------------------------------------------------------------------


def _consolidate_for(session: Session, gang: Gang, unit: Sequence[Task]) -> Refusal | None:
    if gang.bound_by_quota or session.over(gang, unit) is not None:
        return _UNTRIED
    if demand_of(unit)[2] > session.free_gpus():
        return Refusal("", "")
    others = _leaves(session.world.queues.values())
    movable = _anyone(others, lambda victim: "none" if victim is gang else gives(victim))
    if movable and Solver(session, gang, unit, "consolidate", replace=True, every=True).fits_as_it_is():
        return None
    kept = ""
    for chosen in _movable(session, gang, unit):
        solver = Solver(session, gang, unit, "consolidate", replace=True, every=True)
        if solver.solve(solver.spending.keep(chosen)):
            return None
        kept = solver.spending.text() or kept
    return also(session, gang, kept) if kept else Refusal("", "")


def _movable(session: Session, gang: Gang, unit: Sequence[Task]) -> Iterator[list[Victim]]:
    """Sets of victims worth trying, each in order: those of one node that could take the unit, then those of several.

    A node's victims are taken in victim order; it counts with as many as give it one more pod of the unit.
    """
    world, limit = session.world, session.policy.max_consolidation_victims
    most = math.inf if limit < 0 else limit
    shape = max((task.shape for task in unit), key=lambda shape: (shape.quota[2], shape.quota[0]))
    lacking = len(unit) - session.slot_count(shape)

    def allowed(victim: Gang) -> Allowed:
        if gives(victim) == "none" or victim is gang:
            return "none"
        fresh = any(task.status == Status.ALLOCATED for leaf in victim.root.leaves() for _, task in leaf.active)
        return "none" if fresh else gives(victim)  # what was placed a moment ago is not worth moving

    by_node: dict[str, list[Victim]] = {}
    ready: dict[str, list[Victim]] = {}
    gains: dict[str, int] = {}
    tries, gained, stage = 0, 0, max(lacking, 1)
    for victim in VictimOrder(world, _leaves(world.queues.values()), allowed, lambda victim: "take"):
        for name in sorted({task.node.name for task in victim.tasks if task.node is not None}):
            chosen = by_node.setdefault(name, [])
            chosen.append(victim)
            node, before = world.nodes[name], gains.get(name, 0)
            # What a share gains shows only when the devices are really looked at.
            gain = before + 1 if shape.share else slots(shape, node, _given_back(chosen, name)) - slots(shape, node)
            if gain <= before:
                continue
            ready[name], gains[name] = list(chosen), gain
            gained += gain - before
            if (gain >= lacking or shape.share) and _pods(chosen) <= most and tries < _NODE_TRIES:
                tries += 1
                yield ready[name]
        if len(unit) > 1 and len(ready) > 1 and gained >= stage:
            yield _cheapest(ready, most)
            stage = 2 * gained
    if len(ready) > 1:
        yield _cheapest(ready, most)


def _cheapest(ready: dict[str, list[Victim]], most: float) -> list[Victim]:
    """The victims of several nodes, those of nodes with the fewest pods to move first; no more than `most` pods."""
    joined: dict[int, Victim] = {}
    for chosen in sorted(ready.values(), key=_pods):
        joined |= {id(victim): victim for victim in chosen}
    limited, pods = [], 0
    for victim in joined.values():
        pods += len(victim.tasks)
        if pods > most:
            break
        limited.append(victim)
    return limited


def _pods(victims: Iterable[Victim]) -> int:
    return sum(len(victim.tasks) for victim in victims)


def _given_back(victims: Iterable[Victim], name: str) -> dict[int, int]:
    """What the victims hold on a node, by column."""
    freed: dict[int, int] = {}
    for victim in victims:
        for task in victim.tasks:
            if task.node is not None and task.node.name == name:
                for column, amount in task.shape.requests:
                    freed[column] = freed.get(column, 0) + amount
                if task.devices:
                    freed[GPU_COLUMN] = freed.get(GPU_COLUMN, 0) + len(task.devices)
    return freed


# -- stale gangs ---------------------------------------------------------------------------------------------------


def evict_stale(session: Session) -> None:
    """End gangs that have lost part of their minimum and did not get it back within their grace period."""
    world, now = session.world, session.now
    spending = session.spending()
    suspects = [*world.stale, *world.changed]
    world.changed.clear()
    for gang in dict.fromkeys(suspects):
        root = gang.root
        if gang.stale_since is None and not root.children and len(root.active) >= root.minimum:
            world.stale.pop(gang, None)  # nearly all of those that have changed, told apart without a further look
            continue
        if world.gangs.get(gang.key) is not gang:
            world.stale.pop(gang, None)  # its PodGroup changed: the gang in its place has its times, and is looked at
            continue
        if gang.error or not _stale(gang):
            if gang.stale_since is not None:
                gang.stale_since = session.stale[gang] = None
            world.stale.pop(gang, None)
            continue
        world.stale[gang] = None
        if gang.stale_since is None or gang.stale_since > now:
            gang.stale_since = session.stale[gang] = now
        grace = stale_grace(gang, session.policy)
        if grace < 0 or now - gang.stale_since < grace:
            continue
        text = (
            f"fewer pods than its minimum have run for {now - gang.stale_since:.0f} s; the grace period is {grace:g} s"
        )
        tasks = [task for leaf in gang.root.leaves() for _, task in leaf.active]
        for task in tasks if spending.take(tasks) else ():
            session.evict(task, "evict-stale", f"{gang.namespace}/{gang.name}", text)


def stale_grace(gang: Gang, policy: Policy) -> float:
    """Seconds for which a gang may run below its minimum; for ever if negative."""
    return policy.stale_grace if gang.stale_grace is None else gang.stale_grace


def _stale(gang: Gang) -> bool:
    """Pods run, fewer than the minimum, and none of the missing ones is missing because it has finished.

    Pods that terminate count as long as they are there.
    """
    root = gang.root
    if root.satisfied or any(leaf.succeeded for leaf in root.leaves()):
        return False
    there = Counter(task.group for task in gang.tasks.values() if ACTIVE[task.status] or HOLDS_NOW[task.status])
    runs = any(HOLDS_NOW[task.status] for leaf in root.leaves() for _, task in leaf.active)
    return runs and not _enough(root, there)


def _enough(group: Group, there: Counter[Group | None]) -> bool:
    if group.children:
        return sum(_enough(child, there) for child in group.children) >= group.minimum
    return there[group] >= group.minimum
