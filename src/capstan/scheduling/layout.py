"""The nodes of the cluster: their columns, classes and what they offer, from device plugins and from ResourceSlices."""

from __future__ import annotations

from collections import Counter
from operator import add, sub

from capstan.allocation import Inventory
from capstan.api import quantity
from capstan.api.core import Node as ApiNode
from capstan.api.resource import ResourceSlice
from capstan.scheduling.amounts import FIRST_PRODUCT, GPU, GPU_COLUMN, GPU_RESOURCE, PODS_COLUMN, RESOURCES, Amounts
from capstan.scheduling.facts import GPU_MEMORY_LABEL, NUMA_ANNOTATION, encode, gpu_memory, largest_memory, read_numa
from capstan.scheduling.journal import Ledger
from capstan.scheduling.model import GPU_PRODUCT_LABEL, Node, NodeClass
from capstan.scheduling.policy import Policy
from capstan.scheduling.products import counted
from capstan.scheduling.shapes import Shapes, mig_slices

HOST_LABEL = "kubernetes.io/hostname"
UNLIMITED_PODS = 1 << 40
_SMALLEST_GPU = 100
"""MiB assumed for shares in MiB while no GPU says its size."""


class Layout(Ledger):
    """Nodes by name, and the sum of what the ready ones offer."""

    def __init__(self, inventory: Inventory | None, policy: Policy) -> None:
        super().__init__()
        self.inventory, self.policy = inventory, policy
        self.shapes = Shapes(self._backed)
        self.nodes: dict[str, Node] = {}
        self.node_classes: dict[object, NodeClass] = {}
        self.resources: tuple[str, ...] = RESOURCES
        """What queues divide: these, then the GPU products that queues name."""
        self.products: dict[str, int] = {}
        """GPU product -> its place in all amounts."""
        self.renamed: set[str] = set()
        """Nodes whose product changed since their tasks were charged."""
        self.total: list[int] = list(self.nothing)
        """Allocatable of all ready nodes."""
        self.layout = 0
        """Raised when nodes come, go or change what they are; placement indexes of an older layout are void."""
        self.aligning: set[str] = set()
        """Names of the nodes that report NUMA zones."""
        self._width = 0
        self._memories: Counter[int] = Counter()
        self._slice_memory: dict[str, int] = {}

    def put_node(self, obj: ApiNode) -> Node:
        """Make a node of the object, without the tasks on it. A quantity that is none counts as 0."""
        name = obj.metadata.name
        labels = {HOST_LABEL: name, **obj.metadata.labels}
        node = Node(
            name=name,
            labels=labels,
            node_class=self._node_class(labels, obj),
            capacity=[],
            idle=[],
            later=[],
            gpu_memory=gpu_memory(labels),
            offers=self.nothing,
        )
        for resource, amount in obj.status.allocatable.items():
            column = self.shapes.column(resource)
            try:
                value = quantity.milli(amount) if resource == "cpu" else quantity.whole(amount)
            except quantity.InvalidQuantity:
                value = 0
            node.capacity.extend([0] * (len(self.shapes.columns) - len(node.capacity)))
            node.capacity[column] = max(0, value)
        node.capacity.extend([0] * (len(self.shapes.columns) - len(node.capacity)))
        if "pods" not in obj.status.allocatable:
            node.capacity[PODS_COLUMN] = UNLIMITED_PODS
        node.idle, node.later = list(node.capacity), list(node.capacity)
        read_numa(node, obj.metadata.annotations.get(NUMA_ANNOTATION, ""))
        if self.inventory is not None:
            self.inventory.upsert(obj)
        self.nodes[name] = node
        if node.zones:
            self.aligning.add(name)
        self.widen()
        self._size_claim_columns(node)
        self._survey(node)
        return node

    def _backed(self, resource: str) -> bool:
        return self.inventory is not None and self.inventory.class_for_extended_resource(resource) is not None

    def take_node(self, name: str) -> Node | None:
        """Remove a node; its tasks still point to it."""
        node = self.nodes.pop(name, None)
        self.aligning.discard(name)
        if node is not None:
            self._offer(node, self.nothing)
        return node

    def slices_changed(self, obj: ResourceSlice | None = None) -> None:
        """Bring what claims can reach up to date: on the node of a slice, or everywhere."""
        if obj is not None and obj.spec.node_name:
            self._slice_memory[obj.spec.node_name] = largest_memory(obj)
            self._refresh_claim_columns(obj.spec.node_name)
        else:
            self._refresh_claim_columns()

    def min_gpu_memory(self) -> int:
        """MiB of the smallest GPU in the cluster: shares in MiB are counted against it until they have a node."""
        return min((size for size, count in self._memories.items() if count and size), default=_SMALLEST_GPU)

    def max_gpu_memory(self) -> int:
        """MiB of the largest GPU in the cluster: a share in MiB costs no less than its part of that one."""
        return max((size for size, count in self._memories.items() if count and size), default=_SMALLEST_GPU)

    def gpu_classes(self) -> set[str]:
        """Device classes that offer GPUs: the one behind nvidia.com/gpu, and those named like a GPU driver."""
        backs = self.inventory.class_for_extended_resource(GPU_RESOURCE) if self.inventory is not None else None
        return {*self.policy.gpu_drivers, *([backs] if backs else [])}

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

    def _node_class(self, labels: dict[str, str], obj: ApiNode) -> NodeClass:
        shared = {key: value for key, value in labels.items() if key != HOST_LABEL}
        key = (tuple(sorted(shared.items())), encode(obj.spec.taints), obj.spec.unschedulable, obj.ready)
        found = self.node_classes.get(key)
        if found is None:
            found = NodeClass(shared, obj.spec.taints, obj.spec.unschedulable, obj.ready)
            self.node_classes[key] = found
        return found

    def _survey(self, node: Node) -> None:
        """See what GPUs a node has and count them in the cluster's total."""
        counts = counted(node, self.inventory, self.policy.gpu_drivers)
        product = node.product
        if not counts:
            node.product = node.labels.get(GPU_PRODUCT_LABEL, "")
        else:
            node.product = next(iter(counts)) if len(counts) == 1 else ""
        if node.product != product:
            self.renamed.add(node.name)
        self._offer(node, self._quota_capacity(node, counts))

    def _offer(self, node: Node, amounts: Amounts) -> None:
        """Count what a node contributes to the cluster's total and which GPU memory sizes there are."""
        self.total[:] = map(add, self.total, map(sub, amounts, node.offers))
        if node.offers[2]:
            self._memories[node.offers_memory] -= 1
        if amounts[2]:
            self._memories[node.gpu_memory] += 1
        node.offers, node.offers_memory = amounts, node.gpu_memory

    def _quota_capacity(self, node: Node, counts: Counter[str]) -> Amounts:
        if not node.node_class.ready:
            return self.nothing
        gpu = (node.capacity[GPU_COLUMN] or counts.total()) * GPU
        for resource, column in self.shapes.columns.items():
            if column > GPU_COLUMN and column < len(node.capacity):
                gpu += mig_slices(resource) * node.capacity[column] * GPU
        amounts = [node.capacity[0], node.capacity[1], gpu, *self.nothing[FIRST_PRODUCT:]]
        if node.product in self.products:
            amounts[self.products[node.product]] = gpu
        elif not node.product:
            for product in counts.keys() & self.products.keys():
                amounts[self.products[product]] = counts[product] * GPU
        return tuple(amounts)

    def divide_by(self, resources: tuple[str, ...]) -> None:
        """Take GPU products into all amounts, or out of them; what tasks cost is for the caller to charge anew."""
        self.resources = resources
        self.products = {product: i for i, product in enumerate(resources) if i >= FIRST_PRODUCT}
        self.nothing = (0,) * len(resources)
        products = self.nothing[FIRST_PRODUCT:]
        self.total[FIRST_PRODUCT:] = products
        for node in self.nodes.values():
            node.offers = (*node.offers[:FIRST_PRODUCT], *products)
            self._survey(node)

    def _refresh_claim_columns(self, only: str | None = None) -> None:
        concerned = self.nodes.values() if only is None else [self.nodes[only]] if only in self.nodes else []
        for node in concerned:
            self._size_claim_columns(node)
            self._survey(node)
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
        if (node.by_claims or not node.capacity[GPU_COLUMN]) and not node.labels.get(GPU_MEMORY_LABEL):
            node.gpu_memory = self._slice_memory.get(node.name, 0)
