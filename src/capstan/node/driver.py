"""A node's DRA driver: it ties GPUs, slices, journal and plugin together.

    GPUs ─> inventory ─> publish ─> ResourceSlices          kubelet ─> plugin ─> prepare ─> ledger, GPUs, CDI
      └─ events ─> health ─> taints (published again) and the kubelet's health stream

Runs on a real node with real GPUs and, many times in one process, on simulated nodes.
"""

from __future__ import annotations

import asyncio
import fcntl
import logging
import os
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

import msgspec

from capstan import kube
from capstan.api.base import Object
from capstan.api.rbac import PolicyRule
from capstan.api.resource import GROUP, ResourceClaim
from capstan.api.resources import RESOURCE_CLAIMS, RESOURCE_SLICES, Resource
from capstan.node.errors import ClaimRefused, NodeError
from capstan.node.health import Health, Problem
from capstan.node.inventory import DRIVER, Catalog, gpu_name, slice_specs
from capstan.node.nvml import GpuEvent, MigDevice, Nvml
from capstan.node.plugin import ClaimRef, DeviceHealth, Plugin
from capstan.node.prepare import Preparer
from capstan.node.publish import Body, PoolIdentity, Published, Publisher, without
from capstan.node.records import Holding, MigInstance, key
from capstan.node.report import Reporter

_log = logging.getLogger("capstan.node")
_COUNTER_FIELDS = ("consumesCounters", "sharedCounters")
_RECOVERY_POLL_SECONDS = 5.0
_COLLECT_SECONDS = 60.0
_LAST_REPORTS_SECONDS = 2.0
_FIRST_PAUSE_SECONDS = 0.2
_LONGEST_PAUSE_SECONDS = 30.0


class _SliceSpecHead(msgspec.Struct, rename="camel"):
    node_name: str = ""
    driver: str = ""


class _SliceHead(Object):
    spec: _SliceSpecHead = msgspec.field(default_factory=_SliceSpecHead)


_SLICE_HEADS = Resource(
    group=RESOURCE_SLICES.group,
    version=RESOURCE_SLICES.version,
    plural=RESOURCE_SLICES.plural,
    kind=RESOURCE_SLICES.kind,
    namespaced=False,
    struct=_SliceHead,
)


class SliceChange(msgspec.Struct, frozen=True):
    """Somebody, maybe we, wrote a slice. An empty name: anything may have changed (a watch was interrupted)."""

    name: str = ""
    version: str = ""
    deleted: bool = False


class SliceWatch:
    """Tells drivers when their ResourceSlices are changed or deleted. One may serve all drivers of a process."""

    RULES = [PolicyRule(api_groups=[GROUP], resources=["resourceslices"], verbs=["list", "watch"])]

    def __init__(self, client: kube.Client, node_name: str = "") -> None:
        self._client = client
        self._fields = f"spec.driver={DRIVER}" + (f",spec.nodeName={node_name}" if node_name else "")
        self._listeners: dict[str, Callable[[SliceChange], None]] = {}

    def subscribe(self, node_name: str, listener: Callable[[SliceChange], None]) -> None:
        self._listeners[node_name] = listener

    def unsubscribe(self, node_name: str) -> None:
        self._listeners.pop(node_name, None)

    async def run(self) -> None:
        """Until cancelled. After every interruption all listeners look for themselves."""
        version = ""
        pause = _FIRST_PAUSE_SECONDS
        while True:
            try:
                async for event in self._client.watch(_SLICE_HEADS, fields=self._fields, resource_version=version):
                    version = event.object.metadata.resource_version
                    pause = _FIRST_PAUSE_SECONDS
                    listener = self._listeners.get(event.object.spec.node_name)
                    if listener is not None and event.type != "BOOKMARK":
                        listener(SliceChange(event.object.metadata.name, version, event.type == "DELETED"))
                await asyncio.sleep(_FIRST_PAUSE_SECONDS)
            except kube.Gone:
                version = ""
                for listener in list(self._listeners.values()):
                    listener(SliceChange())
            except (kube.ApiError, kube.Undecodable) as error:
                _log.warning("watch of resourceslices: %s; next try in %.1f s", error, pause)
                await asyncio.sleep(pause)
                pause = min(2 * pause, _LONGEST_PAUSE_SECONDS)


@contextmanager
def _in_time(claim: ClaimRef) -> Iterator[None]:
    """The worker thread cannot be stopped; it finishes, and the repeated call finds what it did."""
    try:
        yield
    except TimeoutError:
        raise NodeError(
            f"claim {claim.namespace}/{claim.name} is not done in time", "the work goes on; the kubelet asks again"
        ) from None


class AlreadyRunning(NodeError):
    """Another process drives this node's devices; two would not see each other's claims."""


