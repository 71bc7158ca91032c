"""Carrying out a record's steps and taking them back. Each may be repeated, and undoing what was never done is a no-op.

A prepare that was killed between two steps leaves a `started` record; undoing all its steps, last first, is right
wherever it stopped. The result of a step (a MIG device's UUID, an IOMMU group) is filled into the step.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import msgspec

from capstan.node import cdi
from capstan.node.errors import NvmlError
from capstan.node.nvml import COMPUTE_DEFAULT, Gpu, MigDevice, Nvml
from capstan.node.records import (
    CdiSpec,
    ComputeMode,
    MemoryLimit,
    MigInstance,
    MigMode,
    MpsDaemon,
    Passthrough,
    Record,
    Step,
    TimeSlice,
)


class Machine(msgspec.Struct, frozen=True):
    """All that steps act on."""

    nvml: Nvml
    cdi_dir: Path
    mps_dir: Path
    gpus: Mapping[str, Gpu]


def apply(step: Step, record: Record, machine: Machine) -> Step:
    """Takes the step, unless it is taken already, and returns it with its results. Raises NvmlError or OSError."""
    nvml = machine.nvml
    match step:
        case MigMode():
            if not nvml.mig_enabled(step.gpu):
                nvml.set_mig_enabled(step.gpu, True)
        case MigInstance():
            device = _make_instance(step, nvml)
            return msgspec.structs.replace(
                step, gi_id=device.gi_id, uuid=device.uuid, gi_cap=device.gi_cap, ci_cap=device.ci_cap
            )
        case TimeSlice():
            nvml.set_timeslice(step.gpu, step.interval)
        case ComputeMode():
            nvml.set_compute_mode(step.gpu, step.mode)
        case MemoryLimit():
            nvml.set_memory_limit(step.gpu, step.name_space, step.limit)
        case MpsDaemon():
            if nvml.mps().get(step.name) != step.settings:
                nvml.start_mps(step.name, [step.gpu], step.settings)
        case Passthrough():
            nodes = nvml.vfio_nodes(step.gpu) or nvml.bind_vfio(step.gpu)
            return msgspec.structs.replace(step, group=nodes.group, cdev=nodes.cdev)
        case CdiSpec():
            cdi.write(machine.cdi_dir, record.uid, _spec(record, machine))
    return step


def undo(step: Step, machine: Machine) -> None:
    """Takes the step back if it was taken. On a GPU that is lost there is nothing left to take back."""
    try:
        _undo(step, machine)
    except NvmlError as error:
        if error.code != "GPU_IS_LOST":
            raise


def _undo(step: Step, machine: Machine) -> None:
    nvml = machine.nvml
    match step:
        case MigMode():
            # Somebody else's MIG devices keep the mode on.
            if nvml.mig_enabled(step.gpu) and not nvml.mig_devices(step.gpu):
                nvml.set_mig_enabled(step.gpu, False)
        case MigInstance():
            if not step.adopted:
                _destroy_instance(step, nvml)
        case TimeSlice():
            nvml.set_timeslice(step.gpu, 0)
        case ComputeMode():
            nvml.set_compute_mode(step.gpu, COMPUTE_DEFAULT)
        case MemoryLimit():
            nvml.set_memory_limit(step.gpu, step.name_space, None)
        case MpsDaemon():
            nvml.stop_mps(step.name)
        case Passthrough():
            if nvml.vfio_nodes(step.gpu) is not None:
                nvml.release_vfio(step.gpu)
        case CdiSpec():
            cdi.remove(machine.cdi_dir, step.claim_uid)


def intact(step: Step, record: Record, machine: Machine) -> bool:
    """Whether the step of a prepared record still stands as it was taken."""
    nvml = machine.nvml
    match step:
        case MigMode():
            return nvml.mig_enabled(step.gpu)
        case MigInstance():
            device = _instance_at(step, nvml)
            return device is not None and device.uuid == step.uuid
        case TimeSlice():
            return nvml.timeslice(step.gpu) == step.interval
        case ComputeMode():
            return nvml.compute_mode(step.gpu) == step.mode
        case MemoryLimit():
            return nvml.memory_limits(step.gpu).get(step.name_space) == step.limit
        case MpsDaemon():
            return nvml.mps().get(step.name) == step.settings
        case Passthrough():
            return nvml.vfio_nodes(step.gpu) is not None
        case CdiSpec():
            return cdi.intact(machine.cdi_dir, record.uid, _spec(record, machine))


def _spec(record: Record, machine: Machine) -> cdi.Body:
    """A spec on disk means that all steps were taken: it is the last. So it says `prepared`."""
    return cdi.spec(msgspec.structs.replace(record, state="prepared"), machine.gpus, machine.mps_dir)


def _instance_at(step: MigInstance, nvml: Nvml) -> MigDevice | None:
    at = (step.profile_id, step.start)
    return next((device for device in nvml.mig_devices(step.gpu) if (device.profile_id, device.start) == at), None)


def _make_instance(step: MigInstance, nvml: Nvml) -> MigDevice:
    """A driver killed between the two calls left a GPU instance without a compute instance; it gets one."""
    device = _instance_at(step, nvml)
    if device is not None and device.uuid:
        return device
    if step.adopted:
        raise NvmlError(
            "NOT_FOUND", f"MIG device {step.uuid} of {step.gpu}", "whoever made it has destroyed it; delete the pod"
        )
    gi_id = device.gi_id if device else nvml.create_gpu_instance(step.gpu, step.profile_id, step.start)
    return nvml.create_compute_instance(step.gpu, gi_id)


def _destroy_instance(step: MigInstance, nvml: Nvml) -> None:
    """Only the one that was made: if its UUID is known and another stands in its place, that is somebody else's."""
    device = _instance_at(step, nvml)
    if device is None or (step.uuid and device.uuid and device.uuid != step.uuid):
        return
    if device.uuid:
        nvml.destroy_compute_instance(step.gpu, device.gi_id)
    nvml.destroy_gpu_instance(step.gpu, device.gi_id)
