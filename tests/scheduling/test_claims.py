"""Devices through claims: extended resources, shares and explicit claims are allocated with the pod, all or nothing."""

from __future__ import annotations

import sys
from pathlib import Path

import msgspec
import pytest

from capstan.allocation import Inventory
from capstan.api.core import Node, Pod, PodStatus
from capstan.api.resource import (
    ConsumerReference,
    DeviceClass,
    ResourceClaim,
    ResourceClaimStatus,
    ResourceSlice,
)
from capstan.scheduling import DefragmentWindow, Plan, Policy, World, cycle
from capstan.scheduling.model import Status

sys.path.insert(0, str(Path(__file__).parent))
from clusters import START, gang, pod, queue


def device_class() -> DeviceClass:
    return msgspec.convert(
        {
            "metadata": {"name": "gpu.nvidia.com"},
            "spec": {
                "extendedResourceName": "nvidia.com/gpu",
                "selectors": [{"cel": {"expression": "device.driver == 'gpu.nvidia.com'"}}],
            },
        },
        DeviceClass,
    )


def dra_node(name: str) -> Node:
    return msgspec.convert(
        {
            "metadata": {"name": name},
            "status": {
                "allocatable": {"cpu": 64, "memory": "256Gi", "pods": 110},
                "conditions": [{"type": "Ready", "status": "True"}],
            },
        },
        Node,
    )


def slice_of(name: str, gpus: int, *products: str) -> ResourceSlice:
    """`products`: what the driver says of the devices, in order."""
    said = [{"productName": {"string": product}} for product in products] or [{}] * gpus
    memory = {"value": "40Gi", "requestPolicy": {"default": "40Gi", "validRange": {"min": "1Mi", "step": "1Mi"}}}
    return msgspec.convert(
        {
            "metadata": {"name": f"{name}-gpu"},
            "spec": {
                "driver": "gpu.nvidia.com",
                "nodeName": name,
                "pool": {"name": name, "generation": 1, "resourceSliceCount": 1},
                "devices": [
                    {
                        "name": f"gpu-{i}",
                        "attributes": said[i],
                        "allowMultipleAllocations": True,
                        "capacity": {"memory": memory},
                    }
                    for i in range(gpus)
                ],
            },
        },
        ResourceSlice,
    )


def platform(gpus: int = 4, nodes: int = 2, quota: float = -1) -> World:
    made = World(Inventory())
    made.upsert(device_class())
    for i in range(nodes):
        made.upsert(dra_node(f"n{i}"))
        made.upsert(slice_of(f"n{i}", gpus))
    made.upsert(queue("top"))
    made.upsert(queue("a", "top", quota=quota, limit=quota))
    return made


def claim(name: str, count: int = 1) -> ResourceClaim:
    request = {"name": "gpu", "exactly": {"deviceClassName": "gpu.nvidia.com", "count": count}}
    meta = {"name": name, "namespace": "default", "labels": {"kai.scheduler/queue": "a"}}
    return msgspec.convert({"metadata": meta, "spec": {"devices": {"requests": [request]}}}, ResourceClaim)


def test_whole_gpus_become_an_allocated_claim_with_the_bind() -> None:
    made = platform()
    made.upsert(gang("job", "a"))
    made.upsert(pod("job-0", "job", gpus=3))
    plan = cycle(made, Policy(), START)
    (bind,) = plan.binds
    assert bind.implied is not None
    assert len(bind.implied.allocation.devices.results) == 3
    assert bind.implied.mappings[0].resource_name == "nvidia.com/gpu"
    assert bind.reserve == (bind.implied.claim.key,)


