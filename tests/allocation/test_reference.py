"""The policy `kubernetes` answers what kube-scheduler's allocator answers: the same devices in the same order, or none.

Random clusters mix the features; reference.py says what is expected. What differed once is a named case below.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from fractions import Fraction
from typing import Any

import msgspec
from hypothesis import Phase, given, settings
from hypothesis import strategies as st
from tests.allocation.reference import GATES, Allocator, Failure, Object

from capstan.allocation import Allocation, Features, Inventory, NodeView, Policy, Refusal, allocate
from capstan.api import quantity
from capstan.api.feature_gates import FeatureGates
from capstan.api.resource import DeviceClass, ResourceClaim, ResourceSlice

EXAMPLES = int(os.environ.get("PROPERTY_EXAMPLES", "150"))
NODE = NodeView("n1", {"zone": "a"})
RED = "device.attributes['x.dev'].color == 'red'"
BIG = "device.attributes['x.dev'].size > 1"
DRIVER = "device.driver == 'x.dev'"
WRONG = "device.nonsense == 1"
COLORED = "'color' in device.attributes['x.dev']"
COLOR = "device.attributes['x.dev'].color"


def evaluate(expression: str, driver: str, device: Object) -> Any:
    attributes = device.get("attributes", {}) if driver == "x.dev" else {}
    if expression == DRIVER:
        return driver == "x.dev"
    if expression == "true":
        return True
    if expression == COLORED:
        return "color" in attributes
    name = "size" if expression == BIG else "color"
    if expression == WRONG or name not in attributes:
        raise Failure(expression)
    (content,) = attributes[name].values()
    return {RED: content == "red", BIG: name == "size" and content > 1, COLOR: content}[expression]


# --- what clusters and claims look like


def rarely(draw: st.DrawFn, times: int = 8) -> bool:
    return draw(st.integers(0, times - 1)) == times - 1


@st.composite
def devices(
    draw: st.DrawFn, number: int, counters: Sequence[str], per_device: bool, partitions: bool
) -> dict[str, Any]:
    device: dict[str, Any] = {"name": f"d{number}", "attributes": {}}
    for name, content in (
        ("color", st.fixed_dictionaries({"string": st.sampled_from(["red", "blue"])})),
        ("size", st.fixed_dictionaries({"int": st.integers(1, 2)})),
        (
            "groups",
            st.one_of(
                st.fixed_dictionaries({"string": st.sampled_from("xy")}),
                st.fixed_dictionaries(
                    {"strings": st.lists(st.sampled_from("xyz"), min_size=1, max_size=2, unique=True)}
                ),
            ),
        ),
    ):
        if not rarely(draw, 5):
            device["attributes"][name] = draw(content)
    if draw(st.booleans()):
        device["capacity"] = {"mem": {"value": "4"}}
        policies: list[Any] = [
            {"default": "1"},
            {"default": "2", "validValues": ["2", "3"]},
            {"default": "1", "validRange": {"min": "1", "max": "3", "step": "2"}},
        ]
        policy = draw(st.sampled_from([None, *policies]))
        if policy:
            device["capacity"]["mem"]["requestPolicy"] = policy
    if draw(st.booleans()):
        device["allowMultipleAllocations"] = True
    if counters and draw(st.booleans()):
        device["consumesCounters"] = [
            {"counterSet": name, "counters": {"c": {"value": str(draw(st.integers(0, 2)))}}}
            for name in draw(st.lists(st.sampled_from(counters), min_size=1, max_size=2, unique=True))
        ]
        for taken in device["consumesCounters"]:
            if rarely(draw):
                taken["compatibilityGroups"] = [draw(st.sampled_from(["mig", "mps"]))]
            if partitions and rarely(draw, 30):
                taken["counters"]["missing"] = {"value": "1"}
    if rarely(draw, 5):
        device["taints"] = [{"key": "bad", "effect": draw(st.sampled_from(["NoSchedule", "NoExecute", "None"]))}]
    if rarely(draw):
        device |= {"bindingConditions": ["ready"], "bindingFailureConditions": ["failed"]}
        device["bindsToNode"] = draw(st.booleans())
    if per_device:
        device |= draw(PLACES)
    return device


def zone(value: str) -> dict[str, Any]:
    return {"matchExpressions": [{"key": "zone", "operator": "In", "values": [value]}]}


PLACES = st.sampled_from(
    [
        {"nodeName": "n1"},
        {"nodeName": "n2"},
        {"allNodes": True},
        {"nodeSelector": {"nodeSelectorTerms": [zone("a")]}},
        {"nodeSelector": {"nodeSelectorTerms": [zone("b")]}},
    ]
)


@st.composite
def clusters(draw: st.DrawFn, partitions: bool) -> list[dict[str, Any]]:
    """Slices of a few pools. Without `partitions`, nothing is wrong with counters and no device names its node."""
    slices: list[dict[str, Any]] = []
    number = 0
    for driver, pool in draw(
        st.lists(
            st.tuples(st.sampled_from(["x.dev", "x.dev", "y.dev"]), st.sampled_from("pq")),
            min_size=1,
            max_size=3,
            unique=True,
        )
    ):
        sets = draw(st.sampled_from([[], [], ["s"], ["s", "t"]]))
        declared = [{"name": name, "counters": {"c": {"value": str(draw(st.integers(0, 3)))}}} for name in sets]
        local = draw(st.booleans())
        count = draw(st.integers(1, 2))
        entries = []
        for _ in range(count):
            per_device = partitions and not local and rarely(draw, 3)
            place = {"nodeName": "n1"} if local else {"perDeviceNodeSelection": True} if per_device else draw(PLACES)
            offered = []
            for _ in range(draw(st.integers(0, 3))):
                offered.append(draw(devices(number, sets, per_device, partitions)))
                number += 0 if rarely(draw, 40) else 1
            entries.append({**place, "devices": offered})
        if declared:
            beside = draw(st.booleans()) and not entries[0].get("perDeviceNodeSelection")
            if beside:
                entries[0]["sharedCounters"] = declared
            else:
                entries.append({**({"nodeName": "n1"} if local else {"allNodes": True}), "sharedCounters": declared})
        for entry in entries:
            generation = 2 if not declared and rarely(draw, 20) else 1
            total = draw(st.integers(1, 3)) if rarely(draw, 20) else len(entries)
            body = {"driver": driver, "pool": {"name": pool, "generation": generation, "resourceSliceCount": total}}
            name = f"{draw(st.integers(0, 9))}-{len(slices)}"
            slices.append({"metadata": {"name": name}, "spec": body | entry})
    return slices


@st.composite
def specs(draw: st.DrawFn, exactly: bool) -> dict[str, Any]:
    spec: dict[str, Any] = {"deviceClassName": draw(st.sampled_from(["x", "any", "any", "red"]))}
    if rarely(draw, 40):
        spec["deviceClassName"] = "missing"
    expressions = draw(st.lists(st.sampled_from([RED, BIG, DRIVER, "true"]), max_size=1))
    if rarely(draw, 30):
        expressions.append(WRONG)
    if expressions:
        spec["selectors"] = [{"cel": {"expression": e}} for e in expressions]
    if rarely(draw, 6):
        spec["allocationMode"] = "All"
    elif draw(st.booleans()):
        spec["count"] = draw(st.integers(1, 3))
    if rarely(draw, 4):
        spec["capacity"] = {"requests": {"x.dev/mem": str(draw(st.integers(1, 4)))}}
    if rarely(draw, 3):
        spec["tolerations"] = [draw(st.sampled_from([{"operator": "Exists"}, {"key": "bad", "operator": "Exists"}]))]
    if exactly and rarely(draw, 6):
        spec["adminAccess"] = True
    if rarely(draw):
        spec["selectors"] = [{"cel": {"expression": COLORED}}]
        spec["derivedAttributes"] = [{"name": "d.dev/color", "expression": COLOR}]
    return spec


@st.composite
def claims(draw: st.DrawFn) -> list[dict[str, Any]]:
    found = []
    for number in range(draw(st.integers(1, 2))):
        requests: list[dict[str, Any]] = []
        names = []
        for position in range(draw(st.integers(1, 3))):
            request: dict[str, Any] = {"name": f"r{position}"}
            names.append(request["name"])
            if rarely(draw, 3):
                options = [{"name": f"o{i}", **draw(specs(False))} for i in range(draw(st.integers(1, 3)))]
                names += [f"r{position}/{option['name']}" for option in options]
                request["firstAvailable"] = options
            else:
                request["exactly"] = draw(specs(True))
            requests.append(request)
        chosen = st.lists(st.sampled_from(names), max_size=2, unique=True)
        kinds = st.sampled_from(["matchAttribute", "matchAttribute", "distinctAttribute"])
        values = st.sampled_from(["x.dev/color", "x.dev/size", "x.dev/groups", "d.dev/color"])
        constraints = [{draw(kinds): draw(values), "requests": draw(chosen)} for _ in range(draw(st.integers(0, 2)))]
        config = [{"requests": draw(chosen), "opaque": {"driver": "x.dev"}} for _ in range(draw(st.integers(0, 1)))]
        devices = {"requests": requests, "constraints": constraints, "config": config}
        found.append({"metadata": {"name": f"c{number}", "namespace": "ns"}, "spec": {"devices": devices}})
    return found


CLASSES: dict[str, Any] = {
    "x": {"spec": {"selectors": [{"cel": {"expression": DRIVER}}], "config": [{"opaque": {"driver": "x.dev"}}]}},
    "any": {"spec": {}},
    "red": {"spec": {"selectors": [{"cel": {"expression": DRIVER}}, {"cel": {"expression": RED}}]}},
}


@st.composite
def held(draw: st.DrawFn, slices: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Results of claims that are allocated. Not of partitions with groups, which no allocator would mix."""
    results = []
    taken: set[tuple[str, str, str]] = set()
    for entry in slices:
        for device in entry["spec"].get("devices", []):
            key = (entry["spec"]["driver"], entry["spec"]["pool"]["name"], device["name"])
            if not rarely(draw, 5) or key in taken:
                continue
            taken.add(key)
            result = {"request": "r", "driver": key[0], "pool": key[1], "device": key[2]}
            if device.get("allowMultipleAllocations"):
                result["shareID"] = "1"
                if "capacity" in device:
                    result["consumedCapacity"] = {"mem": str(draw(st.integers(1, 4)))}
            results.append(result | ({"adminAccess": True} if rarely(draw, 5) else {}))
    return results


