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
    assert isinstance(allocate(inv, [both], N1, policy), Allocation), "without the gate groups mean nothing"
    one = allocate(inv, [make.claim("one")], N1, policy, features=ON)
    inv.assume(("ns", "one"), one.results["ns", "one"])  # type: ignore[union-attr]
    other = allocate(inv, [make.claim("other")], N1, policy, features=ON)
    assert isinstance(other, Allocation if together else Refusal)


def test_results_say_which_node_operations_the_device_does_not_need(make: Any) -> None:
    inv = make.inventory(make.slice([make.gpu("a")], skipNodeOperations=["*"]))
    answer = allocate(inv, [make.claim()], N1)
    assert answer.results["ns", "c"].devices.results[0].skip_node_operations == ["*"]  # type: ignore[union-attr]


def test_devices_bring_their_share_of_the_node_with_them(make: Any) -> None:
    resources = {
        "memory": {"mapping": {"capacityKey": "memory", "capacityMultiplier": "0.5"}, "overhead": {"perPod": "1Gi"}},
        "cpu": {"mapping": {"deviceMultiplier": "2"}, "overhead": {"perContainer": "100m"}},
    }
    inv = make.inventory(make.slice([make.shared("a", "8Gi") | {"nodeAllocatableResources": resources}, make.gpu("b")]))
    half = make.claim("c", make.request(capacity={"requests": {"memory": "4Gi"}}))
    answer = allocate(inv, [half], N1)
    assert make.devices(answer) == ["a"]
    taken = node_resources(inv, answer.results["ns", "c"], containers=3)  # type: ignore[union-attr]
    assert taken["memory"] == 3 << 30
    assert float(taken["cpu"]) == pytest.approx(2.3)
