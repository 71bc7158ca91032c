"""The whole platform: pods a second from submit to bound over HTTPS, and what an idle cluster costs.

The platform is `capstan up` in a process of its own; the client is this process. Rates are given per second of the
platform's processor time, which is what "on one core" means, and by the clock. The peer in the same run is the same
work in process: submitter and platform in one event loop, no sockets. How long it takes until all pods run is printed
too: the simulated nodes give way to a burst and do their part after it. The wait of a single pod in an idle cluster
is from the moment its submitter sends it until its submitter sees it bound, each pod after the one before runs.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import uvloop

from bench.measure import Figure, cpu_seconds, report, resident_mb
from capstan import kube
from capstan.api import resources
from capstan.api.core import Pod
from capstan.cli.up import collect_garbage_less
from capstan.embedded import Platform
from capstan.node.models import parse_fleet

CLIENTS = 16
IDLE_SECONDS = 20.0
LONGEST_SECONDS = 600.0
SINGLE_PODS = 100
SINGLE_PAUSE_SECONDS = 0.2


def _pod(number: int, *, gpus: int) -> kube.Body:
    container: dict[str, object] = {"name": "main", "image": "ubuntu:22.04", "command": ["sleep", "infinity"]}
    container["resources"] = {"limits": {"nvidia.com/gpu": str(gpus)}} if gpus else {"requests": {"cpu": "100m"}}
    return {
        "metadata": {"name": f"p{number}", "namespace": "default", "labels": {"kai.scheduler/queue": "default-queue"}},
        "spec": {"schedulerName": "kai-scheduler", "containers": [container]},
    }


@dataclass(frozen=True)
class Rate:
    """Pods bound per second of processor time and of the clock."""

    per_core: float
    by_clock: float

    @property
    def note(self) -> str:
        return f"{self.by_clock:,.0f} per s by the clock"


async def _submit_and_watch(pid: int, clients: list[kube.Client], count: int, gpus: int) -> Rate:
    """From the first submit until the last of `count` pods is bound, with the processor time of process `pid`."""
    bound: set[str] = set()
    running: set[str] = set()
    all_bound, all_running = asyncio.Event(), asyncio.Event()
    pods = kube.Cache(clients[0], resources.PODS, namespace="default")

    def seen(change: kube.Change[Pod]) -> None:
        pod = change.new
        if pod is None or not pod.spec.node_name:
            return
        for names, reached, everything in (
            (bound, True, all_bound),
            (running, pod.status.phase == "Running", all_running),
        ):
            if reached:
                names.add(pod.metadata.name)
                if len(names) >= count:
                    everything.set()

    pods.on_change(seen)
    watching = asyncio.create_task(pods.run())
    await pods.synced()
    numbers = iter(range(count))

    async def submit(client: kube.Client) -> None:
        for number in numbers:
            await client.create(resources.PODS, _pod(number, gpus=gpus))

    cpu, started = cpu_seconds(pid), time.perf_counter()
    await asyncio.gather(*(submit(client) for client in clients))
    submitted = time.perf_counter() - started
    async with asyncio.timeout(LONGEST_SECONDS):
        await all_bound.wait()
        seconds, cpu = time.perf_counter() - started, cpu_seconds(pid) - cpu
        await all_running.wait()
    ran = time.perf_counter() - started
    watching.cancel()
    await asyncio.gather(watching, return_exceptions=True)
    print(
        f"    {count} pods: submitted after {submitted:.1f} s, bound after {seconds:.1f} s, running after {ran:.1f} s",
        file=sys.stderr,
    )
    return Rate(count / cpu, count / seconds)


@contextmanager
def _up(nodes: str) -> Iterator[tuple[int, Path]]:
    with tempfile.TemporaryDirectory(prefix="capstan-bench-") as directory:
        data = Path(directory) / "data"
        command = [sys.executable, "-m", "capstan", "up", "--nodes", nodes, "--data-dir", str(data), "--port", "0"]
        with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
            assert process.stdout is not None
            for line in process.stdout:
                if "Ctrl-C" in line:
                    break
            try:
                yield process.pid, data / "kubeconfig"
            finally:
                process.terminate()
                process.wait(60)


async def _ready(client: kube.Client, nodes: int) -> None:
    """Wait until every node is ready and has published its GPUs: what comes after is not slowed down by the start."""
    while True:
        found = (await client.list(resources.NODES)).items
        published = {s.spec.node_name for s in (await client.list(resources.RESOURCE_SLICES)).items}
        if sum(node.ready for node in found) == nodes and len(published) == nodes:
            return
        await asyncio.sleep(0.5)


async def _over_http(pid: int, kubeconfig: Path, nodes: int, count: int, gpus: int) -> Rate:
    connection = kube.kubeconfig(kubeconfig)
    clients = [kube.Client(connection.transport()) for _ in range(CLIENTS)]
    try:
        await _ready(clients[0], nodes)
        return await _submit_and_watch(pid, clients, count, gpus)
    finally:
        for client in clients:
            await client.close()


async def _in_process(fleet: str, count: int, gpus: int) -> Rate:
    collect_garbage_less()
    with tempfile.TemporaryDirectory(prefix="capstan-bench-") as directory:
        specs = parse_fleet(fleet)
        async with Platform(specs, data_dir=Path(directory), port=None) as platform:
            client = platform.client("bench")
            await _ready(client, len(specs))
            return await _submit_and_watch(os.getpid(), [client] * CLIENTS, count, gpus)


def throughput(nodes: int, pods: int, gpus: int, runs: int) -> list[Figure]:
    """Submit → bound over HTTPS and in process: medians over fresh clusters."""
    fleet = f"{nodes}xdgx-a100-nomig"
    kind = f"{pods:,} {f'{gpus}-GPU' if gpus else 'CPU'} pods on {nodes} nodes"
    outside, inside, memory = [], [], []
    for _ in range(runs):
        with _up(fleet) as (pid, kubeconfig):
            outside.append(asyncio.run(_over_http(pid, kubeconfig, nodes, pods, gpus)))
            memory.append(resident_mb(pid))
        inside.append(uvloop.run(_in_process(fleet, pods, gpus)))
    over_http, in_process = _median(outside), _median(inside)
    ratio = f"{over_http.per_core / in_process.per_core:.2f} of in process"
    return [
        Figure(f"{kind} over HTTPS", over_http.per_core, "per core-s", "≥ 500", f"{over_http.note}, {ratio}"),
        Figure(f"{kind} in process", in_process.per_core, "per core-s", "≥ 1,000", in_process.note),
        Figure(f"memory with {kind}", max(memory), "MB", "< 1,000"),
    ]


def _median(rates: list[Rate]) -> Rate:
    return Rate(statistics.median(r.per_core for r in rates), statistics.median(r.by_clock for r in rates))


async def _one_by_one(kubeconfig: Path, nodes: int) -> list[float]:
    """Milliseconds from submit to bound of each of `SINGLE_PODS` pods, sorted."""
    client = kube.Client(kube.kubeconfig(kubeconfig).transport())
    pods = kube.Cache(client, resources.PODS, namespace="default")
    seen: dict[str, float] = {}
    running: dict[str, asyncio.Event] = {}

    def watch(change: kube.Change[Pod]) -> None:
        pod = change.object
        if pod.spec.node_name:
            seen.setdefault(pod.metadata.name, time.perf_counter())
        if pod.status.phase == "Running":
            running[pod.metadata.name].set()

    pods.on_change(watch)
    watching = asyncio.create_task(pods.run())
    try:
        await _ready(client, nodes)
        await pods.synced()
        waits = []
        for number in range(SINGLE_PODS):
            body = _pod(number, gpus=1)
            name = body["metadata"]["name"]
            running[name] = asyncio.Event()
            started = time.perf_counter()
            await client.create(resources.PODS, body)
            async with asyncio.timeout(LONGEST_SECONDS):
                await running[name].wait()
            waits.append(1000 * (seen[name] - started))
            await asyncio.sleep(SINGLE_PAUSE_SECONDS)
        return sorted(waits)
    finally:
        watching.cancel()
        await asyncio.gather(watching, return_exceptions=True)
        await client.close()


def single(nodes: int) -> list[Figure]:
    with _up(f"{nodes}xdgx-a100-nomig") as (_, kubeconfig):
        waits = asyncio.run(_one_by_one(kubeconfig, nodes))
    p99 = waits[len(waits) * 99 // 100 - 1]
    note = f"median {statistics.median(waits):.1f} ms, longest {waits[-1]:.1f} ms"
    return [Figure(f"a single 1-GPU pod on {nodes} idle nodes, submit to bound, p99", p99, "ms", "≤ 50", note)]


def idle(nodes: int) -> list[Figure]:
    with _up(f"{nodes}xdgx-a100") as (pid, _):
        time.sleep(8)
        before = cpu_seconds(pid)
        time.sleep(IDLE_SECONDS)
        share = 100 * (cpu_seconds(pid) - before) / IDLE_SECONDS
        memory = resident_mb(pid)
    return [
        Figure(f"idle with {nodes} nodes, CPU", share, "% of a core", "< 3"),
        Figure(f"idle with {nodes} nodes, memory", memory, "MB", "< 150"),
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="100 nodes only, fewer pods")
    quick = parser.parse_args().quick
    figures = idle(16) + single(16)
    figures += throughput(100, 400 if quick else 800, 1, runs=1 if quick else 3)
    if not quick:
        figures += throughput(500, 4000, 1, runs=3) + throughput(500, 4000, 0, runs=3)
    report("Platform", figures)


if __name__ == "__main__":
    main()