@st.composite
def gates(draw: st.DrawFn) -> frozenset[str]:
    """Mostly what is on by default; the alpha gates are tossed."""
    chosen = set(GATES)
    if rarely(draw, 4):
        chosen.discard(draw(st.sampled_from(sorted(GATES))))
    if draw(st.booleans()):
        chosen.add("DRADeviceCompatibilityGroups")
    return frozenset(chosen)


# --- the comparison


def expected(
    slices: Sequence[Object], wanted: Sequence[Object], taken: Sequence[Object], on: frozenset[str]
) -> list[Any] | str:
    """The allocations, "refused" or "error"."""
    try:
        allocator = Allocator(NODE.name, NODE.labels, slices, CLASSES, taken, evaluate, on)
        picks = allocator.allocate(wanted)
    except Failure:
        return "error"
    if picks is None:
        return "refused"
    return [allocator.allocation(claim, own) for claim, own in zip(wanted, picks, strict=True)]


def answered(
    slices: Sequence[Object], wanted: Sequence[Object], taken: Sequence[Object], on: frozenset[str], policy: Policy
) -> list[Any] | str:
    features = Features.under(FeatureGates(on | {"DRADerivedAttributes", "DRAListTypeAttributes"}))
    inventory = Inventory(features)
    for name, body in CLASSES.items():
        inventory.upsert(msgspec.convert({"metadata": {"name": name}, **body}, DeviceClass))
    for entry in slices:
        inventory.upsert(msgspec.convert(entry, ResourceSlice))
    for number, result in enumerate(taken):
        status = {"allocation": {"devices": {"results": [result]}}}
        body = {"metadata": {"name": f"held{number}", "namespace": "ns"}, "status": status}
        inventory.upsert(msgspec.convert(body, ResourceClaim))
    asked = [msgspec.convert(claim, ResourceClaim) for claim in wanted]
    answer = allocate(inventory, asked, NODE, policy)
    if not isinstance(answer, Allocation):
        assert answer.reason != "BudgetExhausted"
        return "error" if answer.is_error else "refused"
    return [plain(msgspec.to_builtins(answer.results[claim.key])) for claim in asked]


