"""A naive scheduler after KAI's rules, to measure the engine against and to compare decisions with.

It shares with the engine what a node and a claim are (`World`, its journal, single filters) and nothing of how
decisions are found: every pod looks at every node and scores it, every queue comparison starts from the sums, every
probe of victims is simulated from scratch. Sources: the rules of KAI Scheduler as docs/scheduling.md states them.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from functools import cmp_to_key

from capstan.scheduling import devices
from capstan.scheduling.model import (
    CPU_COLUMN,
    GPU,
    GPU_COLUMN,
    PODS_COLUMN,
    UNLIMITED,
    Amounts,
    Gang,
    Group,
    Node,
    Queue,
    Status,
    Task,
)
from capstan.scheduling.placement import fits
from capstan.scheduling.queues import levelled
from capstan.scheduling.session import Refusal, Session
from capstan.scheduling.victims import preempt_protection, reclaim_min_runtime, runtime
from capstan.scheduling.world import World

# -- gangs: what to place and what to evict next -----------------------------------------------------------------------


def _members(group: Group, have: Callable[[Group], int]) -> tuple[int, int]:
    """(satisfied members, members needed) of a group."""
    if group.children:
        return sum(_done(child, have) for child in group.children), group.minimum
    return have(group), group.minimum


def _done(group: Group, have: Callable[[Group], int]) -> bool:
    count, needed = _members(group, have)
    return count >= needed


def _rank(group: Group, have: Callable[[Group], int]) -> tuple[bool, bool, float, str]:
    count, needed = _members(group, have)
    done = count >= needed
    return (done, done and not needed, (count / (needed or 1)) if done else 0.0, group.name)


def _active(leaf: Group) -> int:
    return len(leaf.active)


def tasks_to_place(group: Group) -> list[Task]:
    if not group.children:
        missing = group.minimum - len(group.active)
        return [] if missing > len(group.pending) else [task for _, task in group.pending[: max(missing, 1)]]
    ordered = sorted(group.children, key=lambda child: _rank(child, _active))
    done, needed = _members(group, _active)
    if done < needed:
        unit: list[Task] = []
        wanted = needed - done
        for child in ordered:
            if wanted and not _done(child, _active) and (more := tasks_to_place(child)):
                unit, wanted = unit + more, wanted - 1
        return unit if not wanted else []
    return next((more for child in ordered if (more := tasks_to_place(child))), [])


Left = dict[int, list[Task]]
"""The tasks that a leaf (by id) still has."""


def _everything(group: Group, left: Left) -> list[Task]:
    return [task for leaf in group.leaves() for task in reversed(left[id(leaf)])]


def surplus(group: Group, left: Left) -> list[Task]:
    """A surplus pod deep in the tree, else a surplus subgroup; empty when there is none."""

    def have(leaf: Group) -> int:
        return len(left[id(leaf)])

    if not group.children:
        return left[id(group)][-1:] if have(group) > group.minimum else []
    done, needed = _members(group, have)
    if not done:
        return []
    ordered = sorted(group.children, key=lambda child: _rank(child, have), reverse=True)
    for child in ordered:
        if unit := surplus(child, left):
            return unit
    if needed < done:
        return next((unit for child in ordered if (unit := _everything(child, left))), [])
    return []


def tasks_to_evict(root: Group, left: Left) -> list[Task]:
    """One unit: surplus, else everything."""
    return surplus(root, left) or _everything(root, left)


def demand(tasks: Iterable[Task]) -> Amounts:
    a = b = c = 0
    for task in tasks:
        a, b, c = a + task.charge[0], b + task.charge[1], c + task.charge[2]
    return (a, b, c)


# -- queues ------------------------------------------------------------------------------------------------------------


def _bounded(share: int, total: int) -> int:
    return total if share == UNLIMITED else share


def _dominant(queue: Queue, amounts: Sequence[int], total: Sequence[int]) -> float:
    worst = 0.0
    for i in range(3):
        share = _bounded(queue.share[i], total[i])
        worst = max(worst, amounts[i] / share if share else amounts[i] / (1, 1, GPU)[i] * 1000)
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


def phase(root: Group, left: Left) -> int:
    """0 below the minimum, 1 exactly at it, 2 above."""
    if not _done(root, lambda leaf: len(left[id(leaf)])):
        return 0
    return 2 if surplus(root, left) else 1


def _active_of(gang: Gang) -> Left:
    return {id(leaf): [task for _, task in leaf.active] for leaf in gang.root.leaves()}


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
                self.left[id(gang)] = _active_of(gang)

    def _job_key(self, gang: Gang) -> tuple[int, int, float, str]:
        left = self.left[id(gang)] if self.victims else _active_of(gang)
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


# -- placing -----------------------------------------------------------------------------------------------------------


def over_limit(gang: Gang, amounts: Amounts) -> bool:
    assert gang.queue is not None
    for queue in gang.queue.path():
        for i in range(3):
            if not amounts[i]:
                continue
            if queue.limit[i] != UNLIMITED and queue.allocated[i] + amounts[i] > queue.limit[i]:
                return True
            if not gang.preemptible and queue.quota[i] != UNLIMITED and queue.fixed[i] + amounts[i] > queue.quota[i]:
                return True
    return False


class Simulation:
    """Places jobs in the World the naive way."""

    def __init__(self, session: Session) -> None:
        self.session, self.world, self.policy = session, session.world, session.policy
        self.boosts: dict[str, dict[str, int]] = {}

    def place_job(self, gang: Gang, unit: list[Task], nodes: list[Node], *, later: bool) -> bool:
        self.boosts = {}
        if over_limit(gang, self.world.least_charge(unit)):
            return False
        mark = self.world.mark()
        if self._place_group(gang.root, unit, nodes, later):
            return True
        self.world.rollback(mark)
        return False

    def _place_group(self, group: Group, unit: list[Task], nodes: list[Node], later: bool) -> bool:
        leaves = {id(leaf) for leaf in group.leaves()}
        own = [task for task in unit if id(task.group) in leaves]
        for subset in self._subsets(group, own, nodes):
            mark = self.world.mark()
            if group.children:
                ordered = sorted(group.children, key=lambda child: (not child.children, _rank(child, _active)))
                good = all(self._place_group(child, own, subset, later) for child in ordered)
            else:
                good = all(self._place_task(task, group, subset, later) for task in own)
            if good:
                return True
            self.world.rollback(mark)
        return False

    def _place_task(self, task: Task, group: Group, nodes: list[Node], later: bool) -> bool:
        if task.error:
            return False
        holder: Group | None = group
        while holder is not None and holder.name not in self.boosts:
            holder = holder.parent
        boosts = self.boosts[holder.name] if holder is not None else {}
        scores = self._scores(task, nodes, boosts)
        for node in sorted(nodes, key=lambda node: (-scores[node.name], node.name)):
            if self.session.placer.try_node(task, node, later=later):
                return True
        return False

    def _scores(self, task: Task, nodes: list[Node], boosts: dict[str, int]) -> dict[str, float]:
        shape = task.shape
        column = GPU_COLUMN if shape.on_gpu else CPU_COLUMN
        strategy = self.policy.gpu_placement if shape.on_gpu else self.policy.cpu_placement
        free = {node.name: node.later[column] for node in nodes if node.capacity[column]}
        low, high = min(free.values(), default=0), max(free.values(), default=0)
        scores = {}
        for node in nodes:
            score = 0.0
            if node.capacity[column]:
                if strategy == "spread":
                    score = free[node.name] / node.capacity[column]
                elif high:
                    score = 9.0 if low == high else 9.0 * (1 - (free[node.name] - low) / (high - low))
            if not shape.on_gpu and not node.offers[2]:
                score += 10
            if fits(shape, node, later=False):
                score += 1000
            if shape.share is not None and strategy == "binpack" and devices.joins(shape.share, node, None):
                score += 10_000
            score += 100_000 * boosts.get(node.name, 0)
            scores[node.name] = score
        return scores

    # -- topology ------------------------------------------------------------------------------------------------------

    def _subsets(self, group: Group, own: list[Task], nodes: list[Node]) -> list[list[Node]]:
        levels = group.levels
        if levels is None or not own:
            return [nodes]
        labels = [level.node_label for level in self.world.topologies[levels.topology]]
        inside = [node for node in nodes if all(label in node.labels for label in labels)]

        def name(node: Node, depth: int) -> str:
            return ".".join(node.labels[label] for label in labels[:depth])

        tree: dict[tuple[int, str], list[Node]] = {}
        for node in self.world.nodes.values():
            if all(label in node.labels for label in labels):
                for depth in range(len(labels) + 1):
                    tree.setdefault((depth, name(node, depth)), []).append(node)
        # the lowest domain that holds the whole set, not below the preferred level
        deepest = labels.index(levels.preferred) + 1 if levels.preferred else len(labels)
        depth = 0
        while inside and depth < deepest and len({name(node, depth + 1) for node in inside}) == 1:
            depth += 1
        root = (depth, name(inside[0], depth) if inside else "")
        if root not in tree:
            return []
        uniform = len({tuple(c for c, _ in task.shape.requests) for task in own}) == 1
        largest: dict[int, int] = {}
        total: dict[int, int] = {}
        for task in own:
            for column, amount in task.shape.requests:
                largest[column] = max(largest.get(column, 0), amount)
                total[column] = total.get(column, 0) + amount
        shares = [task.shape.share for task in own if task.shape.share is not None and task.shape.share.portion]
        parts = [share.portion * share.devices for share in shares]

        def slots(node: Node) -> int:
            fitting = [node.later[column] // amount for column, amount in largest.items()]
            if parts:
                shared = sum(GPU - d.used_later for d in node.devices.values() if d.users_later)
                fitting.append((node.later[GPU_COLUMN] * GPU + shared) // max(parts))
            return min(fitting)

        def ratio(domain: tuple[int, str]) -> float:
            worst = 0.0
            for column, amount in total.items():
                if column == PODS_COLUMN:
                    continue
                room = sum(node.later[column] for node in tree[domain])
                worst = max(worst, amount / room if room > 0 else 1000.0)
            if parts:
                whole = sum(node.later[GPU_COLUMN] for node in tree[domain])
                worst = max(worst, sum(parts) / (whole * GPU) if whole > 0 else 1000.0)
            return worst

        def fitting(domain: tuple[int, str]) -> bool:
            if uniform and len(parts) in (0, len(own)):
                return sum(slots(node) for node in tree[domain]) >= len(own)
            return ratio(domain) <= 1

        if not fitting(root):
            return []
        stop = deepest if levels.preferred else labels.index(levels.required) + 1

        def sorted_tree(domain: tuple[int, str]) -> list[list[tuple[int, str]]]:
            """Domains by level below (and with) one, each level in tree order."""
            found: list[list[tuple[int, str]]] = [[domain]]
            current = [domain]
            for depth in range(domain[0] + 1, len(labels) + 1):
                following: list[tuple[int, str]] = []
                for parent in current:
                    children = sorted({(depth, name(node, depth)) for node in tree[parent]})
                    if parent[0] <= stop:
                        children.sort(key=lambda child: (-ratio(child), child[1]))
                    following += children
                found.append(following)
                current = following
            return found

        ordered = {level[0][0]: level for level in sorted_tree(root)}
        if levels.preferred:
            below = ordered.get(deepest, [])
            self.boosts[group.name] = {
                node.name: 10 * (i + 1) // len(below) for i, domain in enumerate(below) for node in tree[domain]
            }
        required = labels.index(levels.required) + 1 if levels.required else 0
        lowest = deepest if levels.preferred else required
        pinned: set[str] | None = None
        placed = [task.node for leaf in group.leaves() for _, task in leaf.active if task.node is not None]
        placed = [node for node in placed if all(label in node.labels for label in labels)]
        if placed and levels.required:
            pinned = {name(node, required) for node in placed}
        subsets = []
        valid = {node.name for node in inside}
        everything = {level[0][0]: level for level in sorted_tree((0, ""))}
        for depth in range(lowest, required - 1, -1):
            for domain in everything[depth]:
                if domain not in ordered.get(depth, []) and depth >= root[0]:
                    continue
                if pinned is not None and name(tree[domain][0], required) not in pinned:
                    continue
                if fitting(domain):
                    subsets.append([node for node in tree[domain] if node.name in valid])
        return subsets


# -- allocate ----------------------------------------------------------------------------------------------------------


def allocate(session: Session) -> None:
    world, simulation = session.world, Simulation(session)
    world.standing.clear()
    order = Order(session, list(session.candidates()), victims=False)
    nodes = list(world.nodes.values())
    while (gang := order.pop()) is not None:
        unit = tasks_to_place(gang.root)
        if unit and simulation.place_job(gang, unit, nodes, later=False):
            _pipeline_together(world, gang, unit)
            session.refusals.pop(gang.key, None)
            if gang.pending:
                order.push(gang)
        else:
            session.refuse(gang, Refusal("PodSchedulingErrors", "no room"))


def _pipeline_together(world: World, gang: Gang, unit: list[Task]) -> None:
    """Where a subgroup has promised pods and too few others, nothing of the unit starts before they can."""
    for leaf in gang.root.leaves():
        promised = sum(task.status == Status.PIPELINED for _, task in leaf.active)
        if promised and len(leaf.active) - promised < leaf.minimum:
            for task in unit:
                if task.status == Status.ALLOCATED:
                    world.move(task, Status.PIPELINED, task.node, task.devices, zones=task.zones)


# -- the solver --------------------------------------------------------------------------------------------------------

Judge = Callable[[list[tuple[Gang, list[Task]]]], bool]
Filter = Callable[[Gang], bool]


class Search:
    """Finds victims for one job: ever more of them, each probe simulated from scratch."""

    def __init__(
        self, session: Session, gang: Gang, action: str, victims: Filter, judge: Judge, most: int | None = None
    ) -> None:
        self.session, self.gang, self.action, self.filter, self.judge = session, gang, action, victims, judge
        self.most = most
        self.world = session.world
        self.recorded: list[list[Task]] = []

    def solve(self) -> bool:
        unit = tasks_to_place(self.gang.root)
        if not unit:
            return False
        for generator in (self._node_local, self._multi_node):
            self.recorded = []
            low, high, k = 0, len(unit) + 1, 1
            while True:
                if not self._probe(unit[:k], generator, keep=False):
                    high = k
                    break
                low = k
                if k == len(unit):
                    break
                k = min(2 * k, len(unit))
            while high - low > 1 and low < len(unit):
                middle = (low + high) // 2
                if self._probe(unit[:middle], generator, keep=False):
                    low = middle
                else:
                    high = middle
            if low and self._probe(unit, generator, keep=True):
                return True
        return False

    def _probe(self, unit: list[Task], generator: Callable[..., Iterator[list[list[Task]]]], *, keep: bool) -> bool:
        for victims in generator():
            mark = self.world.mark()
            before = dict(self.session.evicted)
            evicted = self._simulate(unit, victims)
            if evicted is None:
                self.world.rollback(mark)
                self.session.evicted = before
                continue
            if keep:
                return True
            self.recorded = evicted
            self.world.rollback(mark)
            self.session.evicted = before
            return True
        return False

    def _units(self) -> Iterator[list[Task]]:
        recorded = {task.uid for tasks in self.recorded for task in tasks}
        gangs = [
            gang
            for queue in self.world.queues.values()
            if not queue.children and not queue.error
            for _, gang in queue.active
            if gang is not self.gang and self.filter(gang)
        ]
        order = Order(self.session, gangs[: self.most], victims=True)
        while (gang := order.pop()) is not None:
            left = order.left[id(gang)]
            unit = tasks_to_evict(gang.root, left)
            if any(task.uid in recorded for task in unit):
                for tasks in left.values():
                    tasks[:] = [task for task in tasks if task.uid not in recorded]
            else:
                for tasks in left.values():
                    tasks[:] = [task for task in tasks if task not in unit]
                yield unit
            if any(left.values()):
                order.push(gang)

    def _node_local(self) -> Iterator[list[list[Task]]]:
        if self.recorded:
            yield []
        taken: list[list[Task]] = []
        for unit in self._units():
            taken.append(unit)
            latest = unit[-1].gang
            assert latest is not None
            names = sorted({t.node.name for leaf in latest.root.leaves() for _, t in leaf.active if t.node is not None})
            seen: set[tuple[str, ...]] = set()
            for name in names:
                chosen = [tasks for tasks in taken if any(t.node is not None and t.node.name == name for t in tasks)]
                key = tuple(sorted(task.uid for tasks in chosen for task in tasks))
                if chosen and key not in seen:
                    seen.add(key)
                    yield chosen

    def _multi_node(self) -> Iterator[list[list[Task]]]:
        if self.recorded:
            yield []
        taken: list[list[Task]] = []
        for unit in self._units():
            taken.append(unit)
            yield from self._top_nodes(taken)

    def _top_nodes(self, taken: list[list[Task]]) -> Iterator[list[list[Task]]]:
        first: dict[str, int] = {}
        room: dict[str, float] = {}
        flat = [task for tasks in taken for task in tasks]
        gone = flat + [task for tasks in self.recorded for task in tasks]
        for number, task in enumerate(flat):
            if task.node is not None:
                first.setdefault(task.node.name, number)
        wanted = demand(tasks_to_place(self.gang.root))[2]
        smallest = min(task.charge[2] for task in tasks_to_place(self.gang.root))
        for name in first:
            node = self.world.nodes[name]
            parts = sum(GPU - d.used_later for d in node.devices.values() if d.users_later)
            room[name] = node.later[GPU_COLUMN] * GPU + parts
            room[name] += sum(t.charge[2] for t in gone if t.node is node)
        names = sorted((n for n in first if room[n] >= smallest), key=lambda n: (room[n], first[n]))
        others = 0
        for node in self.world.nodes.values():
            if node.name not in first:
                others += node.later[GPU_COLUMN] * GPU
                others += sum(t.charge[2] for tasks in self.recorded for t in tasks if t.node is node)
        k, covered = 0, others
        while covered < wanted and k < len(names):
            covered += int(room[names[k]])
            k += 1
        if covered < wanted:
            return
        for count in range(max(k, 1), len(names) + 1):
            picked = set(names[:count])
            yield [tasks for tasks in taken if any(t.node is not None and t.node.name in picked for t in tasks)]

    def _simulate(self, unit: list[Task], chosen: list[list[Task]]) -> list[list[Task]] | None:
        """Evict, then place winner and victims in queue order; the units that stay evicted or move, or None."""
        session, world = self.session, self.world
        groups = [*self.recorded, *chosen]
        if not groups:
            return None
        was = {}
        for tasks in groups:
            for task in tasks:
                was[task.uid] = (task.status, task.node, task.devices, task.zones)
                assert task.node is not None
                world.move(task, Status.PENDING, None, leaving=(task.node, task.devices))
        simulation = Simulation(session)
        gangs = {id(tasks[0].gang): tasks[0].gang for tasks in groups}
        gangs[id(self.gang)] = self.gang
        order = Order(session, [gang for gang in gangs.values() if gang is not None], victims=False)
        nodes = list(world.nodes.values())
        placed = False
        while (gang := order.pop()) is not None:
            if gang is self.gang:
                if not simulation.place_job(gang, unit, nodes, later=True):
                    return None
                placed = True
                continue
            more = tasks_to_place(gang.root)
            complete = more and all(task.uid in was for task in more)  # what waited before is not part of the trial
            if not complete or not simulation.place_job(gang, more, nodes, later=True):
                continue
            for task in more:
                status, node, names, zones = was[task.uid]
                if task.node is node and (task.devices == names):
                    world.move(task, status, node, names, zones=zones)
            if any(t.uid in was and t.node is None for leaf in gang.root.leaves() for _, t in leaf.pending):
                order.push(gang)
        if not placed:
            return None
        lost: list[tuple[Gang, list[Task]]] = []
        disturbed: list[list[Task]] = []
        for tasks in groups:
            gone = [task for task in tasks if task.node is None]
            touched = [task for task in tasks if task.node is None or task.leaving is not None]
            for task in gone:
                status, node, names, zones = was[task.uid]
                world.move(task, Status.RELEASING, node, names, zones=zones)
            counted = gone if session.policy.reclaim_may_consolidate or self.action == "consolidate" else touched
            if counted and tasks[0].gang is not None:
                lost.append((tasks[0].gang, counted))
            if touched:
                disturbed.append(tasks)
        if not self.judge(lost):
            return None
        for tasks in disturbed:
            for task in tasks:
                if task.status == Status.RELEASING or task.leaving is not None:
                    session.evicted[task.uid] = (task, self.action, f"{self.gang.namespace}/{self.gang.name}", "")
        return disturbed


# -- actions that evict ------------------------------------------------------------------------------------------------


def _each(session: Session, attempt: Callable[[Session, Gang], bool], *, only_preemptible: bool = False) -> None:
    gangs = [
        gang
        for gang in session.candidates()
        if session.now - gang.created >= gang.preemption_delay and (gang.preemptible or not only_preemptible)
    ]
    order = Order(session, gangs, victims=False)
    while (gang := order.pop()) is not None:
        attempt(session, gang)


def _within(allocated: Sequence[int], more: Sequence[int], bound: Sequence[int]) -> bool:
    return all(bound[i] == UNLIMITED or allocated[i] + more[i] <= bound[i] for i in range(3))


def reclaim(session: Session) -> None:
    _each(session, _reclaim)


def _reclaim(session: Session, gang: Gang) -> bool:
    queue = gang.queue
    assert queue is not None
    if queue is session.world.free_queue:
        return False
    asked = demand(tasks_to_place(gang.root))
    if not _within(queue.allocated, asked, queue.entitled):
        return False
    if not gang.preemptible and not _within(queue.fixed, asked, queue.quota):
        return False
    start = {q.name: list(q.allocated) for q in session.world.queues.values()}
    fixed = {q.name: list(q.fixed) for q in session.world.queues.values()}

    def candidate(victim: Gang) -> bool:
        other = victim.queue
        if other is queue or other is None or not victim.preemptible:
            return False
        protected = runtime(victim, session.now) < reclaim_min_runtime(other, queue, session.policy)
        if protected and not _elastic(victim):
            return False
        ours, theirs = levelled(queue, other)
        if not _within(ours.allocated, asked, ours.quota):
            return not _within(theirs.allocated, (0, 0, 0), theirs.share)
        under = False
        for i in range(3):
            if asked[i] <= 0 or theirs.quota[i] == UNLIMITED:
                continue
            if theirs.allocated[i] > theirs.quota[i]:
                return True
            under = under or theirs.allocated[i] < theirs.quota[i]
        return not under

    def judge(lost: list[tuple[Gang, list[Task]]]) -> bool:
        remaining: dict[str, list[int]] = {}
        involved: dict[str, set[int]] = {}
        asked_for = {i for i in range(3) if asked[i] > 0}
        for victim, tasks in lost:
            other = victim.queue
            assert other is not None
            if runtime(victim, session.now) < reclaim_min_runtime(other, queue, session.policy) and (
                sum(len(leaf.active) for leaf in victim.root.leaves()) < _smallest(victim.root)
            ):
                return False
            ours, theirs = levelled(queue, other)
            rest = remaining.setdefault(theirs.name, list(start[theirs.name]))
            over_share = not _within(rest, (0, 0, 0), theirs.share)
            over_quota = _within(start[ours.name], asked, ours.quota) and not _within(rest, (0, 0, 0), theirs.quota)
            if not over_share and not over_quota:
                return False
            amounts = demand(tasks)
            for level in other.path():
                left = remaining.setdefault(level.name, list(start[level.name]))
                for i in range(3):
                    left[i] -= amounts[i]
                involved.setdefault(level.name, set()).update(i for i in range(3) if amounts[i])
        for level in queue.path():
            have = remaining.get(level.name, start[level.name])
            for name in list(remaining):
                sibling = session.world.queues[name]
                if sibling.parent is not level.parent or sibling is level:
                    continue
                for i in involved[name] | asked_for:
                    ours_, theirs_ = level.entitled[i], sibling.entitled[i]
                    used = have[i] + asked[i]
                    mine = used / ours_ if ours_ else (float("inf") if used > 0 else 0.0)
                    other_ = remaining[name][i] / theirs_ if theirs_ else 0.0
                    if mine > 1 and theirs_ > 0 and mine * session.policy.saturation_multiplier >= other_:
                        return False
            if not gang.preemptible and not _within(fixed[level.name], asked, level.quota):
                return False
        return True

    return Search(session, gang, "reclaim", candidate, judge).solve()


def _elastic(gang: Gang) -> bool:
    """Whether more pods exist than are needed, running or not."""
    return any(sum(task.group is leaf for task in gang.tasks.values()) > leaf.minimum for leaf in gang.root.leaves())


def _smallest(group: Group) -> int:
    if not group.children:
        return group.minimum
    return sum(sorted(_smallest(child) for child in group.children)[: group.minimum])


def preempt(session: Session) -> None:
    _each(session, _preempt)


def _preempt(session: Session, gang: Gang) -> bool:
    queue = gang.queue
    assert queue is not None
    asked = demand(tasks_to_place(gang.root))
    if not gang.preemptible and any(not _within(level.fixed, asked, level.quota) for level in queue.path()):
        return False

    def candidate(victim: Gang) -> bool:
        if victim.queue is not queue or not victim.preemptible or victim.priority >= gang.priority:
            return False
        return _elastic(victim) or not preempt_protection(victim, session.policy, session.now)

    def judge(lost: list[tuple[Gang, list[Task]]]) -> bool:
        return not any(
            preempt_protection(victim, session.policy, session.now)
            and sum(len(leaf.active) for leaf in victim.root.leaves()) < _smallest(victim.root)
            for victim, _ in lost
        )

    return Search(session, gang, "preempt", candidate, judge).solve()


def consolidate(session: Session) -> None:
    if session.policy.max_consolidation_victims == 0:
        return
    if "spread" in (session.policy.gpu_placement, session.policy.cpu_placement):
        return
    _each(session, _consolidate, only_preemptible=True)


def _most(session: Session) -> int | None:
    allowed = session.policy.max_consolidation_victims
    return None if allowed < 0 else allowed + 1


def _consolidate(session: Session, gang: Gang) -> bool:
    free = 0
    for node in session.world.nodes.values():
        free += node.later[GPU_COLUMN] * GPU
        free += sum(GPU - d.used_later for d in node.devices.values() if d.users_later)
    unit = tasks_to_place(gang.root)
    if demand(unit)[2] > free:
        return False
    search = Search(
        session, gang, "consolidate", lambda victim: victim.preemptible, lambda lost: not lost, most=_most(session)
    )
    return search.solve()


STEPS: dict[str, Callable[[Session], None]] = {
    "allocate": allocate,
    "consolidate": consolidate,
    "reclaim": reclaim,
    "preempt": preempt,
}


@contextmanager
def deciding() -> Iterator[None]:
    """`cycle` decides by the naive scheduler."""
    steps = importlib.import_module("capstan.scheduling.cycle")._STEPS
    before = dict(steps)
    steps.update(STEPS)
    try:
        yield
    finally:
        steps.update(before)
