"""Snapshots decided again on the virtual clock: ours and KAI Scheduler's."""

from __future__ import annotations

import io
import json
import zipfile
from typing import Any

import msgspec
import pytest

from capstan.allocation import Inventory
from capstan.api.core import Node, Pod
from capstan.api.resource import DeviceClass, ResourceSlice
from capstan.api.scheduling import PodGroup, Queue
from capstan.scheduling import InvalidSnapshot, Policy, World
from capstan.scheduling.snapshot import capture, encode
from capstan.simulate import Replay, kai_snapshot, read

NOW = 1_750_000_000.0
CREATED = "2025-06-15T12:00:00Z"


def node(name: str, gpus: int) -> dict[str, Any]:
    allocatable = {"cpu": "64", "memory": "256Gi", "pods": "110", **({"nvidia.com/gpu": str(gpus)} if gpus else {})}
    status = {"allocatable": allocatable, "conditions": [{"type": "Ready", "status": "True"}]}
    return {"metadata": {"name": name}, "status": status}


def queue(name: str) -> dict[str, Any]:
    free = {"quota": -1, "limit": -1, "overQuotaWeight": 1}
    return {"metadata": {"name": name}, "spec": {"resources": {"gpu": free, "cpu": free, "memory": free}}}


def group(name: str, priority: str = "train") -> dict[str, Any]:
    meta = {"name": name, "namespace": "default", "uid": f"g-{name}", "creationTimestamp": CREATED}
    return {"metadata": meta, "spec": {"queue": "q", "minMember": 1, "priorityClassName": priority}}


def pod(name: str, gang: str, gpus: int, on: str = "", scheduler: str = "kai-scheduler") -> dict[str, Any]:
    requests = {"cpu": "1", "nvidia.com/gpu": str(gpus)}
    return {
        "metadata": {
            "name": name,
            "namespace": "default",
            "uid": f"p-{name}",
            "creationTimestamp": CREATED,
            "annotations": {"pod-group-name": gang},
        },
        "spec": {
            "schedulerName": scheduler,
            "nodeName": on,
            "containers": [{"name": "main", "resources": {"requests": requests}, "env": [{"name": "A", "value": "b"}]}],
        },
        "status": {"phase": "Running" if on else "Pending"},
    }


def full_node() -> list[Any]:
    """A node whose only GPU a training pod has, and a build pod that preempts it."""
    return [
        msgspec.convert(node("n", 1), Node),
        msgspec.convert(queue("q"), Queue),
        msgspec.convert(group("low"), PodGroup),
        msgspec.convert(group("high", "build"), PodGroup),
        msgspec.convert(pod("low", "low", 1, on="n"), Pod),
        msgspec.convert(pod("high", "high", 1), Pod),
    ]


def snapshot_of(objects: list[Any], inventory: Inventory | None = None) -> bytes:
    world = World(inventory)
    for obj in objects:
        world.upsert(obj)
    return encode(capture(world, NOW, objects).snapshot())


def test_what_is_evicted_makes_room_and_comes_back_to_wait():
    player = Replay(read(snapshot_of(full_node())))
    plan = player.step()
    assert [(e.pod, e.action) for e in plan.evictions] == [("low", "preempt")]
    player.settle(plan)
    assert player.now == NOW + 1
    plan = player.step()
    assert [(bind.pod, bind.node) for bind in plan.binds] == [("high", "n")]
    player.settle(plan)
    plan = player.step()
    assert (plan.binds, plan.evictions, [v.group for v in plan.verdicts]) == ([], [], ["low"])


def test_another_policy_decides_otherwise():
    data = snapshot_of(full_node())
    plan = Replay(read(data), Policy(actions=("allocate",))).step()
    assert plan.evictions == []
    assert [verdict.group for verdict in plan.verdicts] == ["high"]


def test_devices_go_from_one_pod_to_the_next():
    device_class = {
        "metadata": {"name": "gpu.nvidia.com"},
        "spec": {
            "extendedResourceName": "nvidia.com/gpu",
            "selectors": [{"cel": {"expression": "device.driver == 'gpu.nvidia.com'"}}],
        },
    }
    pool = {"name": "n", "generation": 1, "resourceSliceCount": 1}
    spec = {"driver": "gpu.nvidia.com", "nodeName": "n", "pool": pool, "devices": [{"name": "gpu-0"}]}
    objects = [
        msgspec.convert(device_class, DeviceClass),
        msgspec.convert({"metadata": {"name": "s"}, "spec": spec}, ResourceSlice),
        msgspec.convert(node("n", 0), Node),
        msgspec.convert(queue("q"), Queue),
        msgspec.convert(group("low"), PodGroup),
        msgspec.convert(pod("low", "low", 1), Pod),
    ]
    player = Replay(read(snapshot_of(objects, Inventory())))
    player.settle(player.step())
    assert player.world.inventory.free("n", "gpu.nvidia.com") == 0
    player.world.upsert(msgspec.convert(group("high", "build"), PodGroup))
    player.world.upsert(msgspec.convert(pod("high", "high", 1), Pod))
    player.settle(player.step())
    plan = player.step()
    assert [(bind.pod, bind.implied is not None) for bind in plan.binds] == [("high", True)]
    player.settle(plan)
    assert player.world.task_of("default", "high").status.name == "RUNNING"


# -- KAI's -------------------------------------------------------------------------------------------------------------


def kai_zip(document: Any, name: str = "snapshot.json") -> bytes:
    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr(name, document if isinstance(document, (str, bytes)) else json.dumps(document))
    return packed.getvalue()


