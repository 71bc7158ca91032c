"""Which product a GPU is: by the label of its node, or, where claims allocate GPUs, by what its driver says of it.

Queues name products as the node label does. A driver's `productName` becomes a label value the way NVIDIA's feature
discovery makes one: with dashes for spaces. Products are compared as a whole; no name is ever searched for another.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection

from capstan.allocation import Device, Inventory
from capstan.api.resource import AllocationResult
from capstan.scheduling.amounts import GPU_COLUMN
from capstan.scheduling.model import GPU_PRODUCT_LABEL, Node
from capstan.scheduling.portions import Portions

_ATTRIBUTE = "productName"


def product_of(device: Device) -> str:
    """The product as queues name it; empty when the driver does not say."""
    attribute = device.attribute(f"{device.driver}/{_ATTRIBUTE}")
    return (attribute.string or "").replace(" ", "-") if attribute is not None else ""


def counted(node: Node, inventory: Inventory | None, drivers: Collection[str]) -> Counter[str]:
    """How many GPUs of which product a node has. `drivers`: those whose devices are GPUs."""
    label = node.labels.get(GPU_PRODUCT_LABEL, "")
    plugged = 0 if node.by_claims else node.capacity[GPU_COLUMN]
    if inventory is None or plugged:
        return Counter({label: plugged}) if plugged else Counter()
    physical: dict[tuple[object, str], str] = {}
    for device in inventory.published(node.name):
        if device.driver in drivers:
            # Partitions of one GPU draw from one counter set; its name stands for the GPU.
            gpu = device.consumption[0][0] if device.consumption else device.name
            physical[device.pool, gpu] = product_of(device) or label
    return Counter(physical.values())


def held(inventory: Inventory, allocation: AllocationResult, portions: Portions, otherwise: str) -> Counter[str]:
    """Millionths of GPUs of which product an allocation holds; `otherwise` is the product of those nobody publishes."""
    found: Counter[str] = Counter()
    for result in allocation.devices.results:
        if amount := portions.held(result):
            device = inventory.device(result.driver, result.pool, result.device)
            found[(product_of(device) if device is not None else "") or otherwise] += amount
    return found
