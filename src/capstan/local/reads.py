"""The reading verbs: get, list with consistent pages, watch. An answer waits until what it shows is durable."""

from __future__ import annotations

import asyncio
import base64
import binascii
from collections.abc import AsyncGenerator
from itertools import islice

import msgspec

from capstan.local import selection, status
from capstan.local.registry import Served
from capstan.local.representation import negotiate
from capstan.local.request import Request, Response, Stream, Target, encode
from capstan.local.status import Json
from capstan.local.store import Compacted, Record, Store
from capstan.local.watch import Hub, Watcher, bookmark, event_frame, frame, selected

BOOKMARK_SECONDS = 30.0
_INCONSISTENT = 0
"""The revision of a token that continues with the present state, given out when the pinned one is gone."""


class _Continue(msgspec.Struct):
    """The content of a continue token: the pinned revision and the last key that was shown."""

    rv: int
    after: str


class Reads:
    def __init__(self, store: Store) -> None:
        self.store = store
        self._hubs: dict[str, Hub] = {}

    async def get(self, request: Request, served: Served, target: Target) -> Response:
        view = negotiate(request, served)
        asked = self._revision(request)
        record = self.store.get(served.key(target.namespace, target.name))
        seen = self.store.revision
        if asked is not None and asked > seen:
            raise status.future_revision(asked, seen)
        if record is None:
            raise status.not_found(served.type.plural, served.type.group, target.name)
        await self.store.committed(record.revision)
        return Response(200, view.one(record.value))

    async def list_(self, request: Request, served: Served, target: Target) -> Response:
        view = negotiate(request, served)
        chosen = selection.of_request(served.type, request)
        limit = request.number("limit") or 0
        token = request.query.get("continue", "")
        asked = self._revision(request)
        match = request.query.get("resourceVersionMatch", "")
        _check_match(match, asked, token)
        prefix = _prefix(served, target)
        table = self.store.table(served.prefix)
        after, revision = "", self.store.revision
        if token:
            pinned = _decode_token(token)
            after = pinned.after
            if pinned.rv != _INCONSISTENT:
                revision = pinned.rv
        elif match == "Exact" and asked is not None:
            revision = asked
        if asked is not None and asked > self.store.revision:
            raise status.future_revision(asked, self.store.revision)
        if revision == self.store.revision:
            candidates = table.records(prefix, after)
        else:
            candidates = iter(self._records_at(served, prefix, revision, after, token))
        matching = candidates if chosen is None else (record for record in candidates if chosen.matches(record))
        records = list(islice(matching, limit)) if limit else list(matching)
        metadata: Json = {"resourceVersion": str(revision)}
        if limit and len(records) == limit:
            remaining = list(matching)
            if remaining:
                metadata["continue"] = _encode_token(revision, records[-1].key)
                if chosen is None:
                    metadata["remainingItemCount"] = len(remaining)
        await self.store.committed(min(revision, self.store.revision))
        return Response(200, view.many([record.value for record in records], metadata))

    def _records_at(self, served: Served, prefix: str, revision: int, after: str, token: str) -> list[Record]:
        try:
            return self.store.records_at(self.store.table(served.prefix), prefix, revision, after)
        except Compacted as error:
            if token:
                message = (
                    "The provided continue parameter is too old to display a consistent list result. You can start "
                    "a new list without the continue parameter, or use the continue token in this response to retrieve "
                    "the remainder of the results. Continuing with the provided token results in an inconsistent list: "
                    "objects that were created, modified, or deleted between the time the first chunk was returned and "
                    "now may show up in the list."
                )
                raise status.expired(message, _encode_token(_INCONSISTENT, after)) from error
            raise status.expired(f"The provided resource version is too old: {error}") from error

    async def watch(self, request: Request, served: Served, target: Target) -> Stream:
        view = negotiate(request, served)
        chosen = selection.of_request(served.type, request)
        since = self._revision(request)
        wants_initial = request.flag("sendInitialEvents") if "sendInitialEvents" in request.query else None
        bookmarks = request.flag("allowWatchBookmarks") if "allowWatchBookmarks" in request.query else False
        if wants_initial and request.query.get("resourceVersionMatch") != "NotOlderThan":
            raise status.bad_request("sendInitialEvents requires resourceVersionMatch=NotOlderThan")
        timeout = request.number("timeoutSeconds")
        # No waiting from here to the join: the watcher sees the durable state and all that becomes durable.
        hub = self.hub(served)
        prefix = _prefix(served, target)
        watcher = Watcher(hub, served.type, prefix, chosen, view, bookmarks=bookmarks)
        table = self.store.table(served.prefix)
        initial: list[bytes] = []
        if wants_initial or (wants_initial is None and not since):
            initial = [
                frame("ADDED", view.one(record.value))
                for record in self._durable_records(served, prefix)
                if chosen is None or chosen.matches(record)
            ]
            if wants_initial and bookmarks:
                initial.append(bookmark(served.type, self.store.durable, initial_events_end=True))
        elif since:
            try:
                events = self.store.events_since(table, since)
            except Compacted as error:
                return Stream(_once(_expired_frame(since, error.floor)))
            for event in events:
                if event.record.key.startswith(prefix) and (seen := selected(event, chosen)) is not None:
                    initial.append(event_frame(event, seen, view))
        hub.join(watcher)
        loop = asyncio.get_running_loop()
        if timeout:
            loop.call_later(timeout, self._finish, watcher)
        return Stream(watcher.frames(initial))

    def _durable_records(self, served: Served, prefix: str) -> list[Record]:
        table = self.store.table(served.prefix)
        if self.store.durable == self.store.revision:
            return list(table.records(prefix))
        return self.store.records_at(table, prefix, self.store.durable)

    def hub(self, served: Served) -> Hub:
        found = self._hubs.get(served.prefix)
        if found is None:
            found = self._hubs[served.prefix] = Hub(self.store.table(served.prefix), served.type)
        return found

    def send_bookmarks(self) -> None:
        """Tell all watchers that want to know how far they have come."""
        for hub in self._hubs.values():
            for watcher in hub.watchers:
                watcher.bookmark(self.store.durable)

    def _finish(self, watcher: Watcher) -> None:
        watcher.bookmark(self.store.durable)
        watcher.close()

    def close(self) -> None:
        """End all watches."""
        for hub in self._hubs.values():
            for watcher in hub.watchers:
                watcher.close()

    def close_watches(self, prefix: str) -> None:
        """End the watches of a resource that is no longer served as it was."""
        hub = self._hubs.get(prefix)
        for watcher in hub.watchers if hub is not None else []:
            watcher.close()

    @staticmethod
    def _revision(request: Request) -> int | None:
        """The `resourceVersion` parameter; None for absent and for 0 (any state will do)."""
        text = request.query.get("resourceVersion", "")
        if text in ("", "0"):
            return None
        if not (text.isascii() and text.isdigit()):
            raise status.bad_request(f'resourceVersion: Invalid value: "{text}": must be a number that a list returned')
        return int(text)


