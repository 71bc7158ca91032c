"""StatefulSets: numbered pods with lasting names, one after another or in parallel, replaced from the highest down.

Volume claims are made from the templates and stay Pending: nothing in the embedded platform provides storage.
"""

from __future__ import annotations

import copy
from typing import Any

import msgspec

from capstan import kube
from capstan.api.apps import StatefulSet
from capstan.api.core import Pod
from capstan.api.resources import PERSISTENT_VOLUME_CLAIMS, PODS, STATEFUL_SETS
from capstan.local.workloads import pods as pod_state
from capstan.local.workloads.caches import Caches, patch_status
from capstan.local.workloads.children import Children
from capstan.local.workloads.revisions import HASH_LABEL, Revisions

POD_NAME_LABEL = "statefulset.kubernetes.io/pod-name"
INDEX_LABEL = "apps.kubernetes.io/pod-index"


class StatefulSetController(kube.Controller[kube.Key]):
    def __init__(self, caches: Caches) -> None:
        super().__init__()
        self._caches = caches
        self._recorder = caches.recorder("statefulset-controller")
        self._sets = caches.of(STATEFUL_SETS)
        self._pods = Children(caches, PODS, STATEFUL_SETS, self._recorder)
        self._revisions = Revisions(caches, STATEFUL_SETS)
        self._volume_claims = caches.of(PERSISTENT_VOLUME_CLAIMS)
        self.caches = (self._sets, caches.pods, self._volume_claims, self._revisions.cache)
        self._sets.on_change(lambda change: self.queue.add(change.object.key))
        self._pods.enqueue(self.queue, self._sets)

    async def reconcile(self, key: kube.Key) -> float | None:
        owner = self._sets.objects.get(key)
        if owner is None:
            return None
        pods = await self._pods.claim(owner, owner.spec.selector)
        update = current = owner.status.current_revision
        if owner.metadata.deletion_timestamp is None:
            update = await self._revisions.current(owner)
            current = owner.status.current_revision or update
            await self._progress(owner, pods, current, update)
            pods = self._pods.of(owner)
        return await self._report(owner, pods, current, update)

    async def _progress(self, owner: StatefulSet, pods: list[Pod], current: str, update: str) -> None:
        """One step: recreate finished pods, fill gaps from below, trim from above, then replace outdated pods."""
        start = owner.spec.ordinals.start if owner.spec.ordinals else 0
        wanted = range(start, start + owner.spec.replicas)
        ordered = owner.spec.pod_management_policy != "Parallel"
        by_ordinal = {number: pod for pod in pods if (number := ordinal(owner, pod)) is not None}
        finished = [pod for pod in by_ordinal.values() if pod_state.is_finished(pod)]
        await self._pods.delete(owner, [pod for pod in finished if pod.metadata.deletion_timestamp is None])
        for number in wanted:
            pod = by_ordinal.get(number)
            if pod is None:
                await self._create(owner, number, current if number < self._partition(owner, wanted) else update)
            if ordered and (pod is None or not self._steady(owner, pod)):
                return
        surplus = sorted((number for number in by_ordinal if number not in wanted), reverse=True)
        for number in surplus:
            pod = by_ordinal[number]
            if pod.metadata.deletion_timestamp is None:
                await self._pods.delete(owner, [pod])
            if ordered:
                return
        if surplus or owner.spec.update_strategy.type != "RollingUpdate":
            return
        for number in reversed(wanted):
            pod = by_ordinal.get(number)
            if number < self._partition(owner, wanted) or pod is None:
                return
            if pod.metadata.labels.get(HASH_LABEL) != update and pod.metadata.deletion_timestamp is None:
                await self._pods.delete(owner, [pod])
                return
            if not self._steady(owner, pod):
                return

    def _steady(self, owner: StatefulSet, pod: Pod) -> bool:
        """Lets its successor go ahead: available and not on its way out."""
        now = self._caches.now()
        return pod_state.is_active(pod) and pod_state.is_available(pod, owner.spec.min_ready_seconds, now)

    @staticmethod
    def _partition(owner: StatefulSet, wanted: range) -> int:
        """Pods below this number keep the current revision."""
        rolling = owner.spec.update_strategy.rolling_update
        if owner.spec.update_strategy.type != "RollingUpdate" or rolling is None:
            return wanted.start
        return max(wanted.start, rolling.partition)

    async def _create(self, owner: StatefulSet, number: int, revision: str) -> None:
        name = f"{owner.metadata.name}-{number}"
        template = self._revisions.template(owner, revision) or owner.spec.template
        body = pod_state.from_template(STATEFUL_SETS, owner, template, name=name)
        body["metadata"]["labels"] |= {HASH_LABEL: revision, POD_NAME_LABEL: name, INDEX_LABEL: str(number)}
        spec = body["spec"]
        spec["hostname"] = name
        if owner.spec.service_name:
            spec["subdomain"] = owner.spec.service_name
        claimed = {claim["metadata"]["name"]: claim for claim in owner.spec.volume_claim_templates}
        if claimed:
            kept = [volume for volume in spec.get("volumes") or [] if volume["name"] not in claimed]
            own = [{"name": v, "persistentVolumeClaim": {"claimName": f"{v}-{name}"}} for v in claimed]
            spec["volumes"] = kept + own
        for volume, claim in claimed.items():
            await self._create_volume_claim(owner, f"{volume}-{name}", claim)
        await self._pods.create(owner, [body])

    async def _create_volume_claim(self, owner: StatefulSet, name: str, template: dict[str, Any]) -> None:
        """Claims outlive pods and set: they have no owner, so that no data is lost by a scale-down."""
        if self._volume_claims.get(name, owner.metadata.namespace) is not None:
            return
        body = copy.deepcopy(template)
        body.pop("status", None)
        labels = {**(body["metadata"].get("labels") or {}), **owner.spec.selector.match_labels}
        body["metadata"] |= {"name": name, "namespace": owner.metadata.namespace, "labels": labels}
        try:
            await self._caches.client.create(PERSISTENT_VOLUME_CLAIMS, body)
        except kube.AlreadyExists:
            pass  # the claim of an earlier pod of this name, which is the point of it

    async def _report(self, owner: StatefulSet, pods: list[Pod], current: str, update: str) -> float | None:
        now = self._caches.now()
        alive = [pod for pod in pods if not pod_state.is_finished(pod)]
        waits = [pod_state.available_in(pod, owner.spec.min_ready_seconds, now) for pod in alive]
        updated = sum(pod.metadata.labels.get(HASH_LABEL) == update for pod in alive)
        ready = sum(wait is not None for wait in waits)
        if updated == owner.spec.replicas == ready == len(alive) and owner.metadata.deletion_timestamp is None:
            current = update
            await self._revisions.clean_up(owner, {update})
        status = {
            "observedGeneration": owner.metadata.generation,
            "replicas": len(alive),
            "readyReplicas": ready,
            "availableReplicas": sum(wait == 0.0 for wait in waits),
            "currentReplicas": sum(pod.metadata.labels.get(HASH_LABEL) == current for pod in alive),
            "updatedReplicas": updated,
            "currentRevision": current,
            "updateRevision": update,
            "collisionCount": 0,
        }
        known = {**msgspec.to_builtins(owner.status), "collisionCount": 0}
        await patch_status(self._caches, STATEFUL_SETS, owner, status, known)
        return min((wait for wait in waits if wait), default=None)


def ordinal(owner: StatefulSet, pod: Pod) -> int | None:
    """The number of a pod of the set, None for a name of another form."""
    base, _, number = pod.metadata.name.rpartition("-")
    return int(number) if base == owner.metadata.name and number.isdigit() else None
