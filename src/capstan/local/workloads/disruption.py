"""Disruption budgets: how many pods of each may be evicted right now, which the Eviction API then spends."""

from __future__ import annotations

from typing import Any

import msgspec

from capstan import kube
from capstan.api import clock
from capstan.api.base import Condition
from capstan.api.batch import JobSpec as _JobSpec
from capstan.api.core import Pod
from capstan.api.policy import PodDisruptionBudget
from capstan.api.resources import DEPLOYMENTS, JOBS, POD_DISRUPTION_BUDGETS, REPLICA_SETS, STATEFUL_SETS
from capstan.local.workloads import pods as pod_state
from capstan.local.workloads.caches import Caches, patch_status, wire_conditions

_GRANT_SECONDS = 120.0
"""How long an evicted pod counts as disrupted although its deletion has not been seen."""


class DisruptionController(kube.Controller[kube.Key]):
    def __init__(self, caches: Caches) -> None:
        super().__init__()
        self._caches = caches
        self._budgets = caches.of(POD_DISRUPTION_BUDGETS)
        self._scaled: dict[str, kube.Cache[Any]] = {
            "ReplicaSet": caches.of(REPLICA_SETS),
            "StatefulSet": caches.of(STATEFUL_SETS),
            "Deployment": caches.of(DEPLOYMENTS),
            "Job": caches.of(JOBS),
        }
        self.caches = (self._budgets, caches.pods, *self._scaled.values())
        self._budgets.on_change(lambda change: self.queue.add(change.object.key))
        caches.pods.on_change(self._pod_changed)
        for kind in ("ReplicaSet", "StatefulSet", "Deployment"):
            self._scaled[kind].on_change(self._scale_changed)

    def _pod_changed(self, change: kube.Change[Pod]) -> None:
        for key, budget in self._budgets.objects.items():
            if any(pod is not None and covers(budget, pod) for pod in (change.old, change.new)):
                self.queue.add(key)

    def _scale_changed(self, change: kube.Change[Any]) -> None:
        old, new = change.old, change.new
        if old is not None and new is not None and old.spec.replicas == new.spec.replicas:
            return
        for key in self._budgets.objects:
            if key[0] == change.object.metadata.namespace:
                self.queue.add(key)

    async def reconcile(self, key: kube.Key) -> float | None:
        budget = self._budgets.objects.get(key)
        if budget is None:
            return None
        now = self._caches.now()
        pods = [pod for pod in self._caches.pods_by_namespace.get(key[0]).values() if covers(budget, pod)]
        pods = [pod for pod in pods if not pod_state.is_finished(pod)]
        granted = self._granted(budget, pods, now)
        expected, wanted = self._bounds(budget, pods)
        healthy = sum(
            pod_state.is_ready(pod) and pod.metadata.deletion_timestamp is None and pod.metadata.name not in granted
            for pod in pods
        )
        allowed = max(0, healthy - wanted) if expected else 0
        status: dict[str, Any] = {
            "currentHealthy": healthy,
            "desiredHealthy": wanted,
            "expectedPods": expected,
            "disruptionsAllowed": allowed,
            "observedGeneration": budget.metadata.generation,
            "conditions": [self._condition(budget, allowed, now)],
            "disruptedPods": {name: granted.get(name) for name in {*granted, *budget.status.disrupted_pods}} or None,
        }
        known = msgspec.to_builtins(budget.status)
        known.setdefault("disruptedPods", None)
        known["conditions"] = [
            {**condition, "observedGeneration": one.observed_generation}
            for condition, one in zip(wire_conditions(budget.status.conditions), budget.status.conditions, strict=True)
        ]
        await patch_status(self._caches, POD_DISRUPTION_BUDGETS, budget, status, known)
        ends = [clock.parse(time) + _GRANT_SECONDS - now for time in granted.values()]
        return max(0.1, min(ends)) if ends else None

    @staticmethod
    def _granted(budget: PodDisruptionBudget, pods: list[Pod], now: float) -> dict[str, str]:
        """Evictions the API server has granted that have not shown as deletions yet."""
        waiting = {pod.metadata.name for pod in pods if pod.metadata.deletion_timestamp is None}
        return {
            name: time
            for name, time in budget.status.disrupted_pods.items()
            if name in waiting and clock.parse(time) + _GRANT_SECONDS > now
        }

    def _bounds(self, budget: PodDisruptionBudget, pods: list[Pod]) -> tuple[int, int]:
        """(pods expected, pods that must stay healthy). Expectations follow the owners' scale, not what is there."""
        spec = budget.spec
        if spec.max_unavailable is not None:
            expected = self._expected(pods)
            return expected, max(0, expected - pod_state.resolve(spec.max_unavailable, expected, up=True))
        if isinstance(spec.min_available, str):
            expected = self._expected(pods)
            return expected, pod_state.resolve(spec.min_available, expected, up=True)
        return len(pods), spec.min_available or 0

    def _expected(self, pods: list[Pod]) -> int:
        """The sum of the scales of all owners; a pod without a scalable owner stands for itself."""
        scales: dict[str, int] = {}
        for pod in pods:
            owner = pod.metadata.controller()
            cache = self._scaled.get(owner.kind) if owner else None
            found = cache.get(owner.name, pod.metadata.namespace) if owner and cache else None
            if found is not None and owner is not None and found.metadata.uid == owner.uid:
                upper = found.metadata.controller()
                above = self._scaled["Deployment"].get(upper.name, pod.metadata.namespace) if upper else None
                top = above if above is not None else found
                scale = top.spec.parallelism if isinstance(top.spec, _JobSpec) else top.spec.replicas
                scales[top.metadata.uid] = scale or 0
            else:
                scales[pod.metadata.uid] = 1
        return sum(scales.values())

    @staticmethod
    def _condition(budget: PodDisruptionBudget, allowed: int, now: float) -> dict[str, Any]:
        state, reason = ("True", "SufficientPods") if allowed else ("False", "InsufficientPods")
        before = next((c for c in budget.status.conditions if c.type == "DisruptionAllowed"), Condition())
        same = before.status == state
        return {
            "type": "DisruptionAllowed",
            "status": state,
            "reason": reason,
            "message": "",
            "observedGeneration": budget.metadata.generation,
            "lastTransitionTime": before.last_transition_time if same else clock.render(now),
        }


def covers(budget: PodDisruptionBudget, pod: Pod) -> bool:
    """An absent selector covers nothing, an empty one every pod of the namespace (policy/v1)."""
    selector = budget.spec.selector
    return (
        selector is not None
        and pod.metadata.namespace == budget.metadata.namespace
        and selector.matches(pod.metadata.labels)
    )
