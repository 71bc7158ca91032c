"""The gRPC face of a driver: what the kubelet sees on the node's unix sockets.

One server listens on two sockets: the plugin's own, with the DRA service (v1, v1beta1) and the health stream (v1,
v1alpha1), and last the registration socket, which is where the kubelet looks. What the answers say is up to the `Node`
behind it; here they only get their shape. Every claim that was asked for is in the answer, with devices or an error.
"""

from __future__ import annotations

import asyncio
import base64
import hashlib
import time
from collections.abc import AsyncIterator, Coroutine, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

import grpc.aio
import msgspec

from capstan.node import cdi, dra_proto
from capstan.node.dra_proto import DraApi, HealthApi
from capstan.node.errors import NodeError
from capstan.node.records import Holding

RPC_SECONDS = 45.0
"""The kubelet gives up on a call after this time."""
HEALTH_REPORT_SECONDS = 10.0
"""The kubelet forgets a device's health 30 s after the last report."""
MAX_SOCKET_PATH = 107
_STOP_SECONDS = 2.0


class ClaimRef(msgspec.Struct, frozen=True):
    namespace: str
    name: str
    uid: str


class DeviceHealth(msgspec.Struct, frozen=True):
    pool: str
    device: str
    status: str
    message: str


class Node(Protocol):
    """The driver behind the plugin. Errors of the first two become the claim's error text."""

    async def prepare(self, claim: ClaimRef, deadline: float) -> Sequence[Holding]: ...

    async def unprepare(self, claim: ClaimRef, deadline: float) -> None: ...

    def health(self) -> list[DeviceHealth]: ...

    def health_changed(self) -> Coroutine[Any, Any, object]:
        """Await it: returns when `health` has news since the call."""
        ...


class SocketPathTooLong(NodeError):
    """A unix socket path longer than the kernel takes."""


def registration_path(registrar_dir: Path, driver: str) -> Path:
    """`<driver>-reg.sock`, or a hashed name when the path would be too long for a socket."""
    path = registrar_dir / f"{driver}-reg.sock"
    if len(str(path)) > MAX_SOCKET_PATH:
        digest = base64.urlsafe_b64encode(hashlib.sha256(driver.encode()).digest()[:16]).decode().rstrip("=")
        path = registrar_dir / f"dra-{digest}-reg.sock"
    return path


