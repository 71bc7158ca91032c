"""The one protocol between a node's driver and its GPUs, simulated (`simulated`) or real (`real`).

It is NVML as far as a driver needs it, with three things NVML leaves to other tools: the time slice (`nvidia-smi
compute-policy`), MPS control daemons, and binding to vfio-pci. Calls block, are safe to call from any thread, and
raise NvmlError (NvmlTimeout when NVML hangs); they are made from worker threads, never on an event loop.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Protocol

import msgspec

from capstan.node.models import GpuModel

COMPUTE_DEFAULT = "Default"
COMPUTE_EXCLUSIVE_PROCESS = "ExclusiveProcess"


class Gpu(msgspec.Struct, frozen=True):
    """The facts of one GPU that do not change while the driver runs. Identified by `uuid`."""

    index: int
    minor: int
    """`/dev/nvidia<minor>`; not stable over reboots."""
    uuid: str
    model: GpuModel
    pci_bus_id: str
    pcie_root: str
    numa_node: int | None
    nvlink_domain: str | None
    """Unique in the cluster; None without NVLink."""
    addressing_mode: str
    mig_capable: bool
    """Whether MIG placements are offered: the product has MIG and its mode can be, or already is, switched on."""
    whole_capable: bool = True
    """Whether the whole GPU is offered: false when MIG mode is on and cannot be switched off without a reset."""


class Host(msgspec.Struct, frozen=True):
    """A node's GPUs and driver."""

    driver_version: str
    cuda_version: tuple[int, int]
    gpus: tuple[Gpu, ...]
    simulated: bool
    iommufd: bool = False
    vfio: bool = True
    """Whether GPUs can be bound to vfio-pci: an IOMMU is active and vfio-pci is there."""
    memory_limits: str = "none"
    """How a share's memory limit is held: `cgroup` by the driver, `simulated` recorded only, `none` not at all."""


class MigDevice(msgspec.Struct, frozen=True):
    """A GPU instance with the one compute instance that fills it; `uuid` is empty while it has none."""

    gpu: str
    gi_id: int
    profile_id: int
    start: int
    uuid: str
    gi_cap: int = 0
    """Minor number of `/dev/nvidia-caps/nvidia-cap<N>` that opens the GPU instance."""
    ci_cap: int = 0


class MpsSettings(msgspec.Struct, frozen=True):
    """What an MPS control daemon is started with. Limits are bytes by GPU UUID."""

    active_thread_percentage: int | None = None
    pinned_memory_limits: Mapping[str, int] = {}
    multi_user: bool = False


class VfioNodes(msgspec.Struct, frozen=True):
    """The device files of a GPU bound to vfio-pci."""

    group: int
    cdev: str | None = None
    """`/dev/vfio/devices/vfio<N>` with IOMMUFD."""


class GpuEvent(msgspec.Struct, frozen=True):
    """A health event. `gpu` is None when the whole driver is concerned, `gi_id` set when one GPU instance is."""

    kind: str
    """`xid`, `lost` or `recovered`."""
    gpu: str | None
    xid: int = 0
    gi_id: int | None = None


class Nvml(Protocol):
    def host(self) -> Host: ...

    def boot_id(self) -> str:
        """Changes when the machine reboots, which loses every MIG device, mode and limit."""
        ...

    def mig_enabled(self, gpu: str) -> bool: ...

    def set_mig_enabled(self, gpu: str, enabled: bool) -> None:
        """Takes effect at once. IN_USE when the GPU has MIG devices or holders."""
        ...

    def mig_devices(self, gpu: str) -> Sequence[MigDevice]: ...

    def create_gpu_instance(self, gpu: str, profile_id: int, start: int) -> int:
        """The new instance's id. INSUFFICIENT_RESOURCES when something is in the way."""
        ...

    def create_compute_instance(self, gpu: str, gi_id: int) -> MigDevice: ...

    def destroy_compute_instance(self, gpu: str, gi_id: int) -> None: ...

    def destroy_gpu_instance(self, gpu: str, gi_id: int) -> None:
        """IN_USE while it has a compute instance."""
        ...

    def compute_mode(self, gpu: str) -> str: ...

    def set_compute_mode(self, gpu: str, mode: str) -> None: ...

    def timeslice(self, gpu: str) -> int: ...

    def set_timeslice(self, gpu: str, interval: int) -> None:
        """0 default, 1 short, 2 medium, 3 long."""
        ...

    def memory_limits(self, gpu: str) -> Mapping[str, int]:
        """Bytes by name space (the share's cgroup or id)."""
        ...

    def set_memory_limit(self, gpu: str, name_space: str, limit: int | None) -> None:
        """None removes the limit. NOT_SUPPORTED where the driver cannot hold one, or in MIG mode."""
        ...

    def mps(self) -> Mapping[str, MpsSettings]:
        """Settings of the running control daemons by daemon id."""
        ...

    def start_mps(self, daemon: str, gpus: Sequence[str], settings: MpsSettings) -> None: ...

    def stop_mps(self, daemon: str) -> None: ...

    def vfio_nodes(self, gpu: str) -> VfioNodes | None:
        """The device files, or None while the GPU is with its own driver."""
        ...

    def bind_vfio(self, gpu: str) -> VfioNodes:
        """Hands the GPU's whole IOMMU group to vfio-pci and verifies the driver link."""
        ...

    def release_vfio(self, gpu: str) -> None: ...

    def recovery_action(self, gpu: str) -> str:
        """What a sick GPU needs (NVML_FI_DEV_GET_GPU_RECOVERY_ACTION): `None`, `Reset`, `Reboot` or `Drain`."""
        ...

    def subscribe(self, listener: Callable[[GpuEvent], None]) -> None:
        """Events are delivered on any thread until `close`."""
        ...

    def close(self) -> None: ...
