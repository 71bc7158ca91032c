"""Deployments, replica sets, stateful sets, daemon sets, jobs: conditional defaults, validation, immutable fields.

Rules: k8s.io/kubernetes pkg/apis/apps and pkg/apis/batch (defaults, validation, strategies).
"""

from __future__ import annotations

import re

from capstan.local.structural_errors import forbidden, invalid, required, unsupported
from capstan.local.validation import Causes, Object, immutable, label_selector, selects
from capstan.local.validation_pods import default_pod_spec, pod_template

_IMMUTABLE = "field is immutable"
_PERCENT = re.compile(r"[0-9]+%")
CONTROLLER_UID = "batch.kubernetes.io/controller-uid"
JOB_NAME = "batch.kubernetes.io/job-name"
_LEGACY_CONTROLLER_UID = "controller-uid"
_LEGACY_JOB_NAME = "job-name"


def default_workload(obj: Object) -> None:
    """Defaults of a controller's pod template."""
    if (spec := (obj["spec"].get("template") or {}).get("spec")) is not None:
        default_pod_spec(spec)


def default_deployment(obj: Object) -> None:
    default_workload(obj)
    strategy = obj["spec"]["strategy"]
    if strategy.get("type") == "RollingUpdate":
        rolling = strategy.setdefault("rollingUpdate", {})
        rolling.setdefault("maxUnavailable", "25%")
        rolling.setdefault("maxSurge", "25%")


def default_stateful_set(obj: Object) -> None:
    default_workload(obj)
    strategy = obj["spec"]["updateStrategy"]
    if strategy.get("type") == "RollingUpdate":
        strategy.setdefault("rollingUpdate", {}).setdefault("partition", 0)
    for claim in obj["spec"].get("volumeClaimTemplates") or ():
        claim.setdefault("apiVersion", "v1")
        claim.setdefault("kind", "PersistentVolumeClaim")
        claim.setdefault("status", {"phase": "Pending"})


def default_daemon_set(obj: Object) -> None:
    default_workload(obj)
    strategy = obj["spec"]["updateStrategy"]
    if strategy.get("type") == "RollingUpdate":
        rolling = strategy.setdefault("rollingUpdate", {})
        rolling.setdefault("maxUnavailable", 1)
        rolling.setdefault("maxSurge", 0)


def default_job(obj: Object) -> None:
    default_job_spec(obj["spec"])


def default_job_spec(spec: Object) -> None:
    """Neither completions nor parallelism: one pod. Only completions: one at a time."""
    if (pod := (spec.get("template") or {}).get("spec")) is not None:
        default_pod_spec(pod)
    if spec.get("completions") is None and spec.get("parallelism") is None:
        spec["completions"] = 1
    if spec.get("parallelism") is None:
        spec["parallelism"] = 1
    if spec.get("backoffLimit") is None:
        spec["backoffLimit"] = 2**31 - 1 if spec.get("backoffLimitPerIndex") is not None else 6
    if spec.get("podReplacementPolicy") is None:
        spec["podReplacementPolicy"] = "Failed" if spec.get("podFailurePolicy") else "TerminatingOrFailed"


def default_cron_job(obj: Object) -> None:
    """Only fixed defaults apply to a CronJob's job template, plus those of its pods."""
    job = (obj["spec"].get("jobTemplate") or {}).get("spec") or {}
    if (pod := (job.get("template") or {}).get("spec")) is not None:
        default_pod_spec(pod)


def generate_job_selector(obj: Object) -> None:
    """Unless `manualSelector`, a job selects its pods by its own UID; the template gets the labels that match."""
    spec, meta = obj["spec"], obj["metadata"]
    template = spec.setdefault("template", {})
    template_labels = template.setdefault("metadata", {}).setdefault("labels", {})
    if spec.get("manualSelector"):
        return
    uid, name = meta.get("uid", ""), meta.get("name", "")
    for key, value in (
        (_LEGACY_CONTROLLER_UID, uid),
        (CONTROLLER_UID, uid),
        (_LEGACY_JOB_NAME, name),
        (JOB_NAME, name),
    ):
        template_labels[key] = value
    selector = spec.get("selector")
    if not selector:
        spec["selector"] = {"matchLabels": {CONTROLLER_UID: uid}}


def _selector_and_template(obj: Object, causes: Causes) -> None:
    spec = obj["spec"]
    selector = spec.get("selector") or {}
    if not selector.get("matchLabels") and not selector.get("matchExpressions"):
        causes.append(invalid("spec.selector", selector, "empty selector is invalid for " + obj["kind"].lower()))
        return
    before = len(causes)
    label_selector(selector, "spec.selector", causes)
    template = spec.get("template")
    if template is None:
        causes.append(required("spec.template"))
        return
    labels = (template.get("metadata") or {}).get("labels") or {}
    if len(causes) == before and not selects(selector, labels):
        causes.append(invalid("spec.template.metadata.labels", labels, "`selector` does not match template `labels`"))
    pod_template(template, "spec.template", causes)
    restart = (template.get("spec") or {}).get("restartPolicy")
    if restart not in (None, "Always"):
        causes.append(unsupported("spec.template.spec.restartPolicy", restart, ["Always"]))