class Plugin:
    """Serves one driver of one node until `stop`."""

    def __init__(self, driver: str, node: Node, plugin_dir: Path, registrar_dir: Path) -> None:
        self._driver = driver
        self._node = node
        self.endpoint = plugin_dir / "dra.sock"
        self.registration = registration_path(registrar_dir, driver)
        self.registered: bool | None = None
        """What the kubelet said of the last registration; None before that."""
        self.registration_error = ""
        self._server: grpc.aio.Server | None = None

    async def start(self) -> None:
        """Raises SocketPathTooLong, OSError."""
        for path in (self.endpoint, self.registration):
            if len(str(path)) > MAX_SOCKET_PATH:
                raise SocketPathTooLong(
                    f"socket path {path} has {len(str(path))} characters, a socket takes {MAX_SOCKET_PATH}",
                    "choose a shorter directory",
                )
            path.parent.mkdir(parents=True, exist_ok=True)
            path.unlink(missing_ok=True)
        server = grpc.aio.server()
        server.add_generic_rpc_handlers(tuple(self._handlers()))
        server.add_insecure_port(f"unix:{self.endpoint}")
        server.add_insecure_port(f"unix:{self.registration}")
        await server.start()
        self._server = server

    async def stop(self) -> None:
        """The registration socket goes first: its absence tells the kubelet that the plugin leaves."""
        self.registration.unlink(missing_ok=True)
        if self._server is not None:
            await self._server.stop(_STOP_SECONDS)
            self._server = None
        self.endpoint.unlink(missing_ok=True)

    def _handlers(self) -> list[Any]:
        registration = {"GetInfo": self._info, "NotifyRegistrationStatus": self._registration_status}
        return [
            dra_proto.handler(dra_proto.REGISTRATION, registration),
            *(dra_proto.handler(api.service, self._dra_methods(api)) for api in dra_proto.DRA_VERSIONS),
            *(
                dra_proto.handler(api.service, {"NodeWatchResources": self._health_method(api)})
                for api in dra_proto.HEALTH_VERSIONS
            ),
        ]

    async def _info(self, request: Any, context: Any) -> Any:
        versions = [f"{api.version}.DRAPlugin" for api in dra_proto.DRA_VERSIONS]
        versions += [f"{api.version}.DRAResourceHealth" for api in dra_proto.HEALTH_VERSIONS]
        return dra_proto.PluginInfo(
            type="DRAPlugin", name=self._driver, endpoint=str(self.endpoint), supported_versions=versions
        )

    async def _registration_status(self, request: Any, context: Any) -> Any:
        self.registered, self.registration_error = request.plugin_registered, request.error
        return dra_proto.RegistrationStatusResponse()

    def _dra_methods(self, api: DraApi) -> dict[str, dra_proto.Handler]:
        async def prepare(request: Any, context: Any) -> Any:
            deadline = _deadline(context)
            claims = [ClaimRef(claim.namespace, claim.name, claim.uid) for claim in request.claims]
            outcomes = await asyncio.gather(
                *(self._node.prepare(claim, deadline) for claim in claims), return_exceptions=True
            )
            return api.PrepareResponse(
                claims={claim.uid: _prepared(api, outcome) for claim, outcome in zip(claims, outcomes, strict=True)}
            )

        async def unprepare(request: Any, context: Any) -> Any:
            deadline = _deadline(context)
            claims = [ClaimRef(claim.namespace, claim.name, claim.uid) for claim in request.claims]
            outcomes = await asyncio.gather(
                *(self._node.unprepare(claim, deadline) for claim in claims), return_exceptions=True
            )
            return api.UnprepareResponse(
                claims={
                    claim.uid: api.UnpreparedClaim(error="" if outcome is None else _text(outcome))
                    for claim, outcome in zip(claims, outcomes, strict=True)
                }
            )

        return {"NodePrepareResources": prepare, "NodeUnprepareResources": unprepare}

    def _health_method(self, api: HealthApi) -> dra_proto.Handler:
        async def watch(request: Any, context: Any) -> AsyncIterator[Any]:
            while True:
                changed = asyncio.ensure_future(self._node.health_changed())
                try:
                    yield _report(api, self._node.health())
                    await asyncio.wait({changed}, timeout=HEALTH_REPORT_SECONDS)
                finally:
                    changed.cancel()

        return watch


def _deadline(context: Any) -> float:
    remaining: float | None = context.time_remaining()
    return time.monotonic() + min(RPC_SECONDS, RPC_SECONDS if remaining is None else remaining) - 1.0


def _prepared(api: DraApi, outcome: Sequence[Holding] | BaseException) -> Any:
    if isinstance(outcome, BaseException):
        return api.PreparedClaim(error=_text(outcome))
    return api.PreparedClaim(devices=[_device(api, holding) for holding in outcome])


def _text(error: BaseException) -> str:
    return str(error) or type(error).__name__


def _device(api: DraApi, holding: Holding) -> Any:
    share: Mapping[str, str] = {"share_id": holding.share_id} if api.has_share_id and holding.share_id else {}
    return api.Device(
        # Containers name requests; which alternative of a request was chosen is not theirs to know.
        request_names=[holding.request.split("/")[0]],
        pool_name=holding.pool,
        device_name=holding.device,
        cdi_device_ids=[cdi.device_id(holding.cdi_name)],
        **share,
    )


def _report(api: HealthApi, devices: Sequence[DeviceHealth]) -> Any:
    now = int(time.time())
    return api.WatchResponse(
        devices=[
            api.DeviceHealth(
                device={"pool_name": device.pool, "device_name": device.device},
                health=dra_proto.HEALTH_STATUS[device.status],
                last_updated_time=now,
                message=device.message,
            )
            for device in devices
        ]
    )
