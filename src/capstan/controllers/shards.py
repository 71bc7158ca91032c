"""One scheduler for every SchedulingShard, started and stopped as these objects come and go.

All shards run in one process and share its rights and its lease: their node pools are disjoint, so they decide apart
from each other, but a Queue's status is the sum over all of them, and no second process knows the other sums.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable, Coroutine, Iterable, Mapping, MutableMapping
from typing import Any

import msgspec

from capstan import kube, scheduling
from capstan.api import clock, resources
from capstan.api.kai import CONFIG_NAME, Config, SchedulingShard
from capstan.api.rbac import PolicyRule
from capstan.api.scheduling import Queue
from capstan.controllers.queue_status import QueueStatus
from capstan.controllers.scheduler import Scheduler
from capstan.controllers.unserved import Unserved
from capstan.controllers.usage import UsageKeeper

log = logging.getLogger(__name__)

CONFIG_RULES = [PolicyRule(api_groups=["kai.scheduler"], resources=["configs"], verbs=["list", "watch"])]
"""What `follow_config` needs."""
Page = Callable[[str], Awaitable[tuple[bytes, str]]]


def chosen(configs: Iterable[Config]) -> Config | None:
    """The Config that counts: `kai-config`, else the first by name."""
    ordered = sorted(configs, key=lambda config: (config.metadata.name != CONFIG_NAME, config.metadata.name))
    return ordered[0] if ordered else None


async def follow_config(
    client: kube.Client, work: Callable[[scheduling.Installation], Coroutine[Any, Any, None]]
) -> None:
    """Run `work` with what the Config says, and start it again whenever that changes."""
    configs = kube.Cache(client, resources.CONFIGS, optional=True)
    changed = asyncio.Event()
    configs.on_change(lambda _: changed.set())
    async with asyncio.TaskGroup() as group:
        group.create_task(configs.run())
        await configs.synced()
        while True:
            said = scheduling.installation(chosen(configs.objects.values()))
            working = group.create_task(work(said))
            while scheduling.installation(chosen(configs.objects.values())) == said:
                changed.clear()
                await changed.wait()
            log.info("the Config changed: starting again")
            await _stop(working)


async def _stop(task: asyncio.Task[None]) -> None:
    task.cancel()
    await asyncio.wait([task])


class _Shard:
    """A scheduler, and the account of usage as long as the shard counts it."""

    def __init__(
        self,
        client: kube.Client,
        shard: SchedulingShard,
        settings: scheduling.Settings,
        installation: scheduling.Installation,
        namespace: str,
    ) -> None:
        self.settings = settings
        self.scheduler = Scheduler(client, settings.policy, installation=installation, period=settings.period)
        self._client, self._shard, self._namespace = client, shard, namespace
        self._changed = asyncio.Event()

    @property
    def pages(self) -> dict[str, Page]:
        """What it serves, by path."""
        above = f"/shards/{self._shard.metadata.name}" if self.settings.policy.node_pool else ""
        return {f"{above}/metrics": self.scheduler.metrics.page, f"{above}/snapshot": self.scheduler.snapshot}

    def suits(self, settings: scheduling.Settings, uid: str) -> bool:
        """Whether it can go on for the shard as it is now."""
        return settings.policy.scope == self.settings.policy.scope and self._shard.metadata.uid == uid

    def follow(self, settings: scheduling.Settings) -> None:
        """Work by other settings of the same scope."""
        if settings != self.settings:
            self.settings = settings
            self.scheduler.follow(settings.policy, settings.period)
            self._changed.set()

    async def run(self) -> None:
        async with asyncio.TaskGroup() as group:
            group.create_task(self.scheduler.run())
            while True:
                accounting = self.settings.accounting
                account = group.create_task(self._account(accounting)) if accounting is not None else None
                while self.settings.accounting == accounting:
                    self._changed.clear()
                    await self._changed.wait()
                if account is not None:
                    await _stop(account)

    async def _account(self, accounting: scheduling.Accounting) -> None:
        await self.scheduler.synced()
        world = self.scheduler.world
        await UsageKeeper(self._client, world, self._shard, accounting, namespace=self._namespace).run()


class Shards:
    """Runs until cancelled. `base` is what holds in every shard; `pages` is where metrics and snapshots go."""

    RULES = [
        *Scheduler.RULES,
        *QueueStatus.RULES,
        *CONFIG_RULES,
        PolicyRule(api_groups=["kai.scheduler"], resources=["schedulingshards"], verbs=["list", "watch"]),
        PolicyRule(
            api_groups=["kai.scheduler"], resources=["schedulingshards/status", "configs/status"], verbs=["patch"]
        ),
    ]
    OWN_RULES = UsageKeeper.RULES
    """In `namespace` only."""

    def __init__(
        self,
        client: kube.Client,
        base: scheduling.Policy,
        installation: scheduling.Installation,
        *,
        namespace: str,
        pages: MutableMapping[str, Page] | None = None,
    ) -> None:
        self._client, self._base, self._installation = client, base, installation
        self._namespace, self._pages = namespace, pages if pages is not None else {}
        self._running: dict[str, tuple[_Shard, asyncio.Task[None]]] = {}
        self._shards = kube.Cache(client, resources.SCHEDULING_SHARDS)
        self._configs = kube.Cache(client, resources.CONFIGS, optional=True)
        self._changed = asyncio.Event()
        for cache in (self._shards, self._configs):
            cache.on_change(lambda _: self._changed.set())

    @property
    def schedulers(self) -> dict[str, Scheduler]:
        """By the name of their shard."""
        return {name: shard.scheduler for name, (shard, _) in self._running.items()}

    def worlds(self) -> list[scheduling.World]:
        return [scheduler.world for scheduler in self.schedulers.values()]

    def queues(self) -> Mapping[kube.Key, Queue]:
        """As any of the schedulers sees them: all see all."""
        return next((scheduler.queues for scheduler in self.schedulers.values()), {})

    async def run(self) -> None:
        label = self._installation.node_pool_label
        try:
            async with asyncio.TaskGroup() as group:
                group.create_task(self._shards.run())
                group.create_task(self._configs.run())
                group.create_task(QueueStatus(self._client, self.worlds, self.queues).run())
                group.create_task(Unserved(self._client, lambda: self.schedulers.values(), label).run())
                await self._shards.synced()
                await self._configs.synced()
                while True:
                    self._changed.clear()
                    await self._reconcile(group)
                    await self._changed.wait()
        finally:
            for shard, _ in self._running.values():
                self._withdraw(shard)

    async def _reconcile(self, group: asyncio.TaskGroup) -> None:
        config = chosen(self._configs.objects.values())
        if config is not None:
            await self._report(resources.CONFIGS, config, _conditions(self._installation.problems))
        shards = sorted(self._shards.objects.values(), key=lambda s: (s.metadata.creation_timestamp, s.metadata.name))
        wanted = {
            shard.metadata.name: scheduling.shard_settings(shard, self._installation, self._base) for shard in shards
        }
        serves = {settings.policy.node_pool: name for name, settings in reversed(wanted.items())}
        uids = {shard.metadata.name: shard.metadata.uid for shard in shards}
        for name, (running, task) in list(self._running.items()):
            settings = wanted.get(name)
            served = settings is not None and serves[settings.policy.node_pool] == name
            if settings is None or not served or not running.suits(settings, uids[name]):
                del self._running[name]
                self._withdraw(running)
                await _stop(task)
        for shard in shards:
            name, settings = shard.metadata.name, wanted[shard.metadata.name]
            owner = serves[settings.policy.node_pool]
            if owner == name:
                self._serve(group, shard, settings)
            twice = "" if owner == name else f"shard {owner} serves the same node pool already"
            await self._report(resources.SCHEDULING_SHARDS, shard, _conditions(settings.problems, twice))

    def _serve(self, group: asyncio.TaskGroup, shard: SchedulingShard, settings: scheduling.Settings) -> None:
        name = shard.metadata.name
        if name in self._running:
            self._running[name][0].follow(settings)
            return
        log.info("shard %s: scheduling node pool %r", name, settings.policy.node_pool)
        made = _Shard(self._client, shard, settings, self._installation, self._namespace)
        self._running[name] = (made, group.create_task(made.run(), name=f"shard {name}"))
        self._pages.update(made.pages)

    def _withdraw(self, shard: _Shard) -> None:
        for path in shard.pages:
            self._pages.pop(path, None)

    async def _report(
        self, resource: resources.Resource[Any], obj: SchedulingShard | Config, conditions: dict[str, dict[str, Any]]
    ) -> None:
        """Write the conditions that changed; those of other types stay."""
        known = {condition.type: condition for condition in obj.status.conditions}
        said = {name: (c.status, c.reason, c.message, c.observed_generation) for name, c in known.items()}
        generation, written = obj.metadata.generation, []
        for name, condition in conditions.items():
            told = (condition["status"], condition["reason"], condition["message"], generation)
            if said.get(name) == told:
                continue
            same = name in known and known[name].status == condition["status"]
            since = known[name].last_transition_time if same else clock.render(time.time())
            written.append(condition | {"type": name, "observedGeneration": generation, "lastTransitionTime": since})
        if not written:
            return
        changed = {condition["type"] for condition in written}
        others = [msgspec.to_builtins(condition) for name, condition in known.items() if name not in changed]
        try:
            await self._client.patch(
                resource, obj.metadata.name, patch={"status": {"conditions": [*others, *written]}}, subresource="status"
            )
        except kube.NotFound:
            return  # deleted meanwhile
        except kube.ApiError as error:
            log.warning("%s %s: its conditions are not written: %s", resource.kind, obj.metadata.name, error)


def _conditions(problems: Iterable[scheduling.Problem], refused: str | None = None) -> dict[str, dict[str, Any]]:
    """`Valid` names the fields that are not used; `Ready` says whether a scheduler runs, for what has one."""
    text = "; ".join(f"{problem.field}: {problem.message}" for problem in problems)
    found = {
        "Valid": {
            "status": "False" if text else "True",
            "reason": "InvalidSettings" if text else "Valid",
            "message": text or "all settings are used",
        }
    }
    if refused is not None:
        found["Ready"] = {
            "status": "False" if refused else "True",
            "reason": "NodePoolServedTwice" if refused else "SchedulerRuns",
            "message": refused or "its scheduler runs",
        }
    return found