def _prefix(served: Served, target: Target) -> str:
    return f"{served.prefix}{target.namespace}/" if target.namespace and served.type.namespaced else served.prefix


def _check_match(match: str, asked: int | None, token: str) -> None:
    if not match:
        return
    if match not in ("Exact", "NotOlderThan"):
        raise status.bad_request(
            f'resourceVersionMatch: Unsupported value: "{match}": supported values: "Exact", "NotOlderThan"'
        )
    if token:
        raise status.bad_request(
            "resourceVersionMatch: Forbidden: resourceVersionMatch is forbidden when continue is provided"
        )
    if match == "Exact" and asked is None:
        raise status.bad_request(
            'resourceVersionMatch: Forbidden: "exact" is forbidden for resourceVersion "0" or unset'
        )


def _encode_token(revision: int, after: str) -> str:
    return base64.urlsafe_b64encode(encode(_Continue(revision, after))).rstrip(b"=").decode()


def _decode_token(token: str) -> _Continue:
    try:
        return msgspec.json.decode(base64.urlsafe_b64decode(token + "=" * (-len(token) % 4)), type=_Continue)
    except (msgspec.MsgspecError, binascii.Error, ValueError) as error:
        raise status.bad_request("continue key is not valid: use the token of the previous page as it is") from error


def _expired_frame(since: int, floor: int) -> bytes:
    return frame("ERROR", encode(status.expired(f"too old resource version: {since} ({floor})").body))


async def _once(data: bytes) -> AsyncGenerator[list[bytes], None]:
    yield [data]
