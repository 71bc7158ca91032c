"""PersistentVolumeClaims and their volumes: what kube-controller-manager's volume binder and a provisioner are to a
cluster. Volumes are objects only; nothing is stored in them.
"""

from __future__ import annotations

from typing import Any

from capstan import kube
from capstan.api import quantity
from capstan.api.core import PersistentVolume, PersistentVolumeClaim
from capstan.api.resources import PERSISTENT_VOLUME_CLAIMS, PERSISTENT_VOLUMES, STORAGE_CLASSES
from capstan.api.storage import NO_PROVISIONER, ON_FIRST_CONSUMER, SELECTED_NODE, StorageClass, suits
from capstan.local.workloads.caches import Caches

_Key = tuple[str, str, str]
"""("claim", namespace, name) or ("volume", "", name)."""


class VolumeController(kube.Controller[_Key]):
    """Binds claims: to the volume that names them, which is how a scheduler chooses one, to the smallest that suits
    where the class binds at once, or to one that is made for them, where the class has a provisioner."""

    def __init__(self, caches: Caches) -> None:
        super().__init__()
        self._client = caches.client
        self._claims = caches.of(PERSISTENT_VOLUME_CLAIMS)
        self._volumes = caches.of(PERSISTENT_VOLUMES)
        self._classes = caches.of(STORAGE_CLASSES)
        self._by_claim = self._volumes.index(
            lambda volume: [(owner.namespace, owner.name)] if (owner := volume.spec.claim_ref) else []
        )
        self._waiting = self._claims.index(lambda claim: [] if claim.spec.volume_name else [_class_of(claim)])
        self.caches = (self._claims, self._volumes, self._classes)
        self._claims.on_change(self._claim_changed)
        self._volumes.on_change(self._volume_changed)
        self._classes.on_change(lambda change: self._retry(change.object.metadata.name))

    def _claim_changed(self, change: kube.Change[PersistentVolumeClaim]) -> None:
        claim = change.object
        self.queue.add(("claim", *claim.key))
        if change.new is None and claim.spec.volume_name:
            self.queue.add(("volume", "", claim.spec.volume_name))

    def _volume_changed(self, change: kube.Change[PersistentVolume]) -> None:
        volume = change.object
        self.queue.add(("volume", "", volume.metadata.name))
        owner = volume.spec.claim_ref
        if owner is not None:
            self.queue.add(("claim", owner.namespace, owner.name))
        else:
            self._retry(volume.spec.storage_class_name)

    def _retry(self, storage_class: str) -> None:
        for claim in self._waiting.get(storage_class).values():
            self.queue.add(("claim", *claim.key))

    async def reconcile(self, key: _Key) -> float | None:
        kind, namespace, name = key
        if kind == "volume":
            await self._settle(name)
        elif (claim := self._claims.objects.get((namespace, name))) is not None:
            await self._bind(claim)
        return None

    async def _bind(self, claim: PersistentVolumeClaim) -> None:
        volume = self._chosen(claim)
        if volume is None:
            if not claim.spec.volume_name and self._provisions(claim):
                await self._provision(claim)
            return
        owner = volume.spec.claim_ref
        if owner is None or owner.uid != claim.metadata.uid:
            reference = {"apiVersion": "v1", "kind": "PersistentVolumeClaim", "namespace": claim.key[0]}
            reference |= {"name": claim.key[1], "uid": claim.metadata.uid}
            version = {"resourceVersion": volume.metadata.resource_version}  # two claims never take one volume
            patch: dict[str, Any] = {"metadata": version, "spec": {"claimRef": reference}}
            await self._client.patch(PERSISTENT_VOLUMES, volume.metadata.name, patch=patch)
        if not claim.spec.volume_name:
            notes = {"pv.kubernetes.io/bind-completed": "yes"}
            patch = {"metadata": {"annotations": notes}, "spec": {"volumeName": volume.metadata.name}}
            await self._client.patch(PERSISTENT_VOLUME_CLAIMS, claim.key[1], claim.key[0], patch=patch)
        if claim.status.phase != "Bound":
            status = {
                "phase": "Bound",
                "accessModes": volume.spec.access_modes,
                "capacity": {"storage": volume.spec.capacity["storage"]},
            }
            await self._client.patch(
                PERSISTENT_VOLUME_CLAIMS, claim.key[1], claim.key[0], patch={"status": status}, subresource="status"
            )

    def _chosen(self, claim: PersistentVolumeClaim) -> PersistentVolume | None:
        """The volume that the claim names or that names it; else, where the class binds at once, the smallest that
        suits."""
        if claim.spec.volume_name:
            named = self._volumes.objects.get(("", claim.spec.volume_name))
            return named if named is not None and suits(named, claim) else None
        for volume in self._by_claim.get(claim.key).values():
            if suits(volume, claim):
                return volume
        storage_class = self._class(claim)
        if storage_class is not None and storage_class.volume_binding_mode == ON_FIRST_CONSUMER:
            return None
        free = [v for v in self._volumes.objects.values() if v.spec.claim_ref is None and suits(v, claim)]
        return min(free, key=lambda v: (quantity.parse(v.spec.capacity["storage"]), v.metadata.name), default=None)

    def _class(self, claim: PersistentVolumeClaim) -> StorageClass | None:
        return self._classes.objects.get(("", _class_of(claim)))

    def _provisions(self, claim: PersistentVolumeClaim) -> bool:
        storage_class = self._class(claim)
        if storage_class is None or storage_class.provisioner == NO_PROVISIONER:
            return False
        chosen = SELECTED_NODE in claim.metadata.annotations
        return chosen or storage_class.volume_binding_mode != ON_FIRST_CONSUMER

    async def _provision(self, claim: PersistentVolumeClaim) -> None:
        storage_class = self._class(claim)
        assert storage_class is not None
        name = f"pvc-{claim.metadata.uid}"
        body = {
            "metadata": {"name": name, "annotations": {"pv.kubernetes.io/provisioned-by": storage_class.provisioner}},
            "spec": {
                "storageClassName": _class_of(claim),
                "capacity": {"storage": claim.spec.resources.requests.get("storage", "1Gi")},
                "accessModes": claim.spec.access_modes,
                "volumeMode": claim.spec.volume_mode,
                "persistentVolumeReclaimPolicy": "Delete",
                "csi": {"driver": storage_class.provisioner, "volumeHandle": name},
                "claimRef": {
                    "apiVersion": "v1",
                    "kind": "PersistentVolumeClaim",
                    "namespace": claim.key[0],
                    "name": claim.key[1],
                    "uid": claim.metadata.uid,
                },
            },
        }
        try:
            await self._client.create(PERSISTENT_VOLUMES, body)
        except kube.AlreadyExists:
            return  # made before; the cache will say so

    async def _settle(self, name: str) -> None:
        """The phase of a volume; one whose claim is gone ends if it was made for the claim."""
        volume = self._volumes.objects.get(("", name))
        if volume is None:
            return
        owner = volume.spec.claim_ref
        claim = self._claims.objects.get((owner.namespace, owner.name)) if owner is not None else None
        phase = "Available"
        if owner is not None:
            holds = claim is not None and owner.uid in ("", claim.metadata.uid)
            phase = "Bound" if holds else "Released" if owner.uid else "Available"
        if phase == "Released" and volume.spec.persistent_volume_reclaim_policy == "Delete":
            await self._client.delete(PERSISTENT_VOLUMES, name)
        elif volume.status.phase != phase:
            await self._client.patch(PERSISTENT_VOLUMES, name, patch={"status": {"phase": phase}}, subresource="status")


def _class_of(claim: PersistentVolumeClaim) -> str:
    return claim.spec.storage_class_name or ""
