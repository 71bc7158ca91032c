"""Tells gangs of node pools that no shard serves what they wait for: no scheduler looks at them to say so."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Iterable, Iterator, Set
from typing import Any

from capstan import kube
from capstan.api import clock, resources
from capstan.api.core import Pod
from capstan.api.scheduling import POD_GROUP_ANNOTATION, PodGroup
from capstan.controllers.scheduler import Scheduler
from capstan.controllers.verdicts import CONDITION, replacing_conditions

log = logging.getLogger(__name__)

EVERY_SECONDS = 2.0
REASON = "NodePoolNotServed"


class Unserved:
    """Runs beside the schedulers, of which `schedulers` gives those that run: each sees all PodGroups and pods.

    Looked at is what changed since the last pass. What was told is read off the PodGroups, so that a restart tells
    nothing twice and forgets nothing.
    """

    def __init__(self, client: kube.Client, schedulers: Callable[[], Iterable[Scheduler]], label: str) -> None:
        self._client, self._schedulers, self._label = client, schedulers, label
        self._seen: Scheduler | None = None
        self._pools: Set[str] = frozenset()
        """Which are served."""
        self._changed: set[kube.Key] = set()
        """PodGroups to look at."""
        self._lost: set[kube.Key] = set()
        """PodGroups of other pools."""

    async def run(self) -> None:
        while True:
            await asyncio.sleep(EVERY_SECONDS)
            schedulers = list(self._schedulers())
            if schedulers:
                self._follow(schedulers[0], {scheduler.policy.node_pool or "" for scheduler in schedulers})
                await self._tell(schedulers[0])

    def _follow(self, seen: Scheduler, pools: Set[str]) -> None:
        """Hear of changes from this scheduler; look at all PodGroups again when other pools are served."""
        if seen is not self._seen:
            self._seen = seen
            seen.pod_groups.on_change(self._group_changed)
            seen.pods.on_change(self._pod_changed)
        if pools != self._pools:
            self._pools = pools
            self._changed.update(seen.pod_groups.objects)

    def _group_changed(self, change: kube.Change[PodGroup]) -> None:
        self._changed.add(change.object.key)

    def _pod_changed(self, change: kube.Change[Pod]) -> None:
        if self._lost and (key := _group_of(change.object)) in self._lost:
            self._changed.add(key)

    async def _tell(self, seen: Scheduler) -> None:
        changed, self._changed = self._changed, set()
        for group, message in list(self._news(seen, changed)):
            try:
                await self._write(group, message)
            except (kube.NotFound, kube.Conflict):
                continue  # it changed, which the next pass hears
            except kube.ApiError as error:
                text = "PodGroup %s/%s: not told that no shard serves it, trying again: %s"
                log.log(kube.severity(error), text, *group.key, error)
                self._changed |= changed
                if isinstance(error, kube.Unavailable):
                    return  # nor are the others

    def _news(self, seen: Scheduler, changed: Iterable[kube.Key]) -> Iterator[tuple[PodGroup, str]]:
        """PodGroups with what is to be told; an empty text takes it back."""
        lost = []
        for key in changed:
            group = seen.pod_groups.objects.get(key)
            if group is None or self._pool(group) in self._pools:
                self._lost.discard(key)
                if group is not None and _told(group) is not None:
                    yield group, ""
            else:
                self._lost.add(key)
                lost.append(group)
        if not lost:
            return
        waiting = {_group_of(pod) for pod in seen.pods.objects.values() if not pod.spec.node_name}
        for group in lost:
            message = self._message(group) if group.key in waiting else ""
            if message != (_told(group) or ""):
                yield group, message

    def _pool(self, group: PodGroup) -> str:
        return group.metadata.labels.get(self._label, "")

    def _message(self, group: PodGroup) -> str:
        served = ", ".join(pool or "nodes without the label" for pool in sorted(self._pools))
        return (
            f"no SchedulingShard serves the node pool {self._pool(group)!r} (label {self._label}); served are: {served}"
        )

    async def _write(self, group: PodGroup, message: str) -> None:
        """Write what is to be told in place of what was. Raises ApiError."""
        pool = self._pool(group) or "default"
        before = next((c.node_pool for c in group.status.scheduling_conditions if c.reason == REASON), pool)
        condition: dict[str, Any] = {
            "type": CONDITION,
            "nodePool": pool,
            "reason": REASON,
            "message": message,
            "reasons": [{"reason": REASON, "message": message}],
            "lastTransitionTime": clock.render(time.time()),
            "status": "True",
        }
        meta = group.metadata
        # The patch holds for this version only: what a shard that has come meanwhile says is not overwritten.
        patch = replacing_conditions(group, before, [condition] if message else [])
        await self._client.patch(resources.POD_GROUPS, meta.name, meta.namespace, patch=patch, subresource="status")


def _group_of(pod: Pod) -> kube.Key:
    return (pod.metadata.namespace, pod.metadata.annotations.get(POD_GROUP_ANNOTATION, ""))


def _told(group: PodGroup) -> str | None:
    return next((c.message for c in group.status.scheduling_conditions if c.reason == REASON), None)
