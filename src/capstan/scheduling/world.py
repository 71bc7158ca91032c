"""The cluster as the engine sees it, kept up to date object by object.

`upsert` and `delete` take API objects as a watch delivers them, in any order: what refers to something unknown waits
for it. `capstan.scheduling.cycle` speculates on the World through the journal and leaves its decisions in it as assumed
until the cluster confirms them (`upsert` of the pod) or `forget` takes them back.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping

import msgspec

from capstan.allocation import InvalidPodRequest, Inventory, claim_for_pod
from capstan.api import clock, quantity
from capstan.api.core import Node as ApiNode
from capstan.api.core import PersistentVolume, PersistentVolumeClaim, Pod
from capstan.api.resource import (
    AllocationResult,
    DeviceClass,
    DeviceTaintRule,
    ResourceClaim,
    ResourceClaimTemplate,
    ResourceSlice,
)
from capstan.api.scheduling import (
    POD_GROUP_ANNOTATION,
    PRIORITY_CLASSES,
    SCHEDULER_NAME,
    SUBGROUP_LABEL,
    TASK_PRIORITY_LABEL,
    PodGroup,
    PriorityClass,
    RuntimeClass,
    Topology,
)
from capstan.api.scheduling import Queue as ApiQueue
from capstan.scheduling.gangs import build_gang, implicit_gang
from capstan.scheduling.journal import Ledger
from capstan.scheduling.model import (
    ACTIVE,
    GPU,
    GPU_COLUMN,
    GPU_RESOURCE,
    HOLDS_NOW,
    NOTHING,
    PODS_COLUMN,
    Amounts,
    Gang,
    Node,
    NodeClass,
    Queue,
    Status,
    Task,
    Zone,
)
from capstan.scheduling.plan import Bind, Eviction, Plan
from capstan.scheduling.policy import STUCK_AFTER, Policy
from capstan.scheduling.queues import QueueStatus, link, parse_queue, set_fair_shares, status_of
from capstan.scheduling.shapes import Shapes, mig_slices

Key = tuple[str, str]
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
    | ResourceClaim
    | ResourceClaimTemplate
    | ResourceSlice
    | DeviceClass
    | DeviceTaintRule
)
GPU_MEMORY_LABEL = "nvidia.com/gpu.memory"
GPU_PRODUCT_LABEL = "nvidia.com/gpu.product"
HOST_LABEL = "kubernetes.io/hostname"
GPU_GROUP_LABEL = "runai-gpu-group"
UNLIMITED_PODS = 1 << 40
Mark = tuple[int, int, int]
"""Positions in the three journals: moves, inventory, grants."""


class World(Ledger):
    """Nodes, tasks, gangs and queues, with every sum over them.

    `inventory` holds the devices that are allocated by claims; without one, claims cannot be satisfied. `policy` says
    which pods this engine owns.
    """

    def __init__(self, inventory: Inventory | None = None, policy: Policy | None = None) -> None:
        super().__init__()
        self.inventory = inventory
        self.policy = policy or Policy()
        self.shapes = Shapes()
        self.nodes: dict[str, Node] = {}
        self.node_classes: dict[object, NodeClass] = {}
        self.tasks: dict[str, Task] = {}
        self.gangs: dict[Key, Gang] = {}
        self.queues: dict[str, Queue] = {}
        self.roots: list[Queue] = []
        self.free_queue = Queue("", "", 0, 0.0, (-1, -1, -1), (-1, -1, -1), (0, 0, 0))
        """Where pods without any queue go: no bounds, no part in fair shares, no victims of reclaim."""
        self.nowhere = Queue("", "", 0, 0.0, (0, 0, 0), (0, 0, 0), (0, 0, 0), error="does not exist")
        """Stands in for every queue that is named and does not exist."""
        self.gated: dict[str, Task] = {}
        self.stale: dict[Gang, None] = {}
        """Gangs that run below their minimum."""
        self.memo: object = None
        """Indexes that the placement keeps from cycle to cycle."""
        self.priorities: dict[str, int] = dict(PRIORITY_CLASSES)
        self.topologies: dict[str, tuple[str, ...]] = {}
        self.runtime_classes: dict[str, RuntimeClass] = {}
        self.volumes: dict[str, PersistentVolume] = {}
        self.volume_claims: dict[Key, PersistentVolumeClaim] = {}
        self.claims: dict[Key, ResourceClaim] = {}
        self.claim_users: dict[Key, list[str]] = {}
        """ResourceClaim -> uids of the tasks that use it, oldest first."""
        self.binds: dict[str, Bind] = {}
        """uid -> decided and not yet confirmed by the cluster."""
        self.evictions: dict[str, Eviction] = {}
        self.guards: dict[str, Task] = {}
        """Tasks whose required anti-affinity keeps others away."""
        self.total: list[int] = [0, 0, 0]
        """Allocatable of all ready nodes."""
        self.layout = 0
        """Raised when nodes come, go or change what they are; placement indexes of an older layout are void."""
        self.generation = 0
        """Raised by every change that came from outside."""
        self._uids: dict[Key, str] = {}
        self._pods: dict[str, Pod] = {}
        self._sources: dict[object, bytes] = {}
        self._waiting_for_node: dict[str, set[str]] = {}
        self._relink = False
        self._width = 0
        self._terminating: dict[str, Task] = {}
        self._min_gpu_memory = 0
        self._memories: Counter[int] = Counter()
        self._memory_shares: set[str] = set()
        self._slice_memory: dict[str, int] = {}
        self._grants: list[tuple[Task | Node, tuple[Key, ...]]] = []
        """Journal of what tasks held before a grant, and of drained nodes."""
        self._drained: set[str] = set()
        self._promised: list[str] = []
        self.standing: dict[Key, dict[str, str]] = {}
        """Gang -> pod uid -> node: promises for which others were evicted."""

    # -- what arrives ------------------------------------------------------------------------------------------------

    def upsert(self, obj: Object) -> None:
        """Take an object as it is now. An object that is wrong in itself is kept as such and never stops the rest."""
        self.settle()
        self.generation += 1
        match obj:
            case Pod():
                self._upsert_pod(obj)
            case ApiNode():
                self._upsert_node(obj)
            case PodGroup():
                self._upsert_gang(obj)
            case ApiQueue():
                self.queues[obj.metadata.name] = parse_queue(obj)
                self._relink = True
            case PriorityClass():
                self.priorities[obj.metadata.name] = obj.value
                self._regroup(lambda gang: gang.priority_class == obj.metadata.name)
            case Topology():
                self.topologies[obj.metadata.name] = tuple(level.node_label for level in obj.spec.levels)
            case RuntimeClass():
                self.runtime_classes[obj.metadata.name] = obj
            case PersistentVolume():
                self.volumes[obj.metadata.name] = obj
            case PersistentVolumeClaim():
                self.volume_claims[obj.key] = obj
            case ResourceClaimTemplate():
                pass  # the claim controller generates from it; the engine only reads the result
            case ResourceClaim():
                self.claims[obj.key] = obj
                self._inventory_upsert(obj)
                self._recharge(self.claim_users.get(obj.key, ()))
            case _:
                self._inventory_upsert(obj)

    def delete(self, kind: str, namespace: str, name: str) -> None:
        """Forget an object; unknown ones are ignored."""
        self.settle()
        self.generation += 1
        key = (namespace, name)
        match kind:
            case "Pod":
                uid = self._uids.pop(key, None)
                if uid is not None:
                    self._remove_task(uid)
            case "Node":
                self._remove_node(name)
            case "PodGroup":
                self._sources.pop(("PodGroup", key), None)
                gang = self.gangs.get(key)
                if gang is not None:
                    self._replace_gang(gang, self._placeholder(key))
            case "Queue":
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
            case "PersistentVolume":
                self.volumes.pop(name, None)
            case "PersistentVolumeClaim":
                self.volume_claims.pop(key, None)
            case "ResourceClaim":
                if self.claims.pop(key, None) is not None and self.inventory is not None:
                    self.inventory.delete(kind, namespace, name)
                    self._recharge(self.claim_users.get(key, ()))
            case "ResourceSlice" | "DeviceClass" | "DeviceTaintRule":
                if self.inventory is not None:
                    self.inventory.delete(kind, namespace, name)
                    self._refresh_claim_columns()

    # -- in-flight decisions -----------------------------------------------------------------------------------------

    def forget(self, uid: str) -> None:
        """Take back an assumed bind or eviction whose API write failed."""
        self.generation += 1
        bind = self.binds.pop(uid, None)
        eviction = self.evictions.pop(uid, None)
        task = self.tasks.get(uid)
        if bind is not None and task is not None:
            self.release_claims(task)
        if task is not None and (bind is not None or eviction is not None):
            pod = self._pods[uid]
            self._remove_task(uid)
            self._upsert_pod(pod)
        self.settle()

    def release_claims(self, task: Task) -> None:
        """Give up the allocations this engine assumed for a task."""
        if self.inventory is not None:
            for key in task.held:
                self.inventory.release(key)
        task.held = ()

    # -- speculation -------------------------------------------------------------------------------------------------

    def mark(self) -> Mark:
        """A point to come back to; void once an object arrives."""
        return (self.position(), self.inventory.mark() if self.inventory is not None else 0, len(self._grants))

    def rollback(self, mark: Mark) -> None:
        """Restore the World as it was at `mark`: moves, claims and drained nodes."""
        self.undo(mark[0])
        if self.inventory is not None:
            self.inventory.rollback(mark[1])
        while len(self._grants) > mark[2]:
            subject, held = self._grants.pop()
            if isinstance(subject, Task):
                subject.held = held
            else:
                self._drained.discard(subject.name)

    def grant(self, task: Task, results: Mapping[Key, AllocationResult]) -> None:
        """Allocate claims to a task in the inventory."""
        assert self.inventory is not None
        self._grants.append((task, task.held))
        for key, result in results.items():
            self.inventory.assume(key, result)
        task.held = (*task.held, *results)

    def is_drained(self, node: Node) -> bool:
        """Whether the inventory shows the node without the claims of its terminating pods."""
        return node.name in self._drained

    def drain(self, node: Node) -> bool:
        """Release the claims that only terminating pods of the node use; False when there are none."""
        leaving = [t for t in node.tasks.values() if t.status == Status.RELEASING or t.leaving is not None]
        keys = []
        for task in leaving:
            for key in self.claims_held(task):
                users = (self.tasks[uid] for uid in self.claim_users.get(key, ()))
                if not any(ACTIVE[user.status] and user.leaving is None for user in users):
                    keys.append(key)
        if not keys or self.inventory is None:
            return False
        self._grants.append((node, ()))
        self._drained.add(node.name)
        for key in keys:
            self.inventory.release(key)
        return True

    def claims_held(self, task: Task) -> list[Key]:
        """The claims a placed task uses: by name, and the one made for its extended resources or share."""
        keys = [(task.namespace, name) for _, name in task.claims if name is not None]
        if task.implied is not None:
            keys.append(task.implied.key)
        return keys

    # -- the cycle's two ends ------------------------------------------------------------------------------------------

    def begin(self, now: float) -> None:
        """Drop the promises of the last cycle and bring everything up to date."""
        for uid in self._promised:
            task = self.tasks.get(uid)
            if task is not None and task.status == Status.PIPELINED:
                place = task.leaving
                if place is not None:
                    self.move(task, Status.RELEASING, place[0], place[1], charge=self.charge(task, place[0]))
                else:
                    self.move(task, Status.PENDING, None, charge=self.charge(task, None))
        self._promised.clear()
        self.refresh(now)
        if len(self.touched) > 100_000:
            self.touched.clear()
            self.layout += 1

    def adopt(self, plan: Plan, start: Mark, won: Iterable[Gang]) -> None:
        """Keep a plan as assumed: claims stay allocated for binds only, promises live until the next cycle.

        `won`: gangs for which room is being cleared; they come first in the next cycle.
        """
        for gang in won:
            tasks = [task for leaf in gang.root.leaves() for _, task in leaf.active]
            self.standing[gang.key] = {
                task.uid: task.node.name for task in tasks if task.status == Status.PIPELINED and task.node is not None
            }
        if self.inventory is not None:
            self.inventory.rollback(start[1])
        self._drained.clear()
        for bind in plan.binds:
            task = self.tasks[bind.uid]
            allocations = dict(bind.claims)
            if bind.implied is not None:
                allocations[bind.implied.claim.key] = bind.implied.allocation
            if self.inventory is not None:
                for key, allocation in allocations.items():
                    self.inventory.assume(key, allocation)
            self.binds[bind.uid] = bind
            self.rename(task, Status.BINDING)
        for promise in plan.promises:
            self.tasks[promise.uid].held = ()
            self._promised.append(promise.uid)
        for eviction in plan.evictions:
            self.evictions[eviction.uid] = eviction
        self._grants.clear()
        self.settle()

    def pod(self, uid: str) -> Pod:
        """The pod as it arrived last. Raises KeyError for an unknown UID."""
        return self._pods[uid]

    def task_of(self, namespace: str, pod: str) -> Task | None:
        return self.tasks.get(self._uids.get((namespace, pod), ""))

    # -- reading -----------------------------------------------------------------------------------------------------

    def refresh(self, now: float) -> None:
        """Bring everything that depends on several objects or on the time up to date; a cycle starts with it."""
        if self._relink:
            self._relink_queues()
        for task in self._terminating.values():
            stuck = now > task.terminating_since + STUCK_AFTER
            status = Status.STUCK if stuck else Status.RELEASING
            if task.status in (Status.RELEASING, Status.STUCK) and task.status != status:
                self.move(task, status, task.node, task.devices, zones=task.zones)
        self.settle()

    def share_out(self, policy: Policy) -> None:
        """Set the fair shares of all queues over what pods of others and pods without a queue leave."""
        rest = [self.total[i] - self.foreign[i] - self.free_queue.allocated[i] for i in range(3)]
        set_fair_shares(self.roots, (rest[0], rest[1], rest[2]), policy.usage, policy.k_value)

    def queue_status(self) -> dict[str, QueueStatus]:
        """What every queue holds, asks for and is entitled to, by name."""
        if self._relink:
            self._relink_queues()
        self.share_out(self.policy)
        return {name: status_of(queue) for name, queue in sorted(self.queues.items())}

    def min_gpu_memory(self) -> int:
        """MiB of the smallest GPU in the cluster: shares in MiB are counted against it until they have a node."""
        return self._min_gpu_memory or 100

    def charge(self, task: Task, node: Node | None) -> Amounts:
        """What a task costs its queue, on a node or (None) while it waits."""
        cpu, memory, gpu = task.shape.quota
        share = task.shape.share
        if share is not None and share.memory:
            gpu += share.on(node.gpu_memory if node is not None else self.min_gpu_memory()) * share.devices
        if task.claims:
            gpu += self._claimed_gpus(task)
        return (cpu, memory, gpu)

    # -- pods --------------------------------------------------------------------------------------------------------

    def _upsert_pod(self, pod: Pod) -> None:
        uid = pod.metadata.uid or f"{pod.metadata.namespace}/{pod.metadata.name}"
        self.shapes.of(pod)
        self.widen()
        known = self._uids.get(pod.key)
        if known is not None and known != uid:
            self._remove_task(known)
        if uid in self.tasks:
            self._detach(self.tasks[uid], keep_gang=True)
        self._uids[pod.key] = uid
        self._pods[uid] = pod
        task = self._task(pod, uid)
        before = self.tasks.get(uid)
        if before is not None:
            task.held = before.held
            if before.gang is not None and before.gang.key != self._gang_key(pod):
                self._drop_from_gang(before)
        self.tasks[uid] = task
        self._attach(task, pod)

    def _task(self, pod: Pod, uid: str) -> Task:
        meta, spec = pod.metadata, pod.spec
        labels = meta.labels
        try:
            priority = int(labels.get(TASK_PRIORITY_LABEL, "0"))
        except ValueError:
            priority = 0
        return Task(
            uid=uid,
            namespace=meta.namespace,
            name=meta.name,
            shape=self.shapes.of(pod),
            order=(-priority, _role(labels), clock.parse(meta.creation_timestamp), uid),
            labels=labels,
            claims=_claim_names(pod),
            volumes=tuple(
                v.persistent_volume_claim.claim_name if v.persistent_volume_claim else f"{meta.name}-{v.name}"
                for v in spec.volumes
                if v.persistent_volume_claim or v.ephemeral
            ),
            blocked=", ".join(gate.name for gate in spec.scheduling_gates),
            nominated=pod.status.nominated_node_name,
        )

    def _attach(self, task: Task, pod: Pod) -> None:
        """Give a new or changed task its gang, its status and its place."""
        uid = task.uid
        if pod.spec.scheduler_name in self.policy.scheduler_names:
            self._join(task, pod)
        if task.shape.pod_anti_affinity:
            self.guards[uid] = task
        for _, name in task.claims:
            if name is not None:
                users = self.claim_users.setdefault((task.namespace, name), [])
                if uid not in users:
                    users.append(uid)
                    users.sort(key=lambda u: self.tasks[u].order if u in self.tasks else (0, 0, 0.0, u))
        if task.shape.share is not None and task.shape.share.memory:
            self._memory_shares.add(uid)
        if self.inventory is not None and task.gang is not None:
            try:
                task.implied = claim_for_pod(pod, self.inventory)
            except InvalidPodRequest as refused:
                task.blocked = task.blocked or str(refused)
        status, node_name = self._phase(task, pod)
        task.phase = status
        bind, eviction = self.binds.get(uid), self.evictions.get(uid)
        if bind is not None:
            if node_name or status not in (Status.PENDING, Status.GATED):
                del self.binds[uid]
            else:
                status, node_name = Status.BINDING, bind.node
        if eviction is not None:
            if status == Status.RELEASING or not ACTIVE[status]:
                del self.evictions[uid]
            else:
                status = Status.RELEASING
        node = self.nodes.get(node_name) if node_name else None
        if node_name and node is None:
            self._waiting_for_node.setdefault(node_name, set()).add(uid)
        devices: tuple[str, ...] = ()
        if node is not None and task.shape.share is not None and not node.by_claims and HOLDS_NOW[status]:
            devices = bind.gpu_groups if bind is not None else _shared_devices(pod, task.shape.share.devices)
        if status == Status.GATED and task.gang is not None:
            self.gated[uid] = task
        task.status = Status.FAILED  # counted nowhere: the move below is the first
        self.move(task, status, node, devices, charge=self.charge(task, node), zones=_numa_zones(pod))
        self.settle()

    def _phase(self, task: Task, pod: Pod) -> tuple[Status, str]:
        """The status the cluster reports, and the node."""
        node_name = pod.spec.node_name
        self._terminating.pop(task.uid, None)
        match pod.status.phase:
            case "Succeeded":
                return Status.SUCCEEDED, ""
            case "Failed":
                return Status.FAILED, ""
        if pod.metadata.deletion_timestamp:
            if not node_name and task.uid not in self.binds:
                return Status.FAILED, ""
            task.terminating_since = clock.parse(pod.metadata.deletion_timestamp)
            self._terminating[task.uid] = task
            return Status.RELEASING, node_name
        if node_name:
            return (Status.RUNNING if pod.status.phase == "Running" else Status.BOUND), node_name
        if not task.blocked:
            missing = next((name for name, claim in task.claims if claim is None), None)
            if missing is not None:
                task.blocked = f"resource claim {missing} is not generated yet"
        return (Status.GATED if task.blocked else Status.PENDING), ""

    def _detach(self, task: Task, *, keep_gang: bool) -> None:
        """Take a task out of every sum and list."""
        self.move(task, Status.FAILED, None, charge=NOTHING)
        self.settle()
        uid = task.uid
        self.guards.pop(uid, None)
        self.gated.pop(uid, None)
        self._terminating.pop(uid, None)
        self._memory_shares.discard(uid)
        for home in [home for home, waiting in self._waiting_for_node.items() if uid in waiting]:
            self._waiting_for_node[home].discard(uid)
            if not self._waiting_for_node[home]:
                del self._waiting_for_node[home]
        for _, name in task.claims:
            users = self.claim_users.get((task.namespace, name or ""))
            if users and uid in users:
                users.remove(uid)
                if not users:
                    del self.claim_users[(task.namespace, name or "")]
        if not keep_gang:
            self._drop_from_gang(task)

    def _drop_from_gang(self, task: Task) -> None:
        gang = task.gang
        if gang is None:
            return
        gang.tasks.pop(task.uid, None)
        if not gang.tasks and (gang.implicit or ("PodGroup", gang.key) not in self._sources):
            self._forget_gang(gang)

    def _forget_gang(self, gang: Gang) -> None:
        self.gangs.pop(gang.key, None)
        if gang.queue is not None:
            gang.queue.elastic.pop(gang.key, None)

    def _remove_task(self, uid: str) -> None:
        task = self.tasks.get(uid)
        if task is None:
            return
        self._detach(task, keep_gang=False)
        self.release_claims(task)
        del self.tasks[uid]
        self._pods.pop(uid, None)
        self.binds.pop(uid, None)
        self.evictions.pop(uid, None)
        if self._uids.get(task.key) == uid:
            del self._uids[task.key]

    # -- gangs -------------------------------------------------------------------------------------------------------

    def _gang_key(self, pod: Pod) -> Key | None:
        if pod.spec.scheduler_name not in self.policy.scheduler_names:
            return None
        group = pod.metadata.annotations.get(POD_GROUP_ANNOTATION, "")
        if not group and pod.spec.scheduling_group is not None:
            group = pod.spec.scheduling_group.pod_group_name
        if group:
            return (pod.metadata.namespace, group)
        if pod.spec.scheduler_name == SCHEDULER_NAME:
            return None  # the grouper has not seen it yet
        return (pod.metadata.namespace, f"pod/{pod.metadata.name}")

    def _join(self, task: Task, pod: Pod) -> None:
        key = self._gang_key(pod)
        if key is None:
            return
        gang = self.gangs.get(key)
        if gang is None:
            if key[1].startswith("pod/"):
                gang = implicit_gang(pod, self.priorities, self.policy.default_queue)
            else:
                gang = self._placeholder(key)
            self._add_gang(gang)
        self._seat(task, gang)

    def _seat(self, task: Task, gang: Gang) -> None:
        subgroup = task.labels.get(SUBGROUP_LABEL, "")
        leaf = gang.groups.get(subgroup)
        if leaf is None and not gang.root.children:
            leaf = gang.root  # a gang without subgroups takes every pod
        task.gang, task.group = gang, leaf
        gang.tasks[task.uid] = task
        if gang.queue is not None and (gang.root.children or len(gang.tasks) > gang.root.minimum):
            gang.queue.elastic[gang.key] = gang

    def _placeholder(self, key: Key) -> Gang:
        gang = build_gang(PodGroup(), self.priorities)
        gang.namespace, gang.name = key
        gang.error = f"pod group {key[1]} does not exist in namespace {key[0]}"
        return gang

    def _upsert_gang(self, obj: PodGroup) -> None:
        source = _encode((obj.spec, obj.metadata.annotations, obj.metadata.uid, obj.metadata.creation_timestamp))
        if self._sources.get(("PodGroup", obj.key)) == source:
            return
        self._sources[("PodGroup", obj.key)] = source
        gang = build_gang(obj, self.priorities)
        old = self.gangs.get(obj.key)
        if old is not None:
            gang.stale_since = gang.stale_since if gang.stale_since is not None else old.stale_since
            gang.last_start = gang.last_start if gang.last_start is not None else old.last_start
            self._replace_gang(old, gang)
        else:
            self._add_gang(gang)

    def _add_gang(self, gang: Gang) -> None:
        self.gangs[gang.key] = gang
        gang.queue = self._queue_of(gang)

    def _queue_of(self, gang: Gang) -> Queue:
        if not gang.queue_name and gang.implicit:
            return self.free_queue
        return self.queues.get(gang.queue_name, self.nowhere)

    def _replace_gang(self, old: Gang, new: Gang) -> None:
        tasks = sorted(old.tasks.values(), key=lambda task: task.order)
        for task in tasks:
            self._detach(task, keep_gang=True)
        self._forget_gang(old)
        self._add_gang(new)
        for task in tasks:
            task.gang = task.group = None
            self._attach(task, self._pods[task.uid])
        if not new.tasks and ("PodGroup", new.key) not in self._sources:
            self._forget_gang(new)

    def _regroup(self, concerned: object) -> None:
        """Rebuild the gangs that a changed priority class concerns."""
        assert callable(concerned)
        for gang in [gang for gang in self.gangs.values() if concerned(gang)]:
            priority = self.priorities.get(gang.priority_class, gang.priority)
            if priority == gang.priority:
                continue
            tasks = sorted(gang.tasks.values(), key=lambda task: task.order)
            for task in tasks:
                self._detach(task, keep_gang=True)
            gang.reprioritize(priority)
            for task in tasks:
                self._attach(task, self._pods[task.uid])

    # -- queues ------------------------------------------------------------------------------------------------------

    def _relink_queues(self) -> None:
        """Rebuild the queue tree and every sum over it."""
        self._relink = False
        self.roots = link(self.queues)
        for queue in (*self.queues.values(), self.free_queue, self.nowhere):
            queue.allocated, queue.fixed, queue.requested = [0, 0, 0], [0, 0, 0], [0, 0, 0]
            queue.pending, queue.active, queue.elastic = [], [], {}
        for gang in self.gangs.values():
            queue = gang.queue = self._queue_of(gang)
            if gang.root.children or len(gang.tasks) > gang.root.minimum:
                queue.elastic[gang.key] = gang
            if gang.pending:
                queue.pending.append((gang.order, gang))
            if gang.active:
                queue.active.append((gang.order, gang))
            allocated, requested = [0, 0, 0], [0, 0, 0]
            for task in gang.tasks.values():
                for i in range(3):
                    allocated[i] += task.charge[i] if ACTIVE[task.status] else 0
                    requested[i] += task.charge[i] if ACTIVE[task.status] or task.status == Status.PENDING else 0
            for level in queue.path():
                for i in range(3):
                    level.allocated[i] += allocated[i]
                    level.fixed[i] += 0 if gang.preemptible else allocated[i]
                    level.requested[i] += requested[i]
        for queue in (*self.queues.values(), self.free_queue, self.nowhere):
            queue.pending.sort(key=lambda pair: pair[0])
            queue.active.sort(key=lambda pair: pair[0])

    # -- nodes -------------------------------------------------------------------------------------------------------

    def _upsert_node(self, obj: ApiNode) -> None:
        name = obj.metadata.name
        source = _encode(
            (
                obj.metadata.labels,
                obj.metadata.annotations.get(NUMA_ANNOTATION, ""),
                obj.spec.taints,
                obj.spec.unschedulable,
                obj.status.allocatable,
                obj.ready,
            )
        )
        if self._sources.get(("Node", name)) == source:
            return
        tasks = self._lift(name)
        self._sources[("Node", name)] = source
        labels = {HOST_LABEL: name, **obj.metadata.labels}
        node = Node(
            name=name,
            labels=labels,
            node_class=self._node_class(labels, obj),
            capacity=[],
            idle=[],
            later=[],
            gpu_memory=_memory(labels),
            product=labels.get(GPU_PRODUCT_LABEL, ""),
        )
        columns = self.shapes.columns
        for resource, amount in obj.status.allocatable.items():
            column = self.shapes.column(resource)
            try:
                value = quantity.milli(amount) if resource == "cpu" else quantity.whole(amount)
            except quantity.InvalidQuantity:
                value = 0
            node.capacity.extend([0] * (len(columns) - len(node.capacity)))
            node.capacity[column] = max(0, value)
        node.capacity.extend([0] * (len(columns) - len(node.capacity)))
        self.widen()
        if "pods" not in obj.status.allocatable:
            node.capacity[PODS_COLUMN] = UNLIMITED_PODS
        node.idle, node.later = list(node.capacity), list(node.capacity)
        _read_numa(node, obj.metadata.annotations.get(NUMA_ANNOTATION, ""))
        self.nodes[name] = node
        if self.inventory is not None:
            self.inventory.upsert(obj)
        self._size_claim_columns(node)
        self._offer(node, self._quota_capacity(node))
        self._settle_on(node, tasks)

    def _lift(self, name: str) -> list[tuple[Task, Status, tuple[str, ...], tuple[str, ...]]]:
        """Take a node out, with the tasks on it."""
        node = self.nodes.pop(name, None)
        if node is None:
            return []
        self._offer(node, NOTHING)
        lifted = []
        for task in list(node.tasks.values()):
            lifted.append((task, task.status, task.devices, task.zones))
            self.move(task, task.status, None, charge=task.charge)
        self.settle()
        return lifted

    def _settle_on(self, node: Node, tasks: Iterable[tuple[Task, Status, tuple[str, ...], tuple[str, ...]]]) -> None:
        for task, status, devices, zones in tasks:
            self.move(task, status, node, devices, charge=self.charge(task, node), zones=zones)
        for uid in sorted(self._waiting_for_node.pop(node.name, ())):
            task = self.tasks[uid]
            pod = self._pods[uid]
            self._detach(task, keep_gang=True)
            self._attach(task, pod)
        self.layout += 1
        self.touched.clear()
        self.settle()

    def _remove_node(self, name: str) -> None:
        self._sources.pop(("Node", name), None)
        if self.inventory is not None:
            self.inventory.delete("Node", "", name)
        for task, *_ in self._lift(name):
            self._waiting_for_node.setdefault(name, set()).add(task.uid)
        self.layout += 1
        self.touched.clear()

    def _node_class(self, labels: dict[str, str], obj: ApiNode) -> NodeClass:
        shared = {key: value for key, value in labels.items() if key != HOST_LABEL}
        key = (tuple(sorted(shared.items())), _encode(obj.spec.taints), obj.spec.unschedulable, obj.ready)
        found = self.node_classes.get(key)
        if found is None:
            found = NodeClass(shared, obj.spec.taints, obj.spec.unschedulable, obj.ready)
            self.node_classes[key] = found
        return found

    def _offer(self, node: Node, amounts: Amounts) -> None:
        """Count what a node contributes to the cluster's total and which GPU memory sizes there are."""
        for i in range(3):
            self.total[i] += amounts[i] - node.offers[i]
        if node.offers[2]:
            self._memories[node.offers_memory] -= 1
        if amounts[2]:
            self._memories[node.gpu_memory] += 1
        node.offers, node.offers_memory = amounts, node.gpu_memory
        smallest = min((size for size, count in self._memories.items() if count and size), default=0)
        if smallest != self._min_gpu_memory:
            self._min_gpu_memory = smallest
            self._recharge(self._memory_shares)

    def _quota_capacity(self, node: Node) -> Amounts:
        if not node.node_class.ready:
            return NOTHING
        gpu = (node.capacity[GPU_COLUMN] or self._claimable_gpus(node)) * GPU
        for resource, column in self.shapes.columns.items():
            if column > GPU_COLUMN and column < len(node.capacity):
                gpu += mig_slices(resource) * node.capacity[column] * GPU
        return (node.capacity[0], node.capacity[1], gpu)

    def _claimable_gpus(self, node: Node) -> int:
        """Devices that only claims can reach."""
        if self.inventory is None:
            return 0
        names = sorted(name for name in self._gpu_classes() if name in self.inventory.classes)
        return max((self.inventory.capacity(node.name, name) for name in names), default=0)

    def widen(self) -> None:
        """Give every node all columns that shapes know; new ones are empty unless claims back the resource."""
        width = len(self.shapes.columns)
        if width == self._width:
            return
        self._width = width
        for node in self.nodes.values():
            missing = width - len(node.capacity)
            for columns in (node.capacity, node.idle, node.later):
                columns.extend([0] * missing)
        self._refresh_claim_columns()

    # -- claims ------------------------------------------------------------------------------------------------------

    def _inventory_upsert(self, obj: ResourceClaim | ResourceSlice | DeviceClass | DeviceTaintRule) -> None:
        if self.inventory is None:
            return
        self.inventory.upsert(obj)
        if isinstance(obj, ResourceSlice):
            if obj.spec.node_name:
                self._slice_memory[obj.spec.node_name] = _largest_memory(obj)
                self._refresh_claim_columns(obj.spec.node_name)
            else:
                self._refresh_claim_columns()
        elif isinstance(obj, DeviceClass | DeviceTaintRule):
            self._refresh_claim_columns()

    def _refresh_claim_columns(self, only: str | None = None) -> None:
        concerned = self.nodes.values() if only is None else [self.nodes[only]] if only in self.nodes else []
        for node in concerned:
            self._size_claim_columns(node)
            self._offer(node, self._quota_capacity(node))
        self.layout += 1

    def _size_claim_columns(self, node: Node) -> None:
        """Extended resources that no device plugin offers on the node are those of its ResourceSlices."""
        if self.inventory is None:
            return
        for resource, column in self.shapes.columns.items():
            if column < GPU_COLUMN or column >= len(node.capacity):
                continue
            if node.capacity[column] and column not in node.claim_columns:
                continue
            device_class = self.inventory.class_for_extended_resource(resource)
            capacity = self.inventory.capacity(node.name, device_class) if device_class else 0
            difference = capacity - node.capacity[column]
            if difference or capacity:
                node.claim_columns.add(column)
            for columns in (node.capacity, node.idle, node.later):
                columns[column] += difference
        node.by_claims = GPU_COLUMN in node.claim_columns
        if node.by_claims and not node.labels.get(GPU_MEMORY_LABEL):
            node.gpu_memory = self._slice_memory.get(node.name, 0)

    def _claimed_gpus(self, task: Task) -> int:
        """GPU quota of the claims a task uses by name; a shared claim is charged to its oldest user only."""
        total = 0
        for _, name in task.claims:
            key = (task.namespace, name or "")
            claim = self.claims.get(key)
            if claim is None or self.claim_users.get(key, [task.uid])[0] != task.uid:
                continue
            total += self.claims_gpus(claim)
        return total * GPU

    def claims_gpus(self, claim: ResourceClaim) -> int:
        """GPUs that a claim holds, or asks for while it is not allocated."""
        allocation = claim.status.allocation
        if allocation is not None:
            results = allocation.devices.results
            return sum(r.driver in self.policy.gpu_drivers and not r.admin_access for r in results)
        total = 0
        for request in claim.spec.devices.requests:
            exact = request.exactly or (request.first_available[0] if request.first_available else None)
            if exact is not None and exact.device_class_name in self._gpu_classes():
                total += exact.count if exact.allocation_mode == "ExactCount" else 1
        return total

    def _gpu_classes(self) -> set[str]:
        """Device classes that offer GPUs: the one behind nvidia.com/gpu, and those named like a GPU driver."""
        backs = self.inventory.class_for_extended_resource(GPU_RESOURCE) if self.inventory is not None else None
        return {*self.policy.gpu_drivers, *([backs] if backs else [])}

    def _recharge(self, uids: Iterable[str]) -> None:
        """Charge tasks anew after something their cost depends on has changed."""
        for uid in sorted(uids):
            task = self.tasks[uid]
            charge = self.charge(task, task.node)
            if charge != task.charge:
                self.move(task, task.status, task.node, task.devices, leaving=task.leaving, charge=charge)
        self.settle()