def test_a_share_joins_a_shared_device_elsewhere_rather_than_opening_one_on_a_full_node() -> None:
    made = platform(gpus=4, nodes=2)
    for name, ask in (("whole", {"gpus": 3}), ("first", {"fraction": "0.5"}), ("second", {"fraction": "0.5"})):
        made.upsert(gang(name, "a"))
        made.upsert(pod(name, name, nodeSelector={"kubernetes.io/hostname": "n1" if name == "first" else "n0"}, **ask))
        if name != "second":
            cycle(made, Policy(), START)
    made.upsert(pod("second", "second", fraction="0.5"))
    plan = cycle(made, Policy(), START)
    assert [(bind.pod, bind.node) for bind in plan.binds] == [("second", "n1")]
    (result,) = plan.binds[0].implied.allocation.devices.results  # type: ignore[union-attr]
    assert result.device == "gpu-0"


def test_a_gang_that_does_not_fit_on_the_devices_starts_nothing() -> None:
    made = platform(gpus=4, nodes=2)
    made.upsert(gang("job", "a", minimum=3))
    for i in range(3):
        made.upsert(pod(f"job-{i}", "job", gpus=3))
    plan = cycle(made, Policy(), START)
    assert plan.binds == []
    assert "needs 3 pods at once, room was found for 2" in plan.verdicts[0].message
    assert made.inventory is not None
    assert made.inventory.free("n0", "gpu.nvidia.com") == 4


def carry_out(made: World, plan: Plan) -> None:
    """The pods run, with their claims, as the plan has it."""
    for bind in plan.binds:
        assert bind.implied is not None
        user = ConsumerReference(resource="pods", name=bind.pod, uid=bind.uid)
        status = ResourceClaimStatus(allocation=bind.implied.allocation, reserved_for=[user])
        made.upsert(msgspec.structs.replace(bind.implied.claim, status=status))
        confirm(made, bind.uid, bind.node)


@pytest.mark.parametrize("end", ["deleted", "Succeeded", "Failed"])
def test_nobody_else_is_evicted_while_the_claim_of_a_pod_that_has_ended_is_released(end: str) -> None:
    made = platform(gpus=2, nodes=1)
    made.upsert(queue("a", "top", quota=0))
    made.upsert(queue("b", "top", quota=2))
    for name in ("v0", "v1"):
        made.upsert(gang(name, "a"))
        made.upsert(pod(name, name, gpus=1))
    carry_out(made, cycle(made, Policy(), START))
    task = made.task_of("default", "v0")
    assert task is not None
    assert task.implied is not None
    held = made.claims[task.implied.key]
    if end == "deleted":
        made.delete("Pod", "default", "v0")
    else:
        made.upsert(msgspec.structs.replace(made.pod(task.uid), status=PodStatus(phase=end)))
    # The claim's controller has taken the pod from it, and will delete it next.
    made.upsert(msgspec.structs.replace(held, status=msgspec.structs.replace(held.status, reserved_for=[])))
    made.upsert(gang("starved", "b"))
    made.upsert(pod("starved", "starved", gpus=1))
    plan = cycle(made, Policy(), START + 1)
    assert plan.evictions == []
    assert [promise.pod for promise in plan.promises] == ["starved"]
    made.delete("ResourceClaim", *held.key)
    assert [bind.pod for bind in cycle(made, Policy(), START + 2).binds] == ["starved"]


def test_a_pod_whose_binding_failed_keeps_the_devices_that_its_claim_has_in_the_cluster() -> None:
    """An allocation cannot be changed: to allocate the claim anew would fail for ever."""
    made = platform(gpus=2, nodes=2)
    made.upsert(gang("job", "a"))
    made.upsert(pod("job", "job", gpus=1))
    (bind,) = cycle(made, Policy(), START).binds
    assert bind.implied is not None
    status = ResourceClaimStatus(allocation=bind.implied.allocation)
    made.upsert(msgspec.structs.replace(bind.implied.claim, status=status))
    made.forget(bind.uid)
    for name in ("other-0", "other-1"):  # they fill the node that the cluster would like best for the pod, too
        made.upsert(gang(name, "a", priority="build"))
        made.upsert(pod(name, name, gpus=1))
    binds = {each.pod: each for each in cycle(made, Policy(), START + 1).binds}
    assert binds["job"].node == bind.node
    again = binds["job"].implied
    assert again is not None, "written once more: the first attempt may have ended before the pod was told"
    assert again.allocation == bind.implied.allocation
    taken = [(r.pool, r.device) for r in bind.implied.allocation.devices.results]
    for name in ("other-0", "other-1"):
        other = binds[name].implied
        assert other is not None
        assert all((r.pool, r.device) not in taken for r in other.allocation.devices.results)


