"""The kubelet's side of the contract, over real unix sockets."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Sequence
from pathlib import Path
from typing import Any

import grpc.aio
import pytest

from capstan.node import dra_proto
from capstan.node.errors import DeviceBusy
from capstan.node.plugin import ClaimRef, DeviceHealth, Plugin, SocketPathTooLong, registration_path
from capstan.node.records import Holding

pytestmark = pytest.mark.anyio
V1, V1BETA1 = dra_proto.DRA_VERSIONS


class NodeDouble:
    """Prepares every claim but those called `bad` and `broken`."""

    def __init__(self) -> None:
        self.calls: list[tuple[str, ClaimRef]] = []
        self.deadline = 0.0
        self.devices = [DeviceHealth("node-0", "gpu-0", "Healthy", "")]
        self.news = asyncio.Event()

    async def prepare(self, claim: ClaimRef, deadline: float) -> Sequence[Holding]:
        self.calls.append(("prepare", claim))
        self.deadline = deadline
        if claim.name == "bad":
            raise DeviceBusy("claim default/bad: gpu-0 is held by claim default/a")
        if claim.name == "broken":
            raise RuntimeError
        return [
            Holding("gpu/second", "node-0", "gpu-0", "gpu", "GPU-1", share_id="s1", cdi_name=f"{claim.uid}-gpu-0"),
            Holding("other", "node-0", "gpu-1", "gpu", "GPU-2", cdi_name=f"{claim.uid}-gpu-1"),
        ]

    async def unprepare(self, claim: ClaimRef, deadline: float) -> None:
        self.calls.append(("unprepare", claim))
        if claim.name == "bad":
            raise DeviceBusy("GPU is still being changed")

    def health(self) -> list[DeviceHealth]:
        return self.devices

    async def health_changed(self) -> None:
        await self.news.wait()


@pytest.fixture
def node() -> NodeDouble:
    return NodeDouble()


@pytest.fixture
async def plugin(node: NodeDouble, tmp_path: Path) -> AsyncIterator[Plugin]:
    plugin = Plugin("gpu.nvidia.com", node, tmp_path / "p", tmp_path / "r")
    await plugin.start()
    yield plugin
    await plugin.stop()


def claims(api: dra_proto.DraApi, *names: str) -> list[Any]:
    return [api.Claim(namespace="default", name=name, uid=f"uid-{name}") for name in names]


async def call(plugin: Plugin, api: dra_proto.DraApi, method: str, request: Any) -> Any:
    async with dra_proto.channel(str(plugin.endpoint)) as channel:
        return await dra_proto.Stub(channel, api.service).call(method, request, 10)


async def test_registration_tells_where_the_plugin_is_and_what_it_speaks(plugin: Plugin, tmp_path: Path) -> None:
    async with dra_proto.channel(str(tmp_path / "r" / "gpu.nvidia.com-reg.sock")) as channel:
        stub = dra_proto.Stub(channel, dra_proto.REGISTRATION)
        info = await stub.call("GetInfo", dra_proto.InfoRequest(), 10)
        status = dra_proto.RegistrationStatus(plugin_registered=True)
        await stub.call("NotifyRegistrationStatus", status, 10)
    assert (info.type, info.name, info.endpoint) == ("DRAPlugin", "gpu.nvidia.com", str(tmp_path / "p" / "dra.sock"))
    assert list(info.supported_versions) == [
        "v1.DRAPlugin",
        "v1beta1.DRAPlugin",
        "v1.DRAResourceHealth",
        "v1alpha1.DRAResourceHealth",
    ]
    assert plugin.registered is True


@pytest.mark.parametrize("api", [V1, V1BETA1], ids=["v1", "v1beta1"])
async def test_every_claim_is_answered_whatever_becomes_of_it(api: dra_proto.DraApi, plugin: Plugin) -> None:
    request = api.PrepareRequest(claims=claims(api, "good", "bad", "broken"))
    answer = await call(plugin, api, "NodePrepareResources", request)
    assert set(answer.claims) == {"uid-good", "uid-bad", "uid-broken"}
    assert answer.claims["uid-good"].error == ""
    assert "held by claim default/a" in answer.claims["uid-bad"].error
    assert answer.claims["uid-broken"].error == "RuntimeError", "an error without a text has at least a name"
    assert not answer.claims["uid-bad"].devices


async def test_devices_carry_request_names_without_the_alternative(plugin: Plugin) -> None:
    answer = await call(plugin, V1, "NodePrepareResources", V1.PrepareRequest(claims=claims(V1, "a")))
    first, second = answer.claims["uid-a"].devices
    assert list(first.request_names) == ["gpu"]
    assert list(first.cdi_device_ids) == ["k8s.gpu.nvidia.com/claim=uid-a-gpu-0"]
    assert (first.pool_name, first.device_name, first.share_id) == ("node-0", "gpu-0", "s1")
    assert not second.HasField("share_id")


async def test_unprepare_answers_for_every_claim(plugin: Plugin, node: NodeDouble) -> None:
    request = V1.UnprepareRequest(claims=claims(V1, "good", "bad"))
    answer = await call(plugin, V1, "NodeUnprepareResources", request)
    assert {uid: claim.error != "" for uid, claim in answer.claims.items()} == {"uid-good": False, "uid-bad": True}
    assert ("unprepare", ClaimRef("default", "good", "uid-good")) in node.calls


async def test_a_request_without_claims_has_an_empty_answer(plugin: Plugin) -> None:
    assert not (await call(plugin, V1, "NodePrepareResources", V1.PrepareRequest())).claims


async def test_work_ends_before_the_kubelets_deadline(plugin: Plugin, node: NodeDouble) -> None:
    await call(plugin, V1, "NodePrepareResources", V1.PrepareRequest(claims=claims(V1, "a")))
    assert node.deadline <= time.monotonic() + 10


@pytest.mark.parametrize("api", dra_proto.HEALTH_VERSIONS, ids=lambda api: api.version)
async def test_health_is_reported_at_once_and_on_every_change(
    api: dra_proto.HealthApi, plugin: Plugin, node: NodeDouble
) -> None:
    async with dra_proto.channel(str(plugin.endpoint)) as channel:
        stream = dra_proto.Stub(channel, api.service).stream("NodeWatchResources", api.WatchRequest())
        reports = aiter(stream)
        (device,) = (await anext(reports)).devices
        assert (device.device.pool_name, device.device.device_name, device.health) == ("node-0", "gpu-0", 1)
        node.devices = [DeviceHealth("node-0", "gpu-0", "Unhealthy", "XID 79")]
        node.news.set()
        (device,) = (await anext(reports)).devices
        assert (device.health, device.message) == (2, "XID 79")
        stream.cancel()


async def test_stale_sockets_of_a_dead_predecessor_are_replaced(node: NodeDouble, tmp_path: Path) -> None:
    for path in (tmp_path / "p" / "dra.sock", tmp_path / "r" / "gpu.nvidia.com-reg.sock"):
        path.parent.mkdir()
        path.write_text("left behind")
    plugin = Plugin("gpu.nvidia.com", node, tmp_path / "p", tmp_path / "r")
    await plugin.start()
    await call(plugin, V1, "NodePrepareResources", V1.PrepareRequest(claims=claims(V1, "a")))
    await plugin.stop()
    assert not any(path.exists() for path in (plugin.endpoint, plugin.registration))


async def test_after_stop_nobody_answers(node: NodeDouble, tmp_path: Path) -> None:
    plugin = Plugin("gpu.nvidia.com", node, tmp_path / "p", tmp_path / "r")
    await plugin.start()
    await plugin.stop()
    with pytest.raises(grpc.aio.AioRpcError):
        await call(plugin, V1, "NodePrepareResources", V1.PrepareRequest())


async def test_a_long_registrar_path_gets_a_hashed_name_and_a_too_long_one_an_error(node: NodeDouble) -> None:
    directory = Path("/" + "d" * 66)
    driver = "a-driver-with-a-long-name.example.com"
    path = registration_path(directory, driver)
    assert path.name.startswith("dra-") and len(str(path)) <= 107
    plugin = Plugin("gpu.nvidia.com", node, Path("/" + "x" * 120), directory)
    with pytest.raises(SocketPathTooLong, match="choose a shorter directory"):
        await plugin.start()
