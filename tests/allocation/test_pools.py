"""Which slices make a pool, what makes a pool unusable, and in which order its devices are taken (KEP-4381)."""

from __future__ import annotations

from typing import Any

import pytest

from capstan.allocation import Allocation, Inventory, NodeView, Refusal, StaleMark, allocate

N1 = NodeView("n1")


def first(make: Any, inv: Inventory, node: NodeView = N1, **exactly: Any) -> list[str]:
    return list(make.devices(allocate(inv, [make.claim("c", make.request(**exactly))], node, "kubernetes")))


def refusal(make: Any, inv: Inventory, node: NodeView = N1, **exactly: Any) -> Refusal:
    answer = allocate(inv, [make.claim("c", make.request(**exactly))], node, "kubernetes")
    assert isinstance(answer, Refusal)
    return answer


def test_only_the_highest_generation_counts_and_only_when_complete(make: Any) -> None:
    old = make.slice([make.gpu("old")], name="old", generation=1)
    inv = make.inventory(old, make.slice([make.gpu("new")], name="new", generation=2, count=2))
    assert refusal(make, inv).reason == "NoSuchDevices"
    assert "n1 is being updated" in refusal(make, inv).message
    inv.upsert(make.slice([make.gpu("other")], name="other", generation=2, count=2))
    assert first(make, inv, count=2) == ["new", "other"]
    inv.delete("ResourceSlice", "", "other")
    assert inv.free("n1", make.DRIVER) == 0


def test_all_waits_for_pools_that_are_being_updated(make: Any) -> None:
    inv = make.inventory(make.slice([make.gpu("a")], pool="p1"), make.slice([make.gpu("b")], pool="p2", count=2))
    assert first(make, inv) == ["a"]
    assert refusal(make, inv, allocationMode="All").reason == "IncompletePool"


@pytest.mark.parametrize(
    ("devices", "counters", "reason"),
    [
        ([{"name": "a"}, {"name": "a"}], {}, "the device a is published twice"),
        (
            [{"name": "a", "consumesCounters": [{"counterSet": "s", "counters": {"c": {"value": 1}}}]}],
            {},
            "the counter set s",
        ),
        (
            [{"name": "a", "consumesCounters": [{"counterSet": "s", "counters": {"k": {"value": 1}}}]}],
            {"s": {"c": 1}},
            "the counter k of the set s",
        ),
        (
            [{"name": "a", "consumesCounters": [{"counterSet": "s", "counters": {"c": {"value": "much"}}}]}],
            {"s": {"c": 1}},
            "'much' is not a quantity",
        ),
    ],
)
def test_a_pool_that_contradicts_itself_is_reported_and_ignored(
    make: Any, devices: Any, counters: Any, reason: str
) -> None:
    inv = make.inventory(make.slice(devices, pool="bad", counters=counters), make.slice([make.gpu("good")], pool="p"))
    assert [(p.pool, p.slices) for p in inv.problems()] == [("bad", ("bad-gpu.nvidia.com",))]
    assert reason in inv.problems()[0].reason
    assert first(make, inv) == ["good"]
    refused = refusal(make, inv, count=2)
    assert refused.reason == "InvalidPool"
    assert refused.is_error
    assert reason in refused.message
    apart = [{"distinctAttribute": "gpu.nvidia.com/none"}]
    unsuited = allocate(inv, [make.claim("c", constraints=apart)], NodeView("n1"))
    assert isinstance(unsuited, Refusal)
    assert unsuited.reason == "InvalidPool", "whatever else is missing, the pool might have had it"
    inv.upsert(make.slice([make.gpu("fixed")], pool="bad"))
    assert inv.problems() == []
    assert first(make, inv, count=2) == ["fixed", "good"]


