"""From a node's GPUs to the devices it offers: names, attributes, capacities and counters as NVIDIA's driver has them.

Each GPU is offered as a whole (`gpu-<minor>`, also in shares of its memory), as each of its MIG placements
(`gpu-<minor>-mig-<profile>-<profile id>-<start>`) and for passthrough (`gpu-vfio-<index>`). All draw on one counter set
per GPU, so an allocation of one form excludes the others. `slice_specs` lays them out in ResourceSlice specs; `Catalog`
maps an allocated device name back to the hardware.

Order is preference for schedulers that take the first fit: whole GPUs by index; MIG placements from the smallest
profile up, and of one profile first the placement that blocks the fewest others; passthrough last.

Attributes beyond NVIDIA's: `index` (the GPU's NVML index, on every device), and under `platform.capstan.dev`
`nvlinkDomain` (equal for GPUs that reach each other over NVLink), `memoryLimits` (how a share's limit is held:
`cgroup`, `simulated` or `none`) and `simulated` (true on devices that do not exist).
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import cache
from typing import Any

import msgspec

from capstan.api import nvidia, quantity
from capstan.node.models import GpuModel, MigProfile
from capstan.node.nvml import Gpu, Host, MigDevice

DRIVER = nvidia.DRIVER
OWN_DOMAIN = "platform.capstan.dev"
MAX_COUNTER_SETS = 8
MAX_DEVICES = 64
"""Devices in a slice whose devices consume counters or carry taints."""
_ENGINES = (
    ("multiprocessors", "multiprocessors", "multiprocessors"),
    ("copy_engines", "copyEngines", "copy-engines"),
    ("decoders", "decoders", "decoders"),
    ("encoders", "encoders", "encoders"),
    ("jpeg_engines", "jpegEngines", "jpeg-engines"),
    ("ofa_engines", "ofaEngines", "ofa-engines"),
)
"""Field of MigProfile, capacity name, counter name."""

Body = dict[str, Any]
Taints = Callable[["Offer"], list[Body]]


class Offer(msgspec.Struct, frozen=True):
    """One offered device and the hardware behind it. `kind` is `gpu`, `mig` or `vfio`."""

    name: str
    kind: str
    gpu: Gpu
    profile: MigProfile | None = None
    start: int = 0

    @property
    def slices(self) -> range:
        """The memory slices it covers: all of them unless it is a MIG placement."""
        return range(self.start, self.start + self.profile.size) if self.profile else range(8)


def gpu_name(gpu: Gpu) -> str:
    return f"gpu-{gpu.minor}"


def vfio_name(gpu: Gpu) -> str:
    return f"gpu-vfio-{gpu.index}"


def mig_name(gpu: Gpu, profile: MigProfile, start: int) -> str:
    """Device names are DNS labels, so `1g.5gb+me` becomes `1g5gbme`."""
    compact = profile.name.replace(".", "").replace("+", "")
    return f"gpu-{gpu.minor}-mig-{compact}-{profile.id}-{start}"


@cache
def placements(model: GpuModel) -> tuple[tuple[MigProfile, int], ...]:
    """Every MIG placement in order of preference (module docstring)."""
    every = [(profile, start) for profile in model.profiles for start in profile.starts]

    def blocked(profile: MigProfile, start: int) -> int:
        return sum(p.size for p, s in every if s < start + profile.size and start < s + p.size)

    return tuple(sorted(every, key=lambda at: (at[0].memory, at[0].slices, at[0].id, blocked(*at), -at[1])))


def offers(host: Host, foreign: Mapping[str, Sequence[MigDevice]] | None = None) -> list[Offer]:
    """All devices of a node in order of preference.

    `foreign` has, by GPU UUID, MIG devices that somebody else made. They are offered as they are, and what would
    collide with them is left out: the whole GPU, passthrough and overlapping placements.
    """
    result: list[Offer] = []
    for gpu in host.gpus:
        others = (foreign or {}).get(gpu.uuid, ())
        if gpu.whole_capable and not others:
            result.append(Offer(gpu_name(gpu), "gpu", gpu))
    for gpu in host.gpus:
        if gpu.mig_capable:
            others = (foreign or {}).get(gpu.uuid, ())
            for profile, start in placements(gpu.model):
                offer = Offer(mig_name(gpu, profile, start), "mig", gpu, profile, start)
                if all(_compatible(offer, other) for other in others):
                    result.append(offer)
    if host.vfio:
        whole = (gpu for gpu in host.gpus if gpu.whole_capable and not (foreign or {}).get(gpu.uuid))
        result.extend(Offer(vfio_name(gpu), "vfio", gpu) for gpu in whole)
    return result


def _compatible(offer: Offer, other: MigDevice) -> bool:
    assert offer.profile is not None
    if (other.profile_id, other.start) == (offer.profile.id, offer.start):
        return True
    profile = offer.gpu.model.profile(other.profile_id)
    size = profile.size if profile else 8
    return offer.slices.stop <= other.start or other.start + size <= offer.slices.start


class Catalog:
    """The offers of a node by device name."""

    def __init__(self, host: Host, foreign: Mapping[str, Sequence[MigDevice]] | None = None) -> None:
        self.host = host
        self.offers = offers(host, foreign)
        self._by_name = {offer.name: offer for offer in self.offers}

    def find(self, name: str) -> Offer | None:
        return self._by_name.get(name)


# -- bodies ----------------------------------------------------------------------------------------------------------


def version(*parts: int) -> str:
    """A semantic version: three numbers without leading zeros."""
    return ".".join(str(part) for part in (*parts, 0, 0)[:3])


def _driver_version(text: str) -> str:
    return version(*(int(part) for part in text.split(".")[:3]))


def counters(gpu: Gpu) -> dict[str, int]:
    """All that the GPU's counter set holds; what the whole GPU and its passthrough sibling consume."""
    profiles = gpu.model.profiles if gpu.mig_capable else ()
    if not profiles:
        return {"memory": gpu.model.memory}
    held = {counter: max(getattr(p, field) for p in profiles) for field, _, counter in _ENGINES}
    held = {counter: count for counter, count in held.items() if count}
    held["memory"] = max(p.memory for p in profiles)
    return held | {f"memory-slice-{i}": 1 for i in range(8)}