def _lock(path: Path) -> int:
    """A descriptor that holds the node for this process until it is closed, or the process dies."""
    path.parent.mkdir(parents=True, exist_ok=True)
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(descriptor)
        raise AlreadyRunning(f"another driver has {path}", "stop it first") from None
    return descriptor


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

        `watch`: a running SliceWatch to share; without one the driver watches its own node's slices.
        """
        self.node_name = node_name
        self._client = client
        self._nvml = nvml
        self._health = Health()
        self._health_event = asyncio.Event()
        self._preparer = Preparer(nvml, self._catalog, node_name, plugin_dir, cdi_dir)
        self._publisher = Publisher(client, PoolIdentity(node_name, node_uid))
        self._reporter = Reporter(client, node_name, node_uid, nvml.host())
        self._plugin = Plugin(DRIVER, self, plugin_dir, registrar_dir)
        self._lock_path = plugin_dir / "driver.lock"
        self._lock: int | None = None
        self._watch = watch
        self._tasks: list[asyncio.Task[None]] = []
        self._stale = asyncio.Event()
        self._in_sync = asyncio.Event()
        self._changes: list[SliceChange] = []
        self._published = Published({}, 0, frozenset())
        self._catalog_cache: Catalog | None = None
        self._loop: asyncio.AbstractEventLoop | None = None

    # -- life --------------------------------------------------------------------------------------------------------

    async def start(self) -> None:
        """Takes back what a killed predecessor left half-done, then serves the kubelet and publishes the devices.

        Publishing goes on in the background and is repeated until it succeeds; `published` waits for it.
        Raises OSError, NodeError or sqlite3.Error when the node's own files are unusable or in use.
        """
        self._lock = _lock(self._lock_path)
        self._loop = asyncio.get_running_loop()
        if self._preparer.quarantined is not None:
            self._reporter.ledger_quarantined(str(self._preparer.quarantined))
        for error in await asyncio.to_thread(self._preparer.recover):
            _log.error("node %s: half-prepared claim could not be taken back yet: %s", self.node_name, error)
        self._nvml.subscribe(self._on_event)
        await self._plugin.start()
        if self._watch is None:
            own = SliceWatch(self._client, self.node_name)
            own.subscribe(self.node_name, self._on_slice)
            self._tasks.append(asyncio.create_task(own.run(), name=f"slice-watch {self.node_name}"))
        else:
            self._watch.subscribe(self.node_name, self._on_slice)
        self._stale.set()
        self._tasks.append(asyncio.create_task(self._keep_published(), name=f"publish {self.node_name}"))
        self._tasks.append(asyncio.create_task(self._keep_recovering(), name=f"health {self.node_name}"))
        self._tasks.append(asyncio.create_task(self._keep_collecting(), name=f"collect {self.node_name}"))

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
        if self._lock is not None:
            os.close(self._lock)
            self._lock = None

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
        specs = slice_specs(
            self._nvml.host(),
            self.node_name,
            taints=self._health.taints if self._health.sick else None,
            foreign=self._foreign(),
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
            DeviceHealth(self.node_name, offer.name, *self._health.status(offer)) for offer in self._catalog().offers
        ]

    async def health_changed(self) -> None:
        await self._health_event.wait()

    def _on_event(self, event: GpuEvent) -> None:
        """On any thread."""
        if self._loop is not None and not self._loop.is_closed():
            self._loop.call_soon_threadsafe(self._observe, event)

    def _observe(self, event: GpuEvent) -> None:
        """An event without a GPU concerns all of them."""
        for gpu in self._nvml.host().gpus:
            if event.gpu not in (None, gpu.uuid):
                continue
            if event.kind == "recovered":
                self._recover(gpu.uuid)
                continue
            problem = Problem(event.kind, event.xid, *self._extent(event, gpu.uuid))
            if self._health.add(gpu.uuid, problem):
                self._reporter.unhealthy(gpu_name(gpu), problem.message, serious=problem.serious)
                self._health_changed()

    def _extent(self, event: GpuEvent, gpu: str) -> tuple[int, int]:
        """The memory slices an event is about: a GPU instance's, or all."""
        if event.gi_id is not None:
            for device in self._nvml.mig_devices(gpu):
                if device.gi_id == event.gi_id:
                    model = next(g.model for g in self._nvml.host().gpus if g.uuid == gpu)
                    profile = model.profile(device.profile_id)
                    if profile is not None:
                        return (device.start, device.start + profile.size)
        return (0, 8)

    def _health_changed(self) -> None:
        self._health_event.set()
        self._health_event = asyncio.Event()
        self._in_sync.clear()
        self._stale.set()

    async def _keep_collecting(self) -> None:
        """Takes back claims whose own take-back failed, for the case that the kubelet never asks for them again."""
        while True:
            await asyncio.sleep(_COLLECT_SECONDS)
            if any(record.state == "started" for record in self._preparer.records()):
                for error in await asyncio.to_thread(self._preparer.recover):
                    _log.warning("node %s: half-prepared claim cannot be taken back yet: %s", self.node_name, error)

    async def _keep_recovering(self) -> None:
        """Asks sick GPUs whether they have recovered. NVML has no event for that."""
        while True:
            await self._health_event.wait()
            while self._health.sick:
                await asyncio.sleep(_RECOVERY_POLL_SECONDS)
                for gpu in self._health.sick:
                    if await asyncio.to_thread(self._recovered, gpu):
                        self._recover(gpu)

    def _recover(self, uuid: str) -> None:
        if self._health.clear(uuid):
            gpu = next(gpu for gpu in self._nvml.host().gpus if gpu.uuid == uuid)
            self._reporter.recovered(gpu_name(gpu))
            self._health_changed()

    def _recovered(self, gpu: str) -> bool:
        try:
            return self._nvml.recovery_action(gpu) == "None"
        except NodeError:
            return False
