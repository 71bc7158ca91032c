"""The columns of built-in kinds, as `kubectl get` users know them (k8s.io/kubernetes pkg/printers/internalversion)."""

from __future__ import annotations

from typing import Any

from capstan.api import clock
from capstan.local.tables import AGE, NAME, NONE, UNKNOWN, Cells, Printer, age, human_duration, since
from capstan.local.types_base import Column, Object


def _columns(text: str) -> tuple[Column, ...]:
    """Columns from a line such as `Name|Ready|Restarts:integer|Node+`: `:type` if it is not a string, `+` for wide
    output."""
    made: list[Column] = []
    for word in text.split("|"):
        if word in ("Name", "Age"):
            made.append(NAME if word == "Name" else AGE)
        else:
            name, _, kind = word.removesuffix("+").partition(":")
            made.append(Column(name, kind or "string", priority=int(word.endswith("+"))))
    return tuple(made)


def _name(obj: Object) -> str:
    return str(obj["metadata"].get("name", ""))


def _spec(obj: Object) -> Object:
    return obj.get("spec") or {}


def _status(obj: Object) -> Object:
    return obj.get("status") or {}


def _condition(obj: Object, kind: str) -> Object:
    for condition in _status(obj).get("conditions") or ():
        if condition.get("type") == kind:
            return dict(condition)
    return {}


def _images(template: Object) -> tuple[str, str]:
    containers = (template.get("spec") or {}).get("containers") or []
    return ",".join(c["name"] for c in containers), ",".join(c.get("image", "") for c in containers)


def selector_text(selector: Object | None) -> str:
    """A label selector in the form of `kubectl -l`."""
    if not selector:
        return NONE
    parts = [f"{key}={value}" for key, value in sorted((selector.get("matchLabels") or {}).items())]
    for requirement in selector.get("matchExpressions") or ():
        key, values = requirement["key"], ",".join(requirement.get("values") or ())
        parts.append(
            {
                "In": f"{key} in ({values})",
                "NotIn": f"{key} notin ({values})",
                "Exists": key,
                "DoesNotExist": f"!{key}",
            }[requirement["operator"]]
        )
    return ",".join(parts) or NONE


def _labels_text(labels: Object | None) -> str:
    return ",".join(f"{key}={value}" for key, value in sorted((labels or {}).items())) or NONE


def _pod_cells(pod: Object, now: float) -> list[Any]:
    spec, status = _spec(pod), _status(pod)
    reason = status.get("reason") or status.get("phase", "")
    if any(gate for gate in spec.get("schedulingGates") or ()) and status.get("phase") == "Pending":
        reason = "SchedulingGated"
    sidecars = {c["name"] for c in spec.get("initContainers") or () if c.get("restartPolicy") == "Always"}
    total = len(spec.get("containers") or ()) + len(sidecars)
    ready = restarts = 0
    last_restart = 0.0
    initializing = False
    init_statuses = status.get("initContainerStatuses") or ()
    for index, container in enumerate(init_statuses):
        restarts += container.get("restartCount", 0)
        last_restart = max(last_restart, _finished(container.get("lastState")))
        state = container.get("state") or {}
        ended = state.get("terminated")
        if ended is not None and ended.get("exitCode") == 0:
            continue
        if container["name"] in sidecars and container.get("started"):
            ready += bool(container.get("ready"))
            continue
        if initializing:
            continue
        if ended is not None:
            reason = f"Init:{ended.get('reason') or _exit(ended)}"
        elif (waiting := state.get("waiting") or {}).get("reason") not in (None, "", "PodInitializing"):
            reason = f"Init:{waiting['reason']}"
        else:
            reason = f"Init:{index}/{len(spec.get('initContainers') or ())}"
        initializing = True
    if not initializing:
        running = False
        for container in reversed(status.get("containerStatuses") or ()):
            restarts += container.get("restartCount", 0)
            last_restart = max(last_restart, _finished(container.get("lastState")))
            state = container.get("state") or {}
            if (waiting := state.get("waiting")) and waiting.get("reason"):
                reason = waiting["reason"]
            elif (ended := state.get("terminated")) is not None:
                reason = ended.get("reason") or _exit(ended)
            elif container.get("ready") and state.get("running") is not None:
                running = True
                ready += 1
        if reason == "Completed" and running:
            reason = "Running" if _condition(pod, "Ready").get("status") == "True" else "NotReady"
    if pod["metadata"].get("deletionTimestamp"):
        reason = "Unknown" if status.get("reason") == "NodeLost" else "Terminating"
    shown: Any = str(restarts)
    if restarts and last_restart:
        shown = f"{restarts} ({human_duration(now - last_restart)} ago)"
    gates = spec.get("readinessGates") or ()
    passed = sum(_condition(pod, gate["conditionType"]).get("status") == "True" for gate in gates)
    return [
        _name(pod),
        f"{ready}/{total}",
        reason,
        shown,
        age(pod, now),
        status.get("podIP") or NONE,
        spec.get("nodeName") or NONE,
        status.get("nominatedNodeName") or NONE,
        f"{passed}/{len(gates)}" if gates else NONE,
    ]


