"""Agents that share a processor with the control plane give way to a burst of pods."""

from __future__ import annotations

import asyncio
import time
from pathlib import Path
from typing import Any

import pytest

from capstan import kube
from capstan.api.resources import PODS
from capstan.local.agents import AgentDirectories, Fleet
from capstan.local.server import Server
from capstan.node.models import NodeSpec, node_model

pytestmark = pytest.mark.anyio
NODE = "node-0"


@pytest.fixture
async def client(short_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """A cluster with one node that takes up two pods whenever `calm.release()` is called."""
    monkeypatch.setattr(Fleet, "WORKERS", 2)
    server, calm = Server(None), asyncio.Semaphore(0)
    await server.start()
    client: Any = kube.Client(server.transport())

    async def until_calm() -> None:
        await calm.acquire()

    client.calm = calm
    (short_path / "state").mkdir()
    directories = AgentDirectories(short_path / "state", short_path / "reg", short_path / "cdi")
    fleet = Fleet(client, [NodeSpec(NODE, node_model("a100x2"))], lambda _: directories, calm=until_calm)
    task = asyncio.create_task(fleet.run())
    async with asyncio.timeout(10):
        await fleet.caches[0].synced()
    yield client
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)
    await server.stop()


async def running(client: kube.Client) -> int:
    return sum(pod.status.phase == "Running" for pod in (await client.list(PODS)).items)


async def test_new_pods_are_taken_up_in_portions(client: Any) -> None:
    for number in range(5):
        spec = {"nodeName": NODE, "containers": [{"name": "main", "image": "app", "command": ["sleep", "infinity"]}]}
        await client.create(PODS, {"metadata": {"name": f"p{number}", "namespace": "default"}, "spec": spec})
    assert await running(client) == 0
    for expected in (2, 4, 5):
        client.calm.release()
        async with asyncio.timeout(10):
            while await running(client) < expected:
                await asyncio.sleep(0.005)
        await asyncio.sleep(0.05)
        assert await running(client) == expected


async def test_it_is_not_calm_while_this_thread_is_busy() -> None:
    server = Server(None)
    await server.start()
    busy_until = time.monotonic() + 0.3

    async def decide() -> None:
        while time.monotonic() < busy_until:
            time.sleep(0.05)  # noqa: ASYNC251
            await asyncio.sleep(0)

    work = asyncio.create_task(decide())
    await server.calm()
    assert time.monotonic() >= busy_until
    async with asyncio.timeout(5):
        await server.calm()
    await work
    await server.stop()
