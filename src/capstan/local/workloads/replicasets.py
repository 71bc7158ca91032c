"""ReplicaSets: as many pods as asked for, the least useful ones deleted first."""

from __future__ import annotations

from collections import Counter
from typing import Any

import msgspec

from capstan import kube
from capstan.api import clock
from capstan.api.apps import ReplicaSet
from capstan.api.core import Pod
from capstan.api.resources import PODS, REPLICA_SETS
from capstan.local.workloads import pods as pod_state
from capstan.local.workloads.caches import Caches, patch_status
from capstan.local.workloads.children import Children

_BURST = 500
"""Pods created or deleted in one go (kube-controller-manager's BurstReplicas)."""


class ReplicaSetController(kube.Controller[kube.Key]):
    def __init__(self, caches: Caches) -> None:
        super().__init__()
        self._caches = caches
        self._recorder = caches.recorder("replicaset-controller")
        self._sets = caches.of(REPLICA_SETS)
        self.pods = Children(caches, PODS, REPLICA_SETS, self._recorder)
        self.caches = (self._sets, caches.pods)
        self._sets.on_change(lambda change: self.queue.add(change.object.key))
        self.pods.enqueue(self.queue, self._sets)

    async def reconcile(self, key: kube.Key) -> float | None:
        owner = self._sets.objects.get(key)
        if owner is None:
            return None
        pods = await self.pods.claim(owner, owner.spec.selector)
        failure = ""
        if owner.metadata.deletion_timestamp is None:
            active = [pod for pod in pods if pod_state.is_active(pod)]
            try:
                await self._scale(owner, active)
            except (kube.Forbidden, kube.Invalid, kube.BadRequest) as error:
                # The server refuses until the template or a quota changes: say so on the object, retry slowly.
                failure = str(error)
                self._recorder.emit(owner, "Warning", "FailedCreate", f"Error creating: {failure}")
            pods = self.pods.of(owner)
        again = await self._report(owner, [pod for pod in pods if pod_state.is_active(pod)], failure)
        return 10.0 if failure else again

    async def _scale(self, owner: ReplicaSet, active: list[Pod]) -> None:
        missing = owner.spec.replicas - len(active)
        if missing > 0:
            body = pod_state.from_template(REPLICA_SETS, owner, owner.spec.template)
            await self.pods.create(owner, [body] * min(missing, _BURST))
        elif missing < 0:
            ranked = sorted(active, key=deletion_rank(active, self._caches.now()))
            await self.pods.delete(owner, ranked[: min(-missing, _BURST)])
        if abs(missing) > _BURST:
            self.queue.add(owner.key)

    async def _report(self, owner: ReplicaSet, active: list[Pod], failure: str) -> float | None:
        """Writes the status; returns when the next pod becomes available by age alone."""
        now = self._caches.now()
        waits = [pod_state.available_in(pod, owner.spec.min_ready_seconds, now) for pod in active]
        labels = (owner.spec.template.get("metadata") or {}).get("labels") or {}
        status: dict[str, Any] = {
            "replicas": len(active),
            "fullyLabeledReplicas": sum(labels.items() <= pod.metadata.labels.items() for pod in active),
            "readyReplicas": sum(wait is not None for wait in waits),
            "availableReplicas": sum(wait == 0.0 for wait in waits),
            "observedGeneration": owner.metadata.generation,
            "conditions": [
                {
                    "type": "ReplicaFailure",
                    "status": "True",
                    "reason": "FailedCreate",
                    "message": failure,
                    "lastTransitionTime": clock.render(now),
                }
            ]
            if failure
            else None,
        }
        known = next((c.message for c in owner.status.conditions if c.type == "ReplicaFailure"), "")
        if failure and known == failure:
            del status["conditions"]
        await patch_status(self._caches, REPLICA_SETS, owner, status, msgspec.to_builtins(owner.status))
        return min((wait for wait in waits if wait), default=None)


def deletion_rank(active: list[Pod], now: float) -> Any:
    """The sort key by which pods go first (controller.ActivePodsWithRanks): unassigned, not running, not ready,
    cheaper, from fuller nodes, ready for a shorter time, younger."""
    per_node = Counter(pod.spec.node_name for pod in active)
    phases = {"Pending": 0, "Unknown": 1, "Running": 2}

    def rank(pod: Pod) -> tuple[Any, ...]:
        since = pod_state.ready_since(pod)
        return (
            bool(pod.spec.node_name),
            phases.get(pod.status.phase, 2),
            since is not None,
            int(pod.metadata.annotations.get("controller.kubernetes.io/pod-deletion-cost", 0) or 0),
            -per_node[pod.spec.node_name],
            -(since or 0),
            -sum(status.restart_count for status in pod.status.container_statuses),
            -clock.parse(pod.metadata.creation_timestamp),
            pod.metadata.name,
        )

    return rank
