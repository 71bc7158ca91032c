"""Writes what the World counts into the status of Queues: allocated, requested, children, and what is wrong with them.

KAI has a controller of its own that sums pods again; here the numbers are those that the scheduler decides with.
"""

from __future__ import annotations

import asyncio
import logging
from typing import Any

from capstan import kube, scheduling
from capstan.api import resources
from capstan.api.rbac import PolicyRule

log = logging.getLogger(__name__)

EVERY_SECONDS = 1.0
"""Sums change with every bind; people and dashboards look once in a while."""


class QueueStatus:
    """Runs beside the scheduler, on its World."""

    RULES = [PolicyRule(api_groups=["scheduling.run.ai"], resources=["queues/status"], verbs=["patch"])]

    def __init__(self, client: kube.Client, world: scheduling.World) -> None:
        self._client = client
        self._world = world
        self._written: dict[str, dict[str, Any]] = {}
        self._failed: dict[str, str] = {}

    async def run(self) -> None:
        """Write differences until cancelled."""
        while True:
            await asyncio.sleep(EVERY_SECONDS)
            await self.write()

    async def write(self) -> None:
        """One pass over all queues."""
        wanted = {name: _wire(status) for name, status in self._world.queue_status().items()}
        for name in self._written.keys() - wanted.keys():
            del self._written[name]
            self._failed.pop(name, None)
        for name, status in wanted.items():
            if self._written.get(name) == status:
                continue
            try:
                await self._client.patch(resources.QUEUES, name, patch={"status": status}, subresource="status")
            except kube.NotFound:
                continue
            except kube.ApiError as error:
                if self._failed.get(name) != str(error):
                    log.warning("Queue %s: its status is not written, trying again: %s", name, error)
                self._failed[name] = str(error)
                continue
            self._written[name] = status
            self._failed.pop(name, None)


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
