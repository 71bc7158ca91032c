"""PURE. What preparing a claim means on this node: allocation and opaque configs become a journal record with steps.

`plan` refuses what would overlap physically with any other record, whatever the API said: the scheduler may have been
lied to, or a pod force-deleted before its devices were given back (kubernetes #141471). Started records count too.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

import msgspec

from capstan.api import nvidia, quantity
from capstan.api.resource import DeviceConfig, DeviceRequestAllocationResult, ResourceClaim
from capstan.node import cdi
from capstan.node.errors import ClaimRefused, DeviceBusy
from capstan.node.inventory import DRIVER, Catalog, Offer
from capstan.node.models import MIB
from capstan.node.nvml import COMPUTE_DEFAULT, COMPUTE_EXCLUSIVE_PROCESS, Host, MigDevice, MpsSettings
from capstan.node.records import (
    CdiSpec,
    ComputeMode,
    Holding,
    MemoryLimit,
    MigInstance,
    MigMode,
    MpsDaemon,
    Passthrough,
    Record,
    Step,
    TimeSlice,
    key,
)

_CONFIG_OF_KIND: dict[str, type] = {
    "gpu": nvidia.GpuConfig,
    "mig": nvidia.MigDeviceConfig,
    "vfio": nvidia.VfioDeviceConfig,
}
_FROM_CLASS = "FromClass"


class MigState(msgspec.Struct, frozen=True):
    """What the GPUs of a claim looked like when it was planned."""

    enabled: Mapping[str, bool] = {}
    devices: Mapping[str, Sequence[MigDevice]] = {}


def plan(claim: ResourceClaim, pool: str, catalog: Catalog, mig: MigState, records: Iterable[Record]) -> Record:
    """The record, in state `started`, with every step in order. Takes no step itself.

    Raises ClaimRefused for a claim that is wrong in itself, DeviceBusy when others hold what it was given.
    """
    others = [record for record in records if record.uid != claim.metadata.uid]
    results = own_results(claim)
    named: dict[str, int] = {}
    for result in results:
        named[result.device] = named.get(result.device, 0) + 1
    pairs = [_holding(claim, result, pool, catalog, several=named[result.device] > 1) for result in results]
    holdings = tuple(holding for holding, _ in pairs)
    _refuse_overlap(claim, holdings, others, catalog)
    steps: dict[tuple[str, str], Step] = {}
    for holding, config in pairs:
        found = (
            _admin_steps(claim, holding, mig)
            if holding.admin
            else _steps(claim, holding, config, catalog.host, mig, others)
        )
        for step in found:
            steps.setdefault(key(step), step)
    if holdings:
        steps[("cdi-spec", claim.metadata.uid)] = CdiSpec(claim.metadata.uid)
    return Record(
        claim.metadata.uid, claim.metadata.namespace, claim.metadata.name, "started", holdings, tuple(steps.values())
    )


def own_results(claim: ResourceClaim) -> list[DeviceRequestAllocationResult]:
    """The allocation's results for this driver. Raises ClaimRefused when the claim has no allocation."""
    allocation = claim.status.allocation
    if allocation is None:
        raise ClaimRefused(f"{_title(claim)} is not allocated", "wait for the scheduler to allocate it")
    return [result for result in allocation.devices.results if result.driver == DRIVER]


def _title(claim: ResourceClaim) -> str:
    return f"claim {claim.metadata.namespace}/{claim.metadata.name}"


def _holding(
    claim: ResourceClaim, result: DeviceRequestAllocationResult, pool: str, catalog: Catalog, *, several: bool
) -> tuple[Holding, nvidia.Config | None]:
    where = f"{_title(claim)} request {result.request}"
    if result.pool != pool:
        raise ClaimRefused(f"{where}: device {result.device} is of pool {result.pool}, this node's pool is {pool}")
    offer = catalog.find(result.device)
    if offer is None:
        raise ClaimRefused(
            f"{where}: pool {pool} has no device {result.device}", "it may have vanished; delete the pod to try again"
        )
    assert claim.status.allocation is not None
    config = effective_config(claim.status.allocation.devices.config, result.request, offer.kind, where)
    memory, limit = _memory(offer, result, where)
    uid = claim.metadata.uid
    suffix = f"-{result.share_id}" if several and result.share_id else ""
    holding = Holding(
        request=result.request,
        pool=pool,
        device=result.device,
        kind=offer.kind,
        gpu=offer.gpu.uuid,
        memory=memory,
        profile_id=offer.profile.id if offer.profile else None,
        start=offer.start,
        size=offer.profile.size if offer.profile else 8,
        share_id=result.share_id,
        admin=bool(result.admin_access),
        sharing=_sharing_text(config),
        cdi_name=f"{uid}-{result.device}{suffix}",
        limit=limit,
    )
    return holding, config


