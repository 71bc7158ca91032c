"""The objects that a controller owns: found by owner, adopted and released by labels, created and deleted exactly once.

Every write waits until the cache shows it, so the next look at the cache already includes what this controller did: no
expectations are kept, and a stale cache never leads to a second pod.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterable, Sequence
from typing import Any, Generic, TypeVar

import msgspec

from capstan import kube
from capstan.api.base import Object
from capstan.api.resources import Resource
from capstan.api.selectors import LabelSelector
from capstan.local.workloads.caches import Caches
from capstan.local.workloads.pods import owner_reference

T = TypeVar("T", bound=Object)


class Children(Generic[T]):
    """The `resource` objects that belong to objects of `owner_resource`; with a recorder, owners tell what is made."""

    def __init__(
        self,
        caches: Caches,
        resource: Resource[T],
        owner_resource: Resource[Any],
        recorder: kube.EventRecorder | None = None,
    ) -> None:
        self._client = caches.client
        self._recorder = recorder
        self._cache = caches.of(resource)
        self._resource = resource
        self._owner_resource = owner_resource
        self._by_owner = caches.by_controller(resource)
        self._orphans = caches.orphans(resource)
        self._deleted: set[str] = set()
        self._cache.on_change(self._forget)

    def _forget(self, change: kube.Change[T]) -> None:
        if change.new is None:
            self._deleted.discard(change.object.metadata.uid)

    def enqueue(self, queue: kube.WorkQueue[kube.Key], owners: kube.Cache[Any]) -> None:
        """Wires changes to a controller's queue: a child adds its owner, a new orphan all owners that select it."""

        def changed(change: kube.Change[T]) -> None:
            for obj in (change.old, change.new):
                if obj is None:
                    continue
                owner = obj.metadata.controller()
                if owner is None:
                    if obj is change.new and obj.metadata.deletion_timestamp is None:
                        for key, candidate in owners.objects.items():
                            if key[0] == obj.metadata.namespace and selects(candidate.spec.selector, obj):
                                queue.add(key)
                elif owner.kind == self._owner_resource.kind:
                    queue.add((obj.metadata.namespace, owner.name))

        self._cache.on_change(changed)

    def of(self, owner: Object) -> list[T]:
        """What the owner has now, without what this controller deleted a moment ago."""
        return [o for o in self._by_owner.get(owner.metadata.uid).values() if o.metadata.uid not in self._deleted]

    async def claim(self, owner: Object, selector: LabelSelector | None) -> list[T]:
        """What the owner has, after adopting orphans whose labels match and releasing what no longer matches.

        An owner that is being deleted neither adopts nor releases.
        """
        owned = self.of(owner)
        if owner.metadata.deletion_timestamp is not None:
            return owned
        kept = [obj for obj in owned if selects(selector, obj)]
        for obj in owned:
            if not selects(selector, obj) and obj.metadata.deletion_timestamp is None:
                await self._set_owners(obj, [r for r in _references(obj) if r["uid"] != owner.metadata.uid])
        for obj in list(self._orphans.get(owner.metadata.namespace).values()):
            if obj.metadata.deletion_timestamp is None and selects(selector, obj):
                reference = owner_reference(self._owner_resource, owner)
                if await self._set_owners(obj, [*_references(obj), reference]):
                    kept.append(obj)
        return kept

    async def _set_owners(self, obj: T, references: list[dict[str, Any]]) -> bool:
        metadata = obj.metadata
        # The version makes it a compare-and-swap: nobody else may adopt the object in between.
        change = {"resourceVersion": metadata.resource_version, "uid": metadata.uid, "ownerReferences": references}
        try:
            written = await self._client.patch(
                self._resource, metadata.name, metadata.namespace, patch={"metadata": change}
            )
        except kube.NotFound:
            return False
        await self._cache.reached(written["metadata"]["resourceVersion"])
        return True

    async def create(self, owner: Object, bodies: Sequence[kube.Body]) -> None:
        """Creates in batches of 1, 2, 4, …: a refusal that would meet all of them costs few calls.

        With a recorder each success becomes an event of the owner. Raises the first refusal after its batch. A
        body with a fixed name that is there already counts as created if the owner has it.
        """
        done, size = 0, 1
        while done < len(bodies):
            batch = bodies[done : done + size]
            answers = await asyncio.gather(*(self._create(owner, body) for body in batch), return_exceptions=True)
            written = [answer for answer in answers if isinstance(answer, str)]
            if written:
                await self._cache.reached(max(written, key=int))
            for answer in answers:
                if isinstance(answer, BaseException):
                    raise answer
            done, size = done + len(batch), size * 2

    async def _create(self, owner: Object, body: kube.Body) -> str:
        """The resource version at which the cache knows the new object."""
        try:
            created = await self._client.create(self._resource, body)
        except kube.AlreadyExists:
            metadata = body["metadata"]
            if "name" not in metadata:
                raise
            found = await self._client.get(self._resource, metadata["name"], metadata["namespace"])
            manager = found.metadata.controller()
            if found.metadata.deletion_timestamp is None and (manager is None or manager.uid != owner.metadata.uid):
                raise
            return found.metadata.resource_version
        name, version = created["metadata"]["name"], created["metadata"]["resourceVersion"]
        self._tell(owner, "SuccessfulCreate", f"Created {self._resource.kind.lower()}: {name}")
        return str(version)

    async def delete(self, owner: Object, objects: Iterable[T]) -> None:
        """Asks for the deletion of each, all at once; those that are gone already count as deleted."""
        await asyncio.gather(*(self._delete(owner, obj) for obj in objects))

    async def _delete(self, owner: Object, obj: T) -> None:
        metadata = obj.metadata
        # Remembered before the call: the event of the deletion can arrive before its answer.
        self._deleted.add(metadata.uid)
        try:
            await self._client.delete(self._resource, metadata.name, metadata.namespace, uid=metadata.uid)
        except (kube.NotFound, kube.Conflict):
            pass  # gone, or a namesake took its place
        except kube.ApiError:
            self._deleted.discard(metadata.uid)
            raise
        if self._cache.get(metadata.name, metadata.namespace) is None:
            self._deleted.discard(metadata.uid)
        self._tell(owner, "SuccessfulDelete", f"Deleted {self._resource.kind.lower()}: {metadata.name}")

    def _tell(self, owner: Object, reason: str, message: str) -> None:
        if self._recorder is not None:
            self._recorder.emit(owner, "Normal", reason, message)


def selects(selector: LabelSelector | None, obj: Object) -> bool:
    """Unlike elsewhere, an empty selector of a workload takes nothing: it would adopt every pod of the namespace."""
    if selector is None or not (selector.match_labels or selector.match_expressions):
        return False
    return selector.matches(obj.metadata.labels)


def _references(obj: Object) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = msgspec.to_builtins(obj.metadata.owner_references)
    return found