def consumption(offer: Offer) -> dict[str, int]:
    if offer.profile is None:
        return counters(offer.gpu)
    used = {counter: getattr(offer.profile, field) for field, _, counter in _ENGINES}
    used = {counter: count for counter, count in used.items() if count}
    used["memory"] = offer.profile.memory
    return used | {f"memory-slice-{i}": 1 for i in offer.slices}


def counter_set_name(gpu: Gpu) -> str:
    return f"gpu-{gpu.minor}-counter-set"


def _counter_body(values: Mapping[str, int]) -> Body:
    return {name: {"value": _amount(name, value)} for name, value in values.items()}


def _amount(name: str, value: int) -> str:
    return quantity.render(value) if name == "memory" else str(value)


def vfio_uuid(pci_bus_id: str) -> str:
    """A stable id for a passthrough device: SHA-1 of its PCI address, as a GPU bound to vfio-pci has no NVML UUID."""
    return hashlib.sha1(pci_bus_id.encode()).hexdigest()


def device_body(offer: Offer, host: Host, taints: Sequence[Body] = (), mig_uuid: str = "") -> Body:
    """The device as it stands in a ResourceSlice. `mig_uuid`: of a MIG device that exists whether allocated or not."""
    gpu, model = offer.gpu, offer.gpu.model
    attributes: Body = {"type": {"string": offer.kind}}
    if offer.kind == "gpu":
        attributes["uuid"] = {"string": gpu.uuid}
    elif offer.kind == "vfio":
        attributes["uuid"] = {"string": vfio_uuid(gpu.pci_bus_id)}
    else:
        assert offer.profile is not None
        if mig_uuid:
            attributes["uuid"] = {"string": mig_uuid}
        attributes["parentUUID"] = {"string": gpu.uuid}
        attributes["profile"] = {"string": offer.profile.name}
    attributes["index"] = {"int": gpu.index}
    attributes["productName"] = {"string": model.product_name}
    if offer.kind == "vfio":
        attributes["vendorID"] = {"string": "0x10de"}
        attributes["deviceID"] = {"string": f"0x{model.pci_device_id:04x}"}
        attributes["iommuFDEnabled"] = {"bool": host.iommufd}
    else:
        attributes["brand"] = {"string": model.brand}
        attributes["architecture"] = {"string": model.architecture}
        attributes["cudaComputeCapability"] = {"version": version(*model.compute_capability)}
        attributes["driverVersion"] = {"version": _driver_version(host.driver_version)}
        attributes["cudaDriverVersion"] = {"version": version(*host.cuda_version)}
        attributes["addressingMode"] = {"string": gpu.addressing_mode}
    attributes["resource.kubernetes.io/pciBusID"] = {"string": gpu.pci_bus_id}
    if gpu.pcie_root:
        attributes["resource.kubernetes.io/pcieRoot"] = {"string": gpu.pcie_root}
    if gpu.numa_node is not None:
        attributes["resource.kubernetes.io/numaNode"] = {"int": gpu.numa_node}
    if gpu.nvlink_domain:
        attributes[f"{OWN_DOMAIN}/nvlinkDomain"] = {"string": gpu.nvlink_domain}
    if offer.kind == "gpu":
        attributes[f"{OWN_DOMAIN}/memoryLimits"] = {"string": host.memory_limits}
    if host.simulated:
        attributes[f"{OWN_DOMAIN}/simulated"] = {"bool": True}
    body: Body = {"name": offer.name, "attributes": attributes, "capacity": _capacity(offer)}
    if offer.kind == "gpu":
        body["allowMultipleAllocations"] = True
    body["consumesCounters"] = [{"counterSet": counter_set_name(gpu), "counters": _counter_body(consumption(offer))}]
    if taints:
        body["taints"] = list(taints)
    return body


