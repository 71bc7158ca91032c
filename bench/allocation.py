"""`python -m bench.allocation`: the allocator on a fleet of 5,000 nodes with 8 GPUs each."""

from __future__ import annotations

import resource
import time
from collections.abc import Callable, Sequence
from typing import Any

import msgspec

from bench.measure import Figure, median, report
from capstan.allocation import Allocation, Inventory, NodeView, Policy, Refusal, allocate
from capstan.api.resource import DeviceClass, ResourceClaim, ResourceSlice

NODES = 5_000
GPUS = 8
CLASS = "gpu.nvidia.com"
NUMA = "resource.kubernetes.io/numaNode"
ONE = [{"name": "gpu", "exactly": {"deviceClassName": CLASS}}]
FOUR = [
    {
        "name": f"gpu-{i}",
        "exactly": {
            "deviceClassName": CLASS,
            "selectors": [
                {"cel": {"expression": f"device.capacity['{CLASS}'].memory.isGreaterThan(quantity('40Gi'))"}}
            ],
        },
    }
    for i in range(4)
]
CONSTRAINTS = [
    {"matchAttribute": NUMA},
    {"distinctAttribute": f"{CLASS}/uuid"},
    {"matchAttribute": f"{CLASS}/productName"},
    {"requests": ["gpu-0", "gpu-1"], "matchAttribute": f"{CLASS}/driverVersion"},
]


def resident_mib() -> float:
    """The memory this process holds now, in MiB."""
    with open("/proc/self/statm") as statm:
        return int(statm.read().split()[1]) * resource.getpagesize() / (1 << 20)


