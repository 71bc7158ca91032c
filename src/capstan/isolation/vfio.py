"""Handing PCI devices to microVMs with VFIO: which devices must go together, what to write, and whether it worked.

Reading looks at a sysfs (and proc) tree given as a path; planning is pure; `carry_out` does the writes and reads the
driver links back, because a bind that the kernel refused looks like one that it did. The unit is the IOMMU group: the
hardware cannot keep its members apart, so all of them go to the guest or none does.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import msgspec

VFIO_DRIVER = "vfio-pci"
NVIDIA_VENDOR = 0x10DE
_BRIDGE_CLASS = 0x0604
_NOT_IN_THE_WAY = frozenset({VFIO_DRIVER, "pci-stub"})


class VfioError(Exception):
    """Base of what keeps a device from being passed through. `hint` says what to do about it."""

    def __init__(self, message: str, hint: str = "") -> None:
        super().__init__(f"{message} ({hint})" if hint else message)
        self.hint = hint


class NoIommu(VfioError):
    """The device is in no IOMMU group, so nothing keeps its DMA inside the guest."""


class NotViable(VfioError):
    """The device cannot go to a guest without taking a device along that the host is using."""


class Busy(VfioError):
    """Processes on the host have the device open."""


class NotBound(VfioError):
    """After the writes, a device is not with the driver it should be with."""


class PciDevice(msgspec.Struct, frozen=True):
    address: str
    """`0000:07:00.0`."""
    vendor: int
    device: int
    pci_class: int
    """Class and subclass: 0x0300 and 0x0302 are GPUs, 0x0604 is a bridge."""
    driver: str | None
    group: int | None
    virtual_functions: int = 0

    @property
    def slot(self) -> str:
        """The address without its function: functions of one slot are one card."""
        return self.address.rpartition(".")[0]


class Write(msgspec.Struct, frozen=True):
    """One write into sysfs; `path` is relative to its root."""

    path: str
    text: str


class Plan(msgspec.Struct, frozen=True):
    writes: tuple[Write, ...]
    drivers: dict[str, str | None]
    """By PCI address, the driver that each device must be with afterwards; None: no driver."""


class Holder(msgspec.Struct, frozen=True):
    pid: int
    command: str


# -- reading ---------------------------------------------------------------------------------------------------------


def read_device(sys: Path, address: str) -> PciDevice:
    """Raises VfioError when there is no such device."""
    directory = sys / "bus/pci/devices" / address
    if not directory.exists():
        raise VfioError(f"there is no PCI device {address}")
    group = _link(directory / "iommu_group")
    return PciDevice(
        address=address,
        vendor=_number(directory / "vendor"),
        device=_number(directory / "device"),
        pci_class=_number(directory / "class") >> 8,
        driver=_link(directory / "driver"),
        group=None if group is None else int(group),
        virtual_functions=_number(directory / "sriov_numvfs") if (directory / "sriov_numvfs").exists() else 0,
    )


def read_group(sys: Path, address: str) -> list[PciDevice]:
    """All members of the device's IOMMU group, sorted, itself included. Raises NoIommu."""
    device = read_device(sys, address)
    if device.group is None:
        raise NoIommu(
            f"PCI device {address} is in no IOMMU group",
            "switch the IOMMU on in the firmware and with intel_iommu=on or amd_iommu=on",
        )
    members = (sys / "kernel/iommu_groups" / str(device.group) / "devices").iterdir()
    return [read_device(sys, member.name) for member in sorted(members)]


def iommu_active(sys: Path) -> bool:
    groups = sys / "kernel/iommu_groups"
    return groups.exists() and any(groups.iterdir())


def vfio_available(sys: Path) -> bool:
    """Whether GPUs of this machine can be passed through at all."""
    return iommu_active(sys) and (sys / "bus/pci/drivers" / VFIO_DRIVER).exists()


def cdev(sys: Path, address: str) -> str | None:
    """`/dev/vfio/devices/vfio<N>` of a bound device on a kernel with IOMMUFD."""
    directory = sys / "bus/pci/devices" / address / "vfio-dev"
    names = sorted(entry.name for entry in directory.iterdir()) if directory.exists() else []
    return f"/dev/vfio/devices/{names[0]}" if names else None


def holders(proc: Path, device_file: str) -> list[Holder]:
    """Processes that have the device file open, as far as we may look. One that ends meanwhile holds nothing."""
    return [
        Holder(int(process.name), _command(process))
        for process in sorted(proc.glob("[0-9]*"), key=lambda p: int(p.name))
        if device_file in _open_files(process)
    ]


