"""How fast the engine decides, next to a naive scheduler that looks at every node for every pod.

Run with `python -m bench.scheduling [NAME...]`. Prints medians over several runs on fresh worlds; building the world is
not part of the time unless the line says so. The ratio is that of the naive scheduler (bench/naive) to the
engine on the same cluster, a `PART`th of the full size, because at full size the naive one takes minutes to hours; it
grows with the size.
"""

from __future__ import annotations

import gc
import os
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import msgspec

from bench import naive
from bench.allocation import CLASS, NUMA, claim, encoded_slice, gpu_class
from bench.measure import resident_mb
from capstan.allocation import Inventory
from capstan.api import clock
from capstan.api.base import OwnerReference
from capstan.api.core import Node, Pod, PodResourceClaim
from capstan.api.resource import ResourceSlice
from capstan.api.scheduling import PodGroup, Queue, Topology
from capstan.scheduling import Plan, Policy, World, cycle

NOW = 1_750_000_000.0
ALLOCATE = Policy(actions=("allocate",))
RECLAIM = Policy(actions=("allocate", "reclaim"))
PART = 20


def node(name: str, labels: dict[str, str], gpus: int = 8) -> Node:
    return msgspec.convert(
        {
            "metadata": {"name": name, "labels": {"nvidia.com/gpu.memory": "80000", **labels}},
            "status": {
                "allocatable": {"cpu": 192, "memory": "2Ti", "pods": 110, "nvidia.com/gpu": gpus},
                "conditions": [{"type": "Ready", "status": "True"}],
            },
        },
        Node,
    )


def queue(name: str, parent: str = "", quota: float = -1, limit: float = -1, rank: int = 0) -> Queue:
    bound = {"quota": quota, "limit": limit, "overQuotaWeight": 1}
    free = {"quota": -1, "limit": -1, "overQuotaWeight": 1}
    meta = {"name": name, "creationTimestamp": clock.render(NOW - 100_000 + rank)}
    resources = {"gpu": bound, "cpu": free, "memory": free}
    return msgspec.convert({"metadata": meta, "spec": {"parentQueue": parent, "resources": resources}}, Queue)


def gang(name: str, queue_name: str, minimum: int = 1, rank: int = 0, **topology: str) -> PodGroup:
    spec: dict[str, object] = {"queue": queue_name, "minMember": minimum, "priorityClassName": "train"}
    if topology:
        spec["topologyConstraint"] = topology
    meta = {
        "name": name,
        "namespace": "x",
        "uid": f"g{rank:06d}",
        "creationTimestamp": clock.render(NOW - 50_000 + rank),
    }
    return msgspec.convert({"metadata": meta, "spec": spec}, PodGroup)


def pod(name: str, group: str, gpus: int = 1, on: str = "", rank: int = 0) -> Pod:
    requests: dict[str, object] = {"cpu": 1, "memory": "1Gi"}
    if gpus:
        requests["nvidia.com/gpu"] = gpus
    meta = {
        "name": name,
        "namespace": "x",
        "uid": f"p-{name}",
        "creationTimestamp": clock.render(NOW - 50_000 + rank),
        "annotations": {"pod-group-name": group},
    }
    spec: dict[str, object] = {
        "schedulerName": "kai-scheduler",
        "containers": [{"name": "main", "resources": {"requests": requests}}],
    }
    if on:
        spec["nodeName"] = on
    return msgspec.convert({"metadata": meta, "spec": spec, "status": {"phase": "Running" if on else "Pending"}}, Pod)


def cluster(nodes: int, queues: Sequence[Queue] = (), **levels: int) -> World:
    world = World()
    for i in range(nodes):
        labels = {name: f"{name}-{i // size}" for name, size in levels.items()}
        world.upsert(node(f"node-{i:05d}", labels))
    for entry in queues:
        world.upsert(entry)
    world.begin(NOW)
    return world


def jobs(world: World, count: int, queue_name: str, *, pods: int = 1, gpus: int = 1, start: int = 0) -> None:
    """Gangs of `pods` waiting pods each."""
    for i in range(start, start + count):
        world.upsert(gang(f"job-{i:06d}", queue_name, pods, rank=i))
        for p in range(pods):
            world.upsert(pod(f"job-{i:06d}-{p}", f"job-{i:06d}", gpus, rank=i))


def confirm(world: World, plan: Plan) -> None:
    """What a cluster would report back: everything bound runs, everything evicted is gone."""
    for bind in plan.binds:
        old = world.pod(bind.uid)
        spec = msgspec.structs.replace(old.spec, node_name=bind.node)
        status = msgspec.structs.replace(old.status, phase="Running")
        world.upsert(msgspec.structs.replace(old, spec=spec, status=status))
    for eviction in plan.evictions:
        world.delete("Pod", eviction.namespace, eviction.pod)


