"""The simulated GPUs refuse what NVML refuses, and outlive the process that drives them."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from capstan.node.errors import NvmlError
from capstan.node.nvml import GpuEvent
from capstan.node.simulated import SimulatedNvml

Gpus = Callable[[str], SimulatedNvml]


def code(call: Callable[..., object], *arguments: object) -> str:
    with pytest.raises(NvmlError) as caught:
        call(*arguments)
    return caught.value.code


@pytest.fixture
def nvml(gpus: Gpus) -> SimulatedNvml:
    return gpus("a100x1")


@pytest.fixture
def gpu(nvml: SimulatedNvml) -> str:
    return nvml.host().gpus[0].uuid


def test_instances_need_mig_mode_and_a_free_place(nvml: SimulatedNvml, gpu: str) -> None:
    assert code(nvml.create_gpu_instance, gpu, 9, 0) == "NOT_SUPPORTED"
    nvml.set_mig_enabled(gpu, True)
    assert code(nvml.create_gpu_instance, gpu, 9, 1) == "INVALID_ARGUMENT"
    nvml.create_gpu_instance(gpu, 9, 0)
    assert code(nvml.create_gpu_instance, gpu, 19, 3) == "INSUFFICIENT_RESOURCES"
    assert code(nvml.create_gpu_instance, gpu, 0, 0) == "INSUFFICIENT_RESOURCES"
    nvml.create_gpu_instance(gpu, 9, 4)


def test_a_mig_device_is_taken_down_from_the_inside_out(nvml: SimulatedNvml, gpu: str) -> None:
    nvml.set_mig_enabled(gpu, True)
    gi_id = nvml.create_gpu_instance(gpu, 14, 2)
    device = nvml.create_compute_instance(gpu, gi_id)
    assert device.uuid.startswith("MIG-") and (device.start, device.profile_id) == (2, 14)
    assert device.ci_cap == device.gi_cap + 1
    assert code(nvml.create_compute_instance, gpu, gi_id) == "INSUFFICIENT_RESOURCES"
    assert code(nvml.destroy_gpu_instance, gpu, gi_id) == "IN_USE"
    assert code(nvml.set_mig_enabled, gpu, False) == "IN_USE"
    nvml.destroy_compute_instance(gpu, gi_id)
    nvml.destroy_gpu_instance(gpu, gi_id)
    nvml.set_mig_enabled(gpu, False)
    assert nvml.mig_devices(gpu) == []


def test_no_two_mig_devices_ever_have_the_same_uuid(nvml: SimulatedNvml, gpu: str) -> None:
    nvml.set_mig_enabled(gpu, True)
    seen = set()
    for _ in range(3):
        gi_id = nvml.create_gpu_instance(gpu, 19, 0)
        seen.add(nvml.create_compute_instance(gpu, gi_id).uuid)
        nvml.destroy_compute_instance(gpu, gi_id)
        nvml.destroy_gpu_instance(gpu, gi_id)
    assert len(seen) == 3


def test_a_gpu_is_either_in_mig_mode_or_passed_through(nvml: SimulatedNvml, gpu: str) -> None:
    nvml.bind_vfio(gpu)
    assert code(nvml.set_mig_enabled, gpu, True) == "IN_USE"
    nvml.release_vfio(gpu)
    nvml.set_mig_enabled(gpu, True)
    assert code(nvml.bind_vfio, gpu) == "IN_USE"
    assert code(nvml.set_memory_limit, gpu, "share", 1 << 30) == "NOT_SUPPORTED"


def test_the_next_process_finds_what_the_last_one_left(nvml: SimulatedNvml, gpu: str, gpus: Gpus) -> None:
    nvml.set_mig_enabled(gpu, True)
    made = nvml.create_compute_instance(gpu, nvml.create_gpu_instance(gpu, 9, 4))
    nvml.set_timeslice(gpu, 3)
    again = gpus("a100x1")
    assert again.mig_devices(gpu) == [made]
    assert again.timeslice(gpu) == 3
    assert again.boot_id() == nvml.boot_id()


def test_a_reboot_forgets_everything(nvml: SimulatedNvml, gpu: str) -> None:
    nvml.set_mig_enabled(gpu, True)
    nvml.create_gpu_instance(gpu, 9, 4)
    before = nvml.boot_id()
    nvml.reboot()
    assert nvml.mig_devices(gpu) == [] and not nvml.mig_enabled(gpu)
    assert nvml.boot_id() != before


def test_an_injected_fault_strikes_as_often_as_told(nvml: SimulatedNvml, gpu: str) -> None:
    nvml.fail("set_timeslice", "TIMEOUT", times=2)
    assert code(nvml.set_timeslice, gpu, 1) == "TIMEOUT"
    assert code(nvml.set_timeslice, gpu, 1) == "TIMEOUT"
    nvml.set_timeslice(gpu, 1)
    assert nvml.timeslice(gpu) == 1


def test_a_lost_gpu_fails_every_call_until_it_is_back(nvml: SimulatedNvml, gpu: str) -> None:
    events: list[GpuEvent] = []
    nvml.subscribe(events.append)
    nvml.lose(gpu)
    assert code(nvml.timeslice, gpu) == code(nvml.set_compute_mode, gpu, "Default") == "GPU_IS_LOST"
    assert nvml.recovery_action(gpu) == "Reboot"
    nvml.recover(gpu)
    assert nvml.timeslice(gpu) == 0
    assert [event.kind for event in events] == ["lost", "recovered"]


def test_an_unknown_gpu_is_not_found(nvml: SimulatedNvml) -> None:
    assert code(nvml.mig_enabled, "GPU-none") == "NOT_FOUND"


def test_a_gpu_without_mig_says_so(gpus: Gpus) -> None:
    nvml = gpus("l4x1")
    assert code(nvml.set_mig_enabled, nvml.host().gpus[0].uuid, True) == "NOT_SUPPORTED"
