"""Upstream's own manifests on nodes as Capstan's driver publishes them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import msgspec
import pytest

from capstan.allocation import Allocation, Inventory, NodeView, Refusal, allocate, claim_for_pod
from capstan.api import manifests
from capstan.api.core import Pod
from capstan.api.resource import ResourceClaim, ResourceSlice
from capstan.node.inventory import slice_specs
from capstan.node.models import parse_fleet
from capstan.node.simulated import SimulatedNvml

INPUTS = Path(__file__).parents[2].parent / "shared" / "inputs" / "dra"
POLICY = pytest.mark.parametrize("policy", ["best-fit", "kubernetes"])
pytestmark = pytest.mark.skipif(not INPUTS.exists(), reason="upstream manifests are not here")


def fleet(make: Any, text: str) -> tuple[Inventory, NodeView]:
    """An inventory of simulated nodes with the classes that the platform installs; the view is of the first node."""
    types = {"gpu.nvidia.com": "gpu", "mig.nvidia.com": "mig", "vfio.gpu.nvidia.com": "vfio"}
    facts = [
        make.device_class(
            name,
            f"device.driver == 'gpu.nvidia.com' && device.attributes['gpu.nvidia.com'].type == '{kind}'",
            extendedResourceName="nvidia.com/gpu" if kind == "gpu" else None,
        )
        for name, kind in types.items()
    ]
    nodes = parse_fleet(text)
    for node in nodes:
        specs = slice_specs(SimulatedNvml(node.name, node.model).host(), node.name)
        for number, spec in enumerate(specs):
            pool = {"name": node.name, "generation": 1, "resourceSliceCount": len(specs)}
            body = {"metadata": {"name": f"{number:05}-{node.name}"}, "spec": {**spec, "pool": pool}}
            facts.append(msgspec.convert(body, ResourceSlice, strict=False))
    inventory = make.inventory(*facts)
    assert inventory.problems() == []
    return inventory, NodeView(nodes[0].name)


def documents(name: str, kind: str) -> list[dict[str, Any]]:
    return [d for d in manifests.load_manifests((INPUTS / name).read_bytes(), name) if d["kind"] == kind]


def from_template(name: str, number: int) -> ResourceClaim:
    """The claim that the file's first template makes for the pod of this number."""
    [template, *_] = documents(name, "ResourceClaimTemplate")
    spec = template["spec"]["spec"]
    for request in spec["devices"]["requests"]:
        if "deviceClassName" in request:  # v1beta1 is flat
            request["exactly"] = {key: value for key, value in request.items() if key != "name"}
    metadata = {"name": f"pod-{number}", "namespace": "test", "uid": f"uid-{number}"}
    return msgspec.convert({"metadata": metadata, "spec": spec}, ResourceClaim, strict=False)


def take(inv: Inventory, claims: list[ResourceClaim], node: NodeView, policy: Any) -> list[str]:
    answer = allocate(inv, claims, node, policy)
    assert isinstance(answer, Allocation), answer
    for key, held in answer.results.items():
        inv.assume(key, held)
    return [result.device for held in answer.results.values() for result in held.devices.results]


@POLICY
@pytest.mark.parametrize(("file", "pods"), [("gpu-test1.yaml", 2), ("gpu-test2.yaml", 1), ("gpu-test7.yaml", 2)])
def test_each_claim_of_a_template_gets_a_gpu_of_its_own(make: Any, policy: Any, file: str, pods: int) -> None:
    inv, node = fleet(make, "1xdgx-a100")
    devices = [device for number in range(pods) for device in take(inv, [from_template(file, number)], node, policy)]
    assert len(set(devices)) == pods


@POLICY
def test_gpu_test4_four_times_four_mig_slices_of_one_parent_each(make: Any, policy: Any) -> None:
    inv, node = fleet(make, "1xdgx-a100")
    for number in range(4):
        devices = take(inv, [from_template("gpu-test4.yaml", number)], node, policy)
        assert len({device.split("-mig-")[0] for device in devices}) == 1
        assert len(set(devices)) == 4
    assert inv.free(node.name, "gpu.nvidia.com") == 4, "each GPU holds exactly one pod's slices"


