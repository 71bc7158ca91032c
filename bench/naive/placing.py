"""Where pods go: every pod looks at every node and scores it, every domain of a topology is measured anew."""

from __future__ import annotations

from bench.naive.gangs import active, rank
from capstan.scheduling import devices, numa
from capstan.scheduling.amounts import CPU_COLUMN, GPU, GPU_COLUMN, PODS_COLUMN, UNLIMITED, Amounts
from capstan.scheduling.model import Gang, Group, Node, Task
from capstan.scheduling.placement import fits
from capstan.scheduling.session import Session


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
                ordered = sorted(group.children, key=lambda child: (not child.children, rank(child, active)))
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
        zones = numa.most_zones(shape, self.world.nodes.values())
        for node in nodes:
            score = 100 / numa.span(shape, node, zones) if zones else 0.0
            if node.capacity[column]:
                if strategy == "spread":
                    score += free[node.name] / node.capacity[column]
                elif high:
                    score += 9.0 if low == high else 9.0 * (1 - (free[node.name] - low) / (high - low))
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
