"""NUMA alignment of Guaranteed pods on nodes that report zones, by the policies of kubelet's topology manager."""

from __future__ import annotations

from itertools import combinations

from capstan.scheduling.model import Node, Shape, Zone

_WEAK = ("", "none", "best-effort")


def align(shape: Shape, node: Node) -> tuple[str, ...] | None:
    """The zones that take the pod: the fewest, in order of name; () when the node does not align; None when none can.

    `single-numa-node` needs one zone; `restricted` the fewest zones whose capacity could ever hold it; weaker policies
    take what they get.
    """
    wanted = [(resource, amount) for resource, amount in shape.numa if any(resource in z.capacity for z in node.zones)]
    if not wanted:
        return ()
    most = 1 if node.numa_policy == "single-numa-node" else len(node.zones)
    for count in range(1, most + 1):
        preferred = [c for c in combinations(node.zones, count) if _holds(c, wanted, used=False)]
        for chosen in preferred:
            if _holds(chosen, wanted, used=True):
                return tuple(zone.name for zone in chosen)
        if preferred and node.numa_policy == "restricted":
            return None
    return () if node.numa_policy in _WEAK else None


def _holds(zones: tuple[Zone, ...], wanted: list[tuple[str, int]], *, used: bool) -> bool:
    return all(
        sum(z.capacity.get(resource, 0) - (z.used.get(resource, 0) if used else 0) for z in zones) >= amount
        for resource, amount in wanted
    )