@POLICY
def test_gpu_test5_two_gpus_with_a_config_each(make: Any, policy: Any) -> None:
    inv, node = fleet(make, "1xdgx-a100")
    answer = allocate(inv, [from_template("gpu-test5.yaml", 0)], node, policy)
    assert isinstance(answer, Allocation)
    [held] = answer.results.values()
    assert [(c.source, c.requests) for c in held.devices.config] == [
        ("FromClaim", ["ts-gpu"]),
        ("FromClaim", ["mps-gpu"]),
    ]


@POLICY
def test_gpu_test6_selects_by_product_and_index(make: Any, policy: Any) -> None:
    inv, node = fleet(make, "1xdgx-a100")
    devices = [
        device for number in range(4) for device in take(inv, [from_template("gpu-test6.yaml", number)], node, policy)
    ]
    assert sorted(devices) == ["gpu-0", "gpu-2", "gpu-4", "gpu-6"]
    assert isinstance(allocate(inv, [from_template("gpu-test6.yaml", 5)], node, policy), Refusal)


@POLICY
def test_gpu_test8_two_gpus_in_one_request(make: Any, policy: Any) -> None:
    inv, node = fleet(make, "1xdgx-a100")
    assert len(set(take(inv, [from_template("gpu-test8.yaml", 0)], node, policy))) == 2


@POLICY
def test_memory_shares_meet_on_one_gpu_up_to_its_memory(make: Any, policy: Any) -> None:
    inv, node = fleet(make, "1xdgx-a100")
    devices = [
        device
        for number in range(10)
        for device in take(inv, [from_template("consumable-shares/memory-sharing.yaml", number)], node, policy)
    ]
    assert set(devices) == {"gpu-0"}, "ten times 4 GiB of 40 GiB"
    assert take(inv, [from_template("consumable-shares/memory-sharing.yaml", 10)], node, policy) != ["gpu-0"]


@POLICY
def test_passthrough_excludes_the_gpu_itself(make: Any, policy: Any) -> None:
    inv, node = fleet(make, "1xdgx-h100")
    [device] = take(inv, [from_template("gpu-test-vfiopci.yaml", 0)], node, policy)
    assert device.startswith("gpu-vfio-")
    assert inv.free(node.name, "gpu.nvidia.com") == inv.free(node.name, "vfio.gpu.nvidia.com") == 7


@POLICY
def test_a_pod_with_an_extended_resource_gets_a_whole_gpu(make: Any, policy: Any) -> None:
    inv, node = fleet(make, "1xdgx-a100")
    [body] = documents("extended-resources/gpu-full.yaml", "Pod")
    implied = claim_for_pod(msgspec.convert(body, Pod, strict=False), inv)
    assert implied is not None
    assert take(inv, [implied], node, policy) == ["gpu-0"]
    assert inv.free(node.name, "gpu.nvidia.com") == 7


def test_obsolete_classes_are_refused_by_name(make: Any) -> None:
    inv, node = fleet(make, "1xdgx-a100")
    body, *_ = documents("imex-test1.yaml", "ResourceClaim")
    refused = allocate(inv, [msgspec.convert(body, ResourceClaim, strict=False)], node)
    assert isinstance(refused, Refusal)
    assert refused.reason == "UnknownDeviceClass"
    assert "imex" in refused.message


def test_small_mig_slices_leave_whole_gpus_and_large_placements(make: Any) -> None:
    """Seven 1g slices, one at a time, fill one GPU from the end that large placements use least."""
    inv, node = fleet(make, "1xdgx-a100")
    small = make.request("m", "mig.nvidia.com", "device.attributes['gpu.nvidia.com'].profile == '1g.5gb'")
    large = make.request("m", "mig.nvidia.com", "device.attributes['gpu.nvidia.com'].profile == '3g.20gb'")
    devices = [
        device for number in range(3) for device in take(inv, [make.claim(f"s{number}", small)], node, "best-fit")
    ]
    assert {device.split("-mig-")[0] for device in devices} == {"gpu-0"}
    assert inv.free(node.name, "gpu.nvidia.com") == 7
    assert take(inv, [make.claim("l", large)], node, "best-fit") == ["gpu-0-mig-3g20gb-9-0"]
