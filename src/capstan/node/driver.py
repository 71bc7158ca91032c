"""A node's DRA driver: it ties GPUs, slices, journal and plugin together.

    GPUs ─> inventory ─> publish ─> ResourceSlices          kubelet ─> plugin ─> prepare ─> ledger, GPUs, CDI
      └─ events ─> health ─> taints (published again) and the kubelet's health stream

Runs on a real node with real GPUs and, many times in one process, on simulated nodes.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Coroutine, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import msgspec

from capstan import kube
from capstan.api.rbac import PolicyRule
from capstan.api.resource import GROUP, ResourceClaim
from capstan.api.resources import RESOURCE_CLAIMS
from capstan.node.errors import ClaimRefused, NodeError
from capstan.node.inventory import DRIVER, Catalog, slice_specs
from capstan.node.monitor import HealthMonitor
from capstan.node.nvml import MigDevice, Nvml
from capstan.node.plugin import ClaimRef, DeviceHealth, Plugin
from capstan.node.prepare import Preparer
from capstan.node.publish import Body, PoolIdentity, Published, Publisher, without
from capstan.node.records import Holding, MigInstance, key
from capstan.node.report import Reporter
from capstan.node.watch import SliceChange, SliceWatch

_log = logging.getLogger("capstan.node")
_COUNTER_FIELDS = ("consumesCounters", "sharedCounters")
_COLLECT_SECONDS = 60.0
_LAST_REPORTS_SECONDS = 2.0
_FIRST_PAUSE_SECONDS = 0.2
_LONGEST_PAUSE_SECONDS = 30.0


@contextmanager
def _in_time(claim: ClaimRef) -> Iterator[None]:
    """The worker thread cannot be stopped; it finishes, and the repeated call finds what it did."""
    try:
        yield
    except TimeoutError:
        raise NodeError(
            f"claim {claim.namespace}/{claim.name} is not done in time", "the work goes on; the kubelet asks again"
        ) from None


class Driver:
    """The driver of one node."""

    RULES = [
        PolicyRule(api_groups=[GROUP], resources=["resourceclaims"], verbs=["get"]),
        PolicyRule(
            api_groups=[GROUP],
            resources=["resourceslices"],
            verbs=["get", "list", "watch", "create", "update", "delete"],
        ),
        *Reporter.RULES,
    ]
    """The least it needs; a ValidatingAdmissionPolicy should further hold it to slices of its own node."""

    def __init__(
        self,
        client: kube.Client,
        node_name: str,
        node_uid: str,
        nvml: Nvml,
        plugin_dir: Path,
        registrar_dir: Path,
        cdi_dir: Path,
        *,
        watch: SliceWatch | None = None,
    ) -> None:
        """`plugin_dir` is this driver's own (`dra.sock`, the ledger), `registrar_dir` and `cdi_dir` the node's.

        `watch`: a running SliceWatch to share; without one the driver watches its own node's slices. Raises
        AlreadyRunning when another driver has the node, OSError or sqlite3.Error when its files are unusable.
        """
        self.node_name = node_name
        self._client = client
        self._nvml = nvml
        self._preparer = Preparer(nvml, self._catalog, node_name, plugin_dir, cdi_dir)
        self._publisher = Publisher(client, PoolIdentity(node_name, node_uid))
        self._reporter = Reporter(client, node_name, node_uid, nvml.host())
        self._monitor = HealthMonitor(nvml, self._reporter)
        self._plugin = Plugin(DRIVER, self, plugin_dir, registrar_dir)
        self._watch = watch
        self._tasks: list[asyncio.Task[None]] = []
        self._stale = asyncio.Event()
        self._in_sync = asyncio.Event()
        self._changes: list[SliceChange] = []
        self._published = Published({}, 0, frozenset())
        self._catalog_cache: Catalog | None = None
        self._foreign_published: Mapping[str, Sequence[MigDevice]] = {}

    # -- life --------------------------------------------------------------------------------------------------------

    async def start(self) -> None:
        """Takes back what a killed predecessor left half-done, then serves the kubelet and publishes the devices.

        Publishing goes on in the background and is repeated until it succeeds; `published` waits for it.
        Raises OSError, NodeError or sqlite3.Error when the node's own files are unusable.
        """
        if self._preparer.quarantined is not None:
            self._reporter.ledger_quarantined(str(self._preparer.quarantined))
        for error in await asyncio.to_thread(self._preparer.recover):
            _log.error("node %s: half-prepared claim could not be taken back yet: %s", self.node_name, error)
        self._monitor.listen()
        await self._plugin.start()
        upkeep = [
            self._monitor.run(),
            self._keep_published(),
            self._keep_publishing_health(self._monitor.changed()),
            self._keep_collecting(),
        ]
        watch = self._watch
        if watch is None:
            watch = SliceWatch(self._client, self.node_name)
            upkeep.append(watch.run())
        watch.subscribe(self.node_name, self._on_slice)
        self._stale.set()
        self._tasks = [asyncio.create_task(work, name=f"driver of {self.node_name}") for work in upkeep]

    async def stop(self) -> None:
        """Prepared claims and published slices stay, as they do when a driver's pod is replaced."""
        if self._watch is not None:
            self._watch.unsubscribe(self.node_name)
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        self._tasks.clear()
        await self._plugin.stop()
        with suppress(TimeoutError):
            async with asyncio.timeout(_LAST_REPORTS_SECONDS):
                await self._reporter.drain()
        self._preparer.close()
        self._nvml.close()

    async def published(self) -> Published:
        """Returns when the API server has the node's devices as they are now."""
        await self._in_sync.wait()
        return self._published

    # -- claims ------------------------------------------------------------------------------------------------------

    async def prepare(self, claim: ClaimRef, deadline: float) -> Sequence[Holding]:
        with _in_time(claim):
            async with asyncio.timeout(max(0.0, deadline - time.monotonic())):
                found = await self._fetch(claim)
                holdings = await asyncio.to_thread(self._preparer.prepare, found, deadline)
        record = self._preparer.record(claim.uid)
        if record is not None:
            self._reporter.prepared(record)
        return holdings

    async def _fetch(self, ref: ClaimRef) -> ResourceClaim:
        title = f"claim {ref.namespace}/{ref.name}"
        try:
            claim = await self._client.get(RESOURCE_CLAIMS, ref.name, ref.namespace)
        except kube.NotFound:
            raise ClaimRefused(f"{title} does not exist any more") from None
        if claim.metadata.uid != ref.uid:
            raise ClaimRefused(f"{title} was replaced: UID {ref.uid} is asked for, {claim.metadata.uid} exists")
        return claim

    async def unprepare(self, claim: ClaimRef, deadline: float) -> None:
        with _in_time(claim):
            async with asyncio.timeout(max(0.0, deadline - time.monotonic())):
                await asyncio.to_thread(self._preparer.unprepare, claim.uid, deadline)
        self._reporter.unprepared(claim.uid)

    # -- devices -----------------------------------------------------------------------------------------------------

    def _catalog(self) -> Catalog:
        """Placements that are offered, whether published or not: a prepare must find what was allocated."""
        if self._catalog_cache is None:
            self._catalog_cache = Catalog(self._nvml.host())
        return self._catalog_cache

    def _foreign(self) -> Mapping[str, Sequence[MigDevice]]:
        """MIG devices that no record of ours has made, by GPU UUID."""
        made = {
            key(step)
            for record in self._preparer.records()
            for step in record.steps
            if isinstance(step, MigInstance) and not step.adopted
        }
        found: dict[str, Sequence[MigDevice]] = {}
        for gpu in self._nvml.host().gpus:
            if gpu.mig_capable:
                others = [
                    device
                    for device in self._nvml.mig_devices(gpu.uuid)
                    if key(MigInstance(gpu.uuid, device.profile_id, device.start)) not in made
                ]
                if others:
                    found[gpu.uuid] = others
        return found

    def desired_slices(self) -> list[Body]:
        """The specs this node wants published now, as far as the API server knows their fields. Calls NVML."""
        dropped = self._published.dropped
        partitionable = not any(path.endswith(_COUNTER_FIELDS) for path in dropped)
        health = self._monitor.health
        self._foreign_published = self._foreign()
        specs = slice_specs(
            self._nvml.host(),
            self.node_name,
            taints=health.taints if health.sick else None,
            foreign=self._foreign_published,
            partitionable=partitionable,
        )
        return [without(spec, dropped) for spec in specs] if dropped else specs

    async def _keep_published(self) -> None:
        pause = _FIRST_PAUSE_SECONDS
        while True:
            await self._stale.wait()
            self._stale.clear()
            if self._in_sync.is_set() and not self._somebody_wrote():
                continue
            self._in_sync.clear()
            self._changes.clear()
            try:
                await self._publish()
                pause = _FIRST_PAUSE_SECONDS
                self._in_sync.set()
            except (kube.ApiError, NodeError) as error:
                _log.warning("node %s: publishing devices: %s; next try in %.1f s", self.node_name, error, pause)
                await asyncio.sleep(pause)
                pause = min(2 * pause, _LONGEST_PAUSE_SECONDS)
                self._stale.set()

    async def _publish(self) -> None:
        """Once more when the API server turns out to drop fields: then without what hangs on them."""
        for _ in range(3):
            before = self._published.dropped
            desired = await asyncio.to_thread(self.desired_slices)
            done = await self._publisher.publish(desired)
            self._published = msgspec.structs.replace(done, dropped=before | done.dropped)
            if not done.dropped:
                return
            _log.warning("node %s: the API server drops %s", self.node_name, ", ".join(sorted(done.dropped)))

    def _on_slice(self, change: SliceChange) -> None:
        self._changes.append(change)
        self._stale.set()

    def _somebody_wrote(self) -> bool:
        """Whether any change since the last look was not our own write."""
        changes, self._changes = self._changes, []
        known = self._published.versions
        return any(
            not change.name or (change.name in known if change.deleted else known.get(change.name) != change.version)
            for change in changes
        )

    # -- health ------------------------------------------------------------------------------------------------------

    def health(self) -> list[DeviceHealth]:
        return [
            DeviceHealth(self.node_name, offer.name, *self._monitor.health.status(offer))
            for offer in self._catalog().offers
        ]

    def health_changed(self) -> Coroutine[Any, Any, object]:
        return self._monitor.changed()

    # -- upkeep ------------------------------------------------------------------------------------------------------

    async def _keep_publishing_health(self, change: Coroutine[Any, Any, object]) -> None:
        while True:
            await change
            change = self._monitor.changed()
            self._republish()

    async def _keep_collecting(self) -> None:
        """What nobody tells us: claims whose own take-back failed and for which the kubelet never asks again, and MIG
        devices that somebody else made or destroyed."""
        while True:
            await asyncio.sleep(_COLLECT_SECONDS)
            if any(record.state == "started" for record in self._preparer.records()):
                for error in await asyncio.to_thread(self._preparer.recover):
                    _log.warning("node %s: half-prepared claim cannot be taken back yet: %s", self.node_name, error)
            try:
                if await asyncio.to_thread(self._foreign) != self._foreign_published:
                    self._republish()
            except NodeError as error:
                _log.warning("node %s: looking for MIG devices: %s", self.node_name, error)

    def _republish(self) -> None:
        self._in_sync.clear()
        self._stale.set()
