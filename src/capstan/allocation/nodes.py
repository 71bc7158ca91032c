"""What one node sees of the pools: which slices, and which of their devices match a request's selectors."""

from __future__ import annotations

from capstan.allocation.answers import Kind
from capstan.allocation.model import NodeView, Number
from capstan.allocation.pools import Device, Errors, Pool, Scope
from capstan.allocation.selectors import Expressions, Selectors
from capstan.allocation.tables import memory
from capstan.api.resource import ResourceSlice
from capstan.api.selectors import InvalidSelector


class NodeDevices:
    """What one node sees: its pools in allocation order, and the devices of each that it may use."""

    __slots__ = ("_largest", "_mixed", "_selectors", "kinds", "node", "pools", "view")

    def __init__(self, node: NodeView, pools: list[Pool], selectors: Selectors) -> None:
        self.node = node.name
        self.view = node
        self.pools = pools
        self.kinds: dict[Expressions, Kind | None] = {}
        """What selectors match, where nothing but uses and counters tells its states apart: a cache for `plain`."""
        self._selectors = selectors
        self._largest: Number | None = None
        self._mixed = any(pool.mixed for pool in pools)

    @property
    def where(self) -> str:
        """For messages."""
        return f"on the node {self.node}" if self.node else "on a node without name and labels"

    @property
    def largest(self) -> Number:
        """The memory of the largest device in bytes, 0 if none publishes any."""
        if self._largest is None:
            devices = (device for pool in self.pools if pool.usable for device in pool.devices.values())
            self._largest = max(map(memory, devices), default=0)
        return self._largest

    def matches(self, expressions: Expressions) -> tuple[list[Device], Errors]:
        """Devices of all usable pools in allocation order that are selected or on which a selector failed, and the
        failures; these include devices of the same slices that the node does not see, because kube-scheduler looks at
        selectors first. Not to be changed."""
        found = [self._selectors.matches(pool, expressions) for pool in self.pools]
        if len(found) == 1 and not self._mixed:
            return found[0]
        errors = {device: error for _, errors in found for device, error in errors.items()}
        devices = [device for some, _ in found for device in some]
        if self._mixed:
            devices = [device for device in devices if device in errors or device.scope.matches(self.view)]
        return devices, errors


def sees(node: NodeView, entry: ResourceSlice) -> bool:
    """Whether the node may see any device of the slice; a slice of counters alone is seen unless it is local to another
    node. One with an unreadable selector counts as seen: somebody must be told."""
    spec = entry.spec
    if spec.shared_counters and not spec.devices and not spec.node_name:
        return True
    try:
        return any(
            Scope(place.node_name, place.node_selector, bool(place.all_nodes)).matches(node)
            for place in (spec.devices if spec.per_device_node_selection else (spec,))
        )
    except InvalidSelector:
        return True
