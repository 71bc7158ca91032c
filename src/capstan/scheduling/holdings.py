"""What tasks hold by claims, what everything costs its queue, and speculation over both journals."""

from __future__ import annotations

from collections import Counter
from collections.abc import Container, Iterable, Iterator, Mapping, Sequence

from capstan.allocation import Inventory
from capstan.api.resource import AllocationResult, DeviceSelector, ResourceClaim
from capstan.scheduling.amounts import FIRST_PRODUCT, GPU, Amounts
from capstan.scheduling.filters import node_reason
from capstan.scheduling.layout import Layout
from capstan.scheduling.model import ACTIVE, Node, Status, Task
from capstan.scheduling.policy import Policy
from capstan.scheduling.portions import Portions, part, percent
from capstan.scheduling.products import held, product_of
from capstan.scheduling.shape import Shape

Key = tuple[str, str]
Wanted = tuple[tuple[str, tuple[DeviceSelector, ...]], ...]
"""(device class, selectors) of a claim's request, one for each of its alternatives."""
Mark = tuple[int, int, int]
"""Positions in the three journals: moves, inventory, grants."""
_MOST_CERTAIN = 20_000
"""Products kept by what pods may run on; beyond that all are found anew."""


class Holdings(Layout):
    """Tasks and ResourceClaims, on top of the nodes."""

    def __init__(self, inventory: Inventory | None, policy: Policy) -> None:
        super().__init__(inventory, policy)
        self.portions = Portions(inventory, policy.gpu_drivers) if inventory is not None else None
        self.tasks: dict[str, Task] = {}
        self.claims: dict[Key, ResourceClaim] = {}
        self.claim_users: dict[Key, list[str]] = {}
        """ResourceClaim -> uids of the tasks that use it, oldest first."""
        self._grants: list[tuple[Task | Node, tuple[Key, ...]]] = []
        """Journal of what tasks held before a grant, and of drained nodes."""
        self._drained: set[str] = set()
        self._vacated: dict[str, dict[Key, None]] = {}
        """Node -> claims there whose user has ended, until the cluster releases them."""
        self.certain: dict[object, str] = {}
        """What pods may run on -> the GPU product of all of that; empty when there are several."""

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

    def granted_only_to(self, uids: Container[str]) -> bool:
        """Whether nothing but what these tasks were granted has changed in the inventory in this cycle."""
        return all(isinstance(subject, Task) and subject.uid in uids for subject, _ in self._grants)

    def is_drained(self, node: Node) -> bool:
        """Whether the inventory shows the node without the claims of its terminating pods."""
        return node.name in self._drained

    def vacate(self, task: Task, node: Node) -> None:
        """A pod has ended on the node; its claims will be released without anybody's doing."""
        if keys := self.claims_held(task):
            self._vacated.setdefault(node.name, {}).update(dict.fromkeys(keys))

    def vacating(self, node: Node) -> bool:
        """Whether claims on the node will be released: pods terminate, or have ended a moment ago."""
        return node.idle != node.later or node.name in self._vacated

    def forget_vacated(self) -> None:
        """Claims that have been released meanwhile are like any other."""
        for name, keys in list(self._vacated.items()):
            for key in list(keys):
                claim = self.claims.get(key)
                if claim is None or claim.status.allocation is None:
                    del keys[key]
            if not keys:
                del self._vacated[name]

    def drain(self, node: Node) -> bool:
        """Release the claims that only terminating pods of the node use, or pods that have ended there; False when
        there are none."""
        leaving = [t for t in node.tasks.values() if t.status == Status.RELEASING or t.leaving is not None]
        ending = [key for task in leaving for key in self.claims_held(task)]
        keys = []
        for key in (*ending, *self._vacated.get(node.name, ())):
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

    def allocations(self, task: Task) -> list[AllocationResult | None]:
        """What each of the claims that the task uses holds."""
        inventory = self.inventory
        return [] if inventory is None else [inventory.allocation(key) for key in self.claims_held(task)]

    def release_claims(self, task: Task) -> None:
        """Give up the allocations this engine assumed for a task."""
        if self.inventory is not None:
            for key in task.held:
                self.inventory.release(key)
        task.held = ()

    def charge(self, task: Task, node: Node | None) -> Amounts:
        """What a task costs its queue, on a node or (None) while it waits."""
        quota, share = task.shape.quota, task.shape.share
        by_memory = share is not None and share.memory > 0
        if not (by_memory or task.claims or self.products):
            return quota
        cpu, memory, gpu = quota
        if share is not None and by_memory:
            memory_size = node.gpu_memory if node is not None else self.min_gpu_memory()
            gpu += percent(share.on(memory_size)) * share.devices
        claims = list(self._charged_claims(task))
        amounts = [cpu, memory, gpu + sum(map(self.claims_gpus, claims)), *self.nothing[FIRST_PRODUCT:]]
        if self.products:
            for product, amount in self._by_product(task, node, gpu, claims):
                if product in self.products:
                    amounts[self.products[product]] += amount
        return tuple(amounts)

    def reprice(self, task: Task) -> None:
        """Charge a task anew after something its cost depends on has changed."""
        charge = self.charge(task, task.node)
        if charge != task.charge:
            place = (task.status, task.node, task.devices)
            self.move(task, *place, leaving=task.leaving, charge=charge, zones=task.zones)

    def least_charge(self, unit: Sequence[Task]) -> Amounts:
        """What tasks cost their queue wherever they go: shares in MiB are counted on the largest GPUs."""
        if len(unit) == 1 and unit[0].shape.share is None:
            return unit[0].charge
        amounts = list(map(sum, zip(*(task.charge for task in unit), strict=True)))
        for task in unit:
            share = task.shape.share
            if share is not None and share.memory and task.node is None:
                largest, smallest = percent(share.on(self.max_gpu_memory())), percent(share.on(self.min_gpu_memory()))
                for place in (2, *range(FIRST_PRODUCT, len(amounts))):
                    amounts[place] -= (smallest - largest) * share.devices if task.charge[place] else 0
        return tuple(amounts)

    def _charged_claims(self, task: Task) -> Iterator[ResourceClaim]:
        """The claims that a task uses by name; a shared one is charged to its oldest user only."""
        for _, name in task.claims:
            key = (task.namespace, name or "")
            claim = self.claims.get(key)
            if claim is not None and self.claim_users.get(key, [task.uid])[0] == task.uid:
                yield claim

    def claims_gpus(self, claim: ResourceClaim) -> int:
        """Millionths of GPUs that a claim holds or was granted in this cycle, or asks for while it has nothing."""
        granted = self.inventory.allocation(claim.key) if self.inventory is not None else None
        allocation = granted or claim.status.allocation
        if allocation is not None:
            return sum(map(self.portions.held, allocation.devices.results)) if self.portions is not None else 0
        return sum(amount for amount, _ in self._gpus_asked(claim))

    def _gpus_asked(self, claim: ResourceClaim) -> Iterator[tuple[int, Wanted]]:
        """For every request of GPUs: how many millionths, and of which class and selectors. A request of which nothing
        is published yet asks for whole GPUs if its class is known to offer some."""
        for request in claim.spec.devices.requests:
            exact = request.exactly or (request.first_available[0] if request.first_available else None)
            if exact is None or self.portions is None or (request.exactly and request.exactly.admin_access):
                continue
            size = self.portions.asked(exact.device_class_name, exact.selectors)
            if not size and exact.device_class_name in self.gpu_classes():
                size = GPU
            memory = exact.capacity.requests.get("memory") if exact.capacity is not None else None
            if memory is not None:
                size = min(size, part(memory, self.min_gpu_memory() << 20))
            if size:
                options = [request.exactly] if request.exactly is not None else request.first_available
                wanted = tuple((option.device_class_name, tuple(option.selectors)) for option in options)
                yield size * (exact.count if exact.allocation_mode == "ExactCount" else 1), wanted

    # -- products ------------------------------------------------------------------------------------------------------

    def _by_product(
        self, task: Task, node: Node | None, gpu: int, claims: Iterable[ResourceClaim]
    ) -> Iterator[tuple[str, int]]:
        """The GPUs of a task by product: what it really holds, or what it is certain to get wherever it may run."""
        home = node.product if node is not None else ""
        if gpu and node is None:
            yield self._only_product(task.shape, ()), gpu
        elif gpu:
            devices = self._devices_held(task.implied.key, home) if task.implied is not None else None
            for product, count in devices.items() if devices else ((home, 1),):
                yield product, gpu * count // (devices.total() if devices else 1)
        for claim in claims:
            devices = self._devices_held(claim.key, home)
            if devices is not None:
                yield from devices.items()
                continue
            for amount, wanted in self._gpus_asked(claim):
                yield self._only_product(task.shape, wanted), amount

    def _devices_held(self, key: Key, otherwise: str) -> Counter[str] | None:
        allocation = self.inventory.allocation(key) if self.inventory is not None else None
        if allocation is None or self.inventory is None or self.portions is None:
            return None
        return held(self.inventory, allocation, self.portions, otherwise)

    def _only_product(self, shape: Shape, wanted: Wanted) -> str:
        """The product of every GPU that pods of the shape may get; empty when there are several.

        `wanted`: classes and selectors of a claim's request; none for GPUs of the node's device plugin.
        """
        key = (shape.number, tuple((name, tuple(s.cel.expression for s in by if s.cel)) for name, by in wanted))
        found = self.certain.get(key)
        if found is None:
            if len(self.certain) >= _MOST_CERTAIN:
                self.certain.clear()
            found = self.certain[key] = self._find_only_product(shape, wanted)
        return found

    def _find_only_product(self, shape: Shape, wanted: Wanted) -> str:
        only: str | None = None
        for node in self.nodes.values():
            if not node.offers[2] or node_reason(shape, node):
                continue
            if wanted and self.inventory is not None:
                inventory = self.inventory
                names = {product_of(d) or node.product for w in wanted for d in inventory.devices(node.name, *w)}
            else:
                names = {node.product}
            for name in names:
                if not name or name != (only or name):
                    return ""
                only = name
        return only or ""
