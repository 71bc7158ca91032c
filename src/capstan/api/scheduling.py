"""KAI objects (`scheduling.run.ai`, `kai.scheduler`), priority classes, and upstream `scheduling.k8s.io` gangs."""

from __future__ import annotations

from typing import Any

import msgspec

from capstan.api.base import Condition, Object, Struct
from capstan.api.core import Quantity
from capstan.api.resource import AllocationResult

SCHEDULER_NAME = "kai-scheduler"
QUEUE_LABEL = "kai.scheduler/queue"
USER_LABEL = "user"
"""On PodGroups or pods: whose job it is."""
NODE_POOL_LABEL = "kai.scheduler/node-pool"
POD_GROUP_ANNOTATION = "pod-group-name"
SUBGROUP_LABEL = "kai.scheduler/subgroup-name"
CLAIMED_BY_ONE = "ClaimedByOnePodGroup"
"""Capstan: a condition of pods, there only while it is False: two PodGroups claim the pod."""
TASK_PRIORITY_LABEL = "kai.scheduler/task-priority"
MAX_RUNTIME = "kai.scheduler/max-runtime"
"""On PodGroups, pods and queues: after so long a gang is evicted."""
EXPECTED_RUNTIME = "kai.scheduler/expected-runtime"
"""On PodGroups and pods: how long a gang is thought to take; nothing happens when it takes longer."""
REQUEUE_DELAY = "kai.scheduler/requeue-delay"
"""On PodGroups, pods and queues: how long a gang that was evicted for its run time waits for the next."""
STALE_SINCE = "kai.scheduler/stale-podgroup-timestamp"
"""On PodGroups: since when fewer pods of the gang run than its minimum."""
DEFAULT_QUEUE = "default-queue"
PREEMPTIBLE_BELOW = 100
"""A gang without an explicit preemptibility is preemptible below this priority (KAI)."""
SEMI_PREEMPTIBLE = "semi-preemptible"
"""The third preemptibility of a PodGroup (KAI's design): its minimum is not preemptible, what it has beyond is."""
PRIORITY_CLASSES = {"train": 50, "build-preemptible": 75, "build": 100, "inference": 125}
"""The priority classes that KAI ships, with their values."""
DEFAULT_PRIORITY = 50


class QueueResource(Struct):
    """Units: gpu in devices, cpu in millicores, memory in megabytes (10^6 bytes); -1 is unlimited."""

    quota: float = 0
    over_quota_weight: float = 1
    limit: float = -1
    lending_limit: float = -1
    """How much of the quota others may use while it is free (KAI #2202)."""


class QueueResources(Struct):
    gpu: QueueResource = msgspec.field(default_factory=QueueResource)
    cpu: QueueResource = msgspec.field(default_factory=QueueResource)
    memory: QueueResource = msgspec.field(default_factory=QueueResource)
    gpu_types: dict[str, QueueResource] = {}
    """Capstan: the same bounds per GPU product, by the value of the node label `nvidia.com/gpu.product`."""


class QueueSpec(Struct):
    display_name: str = ""
    parent_queue: str = ""
    resources: QueueResources | None = None
    priority: int | None = None
    preempt_min_runtime: str | None = None
    reclaim_min_runtime: str | None = None
    user_fairness: str = ""
    """Capstan: `DominantShare` lets the users of the queue take turns, `None` (or nothing) does not."""


class QueueStatus(Struct):
    conditions: list[Condition] = []
    child_queues: list[str] = []
    allocated: dict[str, Quantity] = {}
    allocated_non_preemptible: dict[str, Quantity] = {}
    requested: dict[str, Quantity] = {}


class Queue(Object):
    spec: QueueSpec = msgspec.field(default_factory=QueueSpec)
    status: QueueStatus = msgspec.field(default_factory=QueueStatus)


class TopologyConstraint(Struct):
    topology: str = ""
    required_topology_level: str = ""
    preferred_topology_level: str = ""


class SubGroup(Struct):
    """A node of the gang's tree: a leaf has `min_member`, an inner node `min_sub_group`."""

    name: str = ""
    min_member: int | None = None
    min_sub_group: int | None = None
    parent: str | None = None
    topology_constraint: TopologyConstraint | None = None


class PodGroupSpec(Struct):
    min_member: int | None = None
    min_sub_group: int | None = None
    queue: str = ""
    priority_class_name: str = ""
    preemptibility: str = ""
    min_non_preemptible: int | None = None
    """Of a semi-preemptible group: so many pods, or direct subgroups, are not preemptible; its minimum if not set."""
    topology_constraint: TopologyConstraint | None = None
    sub_groups: list[SubGroup] = []
    mark_unschedulable: bool | None = None
    scheduling_backoff: int | None = None
    preemption_delay: str | None = None
    staleness_grace_period: str | None = None


class UnschedulableExplanation(Struct):
    reason: str = ""
    message: str = ""
    details: dict[str, Any] | None = None


class SchedulingCondition(Struct):
    type: str = ""
    node_pool: str = ""
    reason: str = ""
    message: str = ""
    reasons: list[UnschedulableExplanation] = []
    transition_id: str = msgspec.field(default="", name="transitionID")
    last_transition_time: str | None = None
    status: str = "Unknown"


class PodGroupStatus(Struct):
    conditions: list[Condition] = []
    scheduling_conditions: list[SchedulingCondition] = []
    resources_status: dict[str, Any] | None = None


class PodGroup(Object):
    spec: PodGroupSpec = msgspec.field(default_factory=PodGroupSpec)
    status: PodGroupStatus = msgspec.field(default_factory=PodGroupStatus)


class TopologyLevel(Struct):
    node_label: str = ""
    alias: str = ""


class TopologySpec(Struct):
    levels: list[TopologyLevel] = []


class Topology(Object):
    spec: TopologySpec = msgspec.field(default_factory=TopologySpec)


class PriorityClass(Object):
    value: int = 0
    global_default: bool = False
    preemption_policy: str = "PreemptLowerPriority"
    description: str = ""


class ResourceClaimAllocation(Struct):
    """`name` is the name of the claim in the pod."""

    name: str = ""
    allocation: AllocationResult | None = None


class ExtendedResourceClaimAllocation(Struct):
    allocation: AllocationResult | None = None


class BindRequestSpec(Struct):
    pod_name: str = ""
    selected_node: str = ""
    selected_gpu_groups: list[str] = msgspec.field(default_factory=list, name="selectedGPUGroups")
    resource_claim_allocations: list[ResourceClaimAllocation] = []
    extended_resource_claim_allocation: ExtendedResourceClaimAllocation | None = None


class BindRequestStatus(Struct):
    phase: str = ""
    """Pending, Succeeded or Failed; empty at first."""


class BindRequest(Object):
    """KAI's hand-off between scheduler and binder. Capstan binds itself and only reads these."""

    spec: BindRequestSpec = msgspec.field(default_factory=BindRequestSpec)
    status: BindRequestStatus = msgspec.field(default_factory=BindRequestStatus)


class RuntimeClassScheduling(Struct):
    node_selector: dict[str, str] = {}
    tolerations: list[dict[str, Any]] = []


class RuntimeClassOverhead(Struct):
    pod_fixed: dict[str, Quantity] = {}


class RuntimeClass(Object):
    """`node.k8s.io/v1`."""

    handler: str = ""
    overhead: RuntimeClassOverhead | None = None
    scheduling: RuntimeClassScheduling | None = None
