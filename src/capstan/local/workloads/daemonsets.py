"""DaemonSets: one pod on every node that takes it, replaced a few nodes at a time.

Placement stays with the scheduler: each pod is tied to its node by a required node affinity on the name.
"""

from __future__ import annotations

from collections import defaultdict
from typing import Any

import msgspec

from capstan import kube
from capstan.api.apps import DaemonSet
from capstan.api.core import Affinity, Node, Pod, PodSpec, Toleration, tolerates
from capstan.api.resources import DAEMON_SETS, NODES, PODS
from capstan.local.workloads import pods as pod_state
from capstan.local.workloads.caches import Caches, patch_status
from capstan.local.workloads.children import Children
from capstan.local.workloads.revisions import HASH_LABEL, Revisions

_TOLERATED = (
    ("node.kubernetes.io/not-ready", "NoExecute"),
    ("node.kubernetes.io/unreachable", "NoExecute"),
    ("node.kubernetes.io/disk-pressure", "NoSchedule"),
    ("node.kubernetes.io/memory-pressure", "NoSchedule"),
    ("node.kubernetes.io/pid-pressure", "NoSchedule"),
    ("node.kubernetes.io/unschedulable", "NoSchedule"),
)
"""Taints that daemon pods always tolerate (daemon.util.AddOrUpdateDaemonPodTolerations)."""


class DaemonSetController(kube.Controller[kube.Key]):
    def __init__(self, caches: Caches) -> None:
        super().__init__()
        self._caches = caches
        self._recorder = caches.recorder("daemonset-controller")
        self._sets = caches.of(DAEMON_SETS)
        self._nodes = caches.of(NODES)
        self._pods = Children(caches, PODS, DAEMON_SETS, self._recorder)
        self._revisions = Revisions(caches, DAEMON_SETS)
        self.caches = (self._sets, self._nodes, caches.pods, self._revisions.cache)
        self._sets.on_change(lambda change: self.queue.add(change.object.key))
        self._pods.enqueue(self.queue, self._sets)
        self._nodes.on_change(self._node_changed)

    def _node_changed(self, change: kube.Change[Node]) -> None:
        old, new = change.old, change.new
        if old and new and old.spec == new.spec and old.metadata.labels == new.metadata.labels:
            return
        for key in self._sets.objects:
            self.queue.add(key)

    async def reconcile(self, key: kube.Key) -> float | None:
        owner = self._sets.objects.get(key)
        if owner is None:
            return None
        pods = await self._pods.claim(owner, owner.spec.selector)
        revision = ""
        if owner.metadata.deletion_timestamp is None:
            revision = await self._revisions.current(owner)
            await self._place(owner, pods, revision)
            pods = self._pods.of(owner)
            await self._update(owner, pods, revision)
            pods = self._pods.of(owner)
        return await self._report(owner, pods, revision)

    async def _place(self, owner: DaemonSet, pods: list[Pod], revision: str) -> None:
        """A pod for each node that should have one; none for the others, no second one, none that has finished."""
        on_node = by_node(pods)
        template = msgspec.convert(owner.spec.template.get("spec") or {}, PodSpec)
        missing, surplus = [], []
        for name, node in ((node.metadata.name, node) for node in self._nodes.objects.values()):
            run, keep = fits(template, node)
            here = sorted(
                on_node.pop(name, []), key=lambda pod: (not pod.spec.node_name, pod.metadata.creation_timestamp)
            )
            finished = [pod for pod in here if pod_state.is_finished(pod)]
            alive = [pod for pod in here if not pod_state.is_finished(pod)]
            surplus += finished + (alive[1:] if keep else alive)
            if run and not here:
                missing.append(self._body(owner, name, revision))
        surplus += [pod for rest in on_node.values() for pod in rest]  # their nodes are gone
        await self._pods.delete(owner, [pod for pod in surplus if pod.metadata.deletion_timestamp is None])
        await self._pods.create(owner, missing)

    async def _update(self, owner: DaemonSet, pods: list[Pod], revision: str) -> None:
        """Deletes outdated pods, at most maxUnavailable nodes at once; broken ones cost nothing and go first."""
        if owner.spec.update_strategy.type != "RollingUpdate":
            return
        rolling = owner.spec.update_strategy.rolling_update
        now = self._caches.now()
        desired = len(by_node(pods))
        allowed = pod_state.resolve(_max_unavailable(rolling), desired, up=True)
        outdated = [p for p in pods if pod_state.is_active(p) and p.metadata.labels.get(HASH_LABEL) != revision]
        working = [p for p in pods if pod_state.is_active(p) and self._available(owner, p, now)]
        budget = allowed - (desired - len(working))
        broken = [pod for pod in outdated if not self._available(owner, pod, now)]
        healthy = [pod for pod in outdated if self._available(owner, pod, now)]
        await self._pods.delete(owner, broken + healthy[: max(0, budget)])

    @staticmethod
    def _available(owner: DaemonSet, pod: Pod, now: float) -> bool:
        return pod_state.is_available(pod, owner.spec.min_ready_seconds, now)

    def _body(self, owner: DaemonSet, node: str, revision: str) -> kube.Body:
        body = pod_state.from_template(DAEMON_SETS, owner, owner.spec.template)
        body["metadata"]["labels"][HASH_LABEL] = revision
        spec = body["spec"]
        affinity = spec.setdefault("affinity", {}) or {}
        spec["affinity"] = affinity
        required = {"key": "metadata.name", "operator": "In", "values": [node]}
        # The template's own required terms were checked by `fits`; now only the node counts.
        affinity.setdefault("nodeAffinity", {})["requiredDuringSchedulingIgnoredDuringExecution"] = {
            "nodeSelectorTerms": [{"matchFields": [required]}]
        }
        spec["tolerations"] = [
            *(spec.get("tolerations") or []),
            *({"key": key, "operator": "Exists", "effect": effect} for key, effect in _TOLERATED),
        ]
        return body

    async def _report(self, owner: DaemonSet, pods: list[Pod], revision: str) -> float | None:
        now = self._caches.now()
        template = msgspec.convert(owner.spec.template.get("spec") or {}, PodSpec)
        should = {node.metadata.name for node in self._nodes.objects.values() if fits(template, node)[0]}
        placed = by_node([pod for pod in pods if pod_state.is_active(pod)])
        right = [here[0] for name, here in placed.items() if name in should]
        waits = [pod_state.available_in(pod, owner.spec.min_ready_seconds, now) for pod in right]
        available = sum(wait == 0.0 for wait in waits)
        status: dict[str, Any] = {
            "observedGeneration": owner.metadata.generation,
            "desiredNumberScheduled": len(should),
            "currentNumberScheduled": len(right),
            "numberMisscheduled": sum(name not in should for name in placed),
            "numberReady": sum(wait is not None for wait in waits),
            "numberAvailable": available,
            "numberUnavailable": len(should) - available,
            "updatedNumberScheduled": sum(pod.metadata.labels.get(HASH_LABEL) == revision for pod in right),
        }
        if owner.metadata.deletion_timestamp is None:
            in_use = {pod.metadata.labels.get(HASH_LABEL, "") for pod in pods} | {revision}
            await self._revisions.clean_up(owner, in_use)
        await patch_status(self._caches, DAEMON_SETS, owner, status, msgspec.to_builtins(owner.status))
        return min((wait for wait in waits if wait), default=None)


