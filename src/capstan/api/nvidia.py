"""`resource.nvidia.com/v1beta1`: the opaque device configurations that users of NVIDIA's DRA driver write.

They arrive as raw parameters of a class or claim. `decode` is strict: an unknown field, kind or value is an error that
names the field. What it returns is normalised (defaults filled in) and valid.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

import msgspec

from capstan.api import quantity
from capstan.api.core import Quantity

API_VERSION = "resource.nvidia.com/v1beta1"
DRIVER = "gpu.nvidia.com"
COMPUTE_DOMAIN_DRIVER = "compute-domain.nvidia.com"
TIME_SLICE_INTERVALS = {"Default": 0, "Short": 1, "Medium": 2, "Long": 3}
_MIB = 1 << 20


class InvalidConfig(ValueError):
    """Opaque parameters that cannot be used; `field` is the dotted path inside them."""

    def __init__(self, field: str, message: str) -> None:
        super().__init__(f"{field}: {message}" if field else message)
        self.field = field


class _Strict(msgspec.Struct, rename="camel", forbid_unknown_fields=True, omit_defaults=True, kw_only=True):
    """User input: a misspelt field must not be ignored."""


class TimeSlicingConfig(_Strict):
    interval: Literal["Default", "Short", "Medium", "Long"] = "Default"


class MpsConfig(_Strict):
    default_active_thread_percentage: int | None = None
    default_pinned_device_memory_limit: Quantity | None = None
    default_per_device_pinned_memory_limit: dict[str, Quantity] = {}
    """By GPU UUID or by the device's index in the claim; overrides the limit above."""
    multi_user: bool = False


class GpuSharing(_Strict):
    strategy: Literal["TimeSlicing", "MPS"]
    time_slicing_config: TimeSlicingConfig | None = None
    mps_config: MpsConfig | None = None


class MigSharing(_Strict):
    strategy: Literal["TimeSlicing", "MPS"]
    mps_config: MpsConfig | None = None


class IommuConfig(_Strict):
    backend_policy: Literal["LegacyOnly", "PreferIommuFD"] = "LegacyOnly"
    enable_api_device: bool = msgspec.field(default=False, name="enableAPIDevice")


class _Kind(_Strict, tag_field="kind"):
    api_version: str


class GpuConfig(_Kind, tag="GpuConfig"):
    sharing: GpuSharing | None = None


class MigDeviceConfig(_Kind, tag="MigDeviceConfig"):
    sharing: MigSharing | None = None


class VfioDeviceConfig(_Kind, tag="VfioDeviceConfig"):
    iommu: IommuConfig = msgspec.field(default_factory=IommuConfig)


class ComputeDomainChannelConfig(_Kind, tag="ComputeDomainChannelConfig"):
    domain_id: str = msgspec.field(name="domainID")
    allocation_mode: Literal["Single", "All"] = "Single"


class ComputeDomainDaemonConfig(_Kind, tag="ComputeDomainDaemonConfig"):
    domain_id: str = msgspec.field(name="domainID")


Config = GpuConfig | MigDeviceConfig | VfioDeviceConfig | ComputeDomainChannelConfig | ComputeDomainDaemonConfig
DRIVER_OF: dict[type, str] = {
    GpuConfig: DRIVER,
    MigDeviceConfig: DRIVER,
    VfioDeviceConfig: DRIVER,
    ComputeDomainChannelConfig: COMPUTE_DOMAIN_DRIVER,
    ComputeDomainDaemonConfig: COMPUTE_DOMAIN_DRIVER,
}


def decode(parameters: Mapping[str, Any], driver: str) -> Config:
    """The configuration in raw parameters that were addressed to `driver`. Raises InvalidConfig."""
    api_version = parameters.get("apiVersion")
    if api_version != API_VERSION:
        raise InvalidConfig("apiVersion", f"{api_version!r} is not supported, write {API_VERSION}")
    try:
        config: Config = msgspec.convert(parameters, Config)
    except msgspec.ValidationError as error:
        message, _, path = str(error).partition(" - at `")
        field = path.rstrip("`").removeprefix("$").lstrip(".")
        if field == "kind" or "required field `kind`" in message:
            message += f"; known kinds: {', '.join(kind.__name__ for kind in DRIVER_OF)}"
        raise InvalidConfig(field, message) from None
    if DRIVER_OF[type(config)] != driver:
        raise InvalidConfig(
            "kind", f"{type(config).__name__} belongs to driver {DRIVER_OF[type(config)]}, not {driver}"
        )
    sharing = getattr(config, "sharing", None)
    if sharing is not None:
        _normalise_sharing(sharing)
    if isinstance(config, (ComputeDomainChannelConfig, ComputeDomainDaemonConfig)) and not config.domain_id:
        raise InvalidConfig("domainID", "must name the UID of a ComputeDomain")
    return config


def _normalise_sharing(sharing: GpuSharing | MigSharing) -> None:
    """Settings of the strategy that was not chosen are an error; those of the chosen one are filled in and checked."""
    time_slicing = sharing.time_slicing_config if isinstance(sharing, GpuSharing) else None
    if sharing.strategy == "TimeSlicing":
        if sharing.mps_config is not None:
            raise InvalidConfig("sharing.mpsConfig", "is only for the strategy MPS")
        if isinstance(sharing, GpuSharing) and time_slicing is None:
            sharing.time_slicing_config = TimeSlicingConfig()
        return
    if time_slicing is not None:
        raise InvalidConfig("sharing.timeSlicingConfig", "is only for the strategy TimeSlicing")
    mps = sharing.mps_config = sharing.mps_config or MpsConfig()
    percentage = mps.default_active_thread_percentage
    if percentage is not None and not 0 <= percentage <= 100:
        raise InvalidConfig("sharing.mpsConfig.defaultActiveThreadPercentage", f"{percentage} is not within 0 and 100")
    limits = {"defaultPinnedDeviceMemoryLimit": mps.default_pinned_device_memory_limit} | {
        f"defaultPerDevicePinnedMemoryLimit[{key}]": value
        for key, value in mps.default_per_device_pinned_memory_limit.items()
    }
    for name, limit in limits.items():
        if limit is not None:
            _check_limit(f"sharing.mpsConfig.{name}", limit)


def _check_limit(field: str, limit: Quantity) -> None:
    try:
        value = quantity.whole(limit)
    except quantity.InvalidQuantity as error:
        raise InvalidConfig(field, str(error)) from None
    if value < _MIB:
        raise InvalidConfig(field, f"{limit} is less than 1Mi")
