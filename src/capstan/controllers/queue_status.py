"""Writes what the World counts into the status of Queues: allocated, requested, children, and what is wrong with them.

KAI has a controller of its own that sums pods again; here the numbers are those that the scheduler decides with.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from decimal import Decimal
from typing import Any

import msgspec

from capstan import kube, scheduling
from capstan.api import clock, quantity, resources
from capstan.api.rbac import PolicyRule
from capstan.api.scheduling import Queue

log = logging.getLogger(__name__)

_AMOUNTS = ("allocated", "allocatedNonPreemptible", "requested")
EVERY_SECONDS = 1.0
"""Sums change with every bind; people and dashboards look once in a while."""


class QueueStatus:
    """Runs beside the schedulers, on their Worlds: a queue's status is the sum over all shards.

    `queues` gives the Queue objects as they are at that moment.
    """

    RULES = [PolicyRule(api_groups=["scheduling.run.ai"], resources=["queues/status"], verbs=["patch"])]

    def __init__(
        self,
        client: kube.Client,
        worlds: Callable[[], Sequence[scheduling.World]],
        queues: Callable[[], Mapping[kube.Key, Queue]],
    ) -> None:
        self._client = client
        self._worlds, self._queues = worlds, queues
        self._written: dict[str, dict[str, Any]] = {}
        self._failed: dict[str, str] = {}

    async def run(self) -> None:
        """Write differences until cancelled."""
        while True:
            await asyncio.sleep(EVERY_SECONDS)
            await self.write()

    async def write(self) -> None:
        """One pass over all queues."""
        parts = [world.queue_status() for world in self._worlds()]
        names = dict.fromkeys(name for part in parts for name in part)
        wanted = {name: _wire(_sum([part[name] for part in parts if name in part])) for name in names}
        for name in self._written.keys() - wanted.keys():
            del self._written[name]
            self._failed.pop(name, None)
        for name, status in wanted.items():
            written = self._written.get(name, {})
            if written == status:
                continue
            known = self._queues().get(("", name))
            said = msgspec.to_builtins(known.status) if known is not None else {}
            amounts = {key: replacing(status[key], said.get(key, {}), written.get(key, {})) for key in _AMOUNTS}
            try:
                before = {(c.type, c.status): c.last_transition_time for c in known.status.conditions} if known else {}
                now = clock.render(time.time())
                conditions = [
                    {**each, "lastTransitionTime": before.get((each["type"], each["status"])) or now}
                    for each in status["conditions"]
                ]
                patch = {"status": status | amounts | {"conditions": conditions}}
                await self._client.patch(resources.QUEUES, name, patch=patch, subresource="status")
            except kube.NotFound:
                continue
            except kube.ApiError as error:
                if self._failed.get(name) != str(error):
                    log.log(kube.severity(error), "Queue %s: its status is not written, trying again: %s", name, error)
                self._failed[name] = str(error)
                continue
            self._written[name] = status
            self._failed.pop(name, None)


def replacing(amounts: Mapping[str, str], *before: Mapping[str, str]) -> dict[str, str | None]:
    """Amounts as a merge patch that also takes away what was there before and is no more (GPU products)."""
    return {**dict.fromkeys(name for old in before for name in old), **amounts}


def _sum(parts: Sequence[scheduling.QueueStatus]) -> scheduling.QueueStatus:
    """What a queue holds in all shards; what is wrong with it is wrong in each, and a product may be in another one."""
    first, *others = parts
    if not others:
        return first

    def added(amounts: Iterable[dict[str, str]]) -> dict[str, str]:
        total: dict[str, Decimal] = defaultdict(Decimal)
        for amount in amounts:
            for name, value in amount.items():
                total[name] += quantity.parse(value)
        return {name: quantity.render(value) for name, value in total.items()}

    return replace(
        first,
        allocated=added(part.allocated for part in parts),
        allocated_non_preemptible=added(part.allocated_non_preemptible for part in parts),
        requested=added(part.requested for part in parts),
        fair_share=added(part.fair_share for part in parts),
        warnings=tuple(text for text in first.warnings if all(text in part.warnings for part in others)),
    )


def _wire(status: scheduling.QueueStatus) -> dict[str, Any]:
    """A queue that is wrong gets KAI's `Orphan` condition with the reason; one that was corrected loses it.

    A queue that works but is probably not what was meant is not `Consistent`.
    """
    consistent = {
        "type": "Consistent",
        "status": "False" if status.warnings else "True",
        "reason": "Questionable" if status.warnings else "Valid",
        "message": "; ".join(status.warnings),
    }
    orphan = {
        "type": "Orphan",
        "status": "True" if status.error else "False",
        "reason": "InvalidQueue" if status.error else "Valid",
        "message": status.error,
    }
    return {
        "childQueues": list(status.children),
        "allocated": status.allocated,
        "allocatedNonPreemptible": status.allocated_non_preemptible,
        "requested": status.requested,
        "conditions": [orphan, consistent],
    }
