"""The grouper: for every pod of the scheduler, write the PodGroup it belongs to and mark the pod with its name.

A pod may come with its mark, from admission or from its user; then only the PodGroup may be missing.

The decision is `grouping.group`; this loop reads the chain of owners and writes the difference. Owners may be of any
kind, so they are not watched: a slow sweep looks again at one pod of every group, and brings edits of the workload
(queue, minimum, replicas) into its PodGroup.
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
from capstan.api.scheduling import CLAIMED_BY_ONE, POD_GROUP_ANNOTATION, PodGroup, PodGroupSpec

log = logging.getLogger(__name__)

_DEEPEST = 8
"""Owners above a pod; a longer chain is a loop."""
_REMEMBERED_OWNERS = 2048
_OWNER_SECONDS = 5.0
"""How long a chain of owners is believed: a thousand pods of one Job ask once, an edited annotation still arrives."""
_SWEEP_SECONDS = 30.0
"""Between two sweeps. A gang that was made smaller has to be known before its grace period as a stale gang ends."""
_SWEEP_PAUSE = 0.02
"""Between two groups of a sweep: at most 50 chains of owners are read per second."""
_REFUSED = "InvalidWorkload"
"""Reason of the condition and the Event on a pod whose workload contradicts itself."""
_CLAIMED_TWICE = "ClaimedByTwoPodGroups"

Manifest = dict[str, Any]


class Grouper(kube.Controller[kube.Key]):
    """Reconciles pods, keyed by (namespace, name)."""

    WORKERS = 32
    """A burst of pods is written in few commits of the API server's log."""

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

    def __init__(
        self,
        client: kube.Client,
        pods: kube.Cache[Pod],
        groups: kube.Cache[PodGroup],
        *,
        settings: grouping.Settings | None = None,
        sweep_seconds: float = _SWEEP_SECONDS,
    ) -> None:
        super().__init__([pods, groups])
        self._client = client
        self._pods = pods
        self._groups = groups
        self._settings = settings or grouping.Settings()
        self._sweep_seconds = sweep_seconds
        self._discovery = kube.Discovery(client)
        self._events = kube.EventRecorder(client, "capstan-grouper")
        self._owners: OrderedDict[str, tuple[float, tuple[Manifest, ...]]] = OrderedDict()
        self._moved: set[kube.Key] = set()
        pods.on_change(self._pod_changed)

    async def run(self) -> None:
        async with asyncio.TaskGroup() as group:
            group.create_task(super().run())
            group.create_task(self._sweep())

    def _is_ours(self, pod: Pod) -> bool:
        """A pod of our scheduler that is not at its end."""
        return (
            pod.spec.scheduler_name == self._settings.scheduler_name
            and pod.metadata.deletion_timestamp is None
            and pod.status.phase not in ("Succeeded", "Failed")
        )

    def _pod_changed(self, change: kube.Change[Pod]) -> None:
        pod = change.new
        if pod is None or not self._is_ours(pod):
            return
        named = pod.metadata.annotations.get(POD_GROUP_ANNOTATION)
        if named is None or self._is_news(named, pod, change.old):
            self.queue.add(pod.key)

    def _is_news(self, named: str, pod: Pod, before: Pod | None) -> bool:
        """Whether a pod with a mark has to be looked at: the group may be missing, or another one claim the pod."""
        if before is not None:
            return before.metadata.annotations.get(POD_GROUP_ANNOTATION) not in (None, named)
        group = self._groups.get(named, pod.metadata.namespace)
        return group is None or (_is_users(group) and _has_origin(pod))

    async def _sweep(self) -> None:
        """Look again at one pod of every group that has an owner or is missing; those that wait come first."""
        while True:
            await asyncio.sleep(self._sweep_seconds)
            self._moved.clear()
            members: dict[kube.Key, Pod] = {}
            for pod in self._pods.objects.values():
                name = pod.metadata.annotations.get(POD_GROUP_ANNOTATION)
                if name and self._is_ours(pod):
                    if _claim_told(pod) is not None:
                        self.queue.add(pod.key)
                    group = (pod.metadata.namespace, name)
                    if not _has_origin(pod) and self._groups.get(name, pod.metadata.namespace) is not None:
                        continue
                    known = members.setdefault(group, pod)
                    if known.spec.node_name and not pod.spec.node_name:
                        members[group] = pod
            for _, pod in sorted(members.items(), key=lambda member: bool(member[1].spec.node_name)):
                self.queue.add(pod.key)
                await asyncio.sleep(_SWEEP_PAUSE)

    async def reconcile(self, key: kube.Key) -> float | None:
        pod = self._pods.objects.get(key)
        if pod is None or not self._is_ours(pod):
            return None
        current = pod.metadata.annotations.get(POD_GROUP_ANNOTATION)
        known = self._groups.get(current, key[0]) if current else None
        if known is not None and _is_users(known):
            await self._tell_claims(pod, await self._other_claim(pod, known))
            return None  # its user groups for themselves
        await self._tell_claims(pod, "")
        manifest = _manifest(pod)
        owners = await self._owners_of(pod)
        if owners is None:
            return None  # the owner is gone, and the pod with it
        try:
            wanted = grouping.related(manifest, owners)
            found = await self._related(pod.metadata.namespace, wanted) if wanted else None
            decided = grouping.group(manifest, owners, found, self._settings)
        except grouping.InvalidWorkload as error:
            if known is not None:
                log.info("pod %s/%s stays in its group %s: %s", *key, current, error)
                return None
            await self._refuse(pod, str(error))
            return _OWNER_SECONDS  # its owner may be corrected, which no change of the pod tells
        if current and known is None and decided.pod_annotations.get(POD_GROUP_ANNOTATION) != current:
            return None  # a group that its user has yet to make
        if decided.pod_group is not None:
            await self._write_group(decided.pod_group)
        marks: dict[str, Any] = {}
        if decided.pod_annotations:
            marks["annotations"] = dict(decided.pod_annotations)
        if decided.pod_labels:
            marks["labels"] = dict(decided.pod_labels)
        if marks and not _is_marked(pod, decided):
            if current and pod.spec.node_name:
                return None  # it runs; where it was counted when it started is where it counts
            if current:
                self._regroup(pod.metadata.namespace, current)
            marks["uid"] = pod.metadata.uid
            try:
                await self._client.patch(resources.PODS, key[1], key[0], patch={"metadata": marks})
            except (kube.NotFound, kube.Conflict):
                log.debug("pod %s/%s was deleted or replaced while it was grouped", *key)
        return None

    def _regroup(self, namespace: str, name: str) -> None:
        """One waiting pod of a group moves, so the others have to be looked at; once a sweep."""
        if (namespace, name) in self._moved:
            return
        self._moved.add((namespace, name))
        for pod in self._pods.objects.values():
            meta = pod.metadata
            if (
                meta.namespace == namespace
                and meta.annotations.get(POD_GROUP_ANNOTATION) == name
                and self._is_ours(pod)
            ):
                self.queue.add(pod.key)

    async def _other_claim(self, pod: Pod, mine: PodGroup) -> str:
        """The other group that claims a pod of a group that its user made, in words; empty when there is none."""
        spec, manifest = pod.spec, _manifest(pod)
        if pod.metadata.annotations.get(grouping.SKIP_ANNOTATION) == "true":
            return ""
        if spec.scheduling_group is not None and spec.scheduling_group.pod_group_name:
            return f"PodGroup {spec.scheduling_group.pod_group_name} of scheduling.k8s.io (spec.schedulingGroup)"
        if spec.workload_ref is not None and spec.workload_ref.name:
            return f"Workload {spec.workload_ref.name} of scheduling.k8s.io (spec.workloadRef)"
        owners = await self._owners_of(pod)
        if not owners:
            return ""
        try:
            decided = grouping.group(manifest, owners, None, self._settings)
        except grouping.InvalidWorkload:
            return ""  # it makes no group
        name = decided.pod_annotations.get(POD_GROUP_ANNOTATION, "")
        if name == mine.metadata.name or self._groups.get(name, mine.metadata.namespace) is None:
            return ""
        owner = owners[-1]
        return f"PodGroup {name} of its owner {owner['kind']} {owner['metadata']['name']}"

    async def _tell_claims(self, pod: Pod, other: str) -> None:
        """Say on the pod that two groups claim it, once; or take that back."""
        told = _claim_told(pod)
        if not other and told is None:
            return
        mine = pod.metadata.annotations.get(POD_GROUP_ANNOTATION, "")
        message = (
            f"PodGroup {mine} (annotation {POD_GROUP_ANNOTATION}) and {other} both claim this pod; it counts in {mine} "
            "only: remove one of the two"
        )
        if other and told == message:
            return
        condition = {"type": CLAIMED_BY_ONE, "$patch": "delete"}
        if other:
            now = clock.render(time.time())
            said = {"status": "False", "reason": _CLAIMED_TWICE, "message": message, "lastTransitionTime": now}
            condition = {"type": CLAIMED_BY_ONE, **said}
        if await self._patch_condition(pod, condition) and other:
            self._events.emit(pod, "Warning", _CLAIMED_TWICE, message)

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
        if await self._patch_condition(pod, condition):
            self._events.emit(pod, "Warning", _REFUSED, message)

    async def _patch_condition(self, pod: Pod, condition: Manifest) -> bool:
        """False when the pod was deleted or replaced meanwhile."""
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
            return False
        return True

    async def _write_group(self, wanted: Manifest) -> None:
        """Create the PodGroup, or bring an existing one in line where the workload changed."""
        metadata = wanted["metadata"]
        known = self._groups.get(metadata["name"], metadata["namespace"])
        if known is None:
            try:
                await self._client.create(resources.POD_GROUPS, wanted, metadata["namespace"])
                return
            except kube.AlreadyExists:
                log.debug("PodGroup %s/%s is not in the cache yet", metadata["namespace"], metadata["name"])
        elif _says(known, wanted):
            return
        unset: Manifest = dict.fromkeys(grouping.OPTIONAL_FIELDS)
        marks = {"annotations": metadata["annotations"], "labels": metadata.get("labels", {})}
        await self._client.patch(
            resources.POD_GROUPS,
            metadata["name"],
            metadata["namespace"],
            patch={"metadata": marks, "spec": unset | wanted["spec"]},
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

    async def _related(self, namespace: str, wanted: grouping.Related) -> Manifest | None:
        """The object in the first version that the server has; None where it does not exist."""
        for version in wanted.api_versions:
            try:
                resource = await self._discovery.resource(version, wanted.kind)
                found = await self._client.get(resource, wanted.name, namespace)
            except kube.UnknownKind:
                continue
            except kube.NotFound:
                return None
            return {"apiVersion": version, "kind": wanted.kind} | found
        return None

    async def _owner(self, namespace: str, reference: OwnerReference) -> Manifest | None:
        resource = await self._discovery.resource(reference.api_version, reference.kind)
        try:
            owner = await self._client.get(resource, reference.name, namespace if resource.namespaced else "")
        except kube.NotFound:
            return None
        same = owner["metadata"]["uid"] == reference.uid
        return {"apiVersion": reference.api_version, "kind": reference.kind} | owner if same else None


def _is_users(group: PodGroup) -> bool:
    """Whether a user made the group, and not the grouper."""
    return grouping.TOP_OWNER_ANNOTATION not in group.metadata.annotations


def _claim_told(pod: Pod) -> str | None:
    return next((c.message for c in pod.status.conditions if c.type == CLAIMED_BY_ONE), None)


def _manifest(pod: Pod) -> Manifest:
    built: Manifest = msgspec.to_builtins(pod)
    return built | {"apiVersion": "v1", "kind": "Pod"}


def _has_origin(pod: Pod) -> bool:
    """Whether anything besides the pod decides about its group."""
    spec = pod.spec
    return pod.metadata.controller() is not None or bool(spec.scheduling_group or spec.workload_ref)


def _is_marked(pod: Pod, decided: grouping.Grouping) -> bool:
    meta = pod.metadata
    return decided.pod_annotations.items() <= meta.annotations.items() and (
        decided.pod_labels.items() <= meta.labels.items()
    )


def _says(known: PodGroup, wanted: Manifest) -> bool:
    """Whether a PodGroup is as it should be, in what the grouper decides."""
    spec = msgspec.convert(wanted["spec"], PodGroupSpec)
    spec.mark_unschedulable = known.spec.mark_unschedulable
    spec.scheduling_backoff = known.spec.scheduling_backoff
    labels = wanted["metadata"].get("labels", {})
    return spec == known.spec and labels.items() <= known.metadata.labels.items()