def plain(allocation: dict[str, Any]) -> dict[str, Any]:
    for result in allocation["devices"]["results"]:
        if "shareID" in result:
            result["shareID"] = True
        for name, amount in result.get("consumedCapacity", {}).items():
            result["consumedCapacity"][name] = Fraction(quantity.parse(amount))
    return allocation


@settings(max_examples=EXAMPLES, phases=(Phase.explicit, Phase.reuse, Phase.generate, Phase.shrink))
@given(st.data())
def test_every_combination_of_features_is_answered_as_kube_scheduler_does(data: st.DataObject) -> None:
    on = data.draw(gates(), label="gates")
    slices = data.draw(clusters("DRAPartitionableDevices" in on), label="slices")
    wanted = data.draw(claims(), label="claims")
    taken = data.draw(held(slices), label="held")
    right = expected(slices, wanted, taken, on)
    assert answered(slices, wanted, taken, on, "kubernetes") == right
    if isinstance(right, list) and WRONG not in str(wanted):
        assert isinstance(answered(slices, wanted, taken, on, "best-fit"), list), "what one finds the other finds, too"


# --- what differed once


def kubernetes(make: Any, inventory: Inventory, *wanted: Any, node: NodeView = NODE) -> list[str] | str:
    """The devices in order, or the reason of the refusal."""
    answer = allocate(inventory, wanted, node, "kubernetes")
    return list(make.devices(answer)) if isinstance(answer, Allocation) else answer.reason


