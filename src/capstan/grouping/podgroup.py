"""From a pod and its owners to the PodGroup it belongs to: pick the family, add what all families share.

`group` is what the grouper controller calls for each pod, and what tests and dry runs call with plain manifests. The
rules are those of KAI's pod grouper: name `pg-<owner>-<uid>`, queue and priority from labels of the owner or the pod.
"""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from capstan.api.scheduling import (
    DEFAULT_QUEUE,
    EXPECTED_RUNTIME,
    MAX_RUNTIME,
    POD_GROUP_ANNOTATION,
    REQUEUE_DELAY,
    SEMI_PREEMPTIBLE,
    SUBGROUP_LABEL,
)
from capstan.grouping import aml, apps, batch, core, grove, jobset, kubeflow, leaderworkerset, ray, serving, upstream
from capstan.grouping.gang import (
    Gang,
    Related,
    Settings,
    Workload,
    annotations_of,
    dns_subdomain,
    group_kind,
    labels_of,
    topology_of,
)
from capstan.grouping.reading import InvalidWorkload, Manifest

SKIP_ANNOTATION = "kai.scheduler/skip-podgrouper"
TOP_OWNER_ANNOTATION = "kai.scheduler/top-owner-metadata"
PRIORITY_CLASS_LABEL = "priorityClassName"
PREEMPTIBILITY_LABEL = "kai.scheduler/preemptibility"
PROJECT_LABEL = "project"
OPTIONAL_FIELDS = (
    "minMember",
    "minSubGroup",
    "subGroups",
    "preemptibility",
    "topologyConstraint",
    "preemptionDelay",
    "stalenessGracePeriod",
)
"""What the grouper decides about the spec of a PodGroup besides queue and priority: absent means unset."""

Family = Callable[[Workload], Gang]

_FAMILIES: dict[tuple[str, str], Family] = {
    ("", "Pod"): core.pod,
    ("apps", "Deployment"): apps.deployment,
    ("apps", "ReplicaSet"): apps.replicas,
    ("apps", "StatefulSet"): apps.replicas,
    ("batch", "Job"): batch.job,
    ("batch", "CronJob"): batch.cron_job,
    ("kubeflow.org", "TFJob"): kubeflow.training,
    ("kubeflow.org", "XGBoostJob"): kubeflow.training,
    ("kubeflow.org", "JAXJob"): kubeflow.training,
    ("kubeflow.org", "PyTorchJob"): kubeflow.pytorch,
    ("kubeflow.org", "MPIJob"): kubeflow.mpi,
    ("kubeflow.org", "Notebook"): core.interactive,
    ("jobset.x-k8s.io", "JobSet"): jobset.job_set,
    ("leaderworkerset.x-k8s.io", "LeaderWorkerSet"): leaderworkerset.leader_worker_set,
    ("ray.io", "RayCluster"): ray.cluster,
    ("ray.io", "RayJob"): ray.cluster,
    ("ray.io", "RayService"): ray.cluster,
    ("grove.io", "PodCliqueSet"): grove.pod_gang,
    ("grove.io", "PodGangSet"): grove.pod_gang,
    ("serving.knative.dev", "Service"): serving.knative,
    ("amlarc.azureml.com", "AmlJob"): aml.aml_job,
    ("run.ai", "RunaiJob"): batch.job,
    ("egx.nvidia.io", "SPOTRequest"): core.service,
}
"""Every other kind is `core.single`: SeldonDeployment, VirtualMachineInstance, DevWorkspace, PipelineRun and so on."""

_SKIPPED = {
    ("trainer.kubeflow.org", "TrainJob"),
    ("argoproj.io", "Workflow"),
    ("nvidia.com", "DynamoGraphDeployment"),
    ("run.ai", "TrainingWorkload"),
    ("run.ai", "InteractiveWorkload"),
    ("run.ai", "DistributedWorkload"),
    ("run.ai", "InferenceWorkload"),
    ("run.ai", "DistributedInferenceWorkload"),
}
"""Kinds that only manage other workloads: the owner below them says what starts together."""

_TIMING = {
    "kai.scheduler/preemption-delay": "preemptionDelay",
    "kai.scheduler/staleness-grace-period": "stalenessGracePeriod",
}
_RUNTIMES = (MAX_RUNTIME, EXPECTED_RUNTIME, REQUEUE_DELAY)
"""Annotations that stay annotations: KAI's PodGroup has no fields for them."""
_DURATION = re.compile(r"[-+]?((\d+(\.\d*)?|\.\d+)(ns|us|µs|ms|s|m|h))+|[-+]?0", re.ASCII)


