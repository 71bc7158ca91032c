"""Garbage collection by owner references: dependents go after their owner, before it, or are left as orphans.

Every served resource that can be listed, watched and deleted is followed, reduced to its metadata. Whether an owner is
really absent is asked of the API server before anything is deleted: two caches are never equally current.
"""

from __future__ import annotations

import asyncio
import logging
from typing import Any

import msgspec

from capstan import kube
from capstan.api.base import Object, OwnerReference
from capstan.api.resources import Resource
from capstan.local.workloads.caches import Caches

FOREGROUND = "foregroundDeletion"
ORPHAN = "orphan"
_REDISCOVER_SECONDS = 30.0
_CRDS = ("apiextensions.k8s.io", "customresourcedefinitions")
_NOT_COLLECTED = {("", "events"), ("events.k8s.io", "events")}
_Key = tuple[Resource[Any], str, str]
_log = logging.getLogger(__name__)


class GarbageCollector(kube.Controller[_Key]):
    """Runs its own caches, one per served resource, and looks for new resources when CRDs change."""

    def __init__(self, caches: Caches) -> None:
        super().__init__()
        self._client = caches.client
        self._discovery = kube.Discovery(caches.client)
        self._followed: dict[Resource[Any], tuple[kube.Cache[Object], asyncio.Task[None]]] = {}
        self._objects: dict[str, tuple[Resource[Any], Object]] = {}
        self._dependents: dict[str, dict[str, tuple[Resource[Any], Object]]] = {}
        self._absent: set[str] = set()
        self._rediscover = asyncio.Event()

    async def run(self) -> None:
        async with asyncio.TaskGroup() as group:
            try:
                await self._follow(group)
                for cache, _ in list(self._followed.values()):
                    await cache.synced()
                group.create_task(super().run())
                while True:
                    await self._changed()
                    await self._follow(group)
            finally:
                for _, task in self._followed.values():
                    task.cancel()

    async def _changed(self) -> None:
        """Waits until CRDs change (and have settled for a moment), or half a minute."""
        try:
            async with asyncio.timeout(_REDISCOVER_SECONDS):
                await self._rediscover.wait()
            await asyncio.sleep(0.2)
        except TimeoutError:
            pass
        self._rediscover.clear()

    async def _follow(self, group: asyncio.TaskGroup) -> None:
        """Starts caches for resources that are new and stops those of resources that are no longer served."""
        self._absent.clear()
        try:
            served = await self._discovery.all("list", "watch", "delete")
        except kube.ApiError as error:
            _log.warning("the served resources are not known, owners of new kinds wait: %s", error)
            return
        wanted = {_metadata_only(r) for r in served if (r.group, r.plural) not in _NOT_COLLECTED}
        for resource in [resource for resource in self._followed if resource not in wanted]:
            cache, task = self._followed.pop(resource)
            task.cancel()
            for obj in cache.objects.values():
                self._remember(resource, kube.Change("deleted", obj, None))
        for resource in wanted - self._followed.keys():
            cache = kube.Cache(self._client, resource)
            cache.on_change(lambda change, resource=resource: self._remember(resource, change))  # type: ignore[misc]
            self._followed[resource] = (cache, group.create_task(_until_cancelled(cache)))

    def _remember(self, resource: Resource[Any], change: kube.Change[Object]) -> None:
        """Keeps the graph, and queues what the change may concern."""
        if (resource.group, resource.plural) == _CRDS:
            self._rediscover.set()
        old, new = change.old, change.new
        uid = change.object.metadata.uid
        if old is not None and new is not None and _relevant(old) == _relevant(new):
            # Nearly every change there is.
            self._objects[uid] = (resource, new)
            for reference in new.metadata.owner_references:
                self._dependents.setdefault(reference.uid, {})[uid] = (resource, new)
            return
        for reference in old.metadata.owner_references if old else []:
            members = self._dependents.get(reference.uid)
            if members is not None:
                members.pop(uid, None)
                if not members:
                    del self._dependents[reference.uid]
        if new is None:
            self._objects.pop(uid, None)
            for dependent_resource, dependent in self._dependents.get(uid, {}).values():
                self._add(dependent_resource, dependent)
        else:
            self._objects[uid] = (resource, new)
            for reference in new.metadata.owner_references:
                self._dependents.setdefault(reference.uid, {})[uid] = (resource, new)
            self._add(resource, new)
        # An owner that waits in the foreground looks again when a dependent went, or no longer holds it back.
        for reference in (old or new or change.object).metadata.owner_references:
            if (owner := self._objects.get(reference.uid)) and FOREGROUND in owner[1].metadata.finalizers:
                self._add(*owner)

    def _add(self, resource: Resource[Any], obj: Object) -> None:
        self.queue.add((resource, *obj.key))

    async def reconcile(self, key: _Key) -> float | None:
        resource, namespace, name = key
        followed = self._followed.get(resource)
        obj = followed[0].get(name, namespace) if followed else None
        if obj is None:
            return None
        if obj.metadata.deletion_timestamp is not None:
            if ORPHAN in obj.metadata.finalizers:
                await self._orphan(resource, obj)
            elif FOREGROUND in obj.metadata.finalizers:
                await self._delete_dependents_first(resource, obj)
            return None
        if obj.metadata.owner_references:
            await self._collect(resource, obj)
        return None

    async def _collect(self, resource: Resource[Any], obj: Object) -> None:
        """Deletes an object whose owners are all absent; drops references to absent owners if others remain."""
        solid, waiting, absent = [], [], []
        for reference in obj.metadata.owner_references:
            owner = await self._owner(reference, obj.metadata.namespace)
            if owner is None:
                absent.append(reference)
            elif owner.metadata.deletion_timestamp and FOREGROUND in owner.metadata.finalizers:
                waiting.append(reference)
            else:
                solid.append(reference)
        if solid:
            if absent or waiting:
                await self._set_owners(resource, obj, solid)
            return
        # An owner that waits for this object, which has dependents of its own, has to wait for those too.
        propagation = "Background"
        if waiting and self._dependents.get(obj.metadata.uid):
            propagation = "Foreground"
        await self._delete(resource, obj, propagation)

    async def _owner(self, reference: OwnerReference, namespace: str) -> Object | None:
        """The owner, None if it is known to be absent: no such name, or a namesake with another uid."""
        if reference.uid in self._absent:
            return None
        known = self._objects.get(reference.uid)
        if known is not None and (known[1].metadata.namespace in ("", namespace)):
            return known[1]
        try:
            resource = _metadata_only(await self._discovery.resource(reference.api_version, reference.kind))
            owner: Object = await self._client.get(resource, reference.name, namespace if resource.namespaced else "")
        except kube.NotFound:
            owner = Object()
        except kube.UnknownKind:
            _log.info("%s %s owns objects but its kind is not served; they stay", reference.kind, reference.name)
            return Object()
        if owner.metadata.uid == reference.uid:
            return owner
        # Uids are never used again, so this can be remembered; many dependents ask for the same owner.
        self._absent.add(reference.uid)
        return None

    async def _orphan(self, resource: Resource[Any], owner: Object) -> None:
        """Cuts all dependents loose, then lets the owner go."""
        for dependent_resource, dependent in list(self._dependents.get(owner.metadata.uid, {}).values()):
            kept = [r for r in dependent.metadata.owner_references if r.uid != owner.metadata.uid]
            await self._set_owners(dependent_resource, dependent, kept)
        await self._drop_finalizer(resource, owner, ORPHAN)

    async def _delete_dependents_first(self, resource: Resource[Any], owner: Object) -> None:
        """Deletes the dependents; the owner goes when none is left that blocks it."""
        uid = owner.metadata.uid
        dependents = list(self._dependents.get(uid, {}).values())
        for dependent_resource, dependent in dependents:
            if dependent.metadata.deletion_timestamp is None:
                await self._collect(dependent_resource, dependent)
        blocking = [
            dependent
            for _, dependent in dependents
            if any(r.uid == uid and r.block_owner_deletion for r in dependent.metadata.owner_references)
        ]
        if not blocking:
            await self._drop_finalizer(resource, owner, FOREGROUND)

    async def _delete(self, resource: Resource[Any], obj: Object, propagation: str) -> None:
        metadata = obj.metadata
        try:
            await self._client.delete(
                resource, metadata.name, metadata.namespace, uid=metadata.uid, propagation=propagation
            )
        except (kube.NotFound, kube.Conflict):
            pass  # gone, or a namesake took its place

    async def _set_owners(self, resource: Resource[Any], obj: Object, owners: list[OwnerReference]) -> None:
        await self._patch(resource, obj, {"ownerReferences": msgspec.to_builtins(owners) or None})

    async def _drop_finalizer(self, resource: Resource[Any], obj: Object, finalizer: str) -> None:
        await self._patch(resource, obj, {"finalizers": [f for f in obj.metadata.finalizers if f != finalizer] or None})

    async def _patch(self, resource: Resource[Any], obj: Object, change: dict[str, Any]) -> None:
        metadata = obj.metadata
        # The version makes it a compare-and-swap: lists are replaced whole.
        guarded = {"uid": metadata.uid, "resourceVersion": metadata.resource_version, **change}
        try:
            await self._client.patch(resource, metadata.name, metadata.namespace, patch={"metadata": guarded})
        except kube.NotFound:
            pass  # gone already


def _relevant(obj: Object) -> tuple[Any, ...]:
    """What decides whether an object is to be collected."""
    metadata = obj.metadata
    return metadata.owner_references, metadata.deletion_timestamp, metadata.finalizers


def _metadata_only(resource: kube.Unstructured) -> Resource[Object]:
    return Resource(
        group=resource.group,
        version=resource.version,
        plural=resource.plural,
        kind=resource.kind,
        namespaced=resource.namespaced,
        struct=Object,
    )


async def _until_cancelled(cache: kube.Cache[Object]) -> None:
    """A cache that is stopped alone must not take the task group with it."""
    try:
        await cache.run()
    except asyncio.CancelledError:
        return
