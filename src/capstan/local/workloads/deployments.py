"""Deployments: one ReplicaSet per template, moved between step by step (`rollout`); revisions for `kubectl rollout`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import msgspec

from capstan import kube
from capstan.api import clock
from capstan.api.apps import Deployment, ReplicaSet
from capstan.api.base import Condition
from capstan.api.resources import DEPLOYMENTS, REPLICA_SETS
from capstan.local.workloads import rollout
from capstan.local.workloads.caches import Caches, patch_status, wire_conditions
from capstan.local.workloads.children import Children
from capstan.local.workloads.pods import is_finished, owner_reference, template_hash

HASH_LABEL = "pod-template-hash"
REVISION_ANNOTATION = "deployment.kubernetes.io/revision"
_NOT_COPIED = {
    REVISION_ANNOTATION,
    rollout.DESIRED_ANNOTATION,
    rollout.MAX_ANNOTATION,
    "kubectl.kubernetes.io/last-applied-configuration",
    "deprecated.deployment.rollback.to",
}


class DeploymentController(kube.Controller[kube.Key]):
    def __init__(self, caches: Caches) -> None:
        super().__init__()
        self._caches = caches
        self._recorder = caches.recorder("deployment-controller")
        self._deployments = caches.of(DEPLOYMENTS)
        self._sets = Children(caches, REPLICA_SETS, DEPLOYMENTS)
        self.caches = (self._deployments, caches.of(REPLICA_SETS), caches.pods)
        self._deployments.on_change(lambda change: self.queue.add(change.object.key))
        self._sets.enqueue(self.queue, self._deployments)

    async def reconcile(self, key: kube.Key) -> float | None:
        deployment = self._deployments.objects.get(key)
        if deployment is None:
            return None
        sets = await self._sets.claim(deployment, deployment.spec.selector)
        if deployment.metadata.deletion_timestamp is None:
            await self._progress(deployment, sets)
            sets = self._sets.of(deployment)
        return await self._report(deployment, sets)

    async def _progress(self, deployment: Deployment, sets: list[ReplicaSet]) -> None:
        new, old = split(deployment, sets)
        scaled = any(
            one.metadata.annotations.get(rollout.DESIRED_ANNOTATION) != str(deployment.spec.replicas)
            for one in sets
            if one.spec.replicas > 0
        )
        if deployment.spec.paused or scaled:
            await self._resize(deployment, sets, rollout.proportional(deployment, new, old), annotate_all=True)
            return
        if deployment.spec.strategy.type == "Recreate" and (
            new is None or new.spec.replicas < deployment.spec.replicas
        ):
            await self._resize(deployment, old, {one.metadata.name: 0 for one in old if one.spec.replicas})
            if any(
                not is_finished(pod) for one in old for pod in self._caches.pods_by_owner.get(one.metadata.uid).values()
            ):
                return
        new = await self._adopt_revision(deployment, new, old)
        if deployment.spec.strategy.type == "Recreate":
            await self._resize(deployment, [new], {new.metadata.name: deployment.spec.replicas})
        else:
            await self._resize(deployment, [new, *old], rollout.rolling(deployment, new, old))
        await self._clean_up(deployment, new, old)

    async def _adopt_revision(
        self, deployment: Deployment, new: ReplicaSet | None, old: Sequence[ReplicaSet]
    ) -> ReplicaSet:
        """The ReplicaSet of the current template with the highest revision; it is made if there is none."""
        latest = max((revision(one) for one in old), default=0)
        number = max(latest + 1, revision(new) if new else 1)
        annotations = {k: v for k, v in deployment.metadata.annotations.items() if k not in _NOT_COPIED} | {
            REVISION_ANNOTATION: str(number),
            **self._size_annotations(deployment),
        }
        if new is None:
            body = self._new_set(deployment, old, annotations)
            await self._sets.create(deployment, [body])
            message = f"Scaled up replica set {body['metadata']['name']} from 0 to {body['spec']['replicas']}"
            self._recorder.emit(deployment, "Normal", "ScalingReplicaSet", message)
            new = next(one for one in self._sets.of(deployment) if one.metadata.name == body["metadata"]["name"])
        elif not annotations.items() <= new.metadata.annotations.items():
            patch = {"metadata": {"annotations": annotations}}
            new = await self._write(new, patch)
        if deployment.metadata.annotations.get(REVISION_ANNOTATION) != str(number):
            patch = {"metadata": {"annotations": {REVISION_ANNOTATION: str(number)}}}
            name, namespace = deployment.metadata.name, deployment.metadata.namespace
            await self._caches.client.patch(DEPLOYMENTS, name, namespace, patch=patch)
        return new

    def _new_set(self, deployment: Deployment, old: Sequence[ReplicaSet], annotations: dict[str, str]) -> kube.Body:
        template = msgspec.json.decode(msgspec.json.encode(deployment.spec.template))
        label = {HASH_LABEL: template_hash(deployment.spec.template)}
        metadata = template.setdefault("metadata", {})
        metadata["labels"] = {**(metadata.get("labels") or {}), **label}
        selector = msgspec.to_builtins(deployment.spec.selector)
        wanted = deployment.spec.replicas
        if deployment.spec.strategy.type != "Recreate":
            room = wanted + rollout.surge_and_unavailable(deployment)[0] - sum(one.spec.replicas for one in old)
            wanted = max(0, min(wanted, room))
        return {
            "apiVersion": REPLICA_SETS.api_version,
            "kind": REPLICA_SETS.kind,
            "metadata": {
                "name": f"{deployment.metadata.name}-{label[HASH_LABEL]}",
                "namespace": deployment.metadata.namespace,
                "labels": metadata["labels"],
                "annotations": annotations,
                "ownerReferences": [owner_reference(DEPLOYMENTS, deployment)],
            },
            "spec": {
                "replicas": wanted,
                "minReadySeconds": deployment.spec.min_ready_seconds,
                "selector": {**selector, "matchLabels": {**selector.get("matchLabels", {}), **label}},
                "template": template,
            },
        }

    def _size_annotations(self, deployment: Deployment) -> dict[str, str]:
        surge, _ = rollout.surge_and_unavailable(deployment)
        return {
            rollout.DESIRED_ANNOTATION: str(deployment.spec.replicas),
            rollout.MAX_ANNOTATION: str(deployment.spec.replicas + surge),
        }

    async def _resize(
        self, deployment: Deployment, sets: Sequence[ReplicaSet], sizes: rollout.Sizes, *, annotate_all: bool = False
    ) -> None:
        annotations = self._size_annotations(deployment)
        for one in sets:
            size = sizes.get(one.metadata.name, one.spec.replicas)
            if size != one.spec.replicas:
                direction = "up" if size > one.spec.replicas else "down"
                message = f"Scaled {direction} replica set {one.metadata.name} from {one.spec.replicas} to {size}"
                await self._write(one, {"metadata": {"annotations": annotations}, "spec": {"replicas": size}})
                self._recorder.emit(deployment, "Normal", "ScalingReplicaSet", message)
            elif annotate_all and size and not annotations.items() <= one.metadata.annotations.items():
                await self._write(one, {"metadata": {"annotations": annotations}})

    async def _write(self, one: ReplicaSet, patch: dict[str, Any]) -> ReplicaSet:
        written = await self._caches.client.patch(REPLICA_SETS, one.metadata.name, one.metadata.namespace, patch=patch)
        await self._caches.of(REPLICA_SETS).reached(written["metadata"]["resourceVersion"])
        return msgspec.convert(written, ReplicaSet)

    async def _clean_up(self, deployment: Deployment, new: ReplicaSet, old: Sequence[ReplicaSet]) -> None:
        """Keeps `revisionHistoryLimit` old sets, once the rollout is complete."""
        if any(one.spec.replicas for one in old) or not complete(deployment, new, old):
            return
        empty = [
            one
            for one in old
            if one.status.replicas == 0
            and one.metadata.generation <= one.status.observed_generation
            and one.metadata.deletion_timestamp is None
        ]
        surplus = len(empty) - deployment.spec.revision_history_limit
        if surplus > 0:
            await self._sets.delete(deployment, sorted(empty, key=revision)[:surplus])

    async def _report(self, deployment: Deployment, sets: list[ReplicaSet]) -> float | None:
        new, old = split(deployment, sets)
        total = sum(one.status.replicas for one in sets)
        available = sum(one.status.available_replicas for one in sets)
        status: dict[str, Any] = {
            "observedGeneration": deployment.metadata.generation,
            "replicas": total,
            "updatedReplicas": new.status.replicas if new else 0,
            "readyReplicas": sum(one.status.ready_replicas for one in sets),
            "availableReplicas": available,
            "unavailableReplicas": max(0, sum(one.spec.replicas for one in sets) - available),
        }
        conditions, again = self._conditions(deployment, new, old, status)
        status["conditions"] = wire_conditions(conditions)
        known = msgspec.to_builtins(deployment.status) | {"conditions": wire_conditions(deployment.status.conditions)}
        await patch_status(self._caches, DEPLOYMENTS, deployment, status, known)
        return again

    def _conditions(
        self, deployment: Deployment, new: ReplicaSet | None, old: Sequence[ReplicaSet], status: dict[str, Any]
    ) -> tuple[list[Condition], float | None]:
        now = self._caches.now()
        before = {condition.type: condition for condition in deployment.status.conditions}
        _, unavailable = rollout.surge_and_unavailable(deployment)
        enough = status["availableReplicas"] >= deployment.spec.replicas - unavailable
        available = Condition(
            type="Available",
            status="True" if enough else "False",
            reason="MinimumReplicasAvailable" if enough else "MinimumReplicasUnavailable",
            message=f"Deployment {'has' if enough else 'does not have'} minimum availability.",
        )
        progressing, again = self._progressing(deployment, new, old, status, before.get("Progressing"), now)
        failure = next(
            (c for one in sets_of(new, old) for c in one.status.conditions if c.type == "ReplicaFailure"), None
        )
        found = [available, progressing, *([failure] if failure else [])]
        return [stamped(condition, before.get(condition.type), now) for condition in found], again

    @staticmethod
    def _progressing(
        deployment: Deployment,
        new: ReplicaSet | None,
        old: Sequence[ReplicaSet],
        status: dict[str, Any],
        before: Condition | None,
        now: float,
    ) -> tuple[Condition, float | None]:
        """The Progressing condition, and when its deadline passes if nothing moves until then."""

        def condition(state: str, reason: str, message: str) -> Condition:
            return Condition(type="Progressing", status=state, reason=reason, message=message)

        name = f'ReplicaSet "{new.metadata.name}"' if new else f'Deployment "{deployment.metadata.name}"'
        if deployment.spec.paused:
            return condition("Unknown", "DeploymentPaused", "Deployment is paused"), None
        if complete(deployment, new, old):
            return condition("True", "NewReplicaSetAvailable", f"{name} has successfully progressed."), None
        known = deployment.status
        moved = (
            status["updatedReplicas"] > known.updated_replicas
            or status["replicas"] - status["updatedReplicas"] < known.replicas - known.updated_replicas
            or status["readyReplicas"] > known.ready_replicas
            or status["availableReplicas"] > known.available_replicas
        )
        updated = condition("True", "ReplicaSetUpdated", f"{name} is progressing.")
        if moved or before is None or before.reason in ("DeploymentPaused", "NewReplicaSetAvailable"):
            # A fresh update time starts the deadline anew.
            return msgspec.structs.replace(updated, last_update_time=clock.render(now)), float(
                deployment.spec.progress_deadline_seconds
            )
        left = clock.parse(before.last_update_time) + deployment.spec.progress_deadline_seconds - now
        if before.reason == "ProgressDeadlineExceeded" or left <= 0:
            return condition("False", "ProgressDeadlineExceeded", f"{name} has timed out progressing."), None
        return updated, left


def split(deployment: Deployment, sets: Sequence[ReplicaSet]) -> tuple[ReplicaSet | None, list[ReplicaSet]]:
    """The set whose template is the deployment's (the oldest of equals), and all others."""
    ordered = sorted(sets, key=lambda one: (one.metadata.creation_timestamp, one.metadata.name))
    name = template_hash(deployment.spec.template)
    new = next((one for one in ordered if one.metadata.labels.get(HASH_LABEL) == name), None)
    return new, [one for one in ordered if one is not new]


def sets_of(new: ReplicaSet | None, old: Sequence[ReplicaSet]) -> list[ReplicaSet]:
    return [*([new] if new else []), *old]


def revision(one: ReplicaSet) -> int:
    text = one.metadata.annotations.get(REVISION_ANNOTATION, "0")
    return int(text) if text.isdigit() else 0


def complete(deployment: Deployment, new: ReplicaSet | None, old: Sequence[ReplicaSet]) -> bool:
    """Every pod is of the new template and available, and none of the old ones is left."""
    wanted = deployment.spec.replicas
    return (
        new is not None
        and new.status.replicas == wanted
        and new.status.available_replicas == wanted
        and all(one.status.replicas == 0 for one in old)
    )


def stamped(condition: Condition, before: Condition | None, now: float) -> Condition:
    """With the times: the transition time changes with the status, the update time with reason or message too."""
    time = clock.render(now)
    same_status = before is not None and before.status == condition.status
    same = same_status and before is not None and before.reason == condition.reason
    return msgspec.structs.replace(
        condition,
        last_transition_time=before.last_transition_time if same_status and before else time,
        last_update_time=condition.last_update_time or (before.last_update_time if same and before else time),
    )
