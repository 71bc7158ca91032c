"""Events on objects: what a person reads in `kubectl describe`. Repeats raise a count instead of adding objects."""

from __future__ import annotations

import asyncio
import logging
import secrets
import time
from collections import OrderedDict
from collections.abc import Callable, Mapping
from typing import Any, Literal

from capstan.api import clock, resources
from capstan.api.base import Object, ObjectReference
from capstan.api.resources import EVENTS, Resource
from capstan.kube import errors
from capstan.kube.client import Client

_log = logging.getLogger(__name__)
_REMEMBERED = 4096
_LONGEST_MESSAGE = 1024
"""Characters of an event message that API servers accept."""
_RESOURCES: dict[type[Any], Resource[Any]] = {
    resource.struct: resource for resource in vars(resources).values() if isinstance(resource, Resource)
}

_Repeat = tuple[str, str, str, str]
"""(uid or kind/namespace/name, type, reason, message): what makes two events the same."""


def reference(obj: Object | Mapping[str, Any]) -> ObjectReference:
    """A reference to an object. Items of typed lists carry no apiVersion and kind: their struct says them."""
    if isinstance(obj, Object):
        resource = _RESOURCES.get(type(obj))
        metadata = obj.metadata
        return ObjectReference(
            api_version=obj.api_version or (resource.api_version if resource else ""),
            kind=obj.kind or (resource.kind if resource else ""),
            namespace=metadata.namespace,
            name=metadata.name,
            uid=metadata.uid,
        )
    fields = obj["metadata"]
    return ObjectReference(
        api_version=obj.get("apiVersion", ""),
        kind=obj.get("kind", ""),
        namespace=fields.get("namespace", ""),
        name=fields.get("name", ""),
        uid=fields.get("uid", ""),
    )


class EventRecorder:
    """Writes events in the background, in order, at most `rate` a second so that a burst does not hold up real work.

    An event that the server refuses is logged and counted, never raised: events inform, nothing depends on them.
    """

    def __init__(
        self,
        client: Client,
        component: str,
        *,
        host: str = "",
        now: Callable[[], float] = time.time,
        rate: float = 500.0,
    ) -> None:
        self.component = component
        self.host = host
        self.dropped = 0
        self._pause = 1 / rate
        self._client = client
        self._now = now
        self._pending: OrderedDict[_Repeat, tuple[ObjectReference, str, int]] = OrderedDict()
        self._written: OrderedDict[_Repeat, tuple[str, int]] = OrderedDict()
        self._writer: asyncio.Task[None] | None = None

    def emit(
        self,
        obj: Object | Mapping[str, Any] | ObjectReference,
        type: Literal["Normal", "Warning"],
        reason: str,
        message: str,
        *,
        host: str = "",
    ) -> None:
        """`host` is the node the event comes from, if another than the recorder's own."""
        host = host or self.host
        target = obj if isinstance(obj, ObjectReference) else reference(obj)
        message = message if len(message) <= _LONGEST_MESSAGE else message[: _LONGEST_MESSAGE - 1] + "…"
        same = (target.uid or f"{target.kind}/{target.namespace}/{target.name}", type, reason, message)
        _, _, count = self._pending.get(same, (target, host, 0))
        self._pending[same] = (target, host, count + 1)
        if self._writer is None:
            self._writer = asyncio.get_running_loop().create_task(self._write_all())

    async def drain(self) -> None:
        """Returns when everything emitted so far is written or dropped."""
        while self._writer is not None:
            await asyncio.shield(self._writer)

    async def _write_all(self) -> None:
        try:
            while self._pending:
                same, (target, host, count) = self._pending.popitem(last=False)
                try:
                    await self._write(same, target, host, count)
                except (errors.NotFound, errors.Forbidden) as error:
                    # Normal at the end of a namespace, which takes nothing new.
                    self.dropped += 1
                    _log.info("event %s on %s %s is lost: %s", same[2], target.kind, target.name, error)
                except errors.ApiError as error:
                    self.dropped += 1
                    _log.warning("event %s on %s %s is lost: %s", same[2], target.kind, target.name, error)
                if self._pending:
                    await asyncio.sleep(self._pause)
        finally:
            self._writer = None

    async def _write(self, same: _Repeat, target: ObjectReference, host: str, count: int) -> None:
        namespace = target.namespace or "default"
        now = clock.render(self._now())
        if same in self._written:
            name, before = self._written[same]
            try:
                patch = {"count": before + count, "lastTimestamp": now}
                await self._client.patch(EVENTS, name, namespace, patch=patch)
                self._remember(same, name, before + count)
                return
            except errors.NotFound:
                pass  # it expired: write a new one
        _, kind, reason, message = same
        name = f"{target.name}.{secrets.token_hex(8)}"
        body = {
            "apiVersion": "v1",
            "kind": "Event",
            "metadata": {"name": name, "namespace": namespace},
            "involvedObject": {
                field: value
                for field, value in (
                    ("apiVersion", target.api_version),
                    ("kind", target.kind),
                    ("namespace", target.namespace),
                    ("name", target.name),
                    ("uid", target.uid),
                )
                if value
            },
            "type": kind,
            "reason": reason,
            "message": message,
            "count": count,
            "firstTimestamp": now,
            "lastTimestamp": now,
            "source": {"component": self.component} | ({"host": host} if host else {}),
            "reportingComponent": self.component,
            "reportingInstance": host,
        }
        await self._client.create(EVENTS, body, namespace)
        self._remember(same, name, count)

    def _remember(self, same: _Repeat, name: str, count: int) -> None:
        self._written[same] = (name, count)
        self._written.move_to_end(same)
        while len(self._written) > _REMEMBERED:
            self._written.popitem(last=False)
