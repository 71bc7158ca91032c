"""What newer Kubernetes versions add: compatibility groups (KEP-5963) and node resources of devices (KEP-5517)."""

from __future__ import annotations

from typing import Any

import pytest

from capstan.allocation import Allocation, Features, NodeView, Refusal, allocate, node_resources

N1 = NodeView("n1")
ON = Features(compatibility_groups=True)


def mode(name: str, groups: list[str] | None) -> dict[str, Any]:
    consumes: dict[str, Any] = {"counterSet": "gpu", "counters": {"slots": {"value": 1}}}
    if groups is not None:
        consumes["compatibilityGroups"] = groups
    return {"name": name, "consumesCounters": [consumes]}


@pytest.mark.parametrize("policy", ["best-fit", "kubernetes"])
@pytest.mark.parametrize(
    ("groups", "together"),
    [
        ((["mig"], ["mig", "mps"]), True),
        (([], None), True),
        ((["mig"], ["vgpu"]), False),
        ((None, None), True),
        ((None, ["mig"]), False),
    ],
)
def test_what_shares_a_counter_set_shares_a_group(make: Any, policy: Any, groups: Any, together: bool) -> None:
    devices = [mode(f"d{i}", group) for i, group in enumerate(groups)]
    inv = make.inventory(make.slice(devices, counters={"gpu": {"slots": 2}}))
    both = make.claim("c", make.request(count=2))
    assert isinstance(allocate(inv, [both], N1, policy, features=ON), Allocation if together else Refusal)
    without = allocate(inv, [both], N1, policy)
    if any(groups):
        assert (
            isinstance(without, Refusal)
            and "need the feature DRADeviceCompatibilityGroups, which is off" in without.message
        )
    else:
        assert isinstance(without, Allocation)
    one = allocate(inv, [make.claim("one")], N1, policy, features=ON)
    inv.assume(("ns", "one"), one.results["ns", "one"])  # type: ignore[union-attr]
    other = allocate(inv, [make.claim("other")], N1, policy, features=ON)
    assert isinstance(other, Allocation if together else Refusal)


@pytest.mark.parametrize("policy", ["best-fit", "kubernetes"])
def test_groups_must_have_one_in_common_not_only_pairwise(make: Any, policy: Any) -> None:
    devices = [mode("d0", ["a", "b"]), mode("d1", ["b", "c"]), mode("d2", ["a", "c"])]
    inv = make.inventory(make.slice(devices, counters={"gpu": {"slots": 3}}))
    assert isinstance(allocate(inv, [make.claim("c", make.request(count=2))], N1, policy, features=ON), Allocation)
    assert isinstance(allocate(inv, [make.claim("c", make.request(count=3))], N1, policy, features=ON), Refusal)


def test_without_the_gate_what_shares_counters_with_a_grouped_allocation_is_left_alone(make: Any) -> None:
    devices = [mode("d0", ["mig"]), mode("d1", None), mode("other", None)]
    devices[2]["consumesCounters"][0]["counterSet"] = "gpu-2"
    inv = make.inventory(make.slice(devices, counters={"gpu": {"slots": 2}, "gpu-2": {"slots": 1}}))
    grouped = allocate(inv, [make.claim("grouped")], N1, "kubernetes", features=ON)
    inv.assume(("ns", "grouped"), grouped.results["ns", "grouped"])  # type: ignore[union-attr]
    assert make.devices(allocate(inv, [make.claim()], N1, "kubernetes")) == ["other"]


def test_results_say_which_node_operations_the_device_does_not_need(make: Any) -> None:
    inv = make.inventory(make.slice([make.gpu("a")], skipNodeOperations=["*"]))
    answer = allocate(inv, [make.claim()], N1)
    assert answer.results["ns", "c"].devices.results[0].skip_node_operations == ["*"]  # type: ignore[union-attr]


DERIVED = Features(derived_attributes=True)


def _pair(make: Any, gpu: str, nic: str) -> Any:
    """A claim for a GPU and a NIC that agree on what the two expressions say."""
    requests = [
        make.request(kind, kind, derivedAttributes=[{"name": "derived/numa", "expression": expression}])
        for kind, expression in (("gpu", gpu), ("nic", nic))
    ]
    return make.claim("c", *requests, constraints=[{"matchAttribute": "derived/numa"}])


