"""The whole platform: pods a second from submit to bound over HTTPS, and what an idle cluster costs.

The platform is `capstan up` in a process of its own; the client is this process. The peer in the same run is the same
work in process: submitter and platform in one event loop, no sockets.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from bench.measure import Figure, report
from capstan import kube
from capstan.api import resources
from capstan.embedded import Platform
from capstan.node.models import parse_fleet

CLIENTS = 16
IDLE_SECONDS = 20.0


def _pod(number: int, *, gpus: int) -> kube.Body:
    container: dict[str, object] = {"name": "main", "image": "ubuntu:22.04", "command": ["sleep", "infinity"]}
    container["resources"] = {"limits": {"nvidia.com/gpu": str(gpus)}} if gpus else {"requests": {"cpu": "100m"}}
    return {
        "metadata": {"name": f"p{number}", "namespace": "default", "labels": {"kai.scheduler/queue": "default-queue"}},
        "spec": {"schedulerName": "kai-scheduler", "containers": [container]},
    }


async def _submit_and_watch(clients: list[kube.Client], count: int, gpus: int) -> float:
    """Seconds from the first submit until the last of `count` pods is bound."""
    bound: set[str] = set()
    everything = asyncio.Event()
    pods = kube.Cache(clients[0], resources.PODS, namespace="default")

    def seen(change: kube.Change[object]) -> None:
        pod = change.new
        if pod is not None and pod.spec.node_name:  # type: ignore[attr-defined]
            bound.add(pod.metadata.name)  # type: ignore[attr-defined]
            if len(bound) >= count:
                everything.set()

    pods.on_change(seen)  # type: ignore[arg-type]
    watching = asyncio.create_task(pods.run())
    await pods.synced()
    numbers = iter(range(count))

    async def submit(client: kube.Client) -> None:
        for number in numbers:
            await client.create(resources.PODS, _pod(number, gpus=gpus))

    started = time.perf_counter()
    await asyncio.gather(*(submit(client) for client in clients))
    submitted = time.perf_counter() - started
    await asyncio.wait_for(everything.wait(), 600)
    seconds = time.perf_counter() - started
    watching.cancel()
    await asyncio.gather(watching, return_exceptions=True)
    print(f"    {count} pods: submitted after {submitted:.1f} s, bound after {seconds:.1f} s", file=sys.stderr)
    return seconds


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


def _cpu_seconds(pid: int) -> float:
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def _resident_mb(pid: int) -> float:
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith("VmRSS:"):
            return int(line.split()[1]) / 1024
    return 0.0


async def _ready(client: kube.Client, nodes: int, slices: bool) -> None:
    """Wait until every node is ready and, where it has GPUs, has published them."""
    while True:
        found = (await client.list(resources.NODES)).items
        published = (
            {s.spec.node_name for s in (await client.list(resources.RESOURCE_SLICES)).items} if slices else set()
        )
        if sum(node.ready for node in found) == nodes and (not slices or len(published) == nodes):
            return
        await asyncio.sleep(0.5)


async def _over_http(kubeconfig: Path, nodes: int, count: int, gpus: int) -> float:
    connection = kube.kubeconfig(kubeconfig)
    clients = [kube.Client(connection.transport()) for _ in range(CLIENTS)]
    try:
        await _ready(clients[0], nodes, bool(gpus))
        return await _submit_and_watch(clients, count, gpus)
    finally:
        for client in clients:
            await client.close()


async def _in_process(fleet: str, count: int, gpus: int) -> float:
    with tempfile.TemporaryDirectory(prefix="capstan-bench-") as directory:
        specs = parse_fleet(fleet)
        async with Platform(specs, data_dir=Path(directory), port=None) as platform:
            client = platform.client("bench")
            await _ready(client, len(specs), bool(gpus))
            return await _submit_and_watch([client] * CLIENTS, count, gpus)


def throughput(nodes: int, pods: int, gpus: int) -> list[Figure]:
    """Submit → bound on a fresh cluster, over HTTPS and in process."""
    fleet = f"{nodes}xdgx-a100-nomig"
    kind = f"{gpus}-GPU" if gpus else "CPU"
    with _up(fleet) as (pid, kubeconfig):
        over_http = pods / asyncio.run(_over_http(kubeconfig, nodes, pods, gpus))
        memory = _resident_mb(pid)
    in_process = pods / asyncio.run(_in_process(fleet, pods, gpus))
    return [
        Figure(
            f"{pods:,} {kind} pods on {nodes} nodes over HTTPS",
            over_http,
            "pods/s",
            "≥ 500",
            f"{over_http / in_process:.2f} of in process",
        ),
        Figure(f"{pods:,} {kind} pods on {nodes} nodes in process", in_process, "pods/s", "≥ 1,000"),
        Figure(f"memory with {nodes} nodes and {pods:,} pods", memory, "MB", "< 1,000"),
    ]


def idle(nodes: int) -> list[Figure]:
    with _up(f"{nodes}xdgx-a100") as (pid, _):
        time.sleep(8)
        before = _cpu_seconds(pid)
        time.sleep(IDLE_SECONDS)
        share = 100 * (_cpu_seconds(pid) - before) / IDLE_SECONDS
        memory = _resident_mb(pid)
    return [
        Figure(f"idle with {nodes} nodes, CPU", share, "% of a core", "< 3"),
        Figure(f"idle with {nodes} nodes, memory", memory, "MB", "< 150"),
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="100 nodes only, fewer pods")
    quick = parser.parse_args().quick
    figures = idle(16)
    figures += throughput(100, 400 if quick else 800, 1)
    if not quick:
        figures += throughput(500, 4000, 1) + throughput(500, 4000, 0)
    report("Platform", figures)


if __name__ == "__main__":
    main()
