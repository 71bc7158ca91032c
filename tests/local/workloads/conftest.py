"""The embedded API server with the workload controllers, and a stand-in for scheduler and kubelet."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable
from typing import Any

import pytest

from capstan import kube
from capstan.api import clock, resources
from capstan.api.core import Pod
from capstan.api.resources import PODS, Resource
from capstan.local.server import Server
from capstan.local.workloads import WorkloadControllers

RAW = {
    resource.kind: resources.unstructured(
        resource.group, resource.version, resource.plural, resource.kind, namespaced=resource.namespaced
    )
    for resource in vars(resources).values()
    if isinstance(resource, Resource)
}


NODE_GRACE_SECONDS = 10_000.0
"""Longer than all other jumps of the clock."""


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


class House:
    """What tests do to the cluster. With `running` pods start and end on their own, else by `set_phase`."""

    def __init__(self, server: Server, skip: list[float]) -> None:
        self.server = server
        self.client = kube.Client(server.transport())
        self.pods = kube.Cache(self.client, PODS)
        self.running = True
        self.most_pods = 0
        self.fewest_ready = 10**9
        self.created: list[str] = []
        self.deleted: list[str] = []
        self._skip = skip
        self._work: asyncio.Queue[Pod] = asyncio.Queue()
        self.pods.on_change(self._pod_changed)

    def now(self) -> float:
        return time.time() + self._skip[0]

    def skip(self, seconds: float) -> None:
        """Moves the controllers' clock forward."""
        self._skip[0] += seconds

    def _pod_changed(self, change: kube.Change[Pod]) -> None:
        if change.old is None:
            self.created.append(change.object.metadata.name)
        elif change.new is None:
            self.deleted.append(change.object.metadata.name)
        alive = [p for p in self.pods.objects.values() if p.status.phase in ("Pending", "Running")]
        self.most_pods = max(self.most_pods, len(alive))
        self.fewest_ready = min(self.fewest_ready, sum(self.is_ready(pod) for pod in alive))
        if change.new is not None and self.running:
            self._work.put_nowait(change.new)

    @staticmethod
    def is_ready(pod: Pod) -> bool:
        going = pod.metadata.deletion_timestamp is not None
        return not going and any(c.type == "Ready" and c.status == "True" for c in pod.status.conditions)

    async def kubelet(self) -> None:
        while True:
            pod = await self._work.get()
            try:
                if pod.metadata.deletion_timestamp is not None:
                    await self.client.delete(PODS, pod.metadata.name, pod.metadata.namespace, grace_period=0)
                elif pod.status.phase == "Pending" and not pod.spec.node_name:
                    await self.bind(pod.metadata.name, pod.metadata.namespace)
                elif pod.status.phase == "Pending":
                    await self.set_phase(pod.metadata.name, "Running", namespace=pod.metadata.namespace)
            except kube.NotFound:
                continue

    async def bind(self, name: str, namespace: str = "default", node: str = "") -> None:
        pod = self.pods.get(name, namespace)
        required = pod.spec.affinity.node_affinity if pod and pod.spec.affinity else None
        selector = required.required_during_scheduling_ignored_during_execution if required else None
        fixed = selector.node_selector_terms[0].match_fields[0].values[0] if selector else ""
        body = {"metadata": {"name": name}, "target": {"kind": "Node", "name": node or fixed or "node-1"}}
        try:
            await self.client.post(PODS, name, namespace, "binding", {"apiVersion": "v1", "kind": "Binding", **body})
        except kube.Conflict:
            pass  # bound by the test itself

    async def set_phase(self, name: str, phase: str, *, namespace: str = "default", restarts: int = 0) -> None:
        stamp = clock.render(self.now())
        ready = {"type": "Ready", "status": "True" if phase == "Running" else "False", "lastTransitionTime": stamp}
        state = {"terminated": {"exitCode": 0 if phase == "Succeeded" else 1, "finishedAt": stamp}}
        status = {
            "phase": phase,
            "conditions": [ready],
            "containerStatuses": [
                {
                    "name": "main",
                    "image": "x",
                    "imageID": "x",
                    "ready": phase == "Running",
                    "restartCount": restarts,
                    "state": {"running": {"startedAt": stamp}} if phase == "Running" else state,
                }
            ],
        }
        await self.client.patch(PODS, name, namespace, patch={"status": status}, subresource="status")

    async def create(self, kind: str, name: str, namespace: str = "default", **content: Any) -> dict[str, Any]:
        metadata = {"name": name, "namespace": namespace, **content.pop("metadata", {})}
        return (await self.client.create(RAW[kind], {"metadata": metadata, **content})).document

    async def add_node(self, name: str, **content: Any) -> None:
        await self.client.create(RAW["Node"], {"metadata": {"name": name, **content.pop("metadata", {})}, **content})
        stamp = clock.render(self.now())
        ready = {"type": "Ready", "status": "True", "lastTransitionTime": stamp}
        await self.client.patch(RAW["Node"], name, patch={"status": {"conditions": [ready]}}, subresource="status")

    async def get(self, kind: str, name: str, namespace: str = "default") -> dict[str, Any]:
        return await self.client.get(RAW[kind], name, namespace if RAW[kind].namespaced else "")

    async def names(self, kind: str, namespace: str = "default") -> list[str]:
        return sorted(item["metadata"]["name"] for item in (await self.client.list(RAW[kind], namespace)).items)

    async def patch(self, kind: str, name: str, patch: dict[str, Any], namespace: str = "default") -> None:
        await self.client.patch(RAW[kind], name, namespace if RAW[kind].namespaced else "", patch=patch)

    async def delete(self, kind: str, name: str, namespace: str = "default", propagation: str | None = None) -> None:
        await self.client.delete(RAW[kind], name, namespace if RAW[kind].namespaced else "", propagation=propagation)

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

    async def status(self, kind: str, name: str, **fields: Any) -> dict[str, Any]:
        """Waits until the status has these values; returns the object."""

        async def reached() -> dict[str, Any] | None:
            found = await self.get(kind, name)
            status = found.get("status") or {}
            return found if all((status.get(field) or 0) == value for field, value in fields.items()) else None

        try:
            found: dict[str, Any] = await self.until(reached)
        except TimeoutError:
            raise AssertionError(f"{kind} {name}: {(await self.get(kind, name)).get('status')}, not {fields}") from None
        return found


@pytest.fixture
async def house() -> AsyncIterator[House]:
    skip = [0.0]
    server = Server(None)
    await server.start()
    house = House(server, skip)
    await house.add_node("node-1")
    controllers = WorkloadControllers(
        kube.Client(server.transport()), now=house.now, node_grace_seconds=NODE_GRACE_SECONDS
    )
    tasks = [asyncio.create_task(work) for work in (controllers.run(), house.pods.run(), house.kubelet())]
    await house.pods.synced()
    yield house
    for task in tasks:
        task.cancel()
    ended = await asyncio.gather(*tasks, return_exceptions=True)
    await server.stop()
    assert all(isinstance(end, asyncio.CancelledError) for end in ended), ended


def template(image: str = "app:1", labels: dict[str, str] | None = None, **spec: Any) -> dict[str, Any]:
    return {
        "metadata": {"labels": labels or {"app": "web"}},
        "spec": {"containers": [{"name": "main", "image": image}], **spec},
    }


@pytest.fixture(name="template")
def template_fixture() -> Callable[..., dict[str, Any]]:
    return template
