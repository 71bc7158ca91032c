"""What each built-in kind does beyond its schema: conditional defaults, first status, fixed fields, validation."""

from __future__ import annotations

from base64 import b64encode
from collections.abc import Callable

import msgspec

from capstan.api.base import StatusCause
from capstan.api.feature_gates import FeatureGates
from capstan.local import validation_claims as claims
from capstan.local import validation_crds as crds
from capstan.local import validation_pods as pods
from capstan.local import validation_policies as policies
from capstan.local import validation_pools as pools
from capstan.local import validation_slices as slices
from capstan.local import validation_workloads as workloads
from capstan.local.structural_errors import forbidden, invalid, required
from capstan.local.validation import Causes, Object, immutable, label_selector

Change = Callable[[Object], None]
Compare = Callable[[Object, Object], None]


class Rules(msgspec.Struct, frozen=True, kw_only=True):
    """The rules of one kind; what is not given follows from the schema."""

    name_rule: str = "k8s-long-name"
    default: Change | None = None
    """Defaults that depend on other fields; runs after those of the schema."""
    default_status: Change | None = None
    """Those of the status alone, which a write of the status gets as well."""
    create: Change | None = None
    update: Compare | None = None
    status_update: Compare | None = None
    status_metadata: tuple[str, ...] = ()
    """metadata fields that may change together with the status"""
    initial_status: Object = {}
    creates_with_status: bool = False
    validate: Callable[[Object, Object | None], list[StatusCause]] | None = None
    validate_gated: Callable[[Object, Object | None, FeatureGates], list[StatusCause]] | None = None
    """as `validate`, where what is valid depends on feature gates"""
    validate_status: Callable[[Object, Object], list[StatusCause]] | None = None
    selectable: tuple[str, ...] = ()
    """field labels, each with `=path` where the value stands elsewhere and `?text` for an absent one"""


def _default_pod(pod: Object) -> None:
    pods.default_pod_spec(pod["spec"])


def _create_pod(pod: Object) -> None:
    pod["status"] = {"phase": "Pending", "qosClass": pods.qos_class(pod.get("spec") or {})}


def _validate_pod(new: Object, old: Object | None) -> Causes:
    causes: Causes = []
    if old is None:
        pods.pod_spec(new["spec"], "spec", causes)
    else:
        pods.pod_update(new, old, causes)
        if not causes and new["spec"] != old["spec"]:
            pods.pod_spec(new["spec"], "spec", causes)
    return causes


def _create_namespace(namespace: Object) -> None:
    finalizers = namespace.setdefault("spec", {}).setdefault("finalizers", [])
    if "kubernetes" not in finalizers:
        finalizers.append("kubernetes")
    namespace["status"] = {"phase": "Active"}
    namespace["metadata"].setdefault("labels", {})["kubernetes.io/metadata.name"] = namespace["metadata"].get(
        "name", ""
    )


def _update_namespace(new: Object, old: Object) -> None:
    """Finalizers change only through the finalize subresource; the name label cannot be taken away."""
    new["spec"] = old.get("spec", {})
    new["metadata"].setdefault("labels", {})["kubernetes.io/metadata.name"] = old["metadata"]["name"]


def _validate_config_map(new: Object, old: Object | None) -> Causes:
    causes: Causes = []
    for key in set(new.get("data") or {}) & set(new.get("binaryData") or {}):
        causes.append(forbidden(f"data[{key}]", "duplicate of key present in binaryData"))
    _validate_frozen_data(new, old, ("data", "binaryData"), causes)
    return causes


def _validate_frozen_data(new: Object, old: Object | None, fields: tuple[str, ...], causes: Causes) -> None:
    if old is not None and old.get("immutable"):
        if not new.get("immutable"):
            causes.append(forbidden("immutable", "field is immutable when `immutable` is set"))
        for field in fields:
            if new.get(field) != old.get(field):
                causes.append(forbidden(field, "field is immutable when `immutable` is set"))


def _fill_secret(secret: Object) -> None:
    """`stringData` is write-only: it becomes base64 in `data`."""
    if text := secret.pop("stringData", None):
        data = secret.setdefault("data", {})
        for key, value in text.items():
            data[key] = b64encode(value.encode()).decode("ascii")


