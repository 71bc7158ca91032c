"""What the engine thinks in: tasks, gangs, queues and nodes, as plain mutable records.

`World` owns and indexes these objects; only `World.move` changes where a task is, so that the undo journal sees
everything. Amounts are those of `capstan.scheduling.amounts`, time is in POSIX seconds.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from enum import IntEnum

from capstan.api.core import Taint
from capstan.api.resource import ResourceClaim
from capstan.api.scheduling import PREEMPTIBLE_BELOW
from capstan.scheduling.amounts import FIRST_PRODUCT, NOTHING, RESOURCES, UNLIMITED, Amounts
from capstan.scheduling.shape import Shape

GPU_PRODUCT_LABEL = "nvidia.com/gpu.product"
"""On nodes: the product of their GPUs, as queues name it."""
MIG_PREFIX = "nvidia.com/mig-"


class Status(IntEnum):
    """Where a task stands. The words are those of scenario files and of KAI."""

    PENDING = 0
    GATED = 1
    ALLOCATED = 2
    """Placed by the running cycle on free resources."""
    PIPELINED = 3
    """Promised resources that are still being released."""
    BINDING = 4
    BOUND = 5
    RUNNING = 6
    RELEASING = 7
    STUCK = 8
    """Terminating for so long that nobody counts on its resources."""
    SUCCEEDED = 9
    FAILED = 10


HOLDS_NOW = tuple(s in (2, 4, 5, 6, 7, 8) for s in range(11))
"""Statuses that occupy their node at this moment."""
HOLDS_LATER = tuple(s in (2, 3, 4, 5, 6, 8) for s in range(11))
"""Statuses that occupy their node once everything that is terminating has gone."""
ACTIVE = tuple(s in (2, 3, 4, 5, 6) for s in range(11))
"""Statuses whose resources are charged to the queue and that count towards a gang's minimum."""
WAITING = tuple(s in (0, 1) for s in range(11))


@dataclass(slots=True, eq=False)
class SharedDevice:
    """One GPU of a node that tasks hold parts of; used amounts in millionths."""

    used_now: int = 0
    users_now: int = 0
    used_later: int = 0
    users_later: int = 0


@dataclass(slots=True, eq=False)
class NodeClass:
    """Nodes with equal labels (but for the host name), taints and readiness."""

    labels: dict[str, str]
    taints: list[Taint]
    unschedulable: bool
    ready: bool
    soft_taints: list[Taint] = field(init=False)
    reasons: dict[int, str] = field(default_factory=dict)
    """shape number -> why no node of the class suits it; empty text when they do."""

    def __post_init__(self) -> None:
        self.soft_taints = [taint for taint in self.taints if taint.effect == "PreferNoSchedule"]


Zones = tuple[tuple[str, str, int], ...]
"""(NUMA zone, resource, amount): where a task's aligned resources come from."""


@dataclass(slots=True, eq=False)
class Zone:
    """A NUMA zone of a node: allocatable amounts by resource name, and what tasks hold of them later."""

    name: str
    capacity: dict[str, int]
    used: dict[str, int] = field(default_factory=dict)


@dataclass(slots=True, eq=False)
class Node:
    name: str
    labels: dict[str, str]
    node_class: NodeClass
    capacity: list[int]
    idle: list[int]
    """Free at this moment, by column."""
    later: list[int]
    """Free once everything terminating has gone and every promise is kept, by column."""
    gpu_memory: int
    """MiB of each GPU; 100 when the node does not say (shares in MiB are then refused)."""
    product: str = ""
    """The product of its GPUs; empty when it has none, does not say, or has several."""
    by_claims: bool = False
    """Its GPUs are allocated through ResourceClaims (`allocation.Inventory`), not by a device plugin."""
    offers: Amounts = NOTHING
    """What it contributes to the cluster's total at present."""
    offers_memory: int = 0
    claim_columns: set[int] = field(default_factory=set)
    """Columns whose capacity comes from ResourceSlices."""
    lent_now: int = 0
    """Millionths of devices that shares hold through claims at this moment."""
    lent_later: int = 0
    devices: dict[str, SharedDevice] = field(default_factory=dict)
    tasks: dict[str, Task] = field(default_factory=dict)
    version: int = 0
    """Raised by every change; entries of placement indexes carry the version they were made for. Never rolled back."""
    zones: list[Zone] = field(default_factory=list)
    numa_policy: str = ""


