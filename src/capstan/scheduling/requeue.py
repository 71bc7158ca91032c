"""The requeue action: gangs that have run longer than their max runtime are evicted, and wait before they run again.

Not a rule of KAI, which has it on its roadmap ("max run time per workload, with delayed requeue"). The maximum holds
for every gang, preemptible or not: somebody has set it for just this gang or for its queue.
"""

from __future__ import annotations

from capstan.api import clock
from capstan.scheduling.model import Status
from capstan.scheduling.runtimes import max_runtime, requeue_delay, started
from capstan.scheduling.session import Session

_HERE = (Status.BOUND, Status.RUNNING)


def requeue(session: Session) -> None:
    """Evict what has run too long, as a whole.

    A gang of which anything was placed in this cycle, or that disruption budgets keep, has its turn in a later one.
    """
    world, now, spending = session.world, session.now, session.spending()
    for gang in sorted(world.timed, key=lambda gang: gang.order):
        longest, since = max_runtime(gang), started(gang)
        if longest is None or since is None or now - since < longest or not gang.active:
            continue
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
