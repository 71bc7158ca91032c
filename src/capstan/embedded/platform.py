"""One cluster in one process: API server, nodes with their drivers and agents, controllers, each under its own account.

`Platform` starts the parts in the order in which they need each other and stops them in reverse. Components talk to the
API server in process, through the same handlers and the same RBAC as anybody else.
"""

from __future__ import annotations

import asyncio
import dataclasses
import logging
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Collection, Iterable, Mapping, Sequence
from contextlib import AsyncExitStack
from functools import partial
from importlib import resources as package_files
from pathlib import Path
from types import TracebackType
from typing import Any

from capstan import kube, local
from capstan.allocation import Features
from capstan.api import crds, manifests, resources
from capstan.api.feature_gates import FeatureGates
from capstan.controllers.blueprint_agent import BlueprintAgent
from capstan.controllers.pool_status import PoolStatusController
from capstan.embedded import accounts, marks
from capstan.embedded.components import POLICY, Component, controllers
from capstan.embedded.nodes import Drivers, NodeDirectories
from capstan.local import credentials
from capstan.local.agents import SIMULATED_LABEL, Fleet
from capstan.node.models import NodeSpec

log = logging.getLogger(__name__)

_FIRST_PAUSE_SECONDS = 1.0
_LONGEST_PAUSE_SECONDS = 60.0
_LEASE: dict[str, Any] = {"lease_seconds": 60, "renew_seconds": 40.0, "retry_seconds": 15.0}
"""Only one process can open the data directory, and its identity is that of the process before, so that it takes up the
leases of one that was killed without waiting. Renewing seldom keeps an idle cluster idle."""


class PlatformError(Exception):
    """The platform cannot start or go on; the message says which part, why, and what to do."""


