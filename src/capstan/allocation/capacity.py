"""Consumable capacity (KEP-5075): how much of a device's capacity a request consumes.

A request consumes the policy's default when it names no amount (the whole capacity without a policy), otherwise the
amount rounded up to the next value the policy allows. Only devices that allow multiple allocations are consumed in
parts.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from math import ceil

from capstan.allocation.model import Number, number
from capstan.api.resource import Counter, Device, DeviceCapacity, RequestPolicy

Amounts = Mapping[str, Number]

MEMORY = "memory"
"""The capacity that shares of a GPU are measured by, in the driver's domain."""


def qualified(name: str, driver: str) -> str:
    """An attribute or capacity name with its domain; a name without one is in the driver's domain."""
    return name if "/" in name else f"{driver}/{name}"


def rounded(policy: RequestPolicy, amount: Number, *, fractional: bool = True) -> Number | None:
    """The least allowed amount that is at least `amount`; None if the policy allows none. Steps that are not
    `fractional` are counted in whole numbers, each rounded up (gate DRAFractionalCapacityRange)."""
    if policy.valid_values:
        return min((value for value in map(number, policy.valid_values) if value >= amount), default=None)
    if policy.valid_range is None:
        return amount
    least = number(policy.valid_range.min)
    amount = max(amount, least)
    if policy.valid_range.step is not None:
        step = number(policy.valid_range.step)
        if not fractional:
            amount, least, step = ceil(amount), ceil(least), ceil(step)
        if step > 0:
            over = (amount - least) % step
            amount = amount if not over else amount + step - over
    if policy.valid_range.max is not None and amount > number(policy.valid_range.max):
        return None
    return amount


def consumption(
    device: Device, driver: str, requests: Amounts, elsewhere: Collection[str] = (), *, fractional: bool = True
) -> dict[str, Number] | None:
    """What a request with these capacity amounts (keys qualified) consumes of a device, per capacity of the device and
    under the device's own keys; None if the device cannot give it, whatever else it is used for. The keys in
    `elsewhere` need not be capacities of the device. What a device that is given whole cannot give is the same."""
    consumed: dict[str, Number] = {}
    wanted = set(requests).difference(elsewhere)
    for name, capacity in device.capacity.items():
        key = qualified(name, driver)
        wanted.discard(key)
        amount = consumed_of(capacity, requests.get(key), fractional=fractional)
        if amount is None:
            return None
        consumed[name] = amount
    return None if wanted else consumed


def consumed_of(offer: DeviceCapacity | Counter, requested: Number | None, *, fractional: bool) -> Number | None:
    """What a request takes of one capacity, or of one counter; None if that is not allowed or more than there is."""
    policy, most = offer.request_policy, number(offer.value)
    if requested is None:
        amount: Number | None = most if policy is None or policy.default is None else number(policy.default)
    else:
        amount = requested if policy is None else rounded(policy, requested, fractional=fractional)
    return None if amount is None or amount > most else amount