def test_a_gang_that_claims_more_devices_than_there_are_is_refused_by_count() -> None:
    made = platform(gpus=4, nodes=2)
    made.upsert(gang("job", "a", minimum=3))
    for i in range(3):
        made.upsert(claim(f"c{i}", 3))
        made.upsert(pod(f"job-{i}", "job", resourceClaims=[{"name": "gpu", "resourceClaimName": f"c{i}"}]))
    plan = cycle(made, Policy(), START)
    assert plan.binds == []
    assert "there are devices for at most 2 pods with such claims" in plan.verdicts[0].message


def test_a_gang_that_claims_no_devices_at_all_is_told_so() -> None:
    made = platform()
    made.upsert(gang("job", "a", minimum=2))
    for i in range(2):
        made.upsert(claim(f"c{i}", 0))
        made.upsert(pod(f"job-{i}", "job", resourceClaims=[{"name": "gpu", "resourceClaimName": f"c{i}"}]))
    plan = cycle(made, Policy(), START)
    assert plan.binds == []
    assert "the count must be at least 1" in plan.verdicts[0].message


def test_two_halves_share_one_device_and_a_third_takes_another() -> None:
    made = platform(gpus=2, nodes=1)
    for i in range(3):
        made.upsert(gang(f"share-{i}", "a", rank=i))
        made.upsert(pod(f"share-{i}-0", f"share-{i}", fraction="0.5", rank=i))
    plan = cycle(made, Policy(), START)
    devices = [bind.implied.allocation.devices.results[0].device for bind in plan.binds if bind.implied is not None]
    assert len(devices) == 3
    assert len(set(devices)) == 2


def test_whole_gpus_and_shares_never_overlap() -> None:
    made = platform(gpus=1, nodes=1)
    made.upsert(gang("share", "a", rank=0))
    made.upsert(pod("share-0", "share", fraction="0.5", rank=0))
    made.upsert(gang("whole", "a", rank=1))
    made.upsert(pod("whole-0", "whole", gpus=1, rank=1))
    plan = cycle(made, Policy(), START)
    assert [bind.pod for bind in plan.binds] == ["share-0"]


def test_an_explicit_claim_is_allocated_and_counted_against_the_quota() -> None:
    made = platform(quota=2)
    for i in range(3):
        made.upsert(claim(f"c{i}"))
        made.upsert(gang(f"job-{i}", "a", rank=i))
        made.upsert(
            pod(f"job-{i}-0", f"job-{i}", rank=i, resourceClaims=[{"name": "gpu", "resourceClaimName": f"c{i}"}])
        )
    plan = cycle(made, Policy(), START)
    assert [bind.pod for bind in plan.binds] == ["job-0-0", "job-1-0"]
    assert all(list(bind.claims) == [("default", f"c{i}")] for i, bind in enumerate(plan.binds))
    assert plan.verdicts[0].reason == "OverLimit"
    assert made.queue_status()["a"].allocated["nvidia.com/gpu"] == "2"