def kai_document() -> dict[str, Any]:
    return {
        "config": {
            "actions": "allocate, consolidation, reclaim, preempt, stalegangeviction",
            "tiers": [
                {
                    "plugins": [
                        {"name": "nodeplacement", "arguments": {"cpu": "spread", "gpu": "binpack"}},
                        {"name": "minruntime", "arguments": {"defaultReclaimMinRuntime": "10m"}},
                        {"name": "proportion", "arguments": {"kValue": "0.5"}},
                        {"name": "predicates"},
                    ]
                }
            ],
            "queueDepthPerAction": {"consolidation": 10},
        },
        "schedulerParams": {
            "schedulerName": "kai-scheduler",
            "partitionParams": {"NodePoolLabelKey": "kai.scheduler/node-pool", "NodePoolLabelValue": ""},
            "maxNumberConsolidationPreemptees": 4,
            "allowConsolidatingReclaim": True,
            "globalDefaultStalenessGracePeriod": 60_000_000_000,
            "stuckInReleasingThreshold": 120_000_000_000,
        },
        "rawObjects": {
            "pods": [pod("low", "low", 1, on="n"), pod("high", "high", 1), pod("next", "next", 1)],
            "nodes": [node("n", 1), node("m", 1)],
            "queues": [queue("q")],
            "podGroups": [group("low"), group("high", "build"), group("next", "build")],
            "bindRequests": [
                {
                    "metadata": {"name": "next", "namespace": "default", "creationTimestamp": CREATED},
                    "spec": {"podName": "next", "selectedNode": "m", "receivedGPU": {"count": 1, "portion": "1.00"}},
                    "status": {"phase": "Pending"},
                }
            ],
            "priorityClasses": None,
            "configMaps": [{"metadata": {"name": "c"}, "data": {"a": "b"}}],
            "persistentVolumeClaims": [],
            "csiStorageCapacities": [],
            "storageClasses": [{"metadata": {"name": "fast"}, "provisioner": "example.com/disk"}],
            "csiDrivers": [],
            "resourceClaims": None,
            "resourceSlices": None,
            "deviceClasses": None,
            "topologies": [],
        },
        "discovery": {"serverVersion": {"major": "1"}, "resources": []},
    }


def test_a_snapshot_of_kai_is_decided_as_kai_would():
    snapshot = read(kai_zip(kai_document()))
    player = Replay(snapshot)
    assert player.policy == Policy(
        cpu_placement="spread",
        reclaim_min_runtime=600.0,
        k_value=0.5,
        queue_depth={"consolidate": 10},
        max_consolidation_victims=4,
        node_pool="",
        actions=("allocate", "consolidate", "reclaim", "preempt", "evict-stale"),
    )
    assert snapshot.taken == CREATED
    assert [each.metadata.name for each in snapshot.objects.storage_classes] == ["fast"]
    plan = player.step()
    assert [(eviction.pod, eviction.for_group) for eviction in plan.evictions] == [("low", "default/high")]
    assert player.world.task_of("default", "next").node.name == "m"


def test_claims_and_slices_in_the_words_of_v1beta1_are_read():
    document = kai_document()
    request = {"name": "r", "deviceClassName": "gpu.nvidia.com", "allocationMode": "ExactCount", "count": 2}
    attributes = {"productName": {"string": "H100"}}
    document["rawObjects"] |= {
        "resourceClaims": [
            {"metadata": {"name": "c", "namespace": "default"}, "spec": {"devices": {"requests": [request]}}}
        ],
        "resourceSlices": [
            {
                "metadata": {"name": "s"},
                "spec": {
                    "driver": "gpu.nvidia.com",
                    "nodeName": "n",
                    "pool": {"name": "n", "generation": 1, "resourceSliceCount": 1},
                    "devices": [{"name": "gpu-0", "basic": {"attributes": attributes}}],
                },
            }
        ],
    }
    objects = read(kai_zip(document)).objects
    exact = objects.resource_claims[0].spec.devices.requests[0].exactly
    assert (exact.device_class_name, exact.count) == ("gpu.nvidia.com", 2)
    assert objects.resource_slices[0].spec.devices[0].attributes["productName"].string == "H100"


def test_files_that_are_no_snapshots_of_kai_are_refused(monkeypatch):
    for data, message in (
        (kai_zip({}, "other.json"), "no snapshot.json"),
        (kai_zip({"config": {}}), "no rawObjects"),
        (kai_zip("nonsense"), "malformed"),
        (kai_zip('{"rawObjects": {"pods": [{"metadata": 3}]}}'), r"\$\.rawObjects\.pods\[0\]\.metadata"),
        (kai_zip('{"rawObjects": {"resourceClaims": [{"spec": {"devices": 5}}]}}'), "snapshot.json"),
        (kai_zip(kai_document())[:-40], "damaged"),
        (b"PK\x03\x04" + b"\0" * 50, "damaged"),
    ):
        with pytest.raises(InvalidSnapshot, match=message):
            read(data)
    broken = kai_document()
    broken["config"]["tiers"][0]["plugins"][1]["arguments"]["defaultReclaimMinRuntime"] = "soon"
    with pytest.raises(InvalidSnapshot, match=r"plugins\[minruntime\].*soon"):
        read(kai_zip(broken))
    broken = kai_document()
    broken["rawObjects"]["pods"][0]["metadata"]["creationTimestamp"] = "yesterday"
    with pytest.raises(InvalidSnapshot, match="yesterday"):
        read(kai_zip(broken))
    monkeypatch.setattr(kai_snapshot, "LARGEST_TEXT", 5 << 20)
    with pytest.raises(InvalidSnapshot, match="unpacks to more"):
        read(kai_zip(b" " * (6 << 20)))
