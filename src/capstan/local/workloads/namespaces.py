"""Namespaces: a service account at the start; at the end all content deleted, then the namespace itself let go."""

from __future__ import annotations

import asyncio
from typing import Any

from capstan import kube
from capstan.api import clock
from capstan.local.workloads.caches import NAMESPACES, SERVICE_ACCOUNTS, Caches

_FINALIZER = "kubernetes"
_RETRY_SECONDS = 1.0


class NamespaceController(kube.Controller[kube.Key]):
    def __init__(self, caches: Caches) -> None:
        super().__init__()
        self._caches = caches
        self._client = caches.client
        self._discovery = kube.Discovery(caches.client)
        self._namespaces = caches.of(NAMESPACES)
        self._accounts = caches.of(SERVICE_ACCOUNTS)
        self.caches = (self._namespaces, self._accounts)
        self._namespaces.on_change(lambda change: self.queue.add(("", change.object["metadata"]["name"])))
        self._accounts.on_change(self._account_changed)

    def _account_changed(self, change: kube.Change[dict[str, Any]]) -> None:
        if change.new is None:
            self.queue.add(("", change.object["metadata"]["namespace"]))

    async def reconcile(self, key: kube.Key) -> float | None:
        namespace = self._namespaces.objects.get(key)
        if namespace is None:
            return None
        if namespace["metadata"].get("deletionTimestamp") is None:
            await self._ensure_account(key[1])
            return None
        if _FINALIZER not in (namespace.get("spec") or {}).get("finalizers", []):
            return None
        remaining = await self._empty(key[1])
        await self._report(namespace, remaining)
        if remaining:
            return _RETRY_SECONDS
        finalizers = [name for name in namespace["spec"]["finalizers"] if name != _FINALIZER]
        body = {**namespace, "spec": {**namespace["spec"], "finalizers": finalizers}}
        try:
            await self._client.update(NAMESPACES, body, subresource="finalize")
        except kube.NotFound:
            pass  # finalized by an earlier attempt whose answer was lost
        return None

    async def _ensure_account(self, name: str) -> None:
        if self._accounts.get("default", name) is None:
            body = {"apiVersion": "v1", "kind": "ServiceAccount", "metadata": {"name": "default", "namespace": name}}
            try:
                await self._client.create(SERVICE_ACCOUNTS, body)
            except (kube.AlreadyExists, kube.NotFound):
                pass  # made by someone else, or the namespace is gone again

    async def _empty(self, namespace: str) -> dict[str, int]:
        """Deletes what the namespace holds; returns how many objects of each resource are still there."""
        served = [resource for resource in await self._discovery.all("list", "delete") if resource.namespaced]
        counts = await asyncio.gather(*(self._empty_one(resource, namespace) for resource in served))
        return {resource.group_resource: n for resource, n in zip(served, counts, strict=True) if n}

    async def _empty_one(self, resource: kube.Unstructured, namespace: str) -> int:
        listing = await self._client.list(resource, namespace)
        waiting = [item["metadata"] for item in listing.items if "deletionTimestamp" not in item["metadata"]]
        for metadata in waiting:
            try:
                await self._client.delete(
                    resource, metadata["name"], namespace, uid=metadata["uid"], propagation="Background"
                )
            except (kube.NotFound, kube.Conflict):
                continue  # gone meanwhile, or replaced: the next look finds the namesake
        return len((await self._client.list(resource, namespace)).items) if waiting else len(listing.items)

    async def _report(self, namespace: dict[str, Any], remaining: dict[str, int]) -> None:
        """The condition by which `kubectl describe namespace` explains why it is still Terminating."""
        detail = ", ".join(
            f"{resource} has {count} resource instances" for resource, count in sorted(remaining.items())
        )
        message = f"Some resources are remaining: {detail}" if remaining else "All content successfully removed"
        before = {c["type"]: c for c in (namespace.get("status") or {}).get("conditions", [])}
        known = before.get("NamespaceContentRemaining", {})
        if known.get("message", "" if remaining else message) == message:
            return
        condition = {
            "type": "NamespaceContentRemaining",
            "status": "True" if remaining else "False",
            "reason": "SomeResourcesRemain" if remaining else "ContentRemoved",
            "message": message,
            "lastTransitionTime": clock.render(self._caches.now()),
        }
        try:
            await self._client.patch(
                NAMESPACES,
                namespace["metadata"]["name"],
                patch={"status": {"conditions": list((before | {condition["type"]: condition}).values())}},
                subresource="status",
            )
        except kube.NotFound:
            pass  # finalized by an earlier attempt whose answer was lost
