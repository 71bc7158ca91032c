"""What the node tests share: claims as an allocator would have left them, and an API server that fits in one file."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any
from urllib.parse import unquote

import msgspec
import pytest

from capstan import kube
from capstan.api.resource import ResourceClaim
from capstan.node import models
from capstan.node.simulated import SimulatedNvml

DRIVER = "gpu.nvidia.com"
NODE = "node-0"


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


def result(device: str, request: str = "gpu", **more: Any) -> dict[str, Any]:
    return {"request": request, "driver": DRIVER, "pool": NODE, "device": device, **more}


def opaque(parameters: dict[str, Any], source: str = "FromClaim", requests: tuple[str, ...] = ()) -> dict[str, Any]:
    parameters = {"apiVersion": "resource.nvidia.com/v1beta1", **parameters}
    return {"source": source, "requests": list(requests), "opaque": {"driver": DRIVER, "parameters": parameters}}


def claim_body(name: str, *results: dict[str, Any], config: tuple[dict[str, Any], ...] = ()) -> dict[str, Any]:
    return {
        "apiVersion": "resource.k8s.io/v1",
        "kind": "ResourceClaim",
        "metadata": {"name": name, "namespace": "default", "uid": f"uid-{name}"},
        "spec": {},
        "status": {"allocation": {"devices": {"results": list(results), "config": list(config)}}},
    }


class Claims:
    """Builders: `claims(name, claims.result("gpu-0"), config=(claims.opaque({...}),))`."""

    result = staticmethod(result)
    opaque = staticmethod(opaque)
    body = staticmethod(claim_body)

    def __call__(self, name: str, *results: dict[str, Any], config: tuple[dict[str, Any], ...] = ()) -> ResourceClaim:
        return msgspec.convert(claim_body(name, *results, config=config), ResourceClaim)

    def on(self, name: str, *devices: str, config: tuple[dict[str, Any], ...] = ()) -> ResourceClaim:
        """A claim for these devices, the requests called r0, r1, ..."""
        return self(name, *(result(device, f"r{i}") for i, device in enumerate(devices)), config=config)

    def share(self, name: str, device: str, memory: str, config: tuple[dict[str, Any], ...] = ()) -> ResourceClaim:
        share = result(device, shareID=f"share-{name}", consumedCapacity={"memory": memory})
        return self(name, share, config=config)


@pytest.fixture
def claims() -> Claims:
    return Claims()


@pytest.fixture
def gpus(tmp_path: Path) -> Callable[[str], SimulatedNvml]:
    """`gpus("a100x1")`: the simulated GPUs of one node; a second call stands for a restarted process."""

    def make(model: str = "a100x1") -> SimulatedNvml:
        return SimulatedNvml(NODE, models.node_model(model), tmp_path / "gpus.json")

    return make


class ApiDouble:
    """Enough of an API server for a driver: claims and slices over the wire format, with watches and dropped fields."""

    def __init__(self) -> None:
        self.objects: dict[str, dict[str, dict[str, Any]]] = {"resourceclaims": {}, "resourceslices": {}}
        self.version = 0
        self.unknown_fields: set[str] = set()
        """Names of fields that are dropped on write, as a server does that does not know them."""
        self.failing = 0
        self.writes: list[tuple[str, str]] = []
        self.events: list[dict[str, Any]] = []
        self._watchers: list[asyncio.Queue[bytes]] = []

    @property
    def slices(self) -> dict[str, dict[str, Any]]:
        return self.objects["resourceslices"]

    def devices(self) -> dict[str, dict[str, Any]]:
        return {d["name"]: d for s in self.slices.values() for d in s["spec"].get("devices", ())}

    def add_claim(self, body: dict[str, Any]) -> None:
        self.objects["resourceclaims"][body["metadata"]["name"]] = body

    def client(self) -> kube.Client:
        return kube.Client(self)

    def _changed(self, kind: str, body: dict[str, Any]) -> None:
        for queue in self._watchers:
            queue.put_nowait(json.dumps({"type": kind, "object": body}).encode())

    def tamper(self, name: str, body: dict[str, Any] | None) -> None:
        """What somebody else does: replaces or (None) deletes a slice."""
        self.version += 1
        if body is None:
            self._changed("DELETED", self.slices.pop(name))
        else:
            body["metadata"]["resourceVersion"] = str(self.version)
            self.slices[name] = body
            self._changed("MODIFIED", body)

    async def request(
        self,
        method: str,
        path: str,
        *,
        query: Mapping[str, str] | None = None,
        body: bytes | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> kube.Response:
        if self.failing:
            self.failing -= 1
            return _status(503, "ServiceUnavailable")
        parts = unquote(path).split("/")
        if "events" in parts:
            self.events.append(json.loads(body or b"{}"))
            return kube.Response(201, body or b"", {})
        if parts[-1] == "status":
            claim = self.objects["resourceclaims"][parts[-2]]
            claim["status"] |= json.loads(body or b"{}")["status"]
            return kube.Response(200, json.dumps(claim).encode(), {})
        plural = next(part for part in parts if part in self.objects)
        name = parts[-1] if parts[-1] != plural else ""
        store = self.objects[plural]
        if method == "GET":
            if not name:
                wanted = dict(term.split("=") for term in (query or {}).get("fieldSelector", "").split(",") if term)
                items = [o for o in store.values() if all(o["spec"][f.split(".")[1]] == v for f, v in wanted.items())]
                listing = {"metadata": {"resourceVersion": str(self.version)}, "items": items}
                return kube.Response(200, json.dumps(listing).encode(), {})
            return (
                kube.Response(200, json.dumps(store[name]).encode(), {}) if name in store else _status(404, "NotFound")
            )
        sent = json.loads(body or b"{}")
        self.writes.append((method, name))
        self.version += 1
        if method == "DELETE":
            if name not in store:
                return _status(404, "NotFound")
            gone = store.pop(name)
            gone["metadata"]["resourceVersion"] = str(self.version)
            self._changed("DELETED", gone)
            return kube.Response(200, json.dumps(gone).encode(), {})
        metadata = sent["metadata"]
        if method == "POST":
            metadata["name"] = metadata.get("name") or f"{metadata['generateName']}{self.version:05d}"
            metadata["uid"] = f"uid-{self.version}"
        elif metadata["resourceVersion"] != store[name]["metadata"]["resourceVersion"]:
            return _status(409, "Conflict")
        metadata["resourceVersion"] = str(self.version)
        store[metadata["name"]] = stored = _without(sent, self.unknown_fields)
        self._changed("ADDED" if method == "POST" else "MODIFIED", stored)
        return kube.Response(201 if method == "POST" else 200, json.dumps(stored).encode(), {})

    @asynccontextmanager
    async def stream(
        self, path: str, *, query: Mapping[str, str] | None = None, headers: Mapping[str, str] | None = None
    ) -> AsyncIterator[AsyncIterator[bytes]]:
        queue: asyncio.Queue[bytes] = asyncio.Queue()
        self._watchers.append(queue)

        async def events() -> AsyncIterator[bytes]:
            while True:
                yield await queue.get()

        try:
            yield events()
        finally:
            self._watchers.remove(queue)

    async def close(self) -> None:
        pass


def _status(code: int, reason: str) -> kube.Response:
    body = {"kind": "Status", "status": "Failure", "code": code, "reason": reason, "message": reason}
    return kube.Response(code, json.dumps(body).encode(), {})


def _without(value: Any, names: set[str]) -> Any:
    if isinstance(value, dict):
        return {key: _without(item, names) for key, item in value.items() if key not in names}
    return [_without(item, names) for item in value] if isinstance(value, list) else value


@pytest.fixture
def api() -> ApiDouble:
    return ApiDouble()
