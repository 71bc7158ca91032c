"""The allocate action: start what fits into free resources and into those being released."""

from __future__ import annotations

from capstan.scheduling import backfill
from capstan.scheduling.gangs import next_unit
from capstan.scheduling.model import Gang, Status
from capstan.scheduling.order import JobOrder
from capstan.scheduling.session import Refusal, Session


def _keep_promises(session: Session, waiting: list[Gang]) -> None:
    """Gangs for which others were evicted come first, on the nodes that were cleared for them.

    Without this the queue order could hand the room to somebody else, and the eviction would have been for nothing.
    """
    eligible = {gang.key: gang for gang in waiting}
    for key, nodes in list(session.world.standing.items()):
        del session.world.standing[key]
        gang = eligible.get(key)
        unit = next_unit(gang) if gang is not None else []
        if gang is None or not unit or session.over(gang, unit) is not None:
            continue
        for task in unit:
            task.nominated = nodes.get(task.uid, task.nominated)
        if session.place(gang, unit, later=False) and any(task.status == Status.PIPELINED for task in unit):
            session.won.append(gang)


def _nominate_moved(session: Session, waiting: list[Gang]) -> None:
    """Pods that were moved come back as new ones; they are to go where the simulation had placed the old."""
    world = session.world
    eligible = {gang.key: gang for gang in waiting}
    for key, nodes in list(world.destinations.items()):
        gang = eligible.get(key)
        if gang is not None:
            tasks = [task for leaf in gang.root.leaves() for _, task in leaf.pending]
            for task, node in zip(sorted(tasks, key=lambda task: task.order), nodes, strict=False):
                task.nominated = node
        elif key not in world.gangs or not any(t.status == Status.RELEASING for t in world.gangs[key].tasks.values()):
            del world.destinations[key]


def _finish_the_begun(session: Session, waiting: list[Gang]) -> None:
    """Gangs of which an earlier scheduler started a part before it died come first: nothing stays half done.

    One that has started as a whole and lost pods since is not among them; it takes its turn as KAI has it.
    """
    begun = [gang for gang in waiting if gang.active and gang.last_start is None and not gang.root.satisfied]
    for gang in sorted(begun, key=lambda gang: gang.order):
        unit = next_unit(gang)
        if unit and session.over(gang, unit) is None:
            session.place(gang, unit, later=False)


def allocate(session: Session) -> None:
    """Pop gangs in queue order and place one unit of each; a gang that has more comes back for it in its turn."""
    waiting = list(session.candidates())
    _nominate_moved(session, waiting)
    _keep_promises(session, waiting)
    _finish_the_begun(session, waiting)
    backfill.keep(session, waiting)
    depth = session.policy.queue_depth.get("allocate")
    order = JobOrder(session.world, [gang for gang in waiting if gang.pending], depth)
    for late in order.left_out:
        text = f"waits behind {depth} others of queue {late.queue_name}: no more are looked at in a cycle"
        session.refuse(late, Refusal("PodSchedulingErrors", text))
    work = session.measures.of("allocate")
    while (gang := order.pop()) is not None:
        unit = next_unit(gang)
        if not unit:
            order.done()
            continue
        work.tried += 1
        refusal = session.over(gang, unit)
        if refusal is None and session.place(gang, unit, later=False):
            work.placed += 1
            session.refusals.pop(gang.key, None)
            order.done(gang if gang.pending else None)
            continue
        session.refuse(gang, refusal or session.no_room(gang, unit))
        if refusal is None:
            backfill.consider(session, gang, unit)
        order.done()