Placement = tuple[Status, "Node | None", "tuple[str, ...]", "tuple[Node, tuple[str, ...]] | None"]
"""Status, node, shared devices, and for a moved task the place that it is leaving."""


@dataclass(slots=True, eq=False)
class Task:
    """A pod."""

    uid: str
    namespace: str
    name: str
    shape: Shape
    order: tuple[int, int, float, str]
    """Position inside the gang: task priority (negated), role, creation, UID."""
    labels: dict[str, str]
    group: Group | None = None
    """The leaf of its gang's tree; None for pods that this engine does not own."""
    gang: Gang | None = None
    user: str = ""
    """Whose pod it is: what the gang says, or the pod's own label."""
    status: Status = Status.PENDING
    node: Node | None = None
    devices: tuple[str, ...] = ()
    leaving: tuple[Node, tuple[str, ...]] | None = None
    charge: Amounts = NOTHING
    """What its queue is charged at present (pending demand or allocation)."""
    claims: tuple[tuple[str, str | None], ...] = ()
    """(name in the pod, ResourceClaim name or None while it is not generated)."""
    volumes: tuple[str, ...] = ()
    volume_choices: tuple[tuple[str, str], ...] = ()
    """(unbound claim, its volume or empty: made on the node) as of the last placement; void while it has no node."""
    blocked: str = ""
    """Why it is gated."""
    error: str = ""
    """What is wrong with its request; such a pod never starts."""
    terminating_since: float = 0.0
    nominated: str = ""
    zones: Zones = ()
    implied: ResourceClaim | None = None
    """The claim synthesized for its extended resources or share on nodes that allocate by claims."""
    held: tuple[tuple[str, str], ...] = ()
    """Claims whose allocation or reservation this engine made for it and that the cluster has not confirmed yet."""
    phase: Status = Status.PENDING
    """What the cluster itself says, before in-flight decisions of this engine."""
    started: float = 0.0
    """When the kubelet accepted the pod; 0 before that."""
    deadline: float = 0.0
    """Seconds after its start at which the kubelet ends the pod (`activeDeadlineSeconds`); 0: never."""

    @property
    def key(self) -> tuple[str, str]:
        return (self.namespace, self.name)


Ordered = tuple[tuple[int, int, float, str], Task]


@dataclass(frozen=True, slots=True)
class Levels:
    """A topology constraint: the Topology's name and node label keys of the levels (empty: none)."""

    topology: str = ""
    required: str = ""
    preferred: str = ""


@dataclass(slots=True, eq=False)
class Group:
    """A node of a gang's tree: a leaf needs `minimum` of its tasks, an inner one `minimum` of its children."""

    name: str
    parent: Group | None
    minimum: int
    levels: Levels | None = None
    children: list[Group] = field(default_factory=list)
    pending: list[Ordered] = field(default_factory=list)
    """Sorted; waiting and not gated."""
    active: list[Ordered] = field(default_factory=list)
    """Sorted; see ACTIVE."""
    gated: int = 0
    succeeded: int = 0

    @property
    def have(self) -> int:
        """Satisfied children, or active pods of a leaf: what `minimum` counts."""
        return sum(child.satisfied for child in self.children) if self.children else len(self.active)

    @property
    def satisfied(self) -> bool:
        if self.children:
            return sum(child.satisfied for child in self.children) >= self.minimum
        return len(self.active) >= self.minimum

    @property
    def ready(self) -> bool:
        """Enough pods live for the minimum to be reachable without further pods being created."""
        if self.children:
            return sum(child.ready for child in self.children) >= self.minimum
        return len(self.active) + len(self.pending) >= self.minimum

    def leaves(self) -> list[Group]:
        return [leaf for child in self.children for leaf in child.leaves()] if self.children else [self]

    @property
    def rank(self) -> tuple[bool, bool, float, str]:
        """Position among siblings when a gang starts or grows."""
        return self.rank_with(self.have)

    def rank_with(self, have: int) -> tuple[bool, bool, float, str]:
        """Below the minimum first, then those that are needed at all, then the emptiest, by name."""
        if have < self.minimum:
            return (False, False, 0.0, self.name)
        return (True, not self.minimum, have / (self.minimum or 1), self.name)


