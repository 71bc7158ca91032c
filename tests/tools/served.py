"""A served API server with the platform's definitions, and loops beside it, in a thread of their own: for commands,
which run a loop themselves."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

from capstan import kube, local
from capstan.api import crds
from capstan.local import credentials


class Served:
    """`loops` make what runs beside the server; `edit` runs a coroutine of an administrator's client in its thread."""

    def __init__(self, data_dir: Path, *loops: Callable[[kube.Client], Any]) -> None:
        self.kubeconfig = data_dir / "kubeconfig"
        self._data_dir, self._loops = data_dir, loops
        self._loop = asyncio.new_event_loop()
        self._ready = threading.Event()
        self._stop: asyncio.Event | None = None
        self._client: kube.Client | None = None
        self._thread = threading.Thread(target=self._loop.run_until_complete, args=(self._run(),))

    def __enter__(self) -> Served:
        self._thread.start()
        assert self._ready.wait(30)
        return self

    def __exit__(self, *_: object) -> None:
        assert self._stop is not None
        self._loop.call_soon_threadsafe(self._stop.set)
        self._thread.join(30)

    def edit(self, act: Callable[[kube.Client], Any]) -> Any:
        assert self._client is not None
        return asyncio.run_coroutine_threadsafe(act(self._client), self._loop).result(30)

    async def _run(self) -> None:
        self._stop = asyncio.Event()
        server = local.Server(self._data_dir)
        await server.start()
        async with local.serving(server) as url:
            assert server.credentials is not None
            credentials.write_kubeconfig(self.kubeconfig, url, server.credentials)
            self._client = kube.Client(server.transport(), "kubectl-edit")
            discovery = kube.Discovery(self._client)
            for definition in crds.load():
                resource = await discovery.resource(definition["apiVersion"], definition["kind"])
                await self._client.apply(resource, definition, force=True)
            tasks = [asyncio.create_task(make(kube.Client(server.transport())).run()) for make in self._loops]
            self._ready.set()
            await self._stop.wait()
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
        await server.stop()
