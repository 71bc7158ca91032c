"""Claims get their volumes: those that name them, those that suit, or new ones."""

from __future__ import annotations

from typing import Any

import pytest

from capstan import kube

pytestmark = pytest.mark.anyio


async def storage(house: Any, name: str, provisioner: str = "csi.example.com", mode: str = "Immediate") -> None:
    await house.create("StorageClass", name, provisioner=provisioner, volumeBindingMode=mode)


async def claim(house: Any, name: str, storage_class: str, **more: Any) -> None:
    spec = {
        "storageClassName": storage_class,
        "accessModes": ["ReadWriteOnce"],
        "resources": {"requests": {"storage": "5Gi"}},
        **more,
    }
    await house.create("PersistentVolumeClaim", name, spec=spec)


async def volume(house: Any, name: str, storage_class: str, size: str = "10Gi", **more: Any) -> None:
    spec = {
        "storageClassName": storage_class,
        "accessModes": ["ReadWriteOnce"],
        "capacity": {"storage": size},
        "hostPath": {"path": "/x"},
        **more,
    }
    await house.create("PersistentVolume", name, spec=spec)


async def test_a_claim_takes_the_smallest_volume_that_suits(house):
    await storage(house, "static", "kubernetes.io/no-provisioner")
    await volume(house, "large", "static", "20Gi")
    await volume(house, "small", "static", "1Gi")
    await volume(house, "middle", "static", "10Gi")
    await claim(house, "c", "static")
    found = await house.status("PersistentVolumeClaim", "c", phase="Bound", capacity={"storage": "10Gi"})
    assert found["spec"]["volumeName"] == "middle"
    await house.status("PersistentVolume", "middle", phase="Bound")
    await house.status("PersistentVolume", "large", phase="Available")


async def test_a_volume_is_made_and_ends_with_its_claim(house):
    await storage(house, "fast")
    await claim(house, "c", "fast")
    found = await house.status("PersistentVolumeClaim", "c", phase="Bound")
    name = found["spec"]["volumeName"]
    assert (await house.get("PersistentVolume", name))["spec"]["csi"]["driver"] == "csi.example.com"
    await house.delete("PersistentVolumeClaim", "c")

    async def gone() -> bool:
        try:
            await house.get("PersistentVolume", name)
        except kube.NotFound:
            return True
        return False

    await house.until(gone)


async def test_a_claim_that_waits_for_its_consumer_is_bound_when_the_scheduler_has_chosen(house):
    await storage(house, "fast", mode="WaitForFirstConsumer")
    await storage(house, "local", "kubernetes.io/no-provisioner", mode="WaitForFirstConsumer")
    await volume(house, "v", "local")
    await claim(house, "made", "fast")
    await claim(house, "chosen", "local")
    await claim(house, "other", "local")
    note = {"metadata": {"annotations": {"volume.kubernetes.io/selected-node": "node-1"}}}
    await house.patch("PersistentVolumeClaim", "made", note)
    uid = (await house.get("PersistentVolumeClaim", "chosen"))["metadata"]["uid"]
    owner = {"kind": "PersistentVolumeClaim", "namespace": "default", "name": "chosen", "uid": uid}
    await house.patch("PersistentVolume", "v", {"spec": {"claimRef": owner}})
    await house.status("PersistentVolumeClaim", "made", phase="Bound")
    await house.status("PersistentVolumeClaim", "chosen", phase="Bound")
    await house.status("PersistentVolumeClaim", "other", phase="Pending")


async def test_a_kept_volume_is_released_and_nobody_else_gets_it(house):
    await storage(house, "static", "kubernetes.io/no-provisioner")
    await volume(house, "v", "static", persistentVolumeReclaimPolicy="Retain")
    await claim(house, "first", "static")
    await house.status("PersistentVolumeClaim", "first", phase="Bound")
    await house.delete("PersistentVolumeClaim", "first")
    await house.status("PersistentVolume", "v", phase="Released")
    await claim(house, "second", "static")
    await claim(house, "first", "static")  # the same name is not the same claim
    await house.status("PersistentVolumeClaim", "second", phase="Pending")
    await house.status("PersistentVolumeClaim", "first", phase="Pending")


async def test_a_claim_is_bound_when_its_class_or_volume_comes_later(house):
    await claim(house, "c", "late")
    await storage(house, "late")
    await house.status("PersistentVolumeClaim", "c", phase="Bound")
    await claim(house, "d", "never", volumeName="v")
    await volume(house, "v", "never")
    await house.status("PersistentVolumeClaim", "d", phase="Bound")