def test_a_missing_claim_or_class_is_named_and_nobody_is_evicted_for_it() -> None:
    made = platform()
    made.upsert(gang("running", "a"))
    made.upsert(pod("running-0", "running", gpus=4, on="n0"))
    made.upsert(gang("lost", "a", priority="inference", rank=1))
    made.upsert(pod("lost-0", "lost", rank=1, resourceClaims=[{"name": "gpu", "resourceClaimName": "nobody"}]))
    odd = claim("odd")
    assert odd.spec.devices.requests[0].exactly is not None
    odd.spec.devices.requests[0].exactly.device_class_name = "imex.nvidia.com"
    made.upsert(odd)
    made.upsert(gang("odd", "a", priority="inference", rank=2))
    made.upsert(pod("odd-0", "odd", rank=2, resourceClaims=[{"name": "gpu", "resourceClaimName": "odd"}]))
    plan = cycle(made, Policy(), START)
    assert plan.evictions == []
    assert {(v.group, v.reason, v.message, v.pods) for v in plan.verdicts} == {
        ("lost", "InvalidRequest", "pod lost-0: its claim default/nobody does not exist", ("lost-0",)),
        (
            "odd",
            "InvalidRequest",
            "pod odd-0: claim odd, request gpu: device class imex.nvidia.com does not exist",
            ("odd-0",),
        ),
    }


def test_the_refusal_of_the_devices_is_in_the_verdict() -> None:
    made = platform(gpus=1, nodes=1)
    for name in ("c0", "c1"):
        made.upsert(claim(name))
    for i in range(2):
        made.upsert(gang(f"job-{i}", "a", rank=i))
        made.upsert(
            pod(f"job-{i}-0", f"job-{i}", rank=i, resourceClaims=[{"name": "gpu", "resourceClaimName": f"c{i}"}])
        )
    (only,) = cycle(made, Policy(actions=("allocate",)), START).verdicts
    assert "on node n0: " in only.message
    assert "c1" in only.message


def test_a_contradictory_share_is_an_invalid_request_of_its_pod() -> None:
    made = platform()
    made.upsert(gang("bad", "a"))
    made.upsert(pod("bad-0", "bad", fraction="1.5"))
    (only,) = cycle(made, Policy(), START).verdicts
    assert (only.reason, only.pods) == ("InvalidRequest", ("bad-0",))
    assert "1.5" in only.message


def test_a_claim_that_is_not_generated_yet_gates_its_pod() -> None:
    made = platform()
    made.upsert(gang("job", "a"))
    made.upsert(pod("job-0", "job", resourceClaims=[{"name": "gpu", "resourceClaimTemplateName": "t"}]))
    plan = cycle(made, Policy(), START)
    assert plan.binds == []
    assert plan.verdicts[0].reason in ("SchedulingGated", "NotReady")


def test_reclaim_takes_devices_back_from_running_claims() -> None:
    made = platform(gpus=2, nodes=1)
    made.upsert(queue("b", "top", quota=0, weight=0, rank=2))
    made.upsert(queue("c", "top", quota=2, rank=3))
    made.upsert(gang("old", "b"))
    made.upsert(pod("old-0", "old", gpus=2))
    (bind,) = cycle(made, Policy(), START).binds
    confirm(made, bind.uid, bind.node)
    made.upsert(gang("new", "c", rank=5))
    made.upsert(pod("new-0", "new", gpus=1, rank=5))
    plan = cycle(made, Policy(), START + 1)
    assert [(e.pod, e.action) for e in plan.evictions] == [("old-0", "reclaim")]
    assert [p.pod for p in plan.promises] == ["new-0"]
    made.delete("Pod", "default", "old-0")
    made.delete("ResourceClaim", *bind.implied.claim.key)  # type: ignore[union-attr]
    assert [b.pod for b in cycle(made, Policy(), START + 2).binds] == ["new-0"]


