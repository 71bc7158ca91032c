"""Simulated GPUs: a state machine that behaves like NVML, for laptops, demos and tests.

Implements `capstan.node.nvml.Nvml`. With a `state_path` the state outlives the process, as real GPUs do: a restarted
driver finds the MIG devices, modes and limits that its predecessor left. `reboot` loses them, as a real reboot does.
MIG mode switches at once, also on A100s, of which real ones need a reset first. Faults are injected with `fail`, health
events with `raise_xid`, `lose` and `recover`.
"""

from __future__ import annotations

import os
import threading
import uuid
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path

import msgspec

from capstan.node.errors import NvmlError
from capstan.node.models import GpuModel, MigProfile, NodeModel
from capstan.node.nvml import (
    COMPUTE_DEFAULT,
    COMPUTE_EXCLUSIVE_PROCESS,
    Gpu,
    GpuEvent,
    Host,
    MigDevice,
    MpsSettings,
    VfioNodes,
)

DRIVER_VERSION = "580.95.05"
CUDA_VERSION = (13, 0)
_NAMESPACE = uuid.UUID("6d2f2c5e-8c5b-5a0e-9a57-3f0a6f5d1c11")
_CAPS_FIRST, _CAPS_PER_GPU, _CAPS_PER_GI = 3, 135, 9
_MAX_GPU_INSTANCES = 15


class _GpuInstance(msgspec.Struct):
    profile_id: int
    start: int
    uuid: str = ""
    """Empty while it has no compute instance."""


class _GpuState(msgspec.Struct):
    mig: bool = False
    instances: dict[int, _GpuInstance] = {}
    compute_mode: str = COMPUTE_DEFAULT
    timeslice: int = 0
    limits: dict[str, int] = {}
    vfio: bool = False
    recovery_action: str = "None"
    lost: bool = False


class _State(msgspec.Struct):
    boot_id: str
    gpus: list[_GpuState]
    created: int = 0
    """MIG devices ever made: makes their UUIDs unique."""
    mps: dict[str, MpsSettings] = {}


