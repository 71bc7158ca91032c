"""Parts of a device's capacity (KEP-5075) and the claims that pods imply (KEP-5004, KAI's annotations)."""

from __future__ import annotations

from typing import Any

import pytest

from capstan.allocation import (
    Allocation,
    InvalidPodRequest,
    NodeView,
    Refusal,
    allocate,
    claim_for_pod,
    request_mappings,
    resolved,
)
from capstan.allocation.capacity import rounded
from capstan.api import quantity
from capstan.api.core import Pod
from capstan.api.resource import RequestPolicy, ValidRange

N1 = NodeView("n1")
HALF = {"requests": {"memory": "40Gi"}}


@pytest.mark.parametrize(
    ("policy", "amount", "expected"),
    [
        (RequestPolicy(default=1, valid_values=[1, 4, 8]), 2, 4),
        (RequestPolicy(default=1, valid_values=[1, 4, 8]), 9, None),
        (RequestPolicy(default=1, valid_range=ValidRange(min=2)), 1, 2),
        (RequestPolicy(default=1, valid_range=ValidRange(min=1, step=4)), 2, 5),
        (RequestPolicy(default=1, valid_range=ValidRange(min=1, max=8, step=4)), 8, None),
        (RequestPolicy(default=1, valid_range=ValidRange(min=1, max=9, step=4)), 9, 9),
        (RequestPolicy(default=1), 3, 3),
    ],
)
def test_an_amount_is_rounded_up_to_what_the_policy_allows(
    policy: RequestPolicy, amount: int, expected: int | None
) -> None:
    assert rounded(policy, amount) == expected


def test_shares_fill_one_device_before_they_open_another(make: Any) -> None:
    inv = make.inventory(make.slice([make.shared("a"), make.shared("b")]))
    for name, device in (("1", "a"), ("2", "a"), ("3", "b")):
        answer = allocate(inv, [make.claim(name, make.request(capacity=HALF))], N1)
        assert make.devices(answer) == [device]
        inv.assume(("ns", name), answer.results["ns", name])  # type: ignore[union-attr]
    assert inv.free("n1", make.DRIVER) == 0
    inv.release(("ns", "3"))
    assert inv.free("n1", make.DRIVER) == 1
    whole = allocate(inv, [make.claim("whole")], N1)
    assert make.devices(whole) == ["b"]


def test_shares_that_take_nothing_of_a_capacity_come_and_go(make: Any) -> None:
    device = make.shared("a")
    device["capacity"]["engines"] = {"value": 7, "requestPolicy": {"default": 0}}
    inv = make.inventory(make.slice([device]))
    empty = inv.dump()
    for name in ("1", "2"):
        answer = allocate(inv, [make.claim(name, make.request(capacity=HALF))], N1)
        inv.assume(("ns", name), answer.results["ns", name])  # type: ignore[union-attr]
    inv.release(("ns", "1"))
    inv.release(("ns", "2"))
    assert inv.dump() == empty


def test_a_share_says_what_it_consumes_under_an_id_of_its_own(make: Any) -> None:
    inv = make.inventory(make.slice([make.shared("a")]))
    wanted = make.claim("c", make.request("x", capacity=HALF), make.request("y", capacity=HALF))
    answer = allocate(inv, [wanted], N1)
    assert isinstance(answer, Allocation)
    results = answer.results["ns", "c"].devices.results
    assert [r.consumed_capacity for r in results] == [{"memory": "40Gi"}] * 2
    ids = [r.share_id for r in results]
    assert len(set(ids)) == 2
    assert answer == allocate(inv, [wanted], N1), "ids are derived, not drawn"


def test_a_device_that_is_not_shared_must_have_the_capacity_and_is_taken_whole(make: Any) -> None:
    inv = make.inventory(make.slice([make.gpu("small", "24Gi"), make.gpu("large", "80Gi")]))
    answer = allocate(inv, [make.claim("c", make.request(capacity=HALF))], N1)
    assert make.devices(answer) == ["large"]
    assert answer.results["ns", "c"].devices.results[0].share_id is None  # type: ignore[union-attr]
    little = make.claim("c", make.request(capacity={"requests": {"memory": "4Gi"}}))
    assert make.devices(allocate(inv, [little], N1)) == ["small"], "4 GiB do not break an 80 GiB GPU"
    unknown = allocate(inv, [make.claim("c", make.request(capacity={"requests": {"cores": 1}}))], N1)
    assert isinstance(unknown, Refusal)
    assert "2 without the capacity asked for" in unknown.message


def pod(make: Any, limits: dict[str, object] | None = None, **annotations: str) -> Pod:
    names = {name.replace("_", "-"): text for name, text in annotations.items()}
    body = {
        "metadata": {"name": "p", "namespace": "ns", "uid": "u1", "annotations": names},
        "spec": {"containers": [{"name": "side"}, {"name": "main", "resources": {"limits": limits or {}}}]},
    }
    return make.decode(body, Pod)  # type: ignore[no-any-return]


