"""Settings of a scheduling cycle. The defaults are KAI's."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

from capstan.allocation import Features
from capstan.api.cron import Schedule
from capstan.api.scheduling import NODE_POOL_LABEL, QUEUE_LABEL, SCHEDULER_NAME

Placement = Literal["binpack", "spread"]
ACTIONS = ("allocate", "consolidate", "reclaim", "preempt", "evict-stale", "requeue", "defragment")
KAI_ACTIONS = {"consolidation": "consolidate", "stalegangeviction": "evict-stale"}
"""KAI's names of actions that it calls otherwise -> ours."""


@dataclass(frozen=True, slots=True)
class DefragmentWindow:
    """Open for `seconds` from every time of a cron schedule on (`capstan.api.cron`), in `zone` (UTC if empty)."""

    schedule: str
    seconds: float
    zone: str = ""

    def open_at(self, now: float) -> bool:
        began = Schedule(self.schedule, self.zone or None).latest(now)
        return began is not None and now < began + self.seconds


@dataclass(frozen=True, slots=True)
class Policy:
    """What may differ between clusters. Times in seconds.

    `scheduler_names` are the values of `spec.schedulerName` this engine owns. A pod without a queue goes to
    `default_queue`; the empty name means: scheduled without any quota, in the order of its priority and age.
    """

    actions: tuple[str, ...] = ACTIONS
    scheduler_names: frozenset[str] = frozenset({SCHEDULER_NAME})
    grouped_scheduler: str = SCHEDULER_NAME
    """The one of them whose pods wait until the grouper has named their gang; pods of others may be gangs of one."""
    default_queue: str = ""
    gpu_placement: Placement = "binpack"
    cpu_placement: Placement = "binpack"
    shared_gpu_placement: Placement | None = None
    """Over the devices of a node; None: as `gpu_placement`."""
    max_consolidation_victims: int = 16
    """Pods moved for one gang; below 0: any number, 0: none."""
    reclaim_may_consolidate: bool = True
    stale_grace: float = 60.0
    reservations: int = 8
    """So many waiting gangs may hold a reservation at a time. Without known run times there are none; 0: never any."""
    reserve_after: float = 0.0
    """Only gangs that have waited so long get one."""
    learn_runtimes: bool = False
    """Whether run times of finished gangs count where none is declared."""
    runtime_quantile: float = 0.9
    """The part of the finished runs that a learned run time has to cover."""
    starving_after: float | None = None
    """For gangs that have waited so long, what runs without a known end is assumed to end; None: for nobody."""
    assumed_runtime: float = 3600.0
    """How long such runs are assumed to take in all; doubled each time it turns out too short."""
    defragment_windows: tuple[DefragmentWindow, ...] = ()
    """When pods are moved together although nobody waits for the room; none: never."""
    defragment_max_victims: int = 16
    """So many pods are moved at a time."""
    defragment_cooldown: float = 3600.0
    """Pods that started less than so long ago are left alone."""
    preempt_min_runtime: float = 0.0
    reclaim_min_runtime: float = 0.0
    reclaim_min_runtime_method: Literal["lca", "queue"] = "lca"
    saturation_multiplier: float = 1.0
    k_value: float = 1.0
    """How much past usage (`World.usage`) takes away from the weight of a queue when over-quota shares are divided."""
    queue_depth: Mapping[str, int] = field(default_factory=dict)
    """Action -> how many gangs of a leaf queue it looks at, in the order of the queue; others are looked at in full."""
    stuck_after: float = 120.0
    """Past its deletion deadline, after which a terminating pod's resources are no longer counted on."""
    detailed_fit_errors: bool = False
    """Whether verdicts name nodes one by one, with the reason of each."""
    handoff_patience: float = 300.0
    """How long a BindRequest of KAI keeps its pod's place while nobody carries it out."""
    gpu_sharing: bool = True
    """Whether pods may ask for a part of a GPU."""
    node_pool: str | None = None
    """Value of the node pool label on the nodes and gangs that are served; empty: those without it; None: all."""
    node_pool_label: str = NODE_POOL_LABEL
    queue_label: str = QUEUE_LABEL
    gpu_drivers: frozenset[str] = frozenset({"gpu.nvidia.com"})
    """DRA drivers whose allocated devices count as GPUs in quotas."""
    allocation_policy: Literal["best-fit", "kubernetes"] = "best-fit"
    features: Features = field(default_factory=Features)
    """Of Dynamic Resource Allocation, as the API server has them."""

    @property
    def scope(self) -> tuple[object, ...]:
        """The part by which a World takes objects in: a World lives as long as it stays the same."""
        return (
            self.scheduler_names,
            self.grouped_scheduler,
            self.default_queue,
            self.gpu_sharing,
            self.node_pool,
            self.node_pool_label,
            self.queue_label,
            self.gpu_drivers,
            self.features,
        )

    def serves(self, labels: Mapping[str, str]) -> bool:
        """Whether a node or gang with these labels is in the node pool."""
        return self.node_pool is None or labels.get(self.node_pool_label) == (self.node_pool or None)
