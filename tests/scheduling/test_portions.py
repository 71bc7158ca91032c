"""What claims cost a queue: whole devices, MIG devices and shares, whatever their device class is called."""

from __future__ import annotations

import random
import sys
from pathlib import Path

import msgspec

from capstan.allocation import Inventory
from capstan.api import quantity
from capstan.api.core import Node
from capstan.api.resource import DeviceClass, ResourceClaim, ResourceSlice
from capstan.scheduling import Policy, World, cycle

sys.path.insert(0, str(Path(__file__).parent))
from clusters import START, gang, pod, queue

DRIVER = "gpu.nvidia.com"


def device_class(name: str, kind: str) -> DeviceClass:
    expression = f"device.attributes['{DRIVER}'].type == '{kind}'"
    body = {"metadata": {"name": name}, "spec": {"selectors": [{"cel": {"expression": expression}}]}}
    return msgspec.convert(body, DeviceClass)


def node(name: str) -> Node:
    status = {
        "allocatable": {"cpu": 64, "memory": "256Gi", "pods": 110},
        "conditions": [{"type": "Ready", "status": "True"}],
    }
    return msgspec.convert({"metadata": {"name": name}, "status": status}, Node)


def a100(node_name: str, gpus: int = 1, profiles: tuple[str, ...] = ("1g.5gb", "3g.20gb")) -> ResourceSlice:
    """GPUs of 40 GiB, each of which may be a whole device or some MIG devices."""
    sizes = {"1g.5gb": "4864Mi", "3g.20gb": "19968Mi"}
    devices: list[dict[str, object]] = []
    for gpu in range(gpus):
        consumed = [{"counterSet": f"gpu-{gpu}", "counters": {"memory": {"value": "40Gi"}}}]
        policy = {"default": "40Gi", "validRange": {"min": "1Mi", "step": "1Mi"}}
        devices.append(
            {
                "name": f"gpu-{gpu}",
                "attributes": {"type": {"string": "gpu"}},
                "capacity": {"memory": {"value": "40Gi", "requestPolicy": policy}},
                "allowMultipleAllocations": True,
                "consumesCounters": consumed,
            }
        )
        devices += [
            {
                "name": f"gpu-{gpu}-mig-{profile.replace('.', '')}-{place}",
                "attributes": {"type": {"string": "mig"}, "profile": {"string": profile}},
                "capacity": {"memory": {"value": sizes[profile]}},
                "consumesCounters": [{"counterSet": f"gpu-{gpu}", "counters": {"memory": {"value": sizes[profile]}}}],
            }
            for profile in profiles
            for place in range(2)
        ]
    counters = [{"name": f"gpu-{gpu}", "counters": {"memory": {"value": "40Gi"}}} for gpu in range(gpus)]
    spec = {
        "driver": DRIVER,
        "nodeName": node_name,
        "pool": {"name": node_name},
        "devices": devices,
        "sharedCounters": counters,
    }
    return msgspec.convert({"metadata": {"name": f"{node_name}-gpu"}, "spec": spec}, ResourceSlice)


def claim(name: str, device_class: str, profile: str = "", memory: str = "") -> ResourceClaim:
    exactly: dict[str, object] = {"deviceClassName": device_class}
    if profile:
        exactly["selectors"] = [{"cel": {"expression": f"device.attributes['{DRIVER}'].profile == '{profile}'"}}]
    if memory:
        exactly["capacity"] = {"requests": {"memory": memory}}
    meta = {"name": name, "namespace": "default", "labels": {"kai.scheduler/queue": "a"}}
    requests = [{"name": "gpu", "exactly": exactly}]
    return msgspec.convert({"metadata": meta, "spec": {"devices": {"requests": requests}}}, ResourceClaim)


