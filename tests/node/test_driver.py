"""A whole node: devices published and kept so, claims prepared for a kubelet, health shown and taken back."""

from __future__ import annotations

import asyncio
import copy
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import pytest

from capstan.node import Driver, SliceWatch, dra_proto, models, monitor
from capstan.node import driver as driver_module
from capstan.node.errors import AlreadyRunning
from capstan.node.simulated import SimulatedNvml

pytestmark = pytest.mark.anyio
V1 = dra_proto.DRA_VERSIONS[0]


class Node:
    def __init__(self, api: Any, nvml: SimulatedNvml, directory: Path, watch: SliceWatch | None = None) -> None:
        self.api, self.nvml = api, nvml
        self.plugin_dir, self.registrar_dir, self.cdi_dir = directory / "p", directory / "r", directory / "c"
        self.driver = Driver(
            api.client(), "node-0", "node-uid", nvml, self.plugin_dir, self.registrar_dir, self.cdi_dir, watch=watch
        )

    @property
    def gpu(self) -> str:
        return self.nvml.host().gpus[0].uuid

    async def call(self, method: str, request: Any) -> Any:
        async with dra_proto.channel(str(self.plugin_dir / "dra.sock")) as channel:
            return await dra_proto.Stub(channel, V1.service).call(method, request, 30)

    async def prepare(self, name: str, uid: str = "") -> Any:
        claim = V1.Claim(namespace="default", name=name, uid=uid or f"uid-{name}")
        answer = await self.call("NodePrepareResources", V1.PrepareRequest(claims=[claim]))
        return answer.claims[claim.uid]

    async def unprepare(self, name: str) -> Any:
        claim = V1.Claim(namespace="default", name=name, uid=f"uid-{name}")
        return (await self.call("NodeUnprepareResources", V1.UnprepareRequest(claims=[claim]))).claims[claim.uid]


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(10):
        while not condition():
            await asyncio.sleep(0.005)


@pytest.fixture
async def node(api: Any, gpus: Callable[[str], SimulatedNvml], tmp_path: Path) -> AsyncIterator[Node]:
    node = Node(api, gpus("a100x2"), tmp_path)
    await node.driver.start()
    await node.driver.published()
    yield node
    await node.driver.stop()


async def test_devices_are_published_once(node: Node) -> None:
    assert {"gpu-0", "gpu-1", "gpu-0-mig-1g5gb-19-0", "gpu-vfio-1"} <= node.api.devices().keys()
    writes = len(node.api.writes)
    await asyncio.sleep(0.1)
    assert len(node.api.writes) == writes == len(node.api.slices), "its own writes, seen in the watch, are no news"


async def test_a_slice_that_somebody_deletes_or_changes_comes_back(node: Node) -> None:
    name = max(node.api.slices)
    devices = node.api.devices().keys()
    node.api.tamper(name, None)
    await until(lambda: node.api.devices().keys() == devices)
    name = max(node.api.slices)
    body = copy.deepcopy(node.api.slices[name])
    body["spec"]["devices"] = []
    node.api.tamper(name, body)
    await until(lambda: node.api.devices().keys() == devices)


