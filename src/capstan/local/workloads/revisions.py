"""ControllerRevisions: the templates a StatefulSet or DaemonSet had, for its updates and for `kubectl rollout`."""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

from capstan import kube
from capstan.api.apps import DaemonSet, StatefulSet
from capstan.api.resources import Resource
from capstan.local.workloads.caches import CONTROLLER_REVISIONS, Caches
from capstan.local.workloads.pods import Template, owner_reference, template_hash

HASH_LABEL = "controller-revision-hash"


class Revisions:
    """The revision history of the objects of one kind."""

    def __init__(self, caches: Caches, owner_resource: Resource[Any]) -> None:
        self._client = caches.client
        self.cache = caches.of(CONTROLLER_REVISIONS)
        self._owner_resource = owner_resource
        self._by_owner = self.cache.index(
            lambda one: [r["uid"] for r in one["metadata"].get("ownerReferences", []) if r.get("controller")]
        )

    def of(self, owner: StatefulSet | DaemonSet) -> list[dict[str, Any]]:
        """Oldest first."""
        return sorted(self._by_owner.get(owner.metadata.uid).values(), key=lambda one: int(one["revision"]))

    def template(self, owner: StatefulSet | DaemonSet, name: str) -> Template | None:
        """The pod template of a revision, if it is still known."""
        found = next((one for one in self.of(owner) if one["metadata"]["name"] == name), None)
        template: Template | None = found["data"]["spec"]["template"] if found else None
        return {k: v for k, v in template.items() if k != "$patch"} if template else None

    async def current(self, owner: StatefulSet | DaemonSet) -> str:
        """The name of the revision of today's template; a new or returning template gets the highest number."""
        digest = template_hash(owner.spec.template)
        name = f"{owner.metadata.name}-{digest}"
        known = self.of(owner)
        latest = int(known[-1]["revision"]) if known else 0
        found = next((one for one in known if one["metadata"]["name"] == name), None)
        if found is None:
            written = await self._create(owner, name, digest, latest + 1)
        elif int(found["revision"]) < latest:
            patch = {"revision": latest + 1}
            patched = await self._client.patch(CONTROLLER_REVISIONS, name, owner.metadata.namespace, patch=patch)
            written = patched.document
        else:
            return name
        await self.cache.reached(written["metadata"]["resourceVersion"])
        return name

    async def _create(self, owner: StatefulSet | DaemonSet, name: str, digest: str, number: int) -> kube.Body:
        labels = (owner.spec.template.get("metadata") or {}).get("labels") or {}
        body = {
            "apiVersion": CONTROLLER_REVISIONS.api_version,
            "kind": CONTROLLER_REVISIONS.kind,
            "metadata": {
                "name": name,
                "namespace": owner.metadata.namespace,
                "labels": {**labels, HASH_LABEL: digest},
                "ownerReferences": [owner_reference(self._owner_resource, owner)],
            },
            # `$patch: replace` makes `kubectl rollout undo` put the template back whole.
            "data": {"spec": {"template": {**owner.spec.template, "$patch": "replace"}}},
            "revision": number,
        }
        try:
            return (await self._client.create(CONTROLLER_REVISIONS, body)).document
        except kube.AlreadyExists:
            return await self._client.get(CONTROLLER_REVISIONS, name, owner.metadata.namespace)

    async def clean_up(self, owner: StatefulSet | DaemonSet, in_use: Collection[str]) -> None:
        """Keeps `revisionHistoryLimit` revisions besides those in use."""
        unused = [one for one in self.of(owner) if one["metadata"]["name"] not in in_use]
        for one in unused[: max(0, len(unused) - owner.spec.revision_history_limit)]:
            await self._client.delete(
                CONTROLLER_REVISIONS, one["metadata"]["name"], owner.metadata.namespace, uid=one["metadata"]["uid"]
            )