def test_extended_resources_of_a_class_become_a_claim_of_the_pod(make: Any) -> None:
    inv = make.inventory(make.slice([make.gpu("a"), make.gpu("b")]))
    inv.upsert(make.device_class(make.DRIVER, extendedResourceName="nvidia.com/gpu"))
    asking = pod(make, {"nvidia.com/gpu": "2", "cpu": "1"})
    implied = claim_for_pod(asking, inv)
    assert implied is not None
    assert implied == claim_for_pod(asking, inv)
    assert implied.metadata.name.startswith("p-extended-resources-")
    assert implied.metadata.annotations == {"resource.kubernetes.io/extended-resource-claim": "true"}
    owner = implied.metadata.owner_references[0]
    assert (owner.kind, owner.name, owner.uid, owner.controller) == ("Pod", "p", "u1", True)
    [wanted] = implied.spec.devices.requests
    assert wanted.name == "container-1-request-0"
    assert wanted.exactly is not None
    assert (wanted.exactly.device_class_name, wanted.exactly.count) == (make.DRIVER, 2)
    [mapping] = request_mappings(asking, inv)
    assert (mapping.container_name, mapping.resource_name, mapping.request_name) == (
        "main",
        "nvidia.com/gpu",
        "container-1-request-0",
    )
    assert claim_for_pod(pod(make, {"cpu": "1"}), inv) is None


def test_a_fraction_is_of_the_device_that_is_chosen(make: Any) -> None:
    inv = make.inventory(make.slice([make.shared("a", "24Gi")]), make.slice([make.shared("a", "80Gi")], node="n2"))
    implied = claim_for_pod(pod(make, gpu_fraction="0.25"), inv)
    assert implied is not None
    for node, memory in (("n1", "6Gi"), ("n2", "20Gi")):
        answer = allocate(inv, [implied], NodeView(node))
        assert isinstance(answer, Allocation)
        held = answer.results[implied.key]
        assert held.devices.results[0].consumed_capacity == {"memory": memory}
        written = resolved(implied, held)
        [wanted] = written.spec.devices.requests
        assert wanted.name == "container-0-request-0"
        assert wanted.exactly is not None
        assert wanted.exactly.capacity is not None
        assert wanted.exactly.capacity.requests == {"memory": memory}
        assert set(written.metadata.annotations) == {"resource.kubernetes.io/extended-resource-claim"}


@pytest.mark.parametrize("parts", range(2, 12))
def test_n_shares_of_one_nth_always_fit(make: Any, parts: int) -> None:
    inv = make.inventory(make.slice([make.shared("a", "40537Mi")]))
    for number in range(parts):
        asking = pod(make, gpu_fraction=f"{1 / parts:.9f}"[:10])
        asking.metadata.uid = f"u{number}"
        implied = claim_for_pod(asking, inv)
        assert implied is not None
        answer = allocate(inv, [implied], N1)
        assert isinstance(answer, Allocation), number
        inv.assume(implied.key, answer.results[implied.key])


def test_memory_devices_and_container_of_a_share_can_be_chosen(make: Any) -> None:
    inv = make.inventory(make.slice([make.shared("a"), make.shared("b")]))
    asking = pod(make, gpu_memory="8192", gpu_fraction_num_devices="2", gpu_fraction_container_name="main")
    implied = claim_for_pod(asking, inv)
    assert implied is not None
    [wanted] = implied.spec.devices.requests
    assert wanted.name == "container-1-request-0"
    assert wanted.exactly is not None
    assert wanted.exactly.capacity is not None
    assert quantity.whole(wanted.exactly.capacity.requests["memory"]) == 8 << 30
    assert sorted(make.devices(allocate(inv, [implied], N1))) == ["a", "b"]


@pytest.mark.parametrize(
    ("limits", "annotations"),
    [
        ({}, {"gpu_fraction": "1"}),
        ({}, {"gpu_fraction": "0"}),
        ({}, {"gpu_fraction": "1/2"}),
        ({}, {"gpu_fraction": "nan"}),
        ({}, {"gpu_memory": "-1"}),
        ({}, {"gpu_memory": "8Gi"}),
        ({}, {"gpu_memory": "1", "gpu_fraction": "0.5"}),
        ({}, {"gpu_fraction": "0.5", "gpu_fraction_num_devices": "0"}),
        ({}, {"gpu_fraction": "0.5", "gpu_fraction_container_name": "none"}),
        ({"nvidia.com/gpu": 1}, {"gpu_fraction": "0.5"}),
    ],
)
def test_annotations_that_make_no_sense_are_named(make: Any, limits: Any, annotations: dict[str, str]) -> None:
    inv = make.inventory(make.device_class(make.DRIVER, extendedResourceName="nvidia.com/gpu"))
    with pytest.raises(InvalidPodRequest, match=r"gpu"):
        claim_for_pod(pod(make, limits, **annotations), inv)
