"""Segments: consecutive workers of a gang that belong close together, each a subgroup with its own topology.

The user asks for them by `kai.scheduler/segment-size` on the workload or the pod template of its workers, and for the
placement of each by `kai.scheduler/segment-topology-{required,preferred}-placement` at the same place. The pod that is
looked at is not asked: all pods of a gang have to find the same tree.
"""

from __future__ import annotations

from capstan.grouping.gang import (
    MOST_SUB_GROUPS,
    TOPOLOGY_ANNOTATION,
    SubGroup,
    Workload,
    annotations_of,
    counted,
    template_topology,
    topology_of,
)
from capstan.grouping.reading import Field, InvalidWorkload

SIZE_ANNOTATION = "kai.scheduler/segment-size"
_PREFIX = "kai.scheduler/segment-topology"


def workers(
    workload: Workload, name: str, pods: int, needed: int, template: Field
) -> tuple[list[SubGroup], int | None]:
    """The subgroups of `pods` workers of which `needed` must start, and the size of a segment (None: not segmented).

    The last segment may be smaller. Raises InvalidWorkload.
    """
    topology = template_topology(workload, template)
    marks = template["metadata"]["annotations"]
    if SIZE_ANNOTATION in annotations_of(workload.top):
        marks = Field.of(workload.top)["metadata"]["annotations"]
    size = counted(marks.root, marks.path, SIZE_ANNOTATION, marks.mapping().get(SIZE_ANNOTATION))
    if size is None or pods == 0:
        return [SubGroup(name, min_member=needed, topology=topology)], None
    constraint = topology_of(
        marks.root,
        marks.mapping(),
        path=marks.path,
        prefix=_PREFIX,
        default=annotations_of(workload.top).get(TOPOLOGY_ANNOTATION),
    )
    count = -(-pods // size)
    if count > MOST_SUB_GROUPS:
        raise InvalidWorkload(
            marks.root,
            f"{marks.path}[{SIZE_ANNOTATION}]",
            f"{pods} workers make {count} segments; choose a size that makes at most {MOST_SUB_GROUPS}",
        )
    parent = SubGroup(name, min_sub_group=min(count, -(-needed // size)), topology=topology)
    leaves = [
        SubGroup(segment(name, i), min_member=min(size, pods - i * size), parent=name, topology=constraint)
        for i in range(count)
    ]
    return [parent, *leaves], size


def segment(name: str, index: int) -> str:
    return f"{name}-segment-{index}"


def leaf_of(name: str, size: int | None, pods: int, index: int) -> str:
    """The leaf of a worker; workers beyond those that are planned join the last segment."""
    return name if size is None else segment(name, min(index, pods - 1) // size)
