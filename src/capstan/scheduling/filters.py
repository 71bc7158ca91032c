"""Which nodes a pod may use at all: rules over node classes, and rules that depend on what else runs there.

Every refusal is a short reason in words; verdicts count nodes by reason.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Hashable, Iterable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING

from capstan.api.core import PodAffinityTerm, Taint, TopologySpreadConstraint, tolerates
from capstan.scheduling import volumes
from capstan.scheduling.model import ACTIVE, Node, NodeClass, Status, Task
from capstan.scheduling.shape import Shape

if TYPE_CHECKING:
    from capstan.scheduling.world import World

MIG_STRATEGY = "nvidia.com/mig.strategy"
_MOST_REASONS = 20_000
"""Kept by a node class; beyond that all are found anew."""
_MOST_NAMED = 3
_UNSCHEDULABLE = Taint(key="node.kubernetes.io/unschedulable", effect="NoSchedule")


def named(resources: Sequence[str]) -> str:
    """Resources by name; tenants may ask for any number of them."""
    return ", ".join(resources[:_MOST_NAMED]) + (" ..." if len(resources) > _MOST_NAMED else "")


def class_reason(shape: Shape, node_class: NodeClass) -> str:
    """Why no node of the class suits the shape, judged by labels, taints and readiness; empty when they do."""
    reason = node_class.reasons.get(shape.number)
    if reason is None:
        if len(node_class.reasons) >= _MOST_REASONS:
            node_class.reasons.clear()
        reason = node_class.reasons[shape.number] = _class_reason(shape, node_class)
    return reason


def _class_reason(shape: Shape, node_class: NodeClass) -> str:
    if shape.lacks:
        return f"offers no {named(shape.lacks)}"
    if not node_class.ready:
        return "node is not ready"
    if node_class.unschedulable and not tolerates(shape.tolerations, _UNSCHEDULABLE):
        return "node is cordoned"
    for taint in node_class.taints:
        if taint.effect in ("NoSchedule", "NoExecute") and not tolerates(shape.tolerations, taint):
            return f"untolerated taint {taint.key}" + (f"={taint.value}" if taint.value else "")
    if shape.by_name:
        return ""
    labels = node_class.labels
    if any(labels.get(key) != value for key, value in shape.node_selector):
        return "node selector does not match"
    if shape.node_affinity is not None and not shape.node_affinity.matches("", labels):
        return "node affinity does not match"
    return ""


def node_reason(shape: Shape, node: Node) -> str:
    """As `class_reason`, for one node: rules that name nodes are judged here."""
    reason = class_reason(shape, node.node_class)
    if reason:
        return reason
    if shape.share is not None and not node.by_claims and node.labels.get(MIG_STRATEGY, "none") != "none":
        return "GPUs in MIG mode cannot be shared"
    if not shape.by_name:
        return ""
    labels = node.labels
    if any(labels.get(key) != value for key, value in shape.node_selector):
        return "node selector does not match"
    if shape.node_affinity is not None and not shape.node_affinity.matches(node.name, labels):
        return "node affinity does not match"
    return ""


def preference(shape: Shape, node: Node) -> int:
    """Sum of the weights of the preferred node affinity terms that match."""
    return sum(t.weight for t in shape.preferred_nodes if t.preference.matches(node.name, node.labels))


def reluctance(shape: Shape, node: Node) -> int:
    """How many taints of the node would rather not have the pod (`PreferNoSchedule`)."""
    return sum(not tolerates(shape.tolerations, taint) for taint in node.node_class.soft_taints)


def needs_company(world: World, task: Task) -> bool:
    """Whether `dynamic_reason` has to be asked for this task."""
    return task.shape.dynamic or bool(world.guards)


def likeness(task: Task) -> Hashable:
    """Tasks with the same likeness are refused by the same nodes, but for their ResourceClaims and what guards keep to
    themselves: where other pods, ports or volumes decide, their labels and PersistentVolumeClaims count, too."""
    if not task.shape.company:
        return task.shape.number
    return (task.shape.number, task.namespace, tuple(sorted(task.labels.items())), task.volumes)


def dynamic_reason(world: World, task: Task, node: Node, *, later: bool) -> str:
    """Why other pods, ports or volumes keep the task off the node; empty when they do not.

    With `later`, terminating pods are taken as gone and promised ones as present.
    """
    shape = task.shape
    if shape.ports:
        for other in _on(node, later):
            if any(a.clashes(b) for a in shape.ports for b in other.shape.ports):
                return f"host port {shape.ports[0].port} is taken"
    if shape.volumes:
        chosen = volumes.choose(world, task, node, later=later)
        if isinstance(chosen, str):
            return chosen
    if shape.pod_affinity is not None:
        for term in shape.pod_affinity.required_during_scheduling_ignored_during_execution:
            if not _affinity_holds(world, task, node, term, later):
                return "pod affinity does not match"
    if shape.pod_anti_affinity is not None:
        for term in shape.pod_anti_affinity.required_during_scheduling_ignored_during_execution:
            if _any_in_domain(world, node, term.topology_key, later, _selects(world, term, task), task):
                return "pod anti-affinity does not allow it"
    if world.guards and _guarded(world, task, node, later):
        return "another pod's anti-affinity does not allow it"
    for constraint in shape.spread:
        if constraint.when_unsatisfiable == "DoNotSchedule" and not _spreads(world, task, node, constraint, later):
            return f"topology spread over {constraint.topology_key} would be exceeded"
    return ""


def company_score(world: World, task: Task, node: Node, *, later: bool) -> int:
    """Sum of the weights of preferred pod (anti-)affinity terms that hold on the node."""
    score = 0
    for affinity, sign in ((task.shape.pod_affinity, 1), (task.shape.pod_anti_affinity, -1)):
        if affinity is None:
            continue
        for weighted in affinity.preferred_during_scheduling_ignored_during_execution:
            term = weighted.pod_affinity_term
            if _any_in_domain(world, node, term.topology_key, later, _selects(world, term, task), task):
                score += sign * weighted.weight
    return score


def _on(node: Node, later: bool) -> Iterator[Task]:
    for other in node.tasks.values():
        here = other.node is node
        if later:
            if here and (ACTIVE[other.status] or other.status == Status.STUCK):
                yield other
        elif not here or other.status != Status.PIPELINED:
            yield other


def _domain(world: World, node: Node, key: str) -> Iterable[Node]:
    if key == "kubernetes.io/hostname":
        return (node,)
    value = node.labels.get(key)
    return [other for other in world.nodes.values() if other.labels.get(key) == value]


def _selects(world: World, term: PodAffinityTerm, owner: Task) -> Callable[[Task], bool]:
    namespaces = term.namespaces if term.namespaces or term.namespace_selector else [owner.namespace]
    chosen = term.namespace_selector
    selector = term.label_selector
    same = {key: owner.labels[key] for key in term.match_label_keys if key in owner.labels}
    other = {key: owner.labels[key] for key in term.mismatch_label_keys if key in owner.labels}

    def matches(task: Task) -> bool:
        labels = task.labels
        return (
            (
                task.namespace in namespaces
                or (chosen is not None and chosen.matches(world.namespaces.get(task.namespace, {})))
            )
            and selector is not None
            and selector.matches(labels)
            and all(labels.get(key) == value for key, value in same.items())
            and all(labels.get(key) != value for key, value in other.items())
        )

    return matches


def _any_in_domain(world: World, node: Node, key: str, later: bool, matches: Callable[[Task], bool], but: Task) -> bool:
    if key not in node.labels:
        return False
    return any(
        other is not but and matches(other) for member in _domain(world, node, key) for other in _on(member, later)
    )


def _affinity_holds(world: World, task: Task, node: Node, term: PodAffinityTerm, later: bool) -> bool:
    if term.topology_key not in node.labels:
        return False
    matches = _selects(world, term, task)
    if _any_in_domain(world, node, term.topology_key, later, matches, task):
        return True
    # The first pod of a set that wants its own company may go anywhere (upstream's rule).
    return matches(task) and not any(
        other is not task and matches(other) for member in world.nodes.values() for other in _on(member, later)
    )


def _guarded(world: World, task: Task, node: Node, later: bool) -> bool:
    for guard in world.guards.values():
        home = guard.node
        if home is None or guard is task or guard.shape.pod_anti_affinity is None:
            continue
        if guard.uid not in home.tasks or (later and guard.status == Status.RELEASING):
            continue
        for term in guard.shape.pod_anti_affinity.required_during_scheduling_ignored_during_execution:
            key = term.topology_key
            if key in node.labels and home.labels.get(key) == node.labels[key] and _selects(world, term, guard)(task):
                return True
    return False


def _spreads(world: World, task: Task, node: Node, constraint: TopologySpreadConstraint, later: bool) -> bool:
    key = constraint.topology_key
    if key not in node.labels:
        return False
    counts = _spread_counts(world, task, constraint, later)
    least = min(counts.values(), default=0)
    if constraint.min_domains is not None and len(counts) < constraint.min_domains:
        least = 0
    selector = constraint.label_selector
    own = 1 if selector is not None and selector.matches(task.labels) else 0
    return counts.get(node.labels[key], 0) + own - least <= constraint.max_skew


def _spread_counts(world: World, task: Task, constraint: TopologySpreadConstraint, later: bool) -> dict[str, int]:
    """Domain -> pods there that the constraint counts, for every domain with a node that it considers."""
    counts: dict[str, int] = {}
    for member in world.nodes.values():
        domain, pods = spread_at(task, constraint, member, later=later, but=task)
        if domain is not None:
            counts[domain] = counts.get(domain, 0) + pods
    return counts


def spread_at(
    task: Task, constraint: TopologySpreadConstraint, node: Node, *, later: bool, but: Task | None = None
) -> tuple[str | None, int]:
    """The domain of a node and how many pods there a constraint of the task counts, without `but`; no domain where the
    constraint does not consider the node."""
    domain = node.labels.get(constraint.topology_key)
    if domain is None or (constraint.node_affinity_policy == "Honor" and not _selected(task.shape, node)):
        return None, 0
    if constraint.node_taints_policy == "Honor" and class_reason(task.shape, node.node_class):
        return None, 0
    selector = constraint.label_selector
    if selector is None:
        return domain, 0
    same = alike_by(task, constraint)
    return domain, sum(
        other is not but
        and other.status not in (Status.RELEASING, Status.STUCK)  # upstream counts no terminating pods
        and other.namespace == task.namespace
        and selector.matches(other.labels)
        and all(other.labels.get(name) == wanted for name, wanted in same)
        for other in _on(node, later)
    )


def alike_by(task: Task, constraint: TopologySpreadConstraint) -> tuple[tuple[str, str], ...]:
    """The labels by which a constraint tells the task's likes from others (`matchLabelKeys`)."""
    return tuple((name, task.labels[name]) for name in constraint.match_label_keys if name in task.labels)


def crowding(counted: Sequence[tuple[TopologySpreadConstraint, Mapping[str, int]]], node: Node) -> tuple[bool, int]:
    """How crowded a node is by constraints with the pods of their domains, as kube-scheduler scores `ScheduleAnyway`:
    pods in its domain, weighted by the logarithm of the number of domains. Nodes outside a topology come last."""
    score = 0.0
    for constraint, counts in counted:
        domain = node.labels.get(constraint.topology_key)
        if domain is None:
            return (True, 0)
        score += counts.get(domain, 0) * math.log(len(counts) + 2) + constraint.max_skew - 1
    return (False, round(score))


def _selected(shape: Shape, node: Node) -> bool:
    return all(node.labels.get(key) == value for key, value in shape.node_selector) and (
        shape.node_affinity is None or shape.node_affinity.matches(node.name, node.labels)
    )
