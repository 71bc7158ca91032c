"""The three levels at which tenants are kept apart, and what must have been verified before one is reported.

A level that was asked for is an intention. What a status shows is `report`: the level together with how far it was
verified. Nothing is called isolated because a file or a device node exists.
"""

from __future__ import annotations

from enum import StrEnum

import msgspec


class Level(StrEnum):
    """From weak to strong."""

    CONTAINER = "container"
    """Namespaces and cgroups of one shared kernel."""
    MICROVM = "microvm"
    """A kernel of its own; devices behind the IOMMU."""
    CONFIDENTIAL = "confidential"
    """A microVM whose memory the host cannot read, attested before secrets are released."""


class Evidence(msgspec.Struct, frozen=True, kw_only=True):
    """What was really checked on the node, not what its configuration promises."""

    simulated: bool = False
    """The node does not exist; its sandbox is played."""
    booted: bool = False
    """A guest was booted by this node's sandbox runtime."""
    accelerated: bool = False
    """That guest ran on hardware virtualisation, not on an emulated CPU."""
    passthrough: bool = False
    """The pod has devices that were handed over by VFIO."""
    iommu_active: bool = False
    group_viable: bool = False
    """Every function of the devices' IOMMU groups is with vfio-pci or without a driver."""
    driver_verified: bool = False
    """The driver links were read back after binding."""
    attested: bool = False
    """A verifier accepted the guest's evidence from a real TEE."""


class Report(msgspec.Struct, frozen=True):
    level: Level
    label: str
    """`verified`; `emulated`: the mechanism ran without a hardware boundary; `simulated`; or `unverified`."""
    missing: tuple[str, ...] = ()
    """What was not shown, in words."""

    @property
    def verified(self) -> bool:
        return self.label == "verified"

    def __str__(self) -> str:
        text = self.level.value if self.verified else f"{self.level.value} ({self.label})"
        return f"{text}: {'; '.join(self.missing)}" if self.missing else text


def report(level: Level, evidence: Evidence) -> Report:
    """The level as it may be shown in a status, given the evidence."""
    if level is Level.CONTAINER:
        return Report(level, "simulated" if evidence.simulated else "verified")
    if evidence.simulated:
        return Report(level, "simulated", ("the node is simulated",))
    missing = [] if evidence.booted else ["no guest was booted"]
    if evidence.passthrough:
        missing += [] if evidence.iommu_active else ["the IOMMU is not active"]
        missing += [] if evidence.group_viable else ["the IOMMU group is shared with the host"]
        missing += [] if evidence.driver_verified else ["the driver link was not read back"]
    if level is Level.CONFIDENTIAL and not evidence.attested:
        missing.append("the guest is not attested")
    if missing:
        return Report(level, "unverified", tuple(missing))
    if not evidence.accelerated:
        return Report(level, "emulated", ("the CPU is emulated, which is no hardware boundary",))
    return Report(level, "verified")
