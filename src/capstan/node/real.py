"""Real GPUs: NVML in a helper process with deadlines, and the tools around it (nvidia-smi, vfio-pci).

Implements `capstan.node.nvml.Nvml`. When a call outlives its deadline the helper is killed and the next call starts a
new one. `python -m capstan.node.real` prints the machine's inventory as JSON, changing nothing.

A GPU that is bound to vfio-pci is invisible to NVML. What was known of it is kept in a file, so that a restarted driver
can give it back. GPUs that were passed through before the driver ever ran are not offered.

Memory limits of shares are set by the container toolkit's hook on the container's cgroup, not from here; MPS control
daemons are not started yet, a claim that asks for one is refused. Creating and destroying MIG devices, compute
modes and VFIO are written from NVML's and the kernel's documentation and have only run against simulations.
"""

from __future__ import annotations

import os
import queue
import subprocess
import sys
import threading
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

import msgspec

from capstan.isolation import vfio
from capstan.node.errors import NodeError, NvmlError, NvmlTimeout
from capstan.node.nvml import Gpu, GpuEvent, Host, MigDevice, MpsSettings, VfioNodes

T = TypeVar("T")
READ_SECONDS = 10.0
CHANGE_SECONDS = 30.0
"""Creating a MIG device takes seconds on a busy GPU."""
_DRIVER = "nvidia"
_BOOT_ID = Path("/proc/sys/kernel/random/boot_id")
_HELPER = (sys.executable, "-m", "capstan.node.nvml_helper")


class _Answer(msgspec.Struct):
    id: int = 0
    value: msgspec.Raw = msgspec.Raw(b"null")
    code: str = ""
    message: str = ""
    hint: str = ""
    event: GpuEvent | None = None


class _Helper:
    """One helper process. Once it has failed a deadline or died it is of no more use."""

    def __init__(self, command: Sequence[str], listener: Callable[[GpuEvent], None]) -> None:
        self._process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
        self._answers: queue.Queue[_Answer | None] = queue.Queue()
        self._listener = listener
        self._last = 0
        threading.Thread(target=self._read, name="nvml-helper", daemon=True).start()

    def _read(self) -> None:
        assert self._process.stdout is not None
        for line in self._process.stdout:
            answer = msgspec.json.decode(line, type=_Answer)
            if answer.event is not None:
                self._listener(answer.event)
            else:
                self._answers.put(answer)
        self._answers.put(None)

    def call(self, name: str, arguments: Sequence[Any], seconds: float) -> msgspec.Raw:
        self._last += 1
        assert self._process.stdin is not None
        try:
            request = {"id": self._last, "call": name, "arguments": arguments}
            self._process.stdin.write(msgspec.json.encode(request) + b"\n")
            self._process.stdin.flush()
            answer = self._answers.get(timeout=seconds)
        except queue.Empty:
            self.kill()
            raise NvmlTimeout(name, seconds) from None
        except OSError as error:
            self.kill()
            raise NvmlError("UNKNOWN", f"NVML {name}: the helper process is gone: {error}") from None
        if answer is None:
            self.kill()
            raise NvmlError("UNKNOWN", f"NVML {name}: the helper process ended with {self._process.wait()}")
        if answer.code:
            raise NvmlError(answer.code, answer.message, answer.hint)
        return answer.value

    def kill(self) -> None:
        self._process.kill()
        self._process.wait()
        for pipe in (self._process.stdin, self._process.stdout):
            if pipe is not None:
                pipe.close()

    @property
    def alive(self) -> bool:
        return self._process.poll() is None


