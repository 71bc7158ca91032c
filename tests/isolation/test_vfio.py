"""Passing PCI devices through, on a sysfs tree in a directory with a kernel that obeys the writes to it."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from capstan.isolation import vfio

GPU, AUDIO, NIC, BRIDGE = "0000:07:00.0", "0000:07:00.1", "0000:08:00.0", "0000:06:00.0"


class Kernel:
    """A sysfs tree whose driver links follow what is written, as the kernel's do."""

    def __init__(self, root: Path) -> None:
        self.sys = root / "sys"
        self.native: dict[str, str | None] = {}
        self.refuses: set[str] = set()
        self.written: list[tuple[str, str]] = []
        (self.sys / "bus/pci/drivers/vfio-pci").mkdir(parents=True)

    def add(
        self, address: str, group: int | None, driver: str | None, *, vendor: int = 0x10DE, pci_class: int = 0x030200
    ) -> None:
        directory = self.sys / "bus/pci/devices" / address
        directory.mkdir(parents=True)
        for name, value in (("vendor", vendor), ("device", 0x20B0), ("class", pci_class)):
            (directory / name).write_text(f"{value:#06x}\n")
        (directory / "driver_override").write_text("(null)\n")
        self.native[address] = driver
        if group is not None:
            members = self.sys / "kernel/iommu_groups" / str(group) / "devices"
            members.mkdir(parents=True, exist_ok=True)
            (members / address).symlink_to(directory)
            (directory / "iommu_group").symlink_to(self.sys / "kernel/iommu_groups" / str(group))
        if driver is not None:
            self._bind(address, driver)

    def _bind(self, address: str, driver: str) -> None:
        (self.sys / "bus/pci/drivers" / driver).mkdir(parents=True, exist_ok=True)
        (self.sys / "bus/pci/devices" / address / "driver").symlink_to(self.sys / "bus/pci/drivers" / driver)

    def write(self, path: Path, text: str) -> None:
        relative = str(path.relative_to(self.sys))
        self.written.append((relative, text))
        if relative == "bus/pci/drivers_probe":
            directory = self.sys / "bus/pci/devices" / text
            override = (directory / "driver_override").read_text().strip()
            driver = self.native[text] if override in ("", "(null)") else override
            if driver is not None and text not in self.refuses and not (directory / "driver").is_symlink():
                self._bind(text, driver)
        elif path.name == "unbind":
            os.unlink(self.sys / "bus/pci/devices" / text / "driver")
        else:
            path.write_text(text)

    def driver(self, address: str) -> str | None:
        return vfio.read_device(self.sys, address).driver

    def bind(self, address: str = GPU) -> vfio.Plan:
        plan = vfio.plan_bind(vfio.read_group(self.sys, address), address)
        vfio.carry_out(self.sys, plan, self.write)
        return plan


@pytest.fixture
def kernel(tmp_path: Path) -> Kernel:
    kernel = Kernel(tmp_path)
    kernel.add(BRIDGE, 12, "pcieport", vendor=0x8086, pci_class=0x060400)
    kernel.add(GPU, 12, "nvidia")
    kernel.add(AUDIO, 12, "snd_hda_intel", pci_class=0x040300)
    return kernel


def test_a_device_tells_what_it_is(kernel: Kernel) -> None:
    assert vfio.read_device(kernel.sys, GPU) == vfio.PciDevice(GPU, 0x10DE, 0x20B0, 0x0302, "nvidia", 12)
    assert [device.address for device in vfio.read_group(kernel.sys, GPU)] == [BRIDGE, GPU, AUDIO]


def test_all_functions_of_the_card_go_and_the_bridge_stays(kernel: Kernel) -> None:
    plan = kernel.bind()
    assert plan.drivers == {GPU: "vfio-pci", AUDIO: "vfio-pci"}
    assert (kernel.driver(GPU), kernel.driver(AUDIO), kernel.driver(BRIDGE)) == ("vfio-pci", "vfio-pci", "pcieport")
    assert kernel.written[:3] == [
        (f"bus/pci/devices/{GPU}/driver_override", "vfio-pci"),
        (f"bus/pci/devices/{GPU}/driver/unbind", GPU),
        ("bus/pci/drivers_probe", GPU),
    ]


def test_binding_again_writes_nothing(kernel: Kernel) -> None:
    kernel.bind()
    assert vfio.plan_bind(vfio.read_group(kernel.sys, GPU), GPU).writes == ()


