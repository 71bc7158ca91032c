"""How devices are used: the arithmetic of what claims hold, take and leave."""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

from capstan.allocation.capacity import consumption
from capstan.allocation.model import Number, number
from capstan.allocation.pools import Consumption, Device
from capstan.api.core import Taint, Toleration, tolerates
from capstan.api.resource import DeviceRequestAllocationResult


class Use(NamedTuple):
    """How one device is used by all claims together (results with admin access do not count)."""

    whole: int
    """Claims that hold the device for themselves: at most 1 unless the API server was told nonsense."""
    shares: int
    consumed: dict[str, Number]
    """Capacity consumed by the shares, under the device's own names; never changed in place."""
    consumption: Consumption
    """Counters it takes, remembered so that they still count when the device vanishes from its slices."""
    groups: tuple[tuple[str, frozenset[str] | None], ...]
    """Its compatibility groups in each counter set (KEP-5963)."""


def counted(use: Use, result: DeviceRequestAllocationResult, sign: int) -> Use:
    """The use with one result more (sign 1) or less (-1). A result that is no share holds the whole device."""
    if result.share_id is None and not result.consumed_capacity:
        return use._replace(whole=use.whole + sign)
    consumed = dict(use.consumed)
    for name, amount in result.consumed_capacity.items():
        consumed[name] = consumed.get(name, 0) + sign * number(amount)
    return use._replace(
        shares=use.shares + sign, consumed={name: amount for name, amount in consumed.items() if amount}
    )


def takes_another(device: Device, use: Use) -> bool:
    """Whether a shared device that is in use has room for one more request that names no amount."""
    if not device.multiple or use.whole:
        return False
    takes = consumption(device.spec, device.id.driver, {})
    return takes is not None and fits(device, use.consumed, takes)


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


def groups(device: Device) -> tuple[tuple[str, frozenset[str] | None], ...]:
    return tuple(
        (taken.counter_set, None if taken.compatibility_groups is None else frozenset(taken.compatibility_groups))
        for taken in device.spec.consumes_counters
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
