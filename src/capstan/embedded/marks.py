"""Admission marks pods that are gangs of their own with the name of their PodGroup, which the grouper then writes.

The grouper would patch the same mark onto the pod; here a pod has it from its first version on, which saves a write
and what it causes in every watcher. Pods with owners are left to the grouper, who reads the owners.
"""

from __future__ import annotations

from capstan import grouping
from capstan.api.scheduling import POD_GROUP_ANNOTATION, SCHEDULER_NAME
from capstan.local import Attributes


def mark(attributes: Attributes) -> None:
    """A mutating admission plugin."""
    pod = attributes.object
    if attributes.operation != "CREATE" or pod is None or attributes.resource.group_resource != "pods":
        return
    metadata, spec = pod["metadata"], pod["spec"]
    if (
        spec.get("schedulerName") != SCHEDULER_NAME
        or metadata.get("ownerReferences")
        or POD_GROUP_ANNOTATION in (metadata.get("annotations") or {})
    ):
        return
    name = grouping.own_group(pod)
    if name is not None:
        metadata["annotations"] = {**(metadata.get("annotations") or {}), POD_GROUP_ANNOTATION: name}
