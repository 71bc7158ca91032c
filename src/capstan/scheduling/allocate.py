"""The allocate action: start what fits into free resources and into those being released."""

from __future__ import annotations

from capstan.scheduling.gangs import next_unit
from capstan.scheduling.order import JobOrder
from capstan.scheduling.session import Session


def allocate(session: Session) -> None:
    """Pop gangs in queue order and place one unit of each; a gang that has more comes back for it in its turn."""
    order = JobOrder(session.world, session.candidates())
    while (gang := order.pop()) is not None:
        unit = next_unit(gang)
        if not unit:
            order.done()
            continue
        refusal = session.over(gang, unit)
        if refusal is None and session.place(gang, unit, later=False):
            session.refusals.pop(gang.key, None)
            order.done(gang if gang.pending else None)
            continue
        session.refuse(gang, refusal or session.no_room(gang, unit))
        order.done()
