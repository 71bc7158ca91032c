"""Tells users why a gang waits: on its PodGroup, on its pods, and as an Event. Written only when the reason changes.

Numbers inside a message may change every cycle while a cluster is busy; such a change alone is written at most every
`REPEAT_SECONDS`.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import msgspec

from capstan import kube, scheduling
from capstan.api import clock, resources
from capstan.api.core import Pod
from capstan.api.scheduling import PodGroup

log = logging.getLogger(__name__)

REPEAT_SECONDS = 5.0
CONDITION = "UnschedulableOnNodePool"

_Key = tuple[str, str, str]
"""(namespace, PodGroup, pod); one of the two names is empty."""


def _key(verdict: scheduling.Verdict) -> _Key:
    return (verdict.namespace, verdict.group, "" if verdict.group else "".join(verdict.pods[:1]))


@dataclass(slots=True)
class _Told:
    reason: str
    message: str
    at: float
    """On the monotonic clock: the wall clock may be set."""
    transition: int


class VerdictWriter:
    """Remembers what was told about each waiting gang and writes the differences; `count` hears each reason told."""

    def __init__(
        self,
        client: kube.Client,
        events: kube.EventRecorder,
        pods: kube.Cache[Pod],
        groups: kube.Cache[PodGroup],
        count: Callable[[str], None],
        node_pool: str = "default",
    ) -> None:
        self._client = client
        self._count = count
        self._events = events
        self._pods, self._groups = pods, groups
        self._node_pool = node_pool
        self._told: dict[_Key, _Told] = {}
        self._failed: list[tuple[str, kube.ApiError]] = []
        """What could not be written in this pass, and why."""
        self._latest: tuple[Sequence[scheduling.Verdict], float] = ((), 0.0)
        self._noted = asyncio.Event()

    def note(self, verdicts: Sequence[scheduling.Verdict], now: float) -> None:
        """Take the verdicts of a cycle; only the newest cycle's are written when writing is slower than deciding."""
        self._latest = (verdicts, now)
        self._noted.set()

    async def run(self) -> None:
        """Write what is noted until cancelled."""
        await self._noted.wait()
        self._recall()
        while True:
            await self._noted.wait()
            self._noted.clear()
            await self._tell(*self._latest)

    def _recall(self) -> None:
        """Count what an earlier process told as told, so that it is taken back where it holds no longer."""
        for group in self._groups.objects.values():
            for said in group.status.scheduling_conditions:
                if said.type == CONDITION and said.node_pool == self._node_pool:
                    transition = int(said.transition_id) if said.transition_id.isdecimal() else 0
                    self._told[*group.key, ""] = _Told("", "", 0.0, transition)

    async def _tell(self, verdicts: Sequence[scheduling.Verdict], now: float) -> None:
        """Write the verdicts that are news, and take back those of gangs that wait no longer."""
        waiting: set[_Key] = set()
        news: list[scheduling.Verdict] = []
        for verdict in verdicts:
            key = _key(verdict)
            waiting.add(key)
            if self._is_news(key, verdict):
                news.append(verdict)
        async with asyncio.TaskGroup() as writes:
            for verdict in news:
                writes.create_task(self._tell_one(verdict, now))
            for key in [key for key in self._told if key not in waiting]:
                del self._told[key]
                namespace, group, _ = key
                writes.create_task(self._write_conditions(namespace, group, []))
        self._report()

    def _report(self) -> None:
        """One line for all that failed alike: there may be as many as gangs that wait."""
        failed, self._failed = self._failed, []
        if failed:
            what, error = failed[0]
            more = f" and those of {len(failed) - 1} others" if len(failed) > 1 else ""
            log.log(kube.severity(error), "the verdict of %s%s is not written, trying again: %s", what, more, error)

    def _is_news(self, key: _Key, verdict: scheduling.Verdict) -> bool:
        told = self._told.get(key)
        if told is None or told.reason != verdict.reason:
            return True
        return told.message != verdict.message and time.monotonic() - told.at >= REPEAT_SECONDS

    async def _tell_one(self, verdict: scheduling.Verdict, now: float) -> None:
        key = _key(verdict)
        told = self._told.get(key)
        transition = told.transition + 1 if told else 1
        self._told[key] = _Told(verdict.reason, verdict.message, time.monotonic(), transition)
        self._count(verdict.reason)
        explanation: dict[str, Any] = {"reason": verdict.reason, "message": verdict.message}
        if verdict.details:
            explanation["details"] = verdict.details
        await self._write_conditions(
            verdict.namespace,
            verdict.group,
            [
                {
                    "type": CONDITION,
                    "nodePool": self._node_pool,
                    "reason": "Unschedulable",
                    "message": verdict.message,
                    "reasons": [explanation],
                    "transitionID": str(transition),
                    "lastTransitionTime": clock.render(now),
                    "status": "True",
                }
            ],
        )
        group = self._groups.get(verdict.group, verdict.namespace)
        if group is not None:
            reason = "NotReady" if verdict.reason == "NotReady" else "Unschedulable"
            self._events.emit(group, "Normal", reason, f"{verdict.reason}: {verdict.message}")
        if group is not None and group.spec.mark_unschedulable is False:
            return
        for name in verdict.pods:
            pod = self._pods.get(name, verdict.namespace)
            if pod is not None:
                await self._mark_pod(verdict, pod, now)

    async def _write_conditions(self, namespace: str, group: str, conditions: list[dict[str, Any]]) -> None:
        """Put them in place of our own; those of other node pools are for their schedulers to change."""
        if not group:
            return  # a pod without a PodGroup carries its verdict itself
        known = self._groups.get(group, namespace)
        patch = replacing_conditions(known, self._node_pool, conditions)
        try:
            await self._client.patch(resources.POD_GROUPS, group, namespace, patch=patch, subresource="status")
        except kube.NotFound:
            return  # deleted meanwhile
        except kube.ApiError as error:
            self._untold((namespace, group, ""))
            if not isinstance(error, kube.Conflict):  # it changed: the next cycle looks again
                self._failed.append((f"PodGroup {namespace}/{group}", error))

    def _untold(self, key: _Key) -> None:
        """What could not be written is news in the next cycle, whether it is to be told or to be taken back."""
        self._told.setdefault(key, _Told("", "", 0.0, 0)).reason = ""

    async def _mark_pod(self, verdict: scheduling.Verdict, pod: Pod, now: float) -> None:
        condition = {
            "type": "PodScheduled",
            "status": "False",
            "reason": "SchedulingGated" if pod.spec.scheduling_gates else "Unschedulable",
            "message": verdict.message,
            "lastTransitionTime": clock.render(now),
        }
        try:
            await self._client.patch(
                resources.PODS,
                pod.metadata.name,
                verdict.namespace,
                patch={"status": {"conditions": [condition]}},
                kind="strategic",
                subresource="status",
            )
        except kube.NotFound:
            return
        except kube.ApiError as error:
            if not verdict.group:
                self._untold(_key(verdict))
            self._failed.append((f"pod {verdict.namespace}/{pod.metadata.name}", error))
            return
        self._events.emit(pod, "Warning", "FailedScheduling", f"{verdict.reason}: {verdict.message}")


def replacing_conditions(group: PodGroup | None, node_pool: str, conditions: list[dict[str, Any]]) -> dict[str, Any]:
    """The patch of a PodGroup that puts `conditions` in place of those of a node pool and keeps all others.

    The list is written as a whole, so the patch holds only for the version that was read.
    """
    if group is None:
        return {"status": {"schedulingConditions": conditions}}
    said = group.status.scheduling_conditions
    others = [msgspec.to_builtins(c) for c in said if c.type != CONDITION or c.node_pool != node_pool]
    return {
        "metadata": {"resourceVersion": group.metadata.resource_version},
        "status": {"schedulingConditions": [*others, *conditions]},
    }