NUMA_ANNOTATION = "platform.capstan.dev/numa"


class _NumaReport(msgspec.Struct):
    policy: str = "none"
    scope: str = "container"
    zones: dict[str, dict[str, str]] = {}


def _read_numa(node: Node, text: str) -> None:
    if not text:
        return
    try:
        report = msgspec.json.decode(text, type=_NumaReport)
    except msgspec.MsgspecError:
        return  # an unreadable report is no report: the node then aligns nothing, as before it was written
    node.numa_policy, node.numa_scope = report.policy, report.scope
    node.zones = [
        Zone(
            name,
            {
                resource: quantity.milli(amount) if resource == "cpu" else quantity.whole(amount)
                for resource, amount in amounts.items()
            },
        )
        for name, amounts in sorted(report.zones.items())
    ]


def _numa_zones(pod: Pod) -> tuple[str, ...]:
    text = pod.metadata.annotations.get(NUMA_ANNOTATION, "")
    return tuple(text.split(",")) if text else ()


def _shared_devices(pod: Pod, count: int) -> tuple[str, ...]:
    """The shared devices a pod runs on: KAI's group labels (`runai-gpu-group`, or one label a group)."""
    labels = pod.metadata.labels
    several = sorted(key.partition("/")[2] for key in labels if key.startswith(GPU_GROUP_LABEL + "/"))
    if several:
        return tuple(several[:count])
    single = labels.get(GPU_GROUP_LABEL) or pod.metadata.annotations.get(GPU_GROUP_LABEL)
    return (single,) if single else tuple(f"{pod.metadata.name}-{i}" for i in range(count))


