"""Bare pods, Spark applications whose driver makes its executors' pods itself, and kinds nobody knows."""

from __future__ import annotations

from capstan.grouping.gang import Gang, Workload, group_kind, labels_of

SPARK_APPLICATION_LABEL = "spark-app-selector"


def pod(workload: Workload) -> Gang:
    """A pod is its own gang; the pods of one Spark application share a gang that starts with its driver."""
    application = labels_of(workload.pod).get(SPARK_APPLICATION_LABEL)
    if application:
        return Gang(workload.top, "train", name=application)
    return Gang(workload.pod, "train")


def single(workload: Workload) -> Gang:
    """Any other kind: its pods share a PodGroup, and each may start alone."""
    if group_kind(workload.top)[0] == "sparkoperator.k8s.io":
        return pod(workload)
    return Gang(workload.top, "train")


def interactive(workload: Workload) -> Gang:
    """Notebooks: a person waits, so they do not yield to training."""
    return Gang(workload.top, "build")


def service(workload: Workload) -> Gang:
    """Kinds that serve requests."""
    return Gang(workload.top, "inference")
