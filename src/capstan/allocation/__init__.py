"""Which devices satisfy which claims: Dynamic Resource Allocation as pure functions over an incremental inventory."""

from capstan.allocation.allocator import BUDGET, Policy, allocate
from capstan.allocation.claims import FRACTION_ANNOTATION
from capstan.allocation.inventory import Inventory
from capstan.allocation.model import (
    Allocation,
    AllocationError,
    Choice,
    ClaimKey,
    DeviceId,
    Features,
    InvalidClaim,
    InvalidPodRequest,
    NodeView,
    Problem,
    Refusal,
    StaleMark,
)
from capstan.allocation.node_resources import node_resources
from capstan.allocation.pods import claim_for_pod, request_mappings, resolved
from capstan.allocation.pool_status import INCOMPLETE, pool_statuses
from capstan.allocation.pools import Device, PoolKey

__all__ = [
    "BUDGET",
    "FRACTION_ANNOTATION",
    "INCOMPLETE",
    "Allocation",
    "AllocationError",
    "Choice",
    "ClaimKey",
    "Device",
    "DeviceId",
    "Features",
    "InvalidClaim",
    "InvalidPodRequest",
    "Inventory",
    "NodeView",
    "Policy",
    "PoolKey",
    "Problem",
    "Refusal",
    "StaleMark",
    "allocate",
    "claim_for_pod",
    "node_resources",
    "pool_statuses",
    "request_mappings",
    "resolved",
]
