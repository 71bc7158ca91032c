"""How a Deployment moves from old ReplicaSets to the new one: pure decisions, replica counts in and replica counts out.

The rules are those of kube-controller-manager's rolling update: never more than `replicas + maxSurge` pods, never fewer
than `replicas - maxUnavailable` available ones, unhealthy old pods go first.
"""

from __future__ import annotations

from collections.abc import Sequence

from capstan.api.apps import Deployment, ReplicaSet
from capstan.local.workloads.pods import resolve

DESIRED_ANNOTATION = "deployment.kubernetes.io/desired-replicas"
MAX_ANNOTATION = "deployment.kubernetes.io/max-replicas"

Sizes = dict[str, int]
"""Wanted `spec.replicas` by ReplicaSet name, only where it changes."""


def surge_and_unavailable(deployment: Deployment) -> tuple[int, int]:
    """maxSurge (rounded up) and maxUnavailable (rounded down) in pods; if both are 0, one pod may be unavailable, or
    nothing could ever move. Recreate has neither."""
    if deployment.spec.strategy.type == "Recreate":
        return 0, 0
    rolling = deployment.spec.strategy.rolling_update
    total = deployment.spec.replicas
    surge = resolve(rolling.max_surge if rolling else "25%", total, up=True)
    unavailable = resolve(rolling.max_unavailable if rolling else "25%", total, up=False)
    return surge, min(unavailable, total) if unavailable or surge else 1


def rolling(deployment: Deployment, new: ReplicaSet, old: Sequence[ReplicaSet]) -> Sizes:
    """The next step of a rolling update. Growth of the new set comes before shrinking of the old ones."""
    wanted = deployment.spec.replicas
    surge, unavailable = surge_and_unavailable(deployment)
    pods = new.spec.replicas + sum(one.spec.replicas for one in old)
    if new.spec.replicas > wanted:
        return {new.metadata.name: wanted}
    if new.spec.replicas < wanted and (room := wanted + surge - pods) > 0:
        return {new.metadata.name: new.spec.replicas + min(room, wanted - new.spec.replicas)}
    return _shrink(old, new, pods, wanted - unavailable)


def _shrink(old: Sequence[ReplicaSet], new: ReplicaSet, pods: int, least_available: int) -> Sizes:
    sizes: Sizes = {}
    new_unavailable = new.spec.replicas - new.status.available_replicas
    budget = pods - least_available - new_unavailable
    if budget <= 0:
        return {}
    ordered = sorted(old, key=lambda one: (one.metadata.creation_timestamp, one.metadata.name))
    for one in ordered:
        if (cut := min(one.spec.replicas - one.status.available_replicas, budget)) > 0:
            sizes[one.metadata.name] = one.spec.replicas - cut
            budget -= cut
    available = new.status.available_replicas + sum(one.status.available_replicas for one in old)
    # The budget bounds it as well: a status may still count pods of an old set that are on their way out.
    spare = min(available - least_available, budget)
    for one in ordered:
        size = sizes.get(one.metadata.name, one.spec.replicas)
        if (cut := min(size, spare)) > 0:
            sizes[one.metadata.name] = size - cut
            spare -= cut
    return sizes


def proportional(deployment: Deployment, new: ReplicaSet | None, old: Sequence[ReplicaSet]) -> Sizes:
    """The deployment itself was scaled: spread the difference over the sets in proportion to their sizes, so that a
    rollout in the middle keeps its shape. A finished rollout has one set that takes it all."""
    active = [one for one in (*old, new) if one is not None and one.spec.replicas > 0]
    wanted = deployment.spec.replicas
    if len(active) <= 1:
        only = active[0] if active else new
        return {only.metadata.name: wanted} if only is not None and only.spec.replicas != wanted else {}
    if new is not None and new.spec.replicas == wanted and new.status.available_replicas == wanted:
        return {one.metadata.name: 0 for one in old if one.spec.replicas}
    allowed = wanted + surge_and_unavailable(deployment)[0] if wanted else 0
    total = sum(one.spec.replicas for one in active)
    left = allowed - total
    # The biggest first; of equals the newest when growing, the oldest when shrinking.
    ordered = sorted(active, key=lambda one: one.metadata.creation_timestamp, reverse=left > 0)
    ordered.sort(key=lambda one: one.spec.replicas, reverse=True)
    sizes = {}
    for one in ordered:
        before = int(one.metadata.annotations.get(MAX_ANNOTATION) or total) or total
        share = round(one.spec.replicas * allowed / before) - one.spec.replicas
        share = max(min(share, left), 0) if left > 0 else min(max(share, left), 0)
        sizes[one.metadata.name] = max(0, one.spec.replicas + share)
        left -= share
    first = ordered[0].metadata.name
    sizes[first] = max(0, sizes[first] + left)
    return {
        one.metadata.name: sizes[one.metadata.name] for one in active if sizes[one.metadata.name] != one.spec.replicas
    }