def amount(value: object, path: str, causes: Causes) -> int | None:
    """A count or a percentage; the number, or None when it is a percentage or wrong."""
    if isinstance(value, str):
        if not _PERCENT.fullmatch(value):
            causes.append(
                invalid(path, value, "a valid percent string must be a numeric string followed by an ending '%'")
            )
        elif int(value[:-1]) == 0:
            return 0
        return None
    if isinstance(value, int):
        if value < 0:
            causes.append(invalid(path, value, "must be greater than or equal to 0"))
        return value
    return None


def validate_deployment(new: Object, old: Object | None) -> Causes:
    causes: Causes = []
    spec = new["spec"]
    _selector_and_template(new, causes)
    strategy = spec.get("strategy") or {}
    rolling = strategy.get("rollingUpdate")
    if strategy.get("type") == "Recreate" and rolling is not None:
        detail = "may not be specified when strategy `type` is 'Recreate'"
        causes.append(forbidden("spec.strategy.rollingUpdate", detail))
    elif rolling is not None:
        path = "spec.strategy.rollingUpdate"
        unavailable = amount(rolling.get("maxUnavailable"), f"{path}.maxUnavailable", causes)
        if unavailable == 0 and amount(rolling.get("maxSurge"), f"{path}.maxSurge", causes) == 0:
            causes.append(invalid(f"{path}.maxUnavailable", unavailable, "may not be 0 when `maxSurge` is 0"))
    deadline = spec.get("progressDeadlineSeconds")
    if deadline is not None and deadline <= spec.get("minReadySeconds", 0):
        causes.append(invalid("spec.progressDeadlineSeconds", deadline, "must be greater than minReadySeconds"))
    if old is not None:
        immutable(spec.get("selector"), old["spec"].get("selector"), "spec.selector", causes)
    return causes


def validate_replica_set(new: Object, old: Object | None) -> Causes:
    causes: Causes = []
    _selector_and_template(new, causes)
    if old is not None:
        immutable(new["spec"].get("selector"), old["spec"].get("selector"), "spec.selector", causes)
    return causes


_STATEFUL_MUTABLE = (
    "replicas", "ordinals", "template", "updateStrategy", "revisionHistoryLimit",
    "persistentVolumeClaimRetentionPolicy", "minReadySeconds",
)  # fmt: skip


def _with_claimed_volumes(obj: Object) -> Object:
    """The StatefulSet as its pods will be: containers may mount the volumes of its claim templates."""
    spec = obj["spec"]
    templates = spec.get("volumeClaimTemplates") or ()
    claimed = [{"name": (claim.get("metadata") or {}).get("name", ""), "emptyDir": {}} for claim in templates]
    template = spec.get("template") or {}
    if not claimed or not template.get("spec"):
        return obj
    names = {volume["name"] for volume in claimed}
    own = [volume for volume in template["spec"].get("volumes") or () if volume["name"] not in names]
    pod = {**template["spec"], "volumes": [*own, *claimed]}
    return {**obj, "spec": {**spec, "template": {**template, "spec": pod}}}


def validate_stateful_set(new: Object, old: Object | None) -> Causes:
    causes: Causes = []
    _selector_and_template(_with_claimed_volumes(new), causes)
    if old is not None:
        frozen = {key: value for key, value in new["spec"].items() if key not in _STATEFUL_MUTABLE}
        if frozen != {key: value for key, value in old["spec"].items() if key not in _STATEFUL_MUTABLE}:
            names = ", ".join(f"'{name}'" for name in _STATEFUL_MUTABLE[:-1])
            detail = (
                f"updates to statefulset spec for fields other than {names} and '{_STATEFUL_MUTABLE[-1]}' are forbidden"
            )
            causes.append(forbidden("spec", detail))
    return causes


def validate_daemon_set(new: Object, old: Object | None) -> Causes:
    causes: Causes = []
    _selector_and_template(new, causes)
    rolling = (new["spec"].get("updateStrategy") or {}).get("rollingUpdate")
    if rolling is not None:
        path = "spec.updateStrategy.rollingUpdate"
        unavailable = amount(rolling.get("maxUnavailable"), f"{path}.maxUnavailable", causes)
        if unavailable == 0 and amount(rolling.get("maxSurge"), f"{path}.maxSurge", causes) == 0:
            causes.append(invalid(f"{path}.maxUnavailable", 0, "cannot be 0 when maxSurge is 0"))
    if old is not None:
        immutable(new["spec"].get("selector"), old["spec"].get("selector"), "spec.selector", causes)
    return causes


