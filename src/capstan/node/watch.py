"""Noticing when ResourceSlices are changed or deleted by somebody else (a kubelet deletes them all when it starts)."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable

import msgspec

from capstan import kube
from capstan.api.base import Object
from capstan.api.rbac import PolicyRule
from capstan.api.resource import GROUP
from capstan.api.resources import RESOURCE_SLICES, Resource
from capstan.node.inventory import DRIVER

_log = logging.getLogger("capstan.node")
_FIRST_PAUSE_SECONDS = 0.2
_LONGEST_PAUSE_SECONDS = 30.0


class _SliceSpecHead(msgspec.Struct, rename="camel"):
    node_name: str = ""
    driver: str = ""


class _SliceHead(Object):
    spec: _SliceSpecHead = msgspec.field(default_factory=_SliceSpecHead)


_SLICE_HEADS = Resource(
    group=RESOURCE_SLICES.group,
    version=RESOURCE_SLICES.version,
    plural=RESOURCE_SLICES.plural,
    kind=RESOURCE_SLICES.kind,
    namespaced=False,
    struct=_SliceHead,
)


class SliceChange(msgspec.Struct, frozen=True):
    """Somebody, maybe we, wrote a slice. An empty name: anything may have changed (a watch was interrupted)."""

    name: str = ""
    version: str = ""
    deleted: bool = False


class SliceWatch:
    """Tells drivers when their ResourceSlices are changed or deleted. One may serve all drivers of a process."""

    RULES = [PolicyRule(api_groups=[GROUP], resources=["resourceslices"], verbs=["list", "watch"])]

    def __init__(self, client: kube.Client, node_name: str = "") -> None:
        self._client = client
        self._fields = f"spec.driver={DRIVER}" + (f",spec.nodeName={node_name}" if node_name else "")
        self._listeners: dict[str, Callable[[SliceChange], None]] = {}

    def subscribe(self, node_name: str, listener: Callable[[SliceChange], None]) -> None:
        self._listeners[node_name] = listener

    def unsubscribe(self, node_name: str) -> None:
        self._listeners.pop(node_name, None)

    async def run(self) -> None:
        """Until cancelled. After every interruption all listeners look for themselves."""
        version = ""
        pause = _FIRST_PAUSE_SECONDS
        while True:
            try:
                async for event in self._client.watch(_SLICE_HEADS, fields=self._fields, resource_version=version):
                    version = event.object.metadata.resource_version
                    pause = _FIRST_PAUSE_SECONDS
                    listener = self._listeners.get(event.object.spec.node_name)
                    if listener is not None and event.type != "BOOKMARK":
                        listener(SliceChange(event.object.metadata.name, version, event.type == "DELETED"))
                await asyncio.sleep(_FIRST_PAUSE_SECONDS)
            except kube.Gone:
                version = ""
                for listener in list(self._listeners.values()):
                    listener(SliceChange())
            except (kube.ApiError, kube.Undecodable) as error:
                _log.warning("watch of resourceslices: %s; next try in %.1f s", error, pause)
                await asyncio.sleep(pause)
                pause = min(2 * pause, _LONGEST_PAUSE_SECONDS)