class RealNvml:
    """The GPUs of this machine."""

    def __init__(
        self,
        facts_path: Path | None = None,
        *,
        command: Sequence[str] = _HELPER,
        sys_root: Path = Path("/sys"),
        proc_root: Path = Path("/proc"),
    ) -> None:
        """`facts_path`: where the facts of GPUs are kept for the time when NVML cannot see them."""
        self._facts_path = facts_path
        self._command = command
        self._sys, self._proc = sys_root, proc_root
        self._lock = threading.Lock()
        self._helper: _Helper | None = None
        self._listeners: list[Callable[[GpuEvent], None]] = []
        self._host: Host | None = None
        self._timeslices: dict[str, int] = {}

    def _call(self, result: type[T], name: str, *arguments: Any, seconds: float = READ_SECONDS) -> T:
        with self._lock:
            if self._helper is None or not self._helper.alive:
                if self._helper is not None:
                    self._helper.kill()
                self._helper = _Helper(self._command, self._tell)
                if self._listeners:
                    self._helper.call("watch", (), READ_SECONDS)
            return msgspec.json.decode(self._helper.call(name, arguments, seconds), type=result)

    def _tell(self, event: GpuEvent) -> None:
        for listener in self._listeners:
            listener(event)

    # -- facts -------------------------------------------------------------------------------------------------------

    def host(self) -> Host:
        """Read once: the facts in it do not change while the driver runs."""
        if self._host is None:
            host = self._call(Host, "host", seconds=CHANGE_SECONDS)
            self._host = msgspec.structs.replace(
                host,
                gpus=self._with_hidden(host.gpus),
                vfio=vfio.vfio_available(self._sys),
                iommufd=Path("/dev/iommu").exists(),
                memory_limits="cgroup" if _limits_supported(host.driver_version) else "none",
            )
        return self._host

    def _with_hidden(self, visible: tuple[Gpu, ...]) -> tuple[Gpu, ...]:
        """NVML's GPUs and those that it cannot see now. Known ones keep their index: NVML counts visible ones only."""
        if self._facts_path is None:
            return visible
        path = self._facts_path
        known = msgspec.json.decode(path.read_bytes(), type=dict[str, Gpu]) if path.exists() else {}
        found = {gpu.uuid: gpu for gpu in visible}
        for uuid, gpu in known.items():
            if uuid in found:
                found[uuid] = msgspec.structs.replace(found[uuid], index=gpu.index)
            elif self._is_passed_through(gpu.pci_bus_id):
                found[uuid] = gpu
        path.parent.mkdir(parents=True, exist_ok=True)
        scratch = path.with_suffix(".tmp")
        scratch.write_bytes(msgspec.json.encode(found))
        os.replace(scratch, path)
        return tuple(sorted(found.values(), key=lambda gpu: gpu.index))

    def _is_passed_through(self, address: str) -> bool:
        try:
            return vfio.read_device(self._sys, address).driver == vfio.VFIO_DRIVER
        except vfio.VfioError:
            return False

    def boot_id(self) -> str:
        return _BOOT_ID.read_text().strip()

    def recovery_action(self, gpu: str) -> str:
        return self._call(str, "recovery_action", gpu)

    # -- MIG ---------------------------------------------------------------------------------------------------------

    def mig_enabled(self, gpu: str) -> bool:
        return self._call(bool, "mig_enabled", gpu)

    def set_mig_enabled(self, gpu: str, enabled: bool) -> None:
        self._call(type(None), "set_mig_enabled", gpu, enabled, seconds=CHANGE_SECONDS)

    def mig_devices(self, gpu: str) -> Sequence[MigDevice]:
        return self._call(list[MigDevice], "mig_devices", gpu)

    def create_gpu_instance(self, gpu: str, profile_id: int, start: int) -> int:
        return self._call(int, "create_gpu_instance", gpu, profile_id, start, seconds=CHANGE_SECONDS)

    def create_compute_instance(self, gpu: str, gi_id: int) -> MigDevice:
        return self._call(MigDevice, "create_compute_instance", gpu, gi_id, seconds=CHANGE_SECONDS)

    def destroy_compute_instance(self, gpu: str, gi_id: int) -> None:
        self._call(type(None), "destroy_compute_instance", gpu, gi_id, seconds=CHANGE_SECONDS)

    def destroy_gpu_instance(self, gpu: str, gi_id: int) -> None:
        self._call(type(None), "destroy_gpu_instance", gpu, gi_id, seconds=CHANGE_SECONDS)

    # -- modes and limits --------------------------------------------------------------------------------------------

    def compute_mode(self, gpu: str) -> str:
        return self._call(str, "compute_mode", gpu)

    def set_compute_mode(self, gpu: str, mode: str) -> None:
        self._call(type(None), "set_compute_mode", gpu, mode)

    def timeslice(self, gpu: str) -> int:
        """NVML cannot tell. A slice that somebody changed is set again with the next claim."""
        return self._timeslices.get(gpu, 0)

    def set_timeslice(self, gpu: str, interval: int) -> None:
        command = ["nvidia-smi", "compute-policy", "-i", gpu, "--set-timeslice", str(interval)]
        try:
            done = subprocess.run(command, capture_output=True, text=True, timeout=CHANGE_SECONDS, check=False)
        except FileNotFoundError:
            raise NvmlError("LIBRARY_NOT_FOUND", f"time slice of {gpu}", "install nvidia-smi") from None
        except subprocess.TimeoutExpired:
            raise NvmlTimeout("compute-policy", CHANGE_SECONDS) from None
        if done.returncode:
            raise NvmlError("UNKNOWN", f"time slice of {gpu}: {(done.stderr or done.stdout).strip()}")
        self._timeslices[gpu] = interval

    def memory_limits(self, gpu: str) -> Mapping[str, int]:
        return {}

    def set_memory_limit(self, gpu: str, name_space: str, limit: int | None) -> None:
        raise NvmlError("NOT_SUPPORTED", f"memory limit on {gpu}", "the container's hook sets it on its cgroup")

    def mps(self) -> Mapping[str, MpsSettings]:
        return {}

    def start_mps(self, daemon: str, gpus: Sequence[str], settings: MpsSettings) -> None:
        raise NvmlError("NOT_SUPPORTED", f"MPS on {', '.join(gpus)}", "use TimeSlicing or a share with a memory limit")

    def stop_mps(self, daemon: str) -> None:
        """None was started."""

    # -- passthrough -------------------------------------------------------------------------------------------------

    def _address(self, gpu: str) -> tuple[str, str]:
        found = next((g for g in self.host().gpus if g.uuid == gpu), None)
        if found is None:
            raise NvmlError("NOT_FOUND", f"GPU {gpu}")
        return found.pci_bus_id, f"/dev/nvidia{found.minor}"

    def vfio_nodes(self, gpu: str) -> VfioNodes | None:
        address, _ = self._address(gpu)
        device = vfio.read_device(self._sys, address)
        if device.driver != vfio.VFIO_DRIVER or device.group is None:
            return None
        return VfioNodes(device.group, vfio.cdev(self._sys, address))

    def bind_vfio(self, gpu: str) -> VfioNodes:
        """All or nothing: what was rebound before a failure goes back."""
        address, file = self._address(gpu)
        try:
            group = vfio.read_group(self._sys, address)
            before = {device.address: device.driver for device in group}
            plan = vfio.plan_bind(group, address, vfio.holders(self._proc, file))
            try:
                vfio.carry_out(self._sys, plan)
            except (OSError, vfio.VfioError):
                back = vfio.plan_restore(vfio.read_group(self._sys, address), {m: before[m] for m in plan.drivers})
                vfio.carry_out(self._sys, back)
                raise
        except (OSError, vfio.VfioError) as error:
            raise NvmlError("IN_USE", f"passing {gpu} through: {error}") from error
        nodes = self.vfio_nodes(gpu)
        assert nodes is not None, "carry_out has read the driver link back"
        return nodes

    def release_vfio(self, gpu: str) -> None:
        """Gives the GPU back to NVIDIA's driver, and the card's other functions to whoever wants them."""
        address, _ = self._address(gpu)
        try:
            vfio.carry_out(self._sys, vfio.plan_release(vfio.read_group(self._sys, address), address, _DRIVER))
        except (OSError, vfio.VfioError) as error:
            raise NvmlError("UNKNOWN", f"taking {gpu} back from vfio-pci: {error}") from error

    # -- events ------------------------------------------------------------------------------------------------------

    def subscribe(self, listener: Callable[[GpuEvent], None]) -> None:
        """A helper that is started later watches too."""
        first = not self._listeners
        self._listeners.append(listener)
        if first and self._helper is not None and self._helper.alive:
            self._call(type(None), "watch")

    def close(self) -> None:
        with self._lock:
            self._listeners.clear()
            if self._helper is not None:
                self._helper.kill()
                self._helper = None


def _limits_supported(driver_version: str) -> bool:
    """Memory limits by cgroup came with driver branch 615."""
    major = driver_version.partition(".")[0]
    return major.isdigit() and int(major) >= 615


def main() -> int:
    """Prints the inventory and MIG devices of this machine as JSON; 1 when there is no usable driver."""
    nvml = RealNvml()
    try:
        host = nvml.host()
        mig = {gpu.uuid: nvml.mig_devices(gpu.uuid) for gpu in host.gpus if gpu.model.profiles}
        health = {gpu.uuid: nvml.recovery_action(gpu.uuid) for gpu in host.gpus}
    except NodeError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    finally:
        nvml.close()
    found = {"host": host, "migDevices": mig, "recoveryActions": health}
    print(msgspec.json.format(msgspec.json.encode(found), indent=2).decode())
    return 0


if __name__ == "__main__":
    sys.exit(main())
