"""How much of a GPU the devices are that claims ask for and hold, in millionths.

A whole device is one GPU. A partition (a MIG device), or a share of a device, is the part of the GPU's memory that it
takes, by whole percents rounded up, exactly as the share that an annotation asks for. Which device classes offer GPUs
shows by the devices they select, never by a name.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence

from capstan.allocation import Device, Inventory, PoolKey
from capstan.api import quantity
from capstan.api.resource import DeviceRequestAllocationResult, DeviceSelector
from capstan.scheduling.amounts import GPU

_MEMORY = "memory"
_MOST_ASKED = 20_000
"""Kinds of requests that are remembered; beyond that all are found anew."""

Kind = tuple[str, tuple[str, ...]]
"""A device class and the selectors of a request."""


def percent(portion: int) -> int:
    """A part of a GPU as quotas count it: by whole percents, rounded up."""
    return -(-portion * 100 // GPU) * GPU // 100


def part(amount: str | int | float, whole: str | int | float) -> int:
    """So much memory of so much, at most one GPU; all of it where that is unknown. Both are quantities."""
    try:
        taken, size = quantity.whole(amount), quantity.whole(whole)
    except quantity.InvalidQuantity:
        return GPU
    return min(GPU, percent(-(-taken * GPU // size))) if size > 0 <= taken else GPU


class Portions:
    """`drivers`: those whose devices are GPUs."""

    def __init__(self, inventory: Inventory, drivers: Collection[str]) -> None:
        self._inventory, self._drivers = inventory, drivers
        self._asked: dict[Kind, int] = {}
        self._selectors: dict[Kind, Sequence[DeviceSelector]] = {}

    def held(self, result: DeviceRequestAllocationResult) -> int:
        """What an allocated device counts; 0 if it is no GPU, or held with admin access."""
        if result.driver not in self._drivers or result.admin_access:
            return 0
        device = self._inventory.device(result.driver, result.pool, result.device)
        if device is None:
            return GPU
        consumed = result.consumed_capacity.get(_MEMORY)
        if consumed is not None and _MEMORY in device.spec.capacity:
            return part(consumed, device.spec.capacity[_MEMORY].value)
        return self._of(device)

    def asked(self, device_class: str, selectors: Sequence[DeviceSelector]) -> int:
        """What one device that a request may get counts at most, wherever it is; 0 if it gets no GPUs."""
        kind = (device_class, tuple(s.cel.expression for s in selectors if s.cel is not None))
        found = self._asked.get(kind)
        if found is None:
            if len(self._asked) >= _MOST_ASKED:
                self.forget()
            self._selectors[kind] = selectors
            found = self._asked[kind] = self._most(kind)
        return found

    def sizes(self, pool: PoolKey) -> dict[Kind, int]:
        """What a pool has to do with the answers of `asked` so far."""
        return {kind: self._within(pool, kind) for kind in self._asked} if pool[0] in self._drivers else {}

    def changed(self, pool: PoolKey, before: Mapping[Kind, int]) -> bool:
        """Whether answers of `asked` are others since the pool has changed; `before`: its `sizes` until then."""
        differs = False
        for kind, size in before.items():
            known, now = self._asked[kind], self._within(pool, kind)
            if now > known or (now < size == known):
                self._asked[kind] = self._most(kind)
                differs = differs or self._asked[kind] != known
        return differs

    def forget(self) -> None:
        """Find all answers of `asked` anew."""
        self._asked.clear()
        self._selectors.clear()

    def _most(self, kind: Kind) -> int:
        most = 0
        for driver in self._drivers:
            for pool in self._inventory.pools(driver):
                if most == GPU:
                    break
                most = max(most, self._within(pool, kind))
        return most

    def _within(self, pool: PoolKey, kind: Kind) -> int:
        devices = self._inventory.selected(pool, kind[0], self._selectors[kind])
        return max(map(self._of, devices), default=0)

    def _of(self, device: Device) -> int:
        """A partition takes memory from the counters of its GPU; whatever says nothing of the kind is whole."""
        counters = self._inventory.pool(device.pool).counters
        for name, taken in device.consumption:
            for counter, amount in taken:
                if counter == _MEMORY:
                    return part(int(amount), int(counters[name].get(_MEMORY, 0)))
        return GPU
