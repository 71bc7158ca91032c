"""The grouper: for every pod of the scheduler, write the PodGroup it belongs to and mark the pod with its name.

The decision is `grouping.group`; this loop reads the chain of owners and writes the difference.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections import OrderedDict
from typing import Any

import msgspec

from capstan import grouping, kube
from capstan.api import clock, resources
from capstan.api.base import OwnerReference
from capstan.api.core import Pod
from capstan.api.rbac import PolicyRule
from capstan.api.scheduling import POD_GROUP_ANNOTATION, SCHEDULER_NAME, PodGroup

log = logging.getLogger(__name__)

_DEEPEST = 8
"""Owners above a pod; a longer chain is a loop."""
_REMEMBERED_OWNERS = 2048
_OWNER_SECONDS = 5.0
"""How long a chain of owners is believed: a thousand pods of one Job ask once, an edited annotation still arrives."""
_REFUSED = "InvalidWorkload"
"""Reason of the condition and the Event on a pod whose workload contradicts itself."""

Manifest = dict[str, Any]


class Grouper(kube.Controller[kube.Key]):
    """Reconciles pods, keyed by (namespace, name)."""

    RULES = [
        PolicyRule(api_groups=[""], resources=["pods"], verbs=["get", "list", "watch", "patch"]),
        PolicyRule(api_groups=[""], resources=["pods/status"], verbs=["patch"]),
        PolicyRule(
            api_groups=["scheduling.run.ai"],
            resources=["podgroups"],
            verbs=["get", "list", "watch", "create", "patch"],
        ),
        # Owners may be of any kind that users install.
        PolicyRule(api_groups=["*"], resources=["*"], verbs=["get"]),
        PolicyRule(api_groups=[""], resources=["events"], verbs=["create", "patch"]),
    ]

    def __init__(self, client: kube.Client, pods: kube.Cache[Pod], groups: kube.Cache[PodGroup]) -> None:
        super().__init__([pods, groups])
        self._client = client
        self._pods = pods
        self._groups = groups
        self._discovery = kube.Discovery(client)
        self._events = kube.EventRecorder(client, "capstan-grouper")
        self._owners: OrderedDict[str, tuple[float, tuple[Manifest, ...]]] = OrderedDict()
        pods.on_change(self._pod_changed)

    def _pod_changed(self, change: kube.Change[Pod]) -> None:
        pod = change.new
        if pod is not None and pod.spec.scheduler_name == SCHEDULER_NAME and not _is_settled(pod):
            self.queue.add(pod.key)

    async def reconcile(self, key: kube.Key) -> float | None:
        pod = self._pods.objects.get(key)
        if pod is None or _is_settled(pod):
            return None
        manifest: Manifest = msgspec.to_builtins(pod) | {"apiVersion": "v1", "kind": "Pod"}
        owners = await self._owners_of(pod)
        if owners is None:
            return None  # the owner is gone, and the pod with it
        try:
            decided = grouping.group(manifest, owners)
        except grouping.InvalidWorkload as error:
            await self._refuse(pod, str(error))
            return _OWNER_SECONDS  # its owner may be corrected, which no change of the pod tells
        if decided.pod_group is not None:
            await self._write_group(decided.pod_group)
        marks: dict[str, Any] = {}
        if decided.pod_annotations:
            marks["annotations"] = dict(decided.pod_annotations)
        if decided.pod_labels:
            marks["labels"] = dict(decided.pod_labels)
        if marks:
            marks["uid"] = pod.metadata.uid
            try:
                await self._client.patch(resources.PODS, key[1], key[0], patch={"metadata": marks})
            except (kube.NotFound, kube.Conflict):
                log.debug("pod %s/%s was deleted or replaced while it was grouped", *key)
        return None

    async def _refuse(self, pod: Pod, message: str) -> None:
        """Tell the pod's user once what to correct."""
        if any(c.reason == _REFUSED and c.message == message for c in pod.status.conditions):
            return
        condition = {
            "type": "PodScheduled",
            "status": "False",
            "reason": _REFUSED,
            "message": message,
            "lastTransitionTime": clock.render(time.time()),
        }
        try:
            await self._client.patch(
                resources.PODS,
                pod.metadata.name,
                pod.metadata.namespace,
                patch={"metadata": {"uid": pod.metadata.uid}, "status": {"conditions": [condition]}},
                kind="strategic",
                subresource="status",
            )
        except (kube.NotFound, kube.Conflict):
            return  # deleted or replaced meanwhile
        self._events.emit(pod, "Warning", _REFUSED, message)

    async def _write_group(self, wanted: Manifest) -> None:
        """Create the PodGroup, or bring an existing one in line where the workload changed."""
        metadata = wanted["metadata"]
        known = self._groups.get(metadata["name"], metadata["namespace"])
        if known is None:
            try:
                await self._client.create(resources.POD_GROUPS, wanted, metadata["namespace"])
                return
            except kube.AlreadyExists:
                pass
        elif msgspec.convert(wanted["spec"], type(known.spec)) == known.spec:
            return
        await self._client.patch(
            resources.POD_GROUPS,
            metadata["name"],
            metadata["namespace"],
            patch={"metadata": {"annotations": metadata["annotations"]}, "spec": wanted["spec"]},
        )

    async def _owners_of(self, pod: Pod) -> tuple[Manifest, ...] | None:
        """The chain of controllers, nearest first; None when one of them no longer exists."""
        reference = pod.metadata.controller()
        if reference is None:
            return ()
        now = asyncio.get_running_loop().time()
        known = self._owners.get(reference.uid)
        if known is not None and now < known[0]:
            return known[1]
        chain: list[Manifest] = []
        uid = reference.uid
        while reference is not None and len(chain) < _DEEPEST:
            owner = await self._owner(pod.metadata.namespace, reference)
            if owner is None:
                return None
            chain.append(owner)
            above = msgspec.convert(owner["metadata"].get("ownerReferences", []), list[OwnerReference])
            reference = next((o for o in above if o.controller), None)
        self._owners[uid] = (now + _OWNER_SECONDS, tuple(chain))
        self._owners.move_to_end(uid)
        while len(self._owners) > _REMEMBERED_OWNERS:
            self._owners.popitem(last=False)
        return tuple(chain)

    async def _owner(self, namespace: str, reference: OwnerReference) -> Manifest | None:
        resource = await self._discovery.resource(reference.api_version, reference.kind)
        try:
            owner = await self._client.get(resource, reference.name, namespace if resource.namespaced else "")
        except kube.NotFound:
            return None
        same = owner["metadata"]["uid"] == reference.uid
        return {"apiVersion": reference.api_version, "kind": reference.kind} | owner if same else None


def _is_settled(pod: Pod) -> bool:
    """Grouped already, by us or by its user, or at its end."""
    return (
        POD_GROUP_ANNOTATION in pod.metadata.annotations
        or pod.metadata.deletion_timestamp is not None
        or pod.status.phase in ("Succeeded", "Failed")
    )
