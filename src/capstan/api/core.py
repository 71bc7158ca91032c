"""The core group as far as the platform reads it: pods, nodes, namespaces, events, claims for storage."""

from __future__ import annotations

from typing import Any

import msgspec

from capstan.api.base import Condition, LocalObjectReference, Object, ObjectReference, Struct
from capstan.api.selectors import LabelSelector, NodeSelector, NodeSelectorTerm

Quantity = str | int | float
"""As it stands on the wire; `capstan.api.quantity` makes numbers of it."""


class ContainerPort(Struct):
    container_port: int = 0
    host_port: int = 0
    host_ip: str = msgspec.field(default="", name="hostIP")
    protocol: str = "TCP"


class ResourceClaimUse(Struct):
    """`resources.claims[]` of a container: the pod's claim by its local name, and one request of it (empty: all)."""

    name: str = ""
    request: str = ""


class Resources(Struct):
    requests: dict[str, Quantity] = {}
    limits: dict[str, Quantity] = {}
    claims: list[ResourceClaimUse] = []


class EnvVar(Struct):
    name: str = ""
    value: str = ""
    value_from: dict[str, Any] | None = None


class Container(Struct):
    name: str = ""
    image: str = ""
    command: list[str] = []
    args: list[str] = []
    env: list[EnvVar] = []
    ports: list[ContainerPort] = []
    resources: Resources = msgspec.field(default_factory=Resources)
    restart_policy: str | None = None
    """`Always` on an init container makes it a sidecar."""


class Toleration(Struct):
    key: str = ""
    operator: str = "Equal"
    value: str = ""
    effect: str = ""
    toleration_seconds: int | None = None


class Taint(Struct):
    key: str = ""
    value: str = ""
    effect: str = ""
    time_added: str | None = None


def tolerates(tolerations: list[Toleration], taint: Taint) -> bool:
    """Whether a toleration covers the taint: an empty key needs Exists, an empty effect covers every effect."""
    return any(
        (not t.effect or t.effect == taint.effect)
        and (t.key == taint.key or (not t.key and t.operator == "Exists"))
        and (t.operator == "Exists" or t.value == taint.value)
        for t in tolerations
    )


class PreferredSchedulingTerm(Struct):
    weight: int = 0
    preference: NodeSelectorTerm = msgspec.field(default_factory=NodeSelectorTerm)


class NodeAffinity(Struct):
    required_during_scheduling_ignored_during_execution: NodeSelector | None = None
    preferred_during_scheduling_ignored_during_execution: list[PreferredSchedulingTerm] = []


class PodAffinityTerm(Struct):
    label_selector: LabelSelector | None = None
    namespaces: list[str] = []
    namespace_selector: LabelSelector | None = None
    topology_key: str = ""
    match_label_keys: list[str] = []
    mismatch_label_keys: list[str] = []


class WeightedPodAffinityTerm(Struct):
    weight: int = 0
    pod_affinity_term: PodAffinityTerm = msgspec.field(default_factory=PodAffinityTerm)


class PodAffinity(Struct):
    """Also the shape of pod anti-affinity."""

    required_during_scheduling_ignored_during_execution: list[PodAffinityTerm] = []
    preferred_during_scheduling_ignored_during_execution: list[WeightedPodAffinityTerm] = []


class Affinity(Struct):
    node_affinity: NodeAffinity | None = None
    pod_affinity: PodAffinity | None = None
    pod_anti_affinity: PodAffinity | None = None


class TopologySpreadConstraint(Struct):
    max_skew: int = 1
    topology_key: str = ""
    when_unsatisfiable: str = "DoNotSchedule"
    label_selector: LabelSelector | None = None
    min_domains: int | None = None
    node_affinity_policy: str = "Honor"
    node_taints_policy: str = "Ignore"
    match_label_keys: list[str] = []


class PersistentVolumeClaimSource(Struct):
    claim_name: str = ""
    read_only: bool = False


class EphemeralVolumeSource(Struct):
    volume_claim_template: dict[str, Any] = {}


class Volume(Struct):
    name: str = ""
    persistent_volume_claim: PersistentVolumeClaimSource | None = None
    ephemeral: EphemeralVolumeSource | None = None
    config_map: LocalObjectReference | None = None


class PodResourceClaim(Struct):
    """`spec.resourceClaims[]`: exactly one of an existing claim and a template."""

    name: str = ""
    resource_claim_name: str | None = None
    resource_claim_template_name: str | None = None


class SchedulingGate(Struct):
    name: str = ""


class SchedulingGroup(Struct):
    """Kubernetes 1.36: the upstream PodGroup a pod belongs to."""

    pod_group_name: str = ""


class WorkloadReference(Struct):
    """Kubernetes 1.35: the group inside an upstream Workload a pod belongs to."""

    name: str = ""
    pod_group: str = ""
    pod_group_replica_key: str = ""