def full(nodes: int, victim_quota: float, claimant_quota: float) -> World:
    """`nodes` nodes whose GPUs are all taken by one-GPU jobs of queue `b`."""
    world = cluster(
        nodes, [queue("top"), queue("a", "top", claimant_quota, rank=1), queue("b", "top", victim_quota, rank=2)]
    )
    jobs(world, nodes * 8, "b")
    confirm(world, cycle(world, ALLOCATE, NOW))
    return world


@dataclass(frozen=True)
class Result:
    seconds: float
    what: str


def timed(run: Callable[[], object]) -> float:
    gc.collect()
    gc.disable()
    start = time.perf_counter()
    run()
    elapsed = time.perf_counter() - start
    gc.enable()
    return elapsed


def fill(part: int = 1) -> Result:
    world = cluster(500 // part, [queue("top"), queue("a", "top", rank=1)])
    jobs(world, 4000 // part, "a")
    plans: list[Plan] = []
    seconds = timed(lambda: plans.append(cycle(world, ALLOCATE, NOW)))
    assert len(plans[0].binds) == 4000 // part
    return Result(seconds, "fill 500 x 8 GPUs with 4,000 one-GPU jobs")


def big_gang(part: int = 1) -> Result:
    size = 512 // part
    world = cluster(size, [queue("top"), queue("a", "top", rank=1)], zone=128, block=16, rack=2)
    world.upsert(
        msgspec.convert(
            {
                "metadata": {"name": "t"},
                "spec": {
                    "levels": [{"nodeLabel": name} for name in ("zone", "block", "rack", "kubernetes.io/hostname")]
                },
            },
            Topology,
        )
    )
    world.upsert(gang("big", "a", size, topology="t", preferredTopologyLevel="rack"))
    for i in range(size):
        world.upsert(pod(f"big-{i:03d}", "big", 8))
    plans: list[Plan] = []
    seconds = timed(lambda: plans.append(cycle(world, ALLOCATE, NOW)))
    assert len(plans[0].binds) == size
    return Result(seconds, "one 512-pod x 8-GPU gang, 4-level topology")


def cannot_fit(part: int = 1) -> Result:
    world = full(500 // part, 4000 // part - 79, 79)
    jobs(world, 1, "a", pods=10, gpus=8, start=9000)
    plans: list[Plan] = []
    seconds = timed(lambda: plans.append(cycle(world, Policy(), NOW)))
    assert not plans[0].evictions
    return Result(seconds, f"cannot fit: {plans[0].verdicts[0].message[:70]}")


def cannot_fit_by_one(part: int = 1) -> Result:
    world = full(500 // part, 4000 // part - 79, 80)
    jobs(world, 1, "a", pods=10, gpus=8, start=9000)
    plans: list[Plan] = []
    seconds = timed(lambda: plans.append(cycle(world, RECLAIM, NOW)))
    assert not plans[0].evictions
    return Result(seconds, f"cannot fit: {plans[0].verdicts[0].message[:90]}")


def reclaim_one(part: int = 1) -> Result:
    world = full(500 // part, 0, 1)
    jobs(world, 1, "a", start=9000)
    plans: list[Plan] = []
    seconds = timed(lambda: plans.append(cycle(world, Policy(), NOW)))
    assert len(plans[0].evictions) == 1
    return Result(seconds, "reclaim for one 1-GPU job, 4,000 running")


def reclaim_wide(part: int = 1) -> Result:
    world = full(500 // part, 0, 2000 // part)
    jobs(world, 1, "a", pods=250 // part, gpus=8, start=9000)
    plans: list[Plan] = []
    seconds = timed(lambda: plans.append(cycle(world, RECLAIM, NOW)))
    assert len(plans[0].evictions) == 250 // part * 8
    return Result(seconds, "reclaim for 250 pods x 8 GPUs, 2,000 victims")


def reclaim_all(part: int = 1) -> Result:
    world = full(500 // part, 0, 4000 // part)
    jobs(world, 4000 // part, "a", start=9000)

    def run() -> None:
        for number in range(100):
            plan = cycle(world, RECLAIM, NOW + number)
            confirm(world, plan)
            if not plan.binds and not plan.evictions:
                break

    seconds = timed(run)
    taken = sum(task.node is not None and task.uid >= "p-job-009000" for task in world.tasks.values())
    assert taken == 4000 // part, taken
    return Result(seconds, "reclaim 4,000 one-GPU jobs, one cycle after another (with confirmations)")


def consolidate(part: int = 1) -> Result:
    """Every node holds 4 of 8 GPUs in one-GPU jobs; 41 gangs of 10 pods x 8 GPUs want whole nodes."""
    world = cluster(1000 // part, [queue("top"), queue("a", "top", rank=1)])
    for i in range(1000 // part):
        for j in range(4):
            number = i * 4 + j
            world.upsert(gang(f"job-{number:06d}", "a", 1, rank=number))
            world.upsert(pod(f"job-{number:06d}-0", f"job-{number:06d}", 1, on=f"node-{i:05d}", rank=number))
    jobs(world, 41 // part, "a", pods=10, gpus=8, start=9000)
    plans: list[Plan] = []
    policy = Policy(actions=("allocate", "consolidate"), max_consolidation_victims=-1)
    seconds = timed(lambda: plans.append(cycle(world, policy, NOW)))
    moved = len(plans[0].evictions)
    assert moved, "nothing was moved"
    return Result(seconds, f"consolidation for 41 gangs x 10 pods on 1,000 nodes ({moved} moved)")


def backfill() -> Result:
    """A full cluster of jobs that end one after another; 8 gangs of 80 GPUs wait, then small jobs in their shadow."""
    world = cluster(500, [queue("top"), queue("a", "top", rank=1)])
    for i in range(3996):
        group = gang(f"job-{i:06d}", "a", rank=i)
        group.metadata.annotations |= {
            "kai.scheduler/expected-runtime": f"{600 + 7919 * i % 36_000}s",
            "kai.scheduler/last-start-timestamp": clock.render(NOW - 10),
        }
        world.upsert(group)
        world.upsert(pod(f"job-{i:06d}-0", f"job-{i:06d}", on=f"node-{i // 8:05d}", rank=i))
    jobs(world, 8, "a", pods=10, gpus=8, start=9000)
    plans: list[Plan] = []
    seconds = timed(lambda: plans.append(cycle(world, ALLOCATE, NOW)))
    assert len(world.reservations) == 8
    for i in range(100):
        group = gang(f"short-{i:03d}", "a", rank=9100 + i)
        group.metadata.annotations["kai.scheduler/expected-runtime"] = "300s"
        world.upsert(group)
        world.upsert(pod(f"short-{i:03d}-0", f"short-{i:03d}", rank=9100 + i))
    kept = timed(lambda: plans.append(cycle(world, ALLOCATE, NOW + 1)))
    assert len(plans[1].binds) == 4
    text = (
        f"backfill: 8 gangs of 80 GPUs find their times among 3,996 ends ({kept * 1e3:.1f} ms to keep them, 100 more)"
    )
    return Result(seconds, text)


def steady(part: int = 1) -> Result:
    nodes = 4000 // part
    world = cluster(nodes, [queue("top"), *(queue(f"q{i}", "top", rank=i + 1) for i in range(20))])
    for i in range(140_000 // part):
        name = f"s-{i:06d}"
        if i % 4 == 0:
            world.upsert(gang(name, f"q{i % 20}", 4, rank=i))
        world.upsert(pod(f"{name}", f"s-{i - i % 4:06d}", 0, on=f"node-{i % nodes:05d}", rank=i))
    cycle(world, Policy(), NOW)
    times = []
    for number in range(5):
        changes = []
        for i in range(50):
            at = (number * 50 + i) * 7
            old = world.pod(f"p-s-{at:06d}")
            changes.append(msgspec.structs.replace(old, status=msgspec.structs.replace(old.status, phase="Succeeded")))
        fresh = [
            (gang(f"n-{number}-{i}", "q1", 1, rank=i), pod(f"n-{number}-{i}-0", f"n-{number}-{i}", 1))
            for i in range(25)
        ]

        def run(changes: list[Pod] = changes, fresh: list[tuple[PodGroup, Pod]] = fresh, number: int = number) -> None:
            for change in changes:
                world.upsert(change)
            for group, member in fresh:
                world.upsert(group)
                world.upsert(member)
            plan = cycle(world, Policy(), NOW + number)
            assert len(plan.binds) == 25

        times.append(timed(run))
    text = "steady state: 4,000 nodes, 140,000 pods, 100 changes, upserts and cycle"
    return Result(statistics.median(times), f"{text}; {resident_mb(os.getpid()):.0f} MB resident")


def by_claims(nodes: int) -> World:
    """Nodes whose eight GPUs are published in slices and taken by claims."""
    world = World(Inventory())
    world.upsert(gpu_class())
    for i in range(nodes):
        entry = node(f"node-{i:05d}", {})
        entry.status.allocatable.pop("nvidia.com/gpu")
        world.upsert(entry)
        world.upsert(msgspec.json.decode(encoded_slice(entry.metadata.name), type=ResourceSlice))
    for name in (queue("top"), queue("a", "top", rank=1)):
        world.upsert(name)
    world.begin(NOW)
    return world


def claim_gang(pods: int, nodes: int, requests: Sequence[object], constraints: Sequence[object], devices: int) -> float:
    """Seconds for a gang whose pods have a claim of a template each; every pod gets `devices` devices, or none."""
    world = by_claims(nodes)
    world.upsert(gang("big", "a", pods))
    for i in range(pods):
        name = f"big-{i:04d}"
        member = pod(name, "big", 0)
        entry = claim(f"{name}-gpus", requests, constraints)
        entry.metadata.namespace = "x"
        entry.metadata.owner_references = [
            OwnerReference(api_version="v1", kind="Pod", name=name, uid=member.metadata.uid, controller=True)
        ]
        world.upsert(entry)
        member.spec.resource_claims = [PodResourceClaim(name="gpus", resource_claim_name=entry.metadata.name)]
        world.upsert(member)
    plans: list[Plan] = []
    seconds = timed(lambda: plans.append(cycle(world, ALLOCATE, NOW)))
    taken = [len(held.devices.results) for bind in plans[0].binds for held in bind.claims.values()]
    assert taken == [devices] * pods if devices else not taken, plans[0].verdicts[:1]
    return seconds


EIGHT = [{"name": "gpus", "exactly": {"deviceClassName": CLASS, "count": 8}}]
FOUR_NEAR = [{"name": "gpus", "exactly": {"deviceClassName": CLASS, "count": 4}}]
NEAR = [{"matchAttribute": NUMA}]


def gang_with_claims() -> Result:
    seconds = claim_gang(512, 512, EIGHT, [], 8)
    return Result(seconds, "one gang of 512 pods with a claim for 8 GPUs each, 512 nodes")


def gang_with_constraints() -> Result:
    seconds = claim_gang(1024, 512, FOUR_NEAR, NEAR, 4)
    return Result(seconds, "one gang of 1,024 pods with a claim for 4 GPUs of one NUMA node each, 512 nodes")


def claims_cannot_fit() -> Result:
    seconds = claim_gang(513, 512, EIGHT, [], 0)
    return Result(seconds, "cannot fit: one pod more than nodes, a claim for 8 GPUs each")


def growth(part: int = 1) -> Result:
    """Microseconds per pod, and the memory of the process so far, when nodes and work grow together."""
    parts = []
    for nodes in (1000 // part, 2000 // part, 4000 // part, 8000 // part):
        world = cluster(nodes, [queue("top"), queue("a", "top", rank=1)])
        jobs(world, nodes, "a")
        seconds = timed(lambda world=world: cycle(world, ALLOCATE, NOW))  # type: ignore[misc]
        parts.append(f"{nodes // 1000}k {seconds / nodes * 1e6:.1f} us/pod, {resident_mb(os.getpid()):.0f} MB")
    return Result(seconds, "growth, one 1-GPU job per node: " + ", ".join(parts))


COMPARED: dict[str, Callable[[int], Result]] = {
    "fill": fill,
    "gang": big_gang,
    "cannot-fit": cannot_fit,
    "cannot-fit-by-one": cannot_fit_by_one,
    "reclaim-one": reclaim_one,
    "reclaim-wide": reclaim_wide,
    "reclaim-all": reclaim_all,
    "consolidate": consolidate,
    "steady": steady,
    "growth": growth,
}
BENCHES: dict[str, tuple[Callable[[], Result], int]] = {
    "fill": (fill, 5),
    "gang": (big_gang, 5),
    "cannot-fit": (cannot_fit, 5),
    "cannot-fit-by-one": (cannot_fit_by_one, 5),
    "reclaim-one": (reclaim_one, 5),
    "reclaim-wide": (reclaim_wide, 5),
    "reclaim-all": (reclaim_all, 1),
    "consolidate": (consolidate, 5),
    "backfill": (backfill, 5),
    "claims": (gang_with_claims, 3),
    "claims-near": (gang_with_constraints, 3),
    "claims-cannot-fit": (claims_cannot_fit, 3),
    "steady": (steady, 1),
    "growth": (growth, 1),
}


def compared(bench: Callable[[int], Result]) -> str:
    """The naive scheduler's time over the engine's, on the same small cluster."""
    engine = statistics.median(bench(PART).seconds for _ in range(3))
    with naive.deciding():
        slow = bench(PART).seconds
    return f", {slow / engine:7.1f} x faster than naive at 1/{PART} of the size"


def main(names: Sequence[str]) -> None:
    """Run the named benchmarks, or all."""
    for name, (bench, runs) in BENCHES.items():
        if names and name not in names:
            continue
        results = [bench() for _ in range(runs)]
        median = statistics.median(result.seconds for result in results)
        ratio = compared(COMPARED[name]) if name in COMPARED else ""
        print(f"{name:18} {median * 1e3:10.2f} ms{ratio}  {results[0].what}", flush=True)


if __name__ == "__main__":
    main(sys.argv[1:])
