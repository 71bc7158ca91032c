"""What a claim asks for is what it gets, or a refusal that says why in numbers."""

from __future__ import annotations

from typing import Any

import pytest

from capstan.allocation import Allocation, Features, NodeView, Refusal, allocate

N1 = NodeView("n1", {})
POLICIES = ("best-fit", "kubernetes")
POLICY = pytest.mark.parametrize("policy", POLICIES)


@POLICY
def test_a_request_gets_a_device_of_its_class_on_the_node(make: Any, policy: Any) -> None:
    inv = make.inventory(make.slice([make.gpu("gpu-0")]), make.slice([make.gpu("gpu-1")], node="n2"))
    answer = allocate(inv, [make.claim()], N1, policy)
    assert isinstance(answer, Allocation)
    held = answer.results["ns", "c"]
    assert [(r.request, r.driver, r.pool, r.device) for r in held.devices.results] == [
        ("gpu", "gpu.nvidia.com", "n1", "gpu-0")
    ]
    assert held.node_selector is not None
    assert held.node_selector.matches("n1", {})
    assert not held.node_selector.matches("n2", {})


@POLICY
def test_claims_of_one_pod_never_share_a_device(make: Any, policy: Any) -> None:
    inv = make.inventory(make.slice([make.gpu("gpu-0"), make.gpu("gpu-1")]))
    answer = allocate(inv, [make.claim("a"), make.claim("b")], N1, policy)
    assert sorted(make.devices(answer)) == ["gpu-0", "gpu-1"]
    refused = allocate(inv, [make.claim("a"), make.claim("b"), make.claim("c")], N1, policy)
    assert isinstance(refused, Refusal)
    assert refused.reason == "NoCombination"


def test_what_is_assumed_is_in_use_until_released(make: Any) -> None:
    inv = make.inventory(make.slice([make.gpu("gpu-0")]))
    first = allocate(inv, [make.claim("a")], N1)
    assert isinstance(first, Allocation)
    inv.assume(("ns", "a"), first.results["ns", "a"])
    refused = allocate(inv, [make.claim("b")], N1)
    assert isinstance(refused, Refusal)
    assert (refused.reason, refused.claim, refused.request) == ("DevicesInUse", ("ns", "b"), "gpu")
    assert "needs 1 device of the class gpu.nvidia.com; on the node n1 1 match, 1 in use" in refused.message
    inv.release(("ns", "a"))
    assert make.devices(allocate(inv, [make.claim("b")], N1)) == ["gpu-0"]


@POLICY
def test_selectors_of_class_and_request_must_all_hold(make: Any, policy: Any) -> None:
    inv = make.inventory(make.slice([make.gpu(f"gpu-{i}", index=i) for i in range(4)]))
    expression = "device.attributes['gpu.nvidia.com'].index >= 2"
    answer = allocate(inv, [make.claim("c", make.request("gpu", make.DRIVER, expression, count=2))], N1, policy)
    assert sorted(make.devices(answer)) == ["gpu-2", "gpu-3"]


def test_an_expression_that_does_not_compile_is_named_with_its_position(make: Any) -> None:
    inv = make.inventory(make.slice([make.gpu("gpu-0")]))
    refused = allocate(inv, [make.claim("c", make.request("gpu", make.DRIVER, "device.drive == 'x'"))], N1)
    assert isinstance(refused, Refusal)
    assert (refused.reason, refused.claim, refused.request) == ("InvalidSelector", ("ns", "c"), "gpu")
    assert "device.drive" in refused.message


@POLICY
def test_a_selector_that_fails_on_the_only_devices_is_the_reason(make: Any, policy: Any) -> None:
    inv = make.inventory(make.slice([make.gpu("gpu-0")]))
    expression = "device.attributes['gpu.nvidia.com'].typo == 1"
    refused = allocate(inv, [make.claim("c", make.request("gpu", make.DRIVER, expression))], N1, policy)
    assert isinstance(refused, Refusal)
    assert "selector" in refused.message


def test_only_best_fit_passes_over_a_device_on_which_a_selector_fails(make: Any) -> None:
    inv = make.inventory(make.slice([make.gpu("gpu-0"), make.gpu("gpu-1", index=1)]))
    wanted = make.claim("c", make.request("gpu", make.DRIVER, "device.attributes['gpu.nvidia.com'].index == 1"))
    assert make.devices(allocate(inv, [wanted], N1)) == ["gpu-1"]
    refused = allocate(inv, [wanted], N1, "kubernetes")
    assert isinstance(refused, Refusal)
    assert refused.reason == "SelectorFailed"


