"""Writes what the pods of each gang hold and ask for into `PodGroup.status.resourcesStatus`, where KAI has it.

The numbers are those that queues are charged. They tell people; nothing is decided from them, so they give way to what
pods wait for: one write after another, and none while bindings are on their way.
"""

from __future__ import annotations

import asyncio
import logging
from contextlib import suppress

from capstan import kube, scheduling
from capstan.api import resources
from capstan.api.scheduling import PodGroup
from capstan.controllers.queue_status import replacing

log = logging.getLogger(__name__)

EVERY_SECONDS = 2.0
_AT_ONCE = 500
"""PodGroups written before somebody else gets a look at the World."""
_Key = tuple[str, str]


class PodGroupStatus:
    """Runs beside the scheduler, on its World, with the scheduler's rights."""

    def __init__(self, client: kube.Client, world: scheduling.World, groups: kube.Cache[PodGroup]) -> None:
        self._client, self._world, self._groups = client, world, groups
        self._seen: dict[_Key, tuple[int, ...]] = {}

    async def run(self) -> None:
        """Write differences until cancelled."""
        while True:
            await asyncio.sleep(EVERY_SECONDS)
            if not self._world.binds:
                await self.write()

    async def write(self) -> None:
        """One pass over the gangs whose pods have changed."""
        standings = scheduling.standings(self._world)
        for key in self._seen.keys() - standings.keys():
            del self._seen[key]
        changed = [key for key, standing in standings.items() if self._seen.get(key) != standing]
        for key in changed[:_AT_ONCE]:
            if self._world.binds:
                return
            try:
                await self._write(key)
                self._seen[key] = standings[key]
            except kube.ApiError as error:
                log.log(
                    kube.severity(error), "PodGroup %s/%s: what it holds is not written, trying again: %s", *key, error
                )
                if isinstance(error, kube.Unavailable):
                    return  # nor are the others

    async def _write(self, key: _Key) -> None:
        gang = self._world.gangs.get(key)
        if gang is None:
            return
        status = scheduling.resources_of(gang)
        namespace, name = key
        known = self._groups.get(name, namespace)
        said = known.status.resources_status or {} if known is not None else {}
        if said == status:
            return
        amounts = {part: replacing(each, said.get(part) or {}) for part, each in status.items()}
        patch = {"status": {"resourcesStatus": amounts}}
        with suppress(kube.NotFound):  # deleted meanwhile
            await self._client.patch(resources.POD_GROUPS, name, namespace, patch=patch, subresource="status")
