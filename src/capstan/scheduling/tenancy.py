"""Gangs in their queues: who belongs to which, and every sum over the tree of queues."""

from __future__ import annotations

from collections.abc import Mapping
from operator import add, sub

from capstan.allocation import Inventory
from capstan.api.core import Pod
from capstan.api.scheduling import POD_GROUP_ANNOTATION, PRIORITY_CLASSES, SUBGROUP_LABEL, USER_LABEL, PodGroup
from capstan.scheduling.amounts import FIRST_PRODUCT
from capstan.scheduling.fair_share import set_fair_shares
from capstan.scheduling.gangs import build_gang, implicit_gang
from capstan.scheduling.holdings import Holdings, Key
from capstan.scheduling.model import ACTIVE, HOLDS_NOW, UNBOUNDED, Gang, Queue, Status, Task
from capstan.scheduling.policy import Policy
from capstan.scheduling.pools import Membership
from capstan.scheduling.queues import link, resources_of
from capstan.scheduling.runtimes import declared, max_runtime, started


class Tenancy(Holdings):
    """Gangs and queues, on top of what tasks hold."""

    def __init__(self, inventory: Inventory | None, policy: Policy) -> None:
        super().__init__(inventory, policy)
        self.gangs: dict[Key, Gang] = {}
        self.queues: dict[str, Queue] = {}
        self.roots: list[Queue] = []
        self.free_queue = Queue("", "", 0, 0.0, UNBOUNDED)
        """Where pods without any queue go: no bounds, no part in fair shares, no victims of reclaim."""
        self.nowhere = Queue("", "", 0, 0.0, UNBOUNDED, flaw="does not exist")
        """Stands in for every queue that is named and does not exist."""
        self.timed: dict[Gang, float] = {}
        """Gangs of which a run time is declared, in seconds."""
        self.limited: dict[Gang, float] = {}
        """Gangs that have a max runtime, in seconds."""
        self.next_requeue = 0.0
        """Before this time none of them has run too long."""
        self.priorities: dict[str, int] = dict(PRIORITY_CLASSES)
        self.usage: Mapping[str, Mapping[str, float]] = {}
        """Queue -> resource -> part of the capacity it used of late, as `Usage.shares` gives it; empty: no account."""
        self._members = Membership(self.policy)
        self._sources: dict[object, bytes] = {}
        self._relink = False
        self._charged_layout = 0
        """The layout for which GPUs were charged by product."""
        self._begun = 0.0
        """When the last cycle began."""

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

    def _add_gang(self, gang: Gang) -> None:
        self.gangs[gang.key] = gang
        gang.queue = self._queue_of(gang)
        self._time(gang)

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

    # -- queues ------------------------------------------------------------------------------------------------------

    def share_out(self, policy: Policy) -> None:
        """Set the fair shares of all queues over what pods of others and pods without a queue leave."""
        rest = map(sub, map(sub, self.total, self.foreign), self.free_queue.allocated)
        set_fair_shares(self.roots, tuple(rest), self.usage, policy.k_value)

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

    def _seen_products(self) -> None:
        self.certain.clear()
        self.renamed.clear()
        self._charged_layout = self.layout
