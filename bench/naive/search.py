"""Who has to make room: ever more victims, each probe simulated from scratch."""

from __future__ import annotations

from collections.abc import Callable, Iterator

from bench.naive.gangs import demand, tasks_to_evict, tasks_to_place
from bench.naive.order import Order
from bench.naive.placing import Simulation
from capstan.scheduling.amounts import GPU, GPU_COLUMN
from capstan.scheduling.model import Gang, Status, Task
from capstan.scheduling.session import Session

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
