"""What allocated devices take of their node's own CPU and memory (KEP-5517, gate DRANodeAllocatableResources).

A device may say, per node resource, how much of it comes with the device: a multiple of a capacity of the device, or
of the device itself, and an overhead per pod and container. The scheduler counts that with the pod's requests.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from capstan.allocation.capacity import qualified
from capstan.allocation.inventory import Inventory
from capstan.allocation.model import Number, number
from capstan.allocation.pools import Device
from capstan.api.resource import AllocationResult, DeviceRequestAllocationResult


def node_resources(inventory: Inventory, allocation: AllocationResult, containers: int = 1) -> dict[str, Number]:
    """Node resource name -> amount for one pod with so many containers; none without the gate. Devices that vanished
    from their slices count nothing. Raises `quantity.InvalidQuantity` for an unreadable amount."""
    if not inventory.features.node_allocatable_resources:
        return {}
    total: dict[str, Number] = {}
    overheads: dict[str, Number] = {}
    for result in allocation.devices.results:
        device = inventory.device(result.driver, result.pool, result.device)
        for name, entry in (device.spec.node_allocatable_resources if device else {}).items():
            assert device is not None
            total[name] = total.get(name, 0) + _mapped(device, result, entry.get("mapping") or {})
            overhead = entry.get("overhead") or {}
            amount = number(overhead.get("perPod")) + number(overhead.get("perContainer")) * containers
            overheads[name] = max(overheads.get(name, 0), amount)
    return {name: amount + overheads[name] for name, amount in total.items()}


def _mapped(device: Device, result: DeviceRequestAllocationResult, mapping: Mapping[str, Any]) -> Number:
    key = mapping.get("capacityKey")
    if key is None:
        return number(mapping.get("deviceMultiplier"))
    driver = device.driver
    whole = {qualified(name, driver): capacity.value for name, capacity in device.spec.capacity.items()}
    consumed = {qualified(name, driver): amount for name, amount in result.consumed_capacity.items()}
    amount = number(consumed.get(qualified(key, driver), whole.get(qualified(key, driver))))
    return amount * number(mapping.get("capacityMultiplier", 1))