def test_a_failing_selector_ends_the_attempt_of_kubernetes_before_anything_else_is_looked_at(make: Any) -> None:
    """Selectors come before constraints, and the first request before a later one that can never be satisfied."""
    inv = make.inventory(make.slice([make.gpu("gpu-0", index=0), make.gpu("gpu-1")]))
    index = make.request("second", make.DRIVER, "device.attributes['gpu.nvidia.com'].index == 1")
    same = [{"matchAttribute": "gpu.nvidia.com/index"}]
    constrained = make.claim("c", make.request("first"), index, constraints=same)
    assert allocate(inv, [constrained], N1, "kubernetes").reason == "SelectorFailed"  # type: ignore[union-attr]
    hopeless = make.claim("c", index, make.request("third", count=9))
    assert allocate(inv, [hopeless], N1, "kubernetes").reason == "SelectorFailed"  # type: ignore[union-attr]


@POLICY
def test_all_takes_every_matching_device_or_none(make: Any, policy: Any) -> None:
    inv = make.inventory(make.slice([make.gpu("gpu-0"), make.gpu("gpu-1")]))
    everything = make.claim("all", make.request(allocationMode="All"))
    answer = allocate(inv, [everything], N1, policy)
    assert make.devices(answer) == ["gpu-0", "gpu-1"]
    one = allocate(inv, [make.claim("one")], N1, policy)
    inv.assume(("ns", "one"), one.results["ns", "one"])  # type: ignore[union-attr]
    assert isinstance(allocate(inv, [everything], N1, policy), Refusal)


@POLICY
def test_first_available_takes_the_first_that_fits(make: Any, policy: Any) -> None:
    inv = make.inventory(make.slice([make.gpu("gpu-0", "40Gi"), make.gpu("gpu-1", "40Gi")]))
    options = [
        {"name": "big", "deviceClassName": make.DRIVER, "capacity": {"requests": {"memory": "80Gi"}}},
        {"name": "two", "deviceClassName": make.DRIVER, "count": 2},
        {"name": "one", "deviceClassName": make.DRIVER},
    ]
    wanted = make.claim("c", {"name": "gpu", "firstAvailable": options})
    answer = allocate(inv, [wanted], N1, policy)
    assert isinstance(answer, Allocation)
    assert [r.request for r in answer.results["ns", "c"].devices.results] == ["gpu/two", "gpu/two"]


@POLICY
def test_a_later_request_reopens_the_choice_of_an_earlier_one(make: Any, policy: Any) -> None:
    inv = make.inventory(make.slice([make.gpu("gpu-0"), make.gpu("gpu-1")]))
    options = [
        {"name": "two", "deviceClassName": make.DRIVER, "count": 2},
        {"name": "one", "deviceClassName": make.DRIVER},
    ]
    answer = allocate(inv, [make.claim("c", {"name": "many", "firstAvailable": options}, make.request())], N1, policy)
    assert isinstance(answer, Allocation)
    assert [r.request for r in answer.results["ns", "c"].devices.results] == ["many/one", "gpu"]


@POLICY
def test_match_attribute_keeps_devices_together_and_distinct_apart(make: Any, policy: Any) -> None:
    devices = [make.gpu(f"gpu-{i}", numa=i % 2, uuid=f"u{i}") for i in range(4)]
    inv = make.inventory(make.slice(devices))
    same = make.claim("c", make.request(count=2), constraints=[{"matchAttribute": "resource.kubernetes.io/numaNode"}])
    assert make.devices(allocate(inv, [same], N1, policy)) in (["gpu-0", "gpu-2"], ["gpu-1", "gpu-3"])
    apart = make.claim(
        "c", make.request(count=2), constraints=[{"distinctAttribute": "resource.kubernetes.io/numaNode"}]
    )
    assert make.devices(allocate(inv, [apart], N1, policy)) == ["gpu-0", "gpu-1"]
    three = make.claim(
        "c", make.request(count=3), constraints=[{"distinctAttribute": "resource.kubernetes.io/numaNode"}]
    )
    assert isinstance(allocate(inv, [three], N1, policy), Refusal)


@POLICY
def test_a_distinct_attribute_compares_all_devices_of_a_request(make: Any, policy: Any) -> None:
    """With values a, b, a the third device equals the first; comparing it with the second only would let it pass."""
    inv = make.inventory(make.slice([make.gpu(f"gpu-{i}", color=c) for i, c in enumerate("aba")]))
    wanted = make.claim("c", make.request(count=3), constraints=[{"distinctAttribute": "gpu.nvidia.com/color"}])
    assert isinstance(allocate(inv, [wanted], N1, policy), Refusal)