def _validate_secret(new: Object, old: Object | None) -> Causes:
    causes: Causes = []
    _validate_frozen_data(new, old, ("data", "type"), causes)
    if old is not None:
        immutable(new.get("type"), old.get("type"), "type", causes)
    return causes


def _default_service(service: Object) -> None:
    spec = service["spec"]
    for port in spec.get("ports") or ():
        if port.get("targetPort") in (None, "", 0):
            port["targetPort"] = port.get("port")
    if spec.get("type") != "ExternalName":
        spec.setdefault("internalTrafficPolicy", "Cluster")
    if spec.get("type") in ("NodePort", "LoadBalancer"):
        spec.setdefault("externalTrafficPolicy", "Cluster")


def _validate_service(new: Object, old: Object | None) -> Causes:
    causes: Causes = []
    spec = new["spec"]
    ports = spec.get("ports") or ()
    if not ports and spec.get("clusterIP") != "None" and spec.get("type") != "ExternalName":
        causes.append(required("spec.ports"))
    if len(ports) > 1:
        for index, port in enumerate(ports):
            if not port.get("name"):
                causes.append(required(f"spec.ports[{index}].name"))
    if spec.get("type") == "ExternalName" and not spec.get("externalName"):
        causes.append(required("spec.externalName"))
    if old is not None and old["spec"].get("clusterIP") and spec.get("type") != "ExternalName":
        immutable(spec.get("clusterIP"), old["spec"]["clusterIP"], "spec.clusterIPs[0]", causes)
    return causes


def _keep_service_address(new: Object, old: Object) -> None:
    """A client that leaves the address out means the one the service has."""
    for key in ("clusterIP", "clusterIPs", "ipFamilies", "ipFamilyPolicy"):
        if not new["spec"].get(key) and old["spec"].get(key):
            new["spec"][key] = old["spec"][key]


def _default_node(node: Object) -> None:
    node.setdefault("spec", {})


def _default_node_status(node: Object) -> None:
    status = node.setdefault("status", {})
    if "allocatable" not in status and "capacity" in status:
        status["allocatable"] = dict(status["capacity"])


def _validate_budget(new: Object, _old: Object | None) -> Causes:
    causes: Causes = []
    spec = new.get("spec") or {}
    if spec.get("minAvailable") is not None and spec.get("maxUnavailable") is not None:
        shown = {key: spec[key] for key in ("minAvailable", "maxUnavailable")}
        causes.append(invalid("spec", shown, "minAvailable and maxUnavailable cannot be both set"))
    for key in ("minAvailable", "maxUnavailable"):
        if spec.get(key) is not None:
            workloads.amount(spec[key], f"spec.{key}", causes)
    label_selector(spec.get("selector"), "spec.selector", causes)
    return causes


def _validate_priority_class(new: Object, old: Object | None) -> Causes:
    causes: Causes = []
    name, value = new["metadata"].get("name", ""), new.get("value", 0)
    if name.startswith("system-") and name not in ("system-node-critical", "system-cluster-critical"):
        detail = "priority class names with 'system-' prefix are reserved for system use only"
        causes.append(forbidden("metadata.name", detail))
    elif value > 1_000_000_000 and not name.startswith("system-"):
        detail = "maximum allowed value of a user defined priority is 1000000000"
        causes.append(forbidden("value", detail))
    if old is not None:
        if value != old.get("value", 0):
            causes.append(forbidden("value", "may not be changed in an update."))
        immutable(new.get("preemptionPolicy"), old.get("preemptionPolicy"), "preemptionPolicy", causes)
    return causes


def _policy(policy: Object, path: str, causes: Causes) -> None:
    if len(policy.keys() & {"basic", "gang"}) != 1:
        causes.append(invalid(path, policy, "exactly one of `basic` and `gang` must be set"))


def _validate_pod_group(new: Object, old: Object | None) -> Causes:
    causes: Causes = []
    _policy(new["spec"]["schedulingPolicy"], "spec.schedulingPolicy", causes)
    if old is not None:
        immutable(new["spec"], old["spec"], "spec", causes)
    return causes


def _validate_workload(new: Object, old: Object | None) -> Causes:
    causes: Causes = []
    for at, template in enumerate(new["spec"]["podGroupTemplates"]):
        _policy(template["schedulingPolicy"], f"spec.podGroupTemplates[{at}].schedulingPolicy", causes)
    if old is not None:
        immutable(new["spec"], old["spec"], "spec", causes)
    return causes


