"""An embedded API server with the platform's definitions, and controllers that act under their own accounts."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import pytest

from capstan import kube, local
from capstan.api import crds, resources
from capstan.embedded import accounts
from capstan.embedded.platform import install

QUEUE = {
    "apiVersion": "scheduling.run.ai/v2",
    "kind": "Queue",
    "metadata": {"name": "default-queue"},
    "spec": {
        "resources": {name: {"quota": -1, "limit": -1, "overQuotaWeight": 1} for name in ("cpu", "memory", "gpu")}
    },
}
GPU_CLASS = {
    "apiVersion": "resource.k8s.io/v1",
    "kind": "DeviceClass",
    "metadata": {"name": "gpu.nvidia.com"},
    "spec": {
        "extendedResourceName": "nvidia.com/gpu",
        "selectors": [{"cel": {"expression": "device.driver == 'gpu.nvidia.com'"}}],
    },
}


class House:
    """The server, an administrator's client, and whatever components a test starts."""

    def __init__(self, server: local.Server) -> None:
        self.server = server
        self.client = kube.Client(server.transport())
        self._running: list[asyncio.Task[None]] = []

    def account(self, name: str) -> kube.Client:
        return kube.Client(self.server.transport(local.service_account(accounts.NAMESPACE, name)), field_manager=name)

    async def grant(self, name: str, rules: list[Any]) -> kube.Client:
        await install(self.client, accounts.manifests_for(name, rules), update=True)
        return self.account(name)

    def start(self, *components: Any) -> list[asyncio.Task[None]]:
        tasks = [asyncio.create_task(component.run()) for component in components]
        self._running += tasks
        return tasks

    async def stop(self) -> None:
        for task in self._running:
            task.cancel()
        await asyncio.gather(*self._running, return_exceptions=True)

    async def until(self, look: Any, what: str, patience: float = 10) -> Any:
        for _ in range(int(patience / 0.02)):
            seen = await look()
            if seen:
                return seen
            await asyncio.sleep(0.02)
        raise AssertionError(f"not seen within {patience} s: {what}")

    async def node(self, name: str, *, gpus: int = 0) -> None:
        """A ready node; its GPUs are offered as devices of one pool."""
        await self.client.create(resources.NODES, {"metadata": {"name": name}})
        status = {
            "allocatable": {"cpu": "16", "memory": "64Gi", "pods": "110"},
            "conditions": [{"type": "Ready", "status": "True"}],
        }
        await self.client.patch(resources.NODES, name, patch={"status": status}, subresource="status")
        if gpus:
            await self.client.create(resources.RESOURCE_SLICES, slice_of(name, gpus))

    async def pod(self, name: str, *, gpus: int = 0, group: str = "", **spec: Any) -> None:
        container: dict[str, Any] = {"name": "main", "image": "x"}
        if gpus:
            container["resources"] = {"limits": {"nvidia.com/gpu": str(gpus)}}
        await self.client.create(
            resources.PODS,
            {
                "metadata": {
                    "name": name,
                    "namespace": "default",
                    "labels": {"kai.scheduler/queue": "default-queue", "app": name},
                    "annotations": {"pod-group-name": group} if group else {},
                },
                "spec": {"schedulerName": "kai-scheduler", "containers": [container]} | spec,
            },
        )

    async def lone(self, name: str, *, gpus: int = 0, **group: Any) -> None:
        """A pod that is a gang of its own, as the grouper makes it."""
        await self.group(f"pg-{name}", 1, **group)
        await self.pod(name, gpus=gpus, group=f"pg-{name}")

    async def group(self, name: str, members: int, **spec: Any) -> None:
        await self.client.create(
            resources.POD_GROUPS,
            {
                "metadata": {"name": name, "namespace": "default"},
                "spec": {"minMember": members, "queue": "default-queue"} | spec,
            },
        )

    async def bound(self, name: str) -> str:
        return (await self.client.get(resources.PODS, name, "default")).spec.node_name


def slice_of(node: str, gpus: int) -> dict[str, Any]:
    return {
        "metadata": {"name": f"{node}-gpus"},
        "spec": {
            "driver": "gpu.nvidia.com",
            "nodeName": node,
            "pool": {"name": node, "generation": 1, "resourceSliceCount": 1},
            "devices": [
                {
                    "name": f"gpu-{i}",
                    "attributes": {"type": {"string": "gpu"}},
                    "capacity": {"memory": {"value": "40Gi"}},
                }
                for i in range(gpus)
            ],
        },
    }


@pytest.fixture
async def house() -> AsyncIterator[House]:
    server = local.Server()
    await server.start()
    house = House(server)
    namespace = {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": accounts.NAMESPACE}}
    await install(house.client, [namespace, *crds.load()])
    await install(house.client, [QUEUE, GPU_CLASS])
    yield house
    await house.stop()
    await server.stop()


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"
