"""How much of a counter set's usefulness a choice destroys, remembered per table of devices.

Equal GPUs publish equal tables, so the answers are shared over the whole fleet.
"""

from __future__ import annotations

from collections.abc import Mapping

from capstan.allocation.capacity import MEMORY, qualified
from capstan.allocation.model import Number, number
from capstan.allocation.pools import Device, Pool

WHOLE = 1_000
"""The weight of the node's largest device."""


class Table:
    """The devices of one counter set: what each takes, and its weight. Equal GPUs share one table and its results."""

    def __init__(self, rows: tuple[tuple[tuple[tuple[str, Number], ...], int], ...]) -> None:
        self.rows = rows
        self._lost: dict[tuple[object, ...], int] = {}

    def lost(self, left: dict[str, Number], taken: tuple[tuple[str, Number], ...]) -> int:
        """The weight of the devices that fit before `taken` is taken from the set, and no longer after."""
        key = (tuple(left.values()), taken)
        lost = self._lost.get(key)
        if lost is None:
            after = dict(left)
            for counter, amount in taken:
                after[counter] -= amount
            lost = self._lost[key] = sum(
                weight for amounts, weight in self.rows if _fit(amounts, left) and not _fit(amounts, after)
            )
        return lost


def _fit(amounts: tuple[tuple[str, Number], ...], left: dict[str, Number]) -> bool:
    for counter, amount in amounts:  # noqa: SIM110  # a generator takes three times as long, and this is the inner loop
        if left[counter] < amount:
            return False
    return True


class Tables:
    """Tables by content, and by pool for as long as the pool stays as it is. Only ever caches."""

    def __init__(self) -> None:
        self._by_content: dict[object, Table] = {}

    def of(self, pool: Pool, largest: Number) -> dict[str, Table]:
        cached = pool.tables
        if cached is not None and cached[0] == largest:
            return cached[1]
        rows: dict[str, list[tuple[tuple[tuple[str, Number], ...], int]]] = {}
        for device in pool.devices.values():
            for name, taken in device.consumption:
                rows.setdefault(name, []).append((taken, weight(device, pool.counters, largest)))
        tables = {}
        for name, members in rows.items():
            content = tuple(members)
            tables[name] = self._by_content.setdefault(content, Table(content))
        pool.tables = (largest, tables)
        return tables


def memory(device: Device) -> Number:
    """The memory the device publishes, in bytes; 0 if none."""
    entry = device.spec.capacity.get(MEMORY)
    if entry is None:
        name = qualified(MEMORY, device.driver)
        entry = device.spec.capacity.get(name)
    return 0 if entry is None else number(entry.value)


def weight(device: Device, counters: Mapping[str, Mapping[str, Number]], largest: Number) -> int:
    """1,000 x size², where size is the memory relative to the largest device, or else the share of a counter set
    taken."""
    own = memory(device)
    if own and largest:
        return max(1, int(WHOLE * own * own / (largest * largest)))
    if not device.consumption:
        return WHOLE
    share = 0.0
    for name, taken in device.consumption:
        declared = counters[name]
        shares = [float(amount) / float(declared[counter]) for counter, amount in taken if declared[counter]]
        share = max(share, *shares, 0.0)
    return max(1, int(WHOLE * share * share))
