"""Tells gangs of node pools that no shard serves what they wait for: no scheduler looks at them to say so."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Iterable, Iterator

from capstan import kube
from capstan.api import clock, resources
from capstan.api.scheduling import POD_GROUP_ANNOTATION, PodGroup
from capstan.controllers.scheduler import Scheduler

log = logging.getLogger(__name__)

EVERY_SECONDS = 2.0
REASON = "NodePoolNotServed"


class Unserved:
    """Runs beside the schedulers, of which `schedulers` gives those that run: each sees all PodGroups and pods.

    What was told is read off the PodGroups, so that a restart tells nothing twice and forgets nothing.
    """

    def __init__(self, client: kube.Client, schedulers: Callable[[], Iterable[Scheduler]], label: str) -> None:
        self._client, self._schedulers, self._label = client, schedulers, label

    async def run(self) -> None:
        while True:
            await asyncio.sleep(EVERY_SECONDS)
            schedulers = list(self._schedulers())
            if schedulers:
                pools = {scheduler.policy.node_pool or "" for scheduler in schedulers}
                for group, message in list(self._news(schedulers[0], pools)):
                    await self._write(group, message)

    def _news(self, seen: Scheduler, pools: set[str]) -> Iterator[tuple[PodGroup, str]]:
        """PodGroups with what is to be told; an empty text takes it back."""
        lost = []
        for group in seen.pod_groups.values():
            if self._pool(group) in pools:
                if _told(group) is not None:
                    yield group, ""
            else:
                lost.append(group)
        if not lost:
            return
        waiting = {
            (pod.metadata.namespace, pod.metadata.annotations.get(POD_GROUP_ANNOTATION, ""))
            for pod in seen.pods.values()
            if not pod.spec.node_name
        }
        for group in lost:
            message = self._message(group, pools) if group.key in waiting else ""
            if message != (_told(group) or ""):
                yield group, message

    def _pool(self, group: PodGroup) -> str:
        return group.metadata.labels.get(self._label, "")

    def _message(self, group: PodGroup, pools: set[str]) -> str:
        served = ", ".join(pool or "nodes without the label" for pool in sorted(pools))
        return (
            f"no SchedulingShard serves the node pool {self._pool(group)!r} (label {self._label}); served are: {served}"
        )

    async def _write(self, group: PodGroup, message: str) -> None:
        condition = {
            "type": "UnschedulableOnNodePool",
            "nodePool": self._pool(group) or "default",
            "reason": REASON,
            "message": message,
            "reasons": [{"reason": REASON, "message": message}],
            "lastTransitionTime": clock.render(time.time()),
            "status": "True",
        }
        meta = group.metadata
        # The version: what a shard that has come meanwhile says is not overwritten.
        patch = {
            "metadata": {"resourceVersion": meta.resource_version},
            "status": {"schedulingConditions": [condition] if message else []},
        }
        try:
            await self._client.patch(resources.POD_GROUPS, meta.name, meta.namespace, patch=patch, subresource="status")
        except (kube.NotFound, kube.Conflict):
            return  # it changed: the next pass looks again
        except kube.ApiError as error:
            log.warning("PodGroup %s/%s: not told that no shard serves it: %s", *group.key, error)


def _told(group: PodGroup) -> str | None:
    return next((c.message for c in group.status.scheduling_conditions if c.reason == REASON), None)