def _validate_runtime_class(new: Object, old: Object | None) -> Causes:
    causes: Causes = []
    if overhead := new.get("overhead"):
        pods.resource_requirements({"limits": overhead.get("podFixed")}, "overhead.podFixed", None, causes)
    if old is not None:
        immutable(new.get("handler"), old.get("handler"), "handler", causes)
    return causes


def _validate_lease(new: Object, _old: Object | None) -> Causes:
    causes: Causes = []
    spec = new.get("spec") or {}
    if spec.get("holderIdentity") == "":
        causes.append(invalid("spec.holderIdentity", "", "must not be empty"))
    return causes


def _validate_storage_class(new: Object, old: Object | None) -> Causes:
    causes: Causes = []
    if old is not None:
        for key in ("provisioner", "parameters", "reclaimPolicy", "volumeBindingMode"):
            if new.get(key) != old.get(key):
                causes.append(forbidden(key, f"updates to {key} are forbidden."))
    return causes


def _validate_volume_claim(new: Object, old: Object | None) -> Causes:
    causes: Causes = []
    spec = new["spec"]
    if not spec.get("accessModes"):
        causes.append(required("spec.accessModes", "at least 1 access mode is required"))
    if not ((spec.get("resources") or {}).get("requests") or {}).get("storage"):
        causes.append(required("spec.resources[storage]"))
    if old is not None:
        loose = ("resources", "volumeName", "volumeAttributesClassName", "storageClassName")
        after = {key: value for key, value in spec.items() if key not in loose}
        if after != {key: value for key, value in old["spec"].items() if key not in loose}:
            detail = "spec is immutable after creation except resources.requests and volumeAttributesClassName"
            causes.append(forbidden("spec", detail))
    return causes


def _validate_revision(new: Object, old: Object | None) -> Causes:
    causes: Causes = []
    if old is not None:
        immutable(new.get("data"), old.get("data"), "data", causes)
    return causes


_RBAC = "rbac.authorization.k8s.io"
_DEVICES = "resource.k8s.io"
_ADMISSION = "admissionregistration.k8s.io"