class PodSpec(Struct):
    node_name: str = ""
    scheduler_name: str = "default-scheduler"
    containers: list[Container] = []
    init_containers: list[Container] = []
    node_selector: dict[str, str] = {}
    affinity: Affinity | None = None
    tolerations: list[Toleration] = []
    topology_spread_constraints: list[TopologySpreadConstraint] = []
    volumes: list[Volume] = []
    resource_claims: list[PodResourceClaim] = []
    resources: Resources | None = None
    overhead: dict[str, Quantity] = {}
    priority: int | None = None
    priority_class_name: str = ""
    preemption_policy: str = "PreemptLowerPriority"
    restart_policy: str = "Always"
    runtime_class_name: str | None = None
    scheduling_gates: list[SchedulingGate] = []
    scheduling_group: SchedulingGroup | None = None
    workload_ref: WorkloadReference | None = None
    termination_grace_period_seconds: int = 30
    active_deadline_seconds: int | None = None
    service_account_name: str = ""
    host_network: bool = False


class ContainerState(Struct):
    waiting: dict[str, Any] | None = None
    running: dict[str, Any] | None = None
    terminated: dict[str, Any] | None = None


class ContainerStatus(Struct):
    name: str = ""
    ready: bool = False
    restart_count: int = 0
    state: ContainerState = msgspec.field(default_factory=ContainerState)
    last_state: ContainerState = msgspec.field(default_factory=ContainerState)


class PodResourceClaimStatus(Struct):
    name: str = ""
    resource_claim_name: str | None = None


class ExtendedResourceRequestMapping(Struct):
    container_name: str = ""
    resource_name: str = ""
    request_name: str = ""


class ExtendedResourceClaimStatus(Struct):
    """KEP-5004: the claim that the scheduler made for a pod's extended resources."""

    resource_claim_name: str = ""
    request_mappings: list[ExtendedResourceRequestMapping] = []


class PodStatus(Struct):
    phase: str = "Pending"
    reason: str = ""
    message: str = ""
    conditions: list[Condition] = []
    container_statuses: list[ContainerStatus] = []
    init_container_statuses: list[ContainerStatus] = []
    pod_ip: str = msgspec.field(default="", name="podIP")
    start_time: str | None = None
    nominated_node_name: str = ""
    resource_claim_statuses: list[PodResourceClaimStatus] = []
    extended_resource_claim_status: ExtendedResourceClaimStatus | None = None


class Pod(Object):
    spec: PodSpec = msgspec.field(default_factory=PodSpec)
    status: PodStatus = msgspec.field(default_factory=PodStatus)


class NodeSpec(Struct):
    unschedulable: bool = False
    taints: list[Taint] = []
    provider_id: str = msgspec.field(default="", name="providerID")


class NodeStatus(Struct):
    capacity: dict[str, Quantity] = {}
    allocatable: dict[str, Quantity] = {}
    conditions: list[Condition] = []


class Node(Object):
    spec: NodeSpec = msgspec.field(default_factory=NodeSpec)
    status: NodeStatus = msgspec.field(default_factory=NodeStatus)

    @property
    def ready(self) -> bool:
        return any(c.type == "Ready" and c.status == "True" for c in self.status.conditions)


class NamespaceStatus(Struct):
    phase: str = "Active"


class Namespace(Object):
    status: NamespaceStatus = msgspec.field(default_factory=NamespaceStatus)


class ConfigMap(Object):
    """`binary_data` is in base64."""

    data: dict[str, str] = {}
    binary_data: dict[str, str] = {}


class EventSource(Struct):
    component: str = ""
    host: str = ""


class Event(Object):
    involved_object: ObjectReference = msgspec.field(default_factory=ObjectReference)
    type: str = "Normal"
    reason: str = ""
    message: str = ""
    count: int = 1
    first_timestamp: str | None = None
    last_timestamp: str | None = None
    reporting_component: str = ""
    source: EventSource = msgspec.field(default_factory=EventSource)


class PersistentVolumeClaimSpec(Struct):
    storage_class_name: str | None = None
    volume_name: str = ""
    access_modes: list[str] = []
    volume_mode: str = "Filesystem"
    resources: Resources = msgspec.field(default_factory=Resources)
    selector: LabelSelector | None = None


class PersistentVolumeClaimStatus(Struct):
    phase: str = "Pending"


class PersistentVolumeClaim(Object):
    spec: PersistentVolumeClaimSpec = msgspec.field(default_factory=PersistentVolumeClaimSpec)
    status: PersistentVolumeClaimStatus = msgspec.field(default_factory=PersistentVolumeClaimStatus)


class VolumeNodeAffinity(Struct):
    required: NodeSelector | None = None


class PersistentVolumeSpec(Struct):
    storage_class_name: str = ""
    capacity: dict[str, Quantity] = {}
    access_modes: list[str] = []
    volume_mode: str = "Filesystem"
    node_affinity: VolumeNodeAffinity | None = None
    claim_ref: ObjectReference | None = None
    persistent_volume_reclaim_policy: str = "Retain"


class PersistentVolumeStatus(Struct):
    phase: str = "Pending"


class PersistentVolume(Object):
    spec: PersistentVolumeSpec = msgspec.field(default_factory=PersistentVolumeSpec)
    status: PersistentVolumeStatus = msgspec.field(default_factory=PersistentVolumeStatus)
