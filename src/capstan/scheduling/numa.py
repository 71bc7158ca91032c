"""NUMA alignment of Guaranteed pods on nodes that report zones, by the policies of kubelet's topology manager."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from itertools import accumulate, combinations

from capstan.scheduling.model import Node, Zone, Zones
from capstan.scheduling.shape import Shape

Wanted = list[tuple[str, int]]


def align(shape: Shape, node: Node) -> Zones | None:
    """Where the aligned resources of a pod come from, lowest zones first; () when nothing is aligned, None: refused.

    `single-numa-node` needs one zone for everything. `restricted` needs, for every resource, the fewest zones whose
    capacity could ever hold it; these numbers have to agree and that many zones have to be free now. `best-effort`
    takes the zones that cover most, and never refuses.
    """
    if node.numa_policy in ("", "none"):
        return ()
    wanted = [(resource, amount) for resource, amount in shape.numa if any(resource in z.capacity for z in node.zones)]
    if not wanted:
        return ()
    if node.numa_policy == "best-effort":
        return _draw(_widest(node.zones, wanted), wanted)
    widths = {1} if node.numa_policy == "single-numa-node" else {_width(node.zones, *need) for need in wanted}
    if len(widths) != 1 or 0 in widths:
        return None
    chosen = next((zones for zones in combinations(node.zones, widths.pop()) if _hold(zones, wanted)), None)
    return _draw(chosen, wanted) if chosen is not None else None


def most_zones(shape: Shape, nodes: Iterable[Node]) -> int:
    """How many zones the node with most has; 0 when it makes no difference to the pod how many it spans.

    Guaranteed pods care wherever zones are reported, others for devices that zones of some node have.
    """
    reporting = [node for node in nodes if node.zones]
    cares = _guaranteed(shape) or any(
        resource in zone.capacity
        for resource, _ in shape.numa
        for node in reporting
        if node.numa_policy not in ("", "none")
        for zone in node.zones
    )
    return max((len(node.zones) for node in reporting), default=0) if cares else 0


def span(shape: Shape, node: Node, most: int) -> int:
    """Over how many zones the pod would spread; on nodes that report none over as many as any has (`most`)."""
    if not node.zones:
        return most
    if node.numa_policy in ("", "none"):
        return len(node.zones)
    placed = align(shape, node)
    if placed is None:
        return most + 1
    return len({zone for zone, _, _ in placed}) or (1 if _guaranteed(shape) else len(node.zones))


def _guaranteed(shape: Shape) -> bool:
    return any(resource in ("cpu", "memory") for resource, _ in shape.numa)


def _width(zones: Sequence[Zone], resource: str, amount: int) -> int:
    """The fewest zones whose capacity adds up to the amount; 0 when all together do not."""
    for count, total in enumerate(accumulate(sorted((z.capacity.get(resource, 0) for z in zones), reverse=True)), 1):
        if total >= amount:
            return count
    return 0


def _widest(zones: Sequence[Zone], wanted: Wanted) -> list[Zone]:
    """Zones until all is covered, the one that covers most of the rest first."""
    left, rest, chosen = dict(wanted), list(zones), list[Zone]()
    while rest and any(amount > 0 for amount in left.values()):
        best = max(rest, key=lambda zone: sum(max(0, min(left[r], _free(zone, r))) for r in left))
        rest.remove(best)
        chosen.append(best)
        left = {resource: amount - _free(best, resource) for resource, amount in left.items()}
    return chosen


def _hold(zones: Sequence[Zone], wanted: Wanted) -> bool:
    return all(sum(_free(zone, resource) for zone in zones) >= amount for resource, amount in wanted)


def _draw(zones: Sequence[Zone], wanted: Wanted) -> Zones:
    drawn = []
    for resource, amount in wanted:
        for zone in zones:
            part = min(amount, _free(zone, resource))
            if part > 0:
                drawn.append((zone.name, resource, part))
                amount -= part
    return tuple(drawn)


def _free(zone: Zone, resource: str) -> int:
    return zone.capacity.get(resource, 0) - zone.used.get(resource, 0)
