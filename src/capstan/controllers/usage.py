"""Keeps account of what queues use, for one shard: looks at the World, tells it the usage, remembers it in a ConfigMap.

What is remembered cannot be read any more, or is lost, costs nothing but the memory: a new account begins.
"""

from __future__ import annotations

import asyncio
import base64
import binascii
import logging

from capstan import kube, scheduling
from capstan.api import clock, resources
from capstan.api.kai import SchedulingShard
from capstan.api.rbac import PolicyRule
from capstan.controllers.wall_clock import WallClock
from capstan.scheduling.usage import sample

log = logging.getLogger(__name__)

LOOK_SECONDS = 1.0
SAVE_SECONDS = 60.0
_KEY = "usage"
_SAVED = "platform.capstan.dev/saved"


def config_map_name(shard: str) -> str:
    return f"capstan-usage-{shard}"


async def recall(
    client: kube.Client, shard: str, accounting: scheduling.Accounting, namespace: str
) -> scheduling.Usage:
    """What was saved for a shard; a new account if nothing was. Raises CorruptUsage, ApiError."""
    usage = _new(accounting)
    try:
        found = await client.get(resources.CONFIG_MAPS, config_map_name(shard), namespace)
    except kube.NotFound:
        return usage
    try:
        usage.restore(base64.b64decode(found.binary_data.get(_KEY, ""), validate=True))
    except binascii.Error as error:
        raise scheduling.CorruptUsage(f"binaryData[{_KEY}] is not base64: {error}") from error
    return usage


def _new(accounting: scheduling.Accounting) -> scheduling.Usage:
    return scheduling.Usage(accounting.window, half_life=accounting.half_life, staleness=accounting.staleness)


class UsageKeeper:
    """Runs beside a scheduler, on its World, as long as the shard counts usage."""

    RULES = [PolicyRule(api_groups=[""], resources=["configmaps"], verbs=["get", "create", "patch"])]
    """In the namespace of the ConfigMaps only."""

    def __init__(
        self,
        client: kube.Client,
        world: scheduling.World,
        shard: SchedulingShard,
        accounting: scheduling.Accounting,
        *,
        namespace: str,
        wall: WallClock | None = None,
    ) -> None:
        self._client, self._world, self._shard = client, world, shard
        self._namespace, self._name = namespace, config_map_name(shard.metadata.name)
        self._accounting = accounting
        self._wall = wall or WallClock()
        self._events = kube.EventRecorder(client, "capstan-scheduler")
        self._usage = _new(accounting)

    async def run(self) -> None:
        """Until cancelled; then what was counted is remembered once more, and the World knows no usage any more."""
        await self._recall()
        told = self._look()
        saved = -SAVE_SECONDS  # at once, so that there is something to read
        self._world.usage = self._usage.shares()
        try:
            while True:
                await asyncio.sleep(LOOK_SECONDS)
                now = self._look()
                if not 0 <= now - told < self._accounting.refresh:
                    told, self._world.usage = now, self._usage.shares()
                if not 0 <= now - saved < SAVE_SECONDS:
                    saved = now
                    await self._save()
        finally:
            self._look()
            self._world.usage = {}
            try:
                await self._patch()
            except kube.ApiError as error:  # the shard is deleted, or another process leads
                log.info("ConfigMap %s/%s is left as it is: %s", self._namespace, self._name, error)

    def _look(self) -> float:
        now, jump = self._wall.read()
        if jump:
            self._usage.shift_clock(jump)
        self._usage.observe(now, *sample(self._world))
        return now

    async def _recall(self) -> None:
        shard = self._shard.metadata.name
        try:
            self._usage = await recall(self._client, shard, self._accounting, self._namespace)
        except scheduling.CorruptUsage as corrupt:
            where = f"ConfigMap {self._namespace}/{self._name}"
            log.warning("%s: %s; usage is counted anew", where, corrupt)
            text = f"what queues used is lost and counted anew: {where} cannot be read: {corrupt}"
            self._events.emit(self._shard, "Warning", "UsageLost", text)

    async def _save(self) -> None:
        """Write what was counted, into a new ConfigMap where it is missing."""
        try:
            await self._patch()
        except kube.NotFound:
            metadata = {"name": self._name, "ownerReferences": [self._owner()]}
            try:
                await self._client.create(resources.CONFIG_MAPS, {"metadata": metadata}, self._namespace)
                await self._patch()
            except kube.ApiError as error:
                self._not_saved(error)
        except kube.ApiError as error:
            self._not_saved(error)

    async def _patch(self) -> None:
        patch = {
            "metadata": {"annotations": {_SAVED: clock.render(self._wall.now())}},
            "binaryData": {_KEY: base64.b64encode(self._usage.encode()).decode()},
        }
        await self._client.patch(resources.CONFIG_MAPS, self._name, self._namespace, patch=patch)

    def _not_saved(self, error: kube.ApiError) -> None:
        log.warning("ConfigMap %s/%s: usage is not saved: %s", self._namespace, self._name, error)

    def _owner(self) -> dict[str, object]:
        meta = self._shard.metadata
        return {
            "apiVersion": resources.SCHEDULING_SHARDS.api_version,
            "kind": resources.SCHEDULING_SHARDS.kind,
            "name": meta.name,
            "uid": meta.uid,
        }
