"""Pods in their gangs and on their nodes: what is counted anew when one of them comes, changes or goes."""

from __future__ import annotations

from collections.abc import Callable, Iterable

import msgspec

from capstan.allocation import InvalidPodRequest, Inventory, claim_for_pod
from capstan.api import clock
from capstan.api.core import Node as ApiNode
from capstan.api.core import Pod, Toleration
from capstan.api.scheduling import TASK_PRIORITY_LABEL, PodGroup, RuntimeClass
from capstan.scheduling.amounts import NOTHING
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
from capstan.scheduling.gangs import build_gang
from capstan.scheduling.handoffs import Handoffs
from capstan.scheduling.holdings import Key
from capstan.scheduling.model import ACTIVE, HOLDS_NOW, Gang, Node, Status, Task, Zones
from capstan.scheduling.plan import Bind, Eviction
from capstan.scheduling.policy import Policy
from capstan.scheduling.runtimes import History, run_key, started
from capstan.scheduling.shape import Shape
from capstan.scheduling.tenancy import Tenancy

_SHARING_OFF = "GPU sharing is switched off in this cluster (Config spec.admission.gpuSharing); ask for whole GPUs"


class Population(Tenancy):
    """Tasks with all that they belong to; what refers to something unknown waits for it."""

    def __init__(self, inventory: Inventory | None, policy: Policy) -> None:
        super().__init__(inventory, policy)
        self.gated: dict[str, Task] = {}
        self.strays: dict[str, Task] = {}
        """Tasks that wait and belong to no subgroup of their gang."""
        self.history = History()
        self.runtime_classes: dict[str, RuntimeClass] = {}
        self.binds: dict[str, Bind] = {}
        """uid -> decided and not yet confirmed by the cluster."""
        self.evictions: dict[str, Eviction] = {}
        self.handoffs = Handoffs(self.policy.handoff_patience)
        self.guards: dict[str, Task] = {}
        """Tasks whose required anti-affinity keeps others away."""
        self.volume_users: dict[Key, dict[str, None]] = {}
        """PersistentVolumeClaim -> uids of the tasks that use it."""
        self._uids: dict[Key, str] = {}
        self._pods: dict[str, Pod] = {}
        self._waiting_for_node: dict[str, set[str]] = {}
        self._awaited: dict[str, str] = {}
        """uid -> the node, unknown here, that the pod is on."""
        self._implied: dict[Key, str] = {}
        """Claim made for a pod's extended resources or share -> uid of the task."""
        self._terminating: dict[str, Task] = {}
        self._memory_shares: set[str] = set()

    # -- pods --------------------------------------------------------------------------------------------------------

    def pod(self, uid: str) -> Pod:
        """The pod as it arrived last. Raises KeyError for an unknown UID."""
        return self._pods[uid]

    def task_of(self, namespace: str, pod: str) -> Task | None:
        return self.tasks.get(self._uids.get((namespace, pod), ""))

    def _upsert_pod(self, pod: Pod) -> None:
        uid = pod.metadata.uid or f"{pod.metadata.namespace}/{pod.metadata.name}"
        shape = self.shapes.of(self._with_runtime_class(pod))
        self.widen()
        known = self._uids.get(pod.key)
        if known is not None and known != uid:
            self._end_task(known)
        home = None
        if uid in self.tasks:
            home = self.tasks[uid].node
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
        if home is not None and task.phase in (Status.SUCCEEDED, Status.FAILED):
            self.vacate(task, home)
        if task.phase == Status.SUCCEEDED and before is not None and before.phase == Status.RUNNING and task.gang:
            self._learn(task.gang, pod)

    def _confirm(self, before: Pod, after: Pod) -> bool:
        """Take in that a pod was bound as decided. False where anything else changed: then it is attached anew."""
        uid = after.metadata.uid
        bind, task = self.binds.get(uid), self.tasks.get(uid)
        if (
            bind is None
            or task is None
            or task.status != Status.BINDING
            or task.devices
            or task.zones != numa_zones(after)
            or after.spec.node_name != bind.node
        ):
            return False
        spec = msgspec.structs.replace(before.spec, node_name=bind.node)
        if not reads_alike(msgspec.structs.replace(before, spec=spec), after):
            return False
        del self.binds[uid]
        self._pods[uid] = after
        task.phase = Status.BOUND
        self.rename(task, Status.BOUND)
        if task.gang is not None:
            self.changed[task.gang] = None
        return True

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
        for volume in task.volumes:
            self.volume_users.setdefault((task.namespace, volume), {})[uid] = None
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
        if status == Status.PENDING and task.gang is not None and task.group is None:
            self.strays[uid] = task
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

    def _await(self, node: str, uid: str) -> None:
        self._waiting_for_node.setdefault(node, set()).add(uid)
        self._awaited[uid] = node

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
        for volume in task.volumes:
            having = self.volume_users.get((task.namespace, volume))
            if having is not None:
                having.pop(uid, None)
                if not having:
                    del self.volume_users[task.namespace, volume]
        self.gated.pop(uid, None)
        self.strays.pop(uid, None)
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

    def _attach_anew(self, task: Task) -> None:
        self._detach(task, keep_gang=True)
        self._attach(task, self._pods[task.uid])

    def _hand_off(self, pods: Iterable[Key]) -> None:
        """Judge pods anew whose BindRequests have come, changed or gone."""
        for key in sorted(pods):
            task = self.task_of(*key)
            if task is not None and task.uid not in self.binds:
                self.release_claims(task)
                self._attach_anew(task)

    def _end_task(self, uid: str) -> None:
        """The pod is gone from the cluster; its claims follow."""
        task = self.tasks.get(uid)
        if task is not None and task.node is not None:
            self.vacate(task, task.node)
        self._remove_task(uid)

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

    def _break_promise(self, task: Task) -> None:
        """A promised task waits again, or terminates where it still is."""
        if task.status != Status.PIPELINED:
            return
        place = task.leaving
        if place is not None:
            self.move(task, Status.RELEASING, place[0], place[1], charge=self.charge(task, place[0]))
        else:
            self.move(task, Status.PENDING, None, charge=self.charge(task, None))

    # -- what concerns many pods -------------------------------------------------------------------------------------

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

    def _regroup(self, concerned: Callable[[Gang], bool]) -> None:
        """Rebuild the gangs that a changed priority class concerns."""
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

    def _reshape(self, runtime_class: str) -> None:
        """Judge the pods of a runtime class anew."""
        for pod in [pod for pod in self._pods.values() if pod.spec.runtime_class_name == runtime_class]:
            self._upsert_pod(pod)

    def _claim_anew(self) -> None:
        """What waiting pods ask for in extended resources may be claims now, or be so no longer."""
        for pod in [self._pods[task.uid] for task in self.tasks.values() if task.node is None]:
            self._upsert_pod(pod)

    def _ask_anew(self) -> None:
        """What pods ask for, and nothing offered so far, may have a column now."""
        for pod in [self._pods[task.uid] for task in self.tasks.values() if task.shape.lacks]:
            self._upsert_pod(pod)

    def _users(self, claim: Key) -> list[str]:
        implied = self._implied.get(claim)
        return [*self.claim_users.get(claim, ()), *([implied] if implied is not None else [])]

    def _recharge(self, uids: Iterable[str]) -> None:
        """Charge tasks anew after something their cost depends on has changed."""
        for uid in sorted(uids):
            self.reprice(self.tasks[uid])
        self.settle()

    def _recharge_parts(self) -> None:
        """Charge anew whoever asks for memory of GPUs, or uses claims: those may be other parts of GPUs now."""
        self._recharge({*self._memory_shares, *(uid for users in self.claim_users.values() for uid in users)})

    def _portion_anew(self) -> None:
        if self.portions is not None:
            self.portions.forget()
            self._recharge_parts()

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
        width = len(self.shapes.columns)
        node = self.put_node(obj)
        if before != self.min_gpu_memory():
            self._recharge_parts()
        self._settle_on(node, tasks)
        if len(self.shapes.columns) > width:
            self._ask_anew()

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
