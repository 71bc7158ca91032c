"""From a pod and its owners to the PodGroup it belongs to: pick the family, add what all families share.

`group` is what the grouper controller calls for each pod, and what tests and dry runs call with plain manifests. The
rules are those of KAI's pod grouper: name `pg-<owner>-<uid>`, queue and priority from labels of the owner or the pod.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from capstan.api.scheduling import (
    DEFAULT_QUEUE,
    NODE_POOL_LABEL,
    POD_GROUP_ANNOTATION,
    QUEUE_LABEL,
    SUBGROUP_LABEL,
)
from capstan.grouping import apps, batch, core
from capstan.grouping.gang import Gang, Manifest, Workload, annotations_of, group_kind

SKIP_ANNOTATION = "kai.scheduler/skip-podgrouper"
TOP_OWNER_ANNOTATION = "kai.scheduler/top-owner-metadata"
PRIORITY_CLASS_LABEL = "priorityClassName"
PREEMPTIBILITY_LABEL = "kai.scheduler/preemptibility"
PROJECT_LABEL = "project"

Family = Callable[[Workload], Gang]

_FAMILIES: dict[tuple[str, str], Family] = {
    ("", "Pod"): core.pod,
    ("apps", "Deployment"): apps.deployment,
    ("apps", "ReplicaSet"): apps.replicas,
    ("apps", "StatefulSet"): apps.replicas,
    ("batch", "Job"): batch.job,
    ("batch", "CronJob"): batch.cron_job,
}


@dataclass(frozen=True, slots=True)
class Grouping:
    """The PodGroup to apply and the marks for the pod; no PodGroup where users group for themselves."""

    pod_group: dict[str, Any] | None
    pod_annotations: Mapping[str, str] = field(default_factory=dict)
    pod_labels: Mapping[str, str] = field(default_factory=dict)


def group(pod: Manifest, owners: tuple[Manifest, ...] = ()) -> Grouping:
    """The gang of a pod; `owners` is its chain of controllers, nearest first. Raises InvalidWorkload."""
    workload = Workload(pod, owners)
    if workload.annotation(SKIP_ANNOTATION) == "true":
        return Grouping(pod_group=None)
    gang = _FAMILIES.get(group_kind(workload.top), core.single)(workload)
    manifest = _manifest(workload, gang)
    marks = {SUBGROUP_LABEL: gang.subgroup} if gang.subgroup else {}
    return Grouping(manifest, {POD_GROUP_ANNOTATION: manifest["metadata"]["name"]}, marks)


def _manifest(workload: Workload, gang: Gang) -> dict[str, Any]:
    owner = gang.owner["metadata"]
    spec: dict[str, Any] = {
        "queue": _queue(workload),
        "priorityClassName": workload.label(PRIORITY_CLASS_LABEL)
        or workload.pod.get("spec", {}).get("priorityClassName")
        or gang.default_priority_class,
    }
    if gang.min_sub_group is not None:
        spec["minSubGroup"] = gang.min_sub_group
    elif gang.min_member is not None:
        spec["minMember"] = gang.min_member
    if gang.sub_groups:
        spec["subGroups"] = [dict(sub) for sub in gang.sub_groups]
    preemptibility = workload.label(PREEMPTIBILITY_LABEL)
    if preemptibility:
        spec["preemptibility"] = preemptibility
    topology = _topology(workload)
    if topology:
        spec["topologyConstraint"] = topology
    for annotation, name in _PASSED_ON.items():
        value = workload.annotation(annotation)
        if value:
            spec[name] = value
    metadata: dict[str, Any] = {
        "name": "-".join(part for part in ("pg", owner["name"], owner.get("uid", ""), gang.name_suffix) if part),
        "namespace": workload.pod["metadata"].get("namespace", ""),
        "annotations": {TOP_OWNER_ANNOTATION: _top_owner(workload.top)},
    }
    pool = workload.label(NODE_POOL_LABEL)
    group_labels = dict(gang.extra_labels) | ({NODE_POOL_LABEL: pool} if pool else {})
    if group_labels:
        metadata["labels"] = group_labels
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


_PASSED_ON = {
    "kai.scheduler/preemption-delay": "preemptionDelay",
    "kai.scheduler/staleness-grace-period": "stalenessGracePeriod",
}


def _queue(workload: Workload) -> str:
    """The queue label; else Run:ai's older `project[-nodepool]`; else the default queue."""
    queue = workload.label(QUEUE_LABEL)
    if queue:
        return queue
    project = workload.label(PROJECT_LABEL)
    if project:
        pool = workload.label(NODE_POOL_LABEL)
        return f"{project}-{pool}" if pool else project
    return DEFAULT_QUEUE


def _topology(workload: Workload) -> dict[str, str]:
    """Only the top owner's annotations count (KAI): a pod cannot constrain its whole gang."""
    marks = annotations_of(workload.top)
    named = {
        "topology": marks.get("kai.scheduler/topology"),
        "requiredTopologyLevel": marks.get("kai.scheduler/topology-required-placement"),
        "preferredTopologyLevel": marks.get("kai.scheduler/topology-preferred-placement"),
    }
    return {name: value for name, value in named.items() if value}


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


def is_grouped(pod: Manifest) -> bool:
    """Whether the pod already names its PodGroup, by the grouper or by its user."""
    return POD_GROUP_ANNOTATION in annotations_of(pod)