@POLICY
def test_list_attributes_match_if_they_share_a_value_and_are_restored_on_the_way_back(make: Any, policy: Any) -> None:
    devices = [
        make.gpu("a", groups=["x", "y"]),
        make.gpu("b", groups=["x"]),
        make.gpu("c", groups=["y"]),
        make.gpu("d", groups=["y", "z"]),
    ]
    inv = make.inventory(make.slice(devices))
    wanted = make.claim("c", make.request(count=3), constraints=[{"matchAttribute": "gpu.nvidia.com/groups"}])
    assert sorted(make.devices(allocate(inv, [wanted], N1, policy))) == ["a", "c", "d"]


def test_admin_access_sees_devices_in_use_and_takes_nothing(make: Any) -> None:
    inv = make.inventory(make.slice([make.gpu("gpu-0")]))
    one = allocate(inv, [make.claim("one")], N1)
    inv.assume(("ns", "one"), one.results["ns", "one"])  # type: ignore[union-attr]
    monitor = make.claim("monitor", make.request(adminAccess=True, allocationMode="All"))
    seen = allocate(inv, [monitor], N1)
    assert make.devices(seen) == ["gpu-0"]
    inv.assume(("ns", "monitor"), seen.results["ns", "monitor"])  # type: ignore[union-attr]
    inv.release(("ns", "one"))
    assert inv.free("n1", make.DRIVER) == 1


@POLICY
def test_untolerated_taints_keep_devices_away(make: Any, policy: Any) -> None:
    bad = make.gpu("gpu-0") | {"taints": [{"key": "gpu-lost", "effect": "NoSchedule"}]}
    inv = make.inventory(make.slice([bad, make.gpu("gpu-1") | {"taints": [{"key": "info", "effect": "None"}]}]))
    assert make.devices(allocate(inv, [make.claim()], N1, policy)) == ["gpu-1"]
    both = make.claim("c", make.request(count=2, tolerations=[{"key": "gpu-lost", "operator": "Exists"}]))
    assert sorted(make.devices(allocate(inv, [both], N1, policy))) == ["gpu-0", "gpu-1"]
    assert inv.free("n1", make.DRIVER) == 1
    assert inv.capacity("n1", make.DRIVER) == 2


def test_a_taint_rule_covers_what_its_selector_names(make: Any) -> None:
    inv = make.inventory(make.slice([make.gpu("gpu-0"), make.gpu("gpu-1")]))
    inv.upsert(make.taint_rule("one", {"driver": make.DRIVER, "device": "gpu-0"}))
    assert make.devices(allocate(inv, [make.claim()], N1)) == ["gpu-1"]
    inv.upsert(make.taint_rule("none", None))
    assert inv.free("n1", make.DRIVER) == 1
    inv.upsert(make.taint_rule("all", {}))
    assert inv.free("n1", make.DRIVER) == 0
    inv.delete("DeviceTaintRule", "", "all")
    inv.delete("DeviceTaintRule", "", "one")
    assert inv.free("n1", make.DRIVER) == 2


def test_configs_of_the_class_come_before_those_of_the_claim(make: Any) -> None:
    opaque = {"driver": make.DRIVER, "parameters": {"kind": "GpuConfig"}}
    inv = make.inventory(make.slice([make.gpu("gpu-0"), make.gpu("gpu-1")]))
    inv.upsert(make.device_class("tuned", config=[{"opaque": opaque}]))
    wanted = make.claim(
        "c",
        make.request("a", "tuned"),
        make.request("b"),
        config=[{"requests": ["b"], "opaque": opaque}, {"requests": ["a", "b"], "opaque": opaque}, {"requests": ["x"]}],
    )
    answer = allocate(inv, [wanted], N1)
    assert isinstance(answer, Allocation)
    config = answer.results["ns", "c"].devices.config
    assert [(c.source, c.requests) for c in config] == [("FromClass", ["a"]), ("FromClaim", ["b"]), ("FromClaim", [])]


@POLICY
def test_more_than_32_devices_in_a_claim_are_refused_at_once(make: Any, policy: Any) -> None:
    inv = make.inventory(make.slice([make.gpu(f"gpu-{i}") for i in range(64)]))
    refused = allocate(inv, [make.claim("c", make.request(count=33))], N1, policy)
    assert isinstance(refused, Refusal)
    assert refused.reason == "TooManyDevices"
    assert len(make.devices(allocate(inv, [make.claim("c", make.request(count=32))], N1, policy))) == 32


