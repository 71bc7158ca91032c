"""What all workload controllers share: one client, one cache per resource, one clock."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Iterable, Mapping
from typing import Any, TypeVar

from capstan import kube
from capstan.api import resources
from capstan.api.base import Condition, Object
from capstan.api.resources import Resource, unstructured

T = TypeVar("T")
Owned = TypeVar("Owned", bound=Object)

CONTROLLER_REVISIONS = unstructured("apps", "v1", "controllerrevisions", "ControllerRevision", namespaced=True)
SERVICE_ACCOUNTS = unstructured("", "v1", "serviceaccounts", "ServiceAccount", namespaced=True)
NAMESPACES = unstructured("", "v1", "namespaces", "Namespace", namespaced=False)
"""As plain objects: their finalizers live in the spec, which the typed struct does not read."""


class Caches:
    """One cache per resource, made on first use and run together; `now` is POSIX seconds."""

    def __init__(self, client: kube.Client, now: Callable[[], float] = time.time) -> None:
        self.client = client
        self.now = now
        self._caches: dict[Resource[Any], kube.Cache[Any]] = {}
        self._recorders: list[kube.EventRecorder] = []
        self._by_controller: dict[Resource[Any], kube.Index[str, Any]] = {}
        self._orphans: dict[Resource[Any], kube.Index[str, Any]] = {}
        self.pods = self.of(resources.PODS)
        self.pods_by_owner = self.by_controller(resources.PODS)
        self.pods_by_namespace = self.pods.index(lambda pod: [pod.metadata.namespace])

    def of(self, resource: Resource[T]) -> kube.Cache[T]:
        if resource not in self._caches:
            self._caches[resource] = kube.Cache(self.client, resource)
        return self._caches[resource]

    def by_controller(self, resource: Resource[Owned]) -> kube.Index[str, Owned]:
        """The objects by the uid of the owner that manages them."""
        if resource not in self._by_controller:
            self._by_controller[resource] = self.of(resource).index(
                lambda obj: [owner.uid] if (owner := obj.metadata.controller()) else []
            )
        return self._by_controller[resource]

    def orphans(self, resource: Resource[Owned]) -> kube.Index[str, Owned]:
        """The objects that no owner manages, by namespace."""
        if resource not in self._orphans:
            self._orphans[resource] = self.of(resource).index(
                lambda obj: [] if obj.metadata.controller() else [obj.metadata.namespace]
            )
        return self._orphans[resource]

    def recorder(self, component: str) -> kube.EventRecorder:
        """Events under the name that a controller has in kube-controller-manager."""
        recorder = kube.EventRecorder(self.client, component, now=self.now)
        self._recorders.append(recorder)
        return recorder

    async def run(self) -> None:
        """Keeps all caches that were asked for so far current, until cancelled; then the last events are written."""
        try:
            async with asyncio.TaskGroup() as group:
                for cache in self._caches.values():
                    group.create_task(cache.run())
        finally:
            await asyncio.gather(*(recorder.finish() for recorder in self._recorders))


async def patch_status(
    caches: Caches, resource: Resource[Any], obj: Object, status: Mapping[str, Any], current: Mapping[str, Any]
) -> None:
    """Writes what differs from `current` (the wire form of the cached status), then waits until the cache shows it.

    A field set to None is removed. The object may be gone by now: then there is nothing to report.
    """
    changed = {field: value for field, value in status.items() if current.get(field, _ABSENT) != value}
    if all(value in _EMPTY and field not in current for field, value in changed.items()):
        return
    try:
        written = await caches.client.patch(
            resource, obj.metadata.name, obj.metadata.namespace, patch={"status": changed}, subresource="status"
        )
    except kube.NotFound:
        return
    await caches.of(resource).reached(written["metadata"]["resourceVersion"])


def wire_conditions(conditions: Iterable[Condition]) -> list[dict[str, Any]]:
    """Conditions as they stand on the wire: unlike other structs with the fields that equal their defaults."""
    return [
        {
            "type": condition.type,
            "status": condition.status,
            "reason": condition.reason,
            "message": condition.message,
            **{
                field: value
                for field, value in (
                    ("lastTransitionTime", condition.last_transition_time),
                    ("lastUpdateTime", condition.last_update_time),
                )
                if value
            },
        }
        for condition in conditions
    ]


_ABSENT = object()
_EMPTY: tuple[Any, ...] = (None, 0, "", [], {})
