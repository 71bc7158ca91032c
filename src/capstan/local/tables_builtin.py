"""The columns of built-in kinds, as `kubectl get` users know them (k8s.io/kubernetes pkg/printers/internalversion)."""

from __future__ import annotations

from typing import Any

from capstan.local.tables import AGE, NAME, NONE, Cells, Printer, age, since
from capstan.local.tables_workloads import (
    cron_job_cells,
    daemon_set_cells,
    deployment_cells,
    job_cells,
    labels_text,
    name_of,
    node_cells,
    pod_cells,
    replica_set_cells,
    selector_text,
    spec_of,
    stateful_set_cells,
    status_of,
)
from capstan.local.types_base import Column, Object


def _columns(text: str) -> tuple[Column, ...]:
    """Columns from a line such as `Name|Ready|Restarts:integer|Node+`: `:type` if it is not a string, `+` for wide
    output.
    """
    made: list[Column] = []
    for word in text.split("|"):
        if word in ("Name", "Age"):
            made.append(NAME if word == "Name" else AGE)
        else:
            name, _, kind = word.removesuffix("+").partition(":")
            made.append(Column(name, kind or "string", priority=int(word.endswith("+"))))
    return tuple(made)


def _event_cells(event: Object, now: float) -> list[Any]:
    first = event.get("firstTimestamp") or event.get("eventTime")
    last = event.get("lastTimestamp")
    count = event.get("count", 0)
    if series := event.get("series"):
        last, count = series.get("lastObservedTime"), series.get("count", count)
    involved, source = event.get("involvedObject") or {}, event.get("source") or {}
    component = source.get("component") or event.get("reportingComponent") or ""
    host = source.get("host") or event.get("reportingInstance") or ""
    kind = str(involved.get("kind", "")).lower()
    return [
        since(last or first, now),
        event.get("type", ""),
        event.get("reason", ""),
        f"{kind}/{involved.get('name', '')}",
        involved.get("fieldPath", ""),
        f"{component}, {host}" if host and host != component else component,
        str(event.get("message", "")).strip(),
        since(first or last, now),
        count or 1,
        name_of(event),
    ]


def _namespace_cells(obj: Object, now: float) -> list[Any]:
    return [name_of(obj), status_of(obj).get("phase", ""), age(obj, now)]


def _config_map_cells(obj: Object, now: float) -> list[Any]:
    return [name_of(obj), len(obj.get("data") or ()) + len(obj.get("binaryData") or ()), age(obj, now)]


def _secret_cells(obj: Object, now: float) -> list[Any]:
    return [name_of(obj), obj.get("type", ""), len(obj.get("data") or ()), age(obj, now)]


def _service_cells(obj: Object, now: float) -> list[Any]:
    spec = spec_of(obj)
    ports = []
    for port in spec.get("ports") or ():
        node_port = f":{port['nodePort']}" if port.get("nodePort") else ""
        ports.append(f"{port['port']}{node_port}/{port.get('protocol', 'TCP')}")
    ingress = ((status_of(obj).get("loadBalancer") or {}).get("ingress")) or ()
    external = ",".join(entry.get("ip") or entry.get("hostname", "") for entry in ingress)
    if spec.get("type") == "ExternalName":
        external = spec.get("externalName", "")
    elif not external:
        external = ",".join(spec.get("externalIPs") or ()) or (
            "<pending>" if spec.get("type") == "LoadBalancer" else NONE
        )
    return [
        name_of(obj),
        spec.get("type", ""),
        spec.get("clusterIP") or NONE,
        external,
        ",".join(ports) or NONE,
        age(obj, now),
        labels_text(spec.get("selector")),
    ]


def _endpoints_cells(obj: Object, now: float) -> list[Any]:
    found = []
    for subset in obj.get("subsets") or ():
        for address in subset.get("addresses") or ():
            ports = subset.get("ports") or ()
            found += [f"{address['ip']}:{port['port']}" for port in ports] if ports else [address["ip"]]
    text = ",".join(found[:3]) + (f" + {len(found) - 3} more..." if len(found) > 3 else "")
    return [name_of(obj), text or NONE, age(obj, now)]


def _service_account_cells(obj: Object, now: float) -> list[Any]:
    return [name_of(obj), len(obj.get("secrets") or ()), age(obj, now)]


_ACCESS = {"ReadWriteOnce": "RWO", "ReadOnlyMany": "ROX", "ReadWriteMany": "RWX", "ReadWriteOncePod": "RWOP"}


