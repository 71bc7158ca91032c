"""The kubelet's side of plugin registration and of the DRA service: sockets found in a directory, calls over gRPC.

A plugin is known by its registration socket. A socket that is new, or was made again, is asked who it is, and told
whether it was accepted; of several sockets of one driver the one registered last is used.
"""

from __future__ import annotations

import asyncio
import logging
import os
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import grpc
import grpc.aio

from capstan.node import dra_proto

CALL_SECONDS = 45.0
"""The deadline of prepare and unprepare calls."""
_REGISTRATION_SECONDS = 5.0
_SETTLED_NS = 2_000_000_000
_SUPPORTED = {f"{api.version}.DRAPlugin": api for api in dra_proto.DRA_VERSIONS}

_log = logging.getLogger(__name__)


class PluginError(Exception):
    """A plugin that is not there, does not answer, or refuses."""


@dataclass(frozen=True)
class ClaimRef:
    namespace: str
    name: str
    uid: str


@dataclass(frozen=True)
class PreparedDevice:
    """`requests` empty: for every request of the claim."""

    requests: Sequence[str]
    pool: str
    device: str
    cdi_ids: Sequence[str]
    share_id: str = ""


@dataclass
class _Plugin:
    driver: str
    endpoint: str
    api: dra_proto.DraApi
    channel: grpc.aio.Channel
    stub: dra_proto.Stub = field(init=False)

    def __post_init__(self) -> None:
        self.stub = dra_proto.Stub(self.channel, self.api.service)


