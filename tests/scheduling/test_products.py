"""Quotas and limits per GPU product: charged by where pods really run, known before only when it is certain."""

from __future__ import annotations

import sys
from pathlib import Path

import msgspec

from capstan.allocation import Inventory
from capstan.api.core import Pod
from capstan.api.resource import ResourceClaim
from capstan.api.scheduling import Queue
from capstan.scheduling import Plan, Policy, World, cycle, explain
from capstan.scheduling.amounts import GPU
from capstan.scheduling.canonical import dump
from capstan.scheduling.world import Object

sys.path.insert(0, str(Path(__file__).parent))
from clusters import PRODUCT, START, Cluster, gang, node, pod, queue, world
from test_claims import device_class, dra_node, slice_of

H100, A100 = {PRODUCT: "H100"}, {PRODUCT: "A100"}
Bounds = dict[str, float]


def typed(name: str, parent: str = "top", rank: int = 1, **types: Bounds) -> Queue:
    return queue(name, parent, quota=0, rank=rank, gpu_types=types)


def plan_of(made: World, now: float = START) -> Plan:
    return cycle(made, Policy(), now)


def places(made: World) -> dict[str, str]:
    return {bind.pod: bind.node for bind in plan_of(made).binds}


def held(made: World, name: str) -> dict[str, str]:
    return made.queue_status()[name].allocated


def sure(name: str, group: str, gpus: int, labels: dict[str, str] = H100) -> Pod:
    return pod(name, group, gpus=gpus, nodeSelector=labels)


# -- limits and quotas


def test_a_pod_that_can_only_get_one_product_is_held_to_the_limit_before_any_node_is_looked_at() -> None:
    made = world(
        node("n0", gpus=8, labels=H100),
        node("n1", gpus=8, labels=A100),
        queue("top"),
        typed("q", H100={"quota": 0, "limit": 12}),
        gang("first", "q", rank=1),
        sure("first-0", "first", 8),
        gang("second", "q", rank=2),
        sure("second-0", "second", 8),
    )
    plan = plan_of(made)
    assert [bind.pod for bind in plan.binds] == ["first-0"]
    (only,) = plan.verdicts
    assert (only.reason, only.message) == ("OverLimit", "needs 8 H100 GPUs, 4 left of the limit 12 of queue q")
    details = only.details["queueDetails"]
    assert details["name"] == "q"
    assert details["podGroupRequestedResources"]["H100"] == "8"
    assert details["queueAllocatedResources"]["H100"] == "8"
    assert details["queueResourceLimits"] == {"H100": "12"}


def test_where_the_product_shows_only_on_the_node_nodes_without_headroom_are_passed_over() -> None:
    """Binpacking alone would fill the smaller node n0 first."""
    made = world(
        node("n0", gpus=4, labels=H100),
        node("n1", gpus=8, labels=A100),
        queue("top"),
        typed("q", H100={"quota": 0, "limit": 1}),
        gang("g", "q", minimum=3),
        *(pod(f"p{i}", "g", gpus=1) for i in range(3)),
    )
    assert places(made) == {"p0": "n0", "p1": "n1", "p2": "n1"}
    assert held(made, "q") == {"cpu": "3", "memory": "3Gi", "nvidia.com/gpu": "3", "H100": "1"}


def test_a_gang_that_finds_only_closed_products_is_told_the_numbers() -> None:
    made = world(
        node("n0", gpus=4, labels=H100),
        node("n1", gpus=4, labels=A100),
        queue("top"),
        typed("q", H100={"limit": 1}, A100={"limit": 1}),
        gang("g", "q"),
        pod("p", "g", gpus=2),
    )
    (only,) = plan_of(made).verdicts
    assert only.reason == "PodSchedulingErrors"
    assert only.nodes == {
        "needs 2 H100 GPUs, 1 left of the limit 1 of queue q": 1,
        "needs 2 A100 GPUs, 1 left of the limit 1 of queue q": 1,
    }
    found = explain(made, "default", "g")
    assert found is not None
    assert found.nodes["n0"] == "needs 2 H100 GPUs, 1 left of the limit 1 of queue q"


def test_a_gang_starts_as_a_whole_or_not_at_all_when_a_product_runs_out_on_the_way() -> None:
    made = world(
        node("n0", gpus=4, labels=H100),
        node("n1", gpus=1, labels=A100),
        queue("top"),
        typed("q", H100={"limit": 2}),
        gang("g", "q", minimum=4),
        *(pod(f"p{i}", "g", gpus=1) for i in range(4)),
    )
    assert plan_of(made).binds == []
    assert held(made, "q")["H100"] == "0"


