"""The node driver over its unix socket: prepare and unprepare with their fsyncs, and many simulated nodes in a process.

The API server is a double that answers at once, so that the figures are the driver's own. The peer in the same run is
what the disk takes for the fsyncs alone.
"""

from __future__ import annotations

import asyncio
import json
import os
import statistics
import tempfile
import time
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

from bench.measure import Figure, median, report
from capstan import kube
from capstan.node import Driver, SliceWatch, dra_proto, models
from capstan.node.simulated import SimulatedNvml

CALLS = 200
NODES = 500
API = dra_proto.DRA_VERSIONS[0]


class InstantApi:
    """Serves claims and accepts slices without keeping them."""

    def __init__(self) -> None:
        self.claims: dict[str, bytes] = {}
        self.written = 0

    async def request(
        self,
        method: str,
        path: str,
        *,
        query: Mapping[str, str] | None = None,
        body: bytes | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> kube.Response:
        if method == "GET":
            listing = b'{"metadata":{"resourceVersion":"1"},"items":[]}'
            return kube.Response(200, self.claims.get(path.rpartition("/")[2], listing))
        self.written += 1
        sent = json.loads(body or b"{}")
        sent["metadata"] |= {"name": f"slice-{self.written}", "resourceVersion": str(self.written)}
        return kube.Response(201, json.dumps(sent).encode())

    @asynccontextmanager
    async def stream(
        self, path: str, *, query: Mapping[str, str] | None = None, headers: Mapping[str, str] | None = None
    ) -> AsyncIterator[AsyncIterator[bytes]]:
        async def silence() -> AsyncIterator[bytes]:
            await asyncio.Event().wait()
            yield b""

        yield silence()

    async def close(self) -> None:
        pass


def _claim(name: str, *results: dict[str, Any]) -> bytes:
    body = {
        "metadata": {"name": name, "namespace": "default", "uid": f"uid-{name}"},
        "status": {"allocation": {"devices": {"results": list(results)}}},
    }
    return json.dumps(body).encode()


def _result(device: str, request: str = "gpu", **more: Any) -> dict[str, Any]:
    return {"request": request, "driver": "gpu.nvidia.com", "pool": "node-0", "device": device, **more}


def _driver(api: InstantApi, name: str, model: str, directory: Path, watch: SliceWatch | None = None) -> Driver:
    nvml = SimulatedNvml(name, models.node_model(model), directory / "gpus.json")
    client = kube.Client(api)
    return Driver(client, name, name, nvml, directory / "p", directory / "r", directory / "c", watch=watch)


async def _latencies(stub: dra_proto.Stub, name: str) -> tuple[list[float], list[float]]:
    """Seconds of each prepare and unprepare call of one claim."""
    claim = API.Claim(namespace="default", name=name, uid=f"uid-{name}")
    prepares, unprepares = [], []
    for _ in range(CALLS):
        started = time.perf_counter()
        answer = await stub.call("NodePrepareResources", API.PrepareRequest(claims=[claim]), 45)
        prepares.append(time.perf_counter() - started)
        assert not answer.claims[claim.uid].error, answer
        started = time.perf_counter()
        await stub.call("NodeUnprepareResources", API.UnprepareRequest(claims=[claim]), 45)
        unprepares.append(time.perf_counter() - started)
    return prepares, unprepares


def _fsync_seconds(directory: Path) -> float:
    """What one small append with fsync takes here."""
    with (directory / "probe").open("ab") as file:

        def once() -> float:
            started = time.perf_counter()
            file.write(b"x" * 512)
            file.flush()
            os.fsync(file.fileno())
            return time.perf_counter() - started

        return median(once, CALLS)


async def calls(directory: Path) -> list[Figure]:
    api = InstantApi()
    api.claims["whole"] = _claim("whole", _result("gpu-0"))
    api.claims["share"] = _claim("share", _result("gpu-1", shareID="s", consumedCapacity={"memory": "4Gi"}))
    profiles = ("1g5gb-19-0", "1g5gb-19-1", "2g10gb-14-2", "3g20gb-9-4")
    api.claims["mig"] = _claim("mig", *(_result(f"gpu-2-mig-{p}", f"r{i}") for i, p in enumerate(profiles)))
    driver = _driver(api, "node-0", "dgx-a100", directory)
    await driver.start()
    await driver.published()
    disk = _fsync_seconds(directory)
    figures = []
    async with dra_proto.channel(str(directory / "p/dra.sock")) as channel:
        stub = dra_proto.Stub(channel, API.service)
        for name, title in (("whole", "whole GPU"), ("share", "share of a GPU"), ("mig", "four MIG devices")):
            prepares, unprepares = await _latencies(stub, name)
            middle, worst = statistics.median(prepares), sorted(prepares)[int(0.99 * CALLS)]
            compared = f"{middle / (2 * disk):.1f} x its two fsyncs; p99 {worst * 1e3:.1f} ms"
            figures.append(Figure(f"prepare, {title}", middle * 1e3, "ms", compared=compared))
            figures.append(Figure(f"unprepare, {title}", statistics.median(unprepares) * 1e3, "ms"))
    await driver.stop()
    return figures


def _resident_mib() -> float:
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE") / (1 << 20)


async def fleet(directory: Path) -> list[Figure]:
    api = InstantApi()
    watch = SliceWatch(kube.Client(api))
    watching = asyncio.create_task(watch.run())
    before, started = _resident_mib(), time.perf_counter()
    drivers = [_driver(api, f"n{i}", "dgx-h100-nomig", directory / f"n{i}", watch) for i in range(NODES)]
    for driver in drivers:
        await driver.start()
    for driver in drivers:
        await driver.published()
    seconds, grown = time.perf_counter() - started, _resident_mib() - before
    processor = time.process_time()
    await asyncio.sleep(3)
    idle = (time.process_time() - processor) / 3 * 100
    for driver in drivers:
        await driver.stop()
    watching.cancel()
    return [
        Figure(f"{NODES} drivers with 8 GPUs each: start and publish", seconds, "s"),
        Figure(f"{NODES} drivers: memory", grown, "MiB", goal="a fleet of 500 nodes in < 1 GB in all"),
        Figure(f"{NODES} drivers: idle processor", idle, "%", goal="< 3 %"),
    ]


def main() -> None:
    with tempfile.TemporaryDirectory() as directory:
        figures = asyncio.run(calls(Path(directory)))
        figures += asyncio.run(fleet(Path(directory)))
    report("node", figures)


if __name__ == "__main__":
    main()
