"""Whatever slices and claims say, the answer is an allocation or a refusal: never a crash, never a hang."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from capstan.allocation import Allocation, Inventory, NodeView, Refusal, allocate
from capstan.api.resource import DeviceClass, ResourceClaim, ResourceSlice

N1 = NodeView("n1", {"zone": "a"})
POLICY = st.sampled_from(["best-fit", "kubernetes"])
NAMES = st.sampled_from(["", "a", "b", "memory", "x.dev/a", "x.dev/", "/a", "y.dev/memory"])
AMOUNTS = st.sampled_from(["0", "1", "-1", "1Gi", "0.5", "1e3", "much", 3, 10**30])
ATTRIBUTES = st.sampled_from(
    [
        {},
        {"string": "s"},
        {"int": 1},
        {"bool": True},
        {"version": "1.0"},
        {"version": "1.0.0"},
        {"ints": []},
        {"strings": ["s"]},
    ]
)
DEVICES = st.fixed_dictionaries(
    {"name": st.sampled_from("abc")},
    optional={
        "attributes": st.dictionaries(NAMES, ATTRIBUTES, max_size=3),
        "capacity": st.dictionaries(
            NAMES,
            st.fixed_dictionaries(
                {"value": AMOUNTS},
                optional={
                    "requestPolicy": st.fixed_dictionaries(
                        {},
                        optional={
                            "default": AMOUNTS,
                            "validValues": st.lists(AMOUNTS, max_size=2),
                            "validRange": st.fixed_dictionaries(
                                {"min": AMOUNTS}, optional={"max": AMOUNTS, "step": AMOUNTS}
                            ),
                        },
                    )
                },
            ),
            max_size=2,
        ),
        "consumesCounters": st.lists(
            st.fixed_dictionaries(
                {
                    "counterSet": st.sampled_from("st"),
                    "counters": st.dictionaries(NAMES, st.fixed_dictionaries({"value": AMOUNTS}), max_size=2),
                }
            ),
            max_size=2,
        ),
        "allowMultipleAllocations": st.booleans(),
        "taints": st.lists(
            st.fixed_dictionaries({"key": NAMES, "effect": st.sampled_from(["", "NoSchedule", "Odd"])}), max_size=1
        ),
        "nodeName": st.sampled_from(["n1", "n2"]),
        "bindsToNode": st.booleans(),
    },
)
SLICES = st.fixed_dictionaries(
    {
        "driver": st.sampled_from(["x.dev", "y.dev", ""]),
        "pool": st.fixed_dictionaries(
            {"name": st.sampled_from("pq"), "generation": st.integers(0, 2), "resourceSliceCount": st.integers(0, 2)}
        ),
    },
    optional={
        "nodeName": st.sampled_from(["n1", "n2"]),
        "allNodes": st.booleans(),
        "perDeviceNodeSelection": st.booleans(),
        "nodeSelector": st.sampled_from(
            [{}, {"nodeSelectorTerms": [{"matchExpressions": [{"key": "zone", "operator": "Odd", "values": []}]}]}]
        ),
        "devices": st.lists(DEVICES, max_size=4),
        "sharedCounters": st.lists(
            st.fixed_dictionaries(
                {
                    "name": st.sampled_from("st"),
                    "counters": st.dictionaries(NAMES, st.fixed_dictionaries({"value": AMOUNTS}), max_size=2),
                }
            ),
            max_size=2,
        ),
    },
)
REQUESTS = st.fixed_dictionaries(
    {"deviceClassName": st.sampled_from(["all", "none", ""])},
    optional={
        "count": st.sampled_from([-1, 0, 1, 2, 2**62]),
        "allocationMode": st.sampled_from(["All", "ExactCount", "Odd"]),
        "adminAccess": st.booleans(),
        "capacity": st.fixed_dictionaries({"requests": st.dictionaries(NAMES, AMOUNTS, max_size=2)}),
        "selectors": st.lists(
            st.sampled_from(
                [
                    {},
                    {"cel": {"expression": "true"}},
                    {"cel": {"expression": "device.capacity['x.dev'].a"}},
                    {"cel": {"expression": "(("}},
                ]
            ),
            max_size=1,
        ),
    },
)
CLAIMS = st.fixed_dictionaries(
    {
        "requests": st.lists(
            st.one_of(
                st.fixed_dictionaries({"name": st.sampled_from("rs"), "exactly": REQUESTS}),
                st.fixed_dictionaries(
                    {"name": st.sampled_from("rs"), "firstAvailable": st.lists(REQUESTS, max_size=2)}
                ),
            ),
            max_size=3,
        )
    },
    optional={
        "constraints": st.lists(
            st.sampled_from([{}, {"matchAttribute": "x.dev/a"}, {"distinctAttribute": "a", "requests": ["r", "zz"]}]),
            max_size=2,
        )
    },
)


@settings(max_examples=400, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(slices=st.lists(SLICES, max_size=3), claims=st.lists(CLAIMS, min_size=1, max_size=2), policy=POLICY)
def test_nonsense_is_answered(slices: list[Any], claims: list[Any], policy: Any) -> None:
    inv = Inventory()
    inv.upsert(msgspec.convert({"metadata": {"name": "all"}, "spec": {}}, DeviceClass))
    for number, spec in enumerate(slices):
        inv.upsert(msgspec.convert({"metadata": {"name": f"s{number}"}, "spec": spec}, ResourceSlice))
    wanted = [
        msgspec.convert({"metadata": {"name": f"c{n}", "namespace": "ns"}, "spec": {"devices": d}}, ResourceClaim)
        for n, d in enumerate(claims)
    ]
    answer = allocate(inv, wanted, N1, policy)
    assert isinstance(answer, (Allocation, Refusal))
    assert 0 <= inv.free("n1", "all") <= 12
    assert inv.capacity("n1", "all") >= 0
    before = inv.dump()
    if isinstance(answer, Allocation):
        mark = inv.mark()
        for key, held in answer.results.items():
            inv.assume(key, held)
        inv.rollback(mark)
    assert inv.dump() == before
    inv.problems()


@pytest.mark.parametrize("policy", ["best-fit", "kubernetes"])
@pytest.mark.parametrize("steps", [1, 3])
def test_an_exhausted_budget_is_a_verdict_of_its_own(make: Any, policy: Any, steps: int) -> None:
    inv = make.inventory(make.slice([make.gpu(f"g{i}") for i in range(8)]))
    answer = allocate(inv, [make.claim("c", make.request(count=8))], N1, policy, budget=steps)
    assert isinstance(answer, Refusal)
    assert answer.reason == "BudgetExhausted"
    assert f"after {steps + 1} steps" in answer.message


@pytest.mark.parametrize("policy", ["best-fit", "kubernetes"])
def test_alternatives_that_take_all_devices_are_counted_as_steps(make: Any, policy: Any) -> None:
    """Twelve requests with two ways each, every one possible, and a last one that never is."""
    classes = [make.device_class(f"c{i}", f"device.attributes['gpu.nvidia.com'].index == {i}") for i in range(12)]
    inv = make.inventory(make.slice([make.gpu(f"g{i}", index=i) for i in range(12)]), *classes)

    def way(name: str, number: int) -> dict[str, Any]:
        return {"name": name, "deviceClassName": f"c{number}", "allocationMode": "All"}

    requests = [{"name": f"r{i}", "firstAvailable": [way("x", i), way("y", i)]} for i in range(12)]
    answer = allocate(inv, [make.claim("c", *requests, make.request("last", "c0"))], N1, policy)
    assert isinstance(answer, Refusal)
    assert answer.reason == "NoCombination"
    assert answer.steps < 100


@pytest.mark.parametrize("policy", ["best-fit", "kubernetes"])
def test_a_pod_may_not_ask_for_more_than_a_search_can_hold(make: Any, policy: Any) -> None:
    inv = make.inventory(make.slice([make.gpu(f"g{i}") for i in range(700)]))
    many = [make.claim(f"c{i}", make.request(count=32)) for i in range(20)]
    assert len(make.devices(allocate(inv, many[:12], N1, policy))) == 384
    refused = allocate(inv, many, N1, policy)
    assert isinstance(refused, Refusal)
    assert refused.reason == "TooManyDevices"


def nodes_with_pairs(make: Any) -> Inventory:
    gpus = [make.gpu(f"gpu-{i}", pcie=f"p{i}") for i in range(8)]
    nics = [
        {"name": f"nic-{i}", "attributes": make.attributes(type="nic", pcie=f"p{0 if i == 3 else i}")} for i in range(8)
    ]
    return make.inventory(  # type: ignore[no-any-return]
        make.slice(gpus + nics),
        make.device_class("gpu", "device.attributes['gpu.nvidia.com'].type == 'gpu'"),
        make.device_class("nic", "device.attributes['gpu.nvidia.com'].type == 'nic'"),
    )


@pytest.mark.parametrize("policy", ["best-fit", "kubernetes"])
def test_hopeless_claims_are_refuted_in_few_steps(make: Any, policy: Any) -> None:
    """Each of these takes exponentially many steps without look-ahead and symmetry (kubernetes #131730)."""
    root = "resource.kubernetes.io/pcieRoot"
    pairs = make.claim(
        "pairs",
        *[make.request(f"{kind}-{i}", kind) for kind in ("gpu", "nic") for i in range(8)],
        constraints=[{"requests": [f"gpu-{i}", f"nic-{i}"], "matchAttribute": root} for i in range(8)],
    )
    colors = make.inventory(make.slice([make.gpu(f"g{i}", color=f"c{i % 9}") for i in range(60)]))
    distinct = make.claim(
        "distinct",
        *[make.request(f"r{i}") for i in range(10)],
        constraints=[{"distinctAttribute": "gpu.nvidia.com/color"}],
    )
    thirds = [
        {"name": f"g{g}-{k}", "consumesCounters": [{"counterSet": f"s{g}", "counters": {"m": {"value": 3}}}]}
        for g in range(6)
        for k in range(7)
    ]
    packed = make.inventory(make.slice(thirds, counters={f"s{g}": {"m": 7} for g in range(6)}))
    for inv, claim in (
        (nodes_with_pairs(make), pairs),
        (colors, distinct),
        (packed, make.claim("packed", make.request(count=13))),
    ):
        answer = allocate(inv, [claim], N1, policy)
        assert isinstance(answer, Refusal)
        assert answer.reason == "NoCombination"
        assert answer.steps < 150