def _exit(ended: Object) -> str:
    return f"Signal:{ended['signal']}" if ended.get("signal") else f"ExitCode:{ended.get('exitCode', 0)}"


def _finished(state: Object | None) -> float:
    return clock.parse(((state or {}).get("terminated") or {}).get("finishedAt"))


_ROLE_PREFIX = "node-role.kubernetes.io/"


def _node_cells(node: Object, now: float) -> list[Any]:
    ready = _condition(node, "Ready")
    words = [("Ready" if ready.get("status") == "True" else "NotReady") if ready else "Unknown"]
    if _spec(node).get("unschedulable"):
        words.append("SchedulingDisabled")
    labels = node["metadata"].get("labels") or {}
    roles = {key.removeprefix(_ROLE_PREFIX) for key in labels if key.startswith(_ROLE_PREFIX)}
    if labels.get("kubernetes.io/role"):
        roles.add(labels["kubernetes.io/role"])
    addresses = {entry["type"]: entry["address"] for entry in reversed(_status(node).get("addresses") or ())}
    info = _status(node).get("nodeInfo") or {}
    return [
        _name(node),
        ",".join(words),
        ",".join(sorted(role for role in roles if role)) or NONE,
        age(node, now),
        info.get("kubeletVersion", ""),
        addresses.get("InternalIP", NONE),
        addresses.get("ExternalIP", NONE),
        info.get("osImage") or UNKNOWN,
        info.get("kernelVersion") or UNKNOWN,
        info.get("containerRuntimeVersion") or UNKNOWN,
    ]


def _deployment_cells(obj: Object, now: float) -> list[Any]:
    status = _status(obj)
    return [
        _name(obj),
        f"{status.get('readyReplicas', 0)}/{_spec(obj).get('replicas', 1)}",
        status.get("updatedReplicas", 0),
        status.get("availableReplicas", 0),
        age(obj, now),
        *_images(_spec(obj).get("template") or {}),
        selector_text(_spec(obj).get("selector")),
    ]


def _replica_set_cells(obj: Object, now: float) -> list[Any]:
    status = _status(obj)
    return [
        _name(obj),
        _spec(obj).get("replicas", 1),
        status.get("replicas", 0),
        status.get("readyReplicas", 0),
        age(obj, now),
        *_images(_spec(obj).get("template") or {}),
        selector_text(_spec(obj).get("selector")),
    ]


def _stateful_set_cells(obj: Object, now: float) -> list[Any]:
    ready = f"{_status(obj).get('readyReplicas', 0)}/{_spec(obj).get('replicas', 1)}"
    return [_name(obj), ready, age(obj, now), *_images(_spec(obj).get("template") or {})]