def scattered() -> World:
    """Two nodes of four GPUs, one of each in use by a claim."""
    made = platform()
    for rank, (name, gpus) in enumerate((("large", 3), ("left", 1), ("right", 1))):
        made.upsert(gang(name, "a", rank=rank))
        made.upsert(pod(f"{name}-0", name, gpus=gpus, rank=rank))
        (bind,) = cycle(made, Policy(), START).binds
        confirm(made, bind.uid, bind.node)
        assert bind.implied is not None
        if name == "large":
            large = bind.implied.claim.key
        else:
            status = ResourceClaimStatus(allocation=bind.implied.allocation)
            made.upsert(msgspec.structs.replace(bind.implied.claim, status=status))
    made.delete("Pod", "default", "large-0")
    made.delete("ResourceClaim", *large)
    assert made.inventory is not None
    assert [made.inventory.free(f"n{i}", "gpu.nvidia.com") for i in range(2)] == [3, 3]
    return made


def test_consolidation_moves_a_pod_to_devices_of_another_node() -> None:
    made = scattered()
    made.upsert(gang("whole", "a", rank=5))
    made.upsert(pod("whole-0", "whole", gpus=4, rank=5))
    plan = cycle(made, Policy(), START + 1)
    (eviction,) = plan.evictions
    assert (eviction.action, eviction.pod in ("left-0", "right-0")) == ("consolidate", True)
    places = {promise.pod: promise.node for promise in plan.promises}
    assert places["whole-0"] == eviction.node != places[eviction.pod]
    assert made.inventory is not None
    assert [made.inventory.free(f"n{i}", "gpu.nvidia.com") for i in range(2)] == [3, 3], "nothing is gone yet"


def test_defragmentation_moves_a_pod_to_devices_of_another_node() -> None:
    made = scattered()
    window = DefragmentWindow("* * * * *", 60)
    plan = cycle(made, Policy(defragment_windows=(window,), defragment_cooldown=0.0), START + 1)
    (eviction,), (promise,) = plan.evictions, plan.promises
    assert (eviction.action, eviction.pod) == ("defragment", promise.pod)
    assert eviction.node != promise.node


def confirm(made: World, uid: str, node: str) -> None:
    old: Pod = made.pod(uid)
    spec = msgspec.structs.replace(old.spec, node_name=node)
    made.upsert(msgspec.structs.replace(old, spec=spec, status=msgspec.structs.replace(old.status, phase="Running")))


def test_a_failed_write_gives_devices_and_room_back() -> None:
    made = platform(gpus=1, nodes=1)
    made.upsert(gang("job", "a"))
    made.upsert(pod("job-0", "job", gpus=1))
    (bind,) = cycle(made, Policy(), START).binds
    assert cycle(made, Policy(), START).binds == []
    made.forget(bind.uid)
    assert cycle(made, Policy(), START).binds == [bind]


def test_a_device_class_that_comes_after_the_pod_turns_its_resource_into_a_claim() -> None:
    made = World(Inventory())
    for obj in (dra_node("n0"), slice_of("n0", 2), queue("q"), gang("g", "q"), pod("p", "g", gpus=1)):
        made.upsert(obj)
    assert cycle(made, Policy(), START).binds == []
    made.upsert(device_class())
    (bind,) = cycle(made, Policy(), START).binds
    assert bind.implied is not None


def test_a_change_that_the_engine_does_not_read_leaves_a_decision_as_it_is() -> None:
    made = platform()
    made.upsert(gang("g", "a"))
    waiting = pod("p", "g", gpus=1)
    made.upsert(waiting)
    (bind,) = cycle(made, Policy(), START).binds
    task = made.tasks[bind.uid]
    condition = msgspec.convert({"phase": "Pending", "conditions": [{"type": "X", "status": "True"}]}, PodStatus)
    newer = msgspec.structs.replace(waiting, status=condition)
    made.upsert(newer)
    assert made.tasks[bind.uid] is task
    assert made.pod(bind.uid) is newer
    bound = msgspec.structs.replace(newer, spec=msgspec.structs.replace(newer.spec, node_name=bind.node))
    made.upsert(bound)
    assert made.binds == {}
    assert made.tasks[bind.uid] is task
    assert task.status == task.phase == Status.BOUND
