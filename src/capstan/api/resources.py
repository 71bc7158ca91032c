"""The resources the platform itself reads: where each is served and the struct that a typed read decodes into.

A `Resource` is what clients and caches are given. Kinds without a struct of ours (users' CRDs, third-party workloads)
are described by `unstructured(...)` and read as plain dicts.
"""

from __future__ import annotations

from typing import Any, Generic, TypeVar

import msgspec

from capstan.api import apps, batch, coordination, core, kai, platform, policy, rbac, resource, scheduling, storage

T = TypeVar("T")


class Resource(msgspec.Struct, Generic[T], frozen=True, kw_only=True):
    """One served resource. `group` is empty for the core group."""

    group: str
    version: str
    plural: str
    kind: str
    namespaced: bool
    struct: type[T]

    @property
    def api_version(self) -> str:
        return f"{self.group}/{self.version}" if self.group else self.version

    @property
    def group_resource(self) -> str:
        """`plural.group`, the name in errors and RBAC rules; only `plural` for the core group."""
        return f"{self.plural}.{self.group}" if self.group else self.plural

    def path(self, namespace: str | None = None, name: str | None = None, subresource: str | None = None) -> str:
        """The URL path. Without a namespace a namespaced resource is addressed in all namespaces."""
        path = f"/apis/{self.group}/{self.version}" if self.group else f"/api/{self.version}"
        if self.namespaced and namespace:
            path += f"/namespaces/{namespace}"
        path += f"/{self.plural}"
        if name:
            path += f"/{name}"
        if subresource:
            path += f"/{subresource}"
        return path


def unstructured(group: str, version: str, plural: str, kind: str, *, namespaced: bool) -> Resource[dict[str, Any]]:
    return Resource(group=group, version=version, plural=plural, kind=kind, namespaced=namespaced, struct=dict)


def _of(api_version: str, plural: str, struct: type[T], *, namespaced: bool = True, kind: str = "") -> Resource[T]:
    group, _, version = api_version.rpartition("/")
    return Resource(
        group=group, version=version, plural=plural, kind=kind or struct.__name__, namespaced=namespaced, struct=struct
    )


PODS = _of("v1", "pods", core.Pod)
NODES = _of("v1", "nodes", core.Node, namespaced=False)
NAMESPACES = _of("v1", "namespaces", core.Namespace, namespaced=False)
EVENTS = _of("v1", "events", core.Event)
CONFIG_MAPS = _of("v1", "configmaps", core.ConfigMap)
PERSISTENT_VOLUMES = _of("v1", "persistentvolumes", core.PersistentVolume, namespaced=False)
PERSISTENT_VOLUME_CLAIMS = _of("v1", "persistentvolumeclaims", core.PersistentVolumeClaim)

DEPLOYMENTS = _of("apps/v1", "deployments", apps.Deployment)
REPLICA_SETS = _of("apps/v1", "replicasets", apps.ReplicaSet)
STATEFUL_SETS = _of("apps/v1", "statefulsets", apps.StatefulSet)
DAEMON_SETS = _of("apps/v1", "daemonsets", apps.DaemonSet)
JOBS = _of("batch/v1", "jobs", batch.Job)
CRON_JOBS = _of("batch/v1", "cronjobs", batch.CronJob)
POD_DISRUPTION_BUDGETS = _of("policy/v1", "poddisruptionbudgets", policy.PodDisruptionBudget)
LEASES = _of("coordination.k8s.io/v1", "leases", coordination.Lease)
CLUSTER_ROLES = _of("rbac.authorization.k8s.io/v1", "clusterroles", rbac.ClusterRole, namespaced=False)
CLUSTER_ROLE_BINDINGS = _of(
    "rbac.authorization.k8s.io/v1", "clusterrolebindings", rbac.ClusterRoleBinding, namespaced=False
)
ROLES = _of("rbac.authorization.k8s.io/v1", "roles", rbac.Role)
ROLE_BINDINGS = _of("rbac.authorization.k8s.io/v1", "rolebindings", rbac.RoleBinding)

DEVICE_CLASSES = _of("resource.k8s.io/v1", "deviceclasses", resource.DeviceClass, namespaced=False)
RESOURCE_SLICES = _of("resource.k8s.io/v1", "resourceslices", resource.ResourceSlice, namespaced=False)
RESOURCE_CLAIMS = _of("resource.k8s.io/v1", "resourceclaims", resource.ResourceClaim)
RESOURCE_CLAIM_TEMPLATES = _of("resource.k8s.io/v1", "resourceclaimtemplates", resource.ResourceClaimTemplate)
RESOURCE_POOL_STATUS_REQUESTS = _of(
    "resource.k8s.io/v1alpha3", "resourcepoolstatusrequests", resource.ResourcePoolStatusRequest, namespaced=False
)
DEVICE_TAINT_RULES = _of("resource.k8s.io/v1", "devicetaintrules", resource.DeviceTaintRule, namespaced=False)

PRIORITY_CLASSES = _of("scheduling.k8s.io/v1", "priorityclasses", scheduling.PriorityClass, namespaced=False)
STORAGE_CLASSES = _of("storage.k8s.io/v1", "storageclasses", storage.StorageClass, namespaced=False)
RUNTIME_CLASSES = _of("node.k8s.io/v1", "runtimeclasses", scheduling.RuntimeClass, namespaced=False)
QUEUES = _of("scheduling.run.ai/v2", "queues", scheduling.Queue, namespaced=False)
POD_GROUPS = _of("scheduling.run.ai/v2alpha2", "podgroups", scheduling.PodGroup)
BIND_REQUESTS = _of("scheduling.run.ai/v1alpha2", "bindrequests", scheduling.BindRequest)
TOPOLOGIES = _of("kai.scheduler/v1alpha1", "topologies", scheduling.Topology, namespaced=False)
SCHEDULING_SHARDS = _of("kai.scheduler/v1", "schedulingshards", kai.SchedulingShard, namespaced=False)
CONFIGS = _of("kai.scheduler/v1", "configs", kai.Config, namespaced=False)

BLUEPRINTS = _of("platform.capstan.dev/v1alpha1", "blueprints", platform.Blueprint, namespaced=False)
BLUEPRINT_VERSIONS = _of(
    "platform.capstan.dev/v1alpha1", "blueprintversions", platform.BlueprintVersion, namespaced=False
)
CLUSTERS = _of("platform.capstan.dev/v1alpha1", "clusters", platform.Cluster, namespaced=False)
ROLLOUTS = _of("platform.capstan.dev/v1alpha1", "rollouts", platform.Rollout, namespaced=False)
TENANTS = _of("platform.capstan.dev/v1alpha1", "tenants", platform.Tenant, namespaced=False)
