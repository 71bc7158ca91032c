"""What each built-in kind does beyond its schema: conditional defaults, initial status, immutable fields,
validation."""

from __future__ import annotations

from base64 import b64encode
from collections.abc import Callable

import msgspec

from capstan.api.base import StatusCause
from capstan.local import validation_pods as pods
from capstan.local import validation_workloads as workloads
from capstan.local.structural_errors import forbidden
from capstan.local.validation import Causes, Object, immutable

Change = Callable[[Object], None]
Compare = Callable[[Object, Object], None]


class Rules(msgspec.Struct, frozen=True, kw_only=True):
    """The rules of one kind; what is not given follows from the schema."""

    name_rule: str = "k8s-long-name"
    needs_spec: bool = False
    default: Change | None = None
    """Defaults that depend on other fields; runs after those of the schema."""
    create: Change | None = None
    update: Compare | None = None
    status_update: Compare | None = None
    status_metadata: tuple[str, ...] = ()
    """metadata fields that may change together with the status"""
    initial_status: Object = {}
    creates_with_status: bool = False
    validate: Callable[[Object, Object | None], list[StatusCause]] | None = None
    validate_status: Callable[[Object, Object], list[StatusCause]] | None = None
    selectable: tuple[str, ...] = ()
    storage_version: str = ""
    to_storage: Callable[[Object], Object] | None = None
    from_storage: Callable[[Object], Object] | None = None


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


RULES: dict[tuple[str, str], Rules] = {
    ("", "Pod"): Rules(
        needs_spec=True,
        default=_default_pod,
        create=_create_pod,
        validate=_validate_pod,
        selectable=(
            "spec.nodeName",
            "spec.restartPolicy",
            "spec.schedulerName",
            "spec.serviceAccountName",
            "spec.hostNetwork",
            "status.phase",
            "status.podIP",
            "status.nominatedNodeName",
        ),
    ),
    ("", "Node"): Rules(creates_with_status=True, selectable=("spec.unschedulable",), status_metadata=("annotations",)),
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
            "source",
            "type",
        )
    ),
    ("apps", "Deployment"): Rules(
        needs_spec=True, default=workloads.default_deployment, validate=workloads.validate_deployment
    ),
    ("apps", "ReplicaSet"): Rules(
        needs_spec=True,
        default=workloads.default_workload,
        validate=workloads.validate_replica_set,
        initial_status={"replicas": 0},
        selectable=("status.replicas",),
    ),
    ("apps", "StatefulSet"): Rules(
        needs_spec=True,
        default=workloads.default_stateful_set,
        validate=workloads.validate_stateful_set,
        initial_status={"replicas": 0, "availableReplicas": 0},
    ),
    ("apps", "DaemonSet"): Rules(
        needs_spec=True,
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
        needs_spec=True,
        default=workloads.default_job,
        create=workloads.generate_job_selector,
        validate=workloads.validate_job,
        selectable=("status.successful",),
    ),
    ("batch", "CronJob"): Rules(
        needs_spec=True, default=workloads.default_cron_job, validate=workloads.validate_cron_job
    ),
}
