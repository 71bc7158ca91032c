"""Which queue and job comes next: every pop compares all siblings anew."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from functools import cmp_to_key

from bench.naive.gangs import active_of, demand, phase, tasks_to_place
from capstan.scheduling.amounts import DEALT, UNLIMITED, Amounts
from capstan.scheduling.model import Gang, Queue, Task
from capstan.scheduling.session import Session


def _bounded(share: int, total: int) -> int:
    return total if share == UNLIMITED else share


def _dominant(queue: Queue, amounts: Sequence[int], total: Sequence[int]) -> float:
    worst = 0.0
    for i in range(3):
        share = _bounded(queue.share[i], total[i])
        worst = max(worst, amounts[i] / share if share else amounts[i] / DEALT[i] * 1000)
    return worst


def compare_queues(
    left: Queue, right: Queue, jobs: tuple[Amounts, Amounts], victims: tuple[Amounts, Amounts], total: Sequence[int]
) -> int:
    """Negative: `left` comes first. The eight criteria of KAI's queue order, in their order."""

    def criteria(queue: Queue, job: Amounts, gone: Amounts) -> list[float]:
        with_job = [queue.allocated[i] + job[i] for i in range(3)]
        over = all(queue.fair[i] < queue.allocated[i] for i in range(3))
        starved = all(queue.quota[i] == UNLIMITED or with_job[i] <= queue.quota[i] for i in range(3))
        zero = any(queue.share[i] == 0 and with_job[i] > 0 for i in range(3))
        return [
            over,
            not starved,
            -queue.priority,
            zero,
            _dominant(queue, [with_job[i] - gone[i] for i in range(3)], total),
            _dominant(queue, queue.allocated, total),
        ]

    a, b = criteria(left, jobs[0], victims[0]), criteria(right, jobs[1], victims[1])
    if a != b:
        return -1 if a < b else 1
    mine = [_bounded(left.share[i], 1 << 62) for i in range(3)]
    theirs = [_bounded(right.share[i], 1 << 62) for i in range(3)]
    if mine != theirs:
        if all(x <= y for x, y in zip(mine, theirs, strict=True)):
            return -1
        if all(x >= y for x, y in zip(mine, theirs, strict=True)):
            return 1
    return left.rank - right.rank


class Order:
    """Jobs below the tree of queues; every pop compares all siblings anew on the way down."""

    def __init__(self, session: Session, gangs: Iterable[Gang], *, victims: bool) -> None:
        self.total, self.victims = session.world.total, victims
        self.jobs: dict[str, list[Gang]] = {}
        self.left: dict[int, dict[int, list[Task]]] = {}
        self.popped: dict[str, Amounts] = {}
        self.queues: dict[str, Queue] = {}
        for gang in gangs:
            assert gang.queue is not None
            self.jobs.setdefault(gang.queue.name, []).append(gang)
            for queue in gang.queue.path():
                self.queues[queue.name] = queue
            if victims:
                self.left[id(gang)] = active_of(gang)

    def _job_key(self, gang: Gang) -> tuple[int, int, float, str]:
        left = self.left[id(gang)] if self.victims else active_of(gang)
        return (-gang.priority, phase(gang.root, left), gang.created, gang.uid)

    def _best_job(self, queue: Queue) -> Gang | None:
        own = self.jobs.get(queue.name)
        if own:
            return (max if self.victims else min)(own, key=self._job_key)
        child = self._best(queue.children)
        return self._best_job(child) if child is not None else None

    def _has(self, queue: Queue) -> bool:
        return bool(self.jobs.get(queue.name)) or any(self._has(child) for child in queue.children)

    def _best(self, siblings: Iterable[Queue]) -> Queue | None:
        candidates = [queue for queue in siblings if queue.name in self.queues and self._has(queue)]
        if len(candidates) < 2:
            return candidates[0] if candidates else None

        def compare(left: Queue, right: Queue) -> int:
            a, b = self._best_job(left), self._best_job(right)
            assert a is not None and b is not None
            nothing: Amounts = (0, 0, 0)
            if self.victims:
                gone = (self._gone(a), self._gone(b))
                return compare_queues(left, right, (nothing, nothing), gone, self.total)
            jobs = (demand(tasks_to_place(a.root)), demand(tasks_to_place(b.root)))
            return compare_queues(left, right, jobs, (nothing, nothing), self.total)

        ordered = sorted(candidates, key=cmp_to_key(compare))
        return ordered[-1] if self.victims else ordered[0]

    def _gone(self, gang: Gang) -> Amounts:
        assert gang.queue is not None
        before = self.popped.get(gang.queue.name, (0, 0, 0))
        own = demand(t for tasks in self.left[id(gang)].values() for t in tasks)
        return (before[0] + own[0], before[1] + own[1], before[2] + own[2])

    def pop(self) -> Gang | None:
        roots = [queue for queue in self.queues.values() if queue.parent is None]
        top = self._best(roots)
        gang = self._best_job(top) if top is not None else None
        if gang is not None:
            assert gang.queue is not None
            if self.victims:
                self.popped[gang.queue.name] = self._gone(gang)
            self.jobs[gang.queue.name].remove(gang)
        return gang

    def push(self, gang: Gang) -> None:
        assert gang.queue is not None
        self.jobs[gang.queue.name].append(gang)