class SimulatedNvml:
    """The GPUs of one simulated node. All methods are safe to call from any thread."""

    def __init__(self, node_name: str, model: NodeModel, state_path: Path | None = None) -> None:
        self._node_name = node_name
        self._path = state_path
        self._lock = threading.RLock()
        self._listeners: list[Callable[[GpuEvent], None]] = []
        self._faults: list[tuple[str, str]] = []
        self._host = _host(node_name, model)
        self._index = {gpu.uuid: gpu.index for gpu in self._host.gpus}
        self._state = self._load()

    def _load(self) -> _State:
        if self._path is not None and self._path.exists():
            state = msgspec.json.decode(self._path.read_bytes(), type=_State)
            if len(state.gpus) == len(self._host.gpus):
                return state
        return _State(boot_id=str(uuid.uuid4()), gpus=[_GpuState() for _ in self._host.gpus])

    def _save(self) -> None:
        """The file stands for the hardware: it survives the death of a process, so rename is enough and no fsync."""
        if self._path is None:
            return
        scratch = self._path.with_suffix(".tmp")
        scratch.write_bytes(msgspec.json.encode(self._state))
        os.replace(scratch, self._path)

    # -- faults and events -------------------------------------------------------------------------------------------

    def fail(self, call: str, code: str, times: int = 1) -> None:
        """The next `times` calls of the method named `call` raise NvmlError with that code, and do nothing."""
        self._faults += [(call, code)] * times

    def raise_xid(self, gpu: str, xid: int, *, gi_id: int | None = None, recovery_action: str = "Reset") -> None:
        """An XID error; the GPU asks for `recovery_action` until `recover`."""
        with self._lock:
            self._gpu(gpu).recovery_action = recovery_action
            self._save()
        self._emit(GpuEvent("xid", gpu, xid, gi_id))

    def lose(self, gpu: str) -> None:
        """The GPU falls off the bus: every call that touches it fails with GPU_IS_LOST until `recover`."""
        with self._lock:
            state = self._gpu(gpu)
            state.lost, state.recovery_action = True, "Reboot"
            self._save()
        self._emit(GpuEvent("lost", gpu))

    def recover(self, gpu: str) -> None:
        with self._lock:
            state = self._state.gpus[self._index[gpu]]
            state.lost, state.recovery_action = False, "None"
            self._save()
        self._emit(GpuEvent("recovered", gpu))

    def reboot(self) -> None:
        """A machine reboot: a new boot id, and everything that GPUs forget is forgotten."""
        with self._lock:
            self._state = _State(boot_id=str(uuid.uuid4()), gpus=[_GpuState() for _ in self._host.gpus])
            self._save()

    def _emit(self, event: GpuEvent) -> None:
        for listener in self._listeners:
            listener(event)

    def subscribe(self, listener: Callable[[GpuEvent], None]) -> None:
        self._listeners.append(listener)

    def close(self) -> None:
        self._listeners.clear()

    # -- facts -------------------------------------------------------------------------------------------------------

    def host(self) -> Host:
        return self._host

    def boot_id(self) -> str:
        """Written when first asked for, so that a node that never prepares anything writes no file before that."""
        with self._lock:
            if self._path is not None and not self._path.exists():
                self._save()
            return self._state.boot_id

    # -- MIG ---------------------------------------------------------------------------------------------------------

    def mig_enabled(self, gpu: str) -> bool:
        with self._lock:
            return self._gpu(gpu).mig

    def set_mig_enabled(self, gpu: str, enabled: bool) -> None:
        with self._lock:
            state = self._enter("set_mig_enabled", gpu)
            if not self._host.gpus[self._index[gpu]].model.profiles:
                raise NvmlError("NOT_SUPPORTED", f"MIG mode of {gpu}")
            if state.mig != enabled and (state.instances or state.vfio):
                raise NvmlError("IN_USE", f"switching MIG mode of {gpu}")
            state.mig = enabled
            self._save()

    def mig_devices(self, gpu: str) -> Sequence[MigDevice]:
        with self._lock:
            return [self._mig_device(gpu, gi_id) for gi_id in sorted(self._gpu(gpu).instances)]

    def create_gpu_instance(self, gpu: str, profile_id: int, start: int) -> int:
        with self._lock:
            state = self._enter("create_gpu_instance", gpu)
            model = self._host.gpus[self._index[gpu]].model
            profile = model.profile(profile_id)
            where = f"GPU instance of profile {profile_id} at {start} on {gpu}"
            if not state.mig or state.vfio:
                raise NvmlError("NOT_SUPPORTED", where, "the GPU is not in MIG mode")
            if profile is None or start not in profile.starts:
                raise NvmlError("INVALID_ARGUMENT", where)
            others = [_profile(model, other) for other in state.instances.values()]
            taken = {
                s
                for p, o in zip(others, state.instances.values(), strict=True)
                for s in range(o.start, o.start + p.size)
            }
            if taken & set(range(start, start + profile.size)) or not _engines_left(model, [*others, profile]):
                raise NvmlError("INSUFFICIENT_RESOURCES", where)
            first = 0 if profile.size == 8 else 1
            gi_id = next(i for i in range(first, _MAX_GPU_INSTANCES) if i not in state.instances)
            state.instances[gi_id] = _GpuInstance(profile_id, start)
            self._save()
            return gi_id

    def create_compute_instance(self, gpu: str, gi_id: int) -> MigDevice:
        with self._lock:
            instance = self._instance("create_compute_instance", gpu, gi_id)
            if instance.uuid:
                raise NvmlError("INSUFFICIENT_RESOURCES", f"compute instance in GPU instance {gi_id} of {gpu}")
            self._state.created += 1
            instance.uuid = f"MIG-{uuid.uuid5(_NAMESPACE, f'{gpu}/{self._state.boot_id}/{self._state.created}')}"
            self._save()
            return self._mig_device(gpu, gi_id)

    def destroy_compute_instance(self, gpu: str, gi_id: int) -> None:
        with self._lock:
            self._instance("destroy_compute_instance", gpu, gi_id).uuid = ""
            self._save()

    def destroy_gpu_instance(self, gpu: str, gi_id: int) -> None:
        with self._lock:
            if self._instance("destroy_gpu_instance", gpu, gi_id).uuid:
                raise NvmlError("IN_USE", f"destroying GPU instance {gi_id} of {gpu}", "it has a compute instance")
            del self._gpu(gpu).instances[gi_id]
            self._save()

    def _mig_device(self, gpu: str, gi_id: int) -> MigDevice:
        instance = self._gpu(gpu).instances[gi_id]
        minor = self._host.gpus[self._index[gpu]].minor
        gi_cap = _CAPS_FIRST + _CAPS_PER_GPU * minor + _CAPS_PER_GI * gi_id
        return MigDevice(gpu, gi_id, instance.profile_id, instance.start, instance.uuid, gi_cap, gi_cap + 1)

    # -- modes and limits --------------------------------------------------------------------------------------------

    def compute_mode(self, gpu: str) -> str:
        with self._lock:
            return self._gpu(gpu).compute_mode

    def set_compute_mode(self, gpu: str, mode: str) -> None:
        with self._lock:
            state = self._enter("set_compute_mode", gpu)
            if mode not in (COMPUTE_DEFAULT, COMPUTE_EXCLUSIVE_PROCESS):
                raise NvmlError("INVALID_ARGUMENT", f"compute mode {mode!r} of {gpu}")
            state.compute_mode = mode
            self._save()

    def timeslice(self, gpu: str) -> int:
        with self._lock:
            return self._gpu(gpu).timeslice

    def set_timeslice(self, gpu: str, interval: int) -> None:
        with self._lock:
            state = self._enter("set_timeslice", gpu)
            if not 0 <= interval <= 3:
                raise NvmlError("INVALID_ARGUMENT", f"time slice {interval} of {gpu}")
            state.timeslice = interval
            self._save()

    def memory_limits(self, gpu: str) -> Mapping[str, int]:
        with self._lock:
            return dict(self._gpu(gpu).limits)

    def set_memory_limit(self, gpu: str, name_space: str, limit: int | None) -> None:
        with self._lock:
            state = self._enter("set_memory_limit", gpu)
            if limit is None:
                state.limits.pop(name_space, None)
            elif state.mig:
                raise NvmlError("NOT_SUPPORTED", f"memory limit on {gpu}", "the GPU is in MIG mode")
            else:
                state.limits[name_space] = limit
            self._save()

    def mps(self) -> Mapping[str, MpsSettings]:
        with self._lock:
            return dict(self._state.mps)

    def start_mps(self, daemon: str, gpus: Sequence[str], settings: MpsSettings) -> None:
        with self._lock:
            for gpu in gpus:
                self._enter("start_mps", gpu)
            self._state.mps[daemon] = settings
            self._save()

    def stop_mps(self, daemon: str) -> None:
        with self._lock:
            self._state.mps.pop(daemon, None)
            self._save()

    # -- passthrough -------------------------------------------------------------------------------------------------

    def vfio_nodes(self, gpu: str) -> VfioNodes | None:
        with self._lock:
            return VfioNodes(group=16 + self._index[gpu]) if self._gpu(gpu).vfio else None

    def bind_vfio(self, gpu: str) -> VfioNodes:
        with self._lock:
            state = self._enter("bind_vfio", gpu)
            if state.mig:
                raise NvmlError("IN_USE", f"binding {gpu} to vfio-pci", "the GPU is in MIG mode")
            state.vfio = True
            self._save()
            return VfioNodes(group=16 + self._index[gpu])

    def release_vfio(self, gpu: str) -> None:
        with self._lock:
            self._enter("release_vfio", gpu).vfio = False
            self._save()

    def recovery_action(self, gpu: str) -> str:
        with self._lock:
            return self._state.gpus[self._index[gpu]].recovery_action

    # -- the common way in -------------------------------------------------------------------------------------------

    def _gpu(self, gpu: str) -> _GpuState:
        index = self._index.get(gpu)
        if index is None:
            raise NvmlError("NOT_FOUND", f"GPU {gpu} of node {self._node_name}")
        state = self._state.gpus[index]
        if state.lost:
            raise NvmlError("GPU_IS_LOST", f"GPU {gpu} of node {self._node_name}")
        return state

    def _enter(self, call: str, gpu: str) -> _GpuState:
        """The state a changing call works on, after injected faults had their turn."""
        for i, (name, code) in enumerate(self._faults):
            if name == call:
                del self._faults[i]
                raise NvmlError(code, f"{call} of {gpu}")
        return self._gpu(gpu)

    def _instance(self, call: str, gpu: str, gi_id: int) -> _GpuInstance:
        instance = self._enter(call, gpu).instances.get(gi_id)
        if instance is None:
            raise NvmlError("NOT_FOUND", f"GPU instance {gi_id} of {gpu}")
        return instance


