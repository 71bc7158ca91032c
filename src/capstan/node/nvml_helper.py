"""The process that talks to the real NVML, so that a hanging driver hangs this process and not a node's driver.

Started by `capstan.node.real`. Reads one JSON request a line from stdin, writes one JSON answer a line to stdout, and
between them events: `{"id", "call", "arguments"}` -> `{"id", "value"}` or `{"id", "code", "message"}`; `{"event"}`.
Calls are the methods of `Library` that do not start with an underscore.
"""

from __future__ import annotations

import ctypes
import os
import re
import sys
import threading
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import msgspec
import pynvml

from capstan.node.errors import NvmlError
from capstan.node.models import MIB, GpuModel, MigProfile
from capstan.node.nvml import COMPUTE_DEFAULT, COMPUTE_EXCLUSIVE_PROCESS, Gpu, GpuEvent, Host, MigDevice

_ARCHITECTURES = {5: "Volta", 6: "Turing", 7: "Ampere", 8: "Ada Lovelace", 9: "Hopper", 10: "Blackwell", 13: "Rubin"}
_AMPERE = 7
_BRANDS = {1: "Quadro", 2: "Tesla", 3: "NVS", 5: "GeForce", 6: "Titan", 12: "QuadroRTX", 13: "NvidiaRTX", 14: "Nvidia"}
_ADDRESSING = {0: "None", 1: "HMM", 2: "ATS"}
_RECOVERY = {0: "None", 1: "Reset", 2: "Reboot", 3: "Drain", 4: "Drain", 5: "Drain", 6: "Reset", 7: "Reboot"}
_COMPUTE_MODES = {COMPUTE_DEFAULT: 0, COMPUTE_EXCLUSIVE_PROCESS: 3}
_MIG_MINORS = Path("/proc/driver/nvidia-caps/mig-minors")
_ERROR_NAMES = {
    value: name.removeprefix("NVML_ERROR_")
    for name, value in vars(pynvml).items()
    if name.startswith("NVML_ERROR_") and isinstance(value, int)
}
_UNKNOWN = tuple(
    pynvml.nvmlExceptionClass(code)
    for code in (
        pynvml.NVML_ERROR_NOT_SUPPORTED,
        pynvml.NVML_ERROR_FUNCTION_NOT_FOUND,
        pynvml.NVML_ERROR_INVALID_ARGUMENT,
        pynvml.NVML_ERROR_NOT_FOUND,
    )
)
_WAIT_MILLISECONDS = 5000