def _daemon_set_cells(obj: Object, now: float) -> list[Any]:
    status, template = _status(obj), _spec(obj).get("template") or {}
    return [
        _name(obj),
        status.get("desiredNumberScheduled", 0),
        status.get("currentNumberScheduled", 0),
        status.get("numberReady", 0),
        status.get("updatedNumberScheduled", 0),
        status.get("numberAvailable", 0),
        _labels_text((template.get("spec") or {}).get("nodeSelector")),
        age(obj, now),
        *_images(template),
        selector_text(_spec(obj).get("selector")),
    ]


def _job_cells(job: Object, now: float) -> list[Any]:
    spec, status = _spec(job), _status(job)
    succeeded, parallelism = status.get("succeeded", 0), spec.get("parallelism", 1)
    if spec.get("completions") is not None:
        completions = f"{succeeded}/{spec['completions']}"
    else:
        completions = f"{succeeded}/1 of {parallelism}" if parallelism > 1 else f"{succeeded}/1"
    duration = ""
    if started := clock.parse(status.get("startTime")):
        ended = clock.parse(status.get("completionTime")) or now
        duration = human_duration(ended - started)
    return [
        _name(job),
        _job_status(job),
        completions,
        duration,
        age(job, now),
        *_images(spec.get("template") or {}),
        selector_text(spec.get("selector")),
    ]


def _job_status(job: Object) -> str:
    for kind, word in (
        ("Complete", "Complete"),
        ("Failed", "Failed"),
        ("SuccessCriteriaMet", "SuccessCriteriaMet"),
        ("FailureTarget", "FailureTarget"),
        ("Suspended", "Suspended"),
    ):
        if _condition(job, kind).get("status") == "True":
            return word
    return "Terminating" if job["metadata"].get("deletionTimestamp") else "Running"


def _cron_job_cells(obj: Object, now: float) -> list[Any]:
    spec, status = _spec(obj), _status(obj)
    last = status.get("lastScheduleTime")
    return [
        _name(obj),
        spec.get("schedule", ""),
        spec.get("timeZone") or NONE,
        "True" if spec.get("suspend") else "False",
        len(status.get("active") or ()),
        since(last, now) if last else NONE,
        age(obj, now),
        *_images(((spec.get("jobTemplate") or {}).get("spec") or {}).get("template") or {}),
        NONE,
    ]


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
        _name(event),
    ]


def _namespace_cells(obj: Object, now: float) -> list[Any]:
    return [_name(obj), _status(obj).get("phase", ""), age(obj, now)]


def _config_map_cells(obj: Object, now: float) -> list[Any]:
    return [_name(obj), len(obj.get("data") or ()) + len(obj.get("binaryData") or ()), age(obj, now)]


def _secret_cells(obj: Object, now: float) -> list[Any]:
    return [_name(obj), obj.get("type", ""), len(obj.get("data") or ()), age(obj, now)]


def _service_cells(obj: Object, now: float) -> list[Any]:
    spec = _spec(obj)
    ports = []
    for port in spec.get("ports") or ():
        node_port = f":{port['nodePort']}" if port.get("nodePort") else ""
        ports.append(f"{port['port']}{node_port}/{port.get('protocol', 'TCP')}")
    ingress = ((_status(obj).get("loadBalancer") or {}).get("ingress")) or ()
    external = ",".join(entry.get("ip") or entry.get("hostname", "") for entry in ingress)
    if spec.get("type") == "ExternalName":
        external = spec.get("externalName", "")
    elif not external:
        external = ",".join(spec.get("externalIPs") or ()) or (
            "<pending>" if spec.get("type") == "LoadBalancer" else NONE
        )
    return [
        _name(obj),
        spec.get("type", ""),
        spec.get("clusterIP") or NONE,
        external,
        ",".join(ports) or NONE,
        age(obj, now),
        _labels_text(spec.get("selector")),
    ]