def test_devices_are_taken_by_driver_pool_slice_and_position_binding_ones_last(make: Any) -> None:
    wait = make.gpu("waits") | {"bindingConditions": ["ready"], "bindingFailureConditions": ["failed"]}
    inv = make.inventory(
        make.slice([make.gpu("p2-b"), make.gpu("p2-a")], pool="p2"),
        make.slice([make.gpu("p1-second")], pool="p1", name="2", count=2),
        make.slice([make.gpu("p1-first")], pool="p1", name="1", count=2),
        make.slice([wait, make.gpu("late")], pool="p0"),
    )
    assert first(make, inv, count=6) == ["p1-first", "p1-second", "p2-b", "p2-a", "waits", "late"]
    answer = allocate(inv, [make.claim("c", make.request(count=6))], N1, "kubernetes", now="2026-01-01T00:00:00Z")
    assert isinstance(answer, Allocation)
    held = answer.results["ns", "c"]
    assert held.allocation_timestamp == "2026-01-01T00:00:00Z"
    assert held.devices.results[4].binding_conditions == ["ready"]


def test_two_drivers_may_name_their_pools_and_counter_sets_alike(make: Any) -> None:
    taking = {"consumesCounters": [{"counterSet": "s", "counters": {"c": {"value": 1}}}]}
    inv = make.inventory(
        make.slice([make.gpu("a") | taking], driver="gpu.nvidia.com", counters={"s": {"c": 1}}),
        make.slice([make.gpu("a") | taking], driver="nic.dev", counters={"s": {"c": 1}}),
        make.device_class("any", "true"),
    )
    answer = allocate(inv, [make.claim("c", make.request("r", "any", count=2))], N1)
    assert make.devices(answer) == ["a", "a"]


def test_network_attached_devices_are_seen_where_their_selector_matches(make: Any) -> None:
    def terms(key: str, *values: str) -> dict[str, Any]:
        expressions = [{"key": key, "operator": "In", "values": list(values)}]
        return {"nodeSelectorTerms": [{"matchExpressions": expressions}]}

    per_device = [
        make.gpu("here") | {"nodeName": "n1"},
        make.gpu("zone") | {"nodeSelector": terms("zone", "a")},
        make.gpu("everywhere") | {"allNodes": True},
        make.gpu("far") | {"nodeName": "n9"},
    ]
    inv = make.inventory(
        make.slice([make.gpu("rack")], node=None, pool="a-rack", nodeSelector=terms("rack", "r1", "r2")),
        make.slice([make.gpu("all")], node=None, pool="b-all", allNodes=True),
        make.slice(per_device, node=None, pool="c-mixed", perDeviceNodeSelection=True),
    )
    n1, n2 = NodeView("n1", {"zone": "a", "rack": "r1"}), NodeView("n2", {"zone": "b"})
    everything = make.claim("c", make.request(allocationMode="All"))
    assert make.devices(allocate(inv, [everything], n1)) == ["rack", "all", "here", "zone", "everywhere"]
    assert make.devices(allocate(inv, [everything], n2)) == ["all", "everywhere"]

    def usable_on(count: int) -> Any:
        answer = allocate(inv, [make.claim("c", make.request(count=count))], n1, "kubernetes")
        return answer.results["ns", "c"].node_selector  # type: ignore[union-attr]

    assert usable_on(1).matches("other", {"rack": "r2"})
    assert not usable_on(1).matches("other", {"zone": "a"})
    assert usable_on(2) == usable_on(1)
    assert usable_on(3).matches("n1", {})
    assert not usable_on(3).matches("other", {"rack": "r1", "zone": "a"})
    anywhere = allocate(inv, [everything], n2)
    assert anywhere.results["ns", "c"].node_selector is None  # type: ignore[union-attr]


def test_a_device_that_binds_to_the_node_ties_the_claim_to_it(make: Any) -> None:
    inv = make.inventory(make.slice([make.gpu("a") | {"bindsToNode": True}], node=None, pool="p", allNodes=True))
    answer = allocate(inv, [make.claim()], NodeView("n7"))
    selector = answer.results["ns", "c"].node_selector  # type: ignore[union-attr]
    assert selector is not None
    assert selector.matches("n7", {})
    assert not selector.matches("n8", {})


@pytest.mark.parametrize("split", [False, True], ids=["1.34", "1.35"])
def test_counters_may_stand_beside_devices_or_in_slices_of_their_own(make: Any, split: bool) -> None:
    half = {"consumesCounters": [{"counterSet": "s", "counters": {"m": {"value": "40Gi"}}}]}
    devices = [make.gpu(f"half-{i}") | half for i in range(3)]
    counters = {"s": {"m": "80Gi"}}
    if split:
        inv = make.inventory(
            make.slice([], name="0-counters", counters=counters, count=2), make.slice(devices, name="1", count=2)
        )
    else:
        inv = make.inventory(make.slice(devices, counters=counters))
    assert inv.free("n1", make.DRIVER) == 2
    assert first(make, inv, count=2) == ["half-0", "half-1"]
    assert refusal(make, inv, count=3).reason == "NoCombination"