RULES: dict[tuple[str, str], Rules] = {
    ("", "Pod"): Rules(
        default=_default_pod,
        create=_create_pod,
        validate=_validate_pod,
        selectable=(
            "spec.nodeName",
            "spec.restartPolicy",
            "spec.schedulerName",
            "spec.serviceAccountName",
            "spec.hostNetwork?false",
            "status.phase",
            "status.podIP",
            "status.nominatedNodeName",
        ),
    ),
    ("", "Node"): Rules(
        default=_default_node,
        default_status=_default_node_status,
        creates_with_status=True,
        selectable=("spec.unschedulable?false",),
        status_metadata=("annotations", "labels"),
    ),
    ("", "Namespace"): Rules(
        name_rule="k8s-short-name", create=_create_namespace, update=_update_namespace, selectable=("status.phase",)
    ),
    ("", "ConfigMap"): Rules(validate=_validate_config_map),
    ("", "Secret"): Rules(default=_fill_secret, validate=_validate_secret, selectable=("type",)),
    ("", "Event"): Rules(
        selectable=(
            "involvedObject.kind",
            "involvedObject.namespace",
            "involvedObject.name",
            "involvedObject.uid",
            "involvedObject.apiVersion",
            "involvedObject.resourceVersion",
            "involvedObject.fieldPath",
            "reason",
            "reportingComponent",
            "source=source.component",
            "type",
        )
    ),
    ("apps", "Deployment"): Rules(default=workloads.default_deployment, validate=workloads.validate_deployment),
    ("apps", "ReplicaSet"): Rules(
        default=workloads.default_workload,
        validate=workloads.validate_replica_set,
        initial_status={"replicas": 0},
        selectable=("status.replicas?0",),
    ),
    ("apps", "StatefulSet"): Rules(
        default=workloads.default_stateful_set,
        validate=workloads.validate_stateful_set,
        initial_status={"replicas": 0, "availableReplicas": 0},
    ),
    ("apps", "DaemonSet"): Rules(
        default=workloads.default_daemon_set,
        validate=workloads.validate_daemon_set,
        initial_status={
            "currentNumberScheduled": 0,
            "numberMisscheduled": 0,
            "desiredNumberScheduled": 0,
            "numberReady": 0,
        },
    ),
    ("batch", "Job"): Rules(
        default=workloads.default_job,
        create=workloads.generate_job_selector,
        validate=workloads.validate_job,
        selectable=("status.successful=status.succeeded?0",),
    ),
    ("batch", "CronJob"): Rules(default=workloads.default_cron_job, validate=workloads.validate_cron_job),
    ("", "Service"): Rules(
        name_rule="k8s-short-name",
        default=_default_service,
        update=_keep_service_address,
        initial_status={"loadBalancer": {}},
        validate=_validate_service,
        selectable=("spec.clusterIP", "spec.type"),
    ),
    ("", "PersistentVolume"): Rules(initial_status={"phase": "Pending"}),
    ("", "PersistentVolumeClaim"): Rules(initial_status={"phase": "Pending"}, validate=_validate_volume_claim),
    ("apps", "ControllerRevision"): Rules(validate=_validate_revision),
    ("events.k8s.io", "Event"): Rules(
        selectable=("regarding.kind", "regarding.namespace", "regarding.name", "reason", "reportingController", "type")
    ),
    ("policy", "PodDisruptionBudget"): Rules(
        initial_status={"disruptionsAllowed": 0, "currentHealthy": 0, "desiredHealthy": 0, "expectedPods": 0},
        validate=_validate_budget,
    ),
    ("scheduling.k8s.io", "PriorityClass"): Rules(validate=_validate_priority_class),
    ("scheduling.k8s.io", "PodGroup"): Rules(validate=_validate_pod_group),
    ("scheduling.k8s.io", "Workload"): Rules(validate=_validate_workload),
    ("node.k8s.io", "RuntimeClass"): Rules(validate=_validate_runtime_class),
    ("coordination.k8s.io", "Lease"): Rules(validate=_validate_lease),
    ("storage.k8s.io", "StorageClass"): Rules(validate=_validate_storage_class),
    (_RBAC, "ClusterRole"): Rules(name_rule="path-segment", validate=policies.validate_role),
    (_RBAC, "Role"): Rules(name_rule="path-segment", validate=policies.validate_role),
    (_RBAC, "ClusterRoleBinding"): Rules(
        name_rule="path-segment", default=policies.default_subjects, validate=policies.validate_role_binding
    ),
    (_RBAC, "RoleBinding"): Rules(
        name_rule="path-segment", default=policies.default_subjects, validate=policies.validate_role_binding
    ),
    (_DEVICES, "DeviceClass"): Rules(validate_gated=claims.validate_class),
    (_DEVICES, "ResourceClaim"): Rules(
        default=claims.default_claim,
        validate_gated=claims.validate_claim,
        validate_status=claims.validate_claim_status,
    ),
    (_DEVICES, "ResourceClaimTemplate"): Rules(
        default=claims.default_template, validate_gated=claims.validate_template
    ),
    (_DEVICES, "ResourceSlice"): Rules(
        default=slices.default_slice,
        validate_gated=slices.validate_slice,
        selectable=("spec.nodeName", "spec.driver", "spec.pool.name"),
    ),
    (_DEVICES, "DeviceTaintRule"): Rules(
        default=slices.default_taint_rule,
        update=slices.update_taint_rule,
        validate=slices.validate_taint_rule,
        validate_status=slices.validate_taint_rule_status,
    ),
    (_DEVICES, "ResourcePoolStatusRequest"): Rules(
        create=pools.leave_unanswered,
        validate=pools.validate_request,
        validate_status=pools.validate_answer,
    ),
    (_ADMISSION, "ValidatingAdmissionPolicy"): Rules(validate=policies.validate_policy),
    (_ADMISSION, "ValidatingAdmissionPolicyBinding"): Rules(validate=policies.validate_policy_binding),
    (_ADMISSION, "MutatingAdmissionPolicy"): Rules(validate=policies.validate_policy),
    (_ADMISSION, "MutatingAdmissionPolicyBinding"): Rules(validate=policies.validate_policy_binding),
    ("apiextensions.k8s.io", "CustomResourceDefinition"): Rules(
        default=crds.default_definition,
        validate=crds.validate_definition,
    ),
}
