"""How many devices of a driver's pools are there, taken and left: the answer to a ResourcePoolStatusRequest (KEP-5677).

Beyond kube-controller-manager's: a device that is held and tainted is subtracted once from what is available, devices
that have vanished from their slices count nowhere, and a pool that contradicts itself says so.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from capstan.allocation.capacity import consumed_of
from capstan.allocation.inventory import Inventory
from capstan.allocation.model import Features, Number, number
from capstan.allocation.pools import Device, Pool
from capstan.allocation.uses import blocked, charge
from capstan.api import quantity
from capstan.api.resource import (
    DeviceTaintRule,
    PartitionTypeStatus,
    PoolStatus,
    ResourceClaim,
    ResourcePoolStatusRequestSpec,
    ResourceSlice,
    ShareableCapacityStatus,
    ShareableSummaryStatus,
)

_MOST_ENTRIES = 32
_LONGEST_ERROR = 256
INCOMPLETE = "PoolIncomplete:"
"""Begins the error of a pool that its driver may be about to complete."""

Cost = tuple[tuple[str, tuple[tuple[str, Number], ...]], ...]


class _Unsummable(Exception):
    """Why a summary of a pool cannot be had."""


def pool_statuses(
    asked: ResourcePoolStatusRequestSpec,
    slices: Iterable[ResourceSlice],
    claims: Iterable[ResourceClaim],
    rules: Iterable[DeviceTaintRule],
    features: Features,
) -> list[PoolStatus]:
    """All pools that are asked about by name, whatever the limit. Only slices of the driver count."""
    inventory = Inventory(features)
    pools: dict[str, list[ResourceSlice]] = {}
    for entry in slices:
        if entry.spec.driver == asked.driver and asked.pool_name in (None, entry.spec.pool.name):
            inventory.upsert(entry)
            pools.setdefault(entry.spec.pool.name, []).append(entry)
    for rule in rules:
        inventory.upsert(rule)
    for claim in claims:
        if claim.status.allocation is not None:
            inventory.upsert(claim)
    return [
        _status(inventory, inventory.pool((asked.driver, name)), _newest(pools[name]), asked) for name in sorted(pools)
    ]


def _newest(slices: Sequence[ResourceSlice]) -> list[ResourceSlice]:
    generation = max(entry.spec.pool.generation for entry in slices)
    return [entry for entry in slices if entry.spec.pool.generation == generation]


def _status(
    inventory: Inventory, pool: Pool, slices: list[ResourceSlice], asked: ResourcePoolStatusRequestSpec
) -> PoolStatus:
    generation, expected = slices[0].spec.pool.generation, slices[0].spec.pool.resource_slice_count
    nodes = {entry.spec.node_name for entry in slices}
    node = nodes.pop() if len(nodes) == 1 else None

    def status(error: str | None = None) -> PoolStatus:
        told = error.encode()[:_LONGEST_ERROR].decode(errors="ignore") if error is not None else None
        return PoolStatus(
            driver=pool.driver, pool_name=pool.name, generation=generation, node_name=node, validation_error=told
        )

    full = f"{pool.driver}/{pool.name}"
    if not pool.complete:
        seen = f"observed {len(slices)}/{expected} slices at generation {generation}"
        return status(f"{INCOMPLETE} pool {full} is incomplete: {seen}")
    if pool.problem is not None:
        return status(f"PoolInvalid: pool {full}: {pool.problem.reason}")
    held = [device for device in pool.devices.values() if inventory.use(device) is not None]
    tainted = [d for d in pool.devices.values() if inventory.use(d) is None and blocked(d.taints, [])]
    partitions: list[PartitionTypeStatus] = []
    shares: ShareableSummaryStatus | None = None
    error: str | None = None
    try:
        partitions = _partitions(inventory, pool, slices, asked.default_partition_type_attribute)
    except _Unsummable as reason:
        error = str(reason)
    try:
        shares = _shares(inventory, pool)
    except _Unsummable as reason:
        error = error or str(reason)
    return PoolStatus(
        driver=pool.driver,
        pool_name=pool.name,
        generation=generation,
        node_name=node,
        resource_slice_count=len(slices),
        total_devices=len(pool.devices),
        allocated_devices=len(held),
        unavailable_devices=len(tainted),
        available_devices=len(pool.devices) - len(held) - len(tainted),
        validation_error=status(error).validation_error,
        partition_summary=partitions,
        shareable_summary=shares,
    )


def _partitions(
    inventory: Inventory, pool: Pool, slices: list[ResourceSlice], default: str | None
) -> list[PartitionTypeStatus]:
    """What is left of every type of partition, each measured as if no others were allocated meanwhile."""
    full = f"{pool.driver}/{pool.name}"
    groups: dict[tuple[str, str], list[Device]] = {}
    declared = any(entry.spec.partition_type_attribute for entry in slices)
    for entry in slices:
        attribute = entry.spec.partition_type_attribute if declared else default
        if attribute is None:
            continue
        if not pool.counters:
            raise _Unsummable(
                f"PartitionTypeMissing: pool {full} groups by {attribute} but publishes no sharedCounters"
            )
        for published in entry.spec.devices:
            device = pool.devices[published.name]
            if not device.spec.consumes_counters:
                continue
            found = device.attribute(attribute)
            if found is None or found.string is None:
                lacks = f"does not carry partition type attribute {attribute!r}"
                raise _Unsummable(f"PartitionTypeMissing: device {device.name!r} in pool {full} {lacks}")
            groups.setdefault((attribute, found.string), []).append(device)
    if len(groups) > _MOST_ENTRIES:
        most = f"{len(groups)} partition types, exceeding the maximum of {_MOST_ENTRIES}"
        raise _Unsummable(f"PartitionSummaryOverCap: pool {full} has {most}")
    summary = []
    for (attribute, kind), members in sorted(groups.items()):
        if len({(_kept(device), device.draws) for device in members}) > 1:
            what = f"devices of partition type {kind!r} in pool {full} consume different counters"
            raise _Unsummable(f"PartitionCostMismatch: {what}")
        fitting = _fitting(inventory, pool, [d for d in members if inventory.use(d) is None])
        summary.append(PartitionTypeStatus(attribute, kind, len(members), fitting))
    return summary


def _kept(device: Device) -> tuple[tuple[tuple[str, Number], ...], ...]:
    """What a device takes, from whichever counter sets: the halves of two GPUs are of one type."""
    return tuple(taken for _, taken in device.consumption)


def _fitting(inventory: Inventory, pool: Pool, fresh: list[Device]) -> int:
    """How many of the devices fit one after another into what is left of the counters."""
    left = {name: dict(counters) for name, counters in inventory.left(pool.key).items()}
    count = 0
    for device in fresh:
        cost = _cost(device, pool)
        if all(left[name][counter] >= amount for name, taken in cost for counter, amount in taken):
            charge(left, cost, 1)
            count += 1
    return count


def _cost(device: Device, pool: Pool) -> Cost:
    """What a request that names no amount takes from counters (KEP-5941)."""
    drawn = tuple(
        (name, ((counter, consumed_of(pool.offers[name][counter], None, fractional=True) or 0),))
        for name, counter, _ in device.draws
    )
    return (*device.consumption, *drawn)


def _shares(inventory: Inventory, pool: Pool) -> ShareableSummaryStatus | None:
    """The devices that several claims may share, and what is left of all of them together; None without any."""
    devices = [device for device in pool.devices.values() if device.multiple]
    if not devices:
        return None
    total: dict[str, Number] = {}
    consumed: dict[str, Number] = {}
    shared = 0
    for device in devices:
        use = inventory.use(device)
        shared += use is not None
        for name, capacity in device.spec.capacity.items():
            total[name] = total.get(name, 0) + number(capacity.value)
            consumed[name] = consumed.get(name, 0) + (use.consumed.get(name, 0) if use is not None else 0)
    if len(total) > _MOST_ENTRIES:
        most = f"{len(total)} shareable capacity keys, exceeding the maximum of {_MOST_ENTRIES}"
        raise _Unsummable(f"ShareableSummaryOverCap: pool {pool.driver}/{pool.name} has {most}")
    rows = [
        ShareableCapacityStatus(
            name,
            quantity.render(total[name]),
            quantity.render(consumed[name]),
            quantity.render(max(0, total[name] - consumed[name])),
        )
        for name in sorted(total)
    ]
    return ShareableSummaryStatus(len(devices) - shared, shared, rows)
