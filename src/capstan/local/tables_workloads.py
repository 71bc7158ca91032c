"""The cells of pods, nodes and the controllers that make pods, and what other printers share with them."""

from __future__ import annotations

from typing import Any

from capstan.api import clock
from capstan.local.tables import NONE, UNKNOWN, age, human_duration, since
from capstan.local.types_base import Object


def name_of(obj: Object) -> str:
    return str(obj["metadata"].get("name", ""))


def spec_of(obj: Object) -> Object:
    return obj.get("spec") or {}


def status_of(obj: Object) -> Object:
    return obj.get("status") or {}


def condition(obj: Object, kind: str) -> Object:
    for entry in status_of(obj).get("conditions") or ():
        if entry.get("type") == kind:
            return dict(entry)
    return {}


def images(template: Object) -> tuple[str, str]:
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


def labels_text(labels: Object | None) -> str:
    return ",".join(f"{key}={value}" for key, value in sorted((labels or {}).items())) or NONE


def pod_cells(pod: Object, now: float) -> list[Any]:
    spec, status = spec_of(pod), status_of(pod)
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
            reason = "Running" if condition(pod, "Ready").get("status") == "True" else "NotReady"
    if pod["metadata"].get("deletionTimestamp"):
        reason = "Unknown" if status.get("reason") == "NodeLost" else "Terminating"
    shown: Any = str(restarts)
    if restarts and last_restart:
        shown = f"{restarts} ({human_duration(now - last_restart)} ago)"
    gates = spec.get("readinessGates") or ()
    passed = sum(condition(pod, gate["conditionType"]).get("status") == "True" for gate in gates)
    return [
        name_of(pod),
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


def node_cells(node: Object, now: float) -> list[Any]:
    ready = condition(node, "Ready")
    words = [("Ready" if ready.get("status") == "True" else "NotReady") if ready else "Unknown"]
    if spec_of(node).get("unschedulable"):
        words.append("SchedulingDisabled")
    labels = node["metadata"].get("labels") or {}
    roles = {key.removeprefix(_ROLE_PREFIX) for key in labels if key.startswith(_ROLE_PREFIX)}
    if labels.get("kubernetes.io/role"):
        roles.add(labels["kubernetes.io/role"])
    addresses = {entry["type"]: entry["address"] for entry in reversed(status_of(node).get("addresses") or ())}
    info = status_of(node).get("nodeInfo") or {}
    return [
        name_of(node),
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


def deployment_cells(obj: Object, now: float) -> list[Any]:
    status = status_of(obj)
    return [
        name_of(obj),
        f"{status.get('readyReplicas', 0)}/{spec_of(obj).get('replicas', 1)}",
        status.get("updatedReplicas", 0),
        status.get("availableReplicas", 0),
        age(obj, now),
        *images(spec_of(obj).get("template") or {}),
        selector_text(spec_of(obj).get("selector")),
    ]


def replica_set_cells(obj: Object, now: float) -> list[Any]:
    status = status_of(obj)
    return [
        name_of(obj),
        spec_of(obj).get("replicas", 1),
        status.get("replicas", 0),
        status.get("readyReplicas", 0),
        age(obj, now),
        *images(spec_of(obj).get("template") or {}),
        selector_text(spec_of(obj).get("selector")),
    ]


def stateful_set_cells(obj: Object, now: float) -> list[Any]:
    ready = f"{status_of(obj).get('readyReplicas', 0)}/{spec_of(obj).get('replicas', 1)}"
    return [name_of(obj), ready, age(obj, now), *images(spec_of(obj).get("template") or {})]


def daemon_set_cells(obj: Object, now: float) -> list[Any]:
    status, template = status_of(obj), spec_of(obj).get("template") or {}
    return [
        name_of(obj),
        status.get("desiredNumberScheduled", 0),
        status.get("currentNumberScheduled", 0),
        status.get("numberReady", 0),
        status.get("updatedNumberScheduled", 0),
        status.get("numberAvailable", 0),
        labels_text((template.get("spec") or {}).get("nodeSelector")),
        age(obj, now),
        *images(template),
        selector_text(spec_of(obj).get("selector")),
    ]


def job_cells(job: Object, now: float) -> list[Any]:
    spec, status = spec_of(job), status_of(job)
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
        name_of(job),
        _job_status(job),
        completions,
        duration,
        age(job, now),
        *images(spec.get("template") or {}),
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
        if condition(job, kind).get("status") == "True":
            return word
    return "Terminating" if job["metadata"].get("deletionTimestamp") else "Running"


def cron_job_cells(obj: Object, now: float) -> list[Any]:
    spec, status = spec_of(obj), status_of(obj)
    last = status.get("lastScheduleTime")
    return [
        name_of(obj),
        spec.get("schedule", ""),
        spec.get("timeZone") or NONE,
        "True" if spec.get("suspend") else "False",
        len(status.get("active") or ()),
        since(last, now) if last else NONE,
        age(obj, now),
        *images(((spec.get("jobTemplate") or {}).get("spec") or {}).get("template") or {}),
        NONE,
    ]