def test_refusals_name_what_is_unknown(make: Any) -> None:
    inv = make.inventory(make.slice([make.gpu("gpu-0")]))
    for wanted, reason in (
        (make.claim("c", make.request("r", "imex.nvidia.com")), "UnknownDeviceClass"),
        (make.claim("c", make.request("r", make.DRIVER, allocationMode="Some")), "InvalidClaim"),
        (make.claim("c", make.request("r"), constraints=[{"requests": ["r"]}]), "InvalidClaim"),
        (make.claim("c", {"name": "r"}), "InvalidClaim"),
    ):
        refused = allocate(inv, [wanted], N1)
        assert isinstance(refused, Refusal)
        assert refused.reason == reason
        assert "ns/c" in refused.message


def test_gates_that_are_off_refuse_what_needs_them(make: Any) -> None:
    inv = make.inventory(make.slice([make.gpu("gpu-0")]))
    admin = make.claim("c", make.request(adminAccess=True))
    assert isinstance(allocate(inv, [admin], N1, features=Features(admin_access=False)), Refusal)
    listed = make.claim("c", {"name": "g", "firstAvailable": [{"name": "x", "deviceClassName": make.DRIVER}]})
    assert isinstance(allocate(inv, [listed], N1, features=Features(prioritized_list=False)), Refusal)
    sized = make.claim("c", make.request(capacity={"requests": {"memory": "1Gi"}}))
    off = allocate(inv, [sized], N1, features=Features(consumable_capacity=False))
    assert isinstance(off, Refusal)
    assert "DRAConsumableCapacity" in off.message


@POLICY
def test_without_consumable_capacity_a_shared_device_is_taken_whole(make: Any, policy: Any) -> None:
    inv = make.inventory(make.slice([make.shared("a"), make.shared("b")]))
    both = [make.claim("one"), make.claim("two")]
    answer = allocate(inv, both, N1, policy, features=Features(consumable_capacity=False))
    assert sorted(make.devices(answer)) == ["a", "b"]
    three = [*both, make.claim("three")]
    assert isinstance(allocate(inv, three, N1, policy, features=Features(consumable_capacity=False)), Refusal)


@POLICY
def test_without_partitions_all_devices_cannot_be_had_where_one_is_a_partition(make: Any, policy: Any) -> None:
    part = {"name": "p", "consumesCounters": [{"counterSet": "s", "counters": {"c": {"value": 1}}}]}
    inv = make.inventory(make.slice([make.gpu("a"), part], counters={"s": {"c": 1}}))
    off = Features(partitionable_devices=False)
    assert isinstance(
        allocate(inv, [make.claim("c", make.request(allocationMode="All"))], N1, policy, features=off), Refusal
    )
    assert make.devices(allocate(inv, [make.claim()], N1, policy, features=off)) == ["a"]


def test_an_allocated_claim_must_be_usable_on_the_node(make: Any) -> None:
    inv = make.inventory(make.slice([make.gpu("gpu-0")]), make.slice([make.gpu("gpu-0")], node="n2"))
    answer = allocate(inv, [make.claim()], N1)
    inv.assume(("ns", "c"), answer.results["ns", "c"])  # type: ignore[union-attr]
    again = allocate(inv, [make.claim()], N1)
    assert isinstance(again, Allocation)
    assert again.results == {}
    elsewhere = allocate(inv, [make.claim()], NodeView("n2"))
    assert isinstance(elsewhere, Refusal)
    assert elsewhere.reason == "AllocatedElsewhere"


@pytest.mark.parametrize("policy", ["best-fit", "kubernetes"])
def test_claims_that_need_more_devices_together_than_there_are_need_no_search(make: Any, policy: Any) -> None:
    inv = make.inventory(make.slice([make.gpu(f"g{number}") for number in range(8)]))
    claims = [make.claim(name, make.request(count=count)) for name, count in (("a", 4), ("b", 5))]
    answer = allocate(inv, claims, N1, policy)
    assert isinstance(answer, Refusal)
    assert (answer.reason, answer.steps) == ("NoCombination", 0)
    assert "claims ns/a, ns/b: their requests need 9 devices together, 8 are free on the node n1" in answer.message
    assert isinstance(allocate(inv, [claims[0], make.claim("c", make.request(count=4))], N1, policy), Allocation)
