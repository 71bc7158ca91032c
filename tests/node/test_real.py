"""The way to real GPUs, as far as it goes without one: deadlines, a helper that dies, facts that NVML hides."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import msgspec
import pynvml
import pytest

from capstan.node import nvml_helper, real
from capstan.node.errors import NvmlError, NvmlTimeout
from capstan.node.models import A100_40
from capstan.node.nvml import Gpu, GpuEvent, Host
from capstan.node.real import RealNvml

HELPER = """
import json, os, sys, time
for line in sys.stdin:
    request = json.loads(line)
    call = request["call"]
    def say(**answer):
        print(json.dumps({"id": request["id"], **answer}), flush=True)
    if call == "compute_mode":
        say(value=f"mode of {request['arguments'][0]} in {os.getpid()}")
    elif call == "mig_enabled":
        time.sleep(60)
    elif call == "recovery_action":
        sys.exit(3)
    elif call == "set_compute_mode":
        say(code="NO_PERMISSION", message="NVML set_compute_mode", hint="run as root")
    elif call == "watch":
        say(value=None)
        print(json.dumps({"event": {"kind": "xid", "gpu": "GPU-1", "xid": 79}}), flush=True)
    elif call == "host":
        say(value=json.loads(open(sys.argv[1]).read()))
"""


def gpu(index: int, uuid: str, address: str) -> Gpu:
    return Gpu(index, index, uuid, A100_40, address, "pci0000:00", 0, None, "None", True)


@pytest.fixture
def nvml(tmp_path: Path) -> Any:
    found = Host("615.10", (13, 4), (gpu(0, "GPU-1", "0000:07:00.0"),), simulated=False)
    (tmp_path / "host.json").write_bytes(msgspec.json.encode(found))
    command = (sys.executable, "-c", HELPER, str(tmp_path / "host.json"))
    nvml = RealNvml(tmp_path / "facts.json", command=command, sys_root=tmp_path / "sys")
    yield nvml
    nvml.close()


def test_a_machine_without_a_driver_says_so() -> None:
    done = subprocess.run([sys.executable, "-m", "capstan.node.real"], capture_output=True, text=True, check=False)
    if done.returncode == 0:
        assert msgspec.json.decode(done.stdout)["host"]["gpus"]
        return
    assert done.returncode == 1 and done.stdout == ""
    assert "error: NVML host: " in done.stderr
    assert "LIBRARY_NOT_FOUND (install NVIDIA's driver" in done.stderr or "DRIVER_NOT_LOADED" in done.stderr


def test_a_call_that_hangs_ends_at_its_deadline_and_the_next_one_has_a_new_helper(
    nvml: RealNvml, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = nvml.compute_mode("GPU-1")
    monkeypatch.setattr(nvml, "mig_enabled", lambda g: nvml._call(bool, "mig_enabled", g, seconds=0.1))
    with pytest.raises(NvmlTimeout, match=r"mig_enabled did not return within 0\.1 s"):
        nvml.mig_enabled("GPU-1")
    after = nvml.compute_mode("GPU-1")
    assert after.startswith("mode of GPU-1 in ") and after != before


def test_a_helper_that_dies_is_replaced(nvml: RealNvml) -> None:
    with pytest.raises(NvmlError, match="the helper process ended with 3"):
        nvml.recovery_action("GPU-1")
    assert nvml.compute_mode("GPU-1").startswith("mode of GPU-1")


def test_nvmls_errors_come_through_with_their_hint(nvml: RealNvml) -> None:
    with pytest.raises(NvmlError, match=r"NVML set_compute_mode: NO_PERMISSION \(run as root\)"):
        nvml.set_compute_mode("GPU-1", "Default")


def test_events_reach_the_listeners(nvml: RealNvml) -> None:
    import queue

    events: queue.Queue[GpuEvent] = queue.Queue()
    nvml.subscribe(events.put)
    nvml.compute_mode("GPU-1")
    assert events.get(timeout=10) == GpuEvent("xid", "GPU-1", 79)


def test_memory_limits_need_a_driver_that_can_hold_them(nvml: RealNvml) -> None:
    assert nvml.host().memory_limits == "cgroup"
    assert not real._limits_supported("580.95.05")


def test_a_passed_through_gpu_is_remembered_while_nvml_cannot_see_it(nvml: RealNvml, tmp_path: Path) -> None:
    hidden, other = gpu(0, "GPU-hidden", "0000:06:00.0"), gpu(1, "GPU-1", "0000:07:00.0")
    gone = gpu(2, "GPU-gone", "0000:08:00.0")
    (tmp_path / "facts.json").write_bytes(msgspec.json.encode({g.uuid: g for g in (hidden, other, gone)}))
    directory = tmp_path / "sys/bus/pci/devices" / hidden.pci_bus_id
    directory.mkdir(parents=True)
    for name, text in (("vendor", "0x10de"), ("device", "0x20b0"), ("class", "0x030200")):
        (directory / name).write_text(text)
    (directory / "driver").symlink_to("../drivers/vfio-pci")
    assert [(g.uuid, g.index) for g in nvml.host().gpus] == [("GPU-hidden", 0), ("GPU-1", 1)]


# -- the helper's reading of NVML, with the functions of the library played

PROFILE = SimpleNamespace(
    id=19, name=b"MIG 1g.10gb", sliceCount=1, instanceCount=7, multiprocessorCount=16, copyEngineCount=1,
    decoderCount=1, encoderCount=0, jpegCount=1, ofaCount=0, memorySizeMB=9984,
)  # fmt: skip


def play(monkeypatch: pytest.MonkeyPatch, architecture: int, mig: Callable[[], list[int]], **more: Any) -> None:
    def profile_info(handle: Any, number: int) -> Any:
        if number:
            raise pynvml.NVMLError(pynvml.NVML_ERROR_NOT_SUPPORTED)
        return PROFILE

    def placements(handle: Any, profile_id: int, places: Any, count: Any) -> None:
        count._obj.value = 2
        if places is not None:
            places[0].start, places[0].size, places[1].start, places[1].size = 1, 1, 0, 1

    def unsupported(*_: Any) -> Any:
        raise pynvml.NVMLError(pynvml.NVML_ERROR_NOT_SUPPORTED)

    answers = {
        "nvmlInit": lambda: None,
        "nvmlSystemGetCudaDriverVersion_v2": lambda: 13040,
        "nvmlSystemGetDriverVersion": lambda: "580.95.05",
        "nvmlDeviceGetCount": lambda: 1,
        "nvmlDeviceGetHandleByIndex": lambda index: "handle",
        "nvmlDeviceGetPciInfo": lambda h: SimpleNamespace(busId=b"00000000:1B:00.0", pciDeviceId=0x233010DE),
        "nvmlDeviceGetArchitecture": lambda h: architecture,
        "nvmlDeviceGetMigMode": lambda h: mig(),
        "nvmlDeviceGetUUID": lambda h: "GPU-1",
        "nvmlDeviceGetMinorNumber": lambda h: 4,
        "nvmlDeviceGetName": lambda h: b"NVIDIA H100 80GB HBM3",
        "nvmlDeviceGetBrand": lambda h: 14,
        "nvmlDeviceGetCudaComputeCapability": lambda h: [9, 0],
        "nvmlDeviceGetMemoryInfo": lambda h: SimpleNamespace(total=85520809984),
        "nvmlDeviceGetAddressingMode": unsupported,
        "nvmlDeviceGetGpuFabricInfoV": unsupported,
        "nvmlDeviceGetGpuInstanceProfileInfo": profile_info,
        "nvmlDeviceGetGpuInstancePossiblePlacements": placements,
    }
    for name, answer in (answers | more).items():
        monkeypatch.setattr(pynvml, name, answer)


def test_a_hopper_gpu_is_described_in_nvmls_words(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    play(monkeypatch, architecture=9, mig=lambda: [0, 0])
    device = tmp_path / "devices/pci0000:1a/0000:1a:01.0/0000:1b:00.0"
    device.mkdir(parents=True)
    (device / "numa_node").write_text("1\n")
    (tmp_path / "bus/pci/devices").mkdir(parents=True)
    (tmp_path / "bus/pci/devices/0000:1b:00.0").symlink_to(device)
    host = nvml_helper.Library(tmp_path).host()
    assert host.cuda_version == (13, 4)
    (found,) = host.gpus
    assert (found.uuid, found.minor, found.pci_bus_id, found.numa_node) == ("GPU-1", 4, "0000:1b:00.0", 1)
    assert found.pcie_root == "pci0000:1a"
    assert (found.model.architecture, found.model.brand, found.model.pci_device_id) == ("Hopper", "Nvidia", 0x2330)
    (profile,) = found.model.profiles
    assert (profile.name, profile.starts, profile.size, profile.memory) == ("1g.10gb", (0, 1), 1, 9984 << 20)
    assert found.mig_capable and found.whole_capable
    assert msgspec.json.decode(msgspec.json.encode(host), type=Host) == host


@pytest.mark.parametrize(("mode", "mig", "whole"), [([1, 1], True, False), ([0, 0], False, True)])
def test_an_ampere_gpu_is_offered_as_its_mig_mode_has_it(
    mode: list[int], mig: bool, whole: bool, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Switching it would need a reset."""
    play(monkeypatch, architecture=7, mig=lambda: mode)
    (found,) = nvml_helper.Library(tmp_path).host().gpus
    assert (found.mig_capable, found.whole_capable) == (mig, whole)


def test_a_gpu_without_mig_has_no_profiles(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def unsupported() -> list[int]:
        raise pynvml.NVMLError(pynvml.NVML_ERROR_NOT_SUPPORTED)

    play(monkeypatch, architecture=8, mig=unsupported)
    (found,) = nvml_helper.Library(tmp_path).host().gpus
    assert found.model.profiles == () and not found.mig_capable and found.whole_capable