async def test_a_failing_api_server_is_tried_again(
    api: Any, gpus: Callable[[str], SimulatedNvml], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(driver_module, "_FIRST_PAUSE_SECONDS", 0.01)
    api.failing = 7
    node = Node(api, gpus("l4x1"), tmp_path)
    await node.driver.start()
    await node.driver.published()
    assert api.devices().keys() == {"gpu-0", "gpu-vfio-0"}
    await node.driver.stop()


async def test_a_server_without_counters_gets_whole_gpus_and_no_endless_writes(
    api: Any, gpus: Callable[[str], SimulatedNvml], tmp_path: Path
) -> None:
    api.unknown_fields = {"consumesCounters", "sharedCounters", "allowMultipleAllocations", "requestPolicy"}
    node = Node(api, gpus("a100x2"), tmp_path)
    await node.driver.start()
    published = await node.driver.published()
    assert api.devices().keys() == {"gpu-0", "gpu-1"}
    assert "spec.devices[].allowMultipleAllocations" in published.dropped
    writes = len(api.writes)
    api.tamper(max(api.slices), copy.deepcopy(api.slices[max(api.slices)]))
    await asyncio.sleep(0.1)
    assert len(api.writes) == writes
    await node.driver.stop()


async def test_a_claim_is_prepared_and_given_back(node: Node, claims: Any) -> None:
    node.api.add_claim(claims.body("a", claims.result("gpu-0-mig-3g20gb-9-4")))
    answer = await node.prepare("a")
    assert answer.error == ""
    assert list(answer.devices[0].cdi_device_ids) == ["k8s.gpu.nvidia.com/claim=uid-a-gpu-0-mig-3g20gb-9-4"]
    assert len(node.nvml.mig_devices(node.gpu)) == 1
    assert (await node.unprepare("a")).error == ""
    assert not node.nvml.mig_devices(node.gpu)


async def test_unprepare_needs_no_claim_in_the_api(node: Node, claims: Any) -> None:
    node.api.add_claim(claims.body("a", claims.result("gpu-0")))
    await node.prepare("a")
    del node.api.objects["resourceclaims"]["a"]
    assert (await node.unprepare("a")).error == ""


@pytest.mark.parametrize(
    ("uid", "said"),
    [("", "claim default/a does not exist any more"), ("uid-old", "UID uid-old is asked for, uid-a exists")],
)
async def test_a_claim_that_is_gone_or_replaced_is_refused(uid: str, said: str, node: Node, claims: Any) -> None:
    if uid:
        node.api.add_claim(claims.body("a", claims.result("gpu-0")))
    assert said in (await node.prepare("a", uid)).error


async def test_the_next_driver_takes_over_the_prepared_claims(node: Node, claims: Any, tmp_path: Path) -> None:
    node.api.add_claim(claims.body("a", claims.result("gpu-0")))
    node.api.add_claim(claims.body("b", claims.result("gpu-0")))
    first = await node.prepare("a")
    await node.driver.stop()
    successor = Node(node.api, node.nvml, tmp_path)
    writes = len(node.api.writes)
    await successor.driver.start()
    await successor.driver.published()
    assert len(node.api.writes) == writes, "the slices are as they should be"
    assert await successor.prepare("a") == first
    assert "0 of 40960 MiB are free beside what claim default/a holds" in (await successor.prepare("b")).error
    await successor.driver.stop()


async def test_a_xid_taints_the_gpu_in_all_its_forms_until_it_has_recovered(node: Node) -> None:
    def tainted() -> set[str]:
        return {name for name, device in node.api.devices().items() if device.get("taints")}

    node.nvml.raise_xid(node.gpu, 79)
    await until(lambda: len(tainted()) == 27)
    assert {"gpu-0", "gpu-vfio-0", "gpu-0-mig-7g40gb-0-0"} <= tainted() and "gpu-1" not in tainted()
    (taint,) = node.api.devices()["gpu-0"]["taints"]
    assert (taint["key"], taint["value"], taint["effect"]) == ("gpu.nvidia.com/xid", "79", "NoSchedule")
    node.nvml.recover(node.gpu)
    await until(lambda: not tainted())


async def test_a_recovery_without_an_event_is_found_by_asking(node: Node, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(monitor, "_RECOVERY_POLL_SECONDS", 0.02)
    node.nvml.raise_xid(node.gpu, 48)
    await until(lambda: "taints" in node.api.devices()["gpu-0"])
    monkeypatch.setattr(node.nvml, "_emit", lambda event: None)
    node.nvml.recover(node.gpu)
    await until(lambda: "taints" not in node.api.devices()["gpu-0"])


async def test_an_applications_own_xid_informs_and_forbids_nothing(node: Node) -> None:
    node.nvml.raise_xid(node.gpu, 13)
    await until(lambda: "taints" in node.api.devices()["gpu-0"])
    assert node.api.devices()["gpu-0"]["taints"][0]["effect"] == "None"
    health = {device.device: (device.status, device.message) for device in node.driver.health()}
    assert health["gpu-0"] == ("Healthy", "XID 13") and health["gpu-1"] == ("Healthy", "")


async def test_an_xid_of_one_mig_device_concerns_only_what_overlaps_with_it(node: Node, claims: Any) -> None:
    node.api.add_claim(claims.body("a", claims.result("gpu-0-mig-3g20gb-9-4")))
    await node.prepare("a")
    (device,) = node.nvml.mig_devices(node.gpu)
    node.nvml.raise_xid(node.gpu, 63, gi_id=device.gi_id)
    await until(lambda: "taints" in node.api.devices()["gpu-0"])
    status = {device.device: device.status for device in node.driver.health()}
    assert status["gpu-0-mig-1g5gb-19-5"] == status["gpu-0-mig-3g20gb-9-4"] == "Unhealthy"
    assert status["gpu-0-mig-3g20gb-9-0"] == status["gpu-0-mig-1g5gb-19-0"] == "Healthy"


async def test_one_watch_serves_many_nodes(api: Any, tmp_path: Path) -> None:
    watch = SliceWatch(api.client())
    watching = asyncio.create_task(watch.run())
    nodes = []
    for spec in models.parse_fleet("3xl4x1"):
        directory = tmp_path / spec.name
        driver = Driver(
            api.client(), spec.name, spec.name, SimulatedNvml(spec.name, spec.model),
            directory / "p", directory / "r", directory / "c", watch=watch,
        )  # fmt: skip
        await driver.start()
        nodes.append(driver)
    for driver in nodes:
        await driver.published()
    victim = next(name for name in api.slices if "l4x1-1" in name and name.startswith("00001"))
    api.tamper(victim, None)
    await until(lambda: len(api.slices) == 6)
    for driver in nodes:
        await driver.stop()
    watching.cancel()


async def test_a_claim_left_half_done_is_taken_back_without_the_kubelet(
    node: Node, claims: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(driver_module, "_COLLECT_SECONDS", 0.02)
    await node.driver.stop()
    successor = Node(node.api, node.nvml, node.plugin_dir.parent)
    await successor.driver.start()
    node.api.add_claim(claims.body("a", claims.result("gpu-0-mig-3g20gb-9-4")))
    node.nvml.fail("create_compute_instance", "UNKNOWN")
    node.nvml.fail("destroy_gpu_instance", "IN_USE")
    error = (await successor.prepare("a")).error
    assert "UNKNOWN; and what was done could not be taken back yet: destroy_gpu_instance" in error
    await until(lambda: not node.nvml.mig_devices(node.gpu) and not node.nvml.mig_enabled(node.gpu))
    await successor.driver.stop()


async def test_a_second_driver_of_the_same_node_does_not_start(node: Node) -> None:
    with pytest.raises(AlreadyRunning, match=r"another driver has .*driver.lock"):
        Node(node.api, node.nvml, node.plugin_dir.parent)


async def test_what_was_applied_is_told_in_the_claims_status(node: Node, claims: Any) -> None:
    def told(name: str) -> dict[str, Any]:
        devices = node.api.objects["resourceclaims"][name]["status"].get("devices", [])
        return {device["device"]: device["data"] for device in devices}

    share = claims.result("gpu-0", shareID="s1", consumedCapacity={"memory": "4Gi"})
    long = {"kind": "GpuConfig", "sharing": {"strategy": "TimeSlicing", "timeSlicingConfig": {"interval": "Long"}}}
    node.api.add_claim(claims.body("share", share, config=(claims.opaque(long),)))
    node.api.add_claim(claims.body("part", claims.result("gpu-1-mig-3g20gb-9-4")))
    await node.prepare("share")
    await node.prepare("part")
    await until(lambda: bool(told("share") and told("part")))
    assert told("share") == {"gpu-0": {"memoryLimit": "4Gi", "memoryLimitHeldBy": "simulated", "timeSlice": "Long"}}
    (made,) = node.nvml.mig_devices(node.nvml.host().gpus[1].uuid)
    assert told("part") == {"gpu-1-mig-3g20gb-9-4": {"uuid": made.uuid, "gpuInstance": made.gi_id}}
    await node.unprepare("share")
    node.api.add_claim(claims.body("whole", claims.result("gpu-0")))
    await node.prepare("whole")
    await node.driver._reporter.drain()
    assert told("whole") == {}, "the slice and the allocation say all there is to say"


async def test_health_is_told_in_events_on_the_node(node: Node) -> None:
    node.nvml.raise_xid(node.gpu, 79)
    node.nvml.raise_xid(node.gpu, 79)
    node.nvml.recover(node.gpu)
    await until(lambda: len(node.api.events) == 2)
    sick, well = node.api.events
    assert sick["reason"] == "GPUUnhealthy" and sick["message"] == "gpu-0: XID 79; nothing new is placed there"
    assert (sick["involvedObject"]["kind"], sick["involvedObject"]["name"]) == ("Node", "node-0")
    assert well["reason"] == "GPURecovered"


async def test_a_mig_device_that_an_admin_makes_is_found(node: Node, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(driver_module, "_COLLECT_SECONDS", 0.02)
    await node.driver.stop()
    successor = Node(node.api, node.nvml, node.plugin_dir.parent)
    await successor.driver.start()
    await successor.driver.published()
    node.nvml.set_mig_enabled(node.gpu, True)
    made = node.nvml.create_compute_instance(node.gpu, node.nvml.create_gpu_instance(node.gpu, 9, 4))
    await until(lambda: "gpu-0" not in node.api.devices())
    assert node.api.devices()["gpu-0-mig-3g20gb-9-4"]["attributes"]["uuid"] == {"string": made.uuid}
    node.nvml.destroy_compute_instance(node.gpu, made.gi_id)
    node.nvml.destroy_gpu_instance(node.gpu, made.gi_id)
    await until(lambda: "gpu-0" in node.api.devices())
    await successor.driver.stop()
