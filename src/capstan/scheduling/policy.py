"""Settings of a scheduling cycle. The defaults are KAI's."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from capstan.api.scheduling import SCHEDULER_NAME

Placement = Literal["binpack", "spread"]
ACTIONS = ("allocate", "consolidate", "reclaim", "preempt", "evict-stale", "requeue")
STUCK_AFTER = 120.0
"""Seconds past its deletion deadline after which a terminating pod's resources are no longer counted on (KAI)."""


@dataclass(frozen=True, slots=True)
class Policy:
    """What may differ between clusters. Times in seconds.

    `scheduler_names` are the values of `spec.schedulerName` this engine owns. A pod without a queue goes to
    `default_queue`; the empty name means: scheduled without any quota, in the order of its priority and age.
    """

    actions: tuple[str, ...] = ACTIONS
    scheduler_names: frozenset[str] = frozenset({SCHEDULER_NAME})
    default_queue: str = ""
    gpu_placement: Placement = "binpack"
    cpu_placement: Placement = "binpack"
    shared_gpu_placement: Placement | None = None
    """Over the devices of a node; None: as `gpu_placement`."""
    max_consolidation_victims: int = 16
    reclaim_may_consolidate: bool = True
    stale_grace: float = 60.0
    preempt_min_runtime: float = 0.0
    reclaim_min_runtime: float = 0.0
    reclaim_min_runtime_method: Literal["lca", "queue"] = "lca"
    saturation_multiplier: float = 1.0
    k_value: float = 1.0
    """How much past usage (`World.usage`) takes away from the weight of a queue when over-quota shares are divided."""
    node_pool: str | None = None
    """Value of the node pool label this shard serves; None: nodes and gangs without the label... and all others too."""
    gpu_drivers: frozenset[str] = frozenset({"gpu.nvidia.com"})
    """DRA drivers whose allocated devices count as GPUs in quotas."""
    allocation_policy: Literal["best-fit", "kubernetes"] = "best-fit"
