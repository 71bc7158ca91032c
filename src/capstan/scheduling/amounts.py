"""Amounts of what queues divide and nodes hold, and the units in which they are written.

All amounts are integers: CPU in millicores, memory in bytes, GPUs in millionths of a device.
"""

from __future__ import annotations

from dataclasses import dataclass

GPU = 1_000_000
"""One whole device in quota arithmetic."""
GPU_RESOURCE = "nvidia.com/gpu"
UNLIMITED = -1

CPU_COLUMN, MEMORY_COLUMN, PODS_COLUMN, GPU_COLUMN = range(4)
"""The fixed first columns of every node (GPU_COLUMN counts devices); extended resources follow as they appear."""

Amounts = tuple[int, ...]
"""(CPU, memory, GPU, then GPUs of each product that a queue names): the resources that queues divide.

GPUs of a product count twice: as GPUs and as GPUs of that product.
"""


@dataclass(frozen=True, slots=True)
class Unit:
    """How one resource is counted in different places: each number is that many of an amount's own units."""

    quantity: int
    """1 in the resource lists of Kubernetes."""
    queue: int
    """1 in the bounds of a Queue."""
    spoken: int
    """1 in sentences, which call it `one` or `many`."""
    dealt: int
    """What is handed out at a time where fair shares are left over."""
    one: str
    many: str


UNITS = {
    "cpu": Unit(quantity=1000, queue=1, spoken=1000, dealt=1, one="CPU core", many="CPU cores"),
    "memory": Unit(1, queue=10**6, spoken=10**9, dealt=1, one="GB of memory", many="GB of memory"),
    "gpu": Unit(quantity=GPU, queue=GPU, spoken=GPU, dealt=GPU, one="GPU", many="GPUs"),
}
RESOURCES = tuple(UNITS)
FIRST_PRODUCT = len(RESOURCES)
NOTHING: Amounts = (0,) * FIRST_PRODUCT
DEALT = tuple(unit.dealt for unit in UNITS.values())


def unit_of(resource: str) -> Unit:
    """The unit of a resource; what is none of RESOURCES is a GPU product."""
    known = UNITS.get(resource)
    return known or Unit(GPU, GPU, GPU, GPU, one=f"{resource} GPU", many=f"{resource} GPUs")


def dealt(place: int) -> int:
    """`Unit.dealt` of the resource at a place of all amounts."""
    return DEALT[place] if place < FIRST_PRODUCT else GPU
