"""Services of Knative: the pods that a revision always keeps start together, others one by one."""

from __future__ import annotations

from capstan.grouping.gang import Gang, Workload, annotated_count, annotations_of

_MIN_SCALE = "autoscaling.knative.dev/min-scale"


def knative(workload: Workload) -> Gang:
    """A gang per revision that has a min-scale, unless the administrator turned that off; else one per pod."""
    revision = workload.owner("serving.knative.dev", "Revision")
    if revision is None or not workload.settings.gang_knative or annotations_of(revision).get(_MIN_SCALE, "0") == "0":
        return Gang(workload.pod, "inference")
    minimum = annotated_count(Workload(workload.pod, (revision,)), _MIN_SCALE)
    return Gang(revision, "inference", min_member=minimum or 1)
