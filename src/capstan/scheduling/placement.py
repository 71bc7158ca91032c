"""Placing one task: which node is best, which shared devices or claims it takes there.

A `ShapeIndex` keeps the nodes that could take a shape in a heap, best first. It reads on in the ledger's log of
touched nodes and re-ranks only those, so that the next pod of a 512-pod gang costs a few heap operations and not a
pass over the cluster. Order of preference, as KAI's score plugins rank: preferred affinity, preferred topology, an
existing shared device, free now rather than later, CPU pods on nodes without GPUs, then binpack or spread. What KAI
does not score breaks ties: taints with `PreferNoSchedule`, constraints with `ScheduleAnyway`, the name.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Hashable, Iterable, Iterator, Mapping, Sequence
from heapq import heapify, heappop, heappush
from itertools import groupby
from operator import itemgetter
from typing import Final, Generic, TypeVar, cast

from capstan.allocation import Inventory
from capstan.scheduling import devices, numa, verdicts, volumes
from capstan.scheduling.amounts import CPU_COLUMN, GPU, GPU_COLUMN, Amounts
from capstan.scheduling.filters import (
    alike_by,
    company_score,
    crowding,
    dynamic_reason,
    needs_company,
    node_reason,
    preference,
    reluctance,
    spread_at,
)
from capstan.scheduling.model import Gang, Node, Status, Task, Zones
from capstan.scheduling.policy import Policy
from capstan.scheduling.queues import Exceeded, exceeded, over_product
from capstan.scheduling.shape import Shape
from capstan.scheduling.topology import ANYWHERE, Scope, slots
from capstan.scheduling.world import World

Rank = tuple[int, int, int, int, int, float, int, str, int, Node]
"""preference, topology, sharing, availability, kind, density, reluctance, name, version, node"""
_NAME: Final = 7
"""Where the part of a rank ends that says how good a node is."""
_node_of: Callable[[Rank], Node] = itemgetter(-1)
T = TypeVar("T")
_NONE: frozenset[str] = frozenset()
_MOST_KEPT = 1024
"""Indexes kept between cycles; beyond that all are made anew."""


def fits(shape: Shape, node: Node, *, later: bool) -> bool:
    """Whether the columns (and shared devices) of a node have room: later, or at once without breaking promises."""
    after, idle = node.later, node.later if later else node.idle
    for column, amount in shape.requests:
        if after[column] < amount or idle[column] < amount:
            return False
    if node.by_claims:
        return devices.claimable(shape, node, later=later)
    return shape.share is None or devices.pick(shape.share, node, later=later, pack=True) is not None


class ShapeIndex:
    """The nodes for one shape, best first: of `nodes` (None: the whole cluster), ranked by `boost` before all else.

    Nodes with GPUs of a product in `closed` are left out, and so are `shelved` ones until something changes there.
    """

    def __init__(
        self,
        world: World,
        policy: Policy,
        shape: Shape,
        nodes: Sequence[Node] | None = None,
        boost: Mapping[str, int] | None = None,
        closed: frozenset[str] = frozenset(),
    ) -> None:
        self.world, self.policy, self.shape, self.boost = world, policy, shape, boost or {}
        everything = world.nodes.values() if nodes is None else nodes
        self.layout = world.layout
        reporting = (world.nodes[name] for name in world.aligning) if shape.numa else ()
        self._most_zones = numa.most_zones(shape, reporting)
        suited = [node for node in everything if not node_reason(shape, node) and node.product not in closed]
        self.members = {node.name for node in suited}
        self.read = len(world.touched)
        self.heap: list[Rank] = [rank for node in suited if (rank := self._rank(node)) is not None]
        heapify(self.heap)
        self.shelved: dict[str, None] = {}
        """Nodes whose devices or zones do not do, latest last. They come back when they, or their devices, change."""
        self._freed = 0
        """How far the inventory's log of what became free has been read."""
        self._gang: Gang | None = None

    def _rank(self, node: Node) -> Rank | None:
        shape = self.shape
        if not fits(shape, node, later=True):
            return None
        availability = 0 if node.idle == node.later or fits(shape, node, later=False) else 1
        policy = self.policy
        sharing = kind = 0
        if shape.on_gpu:
            free = node.later[GPU_COLUMN] * GPU - node.lent_later  # whole devices: a shared one counts as taken
            if not node.capacity[GPU_COLUMN]:
                density = math.inf
            elif policy.gpu_placement == "binpack":
                density = float(free)
            else:
                density = -free / node.capacity[GPU_COLUMN]
            joining = shape.share if policy.gpu_placement == "binpack" else None
            if joining is not None and devices.joins(joining, node, self.world.inventory):
                sharing = -1
        else:
            kind = 1 if node.offers[2] else 0  # whole GPUs, MIG instances, or GPUs that claims reach
            free = node.later[CPU_COLUMN]
            if policy.cpu_placement == "binpack":
                density = float(free)
            else:
                density = -free / node.capacity[CPU_COLUMN] if node.capacity[CPU_COLUMN] else 0.0
        if self._most_zones:
            kind += 2 * numa.span(shape, node, self._most_zones)  # before the kind of node, and before density
        wished = -preference(shape, node) if shape.preferred_nodes else 0
        boost = -self.boost.get(node.name, 0) if self.boost else 0
        taints = reluctance(shape, node) if node.node_class.soft_taints else 0
        return (wished, boost, sharing, availability, kind, density, taints, node.name, node.version, node)

    def shelve(self, node: Node) -> None:
        """Leave the node out of `candidates`: what was refused there would be refused again.

        What the attempt itself changed and undid is no news.
        """
        self.shelved[node.name] = None
        if self.world.inventory is not None:
            _, self._freed = self.world.inventory.freed_since(self._freed)
        log = self.world.touched
        if all(log[at] is node for at in range(self.read, len(log))):
            self.read = len(log)

    def look_for(self, gang: Gang | None) -> None:
        """Bring back nodes where the gang holds claims since this cycle: for their own gang those can be exchanged."""
        if not self.shelved or gang is self._gang:
            return
        self._gang = gang
        if gang is not None:
            self._unshelve(task.node.name for task in gang.tasks.values() if task.held and task.node is not None)

    def _unshelve(self, names: Iterable[str]) -> None:
        for name in names:
            if name in self.shelved:
                del self.shelved[name]
                rank = self._rank(self.world.nodes[name])
                if rank is not None:
                    heappush(self.heap, rank)

    def _catch_up(self) -> None:
        world = self.world
        if world.inventory is not None:
            freed, self._freed = world.inventory.freed_since(self._freed)
            if self.shelved and (freed is None or freed):
                self._unshelve([name for name in self.shelved if freed is None or name in freed])
        log = world.touched
        behind = len(log) - self.read
        if not behind:
            return
        fresh = (log[-1],) if behind == 1 else {id(node): node for node in log[self.read :]}.values()
        for node in fresh:
            if node.name in self.members:
                self.shelved.pop(node.name, None)
                rank = self._rank(node)
                if rank is not None:
                    heappush(self.heap, rank)
        self.read = len(log)
        if len(self.heap) > 4 * len(self.members) + 1000:
            self.heap = [rank for rank in self.heap if rank[8] == rank[9].version]
            heapify(self.heap)

    def best(self) -> Rank | None:
        """The entry of the best node by columns, or None when no node has room."""
        self._catch_up()
        heap = self.heap
        while heap:
            top = heap[0]
            if top[8] == top[9].version:
                return top
            heappop(heap)
        return None

    def candidates(self) -> Iterator[Rank]:
        """The entries of all nodes with room that are not shelved, best first."""
        self._catch_up()
        heap, taken = self.heap, []
        try:
            while heap:
                top = heappop(heap)
                if top[8] == top[9].version:
                    taken.append(top)
                    yield top
        finally:
            for rank in taken:
                if rank[_NAME] not in self.shelved:
                    heappush(heap, rank)