def _access_text(modes: list[str] | None) -> str:
    return ",".join(short for mode, short in _ACCESS.items() if mode in (modes or ()))


def _volume_cells(obj: Object, now: float) -> list[Any]:
    spec, status = spec_of(obj), status_of(obj)
    claim = spec.get("claimRef") or {}
    phase = "Terminating" if obj["metadata"].get("deletionTimestamp") else status.get("phase", "")
    return [
        name_of(obj),
        (spec.get("capacity") or {}).get("storage", ""),
        _access_text(spec.get("accessModes")),
        spec.get("persistentVolumeReclaimPolicy", ""),
        phase,
        f"{claim.get('namespace', '')}/{claim['name']}" if claim.get("name") else "",
        spec.get("storageClassName", ""),
        spec.get("volumeAttributesClassName") or "<unset>",
        status.get("reason", ""),
        age(obj, now),
        spec.get("volumeMode") or "<unset>",
    ]


def _volume_claim_cells(obj: Object, now: float) -> list[Any]:
    spec, status = spec_of(obj), status_of(obj)
    bound = bool(spec.get("volumeName"))
    phase = "Terminating" if obj["metadata"].get("deletionTimestamp") else status.get("phase", "")
    return [
        name_of(obj),
        phase,
        spec.get("volumeName", ""),
        (status.get("capacity") or {}).get("storage", "") if bound else "",
        _access_text(status.get("accessModes")) if bound else "",
        spec.get("storageClassName", ""),
        spec.get("volumeAttributesClassName") or "<unset>",
        age(obj, now),
        spec.get("volumeMode") or "<unset>",
    ]


def _budget_cells(obj: Object, now: float) -> list[Any]:
    spec = spec_of(obj)
    at_least, at_most = spec.get("minAvailable"), spec.get("maxUnavailable")
    return [
        name_of(obj),
        "N/A" if at_least is None else str(at_least),
        "N/A" if at_most is None else str(at_most),
        status_of(obj).get("disruptionsAllowed", 0),
        age(obj, now),
    ]


def _claim_cells(obj: Object, now: float) -> list[Any]:
    status = status_of(obj)
    words = []
    if obj["metadata"].get("deletionTimestamp"):
        words.append("deleted")
    if status.get("allocation") is None:
        words += [] if words else ["pending"]
    else:
        words.append("allocated")
        if status.get("reservedFor"):
            words.append("reserved")
    return [name_of(obj), ",".join(words), age(obj, now)]


def _slice_cells(obj: Object, now: float) -> list[Any]:
    spec = spec_of(obj)
    node = spec.get("nodeName") or ""
    if not node:
        node = "<All>" if spec.get("allNodes") else "<Selector>" if spec.get("nodeSelector") else "<PerDevice>"
    return [name_of(obj), node, spec.get("driver", ""), (spec.get("pool") or {}).get("name", ""), age(obj, now)]


def _pool_request_cells(obj: Object, now: float) -> list[Any]:
    spec, status = spec_of(obj), obj.get("status") or {}
    state = next((c["type"] for c in status.get("conditions") or () if c.get("status") == "True"), "Pending")
    pools = status.get("poolCount", 0)
    return [name_of(obj), spec.get("driver", ""), spec.get("poolName") or "<All>", pools, state, age(obj, now)]


def _taint_rule_cells(obj: Object, now: float) -> list[Any]:
    spec = spec_of(obj)
    selector, taint = spec.get("deviceSelector") or {}, spec.get("taint") or {}
    target = "/".join(selector[key] for key in ("driver", "pool", "device") if selector.get(key))
    value = f"={taint['value']}" if taint.get("value") else ""
    return [name_of(obj), target or "<All>", f"{taint.get('key', '')}{value}:{taint.get('effect', '')}", age(obj, now)]


def _binding_cells(obj: Object, now: float) -> list[Any]:
    role, subjects = obj.get("roleRef") or {}, obj.get("subjects") or ()

    def named(kind: str) -> str:
        return ", ".join(
            f"{subject['namespace']}/{subject['name']}" if kind == "ServiceAccount" else subject["name"]
            for subject in subjects
            if subject.get("kind") == kind
        )

    return [
        name_of(obj),
        f"{role.get('kind', '')}/{role.get('name', '')}",
        age(obj, now),
        named("User"),
        named("Group"),
        named("ServiceAccount"),
    ]


def _created_cells(obj: Object, _now: float) -> list[Any]:
    return [name_of(obj), obj["metadata"].get("creationTimestamp", "")]


