"""`cycle`: from a World to a Plan. Pure and deterministic: the same World, policy and time give the same Plan."""

from __future__ import annotations

from collections.abc import Callable, Iterator

from capstan.allocation import request_mappings, resolved
from capstan.api import clock
from capstan.api.scheduling import STALE_SINCE
from capstan.scheduling import verdicts
from capstan.scheduling.allocate import allocate
from capstan.scheduling.defragment import defragment
from capstan.scheduling.evict import consolidate, evict_stale, preempt, reclaim, stale_grace
from capstan.scheduling.gangs import LAST_START, REQUEUE_NOT_BEFORE, smallest_start
from capstan.scheduling.holdings import Key
from capstan.scheduling.measures import Lap, untimed
from capstan.scheduling.model import Gang, Status, Task
from capstan.scheduling.plan import Bind, Eviction, Grant, ImpliedClaim, Plan, Promise, Stamp
from capstan.scheduling.policy import Policy
from capstan.scheduling.requeue import requeue
from capstan.scheduling.session import Session
from capstan.scheduling.world import World

_STEPS: dict[str, Callable[[Session], None]] = {
    "allocate": allocate,
    "consolidate": consolidate,
    "reclaim": reclaim,
    "preempt": preempt,
    "evict-stale": evict_stale,
    "requeue": requeue,
    "defragment": defragment,
}


class UnknownAction(ValueError):
    """A policy names an action that does not exist."""

    def __init__(self, name: str) -> None:
        super().__init__(f"unknown action {name!r}; the actions are {', '.join(_STEPS)}")


def cycle(world: World, policy: Policy, now: float, lap: Lap = untimed) -> Plan:
    """Decide what starts, what is evicted and why the rest waits, at POSIX time `now`.

    The decisions stay in the World as assumed: binds and evictions until the cluster confirms them or `World.forget`
    takes them back, promises until the next cycle. `lap` hears when each part of the work ends. Raises UnknownAction.
    """
    for name in policy.actions:
        if name not in _STEPS:
            raise UnknownAction(name)
    world.begin(now)
    lap("refresh", "")
    world.share_out(policy)
    lap("proportion", "")
    session = Session(world, policy, now, lap)
    start = world.mark()
    for name in policy.actions:
        _STEPS[name](session)
        lap(name, "")
    session.finish()
    plan = _plan(session)
    plan.measures.moves, plan.measures.devices, plan.measures.grants = (
        end - begin for begin, end in zip(start, world.mark(), strict=True)
    )
    lap("plan", "")
    world.adopt(plan, start, session.won)
    lap("adopt", "")
    return plan


def _plan(session: Session) -> Plan:
    world = session.world
    plan = Plan(measures=session.measures)
    changed: dict[str, Task] = {}
    for task, *_ in world.moves:
        changed[task.uid] = task
    for task in sorted(changed.values(), key=_plan_order):
        gang = task.gang
        group = "" if gang is None or gang.implicit else gang.name
        if task.uid in session.evicted and (task.status == Status.RELEASING or task.leaving is not None):
            _, action, winner, reason = session.evicted[task.uid]
            place = task.leaving[0] if task.leaving is not None else task.node
            plan.evictions.append(
                Eviction(
                    task.namespace, task.name, task.uid, place.name if place else "", group, action, winner, reason
                )
            )
        if task.status == Status.ALLOCATED and task.node is not None:
            plan.binds.append(_bind(world, task, group))
        elif task.status == Status.PIPELINED and task.node is not None:
            plan.promises.append(Promise(task.namespace, task.name, task.uid, task.node.name, group))
    plan.verdicts.extend(session.verdicts())
    plan.stamps.extend(_stamps(session, plan))
    return plan


def _stamps(session: Session, plan: Plan) -> Iterator[Stamp]:
    """When gangs started as a whole (minimum run times count from there) and since when they are stale."""
    gangs: dict[Gang, None] = {}
    for bind in plan.binds:
        found = session.world.tasks[bind.uid].gang
        if found is not None:
            gangs[found] = None
    for gang in gangs:
        bound = sum(task.status == Status.ALLOCATED for leaf in gang.root.leaves() for _, task in leaf.active)
        if gang.root.satisfied and gang.active - bound < smallest_start(gang.root):
            gang.last_start = session.now
            plan.measures.waits.append((gang.queue_name, max(0.0, session.now - gang.created)))
            if not gang.implicit:
                yield Stamp(gang.namespace, gang.name, LAST_START, clock.render(session.now))
    for gang, since in session.stale.items():
        if since is None:
            yield Stamp(gang.namespace, gang.name, STALE_SINCE, None)
            continue
        news = verdicts.below_minimum(gang, stale_grace(gang, session.policy))
        yield Stamp(gang.namespace, gang.name, STALE_SINCE, clock.render(since), news)
    for gang, again in session.requeued.items():
        if not gang.implicit:
            yield Stamp(gang.namespace, gang.name, REQUEUE_NOT_BEFORE, clock.render(again))


def _plan_order(task: Task) -> tuple[str, str, tuple[int, int, float, str]]:
    gang = task.gang
    return (task.namespace, gang.name if gang is not None else "", task.order)


def _bind(world: World, task: Task, group: str) -> Bind:
    assert task.node is not None
    inventory = world.inventory
    grants: list[Grant] = []
    implied = None
    if inventory is not None:
        made = task.implied.key if task.implied is not None and task.node.by_claims else None
        # What an earlier attempt has allocated is written once more: it may have ended before the pod was told.
        for key in dict.fromkeys([*task.held, made] if made is not None else task.held):
            allocation = inventory.allocation(key)
            if allocation is None:
                continue
            if task.implied is not None and key == task.implied.key:
                mappings = tuple(request_mappings(world.pod(task.uid), inventory))
                implied = ImpliedClaim(resolved(task.implied, allocation), allocation, mappings)
            else:
                grants.append(Grant(*key, allocation))
    reserve: tuple[Key, ...] = ()
    if task.claims:
        reserve = tuple((task.namespace, name) for _, name in task.claims if name is not None)
    volumes: tuple[tuple[Key, str], ...] = ()
    if task.volume_choices:
        volumes = tuple(((task.namespace, claim), volume) for claim, volume in task.volume_choices)
    return Bind(
        namespace=task.namespace,
        pod=task.name,
        uid=task.uid,
        node=task.node.name,
        group=group,
        grants=tuple(grants),
        implied=implied,
        reserve=(*reserve, implied.claim.key) if implied is not None else reserve,
        gpu_groups=task.devices,
        volumes=volumes,
        zones=task.zones,
    )