def _capacity(offer: Offer) -> Body:
    model = offer.gpu.model
    if offer.kind == "vfio":
        return {"addressableMemory": {"value": _amount("memory", model.memory)}}
    if offer.profile is not None:
        capacity = {name: {"value": str(getattr(offer.profile, field))} for field, name, _ in _ENGINES}
        return {"memory": {"value": _amount("memory", offer.profile.memory)}} | capacity
    total = _amount("memory", model.memory)
    memory: Body = {
        "value": total,
        # A claim that says nothing gets the whole GPU; one that says `capacity.requests.memory` gets a share of it.
        "requestPolicy": {"default": total, "validRange": {"min": "1Mi", "max": total, "step": "1Mi"}},
    }
    if not offer.gpu.mig_capable or not model.profiles:
        return {"memory": memory}
    # Capacity without a policy would be consumed whole by any share, and no two shares would ever fit.
    return {"memory": memory} | {
        name: {"value": str(max(getattr(p, field) for p in model.profiles)), "requestPolicy": {"default": "0"}}
        for field, name, _ in _ENGINES
    }


def slice_specs(
    host: Host,
    node_name: str,
    *,
    taints: Taints | None = None,
    foreign: Mapping[str, Sequence[MigDevice]] | None = None,
    partitionable: bool = True,
) -> list[Body]:
    """The node's pool as ResourceSlice specs in order, without generation and slice count (publish.py fills those in).

    Since Kubernetes 1.35 counter sets stand in slices of their own. A GPU's devices are never split over slices, so
    that a change of one GPU's health changes one slice. A node without GPUs publishes one empty slice.

    A cluster without counters (`partitionable` false) cannot keep the forms of a GPU apart: it gets whole GPUs only.
    """
    catalog = [offer for offer in offers(host, foreign) if partitionable or offer.kind == "gpu"]
    static = {
        (gpu, device.profile_id, device.start): device.uuid
        for gpu, devices in (foreign or {}).items()
        for device in devices
    }
    base = {"driver": DRIVER, "nodeName": node_name, "pool": {"name": node_name}}
    groups = _groups(catalog)
    used = [gpu for group in groups for gpu in group]
    specs: list[Body] = []
    for first in range(0, len(used) if partitionable else 0, MAX_COUNTER_SETS):
        sets = [
            {"name": counter_set_name(gpu), "counters": _counter_body(counters(gpu))}
            for gpu in used[first : first + MAX_COUNTER_SETS]
        ]
        specs.append(base | {"sharedCounters": sets})
    for group in groups:
        members = {gpu.uuid for gpu in group}
        devices = [
            device_body(
                offer,
                host,
                taints(offer) if taints else (),
                static.get((offer.gpu.uuid, offer.profile.id, offer.start), "") if offer.profile else "",
            )
            for offer in catalog
            if offer.gpu.uuid in members
        ]
        if not partitionable:
            for device in devices:
                del device["consumesCounters"]
        specs.append(base | {"devices": devices})
    return specs or [base | {"devices": []}]


def _groups(catalog: Iterable[Offer]) -> list[list[Gpu]]:
    """GPUs packed, in order, into slices of at most MAX_DEVICES devices."""
    sizes: dict[str, int] = {}
    gpus: dict[str, Gpu] = {}
    for offer in catalog:
        sizes[offer.gpu.uuid] = sizes.get(offer.gpu.uuid, 0) + 1
        gpus[offer.gpu.uuid] = offer.gpu
    groups: list[list[Gpu]] = []
    room = 0
    for gpu in sorted(gpus.values(), key=lambda g: g.index):
        if sizes[gpu.uuid] > room:
            groups.append([])
            room = MAX_DEVICES
        groups[-1].append(gpu)
        room -= sizes[gpu.uuid]
    return groups