def _endpoints_cells(obj: Object, now: float) -> list[Any]:
    found = []
    for subset in obj.get("subsets") or ():
        for address in subset.get("addresses") or ():
            ports = subset.get("ports") or ()
            found += [f"{address['ip']}:{port['port']}" for port in ports] if ports else [address["ip"]]
    text = ",".join(found[:3]) + (f" + {len(found) - 3} more..." if len(found) > 3 else "")
    return [_name(obj), text or NONE, age(obj, now)]


def _service_account_cells(obj: Object, now: float) -> list[Any]:
    return [_name(obj), len(obj.get("secrets") or ()), age(obj, now)]


_ACCESS = {"ReadWriteOnce": "RWO", "ReadOnlyMany": "ROX", "ReadWriteMany": "RWX", "ReadWriteOncePod": "RWOP"}


def _access_text(modes: list[str] | None) -> str:
    return ",".join(short for mode, short in _ACCESS.items() if mode in (modes or ()))


def _volume_cells(obj: Object, now: float) -> list[Any]:
    spec, status = _spec(obj), _status(obj)
    claim = spec.get("claimRef") or {}
    phase = "Terminating" if obj["metadata"].get("deletionTimestamp") else status.get("phase", "")
    return [
        _name(obj),
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
    spec, status = _spec(obj), _status(obj)
    bound = bool(spec.get("volumeName"))
    phase = "Terminating" if obj["metadata"].get("deletionTimestamp") else status.get("phase", "")
    return [
        _name(obj),
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
    spec = _spec(obj)
    at_least, at_most = spec.get("minAvailable"), spec.get("maxUnavailable")
    return [
        _name(obj),
        "N/A" if at_least is None else str(at_least),
        "N/A" if at_most is None else str(at_most),
        _status(obj).get("disruptionsAllowed", 0),
        age(obj, now),
    ]


def _claim_cells(obj: Object, now: float) -> list[Any]:
    status = _status(obj)
    words = []
    if obj["metadata"].get("deletionTimestamp"):
        words.append("deleted")
    if status.get("allocation") is None:
        words += [] if words else ["pending"]
    else:
        words.append("allocated")
        if status.get("reservedFor"):
            words.append("reserved")
    return [_name(obj), ",".join(words), age(obj, now)]


def _slice_cells(obj: Object, now: float) -> list[Any]:
    spec = _spec(obj)
    node = spec.get("nodeName") or ""
    if not node:
        node = "<All>" if spec.get("allNodes") else "<Selector>" if spec.get("nodeSelector") else "<PerDevice>"
    return [_name(obj), node, spec.get("driver", ""), (spec.get("pool") or {}).get("name", ""), age(obj, now)]


def _taint_rule_cells(obj: Object, now: float) -> list[Any]:
    spec = _spec(obj)
    selector, taint = spec.get("deviceSelector") or {}, spec.get("taint") or {}
    target = "/".join(selector[key] for key in ("driver", "pool", "device") if selector.get(key))
    value = f"={taint['value']}" if taint.get("value") else ""
    return [_name(obj), target or "<All>", f"{taint.get('key', '')}{value}:{taint.get('effect', '')}", age(obj, now)]


def _binding_cells(obj: Object, now: float) -> list[Any]:
    role, subjects = obj.get("roleRef") or {}, obj.get("subjects") or ()

    def named(kind: str) -> str:
        return ", ".join(
            f"{subject['namespace']}/{subject['name']}" if kind == "ServiceAccount" else subject["name"]
            for subject in subjects
            if subject.get("kind") == kind
        )

    return [
        _name(obj),
        f"{role.get('kind', '')}/{role.get('name', '')}",
        age(obj, now),
        named("User"),
        named("Group"),
        named("ServiceAccount"),
    ]


def _created_cells(obj: Object, _now: float) -> list[Any]:
    return [_name(obj), obj["metadata"].get("creationTimestamp", "")]


def _priority_class_cells(obj: Object, now: float) -> list[Any]:
    return [
        _name(obj),
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
    return [_name(obj), owner, obj.get("revision", 0), age(obj, now)]


def _storage_class_cells(obj: Object, now: float) -> list[Any]:
    annotations = obj["metadata"].get("annotations") or {}
    default = annotations.get("storageclass.kubernetes.io/is-default-class") == "true"
    return [
        f"{_name(obj)} (default)" if default else _name(obj),
        obj.get("provisioner", ""),
        obj.get("reclaimPolicy") or "Delete",
        obj.get("volumeBindingMode", ""),
        bool(obj.get("allowVolumeExpansion")),
        age(obj, now),
    ]


def _of_fields(*paths: tuple[str, ...]) -> Cells:
    """Name, the values at some paths, age."""

    def cells(obj: Object, now: float) -> list[Any]:
        found: list[Any] = [_name(obj)]
        for path in paths:
            value: Any = obj
            for step in path:
                value = (value or {}).get(step)
            found.append("" if value is None else value)
        return [*found, age(obj, now)]

    return cells


def _policy_cells(obj: Object, now: float) -> list[Any]:
    kind = _spec(obj).get("paramKind") or {}
    shown = f"{kind.get('apiVersion', '')}/{kind.get('kind', '')}" if kind else "<unset>"
    rules = _spec(obj).get("validations") or _spec(obj).get("mutations") or ()
    return [_name(obj), len(rules), shown, age(obj, now)]


def _policy_binding_cells(obj: Object, now: float) -> list[Any]:
    param = _spec(obj).get("paramRef") or {}
    shown = "<unset>"
    if param:
        prefix = f"{param['namespace']}/" if param.get("namespace") else ""
        shown = prefix + (param.get("name") or "*")
    return [_name(obj), _spec(obj).get("policyName", ""), shown, age(obj, now)]


def _network_policy_cells(obj: Object, now: float) -> list[Any]:
    return [_name(obj), selector_text(_spec(obj).get("podSelector")), age(obj, now)]


_WIDE = "Containers+|Images+|Selector+"

PRINTERS: dict[tuple[str, str], Printer] = {
    ("", "Pod"): Printer(
        _columns("Name|Ready|Status|Restarts|Age|IP+|Node+|Nominated Node+|Readiness Gates+"), _pod_cells
    ),
    ("", "Node"): Printer(
        _columns(
            "Name|Status|Roles|Age|Version|Internal-IP+|External-IP+|OS-Image+|Kernel-Version+|Container-Runtime+"
        ),
        _node_cells,
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
        _columns(f"Name|Ready|Up-to-date:integer|Available:integer|Age|{_WIDE}"), _deployment_cells
    ),
    ("apps", "ReplicaSet"): Printer(
        _columns(f"Name|Desired:integer|Current:integer|Ready:integer|Age|{_WIDE}"), _replica_set_cells
    ),
    ("apps", "StatefulSet"): Printer(_columns("Name|Ready|Age|Containers+|Images+"), _stateful_set_cells),
    ("apps", "DaemonSet"): Printer(
        _columns(
            "Name|Desired:integer|Current:integer|Ready:integer|Up-to-date:integer|Available:integer|Node Selector|Age|"
            + _WIDE
        ),
        _daemon_set_cells,
    ),
    ("apps", "ControllerRevision"): Printer(_columns("Name|Controller|Revision:integer|Age"), _revision_cells),
    ("batch", "Job"): Printer(_columns(f"Name|Status|Completions|Duration|Age|{_WIDE}"), _job_cells),
    ("batch", "CronJob"): Printer(
        _columns(f"Name|Schedule|Timezone|Suspend|Active:integer|Last Schedule|Age|{_WIDE}"), _cron_job_cells
    ),
    ("policy", "PodDisruptionBudget"): Printer(
        _columns("Name|Min Available|Max Unavailable|Allowed Disruptions:integer|Age"), _budget_cells
    ),
    ("resource.k8s.io", "ResourceClaim"): Printer(_columns("Name|State|Age"), _claim_cells),
    ("resource.k8s.io", "ResourceSlice"): Printer(_columns("Name|Node|Driver|Pool|Age"), _slice_cells),
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