@dataclass(frozen=True, slots=True)
class Grouping:
    """The PodGroup to apply and the marks for the pod; no PodGroup where users group for themselves."""

    pod_group: dict[str, Any] | None
    pod_annotations: Mapping[str, str] = field(default_factory=dict)
    pod_labels: Mapping[str, str] = field(default_factory=dict)


def related(pod: Manifest, owners: tuple[Manifest, ...] = ()) -> Related | None:
    """The object that `group` needs besides the owners, if any. Raises InvalidWorkload."""
    workload = _below_managers(pod, owners)
    if workload.annotation(SKIP_ANNOTATION) == "true":
        return None
    if named := upstream.related(workload):
        return named
    return grove.related(workload) if _FAMILIES.get(group_kind(workload.top)) is grove.pod_gang else None


def group(
    pod: Manifest,
    owners: tuple[Manifest, ...] = (),
    found: Manifest | None = None,
    settings: Settings = Settings(),  # noqa: B008 - immutable
) -> Grouping:
    """The gang of a pod; `owners` is its chain of controllers, nearest first, `found` the object `related` asks for.

    Raises InvalidWorkload, and nothing else whatever the specs of the owners contain.
    """
    workload = _below_managers(pod, owners, found, settings)
    if workload.annotation(SKIP_ANNOTATION) == "true":
        return Grouping(pod_group=None)
    family = upstream.gang if upstream.related(workload) else _FAMILIES.get(group_kind(workload.top), core.single)
    gang = family(workload)
    _check_tree(gang)
    manifest = _manifest(workload, gang, owners[-1] if owners else pod)
    marks = {SUBGROUP_LABEL: gang.subgroup} if gang.sub_groups else {}
    return Grouping(manifest, {POD_GROUP_ANNOTATION: manifest["metadata"]["name"]}, marks)


def own_group(pod: Manifest) -> str | None:
    """The name that `group` gives the PodGroup of a pod without owners; None where others decide what its group is."""
    workload = Workload(pod)
    if workload.annotation(SKIP_ANNOTATION) == "true" or upstream.related(workload):
        return None
    return _name(core.pod(workload))


def _below_managers(
    pod: Manifest,
    owners: tuple[Manifest, ...],
    found: Manifest | None = None,
    settings: Settings = Settings(),  # noqa: B008 - immutable
) -> Workload:
    """The workload without the kinds that only manage others; what they are labelled with holds for those below."""
    while owners and group_kind(owners[-1]) in _SKIPPED:
        manager, owners = owners[-1], owners[:-1]
        if owners:
            owners = (*owners[:-1], _inheriting(owners[-1], manager))
        else:
            pod = _inheriting(pod, manager)
    return Workload(pod, owners, found, settings)


def _inheriting(manifest: Manifest, above: Manifest) -> Manifest:
    merged = {
        "labels": {**labels_of(above), **labels_of(manifest)},
        "annotations": {**annotations_of(above), **annotations_of(manifest)},
    }
    return {**manifest, "metadata": {**manifest.get("metadata", {}), **merged}}


def _check_tree(gang: Gang) -> None:
    """What no family can see by itself: names that meet, parts that are missing, a pod outside of the tree."""
    if not gang.sub_groups:
        return
    names = {sub.name for sub in gang.sub_groups}
    if len(names) < len(gang.sub_groups):
        twice = min(name for name, times in Counter(sub.name for sub in gang.sub_groups).items() if times > 1)
        raise InvalidWorkload(gang.owner, "spec", f"two parts of the gang are called {twice}; rename one")
    children = Counter(sub.parent for sub in gang.sub_groups)
    if missing := children.keys() - names - {""}:
        raise InvalidWorkload(gang.owner, "spec", f"a part of the gang belongs to {min(missing)}, which it has not")
    for sub in gang.sub_groups:
        if sub.min_sub_group is not None and sub.min_sub_group > children[sub.name]:
            raise InvalidWorkload(
                gang.owner,
                "spec",
                f"{sub.name} needs {sub.min_sub_group} parts and has {children[sub.name]}; name only parts that exist",
            )
    leaves = [sub.name for sub in gang.sub_groups if sub.min_sub_group is None]
    if gang.subgroup not in leaves:
        raise InvalidWorkload(
            gang.owner, "spec", f"has no pods of {gang.subgroup}, and one waits; the gang has {', '.join(leaves[:20])}"
        )