def test_a_node_judges_a_pool_by_the_slices_it_sees(make: Any) -> None:
    """A driver that names its pool alike on every node is served; with a slice too few on one node, nobody else is
    kept waiting."""
    one = make.slice([make.gpu("gpu-0")], pool="gpus", name="1")
    two = make.slice([make.gpu("gpu-0")], pool="gpus", name="2", node="n2")
    three = make.slice([make.gpu("gpu-1")], pool="gpus", name="3", node="n3", count=2, generation=2)
    inventory = make.inventory(one, two, three)
    assert kubernetes(make, inventory, make.claim()) == ["gpu-0"]
    assert kubernetes(make, inventory, make.claim(), node=NodeView("n2")) == ["gpu-0"]
    everything = make.claim("c", make.request(allocationMode="All"))
    assert kubernetes(make, inventory, everything, node=NodeView("n3")) == "IncompletePool"


def test_slices_of_a_pool_go_by_name_and_pools_with_binding_conditions_last_where_they_are_seen(make: Any) -> None:
    waits = {"bindingConditions": ["ready"], "bindingFailureConditions": ["failed"]}
    inventory = make.inventory(
        make.slice([make.gpu("waits") | waits], pool="a", name="1", count=3),
        make.slice([make.gpu("ready")], pool="a", name="2", count=3),
        make.slice([make.gpu("far")], pool="a", name="3", node="n2", count=3),
        make.slice([make.gpu("other")], node=None, pool="b", allNodes=True),
    )
    two = make.claim("c", make.request(count=2))
    assert kubernetes(make, inventory, two) == ["other", "waits"]
    assert kubernetes(make, inventory, two, node=NodeView("n2")) == ["far", "other"]


def test_a_constraint_that_keeps_a_device_from_all_ends_the_attempt(make: Any) -> None:
    """kube-scheduler gives up at the first choice for `one`; best-fit finds the other."""
    inventory = make.inventory(
        make.slice(
            [
                make.gpu("a", color="red", kind="y"),
                make.gpu("b", color="blue", kind="y"),
                make.gpu("c", color="blue", kind="x"),
            ]
        )
    )
    blue = make.request("all", make.DRIVER, "device.attributes['gpu.nvidia.com'].kind == 'x'", allocationMode="All")
    wanted = make.claim("c", make.request("one"), blue, constraints=[{"matchAttribute": "gpu.nvidia.com/color"}])
    assert kubernetes(make, inventory, wanted) == "InvalidClaim"
    assert make.devices(allocate(inventory, [wanted], NODE)) == ["b", "c"]