class Library:
    """NVML by GPU UUID. Raises pynvml.NVMLError; `serve` turns that into an answer."""

    def __init__(self, sys_root: Path = Path("/sys")) -> None:
        self._sys = sys_root
        pynvml.nvmlInit()

    # -- facts -------------------------------------------------------------------------------------------------------

    def host(self) -> Host:
        cuda = pynvml.nvmlSystemGetCudaDriverVersion_v2()
        count = pynvml.nvmlDeviceGetCount()
        gpus = [self._gpu(index, pynvml.nvmlDeviceGetHandleByIndex(index)) for index in range(count)]
        return Host(
            driver_version=_text(pynvml.nvmlSystemGetDriverVersion()),
            cuda_version=(cuda // 1000, cuda % 1000 // 10),
            gpus=tuple(gpus),
            simulated=False,
        )

    def _gpu(self, index: int, handle: Any) -> Gpu:
        pci = pynvml.nvmlDeviceGetPciInfo(handle)
        # NVML writes the domain with eight digits, everybody else with four.
        bus_id = _text(pci.busId).lower().removeprefix("0000")
        architecture = pynvml.nvmlDeviceGetArchitecture(handle)
        mig_on = _supported(lambda: pynvml.nvmlDeviceGetMigMode(handle)[0] == 1)
        profiles = tuple(_profiles(handle)) if mig_on is not None else ()
        # Before Hopper, switching MIG mode needs a reset of the GPU, which is not a driver's to do.
        switchable = mig_on is not None and architecture > _AMPERE
        uuid = _text(pynvml.nvmlDeviceGetUUID(handle))
        return Gpu(
            index=index,
            minor=pynvml.nvmlDeviceGetMinorNumber(handle),
            uuid=uuid,
            model=GpuModel(
                product_name=_text(pynvml.nvmlDeviceGetName(handle)),
                architecture=_ARCHITECTURES.get(architecture, "Unknown"),
                brand=_BRANDS.get(pynvml.nvmlDeviceGetBrand(handle), "Unknown"),
                compute_capability=tuple(pynvml.nvmlDeviceGetCudaComputeCapability(handle)),
                memory=pynvml.nvmlDeviceGetMemoryInfo(handle).total,
                multiprocessors=max((profile.multiprocessors for profile in profiles), default=0),
                pci_device_id=pci.pciDeviceId >> 16,
                profiles=profiles,
            ),
            pci_bus_id=bus_id,
            pcie_root=self._pcie_root(bus_id),
            numa_node=self._numa_node(bus_id),
            nvlink_domain=_fabric(handle),
            addressing_mode=_ADDRESSING.get(
                _supported(lambda: pynvml.nvmlDeviceGetAddressingMode(handle)) or 0, "None"
            ),
            mig_capable=bool(profiles) and (bool(mig_on) or switchable),
            whole_capable=not mig_on or switchable,
        )

    def _pcie_root(self, bus_id: str) -> str:
        """`pci0000:40`: the first directory of the device's path."""
        path = os.path.realpath(self._sys / "bus/pci/devices" / bus_id)
        match = re.search(r"/(pci[0-9a-f]{4}:[0-9a-f]{2})/", path)
        return match[1] if match else ""

    def _numa_node(self, bus_id: str) -> int | None:
        """The kernel says -1 on machines without NUMA."""
        path = self._sys / "bus/pci/devices" / bus_id / "numa_node"
        node = int(path.read_text()) if path.exists() else -1
        return node if node >= 0 else None

    # -- MIG ---------------------------------------------------------------------------------------------------------

    def mig_enabled(self, gpu: str) -> bool:
        return bool(_supported(lambda: pynvml.nvmlDeviceGetMigMode(_handle(gpu))[0] == 1))

    def set_mig_enabled(self, gpu: str, enabled: bool) -> None:
        status = pynvml.nvmlDeviceSetMigMode(_handle(gpu), int(enabled))
        if status != pynvml.NVML_SUCCESS:
            raise pynvml.NVMLError(status)

    def mig_devices(self, gpu: str) -> list[MigDevice]:
        handle = _handle(gpu)
        if not self.mig_enabled(gpu):
            return []
        uuids = dict(_mig_uuids(handle))
        minor = pynvml.nvmlDeviceGetMinorNumber(handle)
        caps = _capabilities()
        found = []
        for instance in _instances(handle):
            info = pynvml.nvmlGpuInstanceGetInfo(instance)
            gi = f"gpu{minor}/gi{info.id}"
            found.append(
                MigDevice(
                    gpu=gpu,
                    gi_id=info.id,
                    profile_id=info.profileId,
                    start=info.placement.start,
                    uuid=uuids.get(info.id, ""),
                    gi_cap=caps.get(f"{gi}/access", 0),
                    ci_cap=caps.get(f"{gi}/ci0/access", 0),
                )
            )
        return sorted(found, key=lambda device: device.gi_id)

    def create_gpu_instance(self, gpu: str, profile_id: int, start: int) -> int:
        handle = _handle(gpu)
        place = next((place for place in _placements(handle, profile_id) if place.start == start), None)
        if place is None:
            raise pynvml.NVMLError(pynvml.NVML_ERROR_INVALID_ARGUMENT)
        instance = pynvml.nvmlDeviceCreateGpuInstanceWithPlacement(handle, profile_id, ctypes.byref(place))
        gi_id: int = pynvml.nvmlGpuInstanceGetInfo(instance).id
        return gi_id

    def create_compute_instance(self, gpu: str, gi_id: int) -> MigDevice:
        """One compute instance that has all of the GPU instance: of the profiles, the one with the most slices."""
        instance = pynvml.nvmlDeviceGetGpuInstanceById(_handle(gpu), gi_id)
        infos = [
            info
            for profile in range(pynvml.NVML_COMPUTE_INSTANCE_PROFILE_COUNT)
            if (
                info := _supported(
                    lambda p=profile: pynvml.nvmlGpuInstanceGetComputeInstanceProfileInfo(instance, p, 0)
                )
            )
        ]
        widest = max(infos, key=lambda info: info.sliceCount)
        pynvml.nvmlGpuInstanceCreateComputeInstance(instance, widest.id)
        return next(device for device in self.mig_devices(gpu) if device.gi_id == gi_id)

    def destroy_compute_instance(self, gpu: str, gi_id: int) -> None:
        instance = pynvml.nvmlDeviceGetGpuInstanceById(_handle(gpu), gi_id)
        pynvml.nvmlComputeInstanceDestroy(pynvml.nvmlGpuInstanceGetComputeInstanceById(instance, 0))

    def destroy_gpu_instance(self, gpu: str, gi_id: int) -> None:
        pynvml.nvmlGpuInstanceDestroy(pynvml.nvmlDeviceGetGpuInstanceById(_handle(gpu), gi_id))

    # -- modes and health --------------------------------------------------------------------------------------------

    def compute_mode(self, gpu: str) -> str:
        mode = pynvml.nvmlDeviceGetComputeMode(_handle(gpu))
        return next((name for name, value in _COMPUTE_MODES.items() if value == mode), f"Mode{mode}")

    def set_compute_mode(self, gpu: str, mode: str) -> None:
        pynvml.nvmlDeviceSetComputeMode(_handle(gpu), _COMPUTE_MODES[mode])

    def recovery_action(self, gpu: str) -> str:
        field = pynvml.NVML_FI_DEV_GET_GPU_RECOVERY_ACTION
        (value,) = pynvml.nvmlDeviceGetFieldValues(_handle(gpu), [field])
        return "None" if value.nvmlReturn else _RECOVERY.get(value.value.uiVal, "Reset")

    def _events(self) -> Iterator[GpuEvent]:
        """XID errors of all GPUs, for ever. An event of a GPU that cannot be named concerns all of them."""
        events = pynvml.nvmlEventSetCreate()
        for index in range(pynvml.nvmlDeviceGetCount()):
            handle = pynvml.nvmlDeviceGetHandleByIndex(index)
            _supported(
                lambda h=handle: pynvml.nvmlDeviceRegisterEvents(h, pynvml.nvmlEventTypeXidCriticalError, events)
            )
        while True:
            try:
                data = pynvml.nvmlEventSetWait_v2(events, _WAIT_MILLISECONDS)
            except pynvml.NVMLError_Timeout:
                continue
            except pynvml.NVMLError_GpuIsLost:
                yield GpuEvent("lost", None)
                continue
            gi_id = None if data.gpuInstanceId == 0xFFFFFFFF else data.gpuInstanceId
            yield GpuEvent(
                "xid", _supported(lambda d=data: _text(pynvml.nvmlDeviceGetUUID(d.device))), data.eventData, gi_id
            )


def _handle(gpu: str) -> Any:
    return pynvml.nvmlDeviceGetHandleByUUID(gpu)


def _text(value: str | bytes) -> str:
    return value.decode() if isinstance(value, bytes) else value


def _supported(call: Any) -> Any:
    """The call's result, or None where the GPU or driver does not know it."""
    try:
        return call()
    except _UNKNOWN:
        return None


def _placements(handle: Any, profile_id: int) -> Sequence[Any]:
    count = ctypes.c_uint(0)
    pynvml.nvmlDeviceGetGpuInstancePossiblePlacements(handle, profile_id, None, ctypes.byref(count))
    places = (pynvml.c_nvmlGpuInstancePlacement_t * count.value)()
    pynvml.nvmlDeviceGetGpuInstancePossiblePlacements(handle, profile_id, places, ctypes.byref(count))
    return list(places[: count.value])


def _profiles(handle: Any) -> Iterator[MigProfile]:
    for number in range(pynvml.NVML_GPU_INSTANCE_PROFILE_COUNT):
        info = _supported(lambda n=number: pynvml.nvmlDeviceGetGpuInstanceProfileInfo(handle, n))
        places = _supported(lambda i=info: _placements(handle, i.id)) if info is not None else None
        if not places:
            continue
        yield MigProfile(
            name=_text(info.name).removeprefix("MIG "),
            id=info.id,
            slices=info.sliceCount,
            size=places[0].size,
            starts=tuple(sorted(place.start for place in places)),
            memory=info.memorySizeMB * MIB,
            multiprocessors=info.multiprocessorCount,
            copy_engines=info.copyEngineCount,
            decoders=info.decoderCount,
            encoders=info.encoderCount,
            jpeg_engines=info.jpegCount,
            ofa_engines=info.ofaCount,
        )


def _instances(handle: Any) -> Iterator[Any]:
    for number in range(pynvml.NVML_GPU_INSTANCE_PROFILE_COUNT):
        info = _supported(lambda n=number: pynvml.nvmlDeviceGetGpuInstanceProfileInfo(handle, n))
        if info is not None:
            count = ctypes.c_uint(info.instanceCount)
            found = (pynvml.c_nvmlGpuInstance_t * info.instanceCount)()
            pynvml.nvmlDeviceGetGpuInstances(handle, info.id, found, ctypes.byref(count))
            yield from found[: count.value]


def _mig_uuids(handle: Any) -> Iterator[tuple[int, str]]:
    for index in range(pynvml.nvmlDeviceGetMaxMigDeviceCount(handle)):
        device = _supported(lambda i=index: pynvml.nvmlDeviceGetMigDeviceHandleByIndex(handle, i))
        if device is not None:
            yield pynvml.nvmlDeviceGetGpuInstanceId(device), _text(pynvml.nvmlDeviceGetUUID(device))


def _capabilities() -> dict[str, int]:
    """Minor numbers of `/dev/nvidia-caps/nvidia-cap<N>` by capability path, `gpu0/gi3/access` -> 30."""
    lines = _MIG_MINORS.read_text().splitlines() if _MIG_MINORS.exists() else []
    return {path: int(minor) for path, _, minor in (line.partition(" ") for line in lines)}


def _fabric(handle: Any) -> str | None:
    """The NVLink fabric's cluster and clique, where the fabric manager has finished its work."""
    info = pynvml.c_nvmlGpuFabricInfoV_t()
    done = _supported(lambda: pynvml.nvmlDeviceGetGpuFabricInfoV(handle, ctypes.byref(info)) == pynvml.NVML_SUCCESS)
    if not done or info.state != pynvml.NVML_GPU_FABRIC_STATE_COMPLETED:
        return None
    cluster = bytes(info.clusterUuid).hex()
    return f"{cluster}.{info.cliqueId}" if cluster.strip("0") else None


# -- the process -----------------------------------------------------------------------------------------------------


class Request(msgspec.Struct):
    id: int
    call: str
    arguments: list[Any] = []


def error_of(error: pynvml.NVMLError, call: str) -> NvmlError:
    code = _ERROR_NAMES.get(error.value, f"ERROR_{error.value}")
    hints = {
        "LIBRARY_NOT_FOUND": "install NVIDIA's driver, or set LD_LIBRARY_PATH to where libnvidia-ml.so.1 is",
        "DRIVER_NOT_LOADED": "load NVIDIA's kernel module",
        "NO_PERMISSION": "run as root",
    }
    return NvmlError(code, f"NVML {call}", hints.get(code, ""))


def serve() -> None:
    """Until stdin ends."""
    lock = threading.Lock()

    def say(message: dict[str, Any]) -> None:
        with lock:
            sys.stdout.buffer.write(msgspec.json.encode(message) + b"\n")
            sys.stdout.buffer.flush()

    library: Library | None = None
    for line in sys.stdin.buffer:
        request = msgspec.json.decode(line, type=Request)
        try:
            if library is None:
                library = Library()
            if request.call == "watch":
                watch = threading.Thread(target=_watch, args=(library, say), daemon=True)
                watch.start()
                say({"id": request.id, "value": None})
            else:
                say({"id": request.id, "value": getattr(library, request.call)(*request.arguments)})
        except pynvml.NVMLError as error:
            failed = error_of(error, request.call)
            say({"id": request.id, "code": failed.code, "message": f"NVML {request.call}", "hint": failed.hint})


def _watch(library: Library, say: Any) -> None:
    for event in library._events():
        say({"event": event})


if __name__ == "__main__":
    serve()
