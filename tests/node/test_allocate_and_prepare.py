"""The two halves of dynamic resource allocation agree: what is allocated from a node's slices, the node can prepare."""

from __future__ import annotations

import tempfile
import time
from pathlib import Path
from typing import Any

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from capstan import allocation
from capstan.api.resource import DeviceClass, ResourceClaim, ResourceSlice
from capstan.node import models
from capstan.node.inventory import Catalog, slice_specs
from capstan.node.prepare import Preparer
from capstan.node.records import Record
from capstan.node.simulated import SimulatedNvml

NODE = "node-0"


def device_class(name: str, kind: str) -> DeviceClass:
    expression = f"device.driver == 'gpu.nvidia.com' && device.attributes['gpu.nvidia.com'].type == '{kind}'"
    body = {"metadata": {"name": name}, "spec": {"selectors": [{"cel": {"expression": expression}}]}}
    return msgspec.convert(body, DeviceClass)


def profile_is(profile: str) -> dict[str, Any]:
    return {"cel": {"expression": f"device.attributes['gpu.nvidia.com'].profile == '{profile}'"}}


def asked(name: str, *requests: dict[str, Any], parent: bool = False, config: Any = ()) -> ResourceClaim:
    devices: dict[str, Any] = {"requests": list(requests), "config": list(config)}
    if parent:
        devices["constraints"] = [{"requests": [], "matchAttribute": "gpu.nvidia.com/parentUUID"}]
    metadata = {"name": name, "namespace": "default", "uid": f"uid-{name}"}
    return msgspec.convert({"metadata": metadata, "spec": {"devices": devices}}, ResourceClaim)


def request(name: str, cls: str, *selectors: dict[str, Any], **more: Any) -> dict[str, Any]:
    return {"name": name, "exactly": {"deviceClassName": cls, "selectors": list(selectors), **more}}


def whole(count: int = 1) -> list[dict[str, Any]]:
    return [request("gpu", "gpu.nvidia.com", count=count)]


def share(memory: str) -> list[dict[str, Any]]:
    return [request("gpu", "gpu.nvidia.com", capacity={"requests": {"memory": memory}})]


def mig(profile: str) -> list[dict[str, Any]]:
    return [request("mig", "mig.nvidia.com", profile_is(profile))]


def passthrough() -> list[dict[str, Any]]:
    return [request("vm", "vfio.gpu.nvidia.com")]


class Cluster:
    """One node, an allocator that knows it from its slices only, and its driver."""

    def __init__(self, model: str, directory: Path) -> None:
        self.nvml = SimulatedNvml(NODE, models.node_model(model))
        catalog = Catalog(self.nvml.host())
        self.preparer = Preparer(self.nvml, lambda: catalog, NODE, directory / "p", directory / "c")
        self.inventory = allocation.Inventory()
        for name, kind in (("gpu.nvidia.com", "gpu"), ("mig.nvidia.com", "mig"), ("vfio.gpu.nvidia.com", "vfio")):
            self.inventory.upsert(device_class(name, kind))
        specs = slice_specs(self.nvml.host(), NODE)
        for index, spec in enumerate(specs):
            pool = {"name": NODE, "generation": 1, "resourceSliceCount": len(specs)}
            body = {"metadata": {"name": f"{index:05x}-{NODE}"}, "spec": spec | {"pool": pool}}
            self.inventory.upsert(msgspec.convert(body, ResourceSlice))

    def start(self, claim: ResourceClaim, policy: allocation.Policy = "best-fit") -> bool:
        """Whether there was room; preparing must succeed whenever there was."""
        found = allocation.allocate(self.inventory, [claim], allocation.NodeView(NODE, {}), policy)
        if isinstance(found, allocation.Refusal):
            assert found.reason in ("DevicesInUse", "NoCombination", "NoSuchDevices"), found
            return False
        self.inventory.assume(claim.key, found.results[claim.key])
        claim.status.allocation = found.results[claim.key]
        self.preparer.prepare(claim, time.monotonic() + 45)
        return True

    def stop(self, claim: ResourceClaim) -> None:
        self.preparer.unprepare(claim.metadata.uid, time.monotonic() + 45)
        self.inventory.release(claim.key)

    def record(self, name: str) -> Record:
        return next(record for record in self.preparer.records() if record.name == name)


