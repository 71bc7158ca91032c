"""`resource.k8s.io/v1`: what Dynamic Resource Allocation asks for, offers and grants (Kubernetes 1.34 to 1.37)."""

from __future__ import annotations

from typing import Any

import msgspec

from capstan.api.base import Condition, Object, ObjectMeta, Struct
from capstan.api.core import Quantity, Taint, Toleration
from capstan.api.selectors import NodeSelector

GROUP = "resource.k8s.io"
FINALIZER = "resource.kubernetes.io/delete-protection"
POD_CLAIM_NAME_ANNOTATION = "resource.kubernetes.io/pod-claim-name"
EXTENDED_RESOURCE_CLAIM_ANNOTATION = "resource.kubernetes.io/extended-resource-claim"
ADMIN_ACCESS_LABEL = "resource.kubernetes.io/admin-access"
MAX_RESULTS = 32
MAX_RESERVED_FOR = 256


class CELSelector(Struct):
    expression: str = ""


class DeviceSelector(Struct):
    cel: CELSelector | None = None


class OpaqueConfig(Struct):
    driver: str = ""
    parameters: dict[str, Any] = {}


class DeviceConfig(Struct):
    """A config of a class, a claim or an allocation; `source` (FromClass, FromClaim) only in the last."""

    source: str = ""
    requests: list[str] = []
    opaque: OpaqueConfig | None = None


class DeviceClassSpec(Struct):
    selectors: list[DeviceSelector] = []
    config: list[DeviceConfig] = []
    extended_resource_name: str | None = None


class DeviceClass(Object):
    spec: DeviceClassSpec = msgspec.field(default_factory=DeviceClassSpec)


class DeviceAttribute(Struct):
    """Exactly one of the values is set. Lists are alpha since 1.36 (KEP-5491)."""

    int_: int | None = msgspec.field(default=None, name="int")
    bool_: bool | None = msgspec.field(default=None, name="bool")
    string: str | None = None
    version: str | None = None
    ints: list[int] | None = None
    bools: list[bool] | None = None
    strings: list[str] | None = None
    versions: list[str] | None = None


class ValidRange(Struct):
    min: Quantity = 0
    max: Quantity | None = None
    step: Quantity | None = None


class RequestPolicy(Struct):
    default: Quantity | None = None
    valid_values: list[Quantity] = []
    valid_range: ValidRange | None = None


class DeviceCapacity(Struct):
    value: Quantity = 0
    request_policy: RequestPolicy | None = None


class Counter(Struct):
    """A counter of a set; the policy says what may be drawn from it on request (KEP-5941)."""

    value: Quantity = 0
    request_policy: RequestPolicy | None = None


class CounterSet(Struct):
    name: str = ""
    counters: dict[str, Counter] = {}


class CounterValueFrom(Struct):
    capacity_name: str = ""


class ConsumedCounter(Struct):
    """Exactly one is set: a fixed value, or the capacity of the claim that says how much (KEP-5941)."""

    value: Quantity | None = None
    value_from: CounterValueFrom | None = None


class CounterConsumption(Struct):
    counter_set: str = ""
    counters: dict[str, ConsumedCounter] = {}
    compatibility_groups: list[str] | None = None


class Device(Struct):
    name: str = ""
    attributes: dict[str, DeviceAttribute] = {}
    capacity: dict[str, DeviceCapacity] = {}
    consumes_counters: list[CounterConsumption] = []
    node_name: str | None = None
    node_selector: NodeSelector | None = None
    all_nodes: bool | None = None
    taints: list[Taint] = []
    binds_to_node: bool = False
    binding_conditions: list[str] = []
    binding_failure_conditions: list[str] = []
    allow_multiple_allocations: bool | None = None
    node_allocatable_resources: dict[str, Any] = {}


class ResourcePool(Struct):
    name: str = ""
    generation: int = 0
    resource_slice_count: int = 1


class ResourceSliceSpec(Struct):
    driver: str = ""
    pool: ResourcePool = msgspec.field(default_factory=ResourcePool)
    node_name: str | None = None
    node_selector: NodeSelector | None = None
    all_nodes: bool | None = None
    per_device_node_selection: bool | None = None
    devices: list[Device] = []
    shared_counters: list[CounterSet] = []
    partition_type_attribute: str | None = None
    """Kubernetes 1.37 alpha: the string attribute that says what type of partition each device is (KEP-4815)."""
    skip_node_operations: list[str] = []
    """Kubernetes 1.37: kubelet plugin calls that the devices do not need (KEP-5945)."""


class ResourceSlice(Object):
    spec: ResourceSliceSpec = msgspec.field(default_factory=ResourceSliceSpec)


class CapacityRequirements(Struct):
    requests: dict[str, Quantity] = {}


class DeviceDerivedAttribute(Struct):
    """Kubernetes 1.37 alpha: a virtual attribute for the constraints of a claim (KEP-6080)."""

    name: str = ""
    expression: str = ""


class ExactDeviceRequest(Struct):
    device_class_name: str = ""
    selectors: list[DeviceSelector] = []
    allocation_mode: str = "ExactCount"
    count: int = 1
    admin_access: bool | None = None
    tolerations: list[Toleration] = []
    capacity: CapacityRequirements | None = None
    derived_attributes: list[DeviceDerivedAttribute] = []


