"""Backfill: a gang that finds no room is told when and where it will, and nobody who comes later may delay that.

The ends of what runs are gone through in order. A counting bound says from which of them on the gang could fit; from
there on the simulation decides: end what will have ended, place the gang, read where it is, and take all of it back.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

from capstan.scheduling.gangs import next_unit
from capstan.scheduling.model import HOLDS_LATER, Gang, Status, Task
from capstan.scheduling.order import demand_of
from capstan.scheduling.reservations import Reservation, holds
from capstan.scheduling.session import Session
from capstan.scheduling.solver import Bound

_MOST_ENDS = 50_000
"""So many ends are looked at in one cycle, for all gangs together; who finds no time by then is looked at again."""


Times = Sequence[tuple[float, list[Gang]]]
"""Times at which room comes free, soonest first, and the gangs that end then."""


def keep(session: Session, waiting: Sequence[Gang]) -> None:
    """Start the gangs whose time has come, before all others; make the promises that were broken anew."""
    book = session.book
    eligible = {gang.key: gang for gang in waiting if gang.pending}
    for key in [key for key in book.made if key not in eligible or not session.policy.reservations]:
        del book.made[key]
    for key, made in list(book.made.items()):
        gang = eligible[key]
        unit = next_unit(gang)
        if not unit or {task.uid for task in unit} != made.places.keys() or session.over(gang, unit) is not None:
            del book.made[key]
            continue
        if made.at <= session.now:
            for task in unit:
                task.nominated = made.places[task.uid]
        if session.place(gang, unit, later=False):
            del book.made[key]
        elif made.at <= session.now or not book.keeps(made, session.world.nodes):
            del book.made[key]
            consider(session, gang, unit)


def consider(session: Session, gang: Gang, unit: Sequence[Task]) -> None:
    """Reserve for a gang that was just refused for lack of room, if it may have a reservation and a time is found."""
    policy, book = session.policy, session.book
    waited = max(0.0, session.now - gang.created)
    if len(book.made) >= policy.reservations or gang.key in book.made or waited < policy.reserve_after:
        return
    if gang.root.satisfied or any(task.shape.share is not None or task.claims for task in unit):
        return  # surplus pods wait for luck; parts of devices and named claims are not foreseen
    assumed = policy.starving_after is not None and waited >= policy.starving_after
    times = _times(session, assumed=assumed)
    if not times or session.ends_read + len(times) > _MOST_ENDS:
        return
    session.ends_read += len(times)
    made = _earliest(session, gang, unit, times, assumed=assumed)
    if made is not None:
        book.made[gang.key] = made


def _times(session: Session, *, assumed: bool) -> Times:
    """Ends that are known (or assumed), and the ends of reservations made so far."""
    world, book = session.world, session.book
    everybody = assumed or session.policy.learn_runtimes
    ends = book.assumed if assumed else book.known
    known = ends.timeline(world.gangs.values() if everybody else world.timed)
    reserved = {made.until for made in book.made.values() if session.now < made.until < math.inf}
    if not reserved:
        return known
    merged: dict[float, list[Gang]] = {at: [] for at in reserved} | dict(known)
    return sorted(merged.items(), key=lambda pair: pair[0])


def _earliest(session: Session, gang: Gang, unit: Sequence[Task], times: Times, *, assumed: bool) -> Reservation | None:
    """The soonest reservation: the bound gives a first guess, which gallops up and is then halved down."""

    def after(ends: Times, counted: Bound) -> Reservation | None:
        return _probe(session, gang, unit, ends, counted, assumed=assumed)

    bound = _bound(session, gang, unit)
    failed = count = 0
    while count < len(times) and not (count and bound.enough()):
        failed = count
        _count(bound, times[count : count + 1])
        count += 1
    while (made := after(times[:count], bound)) is None:
        if count == len(times):
            return None
        more = min(2 * (count - failed), len(times) - count)
        failed = count
        _count(bound, times[count : count + more])
        count += more
    while count - failed > 1:
        middle = (failed + count) // 2
        fresh = _bound(session, gang, unit)
        _count(fresh, times[:middle])
        sooner = after(times[:middle], fresh)
        if sooner is None:
            failed = middle
        else:
            made, count = sooner, middle
    return made


def _bound(session: Session, gang: Gang, unit: Sequence[Task]) -> Bound:
    """What fits by columns now, without the rooms that are reserved for good and that the gang would run into."""
    book, nodes = session.book, session.world.nodes
    end = session.now + book.known.runtime(gang)
    bound = Bound(session, unit)
    for made in book.made.values():
        if made.until == math.inf and made.at < end:
            for name, need in made.need.items():
                if name in nodes:
                    bound.give(nodes[name], [(column, -amount) for column, amount in need.items()])
    return bound


def _count(bound: Bound, times: Times) -> None:
    for _, gangs in times:
        for gang in gangs:
            for task in _held(gang):
                bound.free(task)


def _held(gang: Gang) -> list[Task]:
    return [task for leaf in gang.root.leaves() for _, task in leaf.active if HOLDS_LATER[task.status]]


def _probe(
    session: Session, gang: Gang, unit: Sequence[Task], times: Times, bound: Bound, *, assumed: bool
) -> Reservation | None:
    """Place the gang as if everything up to the last of `times` had ended; read where, and undo it.

    `bound` has counted the same ends; only on nodes that it finds useful is anything ended.
    """
    world, at = session.world, times[-1][0]
    if not bound.enough():
        return None
    mark = world.mark()
    for _, gangs in times:
        for ended in gangs:
            for task in _held(ended):
                if task.node is not None and bound.takes(task.node):
                    world.move(task, Status.RELEASING, task.node, task.devices, zones=task.zones)
    made = None
    if session.place_at(gang, unit, at):
        need: dict[str, dict[int, int]] = {}
        places: dict[str, str] = {}
        for task in unit:
            assert task.node is not None
            places[task.uid] = task.node.name
            amounts = need.setdefault(task.node.name, {})
            for column, amount in holds(task).items():
                amounts[column] = amounts.get(column, 0) + amount
        after = [
            f"{ended.namespace}/{ended.name.removeprefix('pod/')}"
            for _, gangs in times
            for ended in gangs
            if any(task.node is not None and task.node.name in need for task in ended.tasks.values())
        ]
        until = at + session.book.known.runtime(gang)
        made = Reservation(gang.key, at, until, need, places, demand_of(unit), tuple(after), assumed)
    world.rollback(mark)
    return made
