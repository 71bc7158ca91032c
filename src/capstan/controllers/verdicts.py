"""Tells users why a gang waits: on its PodGroup, on its pods, and as an Event. Written only when the reason changes.

Numbers inside a message may change every cycle while a cluster is busy; such a change alone is written at most every
`REPEAT_SECONDS`.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from capstan import kube, scheduling
from capstan.api import clock, resources
from capstan.api.core import Pod
from capstan.api.scheduling import PodGroup

log = logging.getLogger(__name__)

REPEAT_SECONDS = 5.0
_CONDITION = "UnschedulableOnNodePool"

_Key = tuple[str, str, str]
"""(namespace, PodGroup, pod); one of the two names is empty."""


def _key(verdict: scheduling.Verdict) -> _Key:
    return (verdict.namespace, verdict.group, "" if verdict.group else "".join(verdict.pods[:1]))


@dataclass(slots=True)
class _Told:
    reason: str
    message: str
    at: float
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
                if said.type == _CONDITION and said.node_pool == self._node_pool:
                    transition = int(said.transition_id) if said.transition_id.isdecimal() else 0
                    self._told[*group.key, ""] = _Told("", "", 0.0, transition)

    async def _tell(self, verdicts: Sequence[scheduling.Verdict], now: float) -> None:
        """Write the verdicts that are news, and take back those of gangs that wait no longer."""
        waiting: set[_Key] = set()
        news: list[scheduling.Verdict] = []
        for verdict in verdicts:
            key = _key(verdict)
            waiting.add(key)
            if self._is_news(key, verdict, now):
                news.append(verdict)
        async with asyncio.TaskGroup() as writes:
            for verdict in news:
                writes.create_task(self._tell_one(verdict, now))
            for key in [key for key in self._told if key not in waiting]:
                del self._told[key]
                namespace, group, _ = key
                writes.create_task(self._write_conditions(namespace, group, []))

    def _is_news(self, key: _Key, verdict: scheduling.Verdict, now: float) -> bool:
        told = self._told.get(key)
        if told is None or told.reason != verdict.reason:
            return True
        return told.message != verdict.message and now - told.at >= REPEAT_SECONDS

    async def _tell_one(self, verdict: scheduling.Verdict, now: float) -> None:
        key = _key(verdict)
        told = self._told.get(key)
        transition = told.transition + 1 if told else 1
        self._told[key] = _Told(verdict.reason, verdict.message, now, transition)
        self._count(verdict.reason)
        explanation: dict[str, Any] = {"reason": verdict.reason, "message": verdict.message}
        if verdict.details:
            explanation["details"] = verdict.details
        await self._write_conditions(
            verdict.namespace,
            verdict.group,
            [
                {
                    "type": _CONDITION,
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
        if not group:
            return  # a pod without a PodGroup carries its verdict itself
        try:
            await self._client.patch(
                resources.POD_GROUPS,
                group,
                namespace,
                patch={"status": {"schedulingConditions": conditions}},
                subresource="status",
            )
        except kube.NotFound:
            return  # deleted meanwhile
        except kube.ApiError as error:
            self._told.pop((namespace, group, ""), None)
            log.warning("PodGroup %s/%s: its verdict is not written, trying again: %s", namespace, group, error)

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
            log.warning("pod %s/%s: its verdict is not written: %s", *pod.key, error)
            return
        self._events.emit(pod, "Warning", "FailedScheduling", f"{verdict.reason}: {verdict.message}")
