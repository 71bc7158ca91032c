"""What the journal says about one prepared claim: which devices it holds and which steps were, or were to be, taken.

Pure data. `plan` makes records, `ledger` stores them, `steps` carries their steps out and back.
"""

from __future__ import annotations

from typing import Literal

import msgspec

from capstan.node.nvml import MpsSettings


class Holding(msgspec.Struct, frozen=True):
    """One allocated device as the hardware sees it."""

    request: str
    pool: str
    device: str
    kind: str
    gpu: str
    memory: int = 0
    """Bytes of the GPU that the claim consumes (kind `gpu` only): all of it, or its share."""
    profile_id: int | None = None
    """Of the MIG profile (kind `mig` only)."""
    start: int = 0
    size: int = 8
    """Memory slices [start, start + size) that it covers."""
    share_id: str | None = None
    admin: bool = False
    """Admin access observes a device that others use: it occupies nothing and changes nothing."""
    sharing: str = ""
    """The normalised sharing settings; claims that share a GPU must have the same."""
    cdi_name: str = ""
    limit: int | None = None
    """Bytes that the holder may use of the GPU, when that is less than all."""


class _Step(msgspec.Struct, frozen=True, tag_field="step"):
    """A change of the node and, by `capstan.node.steps`, its inverse."""


class MigMode(_Step, frozen=True, tag="mig-mode"):
    gpu: str


class MigInstance(_Step, frozen=True, tag="mig-instance"):
    gpu: str
    profile_id: int
    start: int
    gi_id: int | None = None
    """Known once it was made, with the three fields below."""
    uuid: str = ""
    gi_cap: int = 0
    ci_cap: int = 0
    adopted: bool = False
    """Somebody else made it: it is used as it is and never destroyed."""


class TimeSlice(_Step, frozen=True, tag="time-slice"):
    gpu: str
    interval: int


class ComputeMode(_Step, frozen=True, tag="compute-mode"):
    gpu: str
    mode: str


class MemoryLimit(_Step, frozen=True, tag="memory-limit"):
    gpu: str
    name_space: str
    limit: int


class MpsDaemon(_Step, frozen=True, tag="mps-daemon"):
    name: str
    gpu: str
    settings: MpsSettings


class Passthrough(_Step, frozen=True, tag="passthrough"):
    gpu: str
    use_iommufd: bool = False
    api_device: bool = False
    group: int | None = None
    """Known once it was bound."""
    cdev: str | None = None


class CdiSpec(_Step, frozen=True, tag="cdi-spec"):
    claim_uid: str


Step = MigMode | MigInstance | TimeSlice | ComputeMode | MemoryLimit | MpsDaemon | Passthrough | CdiSpec


def key(step: Step) -> tuple[str, str]:
    """What the step changes. A step is undone when the last record that has one with its key goes."""
    match step:
        case MigInstance():
            return ("mig-instance", f"{step.gpu}/{step.profile_id}/{step.start}")
        case MemoryLimit():
            return ("memory-limit", f"{step.gpu}/{step.name_space}")
        case MpsDaemon():
            return ("mps-daemon", step.name)
        case CdiSpec():
            return ("cdi-spec", step.claim_uid)
        case MigMode():
            return ("mig-mode", step.gpu)
        case TimeSlice():
            return ("time-slice", step.gpu)
        case ComputeMode():
            return ("compute-mode", step.gpu)
        case Passthrough():
            return ("passthrough", step.gpu)


def is_adopted(step: Step) -> bool:
    """Whether the step only uses what somebody else made."""
    return isinstance(step, MigInstance) and step.adopted


class Record(msgspec.Struct, frozen=True):
    """One claim's entry in the journal.

    `started`: written before the first step, so any of the steps may or may not have been taken. `prepared`: all were.
    """

    uid: str
    namespace: str
    name: str
    state: Literal["started", "prepared"]
    holdings: tuple[Holding, ...]
    steps: tuple[Step, ...]

    @property
    def gpus(self) -> list[str]:
        """UUIDs of the GPUs concerned, sorted: the order in which their locks are taken."""
        return sorted({holding.gpu for holding in self.holdings})
