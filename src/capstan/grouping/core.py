"""Bare pods, and Spark applications whose driver makes its executors' pods itself."""

from __future__ import annotations

from capstan.grouping.gang import Gang, Workload, labels_of

SPARK_APPLICATION_LABEL = "spark-app-selector"


def pod(workload: Workload) -> Gang:
    """A pod is its own gang; the pods of one Spark application share a gang that starts with its driver."""
    application = labels_of(workload.pod).get(SPARK_APPLICATION_LABEL)
    if application:
        return Gang(
            owner={
                "kind": "Pod",
                "metadata": {"name": application, "namespace": workload.pod["metadata"].get("namespace", "")},
            },
            default_priority_class="train",
        )
    return Gang(owner=workload.pod, default_priority_class="train")


def single(workload: Workload) -> Gang:
    """Any other kind: its pods share a PodGroup, and each may start alone."""
    return Gang(owner=workload.top, default_priority_class="train")
