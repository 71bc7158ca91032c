"""A local, always current copy of a resource: list, then watch, then list again when the watch cannot go on.

Handlers run synchronously in event order; a handler must be quick and may not await. Between two awaits of a reader the
cache does not change.
"""

from __future__ import annotations

import asyncio
import heapq
import itertools
import logging
import random
from collections.abc import Callable, Hashable, Iterable, Mapping
from types import MappingProxyType
from typing import Any, Generic, Literal, TypeVar

import msgspec

from capstan.api.base import Object
from capstan.api.resources import Resource
from capstan.kube import errors
from capstan.kube.client import Client

T = TypeVar("T")
K = TypeVar("K", bound=Hashable)
Key = tuple[str, str]
"""(namespace, name); the namespace is empty for cluster-scoped objects."""

_log = logging.getLogger(__name__)
_FIRST_PAUSE_SECONDS = 0.05
_LONGEST_PAUSE_SECONDS = 10.0
_EMPTY: Mapping[Key, Any] = MappingProxyType({})


class Change(msgspec.Struct, Generic[T], gc=False):
    """`old` is None for an addition, `new` is None for a deletion."""

    type: Literal["added", "modified", "deleted"]
    old: T | None
    new: T | None

    @property
    def object(self) -> T:
        """The newest state that is known: `new`, or `old` of a deleted object."""
        found = self.new if self.new is not None else self.old
        assert found is not None, "a change has an old or a new state"
        return found


Handler = Callable[[Change[T]], None]


def identity(obj: Any) -> tuple[Key, str, str]:
    """(key, uid, resource version) of a typed or an unstructured object."""
    if isinstance(obj, Object):
        meta = obj.metadata
        return (meta.namespace, meta.name), meta.uid, meta.resource_version
    metadata = obj["metadata"]
    return (
        (metadata.get("namespace", ""), metadata.get("name", "")),
        metadata.get("uid", ""),
        metadata.get("resourceVersion", ""),
    )


class Index(Generic[K, T]):
    """The objects of a cache by something they carry: owner uid, node name, a label."""

    def __init__(self, keys_of: Callable[[T], Iterable[K]]) -> None:
        self._keys_of = keys_of
        self._objects: dict[K, dict[Key, T]] = {}

    def get(self, key: K) -> Mapping[Key, T]:
        """A live view; copy it before awaiting."""
        return self._objects.get(key, _EMPTY)

    def keys(self) -> Iterable[K]:
        return self._objects.keys()

    def update(self, name: Key, old: T | None, new: T | None) -> None:
        before = self._keys_of(old) if old is not None else ()
        after = self._keys_of(new) if new is not None else ()
        if before != after:
            for key in before:
                if members := self._objects.get(key):
                    members.pop(name, None)
                    if not members:
                        del self._objects[key]
        if new is not None:
            for key in after:
                self._objects.setdefault(key, {})[name] = new


