"""The scheduler's shell: caches feed the World, `scheduling.cycle` decides, this loop writes what was decided.

Each write is safe to repeat. A write that fails is forgotten in the World, so that the next cycle decides anew; what
was written before the failure is found again by its name (implied claims) or in the claim's status (allocations).
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Coroutine, Mapping
from typing import Any

import msgspec

from capstan import kube, scheduling
from capstan.allocation import Inventory
from capstan.api import resource, resources
from capstan.api.base import ObjectReference
from capstan.api.core import Pod
from capstan.api.rbac import PolicyRule
from capstan.api.scheduling import PodGroup, Queue
from capstan.api.storage import SELECTED_NODE
from capstan.controllers.metrics import SchedulerMetrics, Stopwatch
from capstan.controllers.podgroup_status import PodGroupStatus
from capstan.controllers.pool_problems import PoolProblems
from capstan.controllers.timed_transport import TimedTransport
from capstan.controllers.verdicts import VerdictWriter
from capstan.controllers.wall_clock import WallClock
from capstan.scheduling.facts import NUMA_ANNOTATION, numa_text
from capstan.scheduling.snapshot import capture, encode

log = logging.getLogger(__name__)

TICK_SECONDS = 1.0
"""How long the loop sleeps when nothing changes: delays, grace periods and minimum run times elapse by themselves."""
SETTLE_SECONDS = 0.005
"""Changes that arrive this close together are decided in one cycle."""
BUSY_SHARE = 0.25
"""The part of the time that deciding takes while changes keep coming: the longer a cycle, the more the next decides."""
LONGEST_SETTLE_SECONDS = 0.2
WRITES_IN_FLIGHT = 64
STAMP_SECONDS = 2.0
STAMP_ROUNDS = 15
"""How many times stamps give way to binds that are being written."""
VOLUME_POLL_SECONDS = 0.1
VOLUME_SECONDS = 600.0
"""How long a pod waits for its volumes to be bound or made before its node is chosen anew (as kube-scheduler)."""
SCHEDULED_EVENTS_PER_SECOND = 100.0
RETRY_SECONDS = 1.0
"""Between a write that failed (a spent disruption budget, a server in trouble) and deciding about its pod anew."""

OBSERVED: tuple[resources.Resource[Any], ...] = (
    resources.NODES,
    resources.NAMESPACES,
    resources.QUEUES,
    resources.PRIORITY_CLASSES,
    resources.RUNTIME_CLASSES,
    resources.TOPOLOGIES,
    resources.DEVICE_CLASSES,
    resources.RESOURCE_SLICES,
    resources.DEVICE_TAINT_RULES,
    resources.RESOURCE_CLAIMS,
    resources.RESOURCE_CLAIM_TEMPLATES,
    resources.STORAGE_CLASSES,
    resources.PERSISTENT_VOLUMES,
    resources.PERSISTENT_VOLUME_CLAIMS,
    resources.POD_DISRUPTION_BUDGETS,
    resources.BIND_REQUESTS,
    resources.POD_GROUPS,
    resources.PODS,
)
"""What the World is made of; pods last, so that their surroundings are known when they arrive."""
OPTIONAL = frozenset(
    r.group_resource
    for r in OBSERVED
    if r.group == "resource.k8s.io" or r in (resources.TOPOLOGIES, resources.BIND_REQUESTS)
)
"""Kinds that a cluster may lack: those of DRA before Kubernetes 1.34 (DeviceTaintRules also later), topologies, and
KAI's requests to its binder."""


class NodeGone(Exception):
    """The node of a decision does not exist any more."""

    def __init__(self, node: str) -> None:
        super().__init__(f"node {node} is gone")


