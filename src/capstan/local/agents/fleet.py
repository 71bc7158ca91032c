"""All simulated nodes of a process: one pod cache, one work queue and one heartbeat for thousands of them.

An event of a pod costs one dictionary look-up, whichever node it is for; idle nodes cost their lease renewals only.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections import deque
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Mapping, MutableMapping, Sequence
from contextlib import suppress
from itertools import count
from typing import Any

import msgspec

from capstan import kube
from capstan.api import clock
from capstan.api.core import Pod
from capstan.api.rbac import PolicyRule
from capstan.api.resources import LEASES, NODES, PODS, RESOURCE_SLICES
from capstan.local.agents.node import AgentDirectories, NodeAgent
from capstan.local.agents.plugins import PluginError
from capstan.local.subresources import LogOptions, LogProvider
from capstan.node.models import NodeSpec

LEASE_NAMESPACE = "kube-node-lease"
SIMULATED_LABEL = "platform.capstan.dev/simulated"
LEASE_SECONDS = 40
HEARTBEAT_SECONDS = 10.0
_SCAN_SECONDS = 2.0
_DRIVER_GRACE_SECONDS = 30.0
_RECONCILE_SECONDS = 60.0
_RECONCILE_RETRY_SECONDS = 2.0
_FOLLOW_SECONDS = 0.25
_PODS_PER_NODE = 110
_STARTING_AT_ONCE = 32
_EVENTS_PER_SECOND = 200.0

_log = logging.getLogger(__name__)


class Fleet(kube.Controller[kube.Key]):
    """The agents of all nodes in `specs`. `directories` says where a node keeps its files; `logs` is the embedded
    server's register of log providers. By node name too: `labels` and `extended`, resources besides CPU and memory.

    Real nodes have processors of their own. Agents that share one with the control plane give way to it: they take up
    new pods when `calm` returns.
    """

    RULES = [
        PolicyRule(api_groups=[""], resources=["nodes"], verbs=["get", "create", "patch"]),
        PolicyRule(api_groups=[""], resources=["nodes/status", "pods/status"], verbs=["patch"]),
        PolicyRule(api_groups=[""], resources=["pods"], verbs=["get", "list", "watch", "delete"]),
        PolicyRule(api_groups=[""], resources=["events"], verbs=["create", "patch"]),
        PolicyRule(api_groups=["coordination.k8s.io"], resources=["leases"], verbs=["get", "create", "patch"]),
        PolicyRule(api_groups=["resource.k8s.io"], resources=["resourceclaims"], verbs=["get"]),
        PolicyRule(api_groups=["resource.k8s.io"], resources=["resourceslices"], verbs=["deletecollection"]),
    ]
    WORKERS = 64

    def __init__(
        self,
        client: kube.Client,
        specs: Sequence[NodeSpec],
        directories: Callable[[str], AgentDirectories],
        *,
        logs: MutableMapping[str, LogProvider] | None = None,
        labels: Mapping[str, Mapping[str, str]] | None = None,
        extended: Mapping[str, Mapping[str, int]] | None = None,
        calm: Callable[[], Awaitable[None]] | None = None,
        kubelet_version: str = "v1.36.0",
        now: Callable[[], float] = time.time,
    ) -> None:
        super().__init__()
        self._client = client
        self._calm = calm
        self._arrivals: deque[kube.Key] = deque()
        self._arrived = asyncio.Event()
        self._now = now
        self._kubelet_version = kubelet_version
        self._labels = labels or {}
        self._extended = extended or {}
        self._logs = logs if logs is not None else {}
        self._pods = kube.Cache(client, PODS)
        self._owners: dict[kube.Key, tuple[str, str]] = {}
        """(node, pod uid) by pod key, of what an agent has in hand."""
        self.caches = (self._pods,)
        self.recorder = kube.EventRecorder(client, "kubelet", now=now, rate=_EVENTS_PER_SECOND)
        self.agents: dict[str, NodeAgent] = {}
        self._specs = {spec.name: spec for spec in specs}
        for number, spec in enumerate(specs):
            self.agents[spec.name] = NodeAgent(
                client,
                spec.name,
                directories=directories(spec.name),
                recorder=self.recorder,
                now=now,
                allocatable={
                    "cpu": spec.model.cpus * 1000,
                    "memory": spec.model.memory,
                    "pods": _PODS_PER_NODE,
                    **self._extended.get(spec.name, {}),
                },
                node_ip=f"172.{16 + (number >> 16)}.{(number >> 8) & 255}.{number & 255}",
                pod_ips=_pod_addresses(number).__next__,
            )
        self._pods.on_change(self._pod_changed)

    async def run(self) -> None:
        """Registers the nodes, then runs their pods until cancelled. Processes go on in the next run."""
        for name in self.agents:
            self._logs[name] = self.read_logs
        try:
            async with asyncio.TaskGroup() as group:
                places = asyncio.Semaphore(_STARTING_AT_ONCE)
                await asyncio.gather(*(self._register(name, places) for name in self.agents))
                group.create_task(self._pods.run())
                group.create_task(self._heartbeat())
                group.create_task(self._scan_plugins())
                group.create_task(self._reconcile_claims())
                group.create_task(self._take_arrivals())
                group.create_task(super().run())
        finally:
            for name, agent in self.agents.items():
                self._logs.pop(name, None)
                await agent.plugins.close()
            await self.recorder.finish()

    # -- nodes

    async def _register(self, name: str, places: asyncio.Semaphore) -> None:
        """Creates the Node or brings its labels up to date, and reports its status; retried until that worked."""
        async with places:
            pause = 0.1
            while True:
                try:
                    await self._register_once(name)
                    return
                except kube.ApiError as error:
                    _log.warning("node %s is not registered yet: %s", name, error)
                    await asyncio.sleep(pause)
                    pause = min(pause * 2, 10.0)

    async def _register_once(self, name: str) -> None:
        body = self._node(name)
        try:
            await self._client.create(NODES, body)
        except kube.AlreadyExists:
            await self._client.patch(NODES, name, patch={"metadata": {"labels": body["metadata"]["labels"]}})
        await self._client.patch(
            NODES, name, patch={"status": self._node_status(name)}, kind="strategic", subresource="status"
        )
        await self._renew(name)

    def _node(self, name: str) -> kube.Body:
        model = self._specs[name].model
        labels = {
            "kubernetes.io/hostname": name,
            "kubernetes.io/os": "linux",
            "kubernetes.io/arch": "amd64",
            "node.kubernetes.io/instance-type": model.name,
            SIMULATED_LABEL: "true",
        }
        if model.gpu is not None:
            labels |= {
                "nvidia.com/gpu.present": "true",
                "nvidia.com/gpu.product": model.gpu.product_name.replace(" ", "-"),
                "nvidia.com/gpu.memory": str(model.gpu.memory >> 20),
                "nvidia.com/gpu.count": str(len(model.slots)),
                "nvidia.com/gpu.family": model.gpu.architecture.lower().replace(" ", "-"),
                "nvidia.com/mig.capable": "true" if model.gpu.profiles else "false",
            }
        labels |= self._labels.get(name, {})
        return {"metadata": {"name": name, "labels": labels}, "spec": {"providerID": f"capstan://simulated/{name}"}}

    def _node_status(self, name: str) -> dict[str, Any]:
        agent, model = self.agents[name], self._specs[name].model
        resources = {"cpu": str(model.cpus), "memory": f"{model.memory >> 10}Ki", "pods": str(_PODS_PER_NODE)}
        resources |= {resource: str(amount) for resource, amount in self._extended.get(name, {}).items()}
        return {
            "capacity": resources,
            "allocatable": resources,
            "addresses": [
                {"type": "InternalIP", "address": agent.node_ip},
                {"type": "Hostname", "address": name},
            ],
            "conditions": self._node_conditions(),
            "nodeInfo": {
                "kubeletVersion": self._kubelet_version,
                "kubeProxyVersion": "",
                "operatingSystem": "linux",
                "architecture": "amd64",
                "osImage": "Capstan simulated node",
                "kernelVersion": "simulated",
                "containerRuntimeVersion": "capstan-simulated://1",
                "machineID": name,
                "systemUUID": name,
                "bootID": name,
            },
        }

    def _node_conditions(self) -> list[dict[str, str]]:
        now = clock.render(self._now())
        healthy = (
            ("MemoryPressure", "KubeletHasSufficientMemory", "kubelet has sufficient memory available"),
            ("DiskPressure", "KubeletHasNoDiskPressure", "kubelet has no disk pressure"),
            ("PIDPressure", "KubeletHasSufficientPID", "kubelet has sufficient PID available"),
        )
        times = {"lastHeartbeatTime": now, "lastTransitionTime": now}
        conditions = [
            {"type": kind, "status": "False", "reason": reason, "message": message, **times}
            for kind, reason, message in healthy
        ]
        ready = {
            "type": "Ready",
            "status": "True",
            "reason": "KubeletReady",
            "message": "kubelet is posting ready status",
        }
        return [*conditions, ready | times]

    async def _renew(self, name: str) -> None:
        stamp = clock.render_micro(self._now())
        spec = {"holderIdentity": name, "leaseDurationSeconds": LEASE_SECONDS, "renewTime": stamp}
        try:
            await self._client.patch(LEASES, name, LEASE_NAMESPACE, patch={"spec": spec})
        except kube.NotFound:
            await self._client.create(LEASES, {"metadata": {"name": name, "namespace": LEASE_NAMESPACE}, "spec": spec})

    async def _heartbeat(self) -> None:
        """Renews all leases once per period, one after another, so that they never come in a burst."""
        while True:
            pause = HEARTBEAT_SECONDS / max(1, len(self.agents))
            for name, agent in self.agents.items():
                await asyncio.sleep(pause)
                if not agent.halted:
                    with suppress(kube.ApiError):  # a missed beat is what the lease's length allows for
                        await self._renew(name)

    def halt(self, name: str) -> None:
        """Takes a node's power: it neither renews its lease nor runs, reports or stops anything."""
        self.agents[name].halted = True

    async def resume(self, name: str) -> None:
        """Gives it back: the node registers again and takes up its pods."""
        agent = self.agents[name]
        agent.halted = False
        agent.runs.clear()
        await self._register(name, asyncio.Semaphore(1))
        self.wake(name)

    def wake(self, name: str = "") -> None:
        """Looks at all pods (of one node) again, as after a jump of the clock."""
        for key, (node, _) in self._owners.items():
            if name in ("", node):
                self.queue.add(key)

    # -- pods

    def _pod_changed(self, change: kube.Change[Pod]) -> None:
        """Queues a pod whose desired state changed; the echo of our own status reports is not worth a look."""
        old, new = change.old, change.new
        key = change.object.key
        if new is not None and new.spec.node_name in self.agents:
            if old is None or _wanted(old) != _wanted(new):
                if key in self._owners or self._calm is None:
                    self.queue.add(key)
                else:
                    self._arrivals.append(key)
                    self._arrived.set()
                self._owners.setdefault(key, (new.spec.node_name, new.metadata.uid))
        elif key in self._owners:
            self.queue.add(key)

    async def _take_arrivals(self) -> None:
        """Hands new pods over to the agents, in portions: a burst may go on after a moment that seemed calm."""
        while self._calm is not None:
            await self._arrived.wait()
            await self._calm()
            for _ in range(min(self.WORKERS, len(self._arrivals))):
                self.queue.add(self._arrivals.popleft())
            if not self._arrivals:
                self._arrived.clear()

    async def reconcile(self, key: kube.Key) -> float | None:
        pod = self._pods.objects.get(key)
        owner = self._owners.get(key)
        if owner is not None and (pod is None or pod.metadata.uid != owner[1]):
            agent = self.agents[owner[0]]
            if not agent.halted:
                await agent.vanish(owner[1])
                self._owners.pop(key, None)
        if pod is None or pod.spec.node_name not in self.agents:
            return None
        self._owners[key] = (pod.spec.node_name, pod.metadata.uid)
        agent = self.agents[pod.spec.node_name]
        return None if agent.halted else await agent.sync(pod)

    # -- claims

    async def _scan_plugins(self) -> None:
        """Finds drivers that start or stop; a look at an unchanged directory is one stat.

        What a driver offered is withdrawn when it has been gone for half a minute: nobody could prepare it.
        """
        while True:
            for agent in self.agents.values():
                await agent.plugins.scan()
                for driver, since in list(agent.plugins.lost.items()):
                    if self._now() - since >= _DRIVER_GRACE_SECONDS:
                        await self._withdraw(agent, driver)
            await asyncio.sleep(_SCAN_SECONDS)

    async def _withdraw(self, agent: NodeAgent, driver: str) -> None:
        fields = f"spec.nodeName={agent.name},spec.driver={driver}"
        try:
            await self._client.delete_collection(RESOURCE_SLICES, fields=fields)
        except kube.ApiError as error:
            _log.warning("node %s: slices of the lost driver %s stay for now: %s", agent.name, driver, error)
        else:
            agent.plugins.lost.pop(driver, None)

    async def _reconcile_claims(self) -> None:
        """Unprepares claims of pods that vanished while nobody looked, at the start and every minute."""
        await self._pods.synced()
        while True:
            known = {uid for _, uid in self._owners.values()}
            pause = _RECONCILE_SECONDS
            for agent in self.agents.values():
                for uid in [] if agent.halted else agent.claims.vanished(known.__contains__):
                    try:
                        await agent.vanish(uid)
                    except PluginError as error:
                        _log.warning("node %s: claims of vanished pod %s: %s", agent.name, uid, error)
                        pause = _RECONCILE_RETRY_SECONDS
            await asyncio.sleep(pause)

    # -- logs

    async def read_logs(self, pod: Mapping[str, Any], container: str, options: LogOptions) -> AsyncIterator[bytes]:
        """The embedded server's log provider; `pod` is the newest state, our cache may be a moment behind."""
        newest = msgspec.convert(pod, Pod)
        key, agent = newest.key, self.agents[newest.spec.node_name]
        since = clock.parse(options.since_time or None)
        if options.since_seconds is not None:
            since = max(since, self._now() - options.since_seconds)
        told, left = 0, options.limit_bytes
        first = True
        while True:
            cached = self._pods.objects.get(key)
            if not first and (cached is None or cached.metadata.uid != newest.metadata.uid):
                return
            behind = cached is None or int(cached.metadata.resource_version) < int(newest.metadata.resource_version)
            current = newest if behind or cached is None else cached
            lines = [line async for line in agent.log_lines(current, container, previous=options.previous)]
            fresh = lines[told:]
            told = max(told, len(lines))
            fresh = [line for line in fresh if line[0] >= since]
            if first and options.tail_lines is not None:
                fresh = fresh[len(fresh) - min(options.tail_lines, len(fresh)) :]
            first = False
            for at, text in fresh:
                piece = (f"{clock.render_micro(at)} {text}\n" if options.timestamps else f"{text}\n").encode()
                if left is not None:
                    piece = piece[:left]
                    left -= len(piece)
                yield piece
            statuses = (*current.status.init_container_statuses, *current.status.container_statuses)
            running = any(status.name == container and status.state.running for status in statuses)
            if not options.follow or options.previous or not running or left == 0:
                return
            await asyncio.sleep(_FOLLOW_SECONDS)


def _wanted(pod: Pod) -> tuple[Any, ...]:
    """What an agent acts on."""
    metadata, status = pod.metadata, pod.status
    return (
        metadata.uid,
        metadata.deletion_timestamp,
        pod.spec.node_name,
        pod.spec.active_deadline_seconds,
        status.resource_claim_statuses,
        status.extended_resource_claim_status,
        status.phase in ("Succeeded", "Failed"),
    )


def _pod_addresses(number: int) -> Iterator[str]:
    """Addresses of one node out of 10.128.0.0/9: a /24 for each of the first 32,768 nodes, used round and round."""
    prefix = f"10.{128 + ((number >> 8) & 127)}.{number & 255}"
    return (f"{prefix}.{2 + i % 253}" for i in count())
