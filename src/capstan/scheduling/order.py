"""Which job is next: a tree of heaps over the queues, in the order of KAI's proportion and priority plugins.

A queue is compared with its siblings together with its best job below. Only the queues on the path of the last job are
keyed anew, so a pop costs the depth of the tree and not the number of jobs.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from heapq import heapify, heappop, heappush

from capstan.scheduling.gangs import next_unit, phase
from capstan.scheduling.model import Amounts, Gang, Queue, Task
from capstan.scheduling.queues import QueueKey, queue_key
from capstan.scheduling.world import World

JobKey = tuple[int, int, float, str]


def job_key(gang: Gang) -> JobKey:
    """Priority, elastic phase (below its minimum first), creation, UID."""
    return (-gang.priority, phase(gang), gang.created, gang.uid)


def demand_of(unit: Sequence[Task]) -> Amounts:
    """What the tasks cost their queue together; empty for no tasks."""
    if len(unit) == 1:
        return unit[0].charge
    return tuple(map(sum, zip(*(task.charge for task in unit), strict=True)))


class Branch:
    """A queue with jobs below it: a leaf holds jobs, an inner one branches."""

    __slots__ = ("branches", "jobs", "parent", "queue")

    def __init__(self, queue: Queue | None, parent: Branch | None) -> None:
        self.queue, self.parent = queue, parent
        self.jobs: list[tuple[JobKey, Gang]] = []
        self.branches: list[tuple[QueueKey | None, int, Branch]] = []

    def best(self) -> Gang | None:
        branch = self
        while branch.branches:
            branch = branch.branches[0][2]
        return branch.jobs[0][1] if branch.jobs else None


class JobOrder:
    """Pops gangs in the order in which they are to be scheduled; `done` re-keys after each.

    Of every leaf queue only the first `depth` are popped, if that is given; the others are `left_out`.
    """

    def __init__(self, world: World, gangs: Iterable[Gang], depth: int | None = None) -> None:
        self.world = world
        self.root = Branch(None, None)
        leaves: dict[str, Branch] = {}
        for gang in gangs:
            queue = gang.queue
            assert queue is not None, "only gangs with a usable queue are ordered"
            leaf = leaves.get(queue.name)
            if leaf is None:
                leaf = leaves[queue.name] = Branch(queue, None)
            leaf.jobs.append((job_key(gang), gang))
        self.left_out: list[Gang] = []
        for leaf in leaves.values():
            if depth is not None and len(leaf.jobs) > depth:
                leaf.jobs.sort(key=lambda job: job[0])
                self.left_out += [gang for _, gang in leaf.jobs[depth:]]
                del leaf.jobs[depth:]
        self._current: Branch | None = None
        self._hang(leaves)

    def _hang(self, leaves: dict[str, Branch]) -> None:
        branches: dict[str, Branch] = dict(leaves)
        for leaf in leaves.values():
            heapify(leaf.jobs)
        children: dict[str, list[Branch]] = {}
        frontier = list(leaves.values())
        while frontier:
            upper: list[Branch] = []
            for branch in frontier:
                assert branch.queue is not None
                parent = branch.queue.parent
                name = parent.name if parent is not None else ""
                if parent is not None and name not in branches:
                    branches[name] = Branch(parent, None)
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
        if branch is self.root:
            return None
        self._current = branch
        return heappop(branch.jobs)[1]

    def done(self, again: Gang | None = None) -> None:
        """The popped gang was dealt with; `again` puts it back for its next unit."""
        branch = self._current
        assert branch is not None
        if again is not None:
            heappush(branch.jobs, (job_key(again), again))
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
