"""The cluster as the engine sees it, kept up to date object by object.

`upsert` and `delete` take API objects as a watch delivers them, in any order: what refers to something unknown waits
for it. `capstan.scheduling.cycle` speculates on the World through the journal and leaves its decisions in it as assumed
until the cluster confirms them (`upsert` of the pod) or `forget` takes them back.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import replace
from operator import add, sub

import msgspec

from capstan.allocation import InvalidPodRequest, Inventory, claim_for_pod
from capstan.api import clock
from capstan.api.core import Namespace, PersistentVolume, PersistentVolumeClaim, Pod, Toleration
from capstan.api.core import Node as ApiNode
from capstan.api.policy import PodDisruptionBudget
from capstan.api.resource import (
    DeviceClass,
    DeviceTaintRule,
    ResourceClaim,
    ResourceClaimTemplate,
    ResourceSlice,
)
from capstan.api.scheduling import (
    POD_GROUP_ANNOTATION,
    PRIORITY_CLASSES,
    SUBGROUP_LABEL,
    TASK_PRIORITY_LABEL,
    USER_LABEL,
    BindRequest,
    PodGroup,
    PriorityClass,
    RuntimeClass,
    Topology,
)
from capstan.api.scheduling import Queue as ApiQueue
from capstan.api.storage import StorageClass
from capstan.scheduling.budgets import Budgets
from capstan.scheduling.facts import (
    NUMA_ANNOTATION,
    claim_names,
    encode,
    finished,
    numa_zones,
    reads_alike,
    role,
    shared_devices,
)
from capstan.scheduling.fair_share import set_fair_shares
from capstan.scheduling.gangs import build_gang, implicit_gang
from capstan.scheduling.handoffs import Handoffs
from capstan.scheduling.holdings import Holdings, Key, Mark
from capstan.scheduling.model import (
    ACTIVE,
    FIRST_PRODUCT,
    HOLDS_NOW,
    NOTHING,
    UNBOUNDED,
    Gang,
    Node,
    Queue,
    Shape,
    Status,
    Task,
    Zones,
)
from capstan.scheduling.plan import Bind, Eviction, Plan
from capstan.scheduling.policy import Policy
from capstan.scheduling.pools import Membership
from capstan.scheduling.queues import QueueStatus, link, parse_queue, resources_of, status_of
from capstan.scheduling.reservations import Reservation
from capstan.scheduling.runtimes import History, declared, max_runtime, run_key, started

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

_SHARING_OFF = "GPU sharing is switched off in this cluster (Config spec.admission.gpuSharing); ask for whole GPUs"


class World(Holdings):
    """Nodes, tasks, gangs and queues, with every sum over them.

    `inventory` holds the devices that are allocated by claims; without one, claims cannot be satisfied. `policy` says
    which pods this engine owns.
    """

    def __init__(self, inventory: Inventory | None = None, policy: Policy | None = None) -> None:
        super().__init__(inventory, policy or Policy())
        self.gangs: dict[Key, Gang] = {}
        self.queues: dict[str, Queue] = {}
        self.roots: list[Queue] = []
        self.free_queue = Queue("", "", 0, 0.0, UNBOUNDED)
        """Where pods without any queue go: no bounds, no part in fair shares, no victims of reclaim."""
        self.nowhere = Queue("", "", 0, 0.0, UNBOUNDED, flaw="does not exist")
        """Stands in for every queue that is named and does not exist."""
        self.gated: dict[str, Task] = {}
        self.stale: dict[Gang, None] = {}
        """Gangs that run below their minimum."""
        self.timed: dict[Gang, float] = {}
        """Gangs of which a run time is declared, in seconds."""
        self.limited: dict[Gang, float] = {}
        """Gangs that have a max runtime, in seconds."""
        self.next_requeue = 0.0
        """Before this time none of them has run too long."""
        self.history = History()
        self.budgets = Budgets()
        self.usage: Mapping[str, Mapping[str, float]] = {}
        """Queue -> resource -> part of the capacity it used of late, as `Usage.shares` gives it; empty: no account."""
        self.memo: object = None
        """Indexes that the placement keeps from cycle to cycle."""
        self.priorities: dict[str, int] = dict(PRIORITY_CLASSES)
        self.topologies: dict[str, tuple[str, ...]] = {}
        self.runtime_classes: dict[str, RuntimeClass] = {}
        self.volumes: dict[str, PersistentVolume] = {}
        self.volume_claims: dict[Key, PersistentVolumeClaim] = {}
        self.storage_classes: dict[str, StorageClass] = {}
        self.namespaces: dict[str, dict[str, str]] = {}
        """Namespace -> labels."""
        self.volume_users: dict[str, None] = {}
        """Tasks with PersistentVolumeClaims."""
        self.binds: dict[str, Bind] = {}
        """uid -> decided and not yet confirmed by the cluster."""
        self.evictions: dict[str, Eviction] = {}
        self.handoffs = Handoffs(self.policy.handoff_patience)
        self.guards: dict[str, Task] = {}
        """Tasks whose required anti-affinity keeps others away."""
        self._members = Membership(self.policy)
        self._uids: dict[Key, str] = {}
        self._pods: dict[str, Pod] = {}
        self._sources: dict[object, bytes] = {}
        self._waiting_for_node: dict[str, set[str]] = {}
        self._awaited: dict[str, str] = {}
        """uid -> the node, unknown here, that the pod is on."""
        self._relink = False
        self._charged_layout = 0
        """The layout for which GPUs were charged by product."""
        self._implied: dict[Key, str] = {}
        """Claim made for a pod's extended resources or share -> uid of the task."""
        self._terminating: dict[str, Task] = {}
        self._memory_shares: set[str] = set()
        self._promised: list[str] = []
        self._begun = 0.0
        """When the last cycle began."""
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
                else:
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
                self.topologies[obj.metadata.name] = tuple(level.node_label for level in obj.spec.levels)
            case RuntimeClass():
                self.runtime_classes[obj.metadata.name] = obj
                self._reshape(obj.metadata.name)
            case Namespace():
                self.namespaces[obj.metadata.name] = obj.metadata.labels
            case StorageClass():
                self.storage_classes[obj.metadata.name] = obj
            case PersistentVolume():
                self.volumes[obj.metadata.name] = obj
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
                    self._remove_task(uid)
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
                    if kind == "DeviceClass":
                        self._claim_anew()

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
            allocations = dict(bind.claims)
            if bind.implied is not None:
                allocations[bind.implied.claim.key] = bind.implied.allocation
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

    def _hand_off(self, pods: Iterable[Key]) -> None:
        """Judge pods anew whose BindRequests have come, changed or gone."""
        for key in sorted(pods):
            task = self.task_of(*key)
            if task is not None and task.uid not in self.binds:
                self.release_claims(task)
                self._attach_anew(task)

    def _handed_off(self, task: Task, pod: Pod) -> Bind | None:
        """What KAI has decided about a waiting pod; its claims count as allocated. None while the node is unknown."""
        found = self.handoffs.of(pod)
        if found is None:
            return None
        bind, extended = found
        if bind.node not in self.nodes:
            self._await(bind.node, task.uid)
            return None
        allocations = {key: result for key, result in bind.claims.items() if key in self.claims}
        if extended is not None and task.implied is not None:
            allocations[task.implied.key] = extended
        if self.inventory is not None:
            for key, allocation in allocations.items():
                if self.inventory.allocation(key) is None:
                    self.inventory.assume(key, allocation)
                    task.held = (*task.held, key)
        return bind

    def _attach_anew(self, task: Task) -> None:
        self._detach(task, keep_gang=True)
        self._attach(task, self._pods[task.uid])

    def forget(self, uid: str) -> None:
        """Take back an assumed bind or eviction whose API write failed."""
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

    # -- the cycle's two ends ------------------------------------------------------------------------------------------

    def begin(self, now: float) -> None:
        """Drop the promises of the last cycle and bring everything up to date."""
        self._begun = now
        for uid in self._promised:
            task = self.tasks.get(uid)
            if task is not None:
                self._break_promise(task)
        self._promised.clear()
        self.refresh(now)
        if len(self.touched) > 100_000:
            self.touched.clear()
            self.layout += 1

    def _break_promise(self, task: Task) -> None:
        """A promised task waits again, or terminates where it still is."""
        if task.status != Status.PIPELINED:
            return
        place = task.leaving
        if place is not None:
            self.move(task, Status.RELEASING, place[0], place[1], charge=self.charge(task, place[0]))
        else:
            self.move(task, Status.PENDING, None, charge=self.charge(task, None))

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
        if self.products and self._charged_layout != self.layout:
            self._recharge_products()
        self._hand_off(self.handoffs.expire(now))
        for task in self._terminating.values():
            stuck = now > task.terminating_since + self.policy.stuck_after
            status = Status.STUCK if stuck else Status.RELEASING
            if task.status in (Status.RELEASING, Status.STUCK) and task.status != status:
                self.move(task, status, task.node, task.devices, zones=task.zones)
        self.settle()

    def share_out(self, policy: Policy) -> None:
        """Set the fair shares of all queues over what pods of others and pods without a queue leave."""
        rest = map(sub, map(sub, self.total, self.foreign), self.free_queue.allocated)
        set_fair_shares(self.roots, tuple(rest), self.usage, policy.k_value)

    def queue_status(self) -> dict[str, QueueStatus]:
        """What every queue holds, asks for and is entitled to, by name."""
        if self._relink:
            self._relink_queues()
        self.share_out(self.policy)
        return {name: status_of(queue, self.total) for name, queue in sorted(self.queues.items())}

    # -- pods --------------------------------------------------------------------------------------------------------

    def _upsert_pod(self, pod: Pod) -> None:
        uid = pod.metadata.uid or f"{pod.metadata.namespace}/{pod.metadata.name}"
        shape = self.shapes.of(self._with_runtime_class(pod))
        self.widen()
        known = self._uids.get(pod.key)
        if known is not None and known != uid:
            self._remove_task(known)
        if uid in self.tasks:
            self._detach(self.tasks[uid], keep_gang=True)
        self._uids[pod.key] = uid
        self._pods[uid] = pod
        task = self._task(pod, uid, shape)
        before = self.tasks.get(uid)
        if before is not None:
            task.held = before.held
            task.volume_choices = before.volume_choices
            key = self._gang_key(pod)
            if before.gang is not None and (before.gang.key != key or not self._members.admits(key, pod)):
                self._drop_from_gang(before)
        self.tasks[uid] = task
        self._attach(task, pod)
        if task.phase == Status.SUCCEEDED and before is not None and before.phase == Status.RUNNING and task.gang:
            self._learn(task.gang, pod)

    def _with_runtime_class(self, pod: Pod) -> Pod:
        """The pod with what its RuntimeClass adds (overhead, node selector, tolerations) if admission did not."""
        found = self.runtime_classes.get(pod.spec.runtime_class_name or "")
        if found is None:
            return pod
        spec = pod.spec
        overhead = spec.overhead or (found.overhead.pod_fixed if found.overhead is not None else {})
        selector, tolerations = spec.node_selector, spec.tolerations
        if found.scheduling is not None:
            selector = {**found.scheduling.node_selector, **selector}
            more = msgspec.convert(found.scheduling.tolerations, list[Toleration])
            tolerations = [*tolerations, *(entry for entry in more if entry not in tolerations)]
        changed = msgspec.structs.replace(spec, overhead=overhead, node_selector=selector, tolerations=tolerations)
        return msgspec.structs.replace(pod, spec=changed)

    def _reshape(self, runtime_class: str) -> None:
        """Judge the pods of a runtime class anew."""
        for pod in [pod for pod in self._pods.values() if pod.spec.runtime_class_name == runtime_class]:
            self._upsert_pod(pod)

    def _task(self, pod: Pod, uid: str, shape: Shape) -> Task:
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
            shape=shape,
            order=(-priority, role(labels), clock.parse(meta.creation_timestamp), uid),
            labels=labels,
            claims=claim_names(pod),
            volumes=tuple(
                v.persistent_volume_claim.claim_name if v.persistent_volume_claim else f"{meta.name}-{v.name}"
                for v in spec.volumes
                if v.persistent_volume_claim or v.ephemeral
            ),
            error=shape.error or (_SHARING_OFF if shape.share is not None and not self.policy.gpu_sharing else ""),
            blocked=", ".join(gate.name for gate in spec.scheduling_gates),
            nominated=pod.status.nominated_node_name,
            started=clock.parse(pod.status.start_time),
            deadline=float(spec.active_deadline_seconds or 0),
        )

    def _attach(self, task: Task, pod: Pod) -> None:
        """Give a new or changed task its gang, its status and its place."""
        uid = task.uid
        if pod.spec.scheduler_name in self.policy.scheduler_names:
            self._join(task, pod)
        if task.shape.pod_anti_affinity:
            self.guards[uid] = task
        if task.volumes:
            self.volume_users[uid] = None
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
                task.error = str(refused)
            if task.implied is not None:
                self._implied[task.implied.key] = uid
        status, node_name = self._phase(task, pod)
        task.phase = status
        bind, eviction = self.binds.get(uid), self.evictions.get(uid)
        if bind is None and status == Status.PENDING:
            bind = self._handed_off(task, pod)
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
            self._await(node_name, uid)
        devices: tuple[str, ...] = ()
        if node is not None and task.shape.share is not None and not node.by_claims and HOLDS_NOW[status]:
            devices = bind.gpu_groups if bind is not None else shared_devices(pod, task.shape.share.devices)
        if status == Status.GATED and task.gang is not None:
            self.gated[uid] = task
        task.status = Status.FAILED  # counted nowhere: the move below is the first
        zones = bind.zones if bind is not None and status == Status.BINDING else numa_zones(pod)
        self.move(task, status, node, devices, charge=self.charge(task, node), zones=zones)
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

    def _learn(self, gang: Gang, pod: Pod) -> None:
        """Remember how long a gang ran, when the last of its pods has succeeded."""
        if any(task.phase != Status.SUCCEEDED for task in gang.tasks.values()):
            return
        ended, since, key = finished(pod), started(gang), run_key(gang)
        if since is not None and key is not None and ended > since:
            self.history.note(key, ended - since)

    def _detach(self, task: Task, *, keep_gang: bool) -> None:
        """Take a task out of every sum and list."""
        self.move(task, Status.FAILED, None, charge=NOTHING)
        self.settle()
        uid = task.uid
        self.guards.pop(uid, None)
        self.volume_users.pop(uid, None)
        self.gated.pop(uid, None)
        self._terminating.pop(uid, None)
        self._memory_shares.discard(uid)
        if task.implied is not None:
            self._implied.pop(task.implied.key, None)
        key = self._gang_key(self._pods[uid]) if task.gang is None else None
        if key is not None:
            self._members.take_up(key, uid)
        home = self._awaited.pop(uid, "")
        waiting = self._waiting_for_node.get(home)
        if waiting is not None:
            waiting.discard(uid)
            if not waiting:
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
        self.timed.pop(gang, None)
        self.limited.pop(gang, None)
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
        if pod.spec.scheduler_name == self.policy.grouped_scheduler:
            return None  # the grouper has not seen it yet
        return (pod.metadata.namespace, f"pod/{pod.metadata.name}")

    def _join(self, task: Task, pod: Pod) -> None:
        key = self._gang_key(pod)
        if key is None:
            return
        if not self._members.admits(key, pod):
            self._members.set_aside(key, task.uid)
            return
        gang = self.gangs.get(key)
        if gang is None:
            if key[1].startswith("pod/"):
                gang = implicit_gang(pod, self.priorities, self.policy)
            elif key[1].endswith(f"-{task.uid}"):
                # A gang of its own, whose PodGroup the grouper is about to write.
                self._members.set_aside(key, task.uid)
                return
            else:
                gang = self._placeholder(key)
            self._add_gang(gang)
        self._seat(task, gang)

    def _seat(self, task: Task, gang: Gang) -> None:
        subgroup = task.labels.get(SUBGROUP_LABEL, "")
        leaf = gang.groups.get(subgroup)
        if leaf is None and not gang.root.children:
            leaf = gang.root  # a gang without subgroups takes every pod
        task.gang, task.group, task.user = gang, leaf, gang.user or task.labels.get(USER_LABEL, "")
        gang.tasks[task.uid] = task
        if task.deadline or gang in self.timed:
            self._time(gang)
        if gang.queue is not None and (gang.root.children or len(gang.tasks) > gang.root.minimum):
            gang.queue.elastic[gang.key] = gang

    def _placeholder(self, key: Key) -> Gang:
        gang = build_gang(PodGroup(), self.priorities)
        gang.namespace, gang.name = key
        gang.error = f"its PodGroup {key[0]}/{key[1]} does not exist"
        return gang

    def _upsert_gang(self, obj: PodGroup) -> None:
        meta = obj.metadata
        source = encode((obj.spec, meta.labels, meta.annotations, meta.uid, meta.creation_timestamp))
        if self._sources.get(("PodGroup", obj.key)) == source:
            return
        self._sources[("PodGroup", obj.key)] = source
        old = self.gangs.get(obj.key)
        if not self._members.place_group(obj.key, meta.labels):
            if old is not None:
                self._forget_gang(old)
                self._seat_again([task.uid for task in sorted(old.tasks.values(), key=lambda task: task.order)])
            return
        gang = build_gang(obj, self.priorities, self.policy.queue_label)
        if old is not None:
            gang.stale_since = gang.stale_since if gang.stale_since is not None else old.stale_since
            gang.last_start = gang.last_start if gang.last_start is not None else old.last_start
            if gang.requeue_not_before is None:
                gang.requeue_not_before = old.requeue_not_before
            self._replace_gang(old, gang)
        else:
            self._add_gang(gang)
        self._seat_again(self._members.take_up(obj.key))

    def _seat_again(self, uids: Iterable[str]) -> None:
        """Pods whose gang came to this shard, left it, or is unknown now."""
        for uid in uids:
            task = self.tasks[uid]
            self._detach(task, keep_gang=True)
            task.gang = task.group = None
            self._attach(task, self._pods[uid])

    def _add_gang(self, gang: Gang) -> None:
        self.gangs[gang.key] = gang
        gang.queue = self._queue_of(gang)
        self._time(gang)

    def _time(self, gang: Gang) -> None:
        seconds, longest = declared(gang), max_runtime(gang)
        if seconds is None:
            self.timed.pop(gang, None)
        else:
            self.timed[gang] = seconds
        if longest is None:
            self.limited.pop(gang, None)
        else:
            self.limited[gang] = longest
            self.next_requeue = min(self.next_requeue, (started(gang) or self._begun) + longest)

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
        self.settle()
        resources = resources_of(self.queues)
        if resources != self.resources:
            self.divide_by(resources)
            self._charge_products()
        self.roots = link(self.queues, resources)
        self.free_queue.measure(resources)
        self.nowhere.measure(resources)
        for queue in (*self.queues.values(), self.free_queue, self.nowhere):
            queue.pending, queue.active, queue.elastic = [], [], {}
        for gang in self.gangs.values():
            queue = gang.queue = self._queue_of(gang)
            self._time(gang)
            if gang.root.children or len(gang.tasks) > gang.root.minimum:
                queue.elastic[gang.key] = gang
            if gang.pending:
                queue.pending.append((gang.order, gang))
            if gang.active:
                queue.active.append((gang.order, gang))
            allocated, requested = list(self.nothing), list(self.nothing)
            for task in gang.tasks.values():
                if ACTIVE[task.status]:
                    allocated[:] = map(add, allocated, task.charge)
                    if queue.users is not None:
                        own = queue.users.setdefault(task.user, list(self.nothing))
                        own[:] = map(add, own, task.charge)
                if ACTIVE[task.status] or task.status == Status.PENDING:
                    requested[:] = map(add, requested, task.charge)
            if gang.semi:
                gang.core_charge = self.core_charge(gang)
            fixed = self.nothing if gang.preemptible else gang.core_charge if gang.semi else allocated
            for level in queue.path():
                level.allocated[:] = map(add, level.allocated, allocated)
                level.fixed[:] = map(add, level.fixed, fixed)
                level.requested[:] = map(add, level.requested, requested)
        for queue in (*self.queues.values(), self.free_queue, self.nowhere):
            queue.pending.sort(key=lambda pair: pair[0])
            queue.active.sort(key=lambda pair: pair[0])

    def _charge_products(self) -> None:
        """Charge all tasks by the GPU products that queues name now; the sums over queues are rebuilt after it."""
        self._seen_products()
        self.foreign[:] = self.nothing
        for task in self.tasks.values():
            task.charge = (*task.charge[:FIRST_PRODUCT], *self.charge(task, task.node)[FIRST_PRODUCT:])
            if task.gang is None and task.node is not None and HOLDS_NOW[task.status]:
                self.foreign[:] = map(add, self.foreign, task.charge)

    def _recharge_products(self) -> None:
        """Charge tasks anew whose GPU product may be another one since nodes, slices or classes changed."""
        concerned = {*self.gated, *self._awaited, *self._implied.values()}
        for queue in (*self.queues.values(), self.free_queue, self.nowhere):
            for _, gang in queue.pending:
                concerned.update(task.uid for leaf in gang.root.leaves() for _, task in leaf.pending)
        for users in self.claim_users.values():
            concerned.update(users)
        for name in self.renamed & self.nodes.keys():
            concerned.update(self.nodes[name].tasks)
        self._seen_products()
        self._recharge(concerned)

    def _seen_products(self) -> None:
        self.certain.clear()
        self.renamed.clear()
        self._charged_layout = self.layout

    # -- nodes -------------------------------------------------------------------------------------------------------

    def _upsert_node(self, obj: ApiNode) -> None:
        name = obj.metadata.name
        if not self.policy.serves(obj.metadata.labels):
            self._remove_node(name)
            return
        source = encode(
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
        before = self.min_gpu_memory()
        node = self.put_node(obj)
        if before != self.min_gpu_memory():
            self._recharge(self._memory_shares)
        self._settle_on(node, tasks)

    def _lift(self, name: str) -> list[tuple[Task, Status, tuple[str, ...], Zones]]:
        """Take a node out, with the tasks on it."""
        node = self.take_node(name)
        if node is None:
            return []
        for task in list(node.tasks.values()):
            self._break_promise(task)
        lifted = []
        for task in list(node.tasks.values()):
            lifted.append((task, task.status, task.devices, task.zones))
            self.move(task, task.status, None, charge=task.charge)
        self.settle()
        return lifted

    def _settle_on(self, node: Node, tasks: Iterable[tuple[Task, Status, tuple[str, ...], Zones]]) -> None:
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
            self._await(name, task.uid)
            if task.status == Status.BINDING:
                self._hand_off([task.key])
        self.layout += 1
        self.touched.clear()

    def _await(self, node: str, uid: str) -> None:
        self._waiting_for_node.setdefault(node, set()).add(uid)
        self._awaited[uid] = node

    # -- claims ------------------------------------------------------------------------------------------------------

    def _inventory_upsert(self, obj: ResourceClaim | ResourceSlice | DeviceClass | DeviceTaintRule) -> None:
        if self.inventory is None:
            return
        self.inventory.upsert(obj)
        if not isinstance(obj, ResourceClaim):
            before = self.min_gpu_memory()
            self.slices_changed(obj if isinstance(obj, ResourceSlice) else None)
            if isinstance(obj, DeviceClass):
                self._claim_anew()
            if before != self.min_gpu_memory():
                self._recharge(self._memory_shares)

    def _claim_anew(self) -> None:
        """What waiting pods ask for in extended resources may be claims now, or be so no longer."""
        for pod in [self._pods[task.uid] for task in self.tasks.values() if task.node is None]:
            self._upsert_pod(pod)

    def _users(self, claim: Key) -> list[str]:
        implied = self._implied.get(claim)
        return [*self.claim_users.get(claim, ()), *([implied] if implied is not None else [])]

    def _recharge(self, uids: Iterable[str]) -> None:
        """Charge tasks anew after something their cost depends on has changed."""
        for uid in sorted(uids):
            self.reprice(self.tasks[uid])
        self.settle()