def _open_files(process: Path) -> Iterator[str]:
    try:
        for descriptor in (process / "fd").iterdir():
            yield str(descriptor.readlink())
    except OSError:
        return


def _command(process: Path) -> str:
    try:
        return (process / "comm").read_text().strip()
    except OSError:
        return "?"


def _link(path: Path) -> str | None:
    return path.readlink().name if path.is_symlink() else None


def _number(path: Path) -> int:
    return int(path.read_text().strip(), 0)


# -- planning --------------------------------------------------------------------------------------------------------


def plan_bind(group: Sequence[PciDevice], address: str, held_by: Sequence[Holder] = ()) -> Plan:
    """How to hand the group of the device at `address` to vfio-pci.

    Functions of the same card go along. Bridges stay, devices without a driver need nothing. Raises NotViable when the
    host uses any other member, or the card has virtual functions; Busy when processes have the device open.
    """
    target = next(device for device in group if device.address == address)
    if target.virtual_functions:
        raise NotViable(
            f"PCI device {address} has {target.virtual_functions} virtual functions", "remove them (sriov_numvfs = 0)"
        )
    if held_by and target.driver != VFIO_DRIVER:
        named = ", ".join(f"{holder.command} ({holder.pid})" for holder in held_by)
        raise Busy(f"PCI device {address} is open in {named}", "stop them, monitoring agents too, and try again")
    take = [device for device in group if _goes_along(device, target)]
    for device in group:
        if device not in take and device.pci_class != _BRIDGE_CLASS and device.driver not in (None, *_NOT_IN_THE_WAY):
            raise NotViable(
                f"PCI device {address} shares IOMMU group {target.group} with {device.address}, which the host's "
                f"driver {device.driver} uses",
                "move the card to another slot, or enable ACS in the firmware",
            )
    writes = [write for device in take if device.driver != VFIO_DRIVER for write in _rebind(device, VFIO_DRIVER)]
    return Plan(tuple(writes), {device.address: VFIO_DRIVER for device in take})


def _goes_along(device: PciDevice, target: PciDevice) -> bool:
    return device.slot == target.slot and device.pci_class != _BRIDGE_CLASS


def plan_restore(group: Sequence[PciDevice], before: dict[str, str | None]) -> Plan:
    """How to give the devices back to the drivers they had `before` (by PCI address)."""
    moved = [d for d in group if d.address in before and d.driver != before[d.address]]
    writes = [write for device in moved for write in _rebind(device, before[device.address])]
    return Plan(tuple(writes), {d.address: before[d.address] for d in group if d.address in before})


def plan_release(group: Sequence[PciDevice], address: str, driver: str) -> Plan:
    """How to give a card back when nobody remembers what it had: the device at `address` must end with `driver`.

    The card's other functions are offered to whichever driver of the host wants them.
    """
    target = next(device for device in group if device.address == address)
    taken = [device for device in group if _goes_along(device, target) and device.driver == VFIO_DRIVER]
    writes = [write for device in taken for write in _rebind(device, driver)]
    return Plan(tuple(writes), {address: driver})


def _rebind(device: PciDevice, driver: str | None) -> Iterator[Write]:
    """The override makes the kernel offer the device to vfio-pci only; a newline makes it open to all drivers again."""
    directory = f"bus/pci/devices/{device.address}"
    yield Write(f"{directory}/driver_override", VFIO_DRIVER if driver == VFIO_DRIVER else "\n")
    if device.driver is not None:
        yield Write(f"{directory}/driver/unbind", device.address)
    if driver is not None:
        yield Write("bus/pci/drivers_probe", device.address)


# -- doing -----------------------------------------------------------------------------------------------------------


def write_sysfs(path: Path, text: str) -> None:
    with path.open("w") as file:
        file.write(text)


def carry_out(sys: Path, plan: Plan, write: Callable[[Path, str], None] = write_sysfs) -> None:
    """Does the writes, then reads every driver link back. Raises OSError of a write, NotBound."""
    for step in plan.writes:
        write(sys / step.path, step.text)
    for address, driver in plan.drivers.items():
        found = read_device(sys, address).driver
        if found != driver:
            raise NotBound(
                f"PCI device {address} is with {found or 'no driver'}, it should be with {driver or 'none'}",
                "the kernel log says why",
            )
