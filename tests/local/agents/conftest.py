"""A simulated node against the embedded API server, with a DRA plugin that does as it is told."""

from __future__ import annotations

import asyncio
import os
import tempfile
import time
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path
from typing import Any

import grpc.aio
import msgspec
import pytest

from capstan import kube
from capstan.api.resources import EVENTS, PODS, RESOURCE_CLAIMS, unstructured
from capstan.local.agents import AgentDirectories, Fleet
from capstan.local.server import Server
from capstan.node import dra_proto
from capstan.node.models import NodeSpec, node_model

RAW_PODS = unstructured("", "v1", "pods", "Pod", namespaced=True)
DRIVER = "test.example.com"
NODE = "node-0"


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


@pytest.fixture
def short_path() -> Iterator[Path]:
    """Unix socket paths hold 107 bytes: pytest's own directories are too deep."""
    with tempfile.TemporaryDirectory(prefix="cs") as directory:
        yield Path(directory)


class FakePlugin:
    """A DRA driver: answers, refuses, hangs or is gone; remembers who called."""

    def __init__(self, directory: Path, cdi: Path) -> None:
        self.directory, self.cdi = directory, cdi
        self.info = {"type": "DRAPlugin", "name": DRIVER, "supported_versions": ["v1.DRAPlugin"]}
        self.calls: list[tuple[str, str]] = []
        self.registered: list[tuple[bool, str]] = []
        self.prepared: set[str] = set()
        self.error = ""
        self.skip = False
        self.entered = asyncio.Event()
        self.gate = asyncio.Event()
        self.gate.set()
        self._servers: list[grpc.aio.Server] = []

    @property
    def socket(self) -> Path:
        return self.directory / f"{DRIVER}-reg.sock"

    async def start(self) -> None:
        self.directory.mkdir(exist_ok=True)
        endpoint = self.directory.parent / "dra.sock"
        self.info["endpoint"] = str(endpoint)
        api = dra_proto.DRA_VERSIONS[0]
        dra = dra_proto.handler(
            api.service, {"NodePrepareResources": self._prepare, "NodeUnprepareResources": self._unprepare}
        )
        registration = dra_proto.handler(
            dra_proto.REGISTRATION, {"GetInfo": self._info, "NotifyRegistrationStatus": self._notify}
        )
        for path, handler in ((endpoint, dra), (self.socket, registration)):
            server = grpc.aio.server()
            server.add_generic_rpc_handlers((handler,))
            server.add_insecure_port(f"unix:{path}")
            await server.start()
            self._servers.append(server)

    async def stop(self) -> None:
        self.socket.unlink(missing_ok=True)
        for server in self._servers:
            await server.stop(0)
        self._servers.clear()

    async def _info(self, request: Any, context: Any) -> Any:
        return dra_proto.PluginInfo(**self.info)

    async def _notify(self, request: Any, context: Any) -> Any:
        self.registered.append((request.plugin_registered, request.error))
        return dra_proto.RegistrationStatusResponse()

    async def _prepare(self, request: Any, context: Any) -> Any:
        api = dra_proto.DRA_VERSIONS[0]
        self.entered.set()
        await self.gate.wait()
        answer = api.PrepareResponse()
        for claim in request.claims:
            self.calls.append(("prepare", claim.name))
            if self.skip:
                continue
            if self.error:
                answer.claims[claim.uid].error = self.error
                continue
            self.prepared.add(claim.uid)
            name = f"{claim.uid}-dev"
            device = api.Device(
                request_names=["gpu"],
                pool_name=NODE,
                device_name="dev",
                cdi_device_ids=[f"test.example.com/claim={name}"],
            )
            answer.claims[claim.uid].devices.append(device)
            edits = {"env": [f"CLAIM={claim.name}"], "deviceNodes": [{"path": "/dev/test0"}]}
            annotations = {"platform.capstan.dev/product": "Test GPU", "platform.capstan.dev/uuid": f"GPU-{claim.name}"}
            spec = {
                "cdiVersion": "0.6.0",
                "kind": "test.example.com/claim",
                "containerEdits": {"env": ["COMMON=1"]},
                "devices": [{"name": name, "annotations": annotations, "containerEdits": edits}],
            }
            self.cdi.mkdir(exist_ok=True)
            (self.cdi / f"{claim.uid}.json").write_bytes(msgspec.json.encode(spec))
        return answer

    async def _unprepare(self, request: Any, context: Any) -> Any:
        answer = dra_proto.DRA_VERSIONS[0].UnprepareResponse()
        for claim in request.claims:
            self.calls.append(("unprepare", claim.name))
            answer.claims[claim.uid].error = self.error
            if not self.error:
                self.prepared.discard(claim.uid)
                (self.cdi / f"{claim.uid}.json").unlink(missing_ok=True)
        return answer