def _memory(offer: Offer, result: DeviceRequestAllocationResult, where: str) -> tuple[int, int | None]:
    """Bytes consumed, and the limit to hold the claim to when that is less than all.

    An allocation without consumed capacity (a scheduler without DRAConsumableCapacity) has the whole GPU, and what one
    with admin access names is nothing that it takes. The published
    amount is rounded down to whole MiB, so that is what "all" means.
    """
    if offer.kind != "gpu":
        return 0, None
    total = offer.gpu.model.memory // MIB * MIB
    if result.admin_access or "memory" not in result.consumed_capacity:
        return total, None
    try:
        consumed = quantity.whole(result.consumed_capacity["memory"])
    except quantity.InvalidQuantity as error:
        raise ClaimRefused(f"{where}: consumedCapacity.memory: {error}") from None
    return consumed, consumed if consumed < total else None


# -- configs ---------------------------------------------------------------------------------------------------------


def effective_config(configs: Sequence[DeviceConfig], request: str, kind: str, where: str = "") -> nvidia.Config | None:
    """The one opaque config for a result: class before claim, and of each the last that applies; None for the default.

    A config that names the request must be for the device's kind; one for all requests is skipped where it is not.
    Raises ClaimRefused naming the request and the field.
    """
    chosen: nvidia.Config | None = None
    for source in (True, False):
        for config in configs:
            if (config.source == _FROM_CLASS) is not source or config.opaque is None or config.opaque.driver != DRIVER:
                continue
            named = request in config.requests or request.split("/")[0] in config.requests
            if config.requests and not named:
                continue
            try:
                decoded = nvidia.decode(config.opaque.parameters, DRIVER)
            except nvidia.InvalidConfig as error:
                origin = "class" if source else "claim"
                raise ClaimRefused(f"{where}: opaque config of the {origin}: {error}") from None
            if isinstance(decoded, _CONFIG_OF_KIND[kind]):
                chosen = decoded
            elif named:
                raise ClaimRefused(
                    f"{where}: opaque config: kind: {type(decoded).__name__} is not for a device of type {kind}",
                    f"write {_CONFIG_OF_KIND[kind].__name__}",
                )
    return chosen


def _sharing_text(config: nvidia.Config | None) -> str:
    sharing = getattr(config, "sharing", None)
    return msgspec.json.encode(sharing, order="sorted").decode() if sharing is not None else ""


# -- overlap ---------------------------------------------------------------------------------------------------------


def _refuse_overlap(
    claim: ResourceClaim, holdings: Sequence[Holding], others: Sequence[Record], catalog: Catalog
) -> None:
    """Raises DeviceBusy when holdings overlap with each other or with those of other claims."""
    seen: list[tuple[str, Holding]] = [
        (f"claim {record.namespace}/{record.name}", other)
        for record in others
        for other in record.holdings
        if not other.admin
    ]
    for holding in holdings:
        if holding.admin:
            continue
        for owner, other in seen:
            reason = _overlap(holding, other)
            if reason:
                raise DeviceBusy(
                    f"{_title(claim)} request {holding.request}: {holding.device} {reason} {other.device}, "
                    f"which {owner} holds"
                )
        seen.append((_title(claim), holding))
    _refuse_overcommit(claim, holdings, seen, catalog)


def _overlap(one: Holding, other: Holding) -> str:
    if one.gpu != other.gpu:
        return ""
    if one.kind == other.kind == "gpu":
        return "" if one.sharing == other.sharing else "has other sharing settings than"
    if one.kind == other.kind == "mig":
        apart = one.start + one.size <= other.start or other.start + other.size <= one.start
        return "" if apart else "overlaps with"
    return "is the same hardware as"


def _refuse_overcommit(
    claim: ResourceClaim, holdings: Sequence[Holding], seen: Sequence[tuple[str, Holding]], catalog: Catalog
) -> None:
    """The shares of a GPU must fit in its memory. A whole GPU is a share of all of it, so it excludes any other."""
    for device in {holding.device for holding in holdings if holding.kind == "gpu" and not holding.admin}:
        offer = catalog.find(device)
        assert offer is not None
        total = offer.gpu.model.memory // MIB * MIB
        shares = [(owner, holding.memory) for owner, holding in seen if holding.device == device]
        ours = sum(memory for owner, memory in shares if owner == _title(claim))
        held = sum(memory for _, memory in shares) - ours
        if ours + held > total:
            owners = sorted({owner for owner, _ in shares} - {_title(claim)})
            raise DeviceBusy(
                f"{_title(claim)} needs {ours // MIB} MiB of {device}, "
                f"{(total - held) // MIB} of {total // MIB} MiB are free"
                + (f" beside what {', '.join(owners)} holds" if owners else "")
            )


