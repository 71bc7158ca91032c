"""Watches: one hub per table turns each committed event into frames once and shares the bytes between its watchers.

A watcher that selects one value of a field (node agents: `spec.nodeName=…`) is found by that value, so that an event
costs nothing for the thousands of watchers that it does not concern.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Iterable

import msgspec

from capstan.kube import Document
from capstan.local.representation import View
from capstan.local.selection import Selection
from capstan.local.status import Json
from capstan.local.store import Event, EventType, Record, Table, encode
from capstan.local.types import ResourceType

_BACKLOG_BYTES = 64 << 20
"""A watcher that reads more slowly than this is disconnected; it comes back with its last resourceVersion."""


class _Place(msgspec.Struct, rename="camel", frozen=True, gc=False):
    node_name: str = ""


class _Placed(msgspec.Struct, gc=False):
    spec: _Place = _Place()


_placed = msgspec.json.Decoder(_Placed)


def frame(event_type: str, value: bytes) -> bytes:
    return b'{"type":"' + event_type.encode() + b'","object":' + value + b"}\n"


def bookmark(resource: ResourceType, revision: int, *, initial_events_end: bool = False) -> bytes:
    metadata: Json = {"resourceVersion": str(revision), "creationTimestamp": None}
    if initial_events_end:
        metadata["annotations"] = {"k8s.io/initial-events-end": "true"}
    return frame("BOOKMARK", encode({"kind": resource.kind, "apiVersion": resource.api_version, "metadata": metadata}))


class Watcher:
    """One open watch. `frames` is its stream; `close` ends it."""

    __slots__ = (
        "_backlog",
        "_closed",
        "_hub",
        "_queue",
        "_resource",
        "_wake",
        "bookmarks",
        "pinned",
        "prefix",
        "selection",
        "view",
    )

    def __init__(
        self,
        hub: Hub,
        resource: ResourceType,
        prefix: str,
        selection: Selection | None,
        view: View,
        *,
        bookmarks: bool,
    ) -> None:
        self._hub = hub
        self._resource = resource
        self._queue: list[bytes] = []
        self._backlog = 0
        self._closed = False
        self._wake: asyncio.Future[None] | None = None
        self.prefix = prefix
        self.selection = selection
        self.view = view
        self.bookmarks = bookmarks
        self.pinned = selection.equals(hub.pinned_field) if selection is not None else None

    def push(self, data: bytes) -> None:
        self._queue.append(data)
        self._backlog += len(data)
        if self._backlog > _BACKLOG_BYTES:
            self._queue.clear()
            self.close()
        else:
            self._rouse()

    def bookmark(self, revision: int) -> None:
        """Tell the watcher how far it has come, if it wants to know."""
        if self.bookmarks:
            self.push(bookmark(self._resource, revision))

    def close(self) -> None:
        """End the stream after what is queued."""
        self._closed = True
        self._hub.leave(self)
        self._rouse()

    def _rouse(self) -> None:
        if self._wake is not None and not self._wake.done():
            self._wake.set_result(None)

    async def frames(self, initial: list[bytes]) -> AsyncGenerator[list[bytes], None]:
        """`initial`, then the frames as they come, as many at a time as are ready."""
        try:
            if initial:
                yield initial
            while True:
                if self._queue:
                    ready, self._queue, self._backlog = self._queue, [], 0
                    yield ready
                elif self._closed:
                    return
                else:
                    wake = self._wake = asyncio.get_running_loop().create_future()
                    try:
                        await wake
                    finally:
                        self._wake = None
        finally:
            self.close()


class Hub:
    """The watchers of one table."""

    def __init__(self, table: Table, resource: ResourceType) -> None:
        self.resource = resource
        self.pinned_field = "spec.nodeName" if resource.plural == "pods" else "metadata.name"
        self._everything: dict[Watcher, None] = {}
        self._by_value: dict[str, dict[Watcher, None]] = {}
        table.listeners.append(self.publish)

    def _pinned(self, record: Record) -> str:
        """The value of the pinned field, without decoding the rest of the object."""
        if self.pinned_field == "metadata.name":
            return record.key.rpartition("/")[2]
        return _placed.decode(record.value).spec.node_name

    @property
    def watchers(self) -> list[Watcher]:
        return [*self._everything, *(watcher for group in self._by_value.values() for watcher in group)]

    def join(self, watcher: Watcher) -> None:
        if watcher.pinned is None:
            self._everything[watcher] = None
        else:
            self._by_value.setdefault(watcher.pinned, {})[watcher] = None

    def leave(self, watcher: Watcher) -> None:
        if watcher.pinned is None:
            self._everything.pop(watcher, None)
        elif group := self._by_value.get(watcher.pinned):
            group.pop(watcher, None)
            if not group:
                del self._by_value[watcher.pinned]

    def publish(self, event: Event) -> None:
        groups: list[Iterable[Watcher]] = [self._everything] if self._everything else []
        if self._by_value:
            values = {self._pinned(record) for record in (event.record, event.previous) if record is not None}
            groups += [self._by_value[value] for value in values if value in self._by_value]
        if not groups:
            return
        frames: dict[tuple[object, EventType], bytes] = {}
        key = event.record.key
        for group in groups:
            for watcher in list(group):
                if not key.startswith(watcher.prefix):
                    continue
                seen = selected(event, watcher.selection)
                if seen is None:
                    continue
                shared = (watcher.view.identity, seen)
                data = frames.get(shared)
                if data is None:
                    data = frames[shared] = Document(event_frame(event, seen, watcher.view))
                watcher.push(data)


def selected(event: Event, selection: Selection | None) -> EventType | None:
    """How a watcher with this selection sees an event: objects enter it as ADDED and leave it as DELETED."""
    if selection is None:
        return event.type
    now = event.type != "DELETED" and selection.matches(event.record)
    before = event.previous is not None and selection.matches(event.previous)
    if now:
        return "MODIFIED" if before else "ADDED"
    return "DELETED" if before else None


def event_frame(event: Event, seen: EventType, view: View) -> bytes:
    record = event.record
    if seen == "DELETED" and event.type != "DELETED" and event.previous is not None:
        # The object left the selection: its last selected state, at the revision of the change.
        last = event.previous.decode()
        last["metadata"]["resourceVersion"] = str(record.revision)
        record = Record(record.key, record.revision, encode(last))
    return frame(seen, view.one(record.value))