def _core(group: Group, count: int) -> list[Task]:
    if not group.children:
        return [task for _, task in group.active[:count]]
    return [task for child in _core_children(group)[:count] for task in _core(child, child.minimum)]


def _core_children(group: Group) -> list[Group]:
    """Subgroups in the order in which they are core: complete before broken ones, those that need nothing last."""
    return sorted(group.children, key=lambda child: (not child.minimum, not child.satisfied, child.name))


def _complete(group: Group, count: int) -> bool:
    """Whether the core is there, and nothing that waits would take the place of a part of it."""
    if not group.children:
        if len(group.active) < count:
            return False
        return not count or not group.pending or group.pending[0][0] > group.active[count - 1][0]
    core = _core_children(group)[:count]
    last = max(((not child.minimum, child.name) for child in core), default=(False, ""))
    return all(child.satisfied and _complete(child, child.minimum) for child in core) and not any(
        (not child.minimum, child.name) < last and not child.satisfied and any(leaf.pending for leaf in child.leaves())
        for child in group.children
    )


@dataclass(slots=True, eq=False)
class Gang:
    """A PodGroup, or the implicit group of a pod that has none."""

    namespace: str
    name: str
    uid: str
    created: float
    queue_name: str
    root: Group
    groups: dict[str, Group]
    """leaf name -> leaf; the only leaf of a gang without subgroups is called ''."""
    priority: int = 0
    preemptible: bool = True
    preemption_delay: float = 0.0
    stale_grace: float | None = None
    stale_since: float | None = None
    last_start: float | None = None
    max_runtime: float | None = None
    expected_runtime: float | None = None
    requeue_delay: float | None = None
    requeue_not_before: float | None = None
    """After it ran too long: when it may start again."""
    implicit: bool = False
    error: str = ""
    """Why it can never start as written (contradictory topology, unknown subgroup...)."""
    user: str = ""
    """Whose job it is, if the PodGroup says so."""
    tasks: dict[str, Task] = field(default_factory=dict)
    queue: Queue | None = None
    pending: int = 0
    active: int = 0
    priority_class: str = ""
    explicit: bool | None = None
    """Preemptibility as the user set it, if at all."""
    semi: bool = False
    """Semi-preemptible: its core is not preemptible, what it has beyond that is."""
    core_size: int | None = None
    """So many of its pods (or first subgroups) are the core of a semi-preemptible gang; None: its minimum."""
    core_charge: Amounts = NOTHING
    """What the core of a semi-preemptible gang costs its queue at present."""

    @property
    def key(self) -> tuple[str, str]:
        return (self.namespace, self.name)

    @property
    def order(self) -> tuple[int, float, str]:
        """Position among the gangs of a queue, but for the elastic phase."""
        return (-self.priority, self.created, self.uid)

    @property
    def bound_by_quota(self) -> bool:
        """Whether what it places next cannot be preempted afterwards, and so has to fit into the quota."""
        return not self.preemptible and not (self.semi and _complete(self.root, self.core_count))

    @property
    def core_count(self) -> int:
        return self.root.minimum if self.core_size is None else self.core_size

    def core(self) -> list[Task]:
        """What a semi-preemptible gang keeps: satisfied subgroups before others, then by name; first pods by order.

        By KAI's design the choice does not depend on how full subgroups are, so that evicting surplus never moves it.
        """
        return _core(self.root, self.core_count)

    def reprioritize(self, priority: int) -> None:
        """Only while no queue lists the gang."""
        self.priority = priority
        self.preemptible = self.explicit if self.explicit is not None else priority < PREEMPTIBLE_BELOW


@dataclass(frozen=True, slots=True)
class Bounds:
    """What a queue says of one resource; -1 is unlimited. The defaults are what it says by saying nothing."""

    quota: int = UNLIMITED
    limit: int = UNLIMITED
    weight: float = 1.0
    lending: int = UNLIMITED
    """How much of an unused quota others may use."""


