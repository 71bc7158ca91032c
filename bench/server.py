"""The embedded API server over HTTP: creates and reads a second, and watch events delivered to many watchers.

The server runs in its own process, as it would for a user; clients run in this one. Rates are given per second of the
server's processor time, which is what "on one core" means, and by the clock. The peer in the same run is the same
server asked in process, without sockets.
"""

from __future__ import annotations

import asyncio
import contextlib
import multiprocessing
import os
import statistics
import tempfile
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from functools import partial
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

from bench.measure import Figure, cpu_seconds, report
from capstan import kube, local
from capstan.api import resources

CREATES = 2000
CLIENTS = 32
WATCHERS = 50
EVENTS = 400
ROUNDS = 3


def _pod(number: int) -> kube.Body:
    """A pod as a Job makes it, about 2 KB once defaulted."""
    return {
        "metadata": {
            "name": f"p{number}",
            "namespace": "default",
            "labels": {"kai.scheduler/queue": "default-queue", "app": "bench"},
        },
        "spec": {
            "schedulerName": "nobody",
            "containers": [
                {
                    "name": "main",
                    "image": "ubuntu:22.04",
                    "command": ["sleep", "infinity"],
                    "resources": {"requests": {"cpu": "1", "memory": "1Gi"}, "limits": {"nvidia.com/gpu": "1"}},
                }
            ],
        },
    }


def _config(number: int) -> kube.Body:
    return {"metadata": {"name": f"c{number}", "namespace": "default"}, "data": {"number": str(number)}}


def _serve(directory: str, pipe: Connection) -> None:
    async def run() -> None:
        server = local.Server(Path(directory))
        await server.start()
        async with local.serving(server) as url:
            credentials = server.credentials
            assert credentials is not None
            pipe.send((url, credentials.ca.read_bytes(), credentials.admin_token))
            while not pipe.poll():  # noqa: ASYNC110 - a pipe cannot be awaited
                await asyncio.sleep(0.2)
        await server.stop()

    import uvloop

    uvloop.run(run())


async def _create_all(clients: list[kube.Client], resource: resources.Resource[Any], count: int, first: int) -> None:
    """From many clients at once."""
    body = _pod if resource is resources.PODS else _config
    numbers = iter(range(first, first + count))

    async def work(client: kube.Client) -> None:
        for number in numbers:
            await client.create(resource, body(number))

    await asyncio.gather(*(work(client) for client in clients))


async def _get_all(clients: list[kube.Client], count: int) -> None:
    numbers = iter(range(count))

    async def work(client: kube.Client) -> None:
        for number in numbers:
            await client.request("GET", resources.PODS.path("default", f"p{number}"))

    await asyncio.gather(*(work(client) for client in clients))


async def _fan_out(transport: kube.Transport, client: kube.Client, first: int) -> None:
    """Writes that are seen by all watchers."""
    received = 0
    everything = asyncio.Event()
    listening = 0

    async def watch() -> None:
        nonlocal received, listening
        query = {"watch": "true", "resourceVersion": version}
        async with transport.stream(resources.CONFIG_MAPS.path("default"), query=query) as events:
            listening += 1
            async for _ in events:
                received += 1
                if received >= WATCHERS * EVENTS:
                    everything.set()

    version = (await client.list(resources.CONFIG_MAPS)).resource_version
    watchers = [asyncio.create_task(watch()) for _ in range(WATCHERS)]
    while listening < WATCHERS:  # noqa: ASYNC110 - they come one by one
        await asyncio.sleep(0.01)
    for number in range(first, first + EVENTS):
        await client.create(resources.CONFIG_MAPS, _config(number))
    await everything.wait()
    for watcher in watchers:
        watcher.cancel()
    await asyncio.gather(*watchers, return_exceptions=True)


@dataclass(frozen=True)
class Rate:
    """Operations per second of the server's processor time, and per second of the clock."""

    per_core: float
    by_clock: float


async def _rate(pid: int, count: int, work: Callable[[int], Awaitable[None]]) -> Rate:
    """The median of several rounds; `work` gets the number of the first object it makes."""
    rates = []
    for turn in range(ROUNDS):
        cpu, started = cpu_seconds(pid), time.perf_counter()
        await work(turn * count)
        seconds = time.perf_counter() - started
        rates.append(Rate(count / max(0.01, cpu_seconds(pid) - cpu), count / seconds))
    return Rate(*(statistics.median(values) for values in zip(*((r.per_core, r.by_clock) for r in rates), strict=True)))


async def _over_http(pid: int, url: str, ca: bytes, token: str) -> dict[str, Rate]:
    connection = kube.Connection(server=url, token=token, ca=ca)
    clients = [kube.Client(connection.transport()) for _ in range(CLIENTS)]
    watching = connection.transport()
    try:
        found = await _creates(pid, clients)
        found["gets, pods"] = await _rate(pid, CREATES, lambda _: _get_all(clients, CREATES))
        found[f"watch events to {WATCHERS} watchers"] = await _rate(
            pid, WATCHERS * EVENTS, lambda first: _fan_out(watching, clients[0], 1_000_000 + first)
        )
    finally:
        for client in clients:
            await client.close()
        await watching.close()
    return found


async def _creates(pid: int, clients: list[kube.Client]) -> dict[str, Rate]:
    found = {}
    for resource in (resources.CONFIG_MAPS, resources.PODS):
        create = partial(_create_all, clients, resource, CREATES)
        found[f"creates, {resource.kind}s"] = await _rate(pid, CREATES, create)
    return found


async def _in_process() -> dict[str, Rate]:
    with tempfile.TemporaryDirectory() as directory:
        server = local.Server(Path(directory))
        await server.start()
        found = await _creates(os.getpid(), [kube.Client(server.transport(local.ADMIN)) for _ in range(CLIENTS)])
        await server.stop()
    return found


def run() -> list[Figure]:
    context = multiprocessing.get_context("spawn")
    ours, theirs = context.Pipe()
    with tempfile.TemporaryDirectory() as directory:
        process = context.Process(target=_serve, args=(directory, theirs))
        process.start()
        try:
            assert process.pid is not None
            over_http = asyncio.run(_over_http(process.pid, *ours.recv()))
        finally:
            with contextlib.suppress(BrokenPipeError):
                ours.send("stop")
            process.join(20)
    in_process = asyncio.run(_in_process())
    figures = []
    for name, rate in over_http.items():
        notes = [f"{rate.by_clock:,.0f} per s by the clock"]
        if name in in_process:
            notes.append(f"{rate.per_core / in_process[name].per_core:.2f} of in process")
        goal = "≥ 2,000" if name in in_process else ""
        figures.append(Figure(f"{name}, over HTTPS", rate.per_core, "per core-s", goal, ", ".join(notes)))
    for name, rate in in_process.items():
        note = f"client included, {rate.by_clock:,.0f} per s by the clock"
        figures.append(Figure(f"{name}, in process", rate.per_core, "per core-s", "", note))
    return figures


if __name__ == "__main__":
    report("API server", run())
