"""How devices are used: the arithmetic of what claims hold, take and leave."""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

from capstan.allocation.capacity import consumption
from capstan.allocation.model import Number, number
from capstan.allocation.pools import Consumption, Device
from capstan.api.core import Taint, Toleration, tolerates
from capstan.api.resource import DeviceRequestAllocationResult

Groups = tuple[tuple[str, frozenset[str]], ...]
"""Compatibility groups per counter set: ((set, names), ...)."""


class Use(NamedTuple):
    """How one device is used by all claims together (results with admin access do not count)."""

    whole: int
    """Claims that hold the device for themselves: at most 1 unless the API server was told nonsense."""
    shares: int
    consumed: dict[str, Number]
    """Capacity consumed by the shares, under the device's own names; never changed in place."""
    consumption: Consumption
    """Counters it takes, remembered so that they still count when the device vanishes from its slices."""
    groups: Groups
    """Its compatibility groups in each counter set (KEP-5963)."""
    snapshots: int = 0
    """Allocations that say themselves what they took from counters (KEP-5941)."""
    taken: dict[tuple[str, str], Number] = {}
    """What they say together, by set and counter; never changed in place."""


def counted(use: Use, result: DeviceRequestAllocationResult, sign: int) -> Use:
    """The use with one result more (sign 1) or less (-1). A result that is no share holds the whole device."""
    if result.consumed_counters:
        taken = dict(use.taken)
        for entry in result.consumed_counters:
            for name, amount in entry.counters.items():
                key = (entry.counter_set, name)
                taken[key] = taken.get(key, 0) + sign * number(amount)
        use = use._replace(snapshots=use.snapshots + sign, taken=taken)
    if result.share_id is None and not result.consumed_capacity:
        return use._replace(whole=use.whole + sign)
    consumed = dict(use.consumed)
    for name, amount in result.consumed_capacity.items():
        consumed[name] = consumed.get(name, 0) + sign * number(amount)
    return use._replace(
        shares=use.shares + sign, consumed={name: amount for name, amount in consumed.items() if amount}
    )


def charges(device: Device | None, use: Use) -> Consumption:
    """The counters that the uses of a device take together: what the allocations say, else what the device says, else
    what it said when it was still published. What a device consumes in any case is taken once for all its shares."""
    if not use.snapshots:
        return use.consumption if device is None else device.consumption
    published = () if device is None else device.consumption
    always = {(name, counter): amount for name, taken in published for counter, amount in taken}
    totals: dict[str, dict[str, Number]] = {}
    for (name, counter), amount in {**always, **use.taken}.items():
        once = (name, counter) in always and (name, counter) in use.taken
        totals.setdefault(name, {})[counter] = amount // use.snapshots if once else amount
    return tuple((name, tuple(sorted(counters.items()))) for name, counters in totals.items())


def takes_another(device: Device, use: Use) -> bool:
    """Whether a shared device that is in use has room for one more request that names no amount."""
    if not device.multiple or use.whole:
        return False
    takes = consumption(device.spec, device.driver, {})
    return takes is not None and fits(device, use.consumed, takes)


def rooms(device: Device, use: Use | None) -> int | None:
    """How many requests that name no amount still get the device at most, counters aside; None if any number does."""
    if not device.multiple:
        return int(use is None)
    if use is not None and use.whole:
        return 0
    takes = consumption(device.spec, device.driver, {})
    if takes is None:
        return 0
    used = use.consumed if use is not None else {}
    capacity = device.spec.capacity
    bounds = [
        int((number(capacity[name].value) - used.get(name, 0)) // amount) for name, amount in takes.items() if amount
    ]
    return max(0, min(bounds)) if bounds else None


def blocked(taints: Iterable[Taint], tolerations: list[Toleration]) -> bool:
    """Whether an untolerated taint keeps a device from new allocations; effects other than these two do not
    (KEP-5055)."""
    return any(taint.effect in ("NoSchedule", "NoExecute") and not tolerates(tolerations, taint) for taint in taints)


def fits(device: Device, used: dict[str, Number], takes: dict[str, Number]) -> bool:
    """Whether a shared device has room for one more share."""
    capacity = device.spec.capacity
    return all(used.get(name, 0) + amount <= number(capacity[name].value) for name, amount in takes.items())


def charge(left: dict[str, dict[str, Number]], consumption: Consumption, sign: int) -> None:
    """Takes counters away (sign 1) or gives them back (-1); counters that no slice declares any more have nothing to
    give."""
    for name, taken in consumption:
        counters = left.get(name)
        if counters is not None:
            for counter, amount in taken:
                if counter in counters:
                    counters[counter] -= sign * amount


def groups(device: Device) -> Groups:
    return tuple(
        (taken.counter_set, frozenset(taken.compatibility_groups or ())) for taken in device.spec.consumes_counters
    )


def most(devices: list[Device], left: dict[str, Number]) -> int:
    """At most this many of the devices fit into one counter set together: the scarcest counter bounds it."""
    least: dict[str, Number] = {}
    for device in devices:
        amounts = dict(device.consumption[0][1])
        for counter in left:
            least[counter] = min(least.get(counter, amounts.get(counter, 0)), amounts.get(counter, 0))
    bounds = [int(left[counter] // amount) for counter, amount in least.items() if amount > 0]
    return max(0, min([len(devices), *bounds]))