@pytest.mark.parametrize("policy", ["best-fit", "kubernetes"])
def test_four_pods_get_four_mig_slices_of_one_parent_each(policy: allocation.Policy, tmp_path: Path) -> None:
    """The upstream example with 1g, 1g, 2g and 3g of the same GPU fits once on each A100."""
    cluster = Cluster("a100x4", tmp_path)
    for number in range(4):
        claim = asked(
            f"pod-{number}",
            *(
                request(f"r{i}", "mig.nvidia.com", profile_is(profile))
                for i, profile in enumerate(("1g.5gb", "1g.5gb", "2g.10gb", "3g.20gb"))
            ),
            parent=True,
        )
        assert cluster.start(claim, policy)
        holdings = cluster.record(f"pod-{number}").holdings
        assert len({holding.gpu for holding in holdings}) == 1 and len(holdings) == 4
    assert all(len(cluster.nvml.mig_devices(gpu.uuid)) == 4 for gpu in cluster.nvml.host().gpus)


def test_a_gpu_is_chosen_by_product_and_index(tmp_path: Path) -> None:
    """The upstream example that no other driver can serve, for want of the attribute `index`."""
    expression = (
        "device.attributes['gpu.nvidia.com'].productName.lowerAscii().matches('^.*a100.*$') && "
        "device.attributes['gpu.nvidia.com'].index == 2"
    )
    parameters = {
        "apiVersion": "resource.nvidia.com/v1beta1",
        "kind": "GpuConfig",
        "sharing": {"strategy": "TimeSlicing", "timeSlicingConfig": {"interval": "Long"}},
    }
    config = [{"requests": ["gpu"], "opaque": {"driver": "gpu.nvidia.com", "parameters": parameters}}]
    cluster = Cluster("dgx-a100", tmp_path)
    claim = asked("a", request("gpu", "gpu.nvidia.com", {"cel": {"expression": expression}}), config=config)
    assert cluster.start(claim)
    (holding,) = cluster.record("a").holdings
    assert holding.device == "gpu-2" and cluster.nvml.timeslice(holding.gpu) == 3
    assert not cluster.start(asked("b", request("gpu", "gpu.nvidia.com", {"cel": {"expression": expression}})))


def test_shares_fill_a_gpu_by_memory(tmp_path: Path) -> None:
    cluster = Cluster("l4x1", tmp_path)
    started = [cluster.start(asked(f"s{i}", *share("8Gi"))) for i in range(3)]
    assert started == [True, True, False]
    assert not cluster.start(asked("w", *whole()))
    gpu = cluster.nvml.host().gpus[0].uuid
    assert sorted(cluster.nvml.memory_limits(gpu).values()) == [8 << 30, 8 << 30]


WORK = st.one_of(
    st.sampled_from([1, 2]).map(whole),
    st.sampled_from(["1Gi", "10Gi", "39Gi", "40Gi"]).map(share),
    st.sampled_from(["1g.5gb", "1g.10gb", "2g.10gb", "3g.20gb", "4g.20gb", "7g.40gb", "1g.5gb+me"]).map(mig),
    st.just(passthrough()),
)


@settings(deadline=None, max_examples=100)
@given(
    st.lists(st.one_of(WORK, st.integers(0, 9)), min_size=2, max_size=16), st.sampled_from(["best-fit", "kubernetes"])
)
def test_any_life_of_a_node_is_prepared_as_it_was_allocated(history: list[Any], policy: allocation.Policy) -> None:
    """Claims come and (numbers) go in any order; never does the node refuse what the allocator gave out."""
    with tempfile.TemporaryDirectory() as directory:
        cluster = Cluster("a100x2", Path(directory))
        running: list[ResourceClaim] = []
        for number, work in enumerate(history):
            if isinstance(work, int):
                if running:
                    cluster.stop(running.pop(work % len(running)))
                continue
            claim = asked(f"c{number}", *work)
            if cluster.start(claim, policy):
                running.append(claim)
        for claim in running:
            cluster.stop(claim)
        for gpu in cluster.nvml.host().gpus:
            assert not cluster.nvml.mig_devices(gpu.uuid) and not cluster.nvml.mig_enabled(gpu.uuid)
            assert not cluster.nvml.memory_limits(gpu.uuid) and cluster.nvml.vfio_nodes(gpu.uuid) is None
        cluster.preparer.close()
