"""What a cycle decides, as data. The scheduler controller carries it out; simulations read it."""

from __future__ import annotations

import msgspec

from capstan.api.core import ExtendedResourceRequestMapping
from capstan.api.resource import AllocationResult, ResourceClaim
from capstan.scheduling.measures import Measures

Key = tuple[str, str]
"""(namespace, name)"""


class ImpliedClaim(msgspec.Struct, frozen=True, gc=False):
    """The ResourceClaim to create for a pod's extended resources or GPU share, already allocated."""

    claim: ResourceClaim
    allocation: AllocationResult
    mappings: tuple[ExtendedResourceRequestMapping, ...] = ()


class Grant(msgspec.Struct, frozen=True, gc=False):
    """What is allocated to a claim that has nothing yet."""

    namespace: str
    name: str
    allocation: AllocationResult


class Bind(msgspec.Struct, frozen=True, gc=False):
    """Start a pod on a node now.

    `grants` are allocations to write first; `reserve` names every claim that must list the pod in `reservedFor`.
    `gpu_groups` are the shared devices on device-plugin nodes.
    """

    namespace: str
    pod: str
    uid: str
    node: str
    group: str
    grants: tuple[Grant, ...] = ()
    implied: ImpliedClaim | None = None
    reserve: tuple[Key, ...] = ()
    gpu_groups: tuple[str, ...] = ()
    volumes: tuple[tuple[Key, str], ...] = ()
    """(PersistentVolumeClaim, PersistentVolume) to bind before the pod; an empty volume: have one made on the node."""
    zones: tuple[tuple[str, str, int], ...] = ()
    """(NUMA zone, resource, amount in millicores, bytes or pieces) that the engine counts on, on nodes that align."""

    @property
    def claims(self) -> dict[Key, AllocationResult]:
        """`grants` by claim."""
        return {(grant.namespace, grant.name): grant.allocation for grant in self.grants}


class Eviction(msgspec.Struct, frozen=True, gc=False):
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


class Promise(msgspec.Struct, frozen=True, gc=False):
    """A pod waits for resources on `node` that are being released; nothing is written but the nomination."""

    namespace: str
    pod: str
    uid: str
    node: str
    group: str


class Verdict(msgspec.Struct, frozen=True, gc=False):
    """Why a gang stays pending. `reason` is a KAI condition reason; `message` carries the decisive bound in numbers."""

    namespace: str
    group: str
    reason: str
    message: str
    details: dict[str, object] = {}
    nodes: dict[str, int] = {}
    """Reason -> number of nodes that were refused for it."""
    pods: tuple[str, ...] = ()
    """Names of the pods that wait."""


class Stamp(msgspec.Struct, frozen=True, gc=False):
    """An annotation to set on a PodGroup, so that the engine knows it again after a restart; None removes it."""

    namespace: str
    group: str
    annotation: str
    value: str | None
    news: str = ""
    """For people, if they are to hear of it."""


class Plan(msgspec.Struct, frozen=True, gc=False):
    binds: list[Bind] = []
    evictions: list[Eviction] = []
    promises: list[Promise] = []
    verdicts: list[Verdict] = []
    stamps: list[Stamp] = []
    measures: Measures = msgspec.field(default_factory=Measures)
