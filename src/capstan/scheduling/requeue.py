"""The requeue action: gangs that have run longer than their max runtime are evicted, and wait before they run again.

Not a rule of KAI, which has it on its roadmap ("max run time per workload, with delayed requeue"). The maximum holds
for every gang, preemptible or not: somebody has set it for just this gang or for its queue.
"""

from __future__ import annotations

import math

from capstan.api import clock
from capstan.scheduling.model import Status
from capstan.scheduling.runtimes import requeue_delay, started
from capstan.scheduling.session import Session

_HERE = (Status.BOUND, Status.RUNNING)


def requeue(session: Session) -> None:
    """Evict what has run too long, as a whole.

    A gang of which anything was placed in this cycle, or that disruption budgets keep, has its turn in a later one.
    """
    world, now = session.world, session.now
    if now < world.next_requeue:
        return
    overdue, next_end = [], math.inf
    for gang, longest in world.limited.items():
        since = started(gang) if gang.active else None
        end = (now if since is None else since) + longest
        next_end = min(next_end, max(now, end))
        if end <= now:
            overdue.append(gang)
    world.next_requeue = next_end
    spending = session.spending()
    for gang in sorted(overdue, key=lambda gang: (gang.order, gang.key)):
        longest, since = world.limited[gang], started(gang)
        assert since is not None
        tasks = [task for leaf in gang.root.leaves() for _, task in leaf.active]
        if not all(task.status in _HERE for task in tasks) or not spending.take(tasks):
            continue
        delay = requeue_delay(gang)
        if delay:
            gang.requeue_not_before = session.requeued[gang] = now + delay
        again = f"; it may start again from {clock.render(now + delay)}" if delay else ""
        text = f"has run for {now - since:.0f} s; its max runtime is {longest:g} s{again}"
        for task in tasks:
            session.evict(task, "requeue", f"{gang.namespace}/{gang.name.removeprefix('pod/')}", text)