def encoded_slice(node: str) -> bytes:
    devices = [
        {
            "name": f"gpu-{i}",
            "attributes": {
                "type": {"string": "gpu"},
                "uuid": {"string": f"GPU-{node}-{i}"},
                "index": {"int": i},
                "productName": {"string": "NVIDIA H100 80GB HBM3"},
                "brand": {"string": "Nvidia"},
                "architecture": {"string": "Hopper"},
                "cudaComputeCapability": {"version": "9.0.0"},
                "driverVersion": {"version": "580.65.6"},
                "cudaDriverVersion": {"version": "13.0.0"},
                "resource.kubernetes.io/pciBusID": {"string": f"0000:{i:02x}:00.0"},
                "resource.kubernetes.io/pcieRoot": {"string": f"pci0000:{i:02x}"},
                NUMA: {"int": i // 4},
            },
            "capacity": {"memory": {"value": "80Gi"}},
        }
        for i in range(GPUS)
    ]
    pool = {"name": node, "generation": 1, "resourceSliceCount": 1}
    spec = {"driver": CLASS, "nodeName": node, "pool": pool, "devices": devices}
    return msgspec.json.encode({"metadata": {"name": f"00000-{node}"}, "spec": spec})


def claim(name: str, requests: Sequence[Any], constraints: Sequence[Any]) -> ResourceClaim:
    devices = {"requests": requests, "constraints": constraints}
    metadata = {"name": name, "namespace": "bench", "uid": name}
    return msgspec.convert({"metadata": metadata, "spec": {"devices": devices}}, ResourceClaim)


def gpu_class() -> DeviceClass:
    expression = f"device.driver == '{CLASS}' && device.attributes['{CLASS}'].type == 'gpu'"
    spec = {"selectors": [{"cel": {"expression": expression}}]}
    return msgspec.convert({"metadata": {"name": CLASS}, "spec": spec}, DeviceClass)


def seconds(action: Callable[[], object]) -> float:
    """Of processor time: the machine may be busy with other things."""
    started = time.process_time()
    action()
    return time.process_time() - started


def ingest(texts: Sequence[bytes]) -> float:
    """Seconds to take in freshly decoded slices, put their pools together and count the devices of every node."""
    slices = [msgspec.json.decode(text, type=ResourceSlice) for text in texts]
    inventory = Inventory()
    inventory.upsert(gpu_class())

    def take_in() -> None:
        for entry in slices:
            inventory.upsert(entry)
        for node in range(len(texts)):
            inventory.free(f"node-{node}", CLASS)

    return seconds(take_in)


def claims_per_second(inventory: Inventory, per_node: int, nodes: int, policy: Policy, four: bool) -> float:
    claims = [
        [claim(f"{node}-{i}", FOUR if four else ONE, CONSTRAINTS if four else []) for i in range(per_node)]
        for node in range(nodes)
    ]
    mark = inventory.mark()

    def allocate_all() -> None:
        for node, wanted in enumerate(claims):
            view = NodeView(f"node-{node}")
            for one in wanted:
                answer = allocate(inventory, [one], view, policy)
                assert isinstance(answer, Allocation), answer
                inventory.assume(one.key, answer.results[one.key])

    taken = seconds(allocate_all)
    inventory.rollback(mark)
    return per_node * nodes / taken


def hopeless() -> float:
    """Milliseconds to prove that 8 pairs of a GPU and a NIC under one PCIe root do not exist when one NIC is
    elsewhere."""
    gpus = [_device(f"gpu-{i}", "gpu", i) for i in range(8)]
    nics = [_device(f"nic-{i}", "nic", 0 if i == 3 else i) for i in range(8)]
    spec = {"driver": "x.dev", "nodeName": "n", "pool": {"name": "n"}, "devices": [*gpus, *nics]}
    inventory = Inventory()
    inventory.upsert(msgspec.convert({"metadata": {"name": "s"}, "spec": spec}, ResourceSlice))
    for kind in ("gpu", "nic"):
        selectors = [{"cel": {"expression": f"device.attributes['x.dev'].type == '{kind}'"}}]
        body = {"metadata": {"name": kind}, "spec": {"selectors": selectors}}
        inventory.upsert(msgspec.convert(body, DeviceClass))
    requests = [{"name": f"{k}-{i}", "exactly": {"deviceClassName": k}} for k in ("gpu", "nic") for i in range(8)]
    root = "resource.kubernetes.io/pcieRoot"
    pairs = [{"requests": [f"gpu-{i}", f"nic-{i}"], "matchAttribute": root} for i in range(8)]
    wanted = [claim("pairs", requests, pairs)]
    answer = allocate(inventory, wanted, NodeView("n"), "kubernetes")
    assert isinstance(answer, Refusal)
    assert answer.reason == "NoCombination"
    return 1e3 * min(seconds(lambda: allocate(inventory, wanted, NodeView("n"), "kubernetes")) for _ in range(5))


def _device(name: str, kind: str, root: int) -> dict[str, Any]:
    attributes = {"type": {"string": kind}, "resource.kubernetes.io/pcieRoot": {"string": f"pci0000:{root:02x}"}}
    return {"name": name, "attributes": attributes}


def main() -> None:
    texts = [encoded_slice(f"node-{i}") for i in range(NODES)]
    decoder = msgspec.json.Decoder(ResourceSlice)
    empty = resident_mib()
    slices = [decoder.decode(text) for text in texts]
    decoded = resident_mib()
    inventory = Inventory()
    inventory.upsert(gpu_class())

    for entry in slices:
        inventory.upsert(entry)
    names = [f"node-{i}" for i in range(NODES)]
    assert sum(inventory.free(name, CLASS) for name in names) == NODES * GPUS
    again = seconds(lambda: sum(inventory.free(name, CLASS) for name in names))
    indexed = resident_mib()
    taken_in = median(lambda: ingest(texts), 3)
    figures = [
        Figure("slices taken in and devices counted", taken_in, "s", "<= 0.5"),
        Figure("free devices of one node, unchanged", again / NODES * 1e6, "us"),
        Figure("memory of the decoded slices", decoded - empty, "MiB"),
        Figure("memory of slices and index", indexed - empty, "MiB", "<= 300"),
    ]
    for policy in ("best-fit", "kubernetes"):
        figures += [
            Figure(
                f"single-GPU claims, {policy}", claims_per_second(inventory, 8, 1_000, policy, False), "/s", ">= 2,000"
            ),
            Figure(
                f"four-constraint claims, {policy}", claims_per_second(inventory, 2, 500, policy, True), "/s", ">= 200"
            ),
        ]
    figures.append(Figure("proof that pairs do not exist", hopeless(), "ms", "< 50"))
    report("allocation: 5,000 nodes with 8 GPUs", figures)


if __name__ == "__main__":
    main()