def test_the_limit_of_an_ancestor_holds_for_its_whole_branch() -> None:
    made = world(
        node("n0", gpus=8, labels=H100),
        queue("top", gpu_types={"H100": {"quota": -1, "limit": 3}}),
        queue("a", "top", rank=1),
        queue("b", "top", rank=2),
        *(gang(f"g{i}", "ab"[i % 2], rank=i) for i in range(6)),
        *(pod(f"p{i}", f"g{i}", gpus=1) for i in range(6)),
    )
    assert len(plan_of(made).binds) == 3


def test_gangs_that_cannot_be_preempted_stay_within_the_quota_of_a_product() -> None:
    made = world(
        node("n0", gpus=8, labels=H100),
        queue("top"),
        queue("q", "top", rank=1, gpu_types={"H100": {"quota": 1}}),
        gang("g", "q", priority="build"),
        pod("p", "g", gpus=2),
    )
    (only,) = plan_of(made).verdicts
    assert only.reason == "NonPreemptibleOverQuota"
    assert only.message == "needs 2 H100 GPUs, 1 left of the quota 1 of queue q for jobs that cannot be preempted"


def test_shares_count_in_their_part() -> None:
    made = world(
        node("n0", gpus=2, labels=H100),
        queue("top"),
        typed("q", H100={"limit": 1}),
        *(gang(f"g{i}", "q", rank=i) for i in range(3)),
        *(pod(f"p{i}", f"g{i}", fraction="0.5") for i in range(3)),
    )
    assert len(plan_of(made).binds) == 2
    assert held(made, "q")["H100"] == "1"


def test_other_queues_are_not_concerned() -> None:
    made = world(
        node("n0", gpus=8, labels=H100),
        queue("top"),
        typed("a", H100={"limit": 0}),
        queue("b", "top", rank=2),
        gang("g", "b"),
        pod("p", "g", gpus=8),
    )
    assert places(made) == {"p": "n0"}


# -- fair shares and reclaim


def test_each_product_is_divided_on_its_own() -> None:
    made = world(
        node("n0", gpus=8, labels=H100),
        node("n1", gpus=8, labels=A100),
        queue("top"),
        queue("a", "top", rank=1, gpu_types={"H100": {"quota": 6}}),
        queue("b", "top", rank=2, gpu_types={"H100": {"quota": 2}}),
        gang("ga", "a"),
        sure("pa", "ga", 8),
        gang("gb", "b"),
        sure("pb", "gb", 8),
    )
    made.begin(START)
    status = made.queue_status()
    assert (status["a"].fair_share["H100"], status["b"].fair_share["H100"]) == ("6", "2")
    assert status["top"].fair_share["H100"] == "8"
    assert "A100" not in status["top"].fair_share, "nobody names it"


def test_a_queue_takes_back_its_quota_of_a_product_from_whoever_has_too_much_of_it() -> None:
    """By GPUs alone b is within its share: it has 8 of 16 and deserves 8. But it sits on all H100s."""
    made = world(
        node("n0", gpus=8, labels=H100),
        node("n1", gpus=8, labels=A100),
        queue("top"),
        queue("a", "top", quota=8, rank=1, gpu_types={"H100": {"quota": 4}}),
        queue("b", "top", quota=8, rank=2, gpu_types={"H100": {"quota": 4}}),
        *(gang(f"b{i}", "b", rank=i) for i in range(8)),
        *(pod(f"b{i}", f"b{i}", gpus=1, on="n0") for i in range(8)),
        gang("ga", "a", minimum=2),
        sure("pa0", "ga", 2),
        sure("pa1", "ga", 2),
    )
    policy = Policy(actions=("allocate", "reclaim"), reclaim_may_consolidate=False)
    plan = cycle(made, policy, START)
    assert sorted(eviction.pod for eviction in plan.evictions) == ["b4", "b5", "b6", "b7"]


def test_nothing_is_taken_back_beyond_the_own_share_of_a_product() -> None:
    made = world(
        node("n0", gpus=8, labels=H100),
        queue("top"),
        queue("a", "top", quota=4, rank=1, gpu_types={"H100": {"quota": 0, "overQuotaWeight": 0}}),
        queue("b", "top", quota=4, rank=2, gpu_types={"H100": {"quota": 8}}),
        *(gang(f"b{i}", "b", rank=i) for i in range(8)),
        *(pod(f"b{i}", f"b{i}", gpus=1, on="n0") for i in range(8)),
        gang("ga", "a"),
        sure("pa", "ga", 1),
        gang("gb", "a", rank=1),
        pod("pb", "gb", gpus=1),
        node("n1", gpus=1, labels=A100),
        gang("b8", "b"),
        pod("b8", "b8", gpus=1, on="n1"),
    )
    plan = plan_of(made)
    assert [(e.pod, e.for_group) for e in plan.evictions] == [("b8", "default/gb")], "any GPU will do for gb"
    (only,) = [verdict for verdict in plan.verdicts if verdict.group == "ga"]
    assert "needs 1 H100 GPU, which with 0 already held is over the fair share 0 of a" in only.message