class Tally(Generic[T]):
    """A value for every node, kept up to date by reading on in the log of touched nodes.

    `change` is told of every value that is new or different; the old one is None for a node's first.
    """

    def __init__(self, world: World, measure: Callable[[Node], T], change: Callable[[T | None, T], None]) -> None:
        self.world, self.layout, self._measure, self._change = world, world.layout, measure, change
        self.read = len(world.touched)
        self._values = {node.name: measure(node) for node in world.nodes.values()}
        for value in self._values.values():
            change(None, value)

    def catch_up(self) -> None:
        log = self.world.touched
        if self.read == len(log):
            return
        self._measure_anew({node.name: node for node in log[self.read :]}.values())
        self.read = len(log)

    def _measure_anew(self, nodes: Iterable[Node]) -> None:
        for node in nodes:
            if node.name in self._values:
                value, old = self._measure(node), self._values[node.name]
                if value != old:
                    self._change(old, value)
                    self._values[node.name] = value


class Sum(Tally[int]):
    """The sum over all nodes."""

    def __init__(self, world: World, measure: Callable[[Node], int]) -> None:
        self._total = 0
        super().__init__(world, measure, self._add)

    def _add(self, old: int | None, new: int) -> None:
        self._total += new - (old or 0)

    def total(self) -> int:
        self.catch_up()
        return self._total