def test_counters_of_a_vanished_device_still_count(make: Any) -> None:
    """kubernetes #140802: the driver republishes without an allocated partition."""
    half = {"consumesCounters": [{"counterSet": "s", "counters": {"m": {"value": 1}}}]}
    devices = [make.gpu(f"half-{i}") | half for i in range(3)]
    inv = make.inventory(make.slice(devices, counters={"s": {"m": 2}}))
    answer = allocate(inv, [make.claim("a")], N1, "kubernetes")
    inv.assume(("ns", "a"), answer.results["ns", "a"])  # type: ignore[union-attr]
    inv.upsert(make.slice(devices[1:], counters={"s": {"m": 2}}, generation=2))
    assert inv.free("n1", make.DRIVER) == 1
    assert refusal(make, inv, count=2).reason == "NoCombination"
    inv.release(("ns", "a"))
    assert inv.free("n1", make.DRIVER) == 2


def test_facts_make_marks_stale(make: Any) -> None:
    inv = make.inventory(make.slice([make.gpu("a")]))
    mark = inv.mark()
    inv.upsert(make.slice([make.gpu("b")]))
    with pytest.raises(StaleMark):
        inv.rollback(mark)


def test_an_observed_allocation_replaces_an_assumed_one_and_ends_with_the_claim(make: Any) -> None:
    inv = make.inventory(make.slice([make.gpu("a"), make.gpu("b")]))
    answer = allocate(inv, [make.claim()], N1)
    held = answer.results["ns", "c"]  # type: ignore[union-attr]
    inv.assume(("ns", "c"), held)
    inv.upsert(make.claim())  # the server has not seen the allocation yet
    assert inv.free("n1", make.DRIVER) == 1
    seen = make.claim()
    seen.status.allocation = held
    inv.upsert(seen)
    assert inv.free("n1", make.DRIVER) == 1
    inv.release(("ns", "c"))
    assert inv.free("n1", make.DRIVER) == 2
    inv.upsert(seen)
    assert inv.free("n1", make.DRIVER) == 1
    inv.upsert(make.claim())
    assert inv.free("n1", make.DRIVER) == 2
    inv.upsert(seen)
    inv.delete("ResourceClaim", "ns", "c")
    assert inv.free("n1", make.DRIVER) == 2


def test_claims_may_arrive_before_the_slices_of_their_devices(make: Any) -> None:
    half = {"consumesCounters": [{"counterSet": "s", "counters": {"m": {"value": 1}}}]}
    offered = make.slice([make.gpu(f"half-{i}") | half for i in range(3)], counters={"s": {"m": 2}})
    answer = allocate(make.inventory(offered), [make.claim()], N1)
    seen = make.claim()
    seen.status.allocation = answer.results["ns", "c"]  # type: ignore[union-attr]
    inv = make.inventory(seen, offered)
    assert inv.free("n1", make.DRIVER) == 1


def test_the_newest_class_backs_an_extended_resource_then_the_first_by_name(make: Any) -> None:
    def backing(name: str, created: str) -> Any:
        built = make.device_class(name, extendedResourceName="nvidia.com/gpu")
        built.metadata.creation_timestamp = created
        return built

    inv = make.inventory(backing("b", "2026-01-01T00:00:00Z"), backing("a", "2026-01-01T00:00:00Z"))
    assert inv.class_for_extended_resource("nvidia.com/gpu") == "a"
    inv.upsert(backing("z", "2026-02-01T00:00:00Z"))
    assert inv.class_for_extended_resource("nvidia.com/gpu") == "z"
    inv.delete("DeviceClass", "", "z")
    assert inv.class_for_extended_resource("nvidia.com/gpu") == "a"
    assert inv.class_for_extended_resource("deviceclass.resource.kubernetes.io/b") == "b"
    assert inv.class_for_extended_resource("example.com/none") is None