# -- what the cluster says


def test_a_product_that_no_node_has_is_a_warning_and_stops_nobody() -> None:
    made = world(
        node("n0", gpus=8, labels=H100),
        queue("top"),
        typed("q", H200={"limit": 1}),
        gang("g", "q"),
        pod("p", "g", gpus=8),
    )
    assert places(made) == {"p": "n0"}
    status = made.queue_status()["q"]
    assert status.error == ""
    assert status.warnings == ("gpuTypes: no node has GPUs of the product H200 (node label nvidia.com/gpu.product)",)


def test_products_are_compared_as_a_whole() -> None:
    made = world(
        node("n0", gpus=8, labels={PRODUCT: "NVIDIA-H100-80GB-HBM3"}),
        queue("top"),
        typed("q", H100={"limit": 1}),
        gang("g", "q"),
        pod("p", "g", gpus=8),
    )
    assert places(made) == {"p": "n0"}


def test_a_product_may_be_named_and_forgotten_while_pods_run() -> None:
    made = world(
        node("n0", gpus=8, labels=H100),
        queue("top"),
        queue("q", "top", rank=1),
        gang("g", "q"),
        pod("p", "g", gpus=3, on="n0"),
    )
    made.begin(START)
    before = dump(made)
    assert "H100" not in held(made, "q")
    made.upsert(typed("q", H100={"limit": 4}))
    assert held(made, "q")["H100"] == "3"
    made.upsert(queue("q", "top", rank=1))
    assert "H100" not in held(made, "q")
    assert dump(made) == before


def test_a_node_that_changes_its_product_changes_what_is_certain() -> None:
    cluster = Cluster()
    for entry in (
        node("n0", gpus=8, labels=H100),
        queue("top"),
        typed("q", H100={"limit": 0}, A100={"limit": 8}),
        gang("g", "q"),
        pod("p", "g", gpus=1),
    ):
        cluster.put(entry)
    made = cluster.build()
    (only,) = plan_of(made).verdicts
    assert only.message == "needs 1 H100 GPU, 0 left of the limit 0 of queue q"
    cluster.put(node("n0", gpus=8, labels=A100))
    made.upsert(node("n0", gpus=8, labels=A100))
    made.begin(START)
    again = cluster.build()
    again.begin(START)
    assert dump(made) == dump(again)
    assert places(made) == {"p": "n0"}


# -- claims


NAMES = {"H100": "NVIDIA H100 80GB HBM3", "A100": "NVIDIA A100-SXM4-80GB"}
LABELS = {short: name.replace(" ", "-") for short, name in NAMES.items()}


def platform(*nodes: str, **limits: float) -> World:
    """A node n0, n1... for every text: the products of its GPUs, allocated by claims. Limits are those of queue a."""
    made = World(Inventory())
    made.upsert(device_class())
    for i, products in enumerate(nodes):
        names = [NAMES[product] for product in products.split()]
        made.upsert(dra_node(f"n{i}"))
        made.upsert(slice_of(f"n{i}", len(names), *names))
    made.upsert(queue("top"))
    made.upsert(queue("a", "top", gpu_types={LABELS[p]: {"quota": 0, "limit": limit} for p, limit in limits.items()}))
    return made


def claim(name: str, product: str = "", count: int = 1) -> ResourceClaim:
    exactly: dict[str, object] = {"deviceClassName": "gpu.nvidia.com", "count": count}
    if product:
        said = f"device.attributes['gpu.nvidia.com'].productName == '{NAMES[product]}'"
        exactly["selectors"] = [{"cel": {"expression": said}}]
    meta = {"name": name, "namespace": "default", "labels": {"kai.scheduler/queue": "a"}}
    spec = {"devices": {"requests": [{"name": "gpu", "exactly": exactly}]}}
    return msgspec.convert({"metadata": meta, "spec": spec}, ResourceClaim)


def ask(made: World, name: str, claimed: ResourceClaim, rank: int = 0) -> None:
    made.upsert(claimed)
    made.upsert(gang(name, "a", rank=rank))
    by_name = [{"name": "gpu", "resourceClaimName": claimed.metadata.name}]
    made.upsert(pod(f"{name}-0", name, rank=rank, resourceClaims=by_name))