def _gpus_and_nics(make: Any) -> Any:
    gpus = [make.gpu(f"gpu-{i}", place=f"numa{i}-pcie0") for i in range(2)]
    nics = [{"name": f"nic-{i}", "attributes": make.attributes(type="nic", node=i)} for i in (1, 2)]
    return make.inventory(
        make.slice([*gpus, *nics]),
        *(make.device_class(k, f"device.attributes['gpu.nvidia.com'].type == '{k}'") for k in ("gpu", "nic")),
    )


GPU_NUMA = "int(device.attributes['gpu.nvidia.com'].place.substring(4, 5))"
NIC_NUMA = "device.attributes['gpu.nvidia.com'].node"


@pytest.mark.parametrize("policy", ["best-fit", "kubernetes"])
def test_derived_attributes_match_what_drivers_publish_differently(make: Any, policy: Any) -> None:
    inv = _gpus_and_nics(make)
    assert make.devices(allocate(inv, [_pair(make, GPU_NUMA, NIC_NUMA)], N1, policy, features=DERIVED)) == [
        "gpu-1",
        "nic-1",
    ]
    lists = _pair(make, f"[7, {GPU_NUMA}]", f"[{NIC_NUMA}]")
    assert make.devices(allocate(inv, [lists], N1, policy, features=DERIVED)) == ["gpu-1", "nic-1"]
    never = _pair(make, GPU_NUMA, f"string({NIC_NUMA})")
    assert isinstance(allocate(inv, [never], N1, policy, features=DERIVED), Refusal), "1 is not '1'"


def test_a_derived_attribute_hides_the_one_of_the_driver(make: Any) -> None:
    inv = make.inventory(make.slice([make.gpu("a", color="red"), make.gpu("b", color="blue")]))
    same = [{"matchAttribute": "gpu.nvidia.com/color"}]
    virtual = [{"name": "gpu.nvidia.com/color", "expression": "'any'"}]
    hidden = make.claim("c", make.request(count=2, derivedAttributes=virtual), constraints=same)
    assert make.devices(allocate(inv, [hidden], N1, "kubernetes", features=DERIVED)) == ["a", "b"]
    plain = make.claim("c", make.request(count=2), constraints=same)
    assert isinstance(allocate(inv, [plain], N1, "kubernetes", features=DERIVED), Refusal)


@pytest.mark.parametrize(
    ("expression", "features", "reason"),
    [
        (GPU_NUMA, Features(), "InvalidClaim"),
        ("device.typo", DERIVED, "InvalidSelector"),
        ("1.5", DERIVED, "InvalidSelector"),
        ("device.attributes['gpu.nvidia.com'].typo", DERIVED, "SelectorFailed"),
        ("dyn([])", DERIVED, "SelectorFailed"),
        ("dyn(1.5)", DERIVED, "SelectorFailed"),
    ],
)
def test_derived_attributes_that_cannot_be_had_are_refused(
    make: Any, expression: str, features: Features, reason: str
) -> None:
    refused = allocate(_gpus_and_nics(make), [_pair(make, expression, NIC_NUMA)], N1, "kubernetes", features=features)
    assert isinstance(refused, Refusal)
    assert refused.reason == reason


def test_devices_bring_their_share_of_the_node_with_them(make: Any) -> None:
    resources = {
        "memory": {"mapping": {"capacityKey": "memory", "capacityMultiplier": "0.5"}, "overhead": {"perPod": "1Gi"}},
        "cpu": {"mapping": {"deviceMultiplier": "2"}, "overhead": {"perContainer": "100m"}},
    }
    on = Features(node_allocatable_resources=True)
    devices = make.slice([make.shared("a", "8Gi") | {"nodeAllocatableResources": resources}, make.gpu("b")])
    inv = make.inventory(devices, features=on)
    half = make.claim("c", make.request(capacity={"requests": {"memory": "4Gi"}}))
    answer = allocate(inv, [half], N1)
    assert make.devices(answer) == ["a"]
    taken = node_resources(inv, answer.results["ns", "c"], containers=3)  # type: ignore[union-attr]
    assert taken["memory"] == 3 << 30
    assert float(taken["cpu"]) == pytest.approx(2.3)
    assert node_resources(make.inventory(devices), answer.results["ns", "c"]) == {}, "the gate is off"  # type: ignore[union-attr]
