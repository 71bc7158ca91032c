"""What a cycle decides, as data. The scheduler controller carries it out; simulations read it."""

from __future__ import annotations

from dataclasses import dataclass, field

from capstan.api.core import ExtendedResourceRequestMapping
from capstan.api.resource import AllocationResult, ResourceClaim

Key = tuple[str, str]
"""(namespace, name)"""


@dataclass(frozen=True, slots=True)
class ImpliedClaim:
    """The ResourceClaim to create for a pod's extended resources or GPU share, already allocated."""

    claim: ResourceClaim
    allocation: AllocationResult
    mappings: tuple[ExtendedResourceRequestMapping, ...] = ()


@dataclass(frozen=True, slots=True)
class Bind:
    """Start a pod on a node now.

    `claims` are allocations to write first (claims that have none yet); `reserve` names every claim that must list the
    pod in `reservedFor`. `gpu_groups` are the shared devices on device-plugin nodes.
    """

    namespace: str
    pod: str
    uid: str
    node: str
    group: str
    claims: dict[Key, AllocationResult] = field(default_factory=dict)
    implied: ImpliedClaim | None = None
    reserve: tuple[Key, ...] = ()
    gpu_groups: tuple[str, ...] = ()
    zones: tuple[str, ...] = ()
    """NUMA zones that the engine counts on, on nodes that align."""


@dataclass(frozen=True, slots=True)
class Eviction:
    """End a pod, because the simulation proved that `for_group` starts in its place (or its gang is stale)."""

    namespace: str
    pod: str
    uid: str
    node: str
    group: str
    action: str
    """reclaim | preempt | consolidate | evict-stale"""
    for_group: str
    reason: str
    """In words, with numbers."""


@dataclass(frozen=True, slots=True)
class Promise:
    """A pod waits for resources on `node` that are being released; nothing is written but the nomination."""

    namespace: str
    pod: str
    uid: str
    node: str
    group: str


@dataclass(frozen=True, slots=True)
class Verdict:
    """Why a gang stays pending. `reason` is a KAI condition reason; `message` carries the decisive bound in numbers."""

    namespace: str
    group: str
    reason: str
    message: str
    details: dict[str, object] = field(default_factory=dict)
    nodes: dict[str, int] = field(default_factory=dict)
    """Reason -> number of nodes that were refused for it."""
    pods: tuple[str, ...] = ()
    """Names of the pods that wait."""


@dataclass(frozen=True, slots=True)
class Plan:
    binds: list[Bind] = field(default_factory=list)
    evictions: list[Eviction] = field(default_factory=list)
    promises: list[Promise] = field(default_factory=list)
    verdicts: list[Verdict] = field(default_factory=list)