def cluster(limit: float, gpus: int = 1, *claims: ResourceClaim) -> list[object]:
    """One node, queue a with a limit, and for each claim a pod that uses it."""
    objects: list[object] = [device_class("gpus", "gpu"), device_class("slices", "mig"), node("n0"), a100("n0", gpus)]
    objects += [queue("top"), queue("a", "top", quota=limit, limit=limit)]
    for i, made in enumerate(claims):
        name = made.metadata.name
        objects += [made, gang(name, "a", rank=i)]
        objects.append(pod(name, name, rank=i, resourceClaims=[{"name": "gpu", "resourceClaimName": name}]))
    return objects


def world(objects: list[object]) -> World:
    made = World(Inventory())
    for one in objects:
        made.upsert(one)  # type: ignore[arg-type]
    return made


def gpus(made: World) -> float:
    return float(quantity.parse(made.queue_status()["a"].requested["nvidia.com/gpu"]))


def test_mig_devices_count_by_their_memory_and_limits_hold_for_them() -> None:
    claims = [claim(f"c{i}", "slices", "1g.5gb") for i in range(3)]
    made = world(cluster(0.25, 2, *claims))
    assert gpus(made) == 0.36
    plan = cycle(made, Policy(), START)
    assert [bind.pod for bind in plan.binds] == ["c0", "c1"]
    assert plan.verdicts[0].reason == "OverLimit"


def test_a_request_of_any_slice_is_judged_by_the_largest() -> None:
    assert gpus(world(cluster(-1, 1, claim("any", "slices")))) == 0.49


def test_whole_gpus_count_under_any_name_of_their_class() -> None:
    made = world(cluster(1, 2, claim("c0", "gpus"), claim("c1", "gpus")))
    assert gpus(made) == 2
    assert [bind.pod for bind in cycle(made, Policy(), START).binds] == ["c0"]


def test_a_share_by_capacity_counts_as_the_part_of_the_memory_it_asks_for_and_gets() -> None:
    made = world(cluster(-1, 1, claim("c0", "gpus", memory="10Gi"), claim("c1", "gpus", memory="20Gi")))
    assert gpus(made) == 0.75
    plan = cycle(made, Policy(), START)
    assert len(plan.binds) == 2
    for bind in plan.binds:
        ((key, allocation),) = dict(bind.claims).items()
        held = msgspec.structs.replace(made.claims[key])
        held.status = msgspec.structs.replace(held.status, allocation=allocation)
        made.upsert(held)
    assert gpus(made) == 0.75


def test_a_device_of_another_driver_is_no_gpu() -> None:
    objects = cluster(0, 1, claim("c0", "nics"))
    slice_ = msgspec.json.decode(msgspec.json.encode(a100("n0")).replace(b"gpu.nvidia.com", b"nic.example.com"))
    slice_["metadata"]["name"] = "nics"
    expression = "device.driver == 'nic.example.com'"
    body = {"metadata": {"name": "nics"}, "spec": {"selectors": [{"cel": {"expression": expression}}]}}
    objects[:0] = [msgspec.convert(body, DeviceClass), msgspec.convert(slice_, ResourceSlice)]
    made = world(objects)
    assert gpus(made) == 0
    assert len(cycle(made, Policy(), START).binds) == 1


def test_the_order_in_which_objects_arrive_and_change_makes_no_difference() -> None:
    objects = cluster(-1, 1, claim("small", "slices", "1g.5gb"), claim("any", "slices"), claim("whole", "gpus"))
    expected = gpus(world(objects))
    assert expected == 1.61
    for seed in range(20):
        shuffled = random.Random(seed).sample(objects, len(objects))
        assert gpus(world(shuffled)) == expected, seed
    made = world(objects)
    made.upsert(node("n1"))
    made.upsert(a100("n1", profiles=("1g.5gb",)))
    made.upsert(a100("n0", profiles=("1g.5gb",)))
    assert gpus(made) == 1.24
    made.delete("ResourceSlice", "", "n1-gpu")
    made.upsert(a100("n0"))
    assert gpus(made) == expected
