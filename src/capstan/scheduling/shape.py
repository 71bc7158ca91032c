"""What a pod asks of its node, once for all pods that are alike."""

from __future__ import annotations

from dataclasses import dataclass, field

from capstan.api.core import PodAffinity, PreferredSchedulingTerm, Toleration, TopologySpreadConstraint
from capstan.api.selectors import NodeSelector
from capstan.scheduling.amounts import GPU, GPU_COLUMN, Amounts


@dataclass(frozen=True, slots=True)
class Share:
    """A part of each of `devices` GPUs: `portion` in millionths of one, or `memory` in MiB (the other is 0)."""

    portion: int
    memory: int
    devices: int

    def on(self, gpu_memory: int) -> int:
        """Millionths of one device on a node with GPUs of `gpu_memory` MiB; more than a device when it cannot fit."""
        if not self.memory:
            return self.portion
        return -(-self.memory * GPU // gpu_memory) if gpu_memory > 0 else GPU + 1


@dataclass(frozen=True, slots=True)
class HostPort:
    ip: str
    protocol: str
    port: int

    def clashes(self, other: HostPort) -> bool:
        wild = "", "0.0.0.0"
        return (self.port, self.protocol) == (other.port, other.protocol) and (
            self.ip == other.ip or self.ip in wild or other.ip in wild
        )


@dataclass(slots=True, eq=False)
class Shape:
    """Everything about a pod that matters for where it may run. Pods that are alike share one shape."""

    number: int
    requests: tuple[tuple[int, int], ...]
    """(column, amount) of what a node must have free; the GPU column only for whole devices."""
    quota: Amounts
    """What it costs its queue; for a share in MiB the GPU part depends on the node (`World.charge`)."""
    share: Share | None = None
    node_selector: tuple[tuple[str, str], ...] = ()
    node_affinity: NodeSelector | None = None
    preferred_nodes: list[PreferredSchedulingTerm] = field(default_factory=list)
    tolerations: list[Toleration] = field(default_factory=list)
    pod_affinity: PodAffinity | None = None
    pod_anti_affinity: PodAffinity | None = None
    spread: list[TopologySpreadConstraint] = field(default_factory=list)
    ports: tuple[HostPort, ...] = ()
    claims: bool = False
    """Uses ResourceClaims by name."""
    volumes: bool = False
    by_name: bool = False
    """Its node rules name single nodes, so that the verdict for a node class does not hold for its members."""
    error: str = ""
    """Set when the request itself is wrong; such a pod never starts."""
    lacks: tuple[str, ...] = ()
    """Resources it asks for that nothing in the cluster offers: they have no column, and no node suits the shape."""
    numa: tuple[tuple[str, int], ...] = ()
    """What NUMA alignment concerns: devices always, CPU and memory only of Guaranteed pods."""

    gpus: int = field(init=False)
    """Whole devices asked for."""
    on_gpu: bool = field(init=False)
    company: bool = field(init=False)
    """Whether volumes or what other pods are and do decide about feasibility."""
    dynamic: bool = field(init=False)
    """Whether other pods or single devices decide about feasibility, beyond the columns of the node."""

    def __post_init__(self) -> None:
        self.gpus = next((amount for column, amount in self.requests if column == GPU_COLUMN), 0)
        self.on_gpu = self.share is not None or self.quota[2] > 0
        self.company = bool(self.volumes or self.ports or self.pod_affinity or self.pod_anti_affinity or self.spread)
        self.dynamic = self.claims or self.company
