"""The cluster as the engine sees it, kept up to date object by object.

`upsert` and `delete` take API objects as a watch delivers them, in any order: what refers to something unknown waits
for it. `capstan.scheduling.cycle` speculates on the World through the journal and leaves its decisions in it as assumed
until the cluster confirms them (`upsert` of the pod) or `forget` takes them back.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace

from capstan.allocation import Inventory
from capstan.api.core import Namespace, PersistentVolume, PersistentVolumeClaim, Pod
from capstan.api.core import Node as ApiNode
from capstan.api.policy import PodDisruptionBudget
from capstan.api.resource import (
    AllocationResult,
    DeviceClass,
    DeviceTaintRule,
    ResourceClaim,
    ResourceClaimTemplate,
    ResourceSlice,
)
from capstan.api.scheduling import (
    PRIORITY_CLASSES,
    BindRequest,
    PodGroup,
    PriorityClass,
    RuntimeClass,
    Topology,
    TopologyLevel,
)
from capstan.api.scheduling import Queue as ApiQueue
from capstan.api.storage import StorageClass
from capstan.scheduling.budgets import Budgets
from capstan.scheduling.facts import encode, reads_alike
from capstan.scheduling.holdings import Key, Mark
from capstan.scheduling.model import Gang, Status
from capstan.scheduling.plan import Bind, Eviction, Plan
from capstan.scheduling.policy import Policy
from capstan.scheduling.population import Population
from capstan.scheduling.queues import QueueStatus, parse_queue, status_of
from capstan.scheduling.reservations import Reservation
from capstan.scheduling.volumes import FreeVolumes

Object = (
    ApiNode
    | Pod
    | PodGroup
    | ApiQueue
    | PriorityClass
    | Topology
    | RuntimeClass
    | PersistentVolume
    | PersistentVolumeClaim
    | StorageClass
    | Namespace
    | ResourceClaim
    | ResourceClaimTemplate
    | BindRequest
    | ResourceSlice
    | DeviceClass
    | DeviceTaintRule
    | PodDisruptionBudget
)


class World(Population):
    """Nodes, tasks, gangs and queues, with every sum over them.

    `inventory` holds the devices that are allocated by claims; without one, claims cannot be satisfied. `policy` says
    which pods this engine owns.
    """

    def __init__(self, inventory: Inventory | None = None, policy: Policy | None = None) -> None:
        super().__init__(inventory, policy or Policy())
        self.stale: dict[Gang, None] = {}
        """Gangs that run below their minimum."""
        self.budgets = Budgets()
        self.memo: object = None
        """Indexes that the placement keeps from cycle to cycle."""
        self.topologies: dict[str, list[TopologyLevel]] = {}
        self.volumes: dict[str, PersistentVolume] = {}
        self.free_volumes = FreeVolumes()
        self.promised_volumes: tuple[tuple[int, int], frozenset[str]] = ((-1, -1), frozenset())
        """Volumes given to pods and not bound yet, and the layout and length of `touched` for which that holds."""
        self.volume_claims: dict[Key, PersistentVolumeClaim] = {}
        self.storage_classes: dict[str, StorageClass] = {}
        self.namespaces: dict[str, dict[str, str]] = {}
        """Namespace -> labels."""
        self._promised: list[str] = []
        self.reservations: dict[Key, Reservation] = {}
        """Room that waiting gangs will have, oldest first."""
        self.destinations: dict[Key, list[str]] = {}
        """Gang -> nodes for its pods that were moved and are not back yet."""
        self.standing: dict[Key, dict[str, str]] = {}
        """Gang -> pod uid -> node: promises for which others were evicted."""

    # -- what arrives ------------------------------------------------------------------------------------------------

    def upsert(self, obj: Object) -> None:
        """Take an object as it is now. An object that is wrong in itself is kept as such and never stops the rest."""
        self.settle()
        match obj:
            case Pod():
                known = self._pods.get(obj.metadata.uid)
                if known is not None and reads_alike(known, obj):
                    self._pods[obj.metadata.uid] = obj
                elif known is None or not self._confirm(known, obj):
                    self._upsert_pod(obj)
            case ApiNode():
                self._upsert_node(obj)
            case PodGroup():
                self._upsert_gang(obj)
            case ApiQueue():
                notes = obj.metadata.annotations
                source = encode((obj.spec, notes, obj.metadata.creation_timestamp))
                if self._sources.get(("Queue", obj.metadata.name)) != source:  # its status is our own writing
                    self._sources[("Queue", obj.metadata.name)] = source
                    self.queues[obj.metadata.name] = parse_queue(obj)
                    self._relink = True
            case PriorityClass():
                self.priorities[obj.metadata.name] = obj.value
                self._regroup(lambda gang: gang.priority_class == obj.metadata.name)
            case Topology():
                self.topologies[obj.metadata.name] = obj.spec.levels
            case RuntimeClass():
                self.runtime_classes[obj.metadata.name] = obj
                self._reshape(obj.metadata.name)
            case Namespace():
                self.namespaces[obj.metadata.name] = obj.metadata.labels
            case StorageClass():
                self.storage_classes[obj.metadata.name] = obj
            case PersistentVolume():
                self.volumes[obj.metadata.name] = obj
                self.free_volumes.put(obj)
            case PersistentVolumeClaim():
                self.volume_claims[obj.key] = obj
            case PodDisruptionBudget():
                self.budgets.put(obj)
            case BindRequest():
                self._hand_off(self.handoffs.put(obj))
            case ResourceClaimTemplate():
                pass  # the claim controller generates from it; the engine only reads the result
            case ResourceClaim():
                self.claims[obj.key] = obj
                self._inventory_upsert(obj)
                self._recharge(self._users(obj.key))
            case _:
                self._inventory_upsert(obj)

    def delete(self, kind: str, namespace: str, name: str) -> None:
        """Forget an object; unknown ones are ignored."""
        self.settle()
        key = (namespace, name)
        match kind:
            case "Pod":
                uid = self._uids.pop(key, None)
                if uid is not None:
                    self._end_task(uid)
            case "Node":
                self._remove_node(name)
            case "PodGroup":
                self._sources.pop(("PodGroup", key), None)
                self._members.forget_group(key)
                gang = self.gangs.get(key)
                if gang is not None:
                    self._replace_gang(gang, self._placeholder(key))
                self._seat_again(self._members.take_up(key))
            case "Queue":
                self._sources.pop(("Queue", name), None)
                if self.queues.pop(name, None) is not None:
                    self._relink = True
            case "PriorityClass":
                self.priorities.pop(name, None)
                if name in PRIORITY_CLASSES:
                    self.priorities[name] = PRIORITY_CLASSES[name]
                self._regroup(lambda gang: gang.priority_class == name)
            case "Topology":
                self.topologies.pop(name, None)
            case "RuntimeClass":
                self.runtime_classes.pop(name, None)
                self._reshape(name)
            case "Namespace":
                self.namespaces.pop(name, None)
            case "StorageClass":
                self.storage_classes.pop(name, None)
            case "PersistentVolume":
                self.volumes.pop(name, None)
                self.free_volumes.remove(name)
            case "PersistentVolumeClaim":
                self.volume_claims.pop(key, None)
            case "PodDisruptionBudget":
                self.budgets.remove(namespace, name)
            case "BindRequest":
                self._hand_off(self.handoffs.drop(key))
            case "ResourceClaim":
                if self.claims.pop(key, None) is not None and self.inventory is not None:
                    self.inventory.delete(kind, namespace, name)
                    self._recharge(self._users(key))
            case "ResourceSlice" | "DeviceClass" | "DeviceTaintRule":
                if self.inventory is not None:
                    self.inventory.delete(kind, namespace, name)
                    self.slices_changed()
                    self._portion_anew()
                    if kind == "DeviceClass":
                        self._claim_anew()

    def _inventory_upsert(self, obj: ResourceClaim | ResourceSlice | DeviceClass | DeviceTaintRule) -> None:
        if self.inventory is None or self.portions is None:
            return
        pool = (obj.spec.driver, obj.spec.pool.name) if isinstance(obj, ResourceSlice) else ("", "")
        sizes = self.portions.sizes(pool)
        self.inventory.upsert(obj)
        if self.portions.changed(pool, sizes):
            self._recharge_parts()
        if not isinstance(obj, ResourceClaim):
            before = self.min_gpu_memory()
            self.slices_changed(obj if isinstance(obj, ResourceSlice) else None)
            if isinstance(obj, DeviceClass):
                self._portion_anew()
                self._claim_anew()
            if before != self.min_gpu_memory():
                self._recharge_parts()

    def shift_clock(self, by: float) -> None:
        """The wall clock was set `by` seconds forward: what was measured with it moves along, so that nothing elapses
        by that alone. Times that pods and PodGroups carry are read again when they change."""
        self.next_requeue = 0.0
        for gang in self.gangs.values():
            for field in ("stale_since", "last_start", "requeue_not_before"):
                since = getattr(gang, field)
                if since is not None:
                    setattr(gang, field, since + by)
        for key, made in self.reservations.items():
            self.reservations[key] = replace(made, at=made.at + by, until=made.until + by)

    # -- in-flight decisions -----------------------------------------------------------------------------------------

    def resume(self, binds: Iterable[Bind], evictions: Iterable[Eviction]) -> None:
        """Take up decisions that were made before and that the cluster has not confirmed; those of unknown pods go."""
        for bind in binds:
            task = self.tasks.get(bind.uid)
            if task is None or task.status not in (Status.PENDING, Status.GATED):
                continue
            allocations = _allocations(bind)
            if self.inventory is not None:
                for key, allocation in allocations.items():
                    self.inventory.assume(key, allocation)
            self.binds[bind.uid] = bind
            self._attach_anew(task)
            task.held = tuple(allocations)
            task.volume_choices = tuple((claim, volume) for (_, claim), volume in bind.volumes)
        for eviction in evictions:
            task = self.tasks.get(eviction.uid)
            if task is not None:
                self.evictions[eviction.uid] = eviction
                self._attach_anew(task)
        self.settle()

    def forget(self, uid: str) -> None:
        """Take back an assumed bind or eviction whose API write failed."""
        bind = self.binds.pop(uid, None)
        eviction = self.evictions.pop(uid, None)
        task = self.tasks.get(uid)
        if bind is not None and task is not None:
            held = task.held
            self.release_claims(task)
            for key in held:  # what the cluster has seen of them stays: an allocation is not changed, only ended
                if key in self.claims:
                    self._inventory_upsert(self.claims[key])
        if task is not None and (bind is not None or eviction is not None):
            pod = self._pods[uid]
            self._remove_task(uid)
            self._upsert_pod(pod)
        self.settle()

    # -- the cycle's two ends ----------------------------------------------------------------------------------------

    def begin(self, now: float) -> None:
        """Drop the promises of the last cycle and bring everything up to date."""
        self._begun = now
        for uid in self._promised:
            task = self.tasks.get(uid)
            if task is not None:
                self._break_promise(task)
        self._promised.clear()
        self.forget_vacated()
        self.refresh(now)
        if len(self.touched) > 100_000:
            self.touched.clear()
            self.layout += 1

    def refresh(self, now: float) -> None:
        """Bring everything that depends on several objects or on the time up to date; a cycle starts with it."""
        if self._relink:
            self._relink_queues()
        if self.products and self._charged_layout != self.layout:
            self._recharge_products()
        self._hand_off(self.handoffs.expire(now))
        for task in self._terminating.values():
            stuck = now > task.terminating_since + self.policy.stuck_after
            status = Status.STUCK if stuck else Status.RELEASING
            if task.status in (Status.RELEASING, Status.STUCK) and task.status != status:
                self.move(task, status, task.node, task.devices, zones=task.zones)
        self.settle()

    def adopt(self, plan: Plan, start: Mark, won: Iterable[Gang]) -> None:
        """Keep a plan as assumed: claims stay allocated for binds only, promises live until the next cycle.

        `won`: gangs for which room is being cleared; they come first in the next cycle.
        """
        for gang in won:
            tasks = [task for leaf in gang.root.leaves() for _, task in leaf.active]
            self.standing[gang.key] = {
                task.uid: task.node.name for task in tasks if task.status == Status.PIPELINED and task.node is not None
            }
        bound = {bind.uid for bind in plan.binds}
        if self.inventory is not None and not self.granted_only_to(bound):
            self.inventory.rollback(start[1])
            for bind in plan.binds:
                for key, allocation in _allocations(bind).items():
                    self.inventory.assume(key, allocation)
        self._drained.clear()
        for bind in plan.binds:
            self.binds[bind.uid] = bind
            self.rename(self.tasks[bind.uid], Status.BINDING)
        for promise in plan.promises:
            self.tasks[promise.uid].held = ()
            self._promised.append(promise.uid)
        for eviction in plan.evictions:
            self.evictions[eviction.uid] = eviction
        self._grants.clear()
        self.settle()

    # -- reading -----------------------------------------------------------------------------------------------------

    def queue_status(self) -> dict[str, QueueStatus]:
        """What every queue holds, asks for and is entitled to, by name."""
        if self._relink:
            self._relink_queues()
        self.share_out(self.policy)
        return {name: status_of(queue, self.total) for name, queue in sorted(self.queues.items())}


def _allocations(bind: Bind) -> dict[Key, AllocationResult]:
    """Of all claims that a bind allocates."""
    implied = bind.implied
    return bind.claims if implied is None else {**bind.claims, implied.claim.key: implied.allocation}
