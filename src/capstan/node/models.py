"""What simulated nodes are made of: GPU products with their MIG tables, and node models that combine them.

The first step of a simulated fleet: `parse_fleet` turns `2xdgx-a100,1xl4x4` into node specs, `capstan.node.simulated`
gives each its GPUs. The tables are shared by all nodes of a process; nothing here is copied per node.

The product facts are those NVML reports (name, memory, SM count, PCI ids) and `nvidia-smi mig -lgip` and `-lgipp`
print (profile ids, sizes, engines, placements), from NVIDIA's MIG User Guide. The memory sizes of H200's and B200's
larger profiles are rounded down from the profile's share where no listing was at hand.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from functools import cache

import msgspec

from capstan.node.errors import UnknownModel

MIB = 1 << 20
GIB = 1 << 30
MAX_NODES = 10_000
MAX_GPUS_PER_NODE = 16


class MigProfile(msgspec.Struct, frozen=True):
    """One GPU instance profile with the engines an instance of it owns and where it may start.

    `size` and `starts` are in memory slices, of which every MIG GPU here has eight; `slices` counts compute slices.
    """

    name: str
    id: int
    slices: int
    size: int
    starts: tuple[int, ...]
    memory: int
    """Bytes."""
    multiprocessors: int
    copy_engines: int
    decoders: int
    encoders: int
    jpeg_engines: int
    ofa_engines: int


class GpuModel(msgspec.Struct, frozen=True):
    """A GPU product as NVML describes it."""

    product_name: str
    architecture: str
    brand: str
    compute_capability: tuple[int, int]
    memory: int
    """Bytes, as `nvmlDeviceGetMemoryInfo` reports the total."""
    multiprocessors: int
    pci_device_id: int
    profiles: tuple[MigProfile, ...] = ()

    def profile(self, profile_id: int) -> MigProfile | None:
        return next((p for p in self.profiles if p.id == profile_id), None)


class GpuSlot(msgspec.Struct, frozen=True):
    """Where a GPU sits in its node."""

    pci_bus_id: str
    pcie_root: str
    numa_node: int
    nvlink_domain: int | None
    """GPUs of one node with the same number reach each other over NVLink; None: no NVLink."""


class NodeModel(msgspec.Struct, frozen=True):
    """A kind of machine. `slots` has one entry per GPU; a node without GPUs has none."""

    name: str
    gpu: GpuModel | None
    slots: tuple[GpuSlot, ...]
    cpus: int
    memory: int
    mig: bool
    """Whether MIG placements are offered besides whole GPUs."""


class NodeSpec(msgspec.Struct, frozen=True):
    name: str
    model: NodeModel


def _profiles(*rows: tuple[str, int, int, int, tuple[int, int, int, int, int, int]]) -> tuple[MigProfile, ...]:
    """Rows of (name, profile id, compute slices, MiB, (SM, CE, DEC, ENC, JPEG, OFA)); placements follow from the id."""
    starts: dict[int, tuple[int, tuple[int, ...]]] = {
        19: (1, (0, 1, 2, 3, 4, 5, 6)),
        20: (1, (0, 1, 2, 3, 4, 5, 6)),
        15: (2, (0, 2, 4, 6)),
        14: (2, (0, 2, 4)),
        9: (4, (0, 4)),
        5: (4, (0,)),
        0: (8, (0,)),
    }
    return tuple(
        MigProfile(name, profile_id, slices, *starts[profile_id], mib * MIB, *engines)
        for name, profile_id, slices, mib, engines in rows
    )


A100_40 = GpuModel(
    "NVIDIA A100-SXM4-40GB", "Ampere", "Nvidia", (8, 0), 40960 * MIB, 108, 0x20B0,
    _profiles(
        ("1g.5gb", 19, 1, 4864, (14, 1, 0, 0, 0, 0)),
        ("1g.5gb+me", 20, 1, 4864, (14, 1, 1, 0, 1, 1)),
        ("1g.10gb", 15, 1, 9856, (14, 1, 1, 0, 0, 0)),
        ("2g.10gb", 14, 2, 9856, (28, 2, 1, 0, 0, 0)),
        ("3g.20gb", 9, 3, 19968, (42, 3, 2, 0, 0, 0)),
        ("4g.20gb", 5, 4, 19968, (56, 4, 2, 0, 0, 0)),
        ("7g.40gb", 0, 7, 40192, (98, 7, 5, 0, 1, 1)),
    ),
)  # fmt: skip
A100_80 = GpuModel(
    "NVIDIA A100-SXM4-80GB", "Ampere", "Nvidia", (8, 0), 81920 * MIB, 108, 0x20B2,
    _profiles(
        ("1g.10gb", 19, 1, 9728, (14, 1, 0, 0, 0, 0)),
        ("1g.10gb+me", 20, 1, 9728, (14, 1, 1, 0, 1, 1)),
        ("1g.20gb", 15, 1, 19968, (14, 1, 1, 0, 0, 0)),
        ("2g.20gb", 14, 2, 19968, (28, 2, 1, 0, 0, 0)),
        ("3g.40gb", 9, 3, 40192, (42, 3, 2, 0, 0, 0)),
        ("4g.40gb", 5, 4, 40192, (56, 4, 2, 0, 0, 0)),
        ("7g.80gb", 0, 7, 80896, (98, 7, 5, 0, 1, 1)),
    ),
)  # fmt: skip
H100 = GpuModel(
    "NVIDIA H100 80GB HBM3", "Hopper", "Nvidia", (9, 0), 81559 * MIB, 132, 0x2330,
    _profiles(
        ("1g.10gb", 19, 1, 9984, (16, 1, 1, 0, 1, 0)),
        ("1g.10gb+me", 20, 1, 9984, (16, 1, 1, 0, 1, 1)),
        ("1g.20gb", 15, 1, 20096, (26, 1, 1, 0, 1, 0)),
        ("2g.20gb", 14, 2, 20096, (32, 2, 2, 0, 2, 0)),
        ("3g.40gb", 9, 3, 40448, (60, 3, 3, 0, 3, 0)),
        ("4g.40gb", 5, 4, 40448, (64, 4, 4, 0, 4, 0)),
        ("7g.80gb", 0, 7, 81152, (132, 8, 7, 0, 7, 1)),
    ),
)  # fmt: skip
H200 = GpuModel(
    "NVIDIA H200", "Hopper", "Nvidia", (9, 0), 143771 * MIB, 132, 0x2335,
    _profiles(
        ("1g.18gb", 19, 1, 16384, (16, 1, 1, 0, 1, 0)),
        ("1g.18gb+me", 20, 1, 16384, (16, 1, 1, 0, 1, 1)),
        ("1g.35gb", 15, 1, 33280, (26, 1, 1, 0, 1, 0)),
        ("2g.35gb", 14, 2, 33280, (32, 2, 2, 0, 2, 0)),
        ("3g.71gb", 9, 3, 71424, (60, 3, 3, 0, 3, 0)),
        ("4g.71gb", 5, 4, 71424, (64, 4, 4, 0, 4, 0)),
        ("7g.141gb", 0, 7, 143360, (132, 8, 7, 0, 7, 1)),
    ),
)  # fmt: skip
B200 = GpuModel(
    "NVIDIA B200", "Blackwell", "Nvidia", (10, 0), 183359 * MIB, 148, 0x2901,
    _profiles(
        ("1g.23gb", 19, 1, 22528, (18, 2, 1, 0, 1, 0)),
        ("1g.23gb+me", 20, 1, 22528, (18, 2, 1, 0, 1, 1)),
        ("1g.45gb", 15, 1, 45568, (30, 2, 1, 0, 1, 0)),
        ("2g.45gb", 14, 2, 45568, (36, 3, 2, 0, 2, 0)),
        ("3g.90gb", 9, 3, 91136, (70, 6, 3, 0, 3, 0)),
        ("4g.90gb", 5, 4, 91136, (72, 8, 4, 0, 4, 0)),
        ("7g.180gb", 0, 7, 182784, (148, 16, 7, 0, 7, 1)),
    ),
)  # fmt: skip
L4 = GpuModel("NVIDIA L4", "Ada Lovelace", "Nvidia", (8, 9), 23034 * MIB, 58, 0x27B8)
L40S = GpuModel("NVIDIA L40S", "Ada Lovelace", "Nvidia", (8, 9), 46068 * MIB, 142, 0x26B9)

_DGX_A100_SLOTS = tuple(
    GpuSlot(f"0000:{bus:02x}:00.0", f"pci0000:{root:02x}", numa, 0)
    for bus, root, numa in (
        (0x07, 0x00, 3), (0x0F, 0x00, 3), (0x47, 0x40, 1), (0x4E, 0x40, 1),
        (0x87, 0x80, 7), (0x90, 0x80, 7), (0xB7, 0xB0, 5), (0xBD, 0xB0, 5),
    )
)  # fmt: skip
_DGX_HOPPER_SLOTS = tuple(
    GpuSlot(f"0000:{bus:02x}:00.0", f"pci0000:{bus - 1:02x}", numa, 0)
    for bus, numa in ((0x1B, 0), (0x43, 0), (0x52, 0), (0x61, 0), (0x9D, 1), (0xC3, 1), (0xD1, 1), (0xDF, 1))
)


@cache
def _server_slots(gpus: int, nvlink: bool) -> tuple[GpuSlot, ...]:
    """GPUs of a plain server: one PCIe root each, the two sockets take half each."""
    return tuple(
        GpuSlot(
            f"0000:{0x10 + 8 * i:02x}:00.0",
            f"pci0000:{0x0F + 8 * i:02x}",
            0 if i < (gpus + 1) // 2 else 1,
            0 if nvlink else None,
        )
        for i in range(gpus)
    )


_DGX = {
    "dgx-a100": (A100_40, _DGX_A100_SLOTS, 256, 1024 * GIB),
    "dgx-a100-80g": (A100_80, _DGX_A100_SLOTS, 256, 2048 * GIB),
    "dgx-h100": (H100, _DGX_HOPPER_SLOTS, 224, 2048 * GIB),
    "dgx-h200": (H200, _DGX_HOPPER_SLOTS, 224, 2048 * GIB),
    "dgx-b200": (B200, _DGX_HOPPER_SLOTS, 224, 2048 * GIB),
}
_SERVERS = {"a100": A100_40, "a100-80g": A100_80, "h100": H100, "h200": H200, "b200": B200, "l4": L4, "l40s": L40S}
_NO_MIG = "-nomig"
_SERVER = re.compile(rf"({'|'.join(sorted(_SERVERS, key=len, reverse=True))})x([1-9][0-9]?)")
_CPU = re.compile(r"cpux([1-9][0-9]{0,2})")
_TOKEN = re.compile(r"(?:([0-9]+)x)?([a-z].*)")

KNOWN_MODELS: tuple[str, ...] = (*_DGX, *(f"{name}xN" for name in _SERVERS), "cpuxN")
"""For messages and help; every model with MIG also takes the suffix `-nomig`."""


@cache
def node_model(name: str) -> NodeModel:
    """The node model of that name, such as `dgx-h100`, `l4x4`, `a100x8-nomig` or `cpux16` (16 cores, no GPU).

    Raises UnknownModel. The same object is returned for the same name, so a fleet shares its tables.
    """
    base = name.removesuffix(_NO_MIG)
    if base in _DGX:
        gpu, slots, cpus, memory = _DGX[base]
        return NodeModel(name, gpu, slots, cpus, memory, mig=base == name)
    if (match := _CPU.fullmatch(name)) is not None:
        cores = int(match[1])
        return NodeModel(name, None, (), cores, cores * 4 * GIB, mig=False)
    match = _SERVER.fullmatch(base)
    if match is None:
        raise UnknownModel(f"no node model is called {name!r}", _known())
    count = int(match[2])
    if count > MAX_GPUS_PER_NODE:
        raise UnknownModel(f"node model {name!r} has {count} GPUs, at most {MAX_GPUS_PER_NODE} are possible")
    gpu = _SERVERS[match[1]]
    mig = bool(gpu.profiles)
    if base != name and not mig:
        raise UnknownModel(f"node model {name!r}: {gpu.product_name} has no MIG", f"write {base!r}")
    slots = _server_slots(count, mig and count > 1)
    return NodeModel(name, gpu, slots, 16 * count, 128 * GIB * count, mig=mig and base == name)


def describe() -> list[tuple[str, str]]:
    """Every known model with one line about it: `8 x NVIDIA A100-SXM4-40GB, MIG, NVLink, 4 NUMA nodes`."""
    return [(name, _line(name)) for name in KNOWN_MODELS]


def _line(name: str) -> str:
    if name.startswith("cpu"):
        return "N cores, no GPU"
    model = node_model(name.replace("xN", "x2"))
    assert model.gpu is not None
    parts = [f"{'N' if name.endswith('xN') else len(model.slots)} x {model.gpu.product_name}"]
    parts += ["MIG"] if model.mig else []
    parts += ["NVLink"] if model.slots[0].nvlink_domain is not None else []
    parts.append(f"{len({slot.numa_node for slot in model.slots})} NUMA nodes")
    return ", ".join(parts)


def _known() -> str:
    return f"known models: {', '.join(KNOWN_MODELS)}; N is a number, the suffix {_NO_MIG} leaves MIG placements out"


def parse_fleet(text: str) -> list[NodeSpec]:
    """Nodes of a fleet description `<count>x<model>,...`; nodes are called `<model>-<n>`, counted per model.

    `1x` may be left out. Raises UnknownModel, which names the token and lists the known models.
    """
    specs: list[NodeSpec] = []
    counted: dict[str, int] = {}
    for token in _tokens(text):
        match = _TOKEN.fullmatch(token)
        if match is None:
            raise UnknownModel(f"{token!r} is not <count>x<model>, such as 2xdgx-a100", _known())
        count = int(match[1] or 1)
        if not 1 <= count <= MAX_NODES - len(specs):
            raise UnknownModel(f"{token!r}: between 1 and {MAX_NODES} nodes in a fleet are possible")
        try:
            model = node_model(match[2])
        except UnknownModel as error:
            raise UnknownModel(f"{token!r}: {Exception.__str__(error)}", error.hint) from None
        first = counted.get(model.name, 0)
        specs += [NodeSpec(f"{model.name}-{first + i}", model) for i in range(count)]
        counted[model.name] = first + count
    if not specs:
        raise UnknownModel("the fleet is empty", "write for example 2xdgx-a100,1xl4x4")
    return specs


def _tokens(text: str) -> Iterable[str]:
    return (token for token in (part.strip() for part in text.split(",")) if token)