def test_the_driver_names_the_product_of_devices_in_claims() -> None:
    made = platform("H100 H100 H100", H100=2)
    made.upsert(gang("g", "a"))
    made.upsert(pod("g-0", "g", gpus=3))
    (only,) = plan_of(made).verdicts
    assert only.message == "needs 3 NVIDIA-H100-80GB-HBM3 GPUs, 2 left of the limit 2 of queue a"


def test_extended_resources_on_claims_pass_over_nodes_of_a_closed_product() -> None:
    made = platform("H100", "A100 A100", H100=0)
    made.upsert(gang("g", "a"))
    made.upsert(pod("g-0", "g", gpus=1))
    assert places(made) == {"g-0": "n1"}


def test_a_claim_that_selects_a_product_is_known_before_and_charged_by_what_it_got() -> None:
    made = platform("H100 A100 A100", H100=1)
    ask(made, "first", claim("c0", "H100"), rank=0)
    ask(made, "second", claim("c1", "H100"), rank=1)
    ask(made, "third", claim("c2", "A100"), rank=2)
    plan = plan_of(made)
    assert [bind.pod for bind in plan.binds] == ["first-0", "third-0"]
    (only,) = plan.verdicts
    assert only.message == "needs 1 NVIDIA-H100-80GB-HBM3 GPU, 0 left of the limit 1 of queue a"
    assert held(made, "a")[LABELS["H100"]] == "1"


def test_an_open_claim_on_a_node_of_several_products_is_charged_by_the_device_it_got() -> None:
    made = platform("H100 A100", H100=1, A100=0)
    ask(made, "first", claim("c0"), rank=0)
    ask(made, "second", claim("c1"), rank=1)
    plan = plan_of(made)
    for bind in plan.binds:
        (allocation,) = bind.claims.values()
        (result,) = allocation.devices.results
        assert result.device == "gpu-0", "the A100 is closed to the queue"
    assert held(made, "a")[LABELS["A100"]] == "0"


def test_the_cluster_counts_the_devices_of_mixed_nodes_by_product() -> None:
    made = platform("H100 A100 A100", "A100", H100=1, A100=1)
    made.begin(START)
    assert made.total[2:] == [4 * GPU, 3 * GPU, 1 * GPU], "products stand in the order of their names"


def test_claims_are_charged_alike_whatever_arrives_first() -> None:
    made = platform("H100 A100", H100=2, A100=2)
    ask(made, "g", claim("c0", "A100"))
    (bind,) = plan_of(made).binds
    (allocation,) = bind.claims.values()
    status = msgspec.structs.replace(claim("c0").status, allocation=allocation)
    bound = msgspec.structs.replace(claim("c0", "A100"), status=status)
    running = msgspec.structs.replace(
        made.pod(bind.uid), spec=msgspec.structs.replace(made.pod(bind.uid).spec, node_name="n0")
    )
    objects: list[Object] = [
        device_class(),
        dra_node("n0"),
        slice_of("n0", 2, NAMES["H100"], NAMES["A100"]),
        queue("top"),
        queue("a", "top", gpu_types={LABELS["A100"]: {"limit": 2}}),
        gang("g", "a"),
        running,
        bound,
    ]
    for order in (objects, objects[::-1], [*objects[4:], *objects[:4]]):
        again = World(Inventory())
        for entry in order:
            again.upsert(entry)
        again.begin(START)
        assert held(again, "a")[LABELS["A100"]] == "1"


def pair_on_a_mixed_node(**limits: float) -> World:
    """A gang of two: the first pod takes the H100, although any GPU will do; the second needs that one."""
    made = platform("H100 A100", **limits)
    made.upsert(claim("any"))
    made.upsert(claim("sure", "H100"))
    made.upsert(gang("g", "a", minimum=2))
    for rank, name in enumerate(("any", "sure")):
        made.upsert(pod(f"g-{name}", "g", rank=rank, resourceClaims=[{"name": "gpu", "resourceClaimName": name}]))
    return made


def test_pods_of_a_gang_that_change_devices_change_their_charge() -> None:
    made = pair_on_a_mixed_node(H100=2, A100=2)
    assert len(plan_of(made).binds) == 2
    allocated = held(made, "a")
    assert (allocated[LABELS["H100"]], allocated[LABELS["A100"]]) == ("1", "1")


def test_pods_of_a_gang_change_to_no_device_that_is_closed_to_their_queue() -> None:
    made = pair_on_a_mixed_node(H100=2, A100=0)
    assert plan_of(made).binds == []
    allocated = held(made, "a")
    assert (allocated[LABELS["H100"]], allocated[LABELS["A100"]]) == ("0", "0")