class Scheduler:
    """Decides and executes until cancelled. Give it a client with the rights in `RULES`."""

    RULES = [PolicyRule(api_groups=[r.group], resources=[r.plural], verbs=["list", "watch"]) for r in OBSERVED] + [
        PolicyRule(api_groups=[""], resources=["pods/binding", "pods/eviction"], verbs=["create"]),
        PolicyRule(api_groups=[""], resources=["pods/status"], verbs=["patch"]),
        PolicyRule(api_groups=[""], resources=["persistentvolumes", "persistentvolumeclaims"], verbs=["patch"]),
        PolicyRule(api_groups=[""], resources=["events"], verbs=["create", "patch"]),
        PolicyRule(api_groups=["resource.k8s.io"], resources=["resourceclaims"], verbs=["create", "patch"]),
        PolicyRule(api_groups=["resource.k8s.io"], resources=["resourceclaims/status"], verbs=["patch"]),
        PolicyRule(api_groups=["scheduling.run.ai"], resources=["podgroups", "podgroups/status"], verbs=["patch"]),
    ]

    def __init__(
        self,
        client: kube.Client,
        policy: scheduling.Policy | None = None,
        *,
        installation: scheduling.Installation | None = None,
        period: float = TICK_SECONDS,
        wall: WallClock | None = None,
    ) -> None:
        self.policy = policy or scheduling.Policy()
        inventory = Inventory(self.policy.features)
        self.world = scheduling.World(inventory, self.policy)
        self.cycles = 0
        self._cycle_began = self._cycle_seconds = 0.0
        self._period = period
        self._wall = wall or WallClock()
        self._changed = asyncio.Event()
        self._writes = asyncio.Semaphore(WRITES_IN_FLIGHT)
        self._writing = 0
        """How much of what was decided is being written, or about to be; waiting for volumes is not writing."""
        self._all_written = asyncio.Event()
        self._all_written.set()
        self._in_flight: set[asyncio.Task[object]] = set()
        self._stamps: dict[tuple[str, str, str], scheduling.Stamp] = {}
        self._caches: list[kube.Cache[Any]] = [
            kube.Cache(client, r, optional=r.group_resource in OPTIONAL) for r in OBSERVED
        ]
        for cache in self._caches:
            cache.on_change(self._observe)
        self.queues: Mapping[kube.Key, Queue] = self._caches[OBSERVED.index(resources.QUEUES)].objects
        self.metrics = SchedulerMetrics(self.world, self.queues.values, installation)
        self._client = kube.Client(TimedTransport(client.transport, self.metrics.written), client.field_manager)
        self._events = kube.EventRecorder(self._client, "capstan-scheduler")
        self.pod_groups: kube.Cache[PodGroup] = self._caches[OBSERVED.index(resources.POD_GROUPS)]
        self.pods: kube.Cache[Pod] = self._caches[OBSERVED.index(resources.PODS)]
        # What pods wait for goes before what people read about it.
        self._scheduled = kube.EventRecorder(
            self._client, "capstan-scheduler", rate=SCHEDULED_EVENTS_PER_SECOND, calm=self._all_written.wait
        )
        self._verdicts = VerdictWriter(
            self._client,
            self._events,
            self.pods,
            self.pod_groups,
            self.metrics.told,
            self.policy.node_pool or "default",
        )
        slices = self._caches[OBSERVED.index(resources.RESOURCE_SLICES)]
        self._problems = PoolProblems(self._events, inventory, slices)

    def follow(self, policy: scheduling.Policy, period: float) -> None:
        """Decide by another policy from the next cycle on. Its `scope` has to be that of the present one."""
        assert policy.scope == self.policy.scope, "a World takes in what its policy's scope says"
        self.policy = self.world.policy = policy
        self._period = period
        self._changed.set()

    async def run(self) -> None:
        try:
            await self._run()
        finally:
            for task in self._in_flight:
                task.cancel()
            self._scheduled.close()

    async def snapshot(self, accept: str = "") -> tuple[bytes, str]:
        """All that the next cycle would be decided from, and its content type; the file is packed beside the loop."""
        objects = [obj for cache in self._caches for obj in cache.objects.values()]
        moment = capture(self.world, self._wall.now(), objects)
        return await asyncio.to_thread(lambda: encode(moment.snapshot())), "application/gzip"

    async def _run(self) -> None:
        async with asyncio.TaskGroup() as group:
            for cache in self._caches:
                group.create_task(cache.run())
            group.create_task(self._loop())
            group.create_task(self._verdicts.run())
            group.create_task(self._problems.run())
            group.create_task(PodGroupStatus(self._client, self.world, self.pod_groups).run())
            group.create_task(self._write_stamps())

    async def synced(self) -> None:
        """Returns once the World holds what the cluster does."""
        for cache in self._caches:
            await cache.synced()

    async def _loop(self) -> None:
        await self.synced()
        while True:
            await self._wait_for_change()
            self._cycle_began = time.perf_counter()
            now, watch = self._read_clock(), Stopwatch()
            plan = scheduling.cycle(self.world, self.policy, now, watch.lap)
            self._cycle_seconds = watch.seconds
            self.metrics.cycle(plan, watch, now)
            self.cycles += 1
            if plan.binds or plan.evictions:
                log.info(
                    "cycle: %d binds, %d evictions in %.1f ms",
                    len(plan.binds),
                    len(plan.evictions),
                    self._cycle_seconds * 1000,
                )
            decided = time.perf_counter()
            for bind in plan.binds:
                self._spawn(self._start(bind, decided))
            for eviction in plan.evictions:
                attempt = f"evicting {eviction.namespace}/{eviction.pod}"
                self._spawn(self._carry_out(self._evict(eviction), attempt, eviction.uid))
            for stamp in plan.stamps:
                self._stamps[stamp.namespace, stamp.group, stamp.annotation] = stamp
            self._verdicts.note(plan.verdicts, self._wall.now())

    def _read_clock(self) -> float:
        """The wall clock. If it was set since the last cycle, what the World measures with it moves along."""
        now, jump = self._wall.read()
        if jump:
            log.warning("the wall clock was set %+.0f s; timers go on from where they were", jump)
            self.world.shift_clock(jump)
        return now

    async def _write_stamps(self) -> None:
        """Stamps matter only to a later start of the scheduler, so they give way to what pods wait for."""
        while True:
            for _ in range(STAMP_ROUNDS):
                await asyncio.sleep(STAMP_SECONDS)
                if not self._writing:
                    break
            stamps, self._stamps = self._stamps, {}
            for stamp in stamps.values():
                await self._carry_out(self._stamp(stamp), f"stamping PodGroup {stamp.namespace}/{stamp.group}")

    async def _wait_for_change(self) -> None:
        try:
            async with asyncio.timeout(self._period):
                await self._changed.wait()
        except TimeoutError:
            return
        rest = min(self._cycle_seconds / BUSY_SHARE, LONGEST_SETTLE_SECONDS) - (time.perf_counter() - self._cycle_began)
        await asyncio.sleep(max(SETTLE_SECONDS, rest))
        self._changed.clear()

    def _observe(self, change: kube.Change[Any]) -> None:
        if change.type == "deleted":
            gone = change.object
            self.world.delete(type(gone).__name__, gone.metadata.namespace, gone.metadata.name)
        else:
            self.world.upsert(change.object)
        self._changed.set()

    def _spawn(self, work: Coroutine[Any, Any, object]) -> None:
        task = asyncio.create_task(work)
        self._in_flight.add(task)
        task.add_done_callback(self._in_flight.discard)

    async def _start(self, bind: scheduling.Bind, decided: float) -> None:
        """Volumes first: a bound pod's kubelet mounts what is there. Waiting for them holds up no other write."""
        where = f"{bind.namespace}/{bind.pod} to {bind.node}"
        if bind.volumes:
            if not await self._carry_out(self._choose_volumes(bind), f"choosing volumes for {where}", bind.uid):
                return
            if not await self._volumes_bound(bind):
                log.warning("the volumes of %s were not ready in %.0f s, deciding anew", where, VOLUME_SECONDS)
                self.world.forget(bind.uid)
                self._changed.set()
                return
        await self._carry_out(self._bind(bind, decided), f"binding {where}", bind.uid)

    async def _choose_volumes(self, bind: scheduling.Bind) -> None:
        """What kube-scheduler writes: the claim on the chosen volume, or the node on the claim for its provisioner."""
        for (namespace, name), volume in bind.volumes:
            claim = self.world.volume_claims[namespace, name]
            if not volume:
                notes = {SELECTED_NODE: bind.node}
                patch: dict[str, Any] = {"metadata": {"uid": claim.metadata.uid, "annotations": notes}}
                await self._client.patch(resources.PERSISTENT_VOLUME_CLAIMS, name, namespace, patch=patch)
                continue
            owner = {"apiVersion": "v1", "kind": "PersistentVolumeClaim", "namespace": namespace, "name": name}
            known = self.world.volumes[volume].metadata
            patch = {
                "metadata": {
                    "resourceVersion": known.resource_version,  # two claims never take one volume
                    "annotations": {"pv.kubernetes.io/bound-by-controller": "yes"},
                },
                "spec": {"claimRef": {**owner, "uid": claim.metadata.uid}},
            }
            await self._client.patch(resources.PERSISTENT_VOLUMES, volume, patch=patch)

    async def _volumes_bound(self, bind: scheduling.Bind) -> bool:
        """Wait until every claim of the pod names its volume; False when that takes too long or a claim is gone."""
        for _ in range(round(VOLUME_SECONDS / VOLUME_POLL_SECONDS)):
            claims = [self.world.volume_claims.get(key) for key, _ in bind.volumes]
            if None in claims or bind.uid not in self.world.binds:
                return False
            if all(claim is not None and claim.spec.volume_name for claim in claims):
                return True
            await asyncio.sleep(VOLUME_POLL_SECONDS)
        return False

    async def _carry_out(self, work: Coroutine[Any, Any, None], attempt: str, uid: str = "") -> bool:
        """Write what was decided about a pod. What fails is taken back in the World, so that the next cycle decides."""
        self._writing += 1
        self._all_written.clear()
        try:
            async with self._writes:
                await work
                return True
        except NodeGone as error:
            log.info("%s: %s, deciding anew", attempt, error)
        except kube.ApiError as error:
            log.log(kube.severity(error), "%s failed, deciding anew: %s", attempt, error)
        except Exception:
            log.exception("%s failed, deciding anew", attempt)
        finally:
            self._writing -= 1
            if not self._writing:
                self._all_written.set()
        if uid:
            await asyncio.sleep(RETRY_SECONDS)
            self.world.forget(uid)
            self._changed.set()
        return False

    async def _bind(self, bind: scheduling.Bind, decided: float) -> None:
        """Allocate and reserve the pod's claims, then bind it: a bound pod must find its claims ready."""
        self._still_there(bind)
        if bind.implied is not None:
            await self._make_implied_claim(bind, bind.implied)
        for (namespace, name), allocation in bind.claims.items():
            await self._allocate(namespace, name, allocation)
        for namespace, name in bind.reserve:
            if bind.implied is None or (namespace, name) != bind.implied.claim.key:
                await self._reserve(bind, namespace, name)
        metadata: dict[str, Any] = {"name": bind.pod, "namespace": bind.namespace, "uid": bind.uid}
        if bind.zones:  # annotations of a binding become the pod's
            metadata["annotations"] = {NUMA_ANNOTATION: numa_text(bind.zones)}
        self._still_there(bind)
        await self._client.post(
            resources.PODS,
            bind.pod,
            bind.namespace,
            "binding",
            {
                "apiVersion": "v1",
                "kind": "Binding",
                "metadata": metadata,
                "target": {"apiVersion": "v1", "kind": "Node", "name": bind.node},
            },
        )
        self.metrics.bound(time.perf_counter() - decided)
        pod = ObjectReference(api_version="v1", kind="Pod", namespace=bind.namespace, name=bind.pod, uid=bind.uid)
        message = f"Successfully assigned {bind.namespace}/{bind.pod} to {bind.node}"
        self._scheduled.emit(pod, "Normal", "Scheduled", message)

    def _still_there(self, bind: scheduling.Bind) -> None:
        """Raises NodeGone. Binds are written one after another; nodes may go meanwhile, and no server looks."""
        if bind.node not in self.world.nodes:
            raise NodeGone(bind.node)

    async def _make_implied_claim(self, bind: scheduling.Bind, implied: scheduling.ImpliedClaim) -> None:
        """The claim behind an extended resource or a GPU share (KEP-5004). Its name follows from the pod's uid."""
        claim, name = implied.claim, implied.claim.metadata.name
        protected = msgspec.structs.replace(claim.metadata, finalizers=[resource.FINALIZER])
        body = {"metadata": protected, "spec": claim.spec}
        try:
            await self._client.create(resources.RESOURCE_CLAIMS, body, bind.namespace)
        except kube.AlreadyExists:
            log.info("claim %s/%s was made before; going on with it", bind.namespace, name)
        await self._write_allocation(bind.namespace, name, implied.allocation, reserved_for=_consumer(bind))
        await self._client.patch(
            resources.PODS,
            bind.pod,
            bind.namespace,
            subresource="status",
            patch={
                "metadata": {"uid": bind.uid},
                "status": {
                    "extendedResourceClaimStatus": {
                        "resourceClaimName": name,
                        "requestMappings": implied.mappings,
                    }
                },
            },
        )

    async def _allocate(self, namespace: str, name: str, allocation: resource.AllocationResult) -> None:
        """The finalizer first, so that nobody deletes the claim between allocation and use."""
        await self._client.patch(
            resources.RESOURCE_CLAIMS,
            name,
            namespace,
            patch={"metadata": {"finalizers": [resource.FINALIZER]}},
            kind="strategic",
        )
        await self._write_allocation(namespace, name, allocation)

    async def _write_allocation(
        self,
        namespace: str,
        name: str,
        allocation: resource.AllocationResult,
        reserved_for: dict[str, str] | None = None,
    ) -> None:
        status: dict[str, Any] = {"allocation": allocation}
        if reserved_for is not None:
            status["reservedFor"] = [reserved_for]
        known = self.world.claims.get((namespace, name))
        if known is not None and known.status.allocation not in (None, allocation):
            # On a node that is gone. An allocation is never changed, only ended and made anew.
            ended: dict[str, Any] = {"status": {"allocation": None, "reservedFor": None}}
            await self._client.patch(resources.RESOURCE_CLAIMS, name, namespace, patch=ended, subresource="status")
        await self._client.patch(
            resources.RESOURCE_CLAIMS, name, namespace, patch={"status": status}, subresource="status"
        )

    async def _reserve(self, bind: scheduling.Bind, namespace: str, name: str) -> None:
        """Add the pod to `reservedFor`, a list merged by uid: pods that share a claim do not overwrite each other."""
        await self._client.patch(
            resources.RESOURCE_CLAIMS,
            name,
            namespace,
            patch={"status": {"reservedFor": [_consumer(bind)]}},
            kind="strategic",
            subresource="status",
        )

    async def _evict(self, eviction: scheduling.Eviction) -> None:
        """Through the Eviction API, so that disruption budgets and grace periods hold."""
        await self._client.post(
            resources.PODS,
            eviction.pod,
            eviction.namespace,
            "eviction",
            {
                "apiVersion": "policy/v1",
                "kind": "Eviction",
                "metadata": {"name": eviction.pod, "namespace": eviction.namespace},
                "deleteOptions": {"preconditions": {"uid": eviction.uid}},
            },
        )
        self.metrics.evicted(eviction)
        pod = ObjectReference(
            api_version="v1", kind="Pod", namespace=eviction.namespace, name=eviction.pod, uid=eviction.uid
        )
        self._events.emit(pod, "Normal", _EVICTION_REASONS[eviction.action], eviction.reason)

    async def _stamp(self, stamp: scheduling.Stamp) -> None:
        """What the engine must know again after a restart: when a gang last started, since when it is stale."""
        await self._client.patch(
            resources.POD_GROUPS,
            stamp.group,
            stamp.namespace,
            patch={"metadata": {"annotations": {stamp.annotation: stamp.value}}},
        )
        group = self.pod_groups.get(stamp.group, stamp.namespace)
        if stamp.news and group is not None:
            self._events.emit(group, "Warning", "StaleGang", stamp.news)


_EVICTION_REASONS = {
    "reclaim": "Reclaimed",
    "preempt": "Preempted",
    "consolidate": "Consolidated",
    "evict-stale": "StaleGangEvicted",
    "requeue": "MaxRuntimeExceeded",
    "defragment": "Defragmented",
}


def _consumer(bind: scheduling.Bind) -> dict[str, str]:
    return {"resource": "pods", "name": bind.pod, "uid": bind.uid}