def test_restoring_gives_every_device_back_to_the_driver_it_had(kernel: Kernel) -> None:
    before = {device.address: device.driver for device in vfio.read_group(kernel.sys, GPU)}
    kernel.bind()
    plan = vfio.plan_restore(vfio.read_group(kernel.sys, GPU), before)
    vfio.carry_out(kernel.sys, plan, kernel.write)
    assert {device.address: device.driver for device in vfio.read_group(kernel.sys, GPU)} == before
    assert (kernel.sys / "bus/pci/devices" / GPU / "driver_override").read_text() == "\n"
    assert vfio.plan_restore(vfio.read_group(kernel.sys, GPU), before).writes == ()


def test_a_card_is_given_back_also_by_a_process_that_did_not_take_it(kernel: Kernel) -> None:
    kernel.bind()
    vfio.carry_out(kernel.sys, vfio.plan_release(vfio.read_group(kernel.sys, GPU), GPU, "nvidia"), kernel.write)
    assert (kernel.driver(GPU), kernel.driver(AUDIO)) == ("nvidia", "snd_hda_intel")
    assert vfio.plan_release(vfio.read_group(kernel.sys, GPU), GPU, "nvidia").writes == ()


def test_a_device_that_had_no_driver_is_left_without_one(tmp_path: Path) -> None:
    kernel = Kernel(tmp_path)
    kernel.add(GPU, 3, None)
    kernel.bind()
    vfio.carry_out(kernel.sys, vfio.plan_restore(vfio.read_group(kernel.sys, GPU), {GPU: None}), kernel.write)
    assert kernel.driver(GPU) is None


def test_a_bind_that_the_kernel_refused_is_an_error_and_not_a_success(kernel: Kernel) -> None:
    kernel.refuses.add(GPU)
    with pytest.raises(vfio.NotBound, match=f"{GPU} is with no driver, it should be with vfio-pci"):
        kernel.bind()


def test_a_neighbour_that_the_host_uses_forbids_it(kernel: Kernel) -> None:
    kernel.add(NIC, 12, "mlx5_core", vendor=0x15B3, pci_class=0x020000)
    with pytest.raises(
        vfio.NotViable, match=rf"shares IOMMU group 12 with {NIC}, which the host's driver mlx5_core uses"
    ):
        kernel.bind()
    assert kernel.written == []


def test_a_neighbour_without_a_driver_does_not_matter(kernel: Kernel) -> None:
    kernel.add(NIC, 12, None, vendor=0x15B3, pci_class=0x020000)
    assert NIC not in kernel.bind().drivers


def test_without_an_iommu_nothing_is_passed_through(tmp_path: Path) -> None:
    kernel = Kernel(tmp_path)
    kernel.add(GPU, None, "nvidia")
    assert not vfio.iommu_active(kernel.sys) and not vfio.vfio_available(kernel.sys)
    with pytest.raises(vfio.NoIommu, match="intel_iommu=on"):
        kernel.bind()


def test_virtual_functions_must_go_first(kernel: Kernel) -> None:
    (kernel.sys / "bus/pci/devices" / GPU / "sriov_numvfs").write_text("4\n")
    with pytest.raises(vfio.NotViable, match="4 virtual functions"):
        kernel.bind()


def test_an_unknown_address_is_an_error(kernel: Kernel) -> None:
    with pytest.raises(vfio.VfioError, match=r"no PCI device 0000:99:00\.0"):
        vfio.read_group(kernel.sys, "0000:99:00.0")


def test_a_gpu_that_is_open_is_busy_and_its_holders_are_named(kernel: Kernel, tmp_path: Path) -> None:
    proc = tmp_path / "proc"
    for pid, command, files in ((7, "dcgm", ["/dev/nvidia0"]), (9, "bash", ["/dev/tty"])):
        (proc / str(pid) / "fd").mkdir(parents=True)
        (proc / str(pid) / "comm").write_text(f"{command}\n")
        for number, file in enumerate(files):
            (proc / str(pid) / "fd" / str(number)).symlink_to(file)
    found = vfio.holders(proc, "/dev/nvidia0")
    assert found == [vfio.Holder(7, "dcgm")]
    with pytest.raises(vfio.Busy, match=r"is open in dcgm \(7\)"):
        vfio.plan_bind(vfio.read_group(kernel.sys, GPU), GPU, found)


def test_a_kernel_with_iommufd_has_a_device_file_per_device(kernel: Kernel) -> None:
    assert vfio.cdev(kernel.sys, GPU) is None
    (kernel.sys / "bus/pci/devices" / GPU / "vfio-dev/vfio3").mkdir(parents=True)
    assert vfio.cdev(kernel.sys, GPU) == "/dev/vfio/devices/vfio3"
