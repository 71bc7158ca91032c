"""Counters that are consumed as a claim asks (KEP-5941), and pools whose partitions have types (KEP-4815)."""

from __future__ import annotations

from typing import Any

import pytest

from capstan.allocation import Allocation, Features, NodeView, Refusal, allocate
from capstan.api.resource import CounterSetConsumption

N1 = NodeView("n1")
ON = Features(shared_consumable_capacity=True)
POLICY = {"default": "1G", "validRange": {"min": "1M", "max": "60G", "step": "1M"}}


def function(name: str, port: str = "port-0", **more: Any) -> dict[str, Any]:
    """A virtual function of a network port: the bandwidth it takes from the port is what its claim asks for."""
    drawn = {"counterSet": port, "counters": {"bandwidth": {"valueFrom": {"capacityName": "bandwidth"}}}}
    return {"name": name, "consumesCounters": [drawn], **more}


def port(make: Any, *devices: dict[str, Any], policy: dict[str, Any] | None = POLICY, **more: Any) -> Any:
    counters = [{"name": "port-0", "counters": {"bandwidth": {"value": "100G", "requestPolicy": policy}}}]
    return make.slice(devices or [function(f"vf-{number}") for number in range(3)], sharedCounters=counters, **more)


def wanting(make: Any, name: str, amount: str | None, **more: Any) -> Any:
    capacity = {} if amount is None else {"capacity": {"requests": {f"{make.DRIVER}/bandwidth": amount}}}
    return make.claim(name, make.request(**capacity, **more))


def take(inv: Any, claim: Any, policy: Any = "kubernetes", features: Features = ON) -> Any:
    answer = allocate(inv, [claim], N1, policy, features=features)
    if isinstance(answer, Allocation):
        inv.assume(claim.key, answer.results[claim.key])
    return answer


def counters_of(answer: Any) -> list[CounterSetConsumption]:
    (held,) = answer.results.values()
    return held.devices.results[0].consumed_counters


@pytest.mark.parametrize("policy", ["best-fit", "kubernetes"])
def test_a_counter_is_shared_by_what_claims_ask_for(make: Any, policy: Any) -> None:
    inv = make.inventory(port(make))
    first = take(inv, wanting(make, "a", "60G"), policy)
    assert counters_of(first) == [CounterSetConsumption("port-0", {"bandwidth": "60G"})]
    refused = take(inv, wanting(make, "b", "50G"), policy)
    assert isinstance(refused, Refusal) and refused.reason == "NoCombination"
    assert isinstance(take(inv, wanting(make, "c", "40G"), policy), Allocation)
    inv.release(("ns", "a"))
    assert isinstance(take(inv, wanting(make, "d", "50G"), policy), Allocation)


@pytest.mark.parametrize(
    ("policy", "asked", "taken"),
    [
        (POLICY, None, "1G"),
        (POLICY, "10", "1M"),
        (POLICY, "1500k", "2M"),
        (POLICY, "61G", None),
        (None, None, "100G"),
        (None, "7", "7"),
        (None, "101G", None),
        ({"validValues": ["10G", "40G"]}, "11G", "40G"),
        ({"validValues": ["10G", "40G"]}, "41G", None),
    ],
)
def test_the_policy_of_the_counter_decides_what_is_taken(make: Any, policy: Any, asked: Any, taken: Any) -> None:
    answer = take(make.inventory(port(make, policy=policy)), wanting(make, "a", asked))
    if taken is None:
        assert isinstance(answer, Refusal) and "without the capacity asked for" in answer.message
    else:
        assert counters_of(answer) == [CounterSetConsumption("port-0", {"bandwidth": taken})]


def test_devices_of_one_claim_draw_together(make: Any) -> None:
    inv = make.inventory(port(make))
    assert isinstance(take(inv, wanting(make, "a", "50G", count=2)), Allocation)
    inv.release(("ns", "a"))
    assert isinstance(take(inv, wanting(make, "b", "34G", count=3)), Refusal)


def test_fixed_and_requested_consumption_add_up(make: Any) -> None:
    fixed = {"name": "pf", "consumesCounters": [{"counterSet": "port-0", "counters": {"bandwidth": {"value": "70G"}}}]}
    inv = make.inventory(port(make, function("vf-0"), fixed))
    assert isinstance(take(inv, wanting(make, "a", "40G")), Allocation)
    assert isinstance(take(inv, make.claim("b")), Refusal), "70G are not left"


