"""The nodes of an embedded cluster: simulated GPUs, the real driver on them, and the agent that runs pods."""

from __future__ import annotations

import asyncio
import shutil
import tempfile
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

from capstan import kube
from capstan.api import resources
from capstan.api.core import Node
from capstan.api.rbac import PolicyRule
from capstan.local.agents import AgentDirectories
from capstan.node import DRIVER, Driver, SliceWatch
from capstan.node.models import NodeSpec
from capstan.node.simulated import SimulatedNvml

STARTING_AT_ONCE = 4
"""Slices are large on their way to the store: few drivers at a time keep the peak of memory low."""
_PUBLISHING_SECONDS = 10.0


class NodeDirectories:
    """Where nodes keep their files. `short` leads there by a path short enough for unix sockets (107 bytes)."""

    def __init__(self, data_dir: Path) -> None:
        self.root = data_dir / "nodes"
        self.root.mkdir(parents=True, exist_ok=True, mode=0o700)
        self._scratch = Path(tempfile.mkdtemp(prefix="capstan-"))
        self.short = self._scratch / "nodes"
        self.short.symlink_to(self.root.resolve())

    def remove_short(self) -> None:
        shutil.rmtree(self._scratch)

    def state(self, node: str) -> Path:
        """The node's directory by its real path, made where missing."""
        path = self.root / node
        path.mkdir(exist_ok=True, mode=0o700)
        return path

    def plugin(self, node: str) -> Path:
        return self.short / node / "plugins" / DRIVER

    def registrar(self, node: str) -> Path:
        return self.short / node / "plugins_registry"

    def cdi(self, node: str) -> Path:
        return self.root / node / "cdi"

    def agent(self, node: str) -> AgentDirectories:
        return AgentDirectories(state=self.state(node), registrar=self.registrar(node), cdi=self.cdi(node))


class Drivers:
    """The GPU drivers of a fleet, one per node, started as soon as its Node object exists."""

    RULES = [
        *Driver.RULES,
        *SliceWatch.RULES,
        PolicyRule(api_groups=[""], resources=["nodes"], verbs=["list", "watch"]),
    ]

    def __init__(self, client: kube.Client, fleet: Sequence[NodeSpec], directories: NodeDirectories) -> None:
        self._client = client
        self._specs = {spec.name: spec for spec in fleet if spec.model.gpu is not None}
        self._directories = directories
        self._watch = SliceWatch(client)
        self._running: dict[str, Driver] = {}
        self._places = asyncio.Semaphore(STARTING_AT_ONCE)

    async def run(self) -> None:
        """Until cancelled; then every driver is stopped, with what it prepared left in place."""
        nodes = kube.Cache(self._client, resources.NODES)
        try:
            async with asyncio.TaskGroup() as group:

                def start(change: kube.Change[Node]) -> None:
                    spec = self._specs.pop(change.object.metadata.name, None)
                    if spec is not None and change.type == "added":
                        group.create_task(self._start(spec, change.object.metadata.uid))

                nodes.on_change(start)
                group.create_task(nodes.run())
                group.create_task(self._watch.run())
        finally:
            await asyncio.gather(*(driver.stop() for driver in self._running.values()))

    async def _start(self, spec: NodeSpec, uid: str) -> None:
        async with self._places:
            gpus = SimulatedNvml(spec.name, spec.model, self._directories.state(spec.name) / "gpus.json")
            driver = Driver(
                self._client,
                spec.name,
                uid,
                gpus,
                self._directories.plugin(spec.name),
                self._directories.registrar(spec.name),
                self._directories.cdi(spec.name),
                watch=self._watch,
            )
            await driver.start()
            self._running[spec.name] = driver
            with suppress(TimeoutError):
                # One that cannot publish goes on trying; the others do not wait for it for ever.
                async with asyncio.timeout(_PUBLISHING_SECONDS):
                    await driver.published()
