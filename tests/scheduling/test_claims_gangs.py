"""Gangs whose pods need claims are all or nothing over devices too, alternatives of `firstAvailable` included
(kubernetes #138765), and what pods share counts once."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

import msgspec
import pytest

from capstan.allocation import Inventory
from capstan.api.core import Node
from capstan.api.resource import DeviceClass, ResourceClaim, ResourceSlice
from capstan.scheduling import Plan, Policy, World, cycle

sys.path.insert(0, str(Path(__file__).parent))
from clusters import START, gang, pod, queue

DRIVER = "gpu.nvidia.com"
PARTITIONS = {"big": 3, "small-0": 2, "small-1": 2, "tiny": 1}


def partitioned(nodes: int, quota: float = -1) -> World:
    """Nodes with one GPU of four units each, published as partitions that exclude each other: big (3), two small (2),
    tiny (1)."""
    made = World(Inventory())
    for kind in ("big", "small", "tiny"):
        expression = f"device.attributes['{DRIVER}'].kind == '{kind}'"
        body = {"metadata": {"name": kind}, "spec": {"selectors": [{"cel": {"expression": expression}}]}}
        made.upsert(msgspec.convert(body, DeviceClass))
    for name in (f"n{i}" for i in range(nodes)):
        status = {
            "allocatable": {"cpu": 64, "memory": "256Gi", "pods": 110},
            "conditions": [{"type": "Ready", "status": "True"}],
        }
        made.upsert(msgspec.convert({"metadata": {"name": name}, "status": status}, Node))
        devices = [
            {
                "name": device,
                "attributes": {"kind": {"string": device.partition("-")[0]}},
                "consumesCounters": [{"counterSet": "gpu", "counters": {"units": {"value": units}}}],
            }
            for device, units in PARTITIONS.items()
        ]
        spec = {
            "driver": DRIVER,
            "nodeName": name,
            "pool": {"name": name},
            "devices": devices,
            "sharedCounters": [{"name": "gpu", "counters": {"units": {"value": 4}}}],
        }
        made.upsert(msgspec.convert({"metadata": {"name": f"{name}-gpu"}, "spec": spec}, ResourceSlice))
    made.upsert(queue("top"))
    made.upsert(queue("a", "top", quota=quota, limit=quota))
    return made


def claim(name: str, *classes: str) -> ResourceClaim:
    """One device of the first of the classes that can be had."""
    options = [{"name": f"o{i}", "deviceClassName": kind} for i, kind in enumerate(classes)]
    meta = {"name": name, "namespace": "default", "labels": {"kai.scheduler/queue": "a"}}
    body = {"metadata": meta, "spec": {"devices": {"requests": [{"name": "gpu", "firstAvailable": options}]}}}
    return msgspec.convert(body, ResourceClaim)


def submit(made: World, name: str, claims: Sequence[Sequence[str]], minimum: int | None = None) -> None:
    """A gang whose i-th pod uses the claims with these names."""
    made.upsert(gang(name, "a", minimum=len(claims) if minimum is None else minimum))
    for i, names in enumerate(claims):
        uses = [{"name": f"c{k}", "resourceClaimName": used} for k, used in enumerate(names)]
        made.upsert(pod(f"{name}-{i}", name, rank=i, resourceClaims=uses))


def devices(plan: Plan) -> list[str]:
    return sorted(
        f"{bind.node}/{result.device}"
        for bind in plan.binds
        for held in bind.claims.values()
        for result in held.devices.results
    )


def untouched(made: World) -> bool:
    assert made.inventory is not None
    return not made.inventory.dump()["uses"]


def test_a_gang_gives_up_a_preferred_alternative_so_that_all_its_pods_fit() -> None:
    """The first pod alone would take the big partition, which leaves the second one without any."""
    made = partitioned(1)
    for i in range(2):
        made.upsert(claim(f"c{i}", "big", "small"))
    submit(made, "job", [["c0"], ["c1"]])
    assert devices(cycle(made, Policy(), START)) == ["n0/small-0", "n0/small-1"]


def test_a_pod_alone_gets_what_it_prefers() -> None:
    made = partitioned(1)
    made.upsert(claim("c0", "big", "small"))
    submit(made, "job", [["c0"]])
    assert devices(cycle(made, Policy(), START)) == ["n0/big"]


@pytest.mark.parametrize(("pods", "nodes", "bound"), [(2, 1, 2), (3, 1, 0), (3, 2, 3), (4, 2, 4), (5, 2, 0)])
def test_partitions_are_counted_for_the_whole_gang_or_nothing_is_taken(pods: int, nodes: int, bound: int) -> None:
    made = partitioned(nodes)
    for i in range(pods):
        made.upsert(claim(f"c{i}", "big", "small"))
    submit(made, "job", [[f"c{i}"] for i in range(pods)])
    plan = cycle(made, Policy(), START)
    assert len(plan.binds) == bound
    assert untouched(made) == (bound == 0)


def test_a_gang_with_a_smaller_minimum_takes_as_many_pods_as_fit() -> None:
    made = partitioned(1)
    for i in range(4):
        made.upsert(claim(f"c{i}", "small"))
    submit(made, "job", [[f"c{i}"] for i in range(4)], minimum=2)
    assert devices(cycle(made, Policy(), START)) == ["n0/small-0", "n0/small-1"]


@pytest.mark.parametrize(("limit", "bound"), [(1, 0), (2, 1)])
@pytest.mark.parametrize(
    "request_body",
    [
        {
            "firstAvailable": [
                {"name": "one", "deviceClassName": "none"},
                {"name": "two", "deviceClassName": "small", "count": 2},
            ]
        },
        {"exactly": {"deviceClassName": "small", "allocationMode": "All"}},
    ],
    ids=["firstAvailable", "All"],
)
def test_what_is_granted_keeps_to_the_limit_though_less_was_counted(
    request_body: dict[str, object], limit: int, bound: int
) -> None:
    """While it waits, the claim counts as one device: the first alternative, or the least that `All` may find."""
    made = partitioned(1, quota=limit)
    impossible = {"selectors": [{"cel": {"expression": "device.driver == 'other'"}}]}
    made.upsert(msgspec.convert({"metadata": {"name": "none"}, "spec": impossible}, DeviceClass))
    meta = {"name": "c0", "namespace": "default", "labels": {"kai.scheduler/queue": "a"}}
    body = {"metadata": meta, "spec": {"devices": {"requests": [{"name": "gpu"} | request_body]}}}
    made.upsert(msgspec.convert(body, ResourceClaim))
    submit(made, "job", [["c0"]])
    plan = cycle(made, Policy(), START)
    assert len(plan.binds) == bound
    assert untouched(made) == (bound == 0)
    assert made.queues["a"].allocated[2] == 2_000_000 * bound
    assert all("1 left of the limit 1 of queue a" in verdict.message for verdict in plan.verdicts)
    assert len(plan.verdicts) == 1 - bound


def test_a_shared_claim_is_allocated_once_and_keeps_its_pods_together() -> None:
    made = partitioned(3, quota=2)
    made.upsert(claim("shared", "big"))
    submit(made, "job", [["shared"], ["shared"], ["shared"]])
    plan = cycle(made, Policy(), START)
    assert len(plan.binds) == 3
    assert len({bind.node for bind in plan.binds}) == 1
    assert made.inventory is not None
    assert len(made.inventory.dump()["uses"]) == 1  # type: ignore[arg-type]
    assert all(bind.reserve == (("default", "shared"),) for bind in plan.binds)


def test_several_claims_of_a_pod_are_allocated_on_one_node() -> None:
    """A small and a big partition exceed one GPU, so only a big and a tiny one go together."""
    made = partitioned(2)
    for i in range(2):
        made.upsert(claim(f"big{i}", "big"))
        made.upsert(claim(f"rest{i}", "small", "tiny"))
    submit(made, "job", [["big0", "rest0"], ["big1", "rest1"]])
    assert devices(cycle(made, Policy(), START)) == ["n0/big", "n0/tiny", "n1/big", "n1/tiny"]
    over = partitioned(2)
    for i in range(2):
        over.upsert(claim(f"big{i}", "big"))
        over.upsert(claim(f"rest{i}", "small"))
    submit(over, "job", [["big0", "rest0"], ["big1", "rest1"]])
    assert cycle(over, Policy(), START).binds == []
    assert untouched(over)
