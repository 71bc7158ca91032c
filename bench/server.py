"""The embedded API server over HTTP: creates and reads a second, and watch events delivered to many watchers.

The server runs in its own process, as it would for a user; clients run in this one. The peer in the same run is the
same server asked in process, without sockets.
"""

from __future__ import annotations

import asyncio
import contextlib
import multiprocessing
import tempfile
import time
from multiprocessing.connection import Connection
from pathlib import Path

from bench.measure import Figure, report
from capstan import kube, local
from capstan.api import resources

CREATES = 4000
CLIENTS = 32
WATCHERS = 50
EVENTS = 400


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


async def _create_all(clients: list[kube.Client], resource: resources.Resource[object], count: int, kind: str) -> float:
    """Creates a second, from many clients at once."""
    body = _pod if kind == "pod" else _config
    numbers = iter(range(count))

    async def work(client: kube.Client) -> None:
        for number in numbers:
            await client.create(resource, body(number))

    started = time.perf_counter()
    await asyncio.gather(*(work(client) for client in clients))
    return count / (time.perf_counter() - started)


async def _get_all(clients: list[kube.Client], count: int) -> float:
    numbers = iter(range(count))

    async def work(client: kube.Client) -> None:
        for number in numbers:
            await client.request("GET", resources.PODS.path("default", f"p{number}"))

    started = time.perf_counter()
    await asyncio.gather(*(work(client) for client in clients))
    return count / (time.perf_counter() - started)


async def _fan_out(transport: kube.Transport, client: kube.Client) -> float:
    """Events a second that reach all watchers together."""
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
    started = time.perf_counter()
    for number in range(EVENTS):
        await client.create(resources.CONFIG_MAPS, _config(100_000 + number))
    await everything.wait()
    seconds = time.perf_counter() - started
    for watcher in watchers:
        watcher.cancel()
    await asyncio.gather(*watchers, return_exceptions=True)
    return WATCHERS * EVENTS / seconds


async def _over_http(url: str, ca: bytes, token: str) -> list[Figure]:
    connection = kube.Connection(server=url, token=token, ca=ca)
    clients = [kube.Client(connection.transport()) for _ in range(CLIENTS)]
    try:
        configs = await _create_all(clients, resources.CONFIG_MAPS, CREATES, "config")
        pods = await _create_all(clients, resources.PODS, CREATES, "pod")
        gets = await _get_all(clients, CREATES)
        fan_out = await _fan_out(connection.transport(), clients[0])
    finally:
        for client in clients:
            await client.close()
    return [
        Figure("creates over HTTPS, ConfigMaps", configs, "per s", "≥ 2,000 on one core"),
        Figure("creates over HTTPS, pods", pods, "per s", "≥ 2,000 on one core"),
        Figure("gets over HTTPS, pods", gets, "per s"),
        Figure(f"watch events to {WATCHERS} watchers", fan_out, "per s"),
    ]


async def _in_process() -> list[Figure]:
    with tempfile.TemporaryDirectory() as directory:
        server = local.Server(Path(directory))
        await server.start()
        clients = [kube.Client(server.transport(local.ADMIN)) for _ in range(CLIENTS)]
        configs = await _create_all(clients, resources.CONFIG_MAPS, CREATES, "config")
        pods = await _create_all(clients, resources.PODS, CREATES, "pod")
        await server.stop()
    return [
        Figure("creates in process, ConfigMaps", configs, "per s"),
        Figure("creates in process, pods", pods, "per s"),
    ]


def run() -> list[Figure]:
    context = multiprocessing.get_context("spawn")
    ours, theirs = context.Pipe()
    with tempfile.TemporaryDirectory() as directory:
        process = context.Process(target=_serve, args=(directory, theirs))
        process.start()
        try:
            over_http = asyncio.run(_over_http(*ours.recv()))
        finally:
            with contextlib.suppress(BrokenPipeError):
                ours.send("stop")
            process.join(20)
    in_process = asyncio.run(_in_process())
    ratio = f"{over_http[0].value / in_process[0].value:.2f} of in process"
    first = over_http[0]
    return [Figure(first.name, first.value, first.unit, first.goal, ratio), *over_http[1:], *in_process]


if __name__ == "__main__":
    report("API server", run())
