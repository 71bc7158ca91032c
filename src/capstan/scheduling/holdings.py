"""What tasks hold by claims, what everything costs its queue, and speculation over both journals."""

from __future__ import annotations

from collections.abc import Mapping

from capstan.allocation import Inventory
from capstan.api.resource import AllocationResult, ResourceClaim
from capstan.scheduling.layout import Layout
from capstan.scheduling.model import ACTIVE, GPU, Amounts, Node, Status, Task
from capstan.scheduling.policy import Policy

Key = tuple[str, str]
Mark = tuple[int, int, int]
"""Positions in the three journals: moves, inventory, grants."""


class Holdings(Layout):
    """Tasks and ResourceClaims, on top of the nodes."""

    def __init__(self, inventory: Inventory | None, policy: Policy) -> None:
        super().__init__(inventory, policy)
        self.tasks: dict[str, Task] = {}
        self.claims: dict[Key, ResourceClaim] = {}
        self.claim_users: dict[Key, list[str]] = {}
        """ResourceClaim -> uids of the tasks that use it, oldest first."""
        self._grants: list[tuple[Task | Node, tuple[Key, ...]]] = []
        """Journal of what tasks held before a grant, and of drained nodes."""
        self._drained: set[str] = set()

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

    def revoke(self, task: Task) -> None:
        """Take back what was granted to a task."""
        self._grants.append((task, task.held))
        self.release_claims(task)

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

    def release_claims(self, task: Task) -> None:
        """Give up the allocations this engine assumed for a task."""
        if self.inventory is not None:
            for key in task.held:
                self.inventory.release(key)
        task.held = ()

    def charge(self, task: Task, node: Node | None) -> Amounts:
        """What a task costs its queue, on a node or (None) while it waits."""
        cpu, memory, gpu = task.shape.quota
        share = task.shape.share
        if share is not None and share.memory:
            gpu += share.on(node.gpu_memory if node is not None else self.min_gpu_memory()) * share.devices
        if task.claims:
            gpu += self._claimed_gpus(task)
        return (cpu, memory, gpu)

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
            if exact is not None and exact.device_class_name in self.gpu_classes():
                total += exact.count if exact.allocation_mode == "ExactCount" else 1
        return total