class House:
    """One node, its plugin, and a stand-in for the scheduler: `run` creates, reserves and binds."""

    def __init__(self, server: Server, root: Path) -> None:
        self.server, self.root = server, root
        self.client = kube.Client(server.transport())
        self.plugin = FakePlugin(root / "reg", root / "cdi")
        self.ahead = 0.0
        self.fleet: Fleet
        self._task: asyncio.Task[None] | None = None

    def now(self) -> float:
        return time.time() + self.ahead

    def skip(self, seconds: float) -> None:
        """Lets time pass for the agents."""
        self.ahead += seconds
        self.fleet.wake()

    async def start_agents(self) -> None:
        (self.root / "state").mkdir(exist_ok=True)
        directories = AgentDirectories(self.root / "state", self.root / "reg", self.root / "cdi")
        self.fleet = Fleet(
            kube.Client(self.server.transport(user_agent="kubelet")),
            [NodeSpec(NODE, node_model("a100x2"))],
            lambda _: directories,
            logs=self.server.logs,
            extended={NODE: {"example.com/key": 1}},
            now=self.now,
        )
        self._task = asyncio.create_task(self.fleet.run())
        await self.until(lambda: self.fleet.caches[0].is_synced)

    async def stop_agents(self) -> None:
        """As abrupt as a kill: nothing is stopped or given back."""
        assert self._task is not None
        self._task.cancel()
        [ended] = await asyncio.gather(self._task, return_exceptions=True)
        assert isinstance(ended, asyncio.CancelledError), ended

    async def run(self, name: str, *command: str, bind: bool = True, **spec: Any) -> dict[str, Any]:
        container = {"name": "main", "image": "app:1", "command": list(command), **spec.pop("container", {})}
        content = {"containers": [container], "restartPolicy": "Never", **spec}
        pod = await self.client.create(PODS, {"metadata": {"name": name, "namespace": "default"}, "spec": content})
        for use in content.get("resourceClaims", []):
            await self.reserve(use["resourceClaimName"], pod)
        if bind:
            await self.bind(name)
        return pod

    async def bind(self, name: str) -> None:
        body = {
            "apiVersion": "v1",
            "kind": "Binding",
            "metadata": {"name": name},
            "target": {"kind": "Node", "name": NODE},
        }
        await self.client.post(PODS, name, "default", "binding", body)

    async def claim(self, name: str, **result: Any) -> None:
        requests = [{"name": "gpu", "exactly": {"deviceClassName": "test"}}]
        spec = {"devices": {"requests": requests}}
        await self.client.create(RESOURCE_CLAIMS, {"metadata": {"name": name, "namespace": "default"}, "spec": spec})
        results = [{"request": "gpu", "driver": DRIVER, "pool": NODE, "device": "dev", **result}]
        status = {"allocation": {"devices": {"results": results}}}
        await self.client.patch(RESOURCE_CLAIMS, name, "default", patch={"status": status}, subresource="status")

    async def reserve(self, name: str, pod: dict[str, Any]) -> None:
        claim = await self.client.get(RESOURCE_CLAIMS, name, "default")
        users = [{"resource": "pods", "name": u.name, "uid": u.uid} for u in claim.status.reserved_for]
        metadata = pod["metadata"]
        users.append({"resource": "pods", "name": metadata["name"], "uid": metadata["uid"]})
        patch = {"status": {"reservedFor": users}}
        await self.client.patch(RESOURCE_CLAIMS, name, "default", patch=patch, subresource="status")

    async def pod(self, name: str) -> dict[str, Any]:
        return await self.client.get(RAW_PODS, name, "default")

    async def reach(self, name: str, phase: str) -> dict[str, Any]:
        async def there() -> dict[str, Any] | None:
            pod = await self.pod(name)
            return pod if pod["status"]["phase"] == phase else None

        found: dict[str, Any] = await self.until(there)
        return found

    async def gone(self, name: str) -> None:
        async def absent() -> bool:
            try:
                await self.pod(name)
            except kube.NotFound:
                return True
            return False

        await self.until(absent)

    async def logs(self, name: str, container: str = "", **query: str) -> list[str]:
        query |= {"container": container} if container else {}
        answer = await self.client.request("GET", f"/api/v1/namespaces/default/pods/{name}/log", query=query)
        return answer.body.decode().splitlines()

    async def events(self, reason: str) -> list[str]:
        return [e.message for e in (await self.client.list(EVENTS, "default")).items if e.reason == reason]

    async def until(self, condition: Callable[[], Any]) -> Any:
        """The first true result of a function or coroutine function; ten seconds at most."""
        async with asyncio.timeout(10):
            while True:
                found = condition()
                if asyncio.iscoroutine(found):
                    found = await found
                if found:
                    return found
                await asyncio.sleep(0.005)

    def checkpoint(self) -> list[dict[str, Any]]:
        file = self.root / "state" / "dra_manager_state"
        return msgspec.json.decode(file.read_bytes()) if os.path.exists(file) else []


@pytest.fixture
async def house(short_path: Path) -> AsyncIterator[House]:
    server = Server(None)
    await server.start()
    house = House(server, short_path)
    await house.plugin.start()
    await house.start_agents()
    yield house
    await house.stop_agents()
    await house.plugin.stop()
    await server.stop()