class Bound(Sum):
    """A sum over devices that is never too low: it follows what becomes free, and what is taken on touched nodes."""

    def __init__(self, world: World, inventory: Inventory, measure: Callable[[Node], int]) -> None:
        self._inventory = inventory
        _, self._freed = inventory.freed_since(0)
        super().__init__(world, measure)

    def catch_up(self) -> None:
        freed, self._freed = self._inventory.freed_since(self._freed)
        nodes = self.world.nodes
        if freed is None or freed:
            self._measure_anew(nodes.values() if freed is None else [nodes[name] for name in freed if name in nodes])
        super().catch_up()


class Histogram(Tally[str]):
    """How many nodes have which value."""

    def __init__(self, world: World, measure: Callable[[Node], str]) -> None:
        self._counts: Counter[str] = Counter()
        super().__init__(world, measure, self._recount)

    def _recount(self, old: str | None, new: str) -> None:
        if old is not None:
            self._counts[old] -= 1
        self._counts[new] += 1

    def counts(self) -> dict[str, int]:
        self.catch_up()
        return verdicts.by_frequency(self._counts)


class Domains(Tally[tuple[str | None, int]]):
    """How many pods the domains of a topology have, by name; measured are a node's domain and its pods."""

    def __init__(self, world: World, measure: Callable[[Node], tuple[str | None, int]]) -> None:
        self._counts: dict[str, int] = {}
        super().__init__(world, measure, self._recount)

    def _recount(self, old: tuple[str | None, int] | None, new: tuple[str | None, int]) -> None:
        domain, pods = new
        if domain is not None:
            self._counts[domain] = self._counts.get(domain, 0) + pods - (old[1] if old is not None else 0)

    def counts(self) -> Mapping[str, int]:
        self.catch_up()
        return self._counts


def _free_gpus(node: Node) -> int:
    parts = sum(GPU - device.used_later for device in node.devices.values() if device.users_later)
    return max(0, node.later[GPU_COLUMN] * GPU - node.lent_later) + parts


def _by_memory(shape: Shape) -> bool:
    """Whether only the node says what a pod costs its queue."""
    return shape.share is not None and shape.share.memory > 0


K = TypeVar("K", ShapeIndex, Sum, Bound, Histogram, Domains)