class Plugins:
    """The DRA plugins of one node. `directory` is watched by calling `scan`, which is cheap when nothing changed."""

    def __init__(self, directory: Path, now: Callable[[], float] = time.time) -> None:
        self._directory = directory
        self._now = now
        self._changed_at = 0
        self._seen: dict[str, tuple[int, int]] = {}
        self._by_socket: dict[str, _Plugin] = {}
        self._failed = False
        self._scanning = asyncio.Lock()
        self.lost: dict[str, float] = {}
        """Drivers without a plugin, by when (POSIX seconds) the last one went."""

    @property
    def drivers(self) -> set[str]:
        return {plugin.driver for plugin in self._by_socket.values()}

    async def scan(self) -> None:
        """Registers new sockets and forgets vanished ones."""
        # Who comes while another scan registers a plugin waits for it.
        async with self._scanning:
            await self._scan()

    async def _scan(self) -> None:
        try:
            changed_at = os.stat(self._directory).st_mtime_ns
        except FileNotFoundError:
            changed_at = -1
        # A directory that changed a moment ago may change again within the same tick of its timestamp.
        settled = time.time_ns() - changed_at > _SETTLED_NS
        if changed_at == self._changed_at and settled and not self._failed:
            return
        self._changed_at, self._failed = changed_at, False
        found: dict[str, tuple[int, int]] = {}
        if changed_at != -1:
            with os.scandir(self._directory) as entries:
                # Inode numbers are used again; with the time of creation they tell one socket from the next.
                found = {
                    entry.path: (entry.inode(), entry.stat().st_ctime_ns)
                    for entry in entries
                    if entry.name.endswith(".sock")
                }
        for path in [path for path, identity in self._seen.items() if found.get(path) != identity]:
            await self._forget(path)
        for path, identity in found.items():
            if path not in self._seen:
                try:
                    self._by_socket[path] = await self._register(path)
                    self._seen[path] = identity
                    self.lost.pop(self._by_socket[path].driver, None)
                except (PluginError, grpc.RpcError, OSError) as error:
                    # The socket may be bound but not served yet: it is looked at again.
                    self._failed = True
                    _log.info("plugin socket %s: %s", path, _detail(error))

    async def _register(self, path: str) -> _Plugin:
        async with dra_proto.channel(path) as channel:
            stub = dra_proto.Stub(channel, dra_proto.REGISTRATION)
            info = await stub.call("GetInfo", dra_proto.InfoRequest(), _REGISTRATION_SECONDS)
            problem = ""
            api = next((_SUPPORTED[name] for name in _SUPPORTED if name in info.supported_versions), None)
            if info.type != "DRAPlugin":
                problem = f"plugin type {info.type!r} is not DRAPlugin"
            elif api is None:
                versions = ", ".join(info.supported_versions) or "nothing"
                problem = f"none of {', '.join(_SUPPORTED)} is supported, the plugin has {versions}"
            elif not info.name:
                problem = "the plugin has no name"
            status = dra_proto.RegistrationStatus(plugin_registered=not problem, error=problem)
            await stub.call("NotifyRegistrationStatus", status, _REGISTRATION_SECONDS)
            if problem or api is None:
                raise PluginError(problem)
            endpoint = info.endpoint or path
            return _Plugin(info.name, endpoint, api, dra_proto.channel(endpoint))

    async def _forget(self, path: str) -> None:
        del self._seen[path]
        plugin = self._by_socket.pop(path)
        if plugin.driver not in self.drivers:
            self.lost[plugin.driver] = self._now()
        await plugin.channel.close()

    async def _plugin(self, driver: str) -> _Plugin:
        await self.scan()
        for plugin in reversed(self._by_socket.values()):
            if plugin.driver == driver:
                return plugin
        raise PluginError(f"plugin name {driver} not found in the list of registered DRA plugins")

    async def prepare(self, driver: str, claims: Sequence[ClaimRef]) -> Mapping[str, list[PreparedDevice]]:
        """The devices of each claim by its uid; raises PluginError if one of them failed or is missing."""
        plugin = await self._plugin(driver)
        request = plugin.api.PrepareRequest(claims=[_message(plugin.api, claim) for claim in claims])
        answer = await self._call(plugin, "NodePrepareResources", request)
        result = {}
        for claim in claims:
            if claim.uid not in answer.claims:
                raise PluginError(f"NodePrepareResources of {driver} skipped claim {claim.namespace}/{claim.name}")
            prepared = answer.claims[claim.uid]
            if prepared.error:
                raise PluginError(
                    f"NodePrepareResources failed for claim {claim.namespace}/{claim.name}: {prepared.error}"
                )
            result[claim.uid] = [
                PreparedDevice(
                    requests=[name.partition("/")[0] for name in device.request_names],
                    pool=device.pool_name,
                    device=device.device_name,
                    cdi_ids=list(device.cdi_device_ids),
                    share_id=device.share_id if plugin.api.has_share_id else "",
                )
                for device in prepared.devices
            ]
        return result

    async def unprepare(self, driver: str, claims: Sequence[ClaimRef]) -> None:
        """Raises PluginError if one of the claims failed or is missing in the answer."""
        plugin = await self._plugin(driver)
        request = plugin.api.UnprepareRequest(claims=[_message(plugin.api, claim) for claim in claims])
        answer = await self._call(plugin, "NodeUnprepareResources", request)
        for claim in claims:
            if claim.uid not in answer.claims:
                raise PluginError(f"NodeUnprepareResources of {driver} skipped claim {claim.namespace}/{claim.name}")
            if error := answer.claims[claim.uid].error:
                raise PluginError(f"NodeUnprepareResources failed for claim {claim.namespace}/{claim.name}: {error}")

    @staticmethod
    async def _call(plugin: _Plugin, method: str, request: Any) -> Any:
        try:
            return await plugin.stub.call(method, request, CALL_SECONDS)
        except grpc.RpcError as error:
            raise PluginError(f"{method} of {plugin.driver}: {_detail(error)}") from error

    async def close(self) -> None:
        for path in list(self._seen):
            await self._forget(path)


def _message(api: dra_proto.DraApi, claim: ClaimRef) -> Any:
    return api.Claim(namespace=claim.namespace, name=claim.name, uid=claim.uid)


def _detail(error: BaseException) -> str:
    if isinstance(error, grpc.aio.AioRpcError):
        return f"{error.code().name}: {error.details()}"
    return str(error)
