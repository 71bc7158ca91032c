"""Placing one task: which node is best, which shared devices or claims it takes there.

A `ShapeIndex` keeps the nodes that could take a shape in a heap, best first. It reads on in the ledger's log of
touched nodes and re-ranks only those, so that the next pod of a 512-pod gang costs a few heap operations and not a
pass over the cluster. Order of preference, as KAI's score plugins rank: preferred affinity, preferred topology, an
existing shared device, free now rather than later, CPU pods on nodes without GPUs, then binpack or spread, the name.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from heapq import heapify, heappop, heappush

from capstan.scheduling import devices, numa
from capstan.scheduling.filters import company_score, dynamic_reason, needs_company, node_reason, preference
from capstan.scheduling.model import CPU_COLUMN, GPU, GPU_COLUMN, Node, Shape, Status, Task
from capstan.scheduling.policy import Policy
from capstan.scheduling.topology import slots
from capstan.scheduling.world import World

Rank = tuple[int, int, int, int, int, float, str, int, Node]
"""preference, topology, sharing, availability, kind, density, name, version, node"""


def fits(shape: Shape, node: Node, *, later: bool) -> bool:
    """Whether the columns (and shared devices) of a node have room: later, or at once without breaking promises."""
    after, idle = node.later, node.later if later else node.idle
    for column, amount in shape.requests:
        if after[column] < amount or idle[column] < amount:
            return False
    if shape.share is not None and not node.by_claims:
        return devices.pick(shape.share, node, later=later, pack=True) is not None
    return True


class ShapeIndex:
    """The nodes for one shape, best first: of `nodes` (None: the whole cluster), ranked by `boost` before all else."""

    def __init__(
        self,
        world: World,
        policy: Policy,
        shape: Shape,
        nodes: Sequence[Node] | None = None,
        boost: Mapping[str, int] | None = None,
    ) -> None:
        self.world, self.policy, self.shape, self.boost = world, policy, shape, boost or {}
        everything = world.nodes.values() if nodes is None else nodes
        self.layout = world.layout
        suited = [node for node in everything if not node_reason(shape, node)]
        self.members = {node.name for node in suited}
        self.read = len(world.touched)
        self.heap: list[Rank] = [rank for node in suited if (rank := self._rank(node)) is not None]
        heapify(self.heap)

    def _rank(self, node: Node) -> Rank | None:
        shape = self.shape
        if not fits(shape, node, later=True):
            return None
        availability = 0 if node.idle == node.later or fits(shape, node, later=False) else 1
        policy = self.policy
        sharing = kind = 0
        if shape.on_gpu:
            whole = node.later[GPU_COLUMN]
            free = whole * GPU + sum(GPU - d.used_later for d in node.devices.values() if d.users_later)
            if not node.capacity[GPU_COLUMN]:
                density = 0.0
            elif policy.gpu_placement == "binpack":
                density = float(free)
            else:
                density = -free / node.capacity[GPU_COLUMN]
            if shape.share is not None and policy.gpu_placement == "binpack" and devices.joins(shape.share, node):
                sharing = -1
        else:
            kind = 1 if node.capacity[GPU_COLUMN] else 0
            free = node.later[CPU_COLUMN]
            if policy.cpu_placement == "binpack":
                density = float(free)
            else:
                density = -free / node.capacity[CPU_COLUMN] if node.capacity[CPU_COLUMN] else 0.0
        wished = -preference(shape, node) if shape.preferred_nodes else 0
        boost = -self.boost.get(node.name, 0) if self.boost else 0
        return (wished, boost, sharing, availability, kind, density, node.name, node.version, node)

    def _catch_up(self) -> None:
        world = self.world
        log = world.touched
        behind = len(log) - self.read
        if not behind:
            return
        fresh = (log[-1],) if behind == 1 else {id(node): node for node in log[self.read :]}.values()
        for node in fresh:
            if node.name in self.members:
                rank = self._rank(node)
                if rank is not None:
                    heappush(self.heap, rank)
        self.read = len(log)

    def best(self) -> Rank | None:
        """The entry of the best node by columns, or None when no node has room."""
        self._catch_up()
        heap = self.heap
        while heap:
            top = heap[0]
            if top[7] == top[8].version:
                return top
            heappop(heap)
        return None

    def candidates(self) -> Iterator[Node]:
        """All nodes with room, best first."""
        self._catch_up()
        heap, taken = self.heap, []
        try:
            while heap:
                top = heappop(heap)
                if top[7] == top[8].version:
                    taken.append(top)
                    yield top[8]
        finally:
            for rank in taken:
                heappush(heap, rank)


class SlotCount:
    """How many pods of a shape all nodes together take later, by columns; kept up to date like a ShapeIndex."""

    def __init__(self, world: World, shape: Shape) -> None:
        self.world, self.shape, self.layout = world, shape, world.layout
        self.read = len(world.touched)
        self._slots = {node.name: slots(shape, node) for node in world.nodes.values()}
        self._total = sum(self._slots.values())

    def total(self) -> int:
        log = self.world.touched
        for node in {id(n): n for n in log[self.read :]}.values():
            count = slots(self.shape, node)
            self._total += count - self._slots[node.name]
            self._slots[node.name] = count
        self.read = len(log)
        return self._total


class Placer:
    """Places tasks in the World. One per cycle; its indexes live as long as the World's layout."""

    def __init__(self, world: World, policy: Policy) -> None:
        self.world, self.policy = world, policy
        self._indexes: dict[object, ShapeIndex] = {}
        self._slots: dict[int, SlotCount] = {}

    def slots(self, shape: Shape) -> SlotCount:
        found = self._slots.get(shape.number)
        if found is None or found.layout != self.world.layout or found.read > len(self.world.touched):
            found = self._slots[shape.number] = SlotCount(self.world, shape)
        return found

    def index(
        self,
        shape: Shape,
        nodes: Sequence[Node] | None = None,
        boost: Mapping[str, int] | None = None,
        key: object = None,
    ) -> ShapeIndex:
        """The index of a shape, over the whole cluster or over `nodes` (`key` then names that set)."""
        name = (shape.number, key)
        found = self._indexes.get(name)
        if found is None or found.layout != self.world.layout or found.read > len(self.world.touched):
            found = self._indexes[name] = ShapeIndex(self.world, self.policy, shape, nodes, boost)
        return found

    def place(
        self,
        task: Task,
        *,
        later: bool,
        nodes: Sequence[Node] | None = None,
        boost: Mapping[str, int] | None = None,
        key: object = None,
    ) -> Node | None:
        """Put the task on the best node: allocated when it is free, else (or with `later`) pipelined. None: no room."""
        if task.shape.error:
            return None
        index = self.index(task.shape, nodes, boost, key)
        if task.nominated in index.members and self.try_node(task, self.world.nodes[task.nominated], later=later):
            return self.world.nodes[task.nominated]
        plain = not (needs_company(self.world, task) or task.implied is not None or task.shape.numa)
        if plain:
            top = index.best()
            if top is None:
                return None
            self._put(task, top[8], wait=later or top[3] > 0)
            return top[8]
        for node in self._in_company(task, index.candidates(), later):
            if self.try_node(task, node, later=later):
                return node
        return None

    def _in_company(self, task: Task, candidates: Iterable[Node], later: bool) -> Iterable[Node]:
        shape = task.shape
        preferred = any(
            affinity is not None and affinity.preferred_during_scheduling_ignored_during_execution
            for affinity in (shape.pod_affinity, shape.pod_anti_affinity)
        )
        if not preferred:
            yield from candidates
            return
        yield from sorted(candidates, key=lambda node: -company_score(self.world, task, node, later=later))

    def try_node(self, task: Task, node: Node, *, later: bool) -> bool:
        """Place the task on this node if everything allows it: columns, company, claims, NUMA zones."""
        shape = task.shape
        if shape.error or node_reason(shape, node) or not fits(shape, node, later=True):
            return False
        wait = later or not fits(shape, node, later=False)
        if needs_company(self.world, task):
            if dynamic_reason(self.world, task, node, later=True):
                return False
            wait = wait or bool(dynamic_reason(self.world, task, node, later=False))
        zones: tuple[str, ...] | None = ()
        if shape.numa and node.zones:
            zones = numa.align(shape, node)
            if zones is None:
                return False
        if devices.uses_claims(task, node):
            granted = devices.allocate(self.world, self.policy, task, node, later=wait)
            if granted is None:
                return False
            wait = wait or granted.later
        self._put(task, node, wait=wait, zones=zones or ())
        return True

    def _put(self, task: Task, node: Node, *, wait: bool, zones: tuple[str, ...] = ()) -> None:
        shape = task.shape
        names: tuple[str, ...] = ()
        charge = None
        if shape.share is not None and not node.by_claims:
            pack = (self.policy.shared_gpu_placement or self.policy.gpu_placement) == "binpack"
            names = devices.pick(shape.share, node, later=wait, pack=pack) or ()
            if shape.share.memory:
                charge = self.world.charge(task, node)
        leaving = task.leaving
        if task.status == Status.RELEASING and task.node is not None:
            leaving = (task.node, task.devices)
        self.world.move(
            task,
            Status.PIPELINED if wait else Status.ALLOCATED,
            node,
            names,
            leaving=leaving,
            charge=charge,
            zones=zones,
        )
