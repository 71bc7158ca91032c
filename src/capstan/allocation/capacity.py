"""Consumable capacity (KEP-5075): how much of a device's capacity a request consumes.

A request consumes the policy's default when it names no amount (the whole capacity without a policy), otherwise the
amount rounded up to the next value the policy allows. Only devices that allow multiple allocations are consumed in
parts.
"""

from __future__ import annotations

from collections.abc import Mapping

from capstan.allocation.model import Number, number
from capstan.api.resource import Device, DeviceCapacity, RequestPolicy

Amounts = Mapping[str, Number]

MEMORY = "memory"
"""The capacity that shares of a GPU are measured by, in the driver's domain."""


def qualified(name: str, driver: str) -> str:
    """An attribute or capacity name with its domain; a name without one is in the driver's domain."""
    return name if "/" in name else f"{driver}/{name}"


def rounded(policy: RequestPolicy, amount: Number) -> Number | None:
    """The least allowed amount that is at least `amount`; None if the policy allows none."""
    if policy.valid_values:
        return min((value for value in map(number, policy.valid_values) if value >= amount), default=None)
    if policy.valid_range is None:
        return amount
    least = number(policy.valid_range.min)
    amount = max(amount, least)
    if policy.valid_range.step is not None:
        step = number(policy.valid_range.step)
        if step > 0:
            over = (amount - least) % step
            amount = amount if not over else amount + step - over
    if policy.valid_range.max is not None and amount > number(policy.valid_range.max):
        return None
    return amount


def consumption(device: Device, driver: str, requests: Amounts) -> dict[str, Number] | None:
    """What a request with these capacity amounts (keys qualified) consumes of a shared device, per capacity of the
    device and under the device's own keys; None if the device cannot give it, whatever else it is used for."""
    consumed: dict[str, Number] = {}
    wanted = set(requests)
    for name, capacity in device.capacity.items():
        key = qualified(name, driver)
        wanted.discard(key)
        amount = _consumed(capacity, requests.get(key))
        if amount is None or amount > number(capacity.value):
            return None
        consumed[name] = amount
    return None if wanted else consumed


def _consumed(capacity: DeviceCapacity, requested: Number | None) -> Number | None:
    policy = capacity.request_policy
    if requested is None:
        if policy is None or policy.default is None:
            return number(capacity.value)
        return number(policy.default)
    return requested if policy is None else rounded(policy, requested)


def suffices(device: Device, driver: str, requests: Amounts) -> bool:
    """Whether a device that is given whole has at least the requested amount of every named capacity."""
    owned = {qualified(name, driver): number(capacity.value) for name, capacity in device.capacity.items()}
    return all(name in owned and owned[name] >= amount for name, amount in requests.items())