def validate_job(new: Object, old: Object | None) -> Causes:
    causes: Causes = []
    spec = new["spec"]
    job_spec(spec, "spec", causes)
    labels = ((spec.get("template") or {}).get("metadata") or {}).get("labels") or {}
    selector = spec.get("selector")
    if not selector:
        causes.append(required("spec.selector"))
    elif not selects(selector, labels):
        causes.append(invalid("spec.template.metadata.labels", labels, "`selector` does not match template `labels`"))
    if old is not None:
        _job_update(spec, old, causes)
    return causes


def _job_update(spec: Object, old: Object, causes: Causes) -> None:
    before = old["spec"]
    indexed = spec.get("completionMode") == "Indexed"
    if not (indexed and spec.get("completions") == spec.get("parallelism")):
        immutable(spec.get("completions"), before.get("completions"), "spec.completions", causes)
    for field in (
        "selector",
        "completionMode",
        "podFailurePolicy",
        "backoffLimitPerIndex",
        "managedBy",
        "successPolicy",
    ):
        immutable(spec.get(field), before.get(field), f"spec.{field}", causes)
    suspended = before.get("suspend") and not (old.get("status") or {}).get("startTime")
    if _fixed_template(spec, suspended=bool(suspended)) != _fixed_template(before, suspended=bool(suspended)):
        causes.append(invalid("spec.template", spec.get("template"), _IMMUTABLE))


def _fixed_template(spec: Object, *, suspended: bool) -> Object:
    """What may not change; a suspended job that never started may get other scheduling directives (KEP-2926)."""
    template: Object = spec.get("template") or {}
    if not suspended:
        return template
    meta = {k: v for k, v in (template.get("metadata") or {}).items() if k not in ("labels", "annotations")}
    loose = ("nodeSelector", "affinity", "tolerations", "schedulingGates")
    pod = {key: value for key, value in (template.get("spec") or {}).items() if key not in loose}
    return {"metadata": meta, "spec": pod}


def job_spec(spec: Object, path: str, causes: Causes) -> None:
    template = spec.get("template")
    if template is None:
        return
    pod_template(template, f"{path}.template", causes)
    restart = (template.get("spec") or {}).get("restartPolicy")
    if restart == "Always":
        causes.append(
            required(f"{path}.template.spec.restartPolicy", 'valid values: "OnFailure", "Never"')
            if not restart
            else unsupported(f"{path}.template.spec.restartPolicy", restart, ["OnFailure", "Never"])
        )
    if spec.get("completionMode") == "Indexed" and spec.get("completions") is None:
        causes.append(required(f"{path}.completions", "when completion mode is Indexed"))
    if spec.get("backoffLimitPerIndex") is not None and spec.get("completionMode") != "Indexed":
        causes.append(
            invalid(f"{path}.backoffLimitPerIndex", spec["backoffLimitPerIndex"], "requires indexed completion mode")
        )
    if policy := spec.get("podFailurePolicy"):
        if restart != "Never":
            detail = 'only "Never" is supported when podFailurePolicy is specified'
            causes.append(invalid(f"{path}.template.spec.restartPolicy", restart, detail))
        for index, rule in enumerate(policy.get("rules") or ()):
            if bool(rule.get("onExitCodes")) == bool(rule.get("onPodConditions")):
                detail = "specifying one of OnExitCodes and OnPodConditions is required"
                causes.append(invalid(f"{path}.podFailurePolicy.rules[{index}]", rule, detail))


_CRON_FIELD = re.compile(r"[0-9A-Za-z*/,?#-]+")
_CRON_MACROS = ("@yearly", "@annually", "@monthly", "@weekly", "@daily", "@midnight", "@hourly")


def validate_cron_job(new: Object, _old: Object | None) -> Causes:
    causes: Causes = []
    spec = new["spec"]
    schedule = spec.get("schedule", "")
    words = schedule.split()
    if (
        schedule not in _CRON_MACROS
        and not schedule.startswith("@every ")
        and (len(words) != 5 or not all(_CRON_FIELD.fullmatch(word) for word in words))
    ):
        causes.append(invalid("spec.schedule", schedule, f"expected exactly 5 fields, found {len(words)}: {words}"))
    if (job := (spec.get("jobTemplate") or {}).get("spec")) is not None:
        job_spec(job, "spec.jobTemplate.spec", causes)
    if len(new["metadata"].get("name", "")) > 52:
        causes.append(invalid("metadata.name", new["metadata"]["name"], "must be no more than 52 characters"))
    return causes