@dataclass(slots=True, eq=False)
class Queue:
    """Bounds and sums per resource, in the order of `resources`; -1 is unlimited."""

    name: str
    parent_name: str
    priority: int
    created: float
    bounds: Mapping[str, Bounds]
    """By resource: cpu, memory, gpu."""
    gpu_types: Mapping[str, Bounds] = field(default_factory=dict)
    """By GPU product."""
    preempt_min_runtime: float | None = None
    reclaim_min_runtime: float | None = None
    max_runtime: float | None = None
    requeue_delay: float | None = None
    user_fairness: bool = False
    """Whether the users of the queue take turns."""
    flaw: str = ""
    """What is wrong with what it says itself."""
    error: str = field(init=False)
    """Why nothing can be scheduled under it: a flaw, a missing parent, a cycle."""
    parent: Queue | None = None
    children: list[Queue] = field(default_factory=list)
    depth: int = 0
    rank: int = 0
    """Position by creation among all queues."""
    pending: list[tuple[tuple[int, float, str], Gang]] = field(default_factory=list)
    """Sorted; gangs with a pending task."""
    active: list[tuple[tuple[int, float, str], Gang]] = field(default_factory=list)
    """Sorted; gangs with an active task."""
    elastic: dict[tuple[str, str], Gang] = field(default_factory=dict)
    """Gangs that have, or could have, more pods than their minimum."""
    resources: tuple[str, ...] = field(init=False)
    """What the places of all amounts stand for: RESOURCES, then GPU products."""
    quota: Amounts = field(init=False)
    limit: Amounts = field(init=False)
    weight: tuple[float, ...] = field(init=False)
    lending: Amounts = field(init=False)
    """How much of an unused quota others may use."""
    lenders: Sequence[Queue] = ()
    """The queues of this level (itself may be among them) that limit what they lend."""
    pool: Pool | None = None
    """What all queues divide; None as long as no queue limits what it lends."""
    allocated: list[int] = field(init=False)
    fixed: list[int] = field(init=False)
    """Allocated to gangs that are not preemptible."""
    requested: list[int] = field(init=False)
    """Allocated and pending."""
    users: dict[str, list[int]] | None = field(init=False)
    """Allocated by user; None unless they take turns."""
    fair: list[int] = field(init=False)
    """Fair share, set at the start of every cycle."""
    entitled: list[int] = field(init=False)
    """What it may reclaim up to: the fair share, were no quotas cut that are together more than there is."""
    share: list[int] = field(init=False)
    """Allocatable share: the fair share or the quota, whichever is more, but no more than the limit."""

    def __post_init__(self) -> None:
        self.error = self.flaw
        self.measure(RESOURCES)

    def measure(self, resources: tuple[str, ...]) -> None:
        """Lay the bounds out in the order of `resources` and set all sums to 0."""
        said = [self.bounds[name] for name in RESOURCES]
        said += [self.gpu_types.get(product, NO_BOUNDS) for product in resources[FIRST_PRODUCT:]]
        self.resources = resources
        self.quota = tuple(bounds.quota for bounds in said)
        self.limit = tuple(bounds.limit for bounds in said)
        self.weight = tuple(bounds.weight for bounds in said)
        self.lending = tuple(bounds.lending for bounds in said)
        size = len(resources)
        self.allocated, self.fixed, self.requested = [0] * size, [0] * size, [0] * size
        self.users = {} if self.user_fairness else None
        self.fair, self.entitled, self.share = [0] * size, [0] * size, [0] * size

    def path(self) -> list[Queue]:
        """This queue and its ancestors, leaf first."""
        path, queue = [], self
        while True:
            path.append(queue)
            if queue.parent is None:
                return path
            queue = queue.parent


@dataclass(slots=True, eq=False)
class Pool:
    """What the root queues divide among them."""

    roots: Sequence[Queue]
    total: Amounts


NO_BOUNDS = Bounds()
UNBOUNDED: Mapping[str, Bounds] = dict.fromkeys(RESOURCES, NO_BOUNDS)
