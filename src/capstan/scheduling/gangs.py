"""Gangs: the tree of a PodGroup, and the units in which a gang starts, grows and shrinks.

A *unit* is what is placed or evicted as a whole: all pods of the minimum at first, then one pod (or one more subgroup)
at a time; backwards, surplus pods one by one and subgroups that are not needed, the fullest first, then the rest.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Literal

from capstan.api import clock
from capstan.api.core import Pod
from capstan.api.scheduling import (
    DEFAULT_PRIORITY,
    EXPECTED_RUNTIME,
    MAX_RUNTIME,
    QUEUE_LABEL,
    REQUEUE_DELAY,
    SEMI_PREEMPTIBLE,
    STALE_SINCE,
    USER_LABEL,
    PodGroup,
    TopologyConstraint,
)
from capstan.scheduling import durations
from capstan.scheduling.model import Gang, Group, Levels, Task
from capstan.scheduling.policy import Policy

LAST_START = "kai.scheduler/last-start-timestamp"
REQUEUE_NOT_BEFORE = "kai.scheduler/requeue-not-before"


def build_gang(obj: PodGroup, priorities: Mapping[str, int], queue_label: str = QUEUE_LABEL) -> Gang:
    """The gang of a PodGroup. What is contradictory in it becomes `error`; the gang then never starts."""
    spec, meta = obj.spec, obj.metadata
    gang = Gang(
        namespace=meta.namespace,
        name=meta.name,
        uid=meta.uid or f"{meta.namespace}/{meta.name}",
        created=clock.parse(meta.creation_timestamp),
        queue_name=spec.queue or meta.labels.get(queue_label, ""),
        root=Group("", None, 1, _levels(spec.topology_constraint)),
        groups={},
        priority_class=spec.priority_class_name,
        user=meta.labels.get(USER_LABEL, ""),
    )
    if spec.preemptibility:
        gang.explicit = spec.preemptibility.lower() == "preemptible"
        gang.semi = spec.preemptibility.lower() == SEMI_PREEMPTIBLE
    gang.reprioritize(priorities.get(spec.priority_class_name, DEFAULT_PRIORITY))
    problems = [*_timing(gang, obj), *_tree(gang, obj), *_core_size(gang, obj)]
    gang.error = "; ".join(problems)
    return gang


def _timing(gang: Gang, obj: PodGroup) -> Iterator[str]:
    spec, notes = obj.spec, obj.metadata.annotations
    try:
        if spec.preemption_delay:
            gang.preemption_delay = durations.seconds(spec.preemption_delay)
        if spec.staleness_grace_period:
            gang.stale_grace = durations.seconds(spec.staleness_grace_period)
        gang.stale_since = clock.parse(notes[STALE_SINCE]) if STALE_SINCE in notes else None
        gang.last_start = clock.parse(notes[LAST_START]) if LAST_START in notes else None
        gang.requeue_not_before = clock.parse(notes[REQUEUE_NOT_BEFORE]) if REQUEUE_NOT_BEFORE in notes else None
        _take_runtimes(gang, notes)
    except ValueError as malformed:
        yield str(malformed)


def _take_runtimes(gang: Gang, notes: Mapping[str, str]) -> None:
    """Set the run times that annotations declare. Raises ValueError, naming the annotation, for one that is none."""
    if MAX_RUNTIME in notes:
        gang.max_runtime = durations.positive(notes[MAX_RUNTIME], MAX_RUNTIME)
    if EXPECTED_RUNTIME in notes:
        gang.expected_runtime = durations.positive(notes[EXPECTED_RUNTIME], EXPECTED_RUNTIME)
    if REQUEUE_DELAY in notes:
        gang.requeue_delay = durations.positive(notes[REQUEUE_DELAY], REQUEUE_DELAY)


def _core_size(gang: Gang, obj: PodGroup) -> Iterator[str]:
    size, least = obj.spec.min_non_preemptible, gang.root.minimum
    if size is None:
        return
    gang.core_size = size
    if not gang.semi:
        yield f"minNonPreemptible is for {SEMI_PREEMPTIBLE} groups; set preemptibility or leave it out"
    elif size < least:
        yield f"minNonPreemptible is {size}, below the minimum of {least} that starts together"
    elif gang.root.children and size > len(gang.root.children):
        yield f"minNonPreemptible is {size}, and there are {len(gang.root.children)} subgroups"


def _tree(gang: Gang, obj: PodGroup) -> Iterator[str]:
    """Build the subgroup tree; yields what is wrong with it."""
    spec = obj.spec
    root = gang.root
    minima = [("the pod group", spec.min_member, spec.min_sub_group)]
    minima += [(f"subgroup {sub.name}", sub.min_member, sub.min_sub_group) for sub in spec.sub_groups]
    for where, pods, subgroups in minima:
        if pods is not None and subgroups is not None:
            yield f"{where} has minMember and minSubGroup, which exclude each other; keep one"
    if not spec.sub_groups:
        root.minimum = 1 if spec.min_member is None else max(0, spec.min_member)
        gang.groups[""] = root
        if spec.min_sub_group:
            yield "minSubGroup is set but there are no subGroups"
        return
    nodes: dict[str, Group] = {}
    for sub in spec.sub_groups:
        if sub.name in nodes:
            yield f"subgroup {sub.name} is named twice"
        nodes[sub.name] = Group(sub.name, root, 0, _levels(sub.topology_constraint))
    for sub in spec.sub_groups:
        node = nodes[sub.name]
        if sub.parent:
            parent = nodes.get(sub.parent)
            if parent is None or _below(parent, node):
                yield f"subgroup {sub.name} has the parent {sub.parent}, which is " + (
                    "missing" if parent is None else "below itself"
                )
                continue
            node.parent = parent
        assert node.parent is not None
        node.parent.children.append(node)
    for sub in spec.sub_groups:
        node = nodes[sub.name]
        if node.children:
            if sub.min_member is not None and sub.min_sub_group is None:
                yield f"subgroup {sub.name} has children and minMember; only leaves count pods"
            node.minimum = len(node.children) if sub.min_sub_group is None else sub.min_sub_group
            yield from _reachable(node)
        else:
            if sub.min_sub_group and sub.min_member is None:
                yield f"subgroup {sub.name} needs {sub.min_sub_group} subgroups and has none; give it minMember"
            node.minimum = 1 if sub.min_member is None else max(0, sub.min_member)
            gang.groups[sub.name] = node
    root.minimum = len(root.children) if spec.min_sub_group is None else spec.min_sub_group
    yield from _reachable(root)


def _reachable(group: Group) -> Iterator[str]:
    if group.minimum > len(group.children):
        where = f"subgroup {group.name}" if group.name else "the pod group"
        yield f"{where} needs {group.minimum} subgroups and has {len(group.children)}"


def _below(node: Group, ancestor: Group) -> bool:
    current: Group | None = node
    while current is not None:
        if current is ancestor:
            return True
        current = current.parent
    return False


def _levels(constraint: TopologyConstraint | None) -> Levels | None:
    """None where nothing is asked for. A level without a topology is kept, so that it is refused."""
    if constraint is None or constraint == TopologyConstraint():
        return None
    return Levels(constraint.topology, constraint.required_topology_level, constraint.preferred_topology_level)


def implicit_gang(pod: Pod, priorities: Mapping[str, int], policy: Policy) -> Gang:
    """The gang of one that a pod without a PodGroup forms."""
    meta, spec = pod.metadata, pod.spec
    root = Group("", None, 1)
    gang = Gang(
        namespace=meta.namespace,
        name=f"pod/{meta.name}",
        uid=meta.uid or f"{meta.namespace}/{meta.name}",
        created=clock.parse(meta.creation_timestamp),
        queue_name=meta.labels.get(policy.queue_label, policy.default_queue),
        root=root,
        groups={"": root},
        priority_class=spec.priority_class_name,
        implicit=True,
    )
    try:
        _take_runtimes(gang, meta.annotations)
    except ValueError as malformed:
        gang.error = str(malformed)
    known = priorities.get(spec.priority_class_name, 0)
    gang.reprioritize(spec.priority if spec.priority is not None else known)
    return gang


# -- starting and growing ------------------------------------------------------------------------------------------


def next_unit(gang: Gang) -> list[Task]:
    """The tasks to place next, together; empty when the gang cannot use any (nothing waits, or too few pods exist)."""
    return _grow(gang.root)


def _grow(group: Group) -> list[Task]:
    if not group.children:
        missing = group.minimum - len(group.active)
        if missing > len(group.pending):
            return []
        return [task for _, task in group.pending[: max(missing, 1)]]
    lacking = group.minimum - sum(child.satisfied for child in group.children)
    ordered = sorted(group.children, key=lambda child: child.rank)
    if lacking > 0:
        unit: list[Task] = []
        for child in ordered:
            if lacking and not child.satisfied and (more := _grow(child)):
                unit += more
                lacking -= 1
        return unit if not lacking else []
    for child in ordered:
        if more := _grow(child):
            return more
    return []


def smallest_start(group: Group) -> int:
    """The fewest pods with which the gang could have run already."""
    if not group.children:
        return max(group.minimum, 1)
    return max(sum(sorted(smallest_start(child) for child in group.children)[: group.minimum]), 1)


# -- shrinking -----------------------------------------------------------------------------------------------------


Part = Literal["pod", "subgroup", "core"]
"""What a gang gives up: a pod beyond a minimum, a subgroup beyond a minimum, or the rest."""


def shrink(gang: Gang) -> Iterator[tuple[list[Task], Part]]:
    """The units to give up, in order, each assuming that those before it are gone."""
    have = {leaf: [task for _, task in leaf.active] for leaf in gang.root.leaves()}
    while found := _surplus(gang.root, have):
        yield found
        for task in found[0]:
            assert task.group is not None
            have[task.group].remove(task)
    rest = _all_of(gang.root, have)
    if rest:
        yield rest, "core"


Have = dict[Group, list[Task]]


def _count(group: Group, have: Have) -> int:
    """Satisfied children of a group, pods of a leaf."""
    if group.children:
        return sum(_count(child, have) >= child.minimum for child in group.children)
    return len(have[group])


def _all_of(group: Group, have: Have) -> list[Task]:
    return [task for leaf in group.leaves() for task in have[leaf]]


def _surplus(group: Group, have: Have) -> tuple[list[Task], Part] | None:
    """What a group can best do without: surplus deep in its fullest child, else a whole child that it does not need."""
    count = _count(group, have)
    if not group.children:
        return ([have[group][-1]], "pod") if count > group.minimum else None
    if not count:
        return None
    ordered = sorted(group.children, key=lambda child: child.rank_with(_count(child, have)), reverse=True)
    for child in ordered:
        if found := _surplus(child, have):
            return found
    if count > group.minimum:
        return next(((tasks, "subgroup") for child in ordered if (tasks := _all_of(child, have))), None)
    return None


def surplus(gang: Gang) -> bool:
    """Whether the gang has more than its minimum at any place of its tree."""
    return _surplus(gang.root, {leaf: [task for _, task in leaf.active] for leaf in gang.root.leaves()}) is not None


def phase(gang: Gang) -> int:
    """Elastic phase in the order of jobs: 0 below its minimum, 1 exactly at it, 2 above."""
    root = gang.root
    if not root.children:
        have = len(root.active)
        return 0 if have < root.minimum else 1 if have == root.minimum else 2
    if not root.satisfied:
        return 0
    return 2 if surplus(gang) else 1