def _host(node_name: str, model: NodeModel) -> Host:
    gpus = []
    for index, slot in enumerate(model.slots):
        assert model.gpu is not None
        domain = f"{uuid.uuid5(_NAMESPACE, node_name).hex[:16]}.{slot.nvlink_domain}"
        gpus.append(
            Gpu(
                index=index,
                minor=index,
                uuid=f"GPU-{uuid.uuid5(_NAMESPACE, f'{node_name}/{index}')}",
                model=model.gpu,
                pci_bus_id=slot.pci_bus_id,
                pcie_root=slot.pcie_root,
                numa_node=slot.numa_node,
                nvlink_domain=None if slot.nvlink_domain is None else domain,
                addressing_mode="None",
                mig_capable=model.mig,
            )
        )
    return Host(DRIVER_VERSION, CUDA_VERSION, tuple(gpus), simulated=True, memory_limits="simulated")


def _profile(model: GpuModel, instance: _GpuInstance) -> MigProfile:
    profile = model.profile(instance.profile_id)
    assert profile is not None
    return profile


def _engines_left(model: GpuModel, profiles: Iterable[MigProfile]) -> bool:
    """Whether the GPU has the compute slices and engines for all these instances together."""
    wanted = list(profiles)
    return all(
        sum(getattr(p, engine) for p in wanted) <= max(getattr(p, engine) for p in model.profiles)
        for engine in (
            "slices",
            "multiprocessors",
            "copy_engines",
            "decoders",
            "encoders",
            "jpeg_engines",
            "ofa_engines",
        )
    )