class Placer:
    """Places tasks in the World. One per cycle; its indexes live as long as the World's layout."""

    def __init__(self, world: World, policy: Policy) -> None:
        self.world, self.policy = world, policy
        self.skip = 0
        """How many preferred alternatives of claims are left out, so that a whole gang fits."""
        self.said: dict[str, str] = {}
        """Pod uid -> why its claims could not be allocated on the node tried last."""
        self.within_share = False
        """Whether a queue may not go beyond its share of a GPU product: set while others are evicted for it."""
        self.barred: Callable[[Task, Node], bool] | None = None
        """Whether a node is reserved for others; None: no node is."""
        self._lasts = True
        """Whether the node tried last would refuse equal tasks as well, until it or its devices change."""
        self._kept: dict[object, ShapeIndex | Sum | Histogram | Domains] = {}
        self._largest: tuple[int, list[int]] = (-1, [])
        """By column: the most that one node has, as of a layout."""

    @classmethod
    def of(cls, world: World, policy: Policy) -> Placer:
        """The placer of the World, with the indexes of earlier cycles as long as the policy stays the same."""
        found = world.memo
        if not isinstance(found, Placer) or found.policy != policy:
            found = world.memo = cls(world, policy)
        return found

    def _keep(self, name: object, make: Callable[[], K]) -> K:
        """A kept index, made anew when it is missing or older than the layout of the cluster."""
        found = self._kept.get(name)
        if found is None or found.layout != self.world.layout or found.read > len(self.world.touched):
            if len(self._kept) >= _MOST_KEPT:
                self._kept.clear()
            made = make()
            self._kept[name] = made
            return made
        return cast(K, found)

    def slots(self, shape: Shape) -> Sum:
        """How many pods of a shape every node takes later, by columns."""
        return self._keep(("slots", shape.number), lambda: Sum(self.world, lambda node: slots(shape, node)))

    def claim_slots(self, task: Task) -> tuple[Hashable, int] | None:
        """How many tasks of the shape and with claims like the task's own the cluster takes at most, by columns and
        by counting devices, and what such tasks have in common. None where counting devices tells nothing."""
        world, shape, inventory = self.world, task.shape, self.world.inventory
        own = devices.own_claims(world, task, self.skip) if task.claims else None
        if own is None or inventory is None:
            return None
        name = (shape.number, own)
        asked = devices.counted(world, task)
        if not asked:
            return None

        def most(node: Node) -> int:
            room = slots(shape, node)
            if not room:
                return 0
            return min(room, devices.slots(inventory, asked, node, vacating=world.vacating(node)))

        return name, self._keep(("claims", *name), lambda: Bound(world, inventory, most)).total()

    def largest(self) -> list[int]:
        """By column: the most that one node has when it is empty."""
        layout = self.world.layout
        if self._largest[0] != layout:
            capacities = [node.capacity for node in self.world.nodes.values()]
            self._largest = (layout, [max(column) for column in zip(*capacities, strict=True)])
        return self._largest[1]

    @property
    def free_gpus(self) -> Sum:
        """Millionths of devices that are free later."""
        return self._keep("free GPUs", lambda: Sum(self.world, _free_gpus))

    def reasons(self, shape: Shape) -> Histogram:
        """Why nodes do not take a pod of the shape now, by columns and node rules."""

        def reason(node: Node) -> str:
            return node_reason(shape, node) or verdicts.short_of(self.world, shape, node) or verdicts.ROOM

        return self._keep(("reasons", shape.number), lambda: Histogram(self.world, reason))

    def index(self, shape: Shape, scope: Scope, without: frozenset[str], alike: Hashable = None) -> ShapeIndex:
        """The nodes of a scope for a shape, `without` some GPU products. Only those over the whole cluster outlive the
        scope. `alike`: what tasks of the shape have in common that one node refuses all of; None: nothing."""
        name = ("index", shape.number, without, alike)
        if scope.nodes is None and not scope.boost:
            return self._keep(name, lambda: ShapeIndex(self.world, self.policy, shape, closed=without))
        found = scope.indexes.get(name)
        if not isinstance(found, ShapeIndex):
            found = ShapeIndex(self.world, self.policy, shape, scope.nodes, scope.boost, without)
            scope.indexes[name] = found
        return found

    def closed(self, task: Task) -> dict[str, Exceeded]:
        """The GPU products of which the task's queue cannot have what the task asks for, and why."""
        found: dict[str, Exceeded] = {}
        gang, products = task.gang, self.world.products
        if not products or gang is None or gang.queue is None:
            return found
        # How much a claim or a share in MiB takes shows on the node; here it is any amount at all.
        gpus = min(1, task.charge[2]) if task.claims or _by_memory(task.shape) else task.charge[2]
        for product in products if gang.queue.pool else {p for level in gang.queue.path() for p in level.gpu_types}:
            bound = over_product(gang, products[product], gpus, within_share=self.within_share)
            if bound is not None:
                found[product] = bound
        return found

    def place(self, task: Task, *, later: bool, scope: Scope = ANYWHERE) -> Node | None:
        """Put the task on the best node: allocated when it is free, else (or with `later`) pipelined. None: no room."""
        if task.error:
            return None
        without = frozenset(self.closed(task)) if self.world.products else _NONE
        simple = not (
            needs_company(self.world, task)
            or task.implied is not None
            or (task.shape.numa and self.world.aligning)
            or _by_memory(task.shape)
        )
        alike = None if simple else self._alike(task, later)
        index = self.index(task.shape, scope, without, alike)
        if task.nominated in index.members and self.try_node(task, self.world.nodes[task.nominated], later=later):
            return self.world.nodes[task.nominated]
        if simple and self.barred is None:
            top = index.best()
            if top is None:
                return None
            self._put(task, top[9], wait=later or top[3] > 0, charge=self._charge(task, top[9]))
            return top[9]
        index.look_for(task.gang)
        ranks = index.candidates()
        for node in self._in_company(task, ranks, later) if task.shape.company else map(_node_of, ranks):
            self._lasts = True
            if self.try_node(task, node, later=later):
                return node
            if alike is not None and self.barred is None and self._lasts:
                index.shelve(node)
        if task.claims and task.uid not in self.said and index.shelved:
            # Refused everywhere for its likes; to be told why, it asks once for itself.
            last = self.world.nodes[next(reversed(index.shelved))]
            return last if self.try_node(task, last, later=later) else None
        return None

    def _alike(self, task: Task, later: bool) -> Hashable:
        """What the task has in common with others of its shape, of which a node refuses all if it refuses one; None if
        other pods on the node, or claims that are not its own, have a say in it."""
        if task.shape.company or self.world.guards or _by_memory(task.shape):
            return None
        own = devices.own_claims(self.world, task, self.skip) if task.claims or task.implied is not None else ()
        return None if own is None else (later, own)

    def _domains(self, task: Task, at: int, later: bool) -> Domains:
        """The domains of the task's spread constraint number `at`."""
        constraint = task.shape.spread[at]
        key = ("spread", task.shape.number, at, task.namespace, alike_by(task, constraint), later)
        return self._keep(key, lambda: Domains(self.world, lambda node: spread_at(task, constraint, node, later=later)))

    def _in_company(self, task: Task, candidates: Iterable[Rank], later: bool) -> Iterator[Node]:
        """The nodes in the order in which other pods make them better or worse; as they come if none does."""
        shape, world = task.shape, self.world
        preferred = any(
            affinity is not None and affinity.preferred_during_scheduling_ignored_during_execution
            for affinity in (shape.pod_affinity, shape.pod_anti_affinity)
        )
        scores: dict[str, int] = {}
        if preferred:
            candidates = list(candidates)
            scores = {rank[_NAME]: company_score(world, task, rank[-1], later=later) for rank in candidates}
            candidates = sorted(candidates, key=lambda rank: -scores[rank[_NAME]])
        counted = [
            (constraint, self._domains(task, at, later).counts())
            for at, constraint in enumerate(shape.spread)
            if constraint.when_unsatisfiable == "ScheduleAnyway"
        ]
        if not counted:
            yield from (rank[-1] for rank in candidates)
            return
        for _, equals in groupby(candidates, key=lambda rank: (scores.get(rank[_NAME], 0), rank[:_NAME])):
            yield from sorted((rank[-1] for rank in equals), key=lambda node: crowding(counted, node))

    def try_node(self, task: Task, node: Node, *, later: bool) -> bool:
        """Place the task on this node if everything allows it: columns, company, claims, NUMA zones."""
        shape = task.shape
        if task.error or node_reason(shape, node) or not fits(shape, node, later=True):
            return False
        if self.barred is not None and self.barred(task, node):
            return False
        gang = task.gang
        if _by_memory(task.shape) and gang is not None and exceeded(gang, self.world.charge(task, node)) is not None:
            return False
        wait = later or not fits(shape, node, later=False)
        if needs_company(self.world, task):
            if dynamic_reason(self.world, task, node, later=True):
                return False
            wait = wait or bool(dynamic_reason(self.world, task, node, later=False))
        zones: Zones | None = ()
        if shape.numa and node.zones:
            zones = numa.align(shape, node)
            if zones is None:
                return False
        mark = self.world.mark()
        if devices.uses_claims(task, node):
            granted = devices.allocate(self.world, self.policy, task, node, later=wait, skip=self.skip)
            if isinstance(granted, devices.Refused):
                self.said[task.uid] = f"on node {node.name}: {granted.why}"
                self._lasts = granted.lasts
                return False
            wait = wait or granted.later
        charge = self._charge(task, node)
        if charge is not None and self._over_bounds(task, node, charge):
            self.world.rollback(mark)
            self._lasts = False
            return False
        if task.volumes:
            chosen = volumes.choose(self.world, task, node, later=wait)
            assert not isinstance(chosen, str), "judged above"
            task.volume_choices = chosen
        self._put(task, node, wait=wait, charge=charge, zones=zones or ())
        return True

    def _charge(self, task: Task, node: Node) -> Amounts | None:
        """What the task costs its queue on the node, with what it was granted there; None: as while it waited."""
        usual = not (self.world.products or task.claims or _by_memory(task.shape))
        return None if usual else self.world.charge(task, node)

    def _over_bounds(self, task: Task, node: Node, charge: Amounts) -> bool:
        """Whether what the task takes on the node, or has been granted there, breaks a bound of its queues: one on
        products, or any if it was granted more than it was counted with (`firstAvailable`, `All`)."""
        gang = task.gang
        if gang is None:
            return False
        bound = exceeded(gang, charge) if task.claims and charge[2] > task.charge[2] else None
        if bound is not None:
            self.said[task.uid] = f"on node {node.name}: {verdicts.over_bound(bound)}"
            return True
        return any(
            over_product(gang, place, charge[place], within_share=self.within_share)
            for place in self.world.products.values()
        )

    def _put(self, task: Task, node: Node, *, wait: bool, charge: Amounts | None, zones: Zones = ()) -> None:
        shape = task.shape
        names: tuple[str, ...] = ()
        if shape.share is not None and not node.by_claims:
            pack = (self.policy.shared_gpu_placement or self.policy.gpu_placement) == "binpack"
            names = devices.pick(shape.share, node, later=wait, pack=pack) or ()
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
