"""The driver against the embedded API server: validation, field selectors, RBAC with its own rules, watches."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import msgspec
import pytest

from capstan import kube, local
from capstan.api import resources
from capstan.api.resource import ResourceSlice
from capstan.node import Driver, SliceWatch, dra_proto, models
from capstan.node.simulated import SimulatedNvml

pytestmark = pytest.mark.anyio
V1 = dra_proto.DRA_VERSIONS[0]


@pytest.fixture
async def server() -> AsyncIterator[local.Server]:
    server = local.Server()
    await server.start()
    yield server
    await server.stop()


@pytest.fixture
def admin(server: local.Server) -> kube.Client:
    return kube.Client(server.transport())


@pytest.fixture
async def client(server: local.Server, admin: kube.Client) -> kube.Client:
    """A service account that may do what the driver says it needs, and nothing else."""
    rules = [msgspec.to_builtins(rule) for rule in (*Driver.RULES, *SliceWatch.RULES)]
    await admin.create(resources.CLUSTER_ROLES, {"metadata": {"name": "driver"}, "rules": rules})
    subject = {"kind": "ServiceAccount", "name": "driver", "namespace": "default"}
    role = {"apiGroup": "rbac.authorization.k8s.io", "kind": "ClusterRole", "name": "driver"}
    binding = {"metadata": {"name": "driver"}, "subjects": [subject], "roleRef": role}
    await admin.create(resources.CLUSTER_ROLE_BINDINGS, binding)
    return kube.Client(server.transport(local.service_account("default", "driver")))


async def start(
    name: str, model: str, admin: kube.Client, client: kube.Client, directory: Path, watch: SliceWatch | None = None
) -> tuple[Driver, SimulatedNvml]:
    made = await admin.create(resources.NODES, {"metadata": {"name": name}})
    nvml = SimulatedNvml(name, models.node_model(model), directory / f"{name}.json")
    paths = (directory / name / part for part in ("p", "r", "c"))
    driver = Driver(client, name, made["metadata"]["uid"], nvml, *paths, watch=watch)
    await driver.start()
    async with asyncio.timeout(20):
        await driver.published()
    return driver, nvml


async def slices(admin: kube.Client, node: str) -> list[ResourceSlice]:
    found = (await admin.list(resources.RESOURCE_SLICES, fields=f"spec.nodeName={node}")).items
    return sorted(found, key=lambda s: s.metadata.name)


async def until(condition: Callable[[], Any]) -> None:
    async with asyncio.timeout(10):
        while not await condition():
            await asyncio.sleep(0.01)


@pytest.mark.parametrize("model", ["dgx-a100", "dgx-b200-nomig", "l4x4", "cpux4"])
async def test_every_models_slices_are_valid_and_complete(
    model: str, admin: kube.Client, client: kube.Client, tmp_path: Path
) -> None:
    driver, nvml = await start("n0", model, admin, client, tmp_path)
    found = await slices(admin, "n0")
    assert all(s.spec.pool.resource_slice_count == len(found) and s.spec.pool.generation == 1 for s in found)
    offered = {device.name for s in found for device in s.spec.devices}
    assert len(offered) == len(driver._catalog().offers) == len(nvml.host().gpus) * (27 if model == "dgx-a100" else 2)
    versions = {s.metadata.name: s.metadata.resource_version for s in found}
    await asyncio.sleep(0.3)
    assert versions == {s.metadata.name: s.metadata.resource_version for s in await slices(admin, "n0")}
    assert (await driver.published()).dropped == frozenset()
    await driver.stop()


async def test_deleted_slices_and_taints_come_and_go(admin: kube.Client, client: kube.Client, tmp_path: Path) -> None:
    watch = SliceWatch(client)
    watching = asyncio.create_task(watch.run())
    driver, nvml = await start("n0", "l4x2", admin, client, tmp_path, watch)
    other, _ = await start("n1", "l4x2", admin, client, tmp_path, watch)
    untouched = [s.metadata.resource_version for s in await slices(admin, "n1")]

    await admin.delete(resources.RESOURCE_SLICES, (await slices(admin, "n0"))[1].metadata.name)

    async def complete() -> bool:
        found = await slices(admin, "n0")
        return len(found) == 2 and {s.spec.pool.generation for s in found} == {2}

    await until(complete)
    gpu = nvml.host().gpus[0].uuid
    nvml.raise_xid(gpu, 79)

    async def tainted() -> bool:
        return any(d.taints for s in await slices(admin, "n0") for d in s.spec.devices)

    await until(tainted)
    versions = [s.metadata.resource_version for s in await slices(admin, "n0")]
    nvml.raise_xid(gpu, 79)
    await asyncio.sleep(0.2)
    assert versions == [s.metadata.resource_version for s in await slices(admin, "n0")]
    nvml.recover(gpu)

    async def recovered() -> bool:
        return not await tainted()

    await until(recovered)
    assert untouched == [s.metadata.resource_version for s in await slices(admin, "n1")]
    await driver.stop()
    await other.stop()
    watching.cancel()


async def test_a_claim_of_the_api_is_prepared(admin: kube.Client, client: kube.Client, tmp_path: Path) -> None:
    driver, nvml = await start("n0", "a100x1", admin, client, tmp_path)
    requests = [{"name": "r", "exactly": {"deviceClassName": "mig.nvidia.com"}}]
    body = {"metadata": {"name": "c", "namespace": "default"}, "spec": {"devices": {"requests": requests}}}
    made = await admin.create(resources.RESOURCE_CLAIMS, body)
    result = {"request": "r", "driver": "gpu.nvidia.com", "pool": "n0", "device": "gpu-0-mig-3g20gb-9-4"}
    patch = {"status": {"allocation": {"devices": {"results": [result]}}}}
    await admin.patch(resources.RESOURCE_CLAIMS, "c", "default", patch=patch, subresource="status")
    uid = made["metadata"]["uid"]
    request = V1.PrepareRequest(claims=[V1.Claim(namespace="default", name="c", uid=uid)])
    async with dra_proto.channel(str(tmp_path / "n0/p/dra.sock")) as channel:
        answer = await dra_proto.Stub(channel, V1.service).call("NodePrepareResources", request, 20)
    assert answer.claims[uid].error == ""
    assert list(answer.claims[uid].devices[0].cdi_device_ids) == [
        f"k8s.gpu.nvidia.com/claim={uid}-gpu-0-mig-3g20gb-9-4"
    ]
    (made,) = nvml.mig_devices(nvml.host().gpus[0].uuid)
    await driver.stop()
    claim = await admin.get(resources.RESOURCE_CLAIMS, "c", "default")
    (told,) = claim.status.devices
    assert (told.device, told.data) == ("gpu-0-mig-3g20gb-9-4", {"uuid": made.uuid, "gpuInstance": made.gi_id})
    assert claim.status.allocation is not None