def test_shares_of_a_device_each_draw_and_take_the_rest_once(make: Any) -> None:
    drawn = {"bandwidth": {"valueFrom": {"capacityName": "bandwidth"}}, "slots": {"value": 1}}
    device = {"name": "vf", "allowMultipleAllocations": True}
    device["consumesCounters"] = [{"counterSet": "port-0", "counters": drawn}]  # type: ignore[assignment]
    counters = {"bandwidth": {"value": "100G"}, "slots": {"value": 1}}
    facts = make.slice([device], sharedCounters=[{"name": "port-0", "counters": counters}])
    inv = make.inventory(facts)
    answers = [take(inv, wanting(make, name, "40G")) for name in "abc"]
    assert [isinstance(answer, Allocation) for answer in answers] == [True, True, False]
    inv.release(("ns", "a"))
    assert inv.left((make.DRIVER, "n1"))["port-0"] == {"bandwidth": 60 * 10**9, "slots": 0}
    inv.release(("ns", "b"))
    assert inv.left((make.DRIVER, "n1"))["port-0"] == {"bandwidth": 100 * 10**9, "slots": 1}


def test_an_allocation_counts_what_it_took_whatever_the_slice_says_later(make: Any) -> None:
    inv = make.inventory(port(make))
    take(inv, wanting(make, "a", "60G"))
    inv.upsert(port(make, function("vf-0"), function("vf-1"), policy={"default": "5G"}, generation=2))
    assert isinstance(take(inv, wanting(make, "b", "41G")), Refusal)
    inv.upsert(port(make, function("vf-1"), generation=3))
    assert isinstance(take(inv, wanting(make, "b", "41G")), Refusal), "vf-0 has vanished, its claim has not"
    assert isinstance(take(inv, wanting(make, "b", "40G")), Allocation)


def test_the_order_in_which_claims_and_slices_are_seen_changes_nothing(make: Any) -> None:
    inv = make.inventory(port(make))
    claim = wanting(make, "a", "60G")
    answer = take(inv, claim)
    claim.status.allocation = answer.results[claim.key]
    late = make.inventory(claim, port(make))
    assert isinstance(take(late, wanting(make, "b", "41G")), Refusal)
    assert isinstance(take(late, wanting(make, "b", "40G")), Allocation)


def test_without_the_gate_such_counters_cost_nothing(make: Any) -> None:
    inv = make.inventory(port(make))
    for name in "abc":
        answer = take(inv, make.claim(name), features=Features())
        assert isinstance(answer, Allocation)
        assert counters_of(answer) == []


@pytest.mark.parametrize(
    ("counter", "message"),
    [
        ({"value": 1, "valueFrom": {"capacityName": "bandwidth"}}, "by neither value nor valueFrom alone"),
        ({"valueFrom": {}}, "by neither value nor valueFrom alone"),
    ],
)
def test_a_counter_is_consumed_by_value_or_on_request(make: Any, counter: Any, message: str) -> None:
    device = function("vf-0")
    device["consumesCounters"][0]["counters"]["bandwidth"] = counter
    inv = make.inventory(port(make, device))
    assert message in inv.problems()[0].reason


def partition(name: str, profile: str | None, slots: int) -> dict[str, Any]:
    consumes = [{"counterSet": "gpu", "counters": {"slots": {"value": slots}}}]
    attributes = {} if profile is None else {"profile": {"string": profile}}
    return {"name": name, "attributes": attributes, "consumesCounters": consumes}


@pytest.mark.parametrize(
    ("devices", "problem"),
    [
        ([partition("a", "half", 1), partition("b", "half", 1), partition("c", "full", 2), {"name": "d"}], None),
        ([partition("a", "half", 1), partition("b", None, 1)], "b has no string attribute gpu.nvidia.com/profile"),
        ([partition("a", "half", 1), partition("b", "half", 2)], "type half consume different counters"),
    ],
)
def test_partitions_of_one_type_cost_the_same(make: Any, devices: Any, problem: str | None) -> None:
    spec = {"partitionTypeAttribute": f"{make.DRIVER}/profile"}
    typed = make.slice(devices, counters={"gpu": {"slots": 2}}, **spec)
    assert make.inventory(typed).problems() == [], "the gate is off"
    inv = make.inventory(typed, features=Features(partition_types=True))
    found = [each.reason for each in inv.problems()]
    assert found == [] if problem is None else problem in found[0]
