"""In which order manifests can be applied: by what their kinds need of each other, and by `dependsOn` of their add-ons.

Edges come from kinds (a CRD before its objects, a Namespace before its content, a Gatekeeper template before its
constraints, a policy before its binding), so that nobody has to number waves. Among what is free to go, simpler kinds
go first, then the order of add-ons in the blueprint.
"""

from __future__ import annotations

import heapq
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from capstan.blueprints.paths import get

Manifest = dict[str, Any]

_RANKS = {
    kind: rank
    for rank, kinds in enumerate(
        (
            ("Namespace",),
            ("CustomResourceDefinition", "ConstraintTemplate"),
            ("PriorityClass", "RuntimeClass", "StorageClass", "DeviceClass"),
            ("ServiceAccount", "ClusterRole", "ClusterRoleBinding", "Role", "RoleBinding"),
            ("ConfigMap", "Secret", "ResourceQuota", "LimitRange", "NetworkPolicy"),
            ("PersistentVolumeClaim", "Service", "Endpoints"),
            (),
            ("Deployment", "DaemonSet", "StatefulSet", "Job", "CronJob", "Pod"),
            ("ValidatingAdmissionPolicy", "MutatingAdmissionPolicy"),
            ("ValidatingAdmissionPolicyBinding", "MutatingAdmissionPolicyBinding"),
            ("ValidatingWebhookConfiguration", "MutatingWebhookConfiguration"),
        )
    )
    for kind in kinds
}
_OTHER_KINDS = 6
"""The rank of kinds that are not listed: custom objects, after what they may refer to and before workloads."""


class Cycle(Exception):
    """Some things wait for each other; `members` in the order of waiting, the first again at the end."""

    def __init__(self, members: list[str]) -> None:
        super().__init__(" -> ".join(members))
        self.members = members


def addon_order(depends_on: Mapping[str, Sequence[str]]) -> list[str]:
    """Add-ons with their dependencies first, otherwise in the given order. Raises Cycle."""
    names = list(depends_on)
    after = {name: [other for other in depends_on[name] if other in depends_on] for name in names}
    order = _sorted(len(names), {names.index(n): [names.index(o) for o in after[n]] for n in names}, lambda n: (n,))
    if len(order) < len(names):
        left = {name: after[name] for number, name in enumerate(names) if number not in order}
        raise Cycle(_cycle(left))
    return [names[number] for number in order]


def manifest_order(items: Sequence[tuple[str, str, Manifest]], depends_on: Mapping[str, Sequence[str]]) -> list[int]:
    """Positions of (add-on, identity, manifest) in the order to apply them. Raises Cycle, naming identities."""
    needs: dict[int, set[int]] = defaultdict(set)
    by_addon: dict[str, list[int]] = defaultdict(list)
    namespaces: dict[str, int] = {}
    definitions: dict[tuple[str, str], int] = {}
    policies: dict[str, int] = {}
    for position, (addon, _, manifest) in enumerate(items):
        by_addon[addon].append(position)
        name = manifest["metadata"]["name"]
        match manifest["kind"]:
            case "Namespace":
                namespaces[name] = position
            case "CustomResourceDefinition":
                definitions[_text(manifest, "spec.group"), _text(manifest, "spec.names.kind")] = position
            case "ConstraintTemplate":
                kind = _text(manifest, "spec.crd.spec.names.kind")
                definitions["constraints.gatekeeper.sh", kind] = position
            case "ValidatingAdmissionPolicy" | "MutatingAdmissionPolicy":
                policies[manifest["kind"] + name] = position
    for position, (addon, _, manifest) in enumerate(items):
        group = manifest["apiVersion"].rpartition("/")[0]
        policy = manifest["kind"].removesuffix("Binding") + _text(manifest, "spec.policyName")
        for producer in (
            namespaces.get(manifest["metadata"].get("namespace", "")),
            definitions.get((group, manifest["kind"])),
            policies.get(policy) if manifest["kind"].endswith("PolicyBinding") else None,
        ):
            if producer is not None:
                needs[position].add(producer)
        for other in depends_on.get(addon, ()):
            needs[position].update(by_addon.get(other, ()))

    def priority(position: int) -> tuple[int, int]:
        return (_RANKS.get(items[position][2]["kind"], _OTHER_KINDS), position)

    order = _sorted(len(items), needs, priority)
    if len(order) < len(items):
        done = set(order)
        left = {
            items[position][1]: [items[other][1] for other in sorted(needs[position]) if other not in done]
            for position in range(len(items))
            if position not in done
        }
        raise Cycle(_cycle(left))
    return order


def _text(manifest: Manifest, path: str) -> str:
    value = get(manifest, tuple(path.split(".")))
    return value if isinstance(value, str) else ""


def _sorted(count: int, needs: Mapping[int, Iterable[int]], priority: Any) -> list[int]:
    """Kahn's algorithm, the free node of the least priority first; shorter than `count` when there is a cycle."""
    waiting = {node: set(needs.get(node, ())) for node in range(count)}
    needed_by: dict[int, list[int]] = defaultdict(list)
    for node, others in waiting.items():
        for other in others:
            needed_by[other].append(node)
    free = [(priority(node), node) for node in range(count) if not waiting[node]]
    heapq.heapify(free)
    order: list[int] = []
    while free:
        _, node = heapq.heappop(free)
        order.append(node)
        for other in needed_by[node]:
            waiting[other].discard(node)
            if not waiting[other]:
                heapq.heappush(free, (priority(other), other))
    return order


def _cycle(waiting: Mapping[str, Sequence[str]]) -> list[str]:
    """One cycle among nodes that all wait for another of them or lead to one that does."""
    node = next(iter(waiting))
    trail: list[str] = []
    while node not in trail:
        trail.append(node)
        node = next(other for other in waiting[node] if other in waiting)
    return [*trail[trail.index(node) :], node]
