"""A tiny API server over real HTTP that speaks the list/watch wire format and fails on demand."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

import pytest
from aiohttp import web
from aiohttp.test_utils import TestServer

from capstan import kube
from capstan.kube.http import HttpTransport

PREFIXES = {
    "/api/v1/pods": "",
    "/api/v1/namespaces/{namespace}/pods": "",
    "/api/v1/namespaces/{namespace}/events": "",
    "/apis/coordination.k8s.io/v1/namespaces/{namespace}/leases": "",
}


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


class WireServer:
    """Objects by (collection, namespace, name), a history of watch events, and faults for the next requests."""

    def __init__(self) -> None:
        self.objects: dict[tuple[str, str, str], dict[str, Any]] = {}
        self.version = 0
        self.history: list[tuple[int, str, str, dict[str, Any]]] = []
        self.oldest = 0
        self.faults: list[tuple[int, dict[str, str]]] = []
        self.requests: list[tuple[str, str, dict[str, str]]] = []
        self.watches = 0
        self.truncate_next_event = False
        self.connections: set[asyncio.Task[Any]] = set()
        self.changed = asyncio.Condition()
        self.page_limit: int | None = None
        self.app = web.Application(client_max_size=8 << 20, middlewares=[self._faulty])
        for prefix in PREFIXES:
            self.app.router.add_get(prefix, self._collection)
            self.app.router.add_post(prefix, self._create)
            for method in ("GET", "PUT", "PATCH", "DELETE"):
                self.app.router.add_route(method, prefix + "/{name}", self._object)

    # -- what tests do to it

    async def put(self, name: str, namespace: str = "default", collection: str = "pods", **content: Any) -> None:
        key = (collection, namespace, name)
        old = self.objects.get(key)
        self.version += 1
        metadata = content.pop("metadata", {})
        uid = old["metadata"]["uid"] if old else f"uid-{self.version}"
        named = {"name": name, "namespace": namespace, "uid": uid, "resourceVersion": str(self.version)}
        self.objects[key] = {"metadata": named | metadata | {"resourceVersion": str(self.version)}, **content}
        await self._record("MODIFIED" if old else "ADDED", collection, self.objects[key])

    async def remove(self, name: str, namespace: str = "default", collection: str = "pods") -> None:
        gone = self.objects.pop((collection, namespace, name))
        self.version += 1
        last = {**gone, "metadata": {**gone["metadata"], "resourceVersion": str(self.version)}}
        await self._record("DELETED", collection, last)

    async def bookmark(self) -> None:
        await self._record("BOOKMARK", "pods", {"metadata": {"resourceVersion": str(self.version)}})

    async def compact(self) -> None:
        """Forgets the history: every watch position before now is gone."""
        self.oldest = self.version
        self.history.clear()

    async def drop_watches(self) -> None:
        tasks = list(self.connections)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    # -- the wire

    async def _record(self, kind: str, collection: str, obj: dict[str, Any]) -> None:
        async with self.changed:
            self.history.append((self.version, kind, collection, obj))
            self.changed.notify_all()

    @web.middleware
    async def _faulty(self, request: web.Request, handler: Any) -> web.StreamResponse:
        self.requests.append((request.method, request.path, dict(request.query)))
        if self.faults:
            status, headers = self.faults.pop(0)
            return web.Response(status=status, headers=headers, text="an upstream proxy's page")
        return await handler(request)

    async def _collection(self, request: web.Request) -> web.StreamResponse:
        collection = request.path.rsplit("/", 1)[1]
        namespace = request.match_info.get("namespace", "")
        if request.query.get("watch"):
            return await self._watch(request, collection, namespace)
        items = [o for (c, ns, _), o in sorted(self.objects.items()) if c == collection and namespace in ("", ns)]
        start, limit = int(request.query.get("continue", 0)), int(request.query.get("limit", 0)) or len(items)
        metadata = {"resourceVersion": str(self.version)}
        if start + limit < len(items):
            metadata["continue"] = str(start + limit)
        return web.json_response({"kind": "List", "metadata": metadata, "items": items[start : start + limit] or None})

    async def _watch(self, request: web.Request, collection: str, namespace: str) -> web.StreamResponse:
        self.watches += 1
        since = int(request.query.get("resourceVersion") or self.version)
        response = web.StreamResponse()
        await response.prepare(request)
        if since < self.oldest:
            await response.write(json.dumps({"type": "ERROR", "object": status(410, "Expired")}).encode() + b"\n")
            return response
        task = asyncio.current_task()
        assert task is not None
        self.connections.add(task)
        try:
            sent = 0
            while True:
                for position, kind, what, obj in self.history[sent:]:
                    sent += 1
                    bookmark = kind == "BOOKMARK"
                    if what != collection or (position <= since and not bookmark):
                        continue
                    if namespace and not bookmark and obj["metadata"]["namespace"] != namespace:
                        continue
                    line = json.dumps({"type": kind, "object": obj}).encode() + b"\n"
                    if self.truncate_next_event:
                        self.truncate_next_event = False
                        await response.write(line[: len(line) // 2])
                        return response
                    await response.write(line)
                async with self.changed:
                    if len(self.history) == sent:
                        await self.changed.wait()
                    sent = min(sent, len(self.history))
        finally:
            self.connections.discard(task)

    async def _create(self, request: web.Request) -> web.Response:
        body = await request.json()
        collection, namespace = request.path.rsplit("/", 1)[1], request.match_info["namespace"]
        name = body["metadata"]["name"]
        if (collection, namespace, name) in self.objects:
            return web.json_response(status(409, "AlreadyExists"), status=409)
        await self.put(name, namespace, collection, **body)
        return web.json_response(self.objects[collection, namespace, name], status=201)

    async def _object(self, request: web.Request) -> web.Response:
        collection, name = request.path.rsplit("/", 2)[1:]
        namespace = request.match_info["namespace"]
        found = self.objects.get((collection, namespace, name))
        if found is None:
            return web.json_response(status(404, "NotFound"), status=404)
        if request.method == "DELETE":
            options = await request.json()
            if options.get("preconditions", {}).get("uid", found["metadata"]["uid"]) != found["metadata"]["uid"]:
                return web.json_response(status(409, "Conflict"), status=409)
            await self.remove(name, namespace, collection)
            return web.json_response(found)
        if request.method in ("PUT", "PATCH"):
            body = await request.json()
            version = body.get("metadata", {}).get("resourceVersion")
            if request.method == "PUT" and version and version != found["metadata"]["resourceVersion"]:
                return web.json_response(status(409, "Conflict"), status=409)
            content = body if request.method == "PUT" else {**found, **body}
            await self.put(name, namespace, collection, **content)
        return web.json_response(self.objects[collection, namespace, name])


def status(code: int, reason: str) -> dict[str, Any]:
    return {"kind": "Status", "code": code, "reason": reason, "message": f"{reason} says the test server"}


@pytest.fixture
def until() -> Callable[[Callable[[], Any]], Awaitable[None]]:
    """Waits for a condition to become true, ten seconds at most."""

    async def wait(condition: Callable[[], Any]) -> None:
        async with asyncio.timeout(10):
            while True:
                if condition():
                    return
                await asyncio.sleep(0.002)

    return wait


@pytest.fixture
async def wire() -> AsyncIterator[WireServer]:
    wire = WireServer()
    server = TestServer(wire.app)
    await server.start_server()
    wire.url = str(server.make_url("")).rstrip("/")  # type: ignore[attr-defined]
    yield wire
    await wire.drop_watches()
    await server.close()


@pytest.fixture
async def client(wire: WireServer) -> AsyncIterator[kube.Client]:
    client = kube.Client(HttpTransport(wire.url))  # type: ignore[attr-defined]
    yield client
    await client.close()
