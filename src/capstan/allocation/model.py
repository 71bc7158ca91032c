"""The words of the allocation room: what an allocation is asked about, what it answers, and how it can fail."""

from __future__ import annotations

from collections.abc import Mapping
from decimal import Decimal
from functools import lru_cache
from typing import NamedTuple

import msgspec

from capstan.api import quantity
from capstan.api.core import Quantity
from capstan.api.feature_gates import FeatureGates
from capstan.api.resource import AllocationResult

Number = int | Decimal
"""An exact amount of a capacity or counter: int wherever it is whole, which is nearly always."""

ClaimKey = tuple[str, str]
"""(namespace, name) of a ResourceClaim."""


class DeviceId(NamedTuple):
    driver: str
    pool: str
    device: str

    def __str__(self) -> str:
        return f"{self.driver}/{self.pool}/{self.device}"


def number(value: Quantity | None) -> Number:
    """The exact value of a quantity, as int when whole. Raises `quantity.InvalidQuantity`."""
    return value if type(value) is int else _number(value)


@lru_cache(maxsize=8192)
def _number(value: Quantity | None) -> Number:
    exact = quantity.parse(value)
    whole = int(exact)
    return whole if whole == exact else exact


class NodeView(msgspec.Struct, frozen=True):
    """The node that an allocation is tried on: its name and labels are all that pools can select by."""

    name: str
    labels: Mapping[str, str] = {}


class Features(msgspec.Struct, frozen=True, kw_only=True, rename="camel"):
    """What an allocation may make use of: Kubernetes' feature gates, by default as `api.feature_gates` has them."""

    admin_access: bool = True
    binding_conditions: bool = True
    compatibility_groups: bool = False
    consumable_capacity: bool = True
    derived_attributes: bool = False
    device_taint_rules: bool = True
    device_taints: bool = True
    extended_resources: bool = True
    fractional_capacity: bool = True
    list_attributes: bool = True
    node_allocatable_resources: bool = False
    optional_node_operations: bool = True
    partition_types: bool = False
    partitionable_devices: bool = True
    prioritized_list: bool = True
    shared_consumable_capacity: bool = False

    @staticmethod
    def under(gates: FeatureGates) -> Features:
        return Features(**{feature: gate in gates for feature, gate in _GATES.items()})


_GATES = {
    "admin_access": "DRAAdminAccess",
    "binding_conditions": "DRADeviceBindingConditions",
    "compatibility_groups": "DRADeviceCompatibilityGroups",
    "consumable_capacity": "DRAConsumableCapacity",
    "derived_attributes": "DRADerivedAttributes",
    "device_taint_rules": "DRADeviceTaintRules",
    "device_taints": "DRADeviceTaints",
    "extended_resources": "DRAExtendedResource",
    "fractional_capacity": "DRAFractionalCapacityRange",
    "list_attributes": "DRAListTypeAttributes",
    "node_allocatable_resources": "DRANodeAllocatableResources",
    "optional_node_operations": "DRAOptionalNodeOperations",
    "partition_types": "DRAPartitionableDevicesType",
    "partitionable_devices": "DRAPartitionableDevices",
    "prioritized_list": "DRAPrioritizedList",
    "shared_consumable_capacity": "DRASharedConsumableCapacity",
}


class Problem(msgspec.Struct, frozen=True):
    """A pool that contradicts itself. Nothing is allocated from it until its driver republishes it."""

    driver: str
    pool: str
    reason: str
    slices: tuple[str, ...] = ()
    """Names of the ResourceSlices at fault, for an Event on each."""


class Choice(msgspec.Struct, frozen=True):
    """Why one device was taken: its cost, what made it up, and how many candidates it was chosen from."""

    claim: ClaimKey
    request: str
    device: DeviceId
    candidates: int
    cost: int = 0
    parts: tuple[tuple[str, int], ...] = ()

    def __str__(self) -> str:
        text = f"claim {self.claim[0]}/{self.claim[1]}, request {self.request}: {self.device} out of {self.candidates}"
        if not self.parts:
            return text
        return f"{text}, cost {self.cost} ({', '.join(f'{name} {cost}' for name, cost in self.parts)})"


class Allocation(msgspec.Struct, frozen=True):
    """Devices for every claim, all or nothing."""

    results: dict[ClaimKey, AllocationResult]
    explanation: tuple[Choice, ...] = ()
    steps: int = 0
    optimal: bool = True
    """best-fit: whether the improvement budget sufficed to prove that no cheaper choice exists."""


ERRORS = frozenset(
    {
        "UnknownDeviceClass",
        "InvalidClaim",
        "InvalidSelector",
        "SelectorFailed",
        "InvalidPool",
        "IncompletePool",
        "TooManyDevices",
    }
)
"""Reasons of refusals that no freed device changes."""


class Refusal(msgspec.Struct, frozen=True):
    """Why the claims cannot be allocated together on the node.

    `reason` is one of: UnknownDeviceClass, InvalidClaim, AllocatedElsewhere, InvalidSelector, SelectorFailed,
    InvalidPool, IncompletePool, TooManyDevices, NoSuchDevices, DevicesInUse, NoCombination and BudgetExhausted. Only
    the last is not a proof; the others hold until a slice, class, claim or allocation changes.
    """

    reason: str
    message: str
    claim: ClaimKey | None = None
    request: str = ""
    node: str = ""
    steps: int = 0

    @property
    def is_error(self) -> bool:
        """Whether an object must be corrected, or a pool completed, before anything can be allocated."""
        return self.reason in ERRORS

    @property
    def lasts(self) -> bool:
        """Whether asking again is in vain as long as nothing becomes free and no object changes. A selector that fails
        may do so on a device that is taken, and passed over, the next time."""
        return self.reason != "SelectorFailed"


class AllocationError(Exception):
    """Base of what the room raises."""


class InvalidClaim(AllocationError):
    """{message}; `reason`, `claim` and `request` say where."""

    def __init__(self, reason: str, message: str, claim: ClaimKey, request: str = "") -> None:
        super().__init__(message)
        self.reason = reason
        self.claim = claim
        self.request = request


class SelectorError(AllocationError):
    """A selector cannot be evaluated on a device; `reason` is the reason of a refusal because of it."""

    reason = ""


class StaleMark(AllocationError):
    """the mark {mark} is no longer valid: facts from the cluster arrived after it was taken"""

    hint = "take marks only between two changes of observed objects"

    def __init__(self, mark: int) -> None:
        super().__init__(f"the mark {mark} is no longer valid: facts from the cluster arrived after it was taken")


class InvalidPodRequest(AllocationError):
    """{message}: what a pod's annotations or extended resources ask for cannot be expressed as a claim. Whose pod it
    is says who catches it."""