def test_a_selector_is_not_evaluated_on_devices_that_the_attempt_has_taken(make: Any) -> None:
    inventory = make.inventory(make.slice([make.gpu("a"), make.gpu("b", index=1)]))
    index = make.request("second", make.DRIVER, "device.attributes['gpu.nvidia.com'].index == 1")
    assert kubernetes(make, inventory, make.claim("c", make.request("first"), index)) == ["a", "b"]


def test_an_alternative_that_is_not_reached_need_not_compile(make: Any) -> None:
    inventory = make.inventory(make.slice([make.gpu("a")]))
    options = [
        {"name": "good", "deviceClassName": make.DRIVER},
        {"name": "bad", "deviceClassName": make.DRIVER, "selectors": [{"cel": {"expression": "device.nonsense"}}]},
    ]
    wanted = make.claim("c", {"name": "r", "firstAvailable": options})
    assert kubernetes(make, inventory, wanted) == ["a"]
    refused = allocate(inventory, [wanted], NODE)
    assert isinstance(refused, Refusal)
    assert (refused.reason, refused.request) == ("InvalidSelector", "r/bad")


def test_selectors_come_before_the_node_of_a_device(make: Any) -> None:
    per_device = [make.gpu("far") | {"nodeName": "n2"}, make.gpu("near", index=1) | {"nodeName": "n1"}]
    inventory = make.inventory(make.slice(per_device, node=None, pool="p", perDeviceNodeSelection=True))
    wanted = make.claim("c", make.request("r", make.DRIVER, "device.attributes['gpu.nvidia.com'].index == 1"))
    assert kubernetes(make, inventory, wanted) == "SelectorFailed"
    assert make.devices(allocate(inventory, [wanted], NODE)) == ["near"]


def test_admin_access_to_a_shared_device_is_a_share_that_takes_nothing(make: Any) -> None:
    inventory = make.inventory(make.slice([make.shared("a", "4Gi")]))
    full = allocate(inventory, [make.claim("full")], NODE)
    assert isinstance(full, Allocation)
    inventory.assume(("ns", "full"), full.results["ns", "full"])
    monitor = make.claim("monitor", make.request("r", adminAccess=True), make.request("s", adminAccess=True))
    answer = allocate(inventory, [monitor], NODE, "kubernetes")
    assert isinstance(answer, Allocation)
    results = answer.results["ns", "monitor"].devices.results
    assert [r.consumed_capacity for r in results] == [{"memory": "4Gi"}, {"memory": "4Gi"}]
    assert len({r.share_id for r in results}) == 2
    inventory.assume(("ns", "monitor"), answer.results["ns", "monitor"])
    inventory.release(("ns", "full"))
    assert kubernetes(make, inventory, make.claim("next")) == ["a"]


def test_a_pool_with_an_overdrawn_counter_gives_no_more_partitions(make: Any) -> None:
    """A driver shrank the set of a partition that is in use; kube-scheduler then stops for the whole pool."""

    def part(name: str) -> dict[str, Any]:
        return {"name": name, "consumesCounters": [{"counterSet": name, "counters": {"c": {"value": 1}}}]}

    inventory = make.inventory(make.slice([part("s"), part("t")], counters={"s": {"c": 1}, "t": {"c": 1}}))
    first = allocate(inventory, [make.claim("first")], NODE, "kubernetes")
    assert isinstance(first, Allocation)
    inventory.assume(("ns", "first"), first.results["ns", "first"])
    inventory.upsert(make.slice([part("s"), part("t")], counters={"s": {"c": 0}, "t": {"c": 1}}))
    assert kubernetes(make, inventory, make.claim()) == "NoCombination"
    assert make.devices(allocate(inventory, [make.claim()], NODE)) == ["t"]


def test_counters_beside_devices_do_not_show_the_devices_to_other_nodes(make: Any) -> None:
    terms = {"nodeSelectorTerms": [zone("b")]}
    far = make.slice([make.gpu("far")], node=None, pool="p", counters={"s": {"c": 1}}, nodeSelector=terms)
    assert kubernetes(make, make.inventory(far), make.claim()) == "NoSuchDevices"
    assert kubernetes(make, make.inventory(far), make.claim(), node=NodeView("n2", {"zone": "b"})) == ["far"]