def _priority_class_cells(obj: Object, now: float) -> list[Any]:
    return [
        name_of(obj),
        obj.get("value", 0),
        bool(obj.get("globalDefault")),
        age(obj, now),
        obj.get("preemptionPolicy", ""),
    ]


def _revision_cells(obj: Object, now: float) -> list[Any]:
    owners = [owner for owner in obj["metadata"].get("ownerReferences") or () if owner.get("controller")]
    owner = NONE
    if owners:
        group = str(owners[0]["apiVersion"]).rpartition("/")[0]
        owner = f"{str(owners[0]['kind']).lower()}{'.' if group else ''}{group}/{owners[0]['name']}"
    return [name_of(obj), owner, obj.get("revision", 0), age(obj, now)]


def _storage_class_cells(obj: Object, now: float) -> list[Any]:
    annotations = obj["metadata"].get("annotations") or {}
    default = annotations.get("storageclass.kubernetes.io/is-default-class") == "true"
    return [
        f"{name_of(obj)} (default)" if default else name_of(obj),
        obj.get("provisioner", ""),
        obj.get("reclaimPolicy") or "Delete",
        obj.get("volumeBindingMode", ""),
        bool(obj.get("allowVolumeExpansion")),
        age(obj, now),
    ]


def _of_fields(*paths: tuple[str, ...]) -> Cells:
    """Name, the values at some paths, age."""

    def cells(obj: Object, now: float) -> list[Any]:
        found: list[Any] = [name_of(obj)]
        for path in paths:
            value: Any = obj
            for step in path:
                value = (value or {}).get(step)
            found.append("" if value is None else value)
        return [*found, age(obj, now)]

    return cells


def _policy_cells(obj: Object, now: float) -> list[Any]:
    kind = spec_of(obj).get("paramKind") or {}
    shown = f"{kind.get('apiVersion', '')}/{kind.get('kind', '')}" if kind else "<unset>"
    rules = spec_of(obj).get("validations") or spec_of(obj).get("mutations") or ()
    return [name_of(obj), len(rules), shown, age(obj, now)]


def _policy_binding_cells(obj: Object, now: float) -> list[Any]:
    param = spec_of(obj).get("paramRef") or {}
    shown = "<unset>"
    if param:
        prefix = f"{param['namespace']}/" if param.get("namespace") else ""
        shown = prefix + (param.get("name") or "*")
    return [name_of(obj), spec_of(obj).get("policyName", ""), shown, age(obj, now)]


def _network_policy_cells(obj: Object, now: float) -> list[Any]:
    return [name_of(obj), selector_text(spec_of(obj).get("podSelector")), age(obj, now)]


_WIDE = "Containers+|Images+|Selector+"

