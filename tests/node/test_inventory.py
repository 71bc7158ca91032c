"""What a node offers, in the names that manifests written for NVIDIA's driver use."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from capstan.api import quantity
from capstan.api.resource import ResourceSliceSpec
from capstan.node import inventory, models
from capstan.node.errors import NvmlError
from capstan.node.inventory import Offer, slice_specs
from capstan.node.nvml import MigDevice
from capstan.node.simulated import SimulatedNvml

Gpus = Callable[[str], SimulatedNvml]


def simulated(model: str) -> SimulatedNvml:
    return SimulatedNvml("node-0", models.node_model(model))


def devices(model: str) -> dict[str, dict[str, Any]]:
    return {d["name"]: d for spec in slice_specs(simulated(model).host(), "node-0") for d in spec.get("devices", ())}


def values(device: dict[str, Any]) -> dict[str, Any]:
    return {name: next(iter(value.values())) for name, value in device["attributes"].items()}


def test_a_whole_gpu_has_nvidias_attributes() -> None:
    gpu = devices("dgx-a100")["gpu-3"]
    attributes = values(gpu)
    assert attributes.pop("uuid").startswith("GPU-")
    assert attributes.pop("platform.capstan.dev/nvlinkDomain").endswith(".0")
    assert attributes == {
        "type": "gpu",
        "index": 3,
        "productName": "NVIDIA A100-SXM4-40GB",
        "brand": "Nvidia",
        "architecture": "Ampere",
        "cudaComputeCapability": "8.0.0",
        "driverVersion": "580.95.5",
        "cudaDriverVersion": "13.0.0",
        "addressingMode": "None",
        "resource.kubernetes.io/pciBusID": "0000:4e:00.0",
        "resource.kubernetes.io/pcieRoot": "pci0000:40",
        "resource.kubernetes.io/numaNode": 1,
        "platform.capstan.dev/memoryLimits": "simulated",
        "platform.capstan.dev/simulated": True,
    }
    assert {name: value["value"] for name, value in gpu["capacity"].items()} == {
        "memory": "40Gi",
        "multiprocessors": "98",
        "copyEngines": "7",
        "decoders": "5",
        "encoders": "0",
        "jpegEngines": "1",
        "ofaEngines": "1",
    }


def test_a_whole_gpu_is_shared_by_memory_and_given_whole_when_nothing_is_said() -> None:
    gpu = devices("l4x1")["gpu-0"]
    assert gpu["allowMultipleAllocations"] is True
    assert gpu["capacity"]["memory"] == {
        "value": "23034Mi",
        "requestPolicy": {"default": "23034Mi", "validRange": {"min": "1Mi", "max": "23034Mi", "step": "1Mi"}},
    }


def test_a_share_consumes_memory_and_no_engines_unless_it_says_so() -> None:
    """Capacity without a request policy is consumed whole (KEP-5075), which would forbid a second share."""
    for name, capacity in devices("h100x1")["gpu-0"]["capacity"].items():
        assert capacity["requestPolicy"]["default"] == (capacity["value"] if name == "memory" else "0")


def test_a_mig_device_names_its_parent_and_profile() -> None:
    offered = devices("dgx-h100")
    mig = offered["gpu-0-mig-3g40gb-9-4"]
    attributes = values(mig)
    assert attributes["type"] == "mig"
    assert attributes["profile"] == "3g.40gb"
    assert attributes["parentUUID"] == values(offered["gpu-0"])["uuid"]
    assert "uuid" not in attributes
    assert attributes["index"] == 0
    assert mig["capacity"]["memory"]["value"] == "40448Mi"
    assert mig["capacity"]["multiprocessors"]["value"] == "60"
    assert "allowMultipleAllocations" not in mig


def test_a_passthrough_sibling_has_pci_identity_and_takes_the_whole_gpu() -> None:
    offered = devices("dgx-a100")
    vfio = offered["gpu-vfio-0"]
    attributes = values(vfio)
    assert (attributes["type"], attributes["vendorID"], attributes["deviceID"]) == ("vfio", "0x10de", "0x20b0")
    assert attributes["iommuFDEnabled"] is False
    assert len(attributes["uuid"]) == 40
    assert vfio["capacity"] == {"addressableMemory": {"value": "40Gi"}}
    assert vfio["consumesCounters"] == offered["gpu-0"]["consumesCounters"]


def test_names_are_dns_labels_and_attributes_are_short() -> None:
    for name, device in devices("dgx-b200").items():
        assert len(name) <= 63 and name.replace("-", "").isalnum() and name == name.lower()
        assert len(device["attributes"]) + len(device["capacity"]) <= 32
        assert all(len(str(value)) <= 64 for value in values(device).values())
        assert all(len(attribute.split("/")[-1]) <= 32 for attribute in device["attributes"])


@pytest.mark.parametrize("model", ["dgx-a100", "dgx-b200-nomig", "h200x16", "l4x1", "l40sx16", "cpux8"])
def test_slices_keep_the_limits_of_the_api(model: str) -> None:
    specs = slice_specs(simulated(model).host(), "node-0")
    decoded = msgspec.convert(specs, list[ResourceSliceSpec])
    assert len(decoded) >= 1
    counter_sets = {counter.name: counter for spec in decoded for counter in spec.shared_counters}
    for spec in decoded:
        assert not (spec.devices and spec.shared_counters)
        assert len(spec.devices) <= 64
        assert len(spec.shared_counters) <= 8
        assert spec.node_name == "node-0" and spec.driver == "gpu.nvidia.com" and spec.pool.name == "node-0"
        for device in spec.devices:
            (consumed,) = device.consumes_counters
            held = counter_sets[consumed.counter_set].counters
            assert all(
                0 < quantity.parse(counter.value) <= quantity.parse(held[name].value)
                for name, counter in consumed.counters.items()
            )
    assert all(len(counter.counters) <= 32 for counter in counter_sets.values())


def test_a_gpus_devices_are_in_one_slice() -> None:
    for spec in slice_specs(simulated("dgx-h100").host(), "node-0"):
        gpus = {device["attributes"]["index"]["int"] for device in spec.get("devices", ())}
        others = [
            device["attributes"]["index"]["int"]
            for other in slice_specs(simulated("dgx-h100").host(), "node-0")
            if other != spec
            for device in other.get("devices", ())
        ]
        assert gpus.isdisjoint(others)


def test_whole_gpus_come_first_then_the_placements_that_block_least() -> None:
    names = list(devices("a100x1"))
    assert names[0] == "gpu-0" and names[-1] == "gpu-vfio-0"
    singles = [name for name in names if "-19-" in name]
    assert singles[0] == "gpu-0-mig-1g5gb-19-6", "slice 6 is the one that a 4g, a 3g or a 2g can best do without"
    doubles = [name for name in names if "-14-" in name]
    assert doubles[0] == "gpu-0-mig-2g10gb-14-4", "there it leaves the only place of a 4g free"


def counters_suffice(offers: list[Offer]) -> bool:
    held = inventory.counters(offers[0].gpu)
    used: dict[str, int] = {}
    for offer in offers:
        for name, value in inventory.consumption(offer).items():
            used[name] = used.get(name, 0) + value
    return all(value <= held[name] for name, value in used.items())


@settings(deadline=None, max_examples=200)
@given(
    st.sampled_from(["a100x1", "a100-80gx1", "h100x1", "h200x1", "b200x1"]),
    st.lists(st.integers(0, 24), min_size=1, max_size=8),
)
def test_counters_allow_exactly_what_the_gpu_can_hold(model: str, picks: list[int]) -> None:
    """Whatever an allocator does within the counters the GPU can do, and the counters forbid nothing it could."""
    nvml = simulated(model)
    gpu = nvml.host().gpus[0]
    nvml.set_mig_enabled(gpu.uuid, True)
    placements = inventory.placements(gpu.model)
    held: list[Offer] = []
    for pick in picks:
        profile, start = placements[pick]
        offer = Offer(inventory.mig_name(gpu, profile, start), "mig", gpu, profile, start)
        fits = counters_suffice([*held, offer])
        try:
            nvml.create_gpu_instance(gpu.uuid, profile.id, start)
            assert fits, f"{offer.name} fits on the GPU beside {[o.name for o in held]}, the counters forbid it"
            held.append(offer)
        except NvmlError as error:
            assert error.code == "INSUFFICIENT_RESOURCES"
            assert not fits, f"the counters allow {offer.name} beside {[o.name for o in held]}, the GPU cannot"


def test_four_mig_slices_of_one_parent_fit_as_the_upstream_example_wants_them() -> None:
    host = simulated("a100x1").host()
    catalog = inventory.Catalog(host)
    wanted = ("1g5gb-19-0", "1g5gb-19-1", "2g10gb-14-2", "3g20gb-9-4")
    offers = [offer for name in wanted if (offer := catalog.find(f"gpu-0-mig-{name}"))]
    assert len(offers) == 4 and counters_suffice(offers)


def test_somebody_elses_mig_device_is_offered_and_its_rivals_are_not() -> None:
    host = simulated("a100x2").host()
    parent = host.gpus[0].uuid
    foreign = {parent: [MigDevice(parent, 1, 9, 4, "MIG-theirs")]}
    offered = {d["name"]: d for s in slice_specs(host, "node-0", foreign=foreign) for d in s.get("devices", ())}
    assert values(offered["gpu-0-mig-3g20gb-9-4"])["uuid"] == "MIG-theirs"
    for rival in ("gpu-0", "gpu-vfio-0", "gpu-0-mig-1g5gb-19-5", "gpu-0-mig-7g40gb-0-0"):
        assert rival not in offered
    assert {"gpu-0-mig-3g20gb-9-0", "gpu-1", "gpu-vfio-1"} <= set(offered)


def test_a_server_without_counters_gets_whole_gpus_only() -> None:
    specs = slice_specs(simulated("dgx-a100").host(), "node-0", partitionable=False)
    assert [len(spec["devices"]) for spec in specs] == [8]
    assert "consumesCounters" not in json.dumps(specs)


def test_the_guide_names_every_attribute_and_capacity() -> None:
    guide = (Path(__file__).parents[2] / "docs/devices.md").read_text()
    for model in ("dgx-h100", "l4x1"):
        for device in devices(model).values():
            for name in (*device["attributes"], *device["capacity"]):
                assert f"`{name}`" in guide, f"docs/devices.md says nothing of {name}"