class DeviceSubRequest(Struct):
    name: str = ""
    device_class_name: str = ""
    selectors: list[DeviceSelector] = []
    allocation_mode: str = "ExactCount"
    count: int = 1
    tolerations: list[Toleration] = []
    capacity: CapacityRequirements | None = None
    derived_attributes: list[DeviceDerivedAttribute] = []


class DeviceRequest(Struct):
    name: str = ""
    exactly: ExactDeviceRequest | None = None
    first_available: list[DeviceSubRequest] = []


class DeviceConstraint(Struct):
    requests: list[str] = []
    match_attribute: str | None = None
    distinct_attribute: str | None = None


class DeviceClaim(Struct):
    requests: list[DeviceRequest] = []
    constraints: list[DeviceConstraint] = []
    config: list[DeviceConfig] = []


class ResourceClaimSpec(Struct):
    devices: DeviceClaim = msgspec.field(default_factory=DeviceClaim)


class CounterSetConsumption(Struct):
    counter_set: str = ""
    counters: dict[str, Quantity] = {}


class DeviceRequestAllocationResult(Struct):
    request: str = ""
    driver: str = ""
    pool: str = ""
    device: str = ""
    admin_access: bool | None = None
    tolerations: list[Toleration] = []
    binding_conditions: list[str] = []
    binding_failure_conditions: list[str] = []
    share_id: str | None = msgspec.field(default=None, name="shareID")
    consumed_capacity: dict[str, Quantity] = {}
    consumed_counters: list[CounterSetConsumption] = []
    """Kubernetes 1.37 alpha: what the device took from counters, whatever its slice says later (KEP-5941)."""
    skip_node_operations: list[str] = []


class DeviceAllocationResult(Struct):
    results: list[DeviceRequestAllocationResult] = []
    config: list[DeviceConfig] = []


class AllocationResult(Struct):
    devices: DeviceAllocationResult = msgspec.field(default_factory=DeviceAllocationResult)
    node_selector: NodeSelector | None = None
    allocation_timestamp: str | None = None


class ConsumerReference(Struct):
    api_group: str = ""
    resource: str = ""
    name: str = ""
    uid: str = ""


class AllocatedDeviceStatus(Struct):
    driver: str = ""
    pool: str = ""
    device: str = ""
    share_id: str | None = msgspec.field(default=None, name="shareID")
    conditions: list[Condition] = []
    data: dict[str, Any] | None = None


class ResourceClaimStatus(Struct):
    allocation: AllocationResult | None = None
    reserved_for: list[ConsumerReference] = []
    devices: list[AllocatedDeviceStatus] = []


class ResourceClaim(Object):
    spec: ResourceClaimSpec = msgspec.field(default_factory=ResourceClaimSpec)
    status: ResourceClaimStatus = msgspec.field(default_factory=ResourceClaimStatus)


class ResourceClaimTemplateSpec(Struct):
    metadata: ObjectMeta = msgspec.field(default_factory=ObjectMeta)
    spec: ResourceClaimSpec = msgspec.field(default_factory=ResourceClaimSpec)


class ResourceClaimTemplate(Object):
    spec: ResourceClaimTemplateSpec = msgspec.field(default_factory=ResourceClaimTemplateSpec)


class DeviceTaintSelector(Struct):
    """All fields are optional and ANDed; an empty selector matches every device."""

    driver: str | None = None
    pool: str | None = None
    device: str | None = None


class DeviceTaintRuleSpec(Struct):
    device_selector: DeviceTaintSelector | None = None
    """Absent: matches no device."""
    taint: Taint = msgspec.field(default_factory=Taint)


class DeviceTaintRule(Object):
    spec: DeviceTaintRuleSpec = msgspec.field(default_factory=DeviceTaintRuleSpec)


class ResourcePoolStatusRequestSpec(Struct):
    driver: str = ""
    pool_name: str | None = None
    limit: int = 100
    default_partition_type_attribute: str | None = None


class PartitionTypeStatus(msgspec.Struct, rename="camel", frozen=True):
    attribute: str
    type: str
    total: int
    allocatable: int


class ShareableCapacityStatus(msgspec.Struct, rename="camel", frozen=True):
    name: str
    total: Quantity
    consumed: Quantity
    available: Quantity


class ShareableSummaryStatus(msgspec.Struct, rename="camel", frozen=True):
    fully_available_devices: int
    partially_available_devices: int
    capacity: list[ShareableCapacityStatus] = []


class PoolStatus(msgspec.Struct, rename="camel", frozen=True, omit_defaults=True, kw_only=True):
    """Counts that are unknown are absent; a count of zero is not."""

    driver: str
    pool_name: str
    generation: int
    node_name: str | None = None
    resource_slice_count: int | None = None
    total_devices: int | None = None
    allocated_devices: int | None = None
    available_devices: int | None = None
    unavailable_devices: int | None = None
    validation_error: str | None = None
    partition_summary: list[PartitionTypeStatus] = []
    shareable_summary: ShareableSummaryStatus | None = None


class ResourcePoolStatusRequestStatus(Struct):
    pool_count: int = 0
    pools: list[PoolStatus] = []
    conditions: list[Condition] = []


class ResourcePoolStatusRequest(Object):
    """`resource.k8s.io/v1alpha3`: how many devices the pools of a driver have left (KEP-5677)."""

    spec: ResourcePoolStatusRequestSpec = msgspec.field(default_factory=ResourcePoolStatusRequestSpec)
    status: ResourcePoolStatusRequestStatus | None = None
    """Absent until it is answered."""