def _claim_names(pod: Pod) -> tuple[tuple[str, str | None], ...]:
    generated = {status.name: status.resource_claim_name for status in pod.status.resource_claim_statuses}
    return tuple(
        (claim.name, claim.resource_claim_name or generated.get(claim.name)) for claim in pod.spec.resource_claims
    )


def _role(labels: dict[str, str]) -> int:
    """Leaders of a distributed job are placed before its workers."""
    role = labels.get("training.kubeflow.org/job-role") or labels.get("training.kubeflow.org/replica-type", "")
    leads = role.lower() in ("master", "launcher") or labels.get("ray.io/node-type") == "head"
    return 0 if leads else 1


def _memory(labels: dict[str, str]) -> int:
    text = labels.get(GPU_MEMORY_LABEL, "")
    return int(text) if text.isascii() and text.isdigit() and int(text) > 0 else 0


def _largest_memory(slice_: ResourceSlice) -> int:
    """MiB of the largest device of a slice."""
    amounts = [
        quantity.whole(capacity.value)
        for device in slice_.spec.devices
        for name, capacity in device.capacity.items()
        if name.rpartition("/")[2] == "memory"
    ]
    return max(amounts, default=0) >> 20


_encode = msgspec.msgpack.Encoder(order="deterministic").encode
