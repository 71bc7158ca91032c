"""Admission: what a write must pass before it is stored. Mutating plugins first, validation by the type, validating
plugins last.

A plugin is a plain function over `Attributes`; it changes `object` in place (mutating) or raises `Refused`. Plugins
must not wait: a write is decided in one step, so nothing can change between its checks and its place in the log.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

import msgspec

from capstan.api.base import StatusCause
from capstan.local import status
from capstan.local.request import User
from capstan.local.status import Json
from capstan.local.store import Store
from capstan.local.types import ResourceType

Operation = Literal["CREATE", "UPDATE", "DELETE", "CONNECT"]
_NODE_TROUBLE = ("node.kubernetes.io/not-ready", "node.kubernetes.io/unreachable")
ADMIN_ACCESS_LABEL = "resource.kubernetes.io/admin-access"


class Attributes(msgspec.Struct, kw_only=True):
    """One write. `object` is None for DELETE, `old` for CREATE."""

    operation: Operation
    resource: ResourceType
    namespace: str
    name: str
    subresource: str = ""
    object: Json | None
    old: Json | None
    user: User
    dry_run: bool = False
    warnings: list[str]

    def forbidden(self, why: str) -> status.Refused:
        return status.forbidden(self.resource.plural, self.resource.group, self.name, why)


Plugin = Callable[[Attributes], None]


class Chain:
    """The plugins, in order. Append to `mutating` or `validating` to add policy."""

    def __init__(self, store: Store) -> None:
        builtin = _Builtin(store)
        self.mutating: list[Plugin] = [
            builtin.service_account,
            builtin.priority,
            builtin.runtime_class,
            builtin.default_tolerations,
        ]
        self.validating: list[Plugin] = [builtin.admin_access]
        self.namespace = builtin.namespace

    def mutate(self, attributes: Attributes) -> Json:
        """The object as the plugins leave it; they may change it or put another in its place."""
        for plugin in self.mutating:
            plugin(attributes)
        assert attributes.object is not None, "an object that is written does not vanish in admission"
        return attributes.object

    def validate(self, attributes: Attributes) -> None:
        for plugin in self.validating:
            plugin(attributes)


class _Builtin:
    """The compiled-in plugins that the platform's own use needs; ResourceQuota and LimitRange are not served at all."""

    def __init__(self, store: Store) -> None:
        self._store = store

    def _read(self, key: str) -> Json | None:
        record = self._store.get(key)
        return record.decode() if record is not None else None

    def namespace(self, attributes: Attributes) -> None:
        """NamespaceLifecycle: nothing is created in a namespace that is missing (404) or terminating (403)."""
        name = attributes.namespace
        record = self._store.get(f"//namespaces//{name}")
        if record is None:
            raise status.not_found("namespaces", "", name)
        if b'"deletionTimestamp"' in record.value and record.decode()["metadata"].get("deletionTimestamp"):
            refusal = attributes.forbidden(
                f"unable to create new content in namespace {name} because it is being terminated"
            )
            refusal.body["details"]["causes"] = [
                {
                    "reason": "NamespaceTerminating",
                    "message": f"namespace {name} is being terminated",
                    "field": "metadata.namespace",
                }
            ]
            raise refusal

    @staticmethod
    def _new_pod(attributes: Attributes) -> Json | None:
        """The spec of a pod that is being created."""
        return _Builtin._pod(attributes) if attributes.operation == "CREATE" else None

    @staticmethod
    def _pod(attributes: Attributes) -> Json | None:
        """The spec of a pod that is being written, unless it is only its status."""
        resource = attributes.resource
        if resource.plural != "pods" or resource.group or attributes.subresource:
            return None
        spec = attributes.object.get("spec") if attributes.object is not None else None
        return spec if isinstance(spec, dict) else None

    def service_account(self, attributes: Attributes) -> None:
        """A pod without a service account runs as `default`; a named one must exist."""
        spec = self._new_pod(attributes)
        if spec is None:
            return
        name = spec.get("serviceAccountName") or spec.get("serviceAccount") or "default"
        spec["serviceAccountName"] = spec["serviceAccount"] = name
        if name != "default" and self._store.get(f"//serviceaccounts/{attributes.namespace}/{name}") is None:
            raise attributes.forbidden(
                f'error looking up service account {attributes.namespace}/{name}: serviceaccount "{name}" not found'
            )

    def priority(self, attributes: Attributes) -> None:
        """Priority: `spec.priority` and the preemption policy come from the class, or from the global default class."""
        spec = self._new_pod(attributes)
        if spec is None:
            return
        name = spec.get("priorityClassName", "")
        if name:
            found = self._read(f"/scheduling.k8s.io/priorityclasses//{name}")
            if found is None:
                raise attributes.forbidden(f"no PriorityClass with name {name} was found")
        else:
            found = self._default_priority_class()
            if found is not None:
                spec["priorityClassName"] = found["metadata"]["name"]
        value = found.get("value", 0) if found is not None else 0
        if spec.get("priority") not in (None, value):
            raise attributes.forbidden(
                f"the integer value of priority ({spec['priority']}) must not be provided in pod spec; "
                f"priority admission controller computed {value} from the given PriorityClass name"
            )
        policy = (found or {}).get("preemptionPolicy") or "PreemptLowerPriority"
        if spec.get("preemptionPolicy") not in (None, policy):
            raise attributes.forbidden(
                f"the string value of PreemptionPolicy ({spec['preemptionPolicy']}) must not be provided in pod spec; "
                f"priority admission controller computed {policy} from the given PriorityClass name"
            )
        spec["priority"] = value
        spec["preemptionPolicy"] = policy

    def _default_priority_class(self) -> Json | None:
        """Of several global defaults the lowest value counts, as upstream has it."""
        records = self._store.table("/scheduling.k8s.io/priorityclasses/").objects.values()
        defaults = [record.decode() for record in records if b'"globalDefault":true' in record.value]
        return min(defaults, key=lambda each: int(each.get("value", 0)), default=None)

    def runtime_class(self, attributes: Attributes) -> None:
        """RuntimeClass: pod overhead and the class's scheduling constraints are merged in (KEP-585, KEP-688)."""
        spec = self._new_pod(attributes)
        name = spec.get("runtimeClassName") if spec is not None else None
        if spec is None:
            return
        if not name:
            if spec.get("overhead"):
                raise attributes.forbidden(
                    "pod rejected: Pod Overhead set without corresponding RuntimeClass defined Overhead"
                )
            return
        found = self._read(f"/node.k8s.io/runtimeclasses//{name}")
        if found is None:
            raise attributes.forbidden(f'pod rejected: RuntimeClass "{name}" not found')
        overhead = (found.get("overhead") or {}).get("podFixed")
        if spec.get("overhead") and spec["overhead"] != overhead:
            raise attributes.forbidden(
                "pod rejected: Pod's Overhead doesn't match RuntimeClass's defined Overhead; leave spec.overhead out"
            )
        if overhead:
            spec["overhead"] = overhead
        scheduling = found.get("scheduling") or {}
        for key, value in (scheduling.get("nodeSelector") or {}).items():
            selector = spec.setdefault("nodeSelector", {})
            if selector.setdefault(key, value) != value:
                raise attributes.forbidden(
                    f"conflict: runtimeClass.scheduling.nodeSelector[{key}] = {value}, "
                    f"pod.spec.nodeSelector = {selector[key]}"
                )
        for toleration in scheduling.get("tolerations") or []:
            if toleration not in spec.setdefault("tolerations", []):
                spec["tolerations"].append(toleration)

    def default_tolerations(self, attributes: Attributes) -> None:
        """DefaultTolerationSeconds: a pod stays five minutes on a node that is not ready or cannot be reached.

        Also on updates: an apply replaces the whole list by the one in its manifest.
        """
        spec = self._pod(attributes)
        if spec is None:
            return
        for key in _NODE_TROUBLE:
            if not any(
                toleration.get("key") in (None, "", key) and toleration.get("effect") in (None, "", "NoExecute")
                for toleration in spec.get("tolerations") or []
            ):
                toleration = {"key": key, "operator": "Exists", "effect": "NoExecute", "tolerationSeconds": 300}
                spec.setdefault("tolerations", []).append(toleration)

    def admin_access(self, attributes: Attributes) -> None:
        """KEP-5018: claims and templates with adminAccess only in namespaces that carry the label."""
        resource = attributes.resource
        if resource.group != "resource.k8s.io" or attributes.operation != "CREATE" or attributes.object is None:
            return
        if resource.plural == "resourceclaims":
            spec, where = attributes.object.get("spec") or {}, "spec"
        elif resource.plural == "resourceclaimtemplates":
            spec, where = (attributes.object.get("spec") or {}).get("spec") or {}, "spec.spec"
        else:
            return
        causes = [
            StatusCause(
                reason="FieldValueForbidden",
                message=(
                    f"Forbidden: admin access to devices requires the `{ADMIN_ACCESS_LABEL}: true` label "
                    "on the containing namespace"
                ),
                field=f"{where}.devices.requests[{index}].exactly.adminAccess",
            )
            for index, request in enumerate((spec.get("devices") or {}).get("requests") or [])
            if (request.get("exactly") or request).get("adminAccess")
        ]
        if not causes:
            return
        namespace = self._read(f"//namespaces//{attributes.namespace}") or {"metadata": {}}
        if (namespace["metadata"].get("labels") or {}).get(ADMIN_ACCESS_LABEL) != "true":
            raise status.invalid(resource.kind, resource.group, attributes.name, causes)
