"""Watching over the health of one node's GPUs: events come in, `Health` is kept, news go out.

NVML tells when something breaks and not when it is well again; sick GPUs are asked until they have recovered.
"""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from typing import Any

from capstan.node.errors import NodeError
from capstan.node.health import Health, Problem
from capstan.node.inventory import gpu_name
from capstan.node.nvml import Gpu, GpuEvent, Nvml
from capstan.node.report import Reporter

_RECOVERY_POLL_SECONDS = 5.0


class HealthMonitor:
    """Keeps `health` while `run` runs."""

    def __init__(self, nvml: Nvml, reporter: Reporter) -> None:
        self.health = Health()
        self._nvml = nvml
        self._reporter = reporter
        self._events: asyncio.Queue[GpuEvent] = asyncio.Queue()
        self._news = asyncio.Event()

    def changed(self) -> Coroutine[Any, Any, object]:
        """Await it: returns when `health` has changed since the call."""
        return self._news.wait()

    def listen(self) -> None:
        """From now on no event is missed; `run` takes them. Call it on the event loop."""
        loop = asyncio.get_running_loop()

        def hear(event: GpuEvent) -> None:
            if not loop.is_closed():
                loop.call_soon_threadsafe(self._events.put_nowait, event)

        self._nvml.subscribe(hear)

    async def run(self) -> None:
        """Until cancelled. Events are taken in order, one at a time."""
        while True:
            try:
                async with asyncio.timeout(_RECOVERY_POLL_SECONDS if self.health.sick else None):
                    event = await self._events.get()
            except TimeoutError:
                await self._ask_the_sick()
            else:
                await self._observe(event)

    async def _observe(self, event: GpuEvent) -> None:
        """An event without a GPU concerns all of them."""
        for gpu in self._nvml.host().gpus:
            if event.gpu not in (None, gpu.uuid):
                continue
            if event.kind == "recovered":
                self._clear(gpu)
                continue
            start, stop = await asyncio.to_thread(self._extent, event, gpu)
            problem = Problem(event.kind, event.xid, start, stop)
            if self.health.add(gpu.uuid, problem):
                self._reporter.unhealthy(gpu_name(gpu), problem.message, serious=problem.serious)
                self._tell()

    def _extent(self, event: GpuEvent, gpu: Gpu) -> tuple[int, int]:
        """The memory slices an event is about: a GPU instance's, or all when that cannot be found out."""
        if event.gi_id is not None:
            try:
                device = next((d for d in self._nvml.mig_devices(gpu.uuid) if d.gi_id == event.gi_id), None)
            except NodeError:
                return (0, 8)
            profile = gpu.model.profile(device.profile_id) if device else None
            if device is not None and profile is not None:
                return (device.start, device.start + profile.size)
        return (0, 8)

    async def _ask_the_sick(self) -> None:
        for gpu in self._nvml.host().gpus:
            if gpu.uuid in self.health.sick and await asyncio.to_thread(self._has_recovered, gpu.uuid):
                self._clear(gpu)

    def _has_recovered(self, gpu: str) -> bool:
        """A GPU that does not answer has not."""
        try:
            return self._nvml.recovery_action(gpu) == "None"
        except NodeError:
            return False

    def _clear(self, gpu: Gpu) -> None:
        if self.health.clear(gpu.uuid):
            self._reporter.recovered(gpu_name(gpu))
            self._tell()

    def _tell(self) -> None:
        self._news.set()
        self._news = asyncio.Event()
