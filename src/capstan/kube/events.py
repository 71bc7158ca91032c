"""Events on objects: what a person reads in `kubectl describe`. Repeats raise a count instead of adding objects.

Their times are those of what happened, however late they are written.
"""

from __future__ import annotations

import asyncio
import logging
import secrets
import time
from collections import OrderedDict
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
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


@dataclass(slots=True)
class _Pending:
    """What is not written yet: how often it happened, first and last when (Unix time)."""

    target: ObjectReference
    host: str
    count: int
    first: float
    last: float


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

    Each waits until `calm` returns, where one is given. Of more than `backlog` unwritten events the oldest give way.
    An event that gives way or that the server refuses is logged and counted, never raised: events inform, nothing
    depends on them.
    """

    def __init__(
        self,
        client: Client,
        component: str,
        *,
        host: str = "",
        now: Callable[[], float] = time.time,
        rate: float = 500.0,
        backlog: int = _REMEMBERED,
        calm: Callable[[], Awaitable[object]] | None = None,
    ) -> None:
        self.component = component
        self.host = host
        self.dropped = 0
        self._pause = 1 / rate
        self._backlog = backlog
        self._calm = calm
        self._client = client
        self._now = now
        self._pending: OrderedDict[_Repeat, _Pending] = OrderedDict()
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
        now = self._now()
        waiting = self._pending.get(same)
        if waiting is None:
            self._pending[same] = _Pending(target, host, 1, now, now)
        else:
            waiting.host, waiting.count, waiting.last = host, waiting.count + 1, now
        if len(self._pending) > self._backlog:
            self._pending.popitem(last=False)
            self.dropped += 1
            _log.debug("more than %d events wait, the oldest gives way", self._backlog)
        if self._writer is None:
            self._writer = asyncio.get_running_loop().create_task(self._write_all())

    async def drain(self) -> None:
        """Returns when everything emitted so far is written or dropped."""
        while self._writer is not None:
            await asyncio.shield(self._writer)

    async def finish(self, seconds: float = 1.0) -> None:
        """The end: what waits is written without pauses, as far as it goes in `seconds`; the rest is dropped.

        May be awaited by a task that was cancelled.
        """
        if self._writer is not None:
            self._writer.cancel()
            await asyncio.wait([self._writer])
        rest = asyncio.create_task(self._write_rest())
        await asyncio.wait([rest], timeout=seconds)
        rest.cancel()
        await asyncio.wait([rest])
        self.close()

    def close(self) -> None:
        """Write nothing more; what waits is dropped."""
        self.dropped += len(self._pending)
        self._pending.clear()
        if self._writer is not None:
            self._writer.cancel()
            self._writer = None

    async def _write_all(self) -> None:
        try:
            while self._pending:
                if self._calm is not None:
                    await self._calm()
                await self._write_next()
                if self._pending:
                    await asyncio.sleep(self._pause)
        finally:
            self._writer = None

    async def _write_rest(self) -> None:
        while self._pending:
            await self._write_next()

    async def _write_next(self) -> None:
        same, event = self._pending.popitem(last=False)
        target = event.target
        try:
            await self._write(same, event)
        except (errors.NotFound, errors.Forbidden) as error:
            # Normal at the end of a namespace, which takes nothing new.
            self.dropped += 1
            _log.info("event %s on %s %s is lost: %s", same[2], target.kind, target.name, error)
        except errors.ApiError as error:
            self.dropped += 1
            _log.warning("event %s on %s %s is lost: %s", same[2], target.kind, target.name, error)

    async def _write(self, same: _Repeat, event: _Pending) -> None:
        target, count = event.target, event.count
        namespace = target.namespace or "default"
        last = clock.render(event.last)
        if same in self._written:
            name, before = self._written[same]
            try:
                patch = {"count": before + count, "lastTimestamp": last}
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
            "firstTimestamp": clock.render(event.first),
            "lastTimestamp": last,
            "source": {"component": self.component} | ({"host": event.host} if event.host else {}),
            "reportingComponent": self.component,
            "reportingInstance": event.host,
        }
        await self._client.create(EVENTS, body, namespace)
        self._remember(same, name, count)

    def _remember(self, same: _Repeat, name: str, count: int) -> None:
        self._written[same] = (name, count)
        self._written.move_to_end(same)
        while len(self._written) > _REMEMBERED:
            self._written.popitem(last=False)