def _max_unavailable(rolling: Any) -> int | str:
    """A DaemonSet's default is one node, not the 25 % of a Deployment: the API server writes it into the object."""
    return 1 if rolling is None else rolling.max_unavailable


def by_node(pods: list[Pod]) -> dict[str, list[Pod]]:
    """Pods by the node they run on, or are meant for while they wait."""
    found: dict[str, list[Pod]] = defaultdict(list)
    for pod in pods:
        found[pod.spec.node_name or _target(pod.spec.affinity)].append(pod)
    return dict(found)


def _target(affinity: Affinity | None) -> str:
    node_affinity = affinity.node_affinity if affinity else None
    required = node_affinity.required_during_scheduling_ignored_during_execution if node_affinity else None
    for term in required.node_selector_terms if required else []:
        for field in term.match_fields:
            if field.key == "metadata.name" and field.values:
                return field.values[0]
    return ""


def fits(template: PodSpec, node: Node) -> tuple[bool, bool]:
    """Whether a pod of the template should start on the node, and whether one that is there may stay."""
    if template.node_name and template.node_name != node.metadata.name:
        return False, False
    labels = node.metadata.labels
    if not template.node_selector.items() <= labels.items():
        return False, False
    node_affinity = template.affinity.node_affinity if template.affinity else None
    required = node_affinity.required_during_scheduling_ignored_during_execution if node_affinity else None
    if required is not None and not required.matches(node.metadata.name, labels):
        return False, False
    tolerations = [*template.tolerations, *(Toleration(key=k, operator="Exists", effect=e) for k, e in _TOLERATED)]
    hostile = [taint for taint in node.spec.taints if not tolerates(tolerations, taint)]
    return (
        not any(taint.effect in ("NoSchedule", "NoExecute") for taint in hostile),
        not any(taint.effect == "NoExecute" for taint in hostile),
    )