class Cache(Generic[T]):
    """The objects of one resource that match the selection. `run()` keeps it current until cancelled.

    An `optional` kind has no objects while the server does not know it: clusters may come without it, and what waits
    for `synced` is not held up. Of others every cluster has to have the definition before anything is concluded.
    """

    def __init__(
        self,
        client: Client,
        resource: Resource[T],
        *,
        namespace: str = "",
        labels: str = "",
        fields: str = "",
        optional: bool = False,
    ) -> None:
        self.resource = resource
        self.objects: dict[Key, T] = {}
        self.resource_version = ""
        self.relists = 0
        """How often everything was listed; more than one means that the server forgot the watch position."""
        self._client = client
        self._namespace, self._labels, self._fields = namespace, labels, fields
        self._optional = optional
        self._handlers: list[Handler[T]] = []
        self._indexes: list[Index[Any, T]] = []
        self._synced = asyncio.Event()
        self._waiting: list[tuple[int, int, asyncio.Future[None]]] = []
        self._waits = itertools.count()

    def get(self, name: str, namespace: str = "") -> T | None:
        return self.objects.get((namespace, name))

    def on_change(self, handler: Handler[T]) -> None:
        """Calls the handler for every change from now on, and at once with what is there already."""
        self._handlers.append(handler)
        for obj in list(self.objects.values()):
            handler(Change("added", None, obj))

    def index(self, keys_of: Callable[[T], Iterable[K]]) -> Index[K, T]:
        """A new index; it is up to date whenever a handler runs."""
        index = Index(keys_of)
        for key, obj in self.objects.items():
            index.update(key, None, obj)
        self._indexes.append(index)
        return index

    async def synced(self) -> None:
        """Returns once the first list is in `objects`, or an optional kind turned out to be unknown to the server."""
        await self._synced.wait()

    async def reached(self, resource_version: str) -> None:
        """Returns once the cache shows the state after a write that answered with this version (read your own writes).

        Only for caches without a selection, whose events cover every write. Versions are ordered numbers (KEP-5504).
        """
        wanted = int(resource_version)
        if self.resource_version and int(self.resource_version) >= wanted:
            return
        future = asyncio.get_running_loop().create_future()
        heapq.heappush(self._waiting, (wanted, next(self._waits), future))
        await future

    @property
    def is_synced(self) -> bool:
        return self._synced.is_set()

    async def run(self) -> None:
        failures = 0
        while True:
            try:
                if not self.resource_version:
                    await self._list()
                await self._watch()
                failures = 0
            except errors.Gone:
                _log.info("%s: the watch position expired, listing again", self.resource.plural)
                self.resource_version = ""
            except (errors.ApiError, errors.Undecodable) as error:
                failures += 1
                if isinstance(error, errors.Undecodable):
                    # The event cannot be applied, so the position after it is unknown: a list leaves the object out.
                    self.resource_version = ""
                if self._optional and isinstance(error, errors.NotFound):
                    self._empty()
                else:
                    _log.warning("%s: %s; attempt %d follows", self.resource.plural, error, failures + 1)
                pause = min(_FIRST_PAUSE_SECONDS * 2 ** min(failures - 1, 12), _LONGEST_PAUSE_SECONDS)
                await asyncio.sleep(pause * random.uniform(0.5, 1.0))

    async def _list(self) -> None:
        listing = await self._client.list(self.resource, self._namespace, self._labels, self._fields)
        for problem in listing.undecodable:
            _log.error("left out of the cache: %s", problem)
        self.relists += 1
        fresh = [(*identity(obj), obj) for obj in listing.items]
        for key in self.objects.keys() - {key for key, _, _, _ in fresh}:
            self._delete(key)
        for found in fresh:
            self._put(*found)
        self._advance(listing.resource_version)
        self._synced.set()

    def _empty(self) -> None:
        if self.resource_version or not self.is_synced:
            _log.info("the cluster has no %s; until it does, there are none", self.resource.group_resource)
        self.resource_version = ""
        for key in list(self.objects):
            self._delete(key)
        self._synced.set()

    async def _watch(self) -> None:
        events = self._client.watch(
            self.resource,
            self._namespace,
            resource_version=self.resource_version,
            labels=self._labels,
            fields=self._fields,
        )
        async for event in events:
            key, uid, version = identity(event.object)
            if event.type == "DELETED":
                self._delete(key)
            elif event.type != "BOOKMARK":
                self._put(key, uid, version, event.object)
            self._advance(version)

    def _advance(self, version: str) -> None:
        self.resource_version = version
        while self._waiting and self._waiting[0][0] <= int(version):
            future = heapq.heappop(self._waiting)[2]
            if not future.done():
                future.set_result(None)

    def _put(self, key: Key, uid: str, version: str, new: T) -> None:
        old = self.objects.get(key)
        if old is not None:
            _, old_uid, old_version = identity(old)
            if uid != old_uid:
                # Deleted and created again while nobody watched: that is two changes, not one.
                self._delete(key)
                old = None
            elif version == old_version:
                return
        self.objects[key] = new
        self._notify(key, Change("modified" if old is not None else "added", old, new))

    def _delete(self, key: Key) -> None:
        old = self.objects.pop(key, None)
        if old is not None:
            self._notify(key, Change("deleted", old, None))

    def _notify(self, key: Key, change: Change[T]) -> None:
        for index in self._indexes:
            index.update(key, change.old, change.new)
        for handler in self._handlers:
            handler(change)