def _manifest(workload: Workload, gang: Gang, user_made: Manifest) -> dict[str, Any]:
    owner = gang.owner["metadata"]
    spec: dict[str, Any] = {"queue": _queue(workload), "priorityClassName": _priority_class(workload, gang)}
    if gang.sub_groups:
        firsts = sum(not sub.parent for sub in gang.sub_groups)
        spec["minSubGroup"] = firsts if gang.min_sub_group is None else gang.min_sub_group
        spec["subGroups"] = [sub.manifest() for sub in gang.sub_groups]
    else:
        spec["minMember"] = gang.min_member
    preemptibility = workload.label(PREEMPTIBILITY_LABEL)
    if preemptibility:
        if preemptibility not in ("preemptible", "non-preemptible", SEMI_PREEMPTIBLE):
            raise InvalidWorkload(
                workload.top,
                f"metadata.labels[{PREEMPTIBILITY_LABEL}]",
                f"{preemptibility!r}; write preemptible, non-preemptible or {SEMI_PREEMPTIBLE}",
            )
        spec["preemptibility"] = preemptibility
    # Only the top owner's annotations count (KAI): a pod cannot constrain its whole gang.
    topology = gang.topology or topology_of(workload.top, annotations_of(workload.top))
    if topology:
        spec["topologyConstraint"] = dict(topology)
    for annotation, name in _TIMING.items():
        if value := _duration(workload, annotation):
            spec[name] = value
    metadata: dict[str, Any] = {
        "name": _name(gang),
        "namespace": workload.pod["metadata"].get("namespace", ""),
        "annotations": {TOP_OWNER_ANNOTATION: _top_owner(user_made), **_runtimes(workload, gang)},
    }
    pool_label = workload.settings.node_pool_label
    pool = workload.label(pool_label)
    if pool:
        metadata["labels"] = {pool_label: pool}
    if owner.get("uid"):
        metadata["ownerReferences"] = [
            {
                "apiVersion": gang.owner.get("apiVersion", "v1"),
                "kind": gang.owner.get("kind", ""),
                "name": owner["name"],
                "uid": owner["uid"],
            }
        ]
    return {"apiVersion": "scheduling.run.ai/v2alpha2", "kind": "PodGroup", "metadata": metadata, "spec": spec}


def _duration(workload: Workload, annotation: str) -> str:
    """The value of an annotation that is a duration, if it is there. Raises InvalidWorkload for one that is none."""
    value = workload.annotation(annotation) or ""
    if value and not _DURATION.fullmatch(value):
        raise InvalidWorkload(
            workload.top, f"metadata.annotations[{annotation}]", f'{value!r} is no duration; write e.g. "90s"'
        )
    return value


def _runtimes(workload: Workload, gang: Gang) -> dict[str, str]:
    """How long the gang may and will run: as annotated; a Job's own deadline is an expectation, too."""
    found = {name: value for name in _RUNTIMES if (value := _duration(workload, name))}
    spec = gang.owner.get("spec")
    if group_kind(gang.owner) == ("batch", "Job") and isinstance(spec, dict):
        deadline = spec.get("activeDeadlineSeconds")
        if type(deadline) is int and deadline > 0:
            found.setdefault(EXPECTED_RUNTIME, f"{deadline}s")
    return found


def _name(gang: Gang) -> str:
    owner = gang.owner["metadata"]
    identity = (gang.name,) if gang.name else (owner["name"], owner.get("uid", ""))
    return dns_subdomain("-".join(part for part in ("pg", *identity, gang.name_suffix) if part))


def _priority_class(workload: Workload, gang: Gang) -> str:
    """The label; else what the kind says; else the pod's; else the administrator's default for the kind; else ours."""
    group, kind = group_kind(workload.top)
    defaults = workload.settings.priority_classes
    named = workload.label(PRIORITY_CLASS_LABEL) or gang.priority_class
    named = named or workload.pod.get("spec", {}).get("priorityClassName")
    return named or defaults.get(f"{kind}.{group}") or defaults.get(kind) or gang.default_priority_class


def _queue(workload: Workload) -> str:
    """The queue label; else Run:ai's older `project[-nodepool]`; else the default queue."""
    queue = workload.label(workload.settings.queue_label)
    if queue:
        return queue
    project = workload.label(PROJECT_LABEL)
    if project:
        pool = workload.label(workload.settings.node_pool_label)
        return f"{project}-{pool}" if pool else project
    return DEFAULT_QUEUE


def _top_owner(top: Manifest) -> str:
    metadata = top["metadata"]
    group, kind = group_kind(top)
    return json.dumps(
        {
            "name": metadata["name"],
            "uid": metadata.get("uid", ""),
            "group": group,
            "version": top.get("apiVersion", "v1").rpartition("/")[2],
            "kind": kind,
        },
        separators=(",", ":"),
    )