PRINTERS: dict[tuple[str, str], Printer] = {
    ("", "Pod"): Printer(
        _columns("Name|Ready|Status|Restarts|Age|IP+|Node+|Nominated Node+|Readiness Gates+"), pod_cells
    ),
    ("", "Node"): Printer(
        _columns(
            "Name|Status|Roles|Age|Version|Internal-IP+|External-IP+|OS-Image+|Kernel-Version+|Container-Runtime+"
        ),
        node_cells,
    ),
    ("", "Event"): Printer(
        _columns("Last Seen|Type|Reason|Object|Subobject+|Source+|Message|First Seen+|Count:integer+|Name+"),
        _event_cells,
    ),
    ("", "Namespace"): Printer(_columns("Name|Status|Age"), _namespace_cells),
    ("", "ConfigMap"): Printer(_columns("Name|Data:integer|Age"), _config_map_cells),
    ("", "Secret"): Printer(_columns("Name|Type|Data:integer|Age"), _secret_cells),
    ("", "Service"): Printer(_columns("Name|Type|Cluster-IP|External-IP|Port(s)|Age|Selector+"), _service_cells),
    ("", "Endpoints"): Printer(_columns("Name|Endpoints|Age"), _endpoints_cells),
    ("", "ServiceAccount"): Printer(_columns("Name|Secrets:integer|Age"), _service_account_cells),
    ("", "PersistentVolume"): Printer(
        _columns(
            "Name|Capacity|Access Modes|Reclaim Policy|Status|Claim|StorageClass|VolumeAttributesClass|Reason|Age|"
            "VolumeMode+"
        ),
        _volume_cells,
    ),
    ("", "PersistentVolumeClaim"): Printer(
        _columns("Name|Status|Volume|Capacity|Access Modes|StorageClass|VolumeAttributesClass|Age|VolumeMode+"),
        _volume_claim_cells,
    ),
    ("apps", "Deployment"): Printer(
        _columns(f"Name|Ready|Up-to-date:integer|Available:integer|Age|{_WIDE}"), deployment_cells
    ),
    ("apps", "ReplicaSet"): Printer(
        _columns(f"Name|Desired:integer|Current:integer|Ready:integer|Age|{_WIDE}"), replica_set_cells
    ),
    ("apps", "StatefulSet"): Printer(_columns("Name|Ready|Age|Containers+|Images+"), stateful_set_cells),
    ("apps", "DaemonSet"): Printer(
        _columns(
            "Name|Desired:integer|Current:integer|Ready:integer|Up-to-date:integer|Available:integer|Node Selector|Age|"
            + _WIDE
        ),
        daemon_set_cells,
    ),
    ("apps", "ControllerRevision"): Printer(_columns("Name|Controller|Revision:integer|Age"), _revision_cells),
    ("batch", "Job"): Printer(_columns(f"Name|Status|Completions|Duration|Age|{_WIDE}"), job_cells),
    ("batch", "CronJob"): Printer(
        _columns(f"Name|Schedule|Timezone|Suspend|Active:integer|Last Schedule|Age|{_WIDE}"), cron_job_cells
    ),
    ("policy", "PodDisruptionBudget"): Printer(
        _columns("Name|Min Available|Max Unavailable|Allowed Disruptions:integer|Age"), _budget_cells
    ),
    ("resource.k8s.io", "ResourceClaim"): Printer(_columns("Name|State|Age"), _claim_cells),
    ("resource.k8s.io", "ResourceSlice"): Printer(_columns("Name|Node|Driver|Pool|Age"), _slice_cells),
    ("resource.k8s.io", "ResourcePoolStatusRequest"): Printer(
        _columns("Name|Driver|Pool|Pools:integer|Status|Age"), _pool_request_cells
    ),
    ("resource.k8s.io", "DeviceTaintRule"): Printer(_columns("Name|Devices|Taint|Age"), _taint_rule_cells),
    ("coordination.k8s.io", "Lease"): Printer(_columns("Name|Holder|Age"), _of_fields(("spec", "holderIdentity"))),
    ("scheduling.k8s.io", "PriorityClass"): Printer(
        _columns("Name|Value:integer|Global-Default:boolean|Age|PreemptionPolicy"), _priority_class_cells
    ),
    ("node.k8s.io", "RuntimeClass"): Printer(_columns("Name|Handler|Age"), _of_fields(("handler",))),
    ("storage.k8s.io", "StorageClass"): Printer(
        _columns("Name|Provisioner|ReclaimPolicy|VolumeBindingMode|AllowVolumeExpansion:boolean|Age"),
        _storage_class_cells,
    ),
    ("rbac.authorization.k8s.io", "Role"): Printer(_columns("Name|Created At"), _created_cells),
    ("rbac.authorization.k8s.io", "ClusterRole"): Printer(_columns("Name|Created At"), _created_cells),
    ("rbac.authorization.k8s.io", "RoleBinding"): Printer(
        _columns("Name|Role|Age|Users+|Groups+|ServiceAccounts+"), _binding_cells
    ),
    ("rbac.authorization.k8s.io", "ClusterRoleBinding"): Printer(
        _columns("Name|Role|Age|Users+|Groups+|ServiceAccounts+"), _binding_cells
    ),
    ("apiextensions.k8s.io", "CustomResourceDefinition"): Printer(_columns("Name|Created At"), _created_cells),
    ("networking.k8s.io", "NetworkPolicy"): Printer(_columns("Name|Pod-Selector|Age"), _network_policy_cells),
    ("admissionregistration.k8s.io", "ValidatingAdmissionPolicy"): Printer(
        _columns("Name|Validations:integer|ParamKind|Age"), _policy_cells
    ),
    ("admissionregistration.k8s.io", "MutatingAdmissionPolicy"): Printer(
        _columns("Name|Mutations:integer|ParamKind|Age"), _policy_cells
    ),
    ("admissionregistration.k8s.io", "ValidatingAdmissionPolicyBinding"): Printer(
        _columns("Name|PolicyName|ParamRef|Age"), _policy_binding_cells
    ),
    ("admissionregistration.k8s.io", "MutatingAdmissionPolicyBinding"): Printer(
        _columns("Name|PolicyName|ParamRef|Age"), _policy_binding_cells
    ),
}
PRINTERS["events.k8s.io", "Event"] = PRINTERS["", "Event"]