# -- steps -----------------------------------------------------------------------------------------------------------


def _steps(
    claim: ResourceClaim,
    holding: Holding,
    config: nvidia.Config | None,
    host: Host,
    mig: MigState,
    others: Sequence[Record],
) -> list[Step]:
    if holding.kind == "vfio":
        iommu = config.iommu if isinstance(config, nvidia.VfioDeviceConfig) else nvidia.IommuConfig()
        return [Passthrough(holding.gpu, iommu.backend_policy == "PreferIommuFD", iommu.enable_api_device)]
    steps: list[Step] = []
    if holding.kind == "mig":
        steps += _mig_steps(claim, holding, mig, others)
    sharing = getattr(config, "sharing", None)
    if isinstance(sharing, nvidia.GpuSharing) and sharing.time_slicing_config is not None:
        interval = nvidia.TIME_SLICE_INTERVALS[sharing.time_slicing_config.interval]
        steps += [TimeSlice(holding.gpu, interval), ComputeMode(holding.gpu, COMPUTE_DEFAULT)]
    if sharing is not None and sharing.mps_config is not None:
        # Compute mode is the whole GPU's; in MIG mode an MPS daemon serves one instance and leaves the mode alone.
        if holding.kind == "gpu":
            steps.append(ComputeMode(holding.gpu, COMPUTE_EXCLUSIVE_PROCESS))
        steps.append(MpsDaemon(cdi.mps_name(holding), holding.gpu, _mps_settings(sharing.mps_config, holding)))
    if holding.limit is not None and host.memory_limits == "simulated":
        steps.append(MemoryLimit(holding.gpu, holding.cdi_name, holding.limit))
    return steps


def _admin_steps(claim: ResourceClaim, holding: Holding, mig: MigState) -> list[Step]:
    """An observer sees a MIG device while it is there, whoever made it, and changes nothing."""
    if holding.kind == "vfio":
        raise ClaimRefused(
            f"{_title(claim)} request {holding.request}: {holding.device} is a passthrough device, which only the "
            f"virtual machine that has it can observe"
        )
    at = (holding.profile_id, holding.start)
    return [_adopted(d) for d in mig.devices.get(holding.gpu, ()) if d.uuid and (d.profile_id, d.start) == at]


def _adopted(device: MigDevice) -> MigInstance:
    return MigInstance(
        device.gpu,
        device.profile_id,
        device.start,
        device.gi_id,
        device.uuid,
        device.gi_cap,
        device.ci_cap,
        adopted=True,
    )


def _mig_steps(claim: ResourceClaim, holding: Holding, mig: MigState, others: Sequence[Record]) -> list[Step]:
    """A MIG device that is there already but in no record is somebody else's: it is used as it is."""
    assert holding.profile_id is not None
    at = (holding.profile_id, holding.start)
    instance = MigInstance(holding.gpu, *at)
    theirs = _own_instances(others)
    for device in mig.devices.get(holding.gpu, ()):
        if (device.profile_id, device.start) == at and key(instance) not in theirs:
            if not device.uuid:
                raise DeviceBusy(
                    f"{_title(claim)} request {holding.request}: {holding.device} is a GPU instance without a compute "
                    f"instance that this driver did not make"
                )
            return [_adopted(device)]
    switched_on_here = any(step == MigMode(holding.gpu) for record in others for step in record.steps)
    mode: list[Step] = [MigMode(holding.gpu)]
    return [*(mode if switched_on_here or not mig.enabled.get(holding.gpu, False) else []), instance]


def _own_instances(records: Iterable[Record]) -> set[tuple[str, str]]:
    return {
        key(step) for record in records for step in record.steps if isinstance(step, MigInstance) and not step.adopted
    }


def _mps_settings(config: nvidia.MpsConfig, holding: Holding) -> MpsSettings:
    """Per-device limits are by GPU UUID, or `0` for the only GPU a daemon serves."""
    limit = config.default_pinned_device_memory_limit
    for name in ("0", holding.gpu):
        limit = config.default_per_device_pinned_memory_limit.get(name, limit)
    limits = {} if limit is None else {holding.gpu: quantity.whole(limit)}
    return MpsSettings(config.default_active_thread_percentage, limits, config.multi_user)
