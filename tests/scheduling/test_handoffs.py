"""BindRequests of a KAI Scheduler that ran before or runs beside: nobody is placed twice, nobody waits for ever."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import msgspec
import pytest

from capstan.api import clock
from capstan.api.scheduling import BindRequest
from capstan.scheduling import Policy, World, cycle
from capstan.scheduling.model import Status

sys.path.insert(0, str(Path(__file__).parent))
from clusters import START, gang, node, pod, queue, world
from test_claims import claim, platform


def request(pod_name: str, where: str, phase: str = "Pending", *, uid: str = "", age: float = 0.0, **spec: Any) -> Any:
    owners = [{"apiVersion": "v1", "kind": "Pod", "name": pod_name, "uid": uid}] if uid else []
    meta = {
        "name": pod_name,
        "namespace": "default",
        "creationTimestamp": clock.render(START - age),
        "ownerReferences": owners,
    }
    return msgspec.convert(
        {"metadata": meta, "spec": {"podName": pod_name, "selectedNode": where, **spec}, "status": {"phase": phase}},
        BindRequest,
    )


@pytest.fixture
def made() -> World:
    """One free GPU on each of two nodes, one pod that wants one."""
    return world(node("a", gpus=1), node("b", gpus=1), queue("q"), gang("g", "q"), pod("p", "g", gpus=1))


def bound(made: World, now: float = START) -> dict[str, str]:
    return {bind.pod: bind.node for bind in cycle(made, Policy(), now).binds}


@pytest.mark.parametrize("phase", ["", "Pending", "Succeeded"])
def test_a_pod_with_a_live_request_counts_as_binding_on_its_node(made, phase):
    made.upsert(request("p", "b", phase))
    task = made.task_of("default", "p")
    assert (task.status, task.node.name) == (Status.BINDING, "b")
    assert made.queues["q"].allocated[2] == 1_000_000
    made.upsert(gang("h", "q"))
    made.upsert(pod("late", "h", gpus=1))
    assert bound(made) == {"late": "a"}


def test_a_request_that_came_before_its_pod_or_its_node_counts_too():
    made = world(request("p", "a"), queue("q"), gang("g", "q"), pod("p", "g", gpus=1))
    assert made.task_of("default", "p").status == Status.PENDING
    made.upsert(node("a", gpus=1))
    assert made.task_of("default", "p").node.name == "a"


def test_a_failed_request_is_no_request(made):
    made.upsert(request("p", "b"))
    made.upsert(request("p", "b", "Failed"))
    assert made.task_of("default", "p").status == Status.PENDING
    assert set(bound(made)) == {"p"}


def test_a_request_that_is_deleted_is_forgotten(made):
    made.upsert(request("p", "b"))
    made.delete("BindRequest", "default", "p")
    assert made.task_of("default", "p").status == Status.PENDING


def test_a_request_for_an_earlier_pod_of_the_same_name_is_not_for_this_one(made):
    made.upsert(request("p", "b", uid="somebody-else"))
    assert made.task_of("default", "p").status == Status.PENDING
    made.upsert(request("p", "b", uid=made.task_of("default", "p").uid))
    assert made.task_of("default", "p").status == Status.BINDING


def test_the_pod_is_decided_anew_when_nobody_carries_the_request_out(made):
    made.upsert(request("p", "b"))
    assert bound(made, START + 299) == {}
    assert set(bound(made, START + 301)) == {"p"}


def test_the_pod_is_decided_anew_when_the_node_vanishes(made):
    made.upsert(request("p", "b"))
    made.delete("Node", "", "b")
    assert bound(made) == {"p": "a"}


def test_a_pod_that_is_bound_needs_its_request_no_more(made):
    made.upsert(request("p", "b"))
    entry = pod("p", "g", gpus=1)
    made.upsert(msgspec.structs.replace(entry, spec=msgspec.structs.replace(entry.spec, node_name="b")))
    made.delete("BindRequest", "default", "p")
    task = made.task_of("default", "p")
    assert (task.status, task.node.name) == (Status.BOUND, "b")


def test_devices_that_a_request_allocates_go_to_nobody_else():
    made = platform(gpus=1, nodes=1)
    for rank, name in enumerate(("p", "late")):
        made.upsert(claim(f"c-{name}"))
        made.upsert(gang(f"g-{name}", "a", rank=rank))
        own = [{"name": "mine", "resourceClaimName": f"c-{name}"}]
        made.upsert(pod(name, f"g-{name}", rank=rank, resourceClaims=own))
    result = {"request": "gpu", "driver": "gpu.nvidia.com", "pool": "n0", "device": "gpu-0"}
    allocations = [{"name": "mine", "allocation": {"devices": {"results": [result]}}}]
    made.upsert(request("p", "n0", resourceClaimAllocations=allocations))
    assert bound(made) == {}
    made.upsert(request("p", "n0", "Failed", resourceClaimAllocations=allocations))
    assert bound(made) == {"p": "n0"}
