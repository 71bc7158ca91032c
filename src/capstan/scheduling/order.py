"""Which job is next: a tree of heaps over the queues, in the order of KAI's proportion and priority plugins.

A queue is compared with its siblings together with its best job below. Only the queues on the path of the last job are
keyed anew, so a pop costs the depth of the tree and not the number of jobs.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from heapq import heapify, heappop, heappush

from capstan.scheduling.amounts import Amounts
from capstan.scheduling.gangs import next_unit, phase
from capstan.scheduling.model import Gang, Queue, Task
from capstan.scheduling.queues import QueueKey, queue_key
from capstan.scheduling.users import UserShares, user_of
from capstan.scheduling.world import World

JobKey = tuple[int, int, float, str]


def job_key(gang: Gang) -> JobKey:
    """Priority, elastic phase (below its minimum first), creation, UID."""
    return (-gang.priority, phase(gang), gang.created, gang.uid)


class Jobs:
    """The waiting jobs of a leaf queue, in the order of `job_key`."""

    __slots__ = ("_heap",)

    def __init__(self, gangs: Iterable[Gang]) -> None:
        self._heap = [(job_key(gang), gang) for gang in gangs]
        heapify(self._heap)

    def __len__(self) -> int:
        return len(self._heap)

    @property
    def top(self) -> tuple[JobKey, Gang]:
        return self._heap[0]

    @property
    def first(self) -> Gang:
        return self._heap[0][1]

    def pop(self) -> Gang:
        return heappop(self._heap)[1]

    def push(self, gang: Gang) -> None:
        heappush(self._heap, (job_key(gang), gang))


class UserJobs:
    """As `Jobs`, for a queue whose users take turns: within a priority, the jobs of the user who has least come first.

    What users have changes with every job that starts or ends, so the first job is found among the first of every user.
    """

    __slots__ = ("_count", "_jobs", "_shares")

    def __init__(self, queue: Queue, total: Sequence[int], gangs: Iterable[Gang]) -> None:
        self._shares = UserShares(queue, total)
        self._count = 0
        self._jobs: dict[str, Jobs] = {}
        for gang in gangs:
            self.push(gang)

    def __len__(self) -> int:
        return self._count

    def _next(self) -> Jobs:
        def key(user: str) -> tuple[int, float, JobKey]:
            first = self._jobs[user].top[0]
            return (first[0], self._shares.of(user), first)

        return self._jobs[min((user for user, jobs in self._jobs.items() if jobs), key=key)]

    @property
    def first(self) -> Gang:
        return self._next().first

    def pop(self) -> Gang:
        self._count -= 1
        return self._next().pop()

    def push(self, gang: Gang) -> None:
        self._count += 1
        jobs = self._jobs.get(user := user_of(gang))
        if jobs is None:
            jobs = self._jobs[user] = Jobs(())
        jobs.push(gang)


def demand_of(unit: Sequence[Task]) -> Amounts:
    """What the tasks cost their queue together; empty for no tasks."""
    if len(unit) == 1:
        return unit[0].charge
    return tuple(map(sum, zip(*(task.charge for task in unit), strict=True)))


class Branch:
    """A queue with jobs below it: a leaf holds jobs, an inner one branches."""

    __slots__ = ("branches", "jobs", "parent", "queue")

    def __init__(self, queue: Queue | None, jobs: Jobs | UserJobs | None = None) -> None:
        self.queue, self.jobs = queue, jobs
        self.parent: Branch | None = None
        self.branches: list[tuple[QueueKey | None, int, Branch]] = []

    def best(self) -> Gang | None:
        branch = self
        while branch.branches:
            branch = branch.branches[0][2]
        return branch.jobs.first if branch.jobs else None


class JobOrder:
    """Pops gangs in the order in which they are to be scheduled; `done` re-keys after each.

    Of every leaf queue only the first `depth` are popped, if that is given; the others are `left_out`.
    """

    def __init__(self, world: World, gangs: Iterable[Gang], depth: int | None = None) -> None:
        self.world = world
        self.root = Branch(None)
        by_queue: dict[str, list[Gang]] = {}
        for gang in gangs:
            assert gang.queue is not None, "only gangs with a usable queue are ordered"
            by_queue.setdefault(gang.queue.name, []).append(gang)
        self.left_out: list[Gang] = []
        leaves: dict[str, Branch] = {}
        for name, waiting in by_queue.items():
            queue = waiting[0].queue
            assert queue is not None
            jobs = self._jobs(queue, waiting)
            if depth is not None and len(waiting) > depth:
                ordered = [jobs.pop() for _ in waiting]
                self.left_out += ordered[depth:]
                jobs = self._jobs(queue, ordered[:depth])
            leaves[name] = Branch(queue, jobs)
        self._current: Branch | None = None
        self._hang(leaves)

    def _jobs(self, queue: Queue, gangs: Iterable[Gang]) -> Jobs | UserJobs:
        return Jobs(gangs) if queue.users is None else UserJobs(queue, self.world.total, gangs)

    def _hang(self, leaves: dict[str, Branch]) -> None:
        branches: dict[str, Branch] = dict(leaves)
        children: dict[str, list[Branch]] = {}
        frontier = list(leaves.values())
        while frontier:
            upper: list[Branch] = []
            for branch in frontier:
                assert branch.queue is not None
                parent = branch.queue.parent
                name = parent.name if parent is not None else ""
                if parent is not None and name not in branches:
                    branches[name] = Branch(parent)
                    upper.append(branches[name])
                branch.parent = branches[name] if parent is not None else self.root
                children.setdefault(name if parent is not None else "", []).append(branch)
            frontier = upper
        for branch in sorted(branches.values(), key=lambda b: -(b.queue.depth if b.queue else 0)):
            below = children.get(branch.queue.name, []) if branch.queue is not None and branch.queue.children else []
            self._fill(branch, below)
        self._fill(self.root, children.get("", []))

    def _fill(self, branch: Branch, below: list[Branch]) -> None:
        alone = len(below) < 2
        branch.branches = [(None if alone else self._key(b), b.queue.rank if b.queue else 0, b) for b in below]
        heapify(branch.branches)

    def _key(self, branch: Branch) -> QueueKey:
        gang = branch.best()
        assert branch.queue is not None and gang is not None
        nothing = self.world.nothing
        return queue_key(branch.queue, demand_of(next_unit(gang)) or nothing, nothing, self.world.total)

    def pop(self) -> Gang | None:
        """The next gang, taken out; `done` has to follow."""
        branch = self.root
        while branch.branches:
            branch = branch.branches[0][2]
        if branch.jobs is None:
            return None
        self._current = branch
        return branch.jobs.pop()

    def done(self, again: Gang | None = None) -> None:
        """The popped gang was dealt with; `again` puts it back for its next unit."""
        branch = self._current
        assert branch is not None
        assert branch.jobs is not None
        if again is not None:
            branch.jobs.push(again)
        while branch.parent is not None:
            siblings = branch.parent.branches
            _, rank, top = heappop(siblings)
            assert top is branch
            if branch.jobs or branch.branches:
                heappush(
                    siblings, (self._key(branch) if siblings and siblings[0][0] is not None else None, rank, branch)
                )
            branch = branch.parent
        self._current = None
