"""Topology constraints: which sets of nodes a group of tasks may be placed on together, best first."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

from capstan.api.scheduling import TopologyLevel
from capstan.scheduling.amounts import GPU, GPU_COLUMN, PODS_COLUMN
from capstan.scheduling.filters import node_reason
from capstan.scheduling.model import Levels, Node, Task
from capstan.scheduling.shape import Shape
from capstan.scheduling.world import World

_NONE: Mapping[int, int] = {}
_NOTHING_FREE = 1000.0
"""Tightness of a domain that has none of a resource."""


@dataclass(frozen=True, slots=True)
class Scope:
    """Where tasks may go: a set of nodes (None: anywhere), ranked by `boost`."""

    nodes: Sequence[Node] | None = None
    boost: dict[str, int] = field(default_factory=dict)
    indexes: dict[object, object] = field(default_factory=dict)
    """Placement indexes over these nodes; they live as long as the scope."""


ANYWHERE = Scope()


def contradiction(world: World, levels: Levels) -> str:
    """What is wrong with a constraint itself; empty when nothing is."""
    if not levels.topology:
        return f"the level {levels.required or levels.preferred} needs the topology it belongs to"
    known = world.topologies.get(levels.topology)
    if known is None:
        return f"topology {levels.topology} does not exist"
    for name in (levels.required, levels.preferred):
        if name and _position(known, name) < 0:
            names = ", ".join(level.alias or level.node_label for level in known)
            return f"topology {levels.topology} has no level {name}; its levels are {names}"
    if levels.required and levels.preferred and _position(known, levels.preferred) < _position(known, levels.required):
        return f"the preferred level {levels.preferred} lies above the required level {levels.required}"
    return ""


def _position(levels: Sequence[TopologyLevel], name: str) -> int:
    """Where the level with that node label or alias stands, counted from the top; -1 for none."""
    return next((i for i, level in enumerate(levels) if name and name in (level.node_label, level.alias)), -1)


def scopes(
    world: World, levels: Levels, tasks: Sequence[Task], active: Iterable[Task], within: Scope
) -> Iterator[Scope]:
    """The domains that could hold all `tasks`: from the preferred level up to the required one, tightest first.

    Without a required level the last scope is everything that carries the topology's labels. Nodes that lack one are
    outside (KAI). Tasks that are already placed (`active`) pin the required domain.
    """
    if contradiction(world, levels):
        return
    known = world.topologies[levels.topology]
    labels = [level.node_label for level in known]
    pool = world.nodes.values() if within.nodes is None else within.nodes
    placed = {task.node.name for task in active if task.node is not None}
    nodes = [node for node in pool if all(label in node.labels for label in labels)]
    required = _position(known, levels.required)
    if placed and required >= 0:
        pinned = {_domain(world.nodes[name], labels, required) for name in placed if name in world.nodes}
        if pinned:
            nodes = [node for node in nodes if _domain(node, labels, required) in pinned]
    lowest = _position(known, levels.preferred) if levels.preferred else required
    room = _Room(tasks, nodes)
    tree = _Tree(nodes, labels, room)
    for level in range(lowest, max(required, 0) - 1, -1):
        for members in tree.level(level):
            if room.fits(members):
                boost = _boost(tree, labels, lowest, members) if level < lowest else {}
                yield Scope(members, _merged(within.boost, boost))
    if required < 0 and room.fits(nodes):
        yield Scope(nodes, _merged(within.boost, _boost(tree, labels, lowest, nodes) if lowest >= 0 else {}))


@dataclass(frozen=True, slots=True)
class Roomiest:
    """The domain of the required level that could take most of some tasks that are alike, by columns alone."""

    level: str
    domains: int
    """So many there are to choose from."""
    slots: int


def roomiest(world: World, levels: Levels, tasks: Sequence[Task], active: Iterable[Task]) -> Roomiest | None:
    """What decides for tasks that have to be in one domain; None where there is no such level or they are not alike."""
    known = world.topologies[levels.topology]
    labels, required = [level.node_label for level in known], _position(known, levels.required)
    nodes = labelled(world, levels)
    room = _Room(tasks, nodes)
    if required < 0 or room.uniform is None:
        return None
    pinned = {_domain(task.node, labels, required) for task in active if task.node is not None}
    found: Counter[tuple[str, ...]] = Counter()
    for node in nodes:
        domain = _domain(node, labels, required)
        if not pinned or domain in pinned:
            found[domain] += room.slots[node.name]
    return Roomiest(known[required].alias or labels[required], len(found), max(found.values(), default=0))


def labelled(world: World, levels: Levels) -> list[Node]:
    """The nodes that carry all labels of the topology; others are outside of it."""
    labels = [level.node_label for level in world.topologies[levels.topology]]
    return [node for node in world.nodes.values() if all(label in node.labels for label in labels)]


def _boost(tree: _Tree, labels: Sequence[str], level: int, within: Sequence[Node]) -> dict[str, int]:
    """Rank the domains of the preferred level so that the roomiest is filled first and the fewest are used."""
    inside = {node.name for node in within}
    return {
        node.name: rank for rank, members in enumerate(tree.level(level)) for node in members if node.name in inside
    }


def _merged(outer: dict[str, int], inner: dict[str, int]) -> dict[str, int]:
    if not outer:
        return inner
    return {name: outer.get(name, 0) * 10_000 + rank for name, rank in inner.items()} if inner else outer


def _domain(node: Node, labels: Sequence[str], level: int) -> tuple[str, ...]:
    return tuple(node.labels.get(label, "") for label in labels[: level + 1])


class _Tree:
    """The domains of a topology, level by level; below every domain the tightest for the tasks comes first."""

    def __init__(self, nodes: Sequence[Node], labels: Sequence[str], room: _Room) -> None:
        self.labels, self.room = labels, room
        self._levels = [[list(nodes)]]

    def level(self, level: int) -> list[list[Node]]:
        while len(self._levels) <= level + 1:
            below: list[list[Node]] = []
            label = self.labels[len(self._levels) - 1]
            for members in self._levels[-1]:
                found: dict[str, list[Node]] = {}
                for node in members:
                    found.setdefault(node.labels[label], []).append(node)
                ordered = sorted(found.items(), key=lambda item: (-self.room.tightness(item[1]), item[0]))
                below += [inside for _, inside in ordered]
            self._levels.append(below)
        return self._levels[level + 1]


class _Room:
    """How much of the tasks a set of nodes could take, by columns alone."""

    def __init__(self, tasks: Sequence[Task], nodes: Iterable[Node]) -> None:
        self.tasks = tasks
        shapes = list({task.shape.number: task.shape for task in tasks}.values())
        self.uniform = shapes[0] if len(shapes) == 1 else None
        self.needs: dict[int, int] = {}
        for task in tasks:
            for column, amount in task.shape.requests:
                self.needs[column] = self.needs.get(column, 0) + amount
        if self.uniform is not None:
            self.slots = {node.name: slots(self.uniform, node) for node in nodes}
        else:
            self.slots = {node.name: int(any(not node_reason(shape, node) for shape in shapes)) for node in nodes}
        self._wanted = [(column, amount) for column, amount in self.needs.items() if column != PODS_COLUMN]
        shares = (task.shape.share for task in tasks)
        self._shared = sum(share.portion * share.devices for share in shares if share is not None)

    def fits(self, nodes: Sequence[Node]) -> bool:
        if self.uniform is not None:
            return sum(self.slots[node.name] for node in nodes) >= len(self.tasks)
        usable = [node for node in nodes if self.slots[node.name]]
        return all(sum(node.later[column] for node in usable) >= amount for column, amount in self.needs.items())

    def tightness(self, nodes: Sequence[Node]) -> float:
        """Requested over free, of the scarcest resource; the tightest domain that fits wastes least."""
        tightest = 0.0
        for column, amount in self._wanted:
            free = sum(node.later[column] for node in nodes)
            tightest = max(tightest, amount / free if free > 0 else _NOTHING_FREE)
        if self._shared:
            free = sum(node.later[GPU_COLUMN] for node in nodes) * GPU
            tightest = max(tightest, self._shared / free if free > 0 else _NOTHING_FREE)
        return tightest


def slots(shape: Shape, node: Node, freed: Mapping[int, int] = _NONE) -> int:
    """How many tasks of the shape a node takes by its columns (and shared devices) once terminating pods are gone.

    `freed` adds to the columns what victims would give back.
    """
    if node_reason(shape, node):
        return 0
    later = node.later
    most = 1 << 40
    for column, amount in shape.requests:
        count = (later[column] + freed.get(column, 0)) // amount if freed else later[column] // amount
        if count < most:
            most = count
    if most <= 0:
        return 0
    share = shape.share
    if share is not None and not node.by_claims:
        portion = share.on(node.gpu_memory)
        if portion > GPU:
            return 0
        parts = sum((GPU - d.used_later) // portion for d in node.devices.values() if d.users_later)
        parts += max(0, node.later[GPU_COLUMN]) * (GPU // portion)
        most = min(most, parts // share.devices)
    return most