class Platform:
    """An embedded cluster; an async context manager. `port` 0 takes a free one, None serves no socket at all.

    `name` is the cluster's name in its kubeconfig and its Cluster object; `labels` and `extended`
    are extra labels and extra resources by node name. `gates` are the features of Kubernetes that the API server and
    the scheduler have. Controllers named in `without` are left to somebody else, with their accounts.
    """

    def __init__(
        self,
        fleet: Sequence[NodeSpec],
        *,
        data_dir: Path,
        port: int | None = 0,
        demo_queues: bool = True,
        name: str = "local",
        labels: Mapping[str, Mapping[str, str]] | None = None,
        extended: Mapping[str, Mapping[str, int]] | None = None,
        gates: FeatureGates = FeatureGates(),  # noqa: B008  # immutable
        without: Collection[str] = (),
    ) -> None:
        self.fleet = fleet
        self.data_dir = data_dir
        self.kubeconfig = data_dir / "kubeconfig"
        self.name = name
        self.url = ""
        self._labels = labels or {}
        self._extended = extended or {}
        self._port = port
        self._gates = gates
        self._demo_queues = demo_queues
        self._without = without
        self._stack = AsyncExitStack()

    async def __aenter__(self) -> Platform:
        try:
            await self._start()
        except BaseException:
            await self._stack.aclose()
            raise
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self._stack.aclose()

    def client(self, field_manager: str = "capstan") -> kube.Client:
        """The administrator's client."""
        return kube.Client(self.server.transport(local.ADMIN), field_manager=field_manager)

    @property
    def summary(self) -> str:
        counts = Counter(spec.model.name for spec in self.fleet)
        models = ", ".join(f"{count} × {model}" for model, count in counts.items()) or "none"
        return f"{len(self.fleet)} {'node' if len(self.fleet) == 1 else 'nodes'} ({models})"

    async def _start(self) -> None:
        try:
            self.data_dir.mkdir(parents=True, exist_ok=True, mode=0o700)
        except OSError as error:
            raise PlatformError(f"{self.data_dir} cannot be made: {error}; choose another --data-dir") from error
        self.server = local.Server(self.data_dir, gates=self._gates)
        self.server.admission.mutating.insert(0, marks.mark)
        try:
            await self.server.start()
        except local.StoreError as error:
            raise PlatformError(str(error)) from error
        self._stack.push_async_callback(self.server.stop)
        if self._port is not None:
            try:
                self.url = await self._stack.enter_async_context(local.serving(self.server, port=self._port))
            except OSError as error:
                raise PlatformError(
                    f"port {self._port} cannot be used: {error}; choose another --port, or 0"
                ) from error
            assert self.server.credentials is not None, "a server with a data directory has credentials"
            credentials.write_kubeconfig(self.kubeconfig, self.url, self.server.credentials, name=self.name)
        admin = self.client("capstan-bootstrap")
        await install(admin, crds.load())
        await install(admin, packaged("platform.yaml"))
        if self._demo_queues:
            await install(admin, packaged("demo-queues.yaml"))
        await self._forget_other_nodes(admin)
        policy = dataclasses.replace(POLICY, features=Features.under(self._gates))
        for component in (*controllers(self.server.pages, policy), *self._parts()):
            if component.name not in self._without:
                await self._run(admin, component)

    async def _forget_other_nodes(self, admin: kube.Client) -> None:
        """A node that an earlier start simulated and this one does not is gone, as if it had been scaled away."""
        ours = {spec.name for spec in self.fleet}
        for node in (await admin.list(resources.NODES, labels=f"{SIMULATED_LABEL}=true")).items:
            if node.metadata.name not in ours:
                await admin.delete(resources.NODES, node.metadata.name)

    def _parts(self) -> Iterable[Component]:
        directories = NodeDirectories(self.data_dir)
        self._stack.callback(directories.remove_short)

        async def drive(client: kube.Client) -> None:
            await Drivers(client, self.fleet, directories).run()

        async def run_pods(client: kube.Client) -> None:
            await Fleet(
                client,
                self.fleet,
                directories.agent,
                logs=self.server.logs,
                labels=self._labels,
                extended=self._extended,
                calm=self.server.calm,
            ).run()

        async def keep_blueprint(client: kube.Client) -> None:
            await BlueprintAgent(client, self.name).run()

        async def answer_requests(client: kube.Client) -> None:
            await PoolStatusController(client, Features.under(self._gates)).run()

        if self.fleet:
            yield Component("node-driver", Drivers.RULES, drive, single=False)
            yield Component("node-agent", Fleet.RULES, run_pods, single=False)
        yield Component("blueprint-agent", BlueprintAgent.RULES, keep_blueprint)
        if "DRAResourcePoolStatus" in self._gates:
            yield Component("pool-status", PoolStatusController.RULES, answer_requests)

    async def _run(self, admin: kube.Client, component: Component) -> None:
        own_rules = [*component.own_rules, *(kube.LeaderElector.RULES if component.single else ())]
        await install(admin, accounts.manifests_for(component.name, component.rules, own_rules), update=True)
        user = local.service_account(accounts.NAMESPACE, component.name)
        client = kube.Client(self.server.transport(user, user_agent=component.name), field_manager=component.name)
        run = self._campaign(component, client) if component.single else partial(component.run, client)
        task = asyncio.create_task(_keep_running(component.name, run), name=component.name)
        self._stack.push_async_callback(_end, task)

    def _campaign(self, component: Component, client: kube.Client) -> Callable[[], Awaitable[None]]:
        lease = f"capstan-{component.name}"
        elector = kube.LeaderElector(client, lease, accounts.NAMESPACE, f"capstan-up-{self.name}", **_LEASE)
        return partial(elector.run, partial(component.run, elector.fenced(client)))


async def _keep_running(name: str, run: Callable[[], Awaitable[None]]) -> None:
    """A component that fails is started again, as a cluster restarts a pod; its state is in the API server."""
    pause = _FIRST_PAUSE_SECONDS
    while True:
        started = time.monotonic()
        try:
            await run()
        except Exception:
            log.exception("the %s failed; it starts again in %.0f s", name, pause)
        else:
            log.error("the %s ended by itself; it starts again in %.0f s", name, pause)
        await asyncio.sleep(pause)
        lasted = time.monotonic() - started > _LONGEST_PAUSE_SECONDS
        pause = _FIRST_PAUSE_SECONDS if lasted else min(2 * pause, _LONGEST_PAUSE_SECONDS)


async def _end(task: asyncio.Task[None]) -> None:
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)


def packaged(name: str) -> list[manifests.Manifest]:
    text = (package_files.files("capstan.embedded") / "manifests" / name).read_text()
    return manifests.load_manifests(text, name)


async def install(client: kube.Client, objects: Iterable[manifests.Manifest], *, update: bool = False) -> None:
    """Create what is missing. What exists is left as users have made it, unless `update`: then it is applied."""
    discovery = kube.Discovery(client)
    for manifest in objects:
        resource = await discovery.resource(manifest["apiVersion"], manifest["kind"])
        if update:
            await client.apply(resource, manifest, force=True)
            continue
        try:
            await client.create(resource, manifest)
        except kube.AlreadyExists:
            log.debug("%s %s exists", manifest["kind"], manifest["metadata"]["name"])
