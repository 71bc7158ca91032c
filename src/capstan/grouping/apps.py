"""Deployments, ReplicaSets and StatefulSets: gangs only where the user sets `kai.scheduler/batch-min-member`."""

from __future__ import annotations

from capstan.grouping.gang import MIN_MEMBER_ANNOTATION, Gang, Workload, min_member
from capstan.grouping.reading import Field


def deployment(workload: Workload) -> Gang:
    """One PodGroup per pod (KAI): replicas serve independently. With a minimum, the ReplicaSet's pods are one gang."""
    if workload.annotation(MIN_MEMBER_ANNOTATION) is None:
        return Gang(workload.pod, "inference")
    return Gang(workload.owners[0], "inference", min_member=min_member(workload, 1))


def replicas(workload: Workload) -> Gang:
    """ReplicaSet and StatefulSet: one PodGroup, minimum 1 unless the user sets one.

    Raises InvalidWorkload for a StatefulSet that makes its pods one after another: they would wait for each other.
    """
    minimum = min_member(workload, 1)
    top = Field.of(workload.top)
    policy = top["spec"]["podManagementPolicy"]
    if minimum > 1 and workload.top.get("kind") == "StatefulSet" and policy.text() in ("", "OrderedReady"):
        raise policy.wrong(f"pods are made one after another, and {minimum} have to start together; set Parallel")
    return Gang(workload.top, "train", min_member=minimum)
