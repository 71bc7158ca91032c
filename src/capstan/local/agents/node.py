"""The kubelet of one simulated node: brings the pods bound to it to the state their specs ask for, and reports it.

`sync` is level-triggered: it looks at the pod as the cache has it and at what runs, does what is due, and says when it
wants to be called again. Nothing waits in between, so that thousands of pods cost memory, not tasks.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator, Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import msgspec

from capstan import kube
from capstan.api import clock, quantity
from capstan.api.core import Container, Pod
from capstan.api.resources import PODS
from capstan.local.agents.claims import ClaimNotReady, NodeClaims, claims_of
from capstan.local.agents.containers import PodContainers
from capstan.local.agents.environment import environment
from capstan.local.agents.plugins import PluginError, Plugins
from capstan.local.agents.process import Process, command_line
from capstan.local.agents.shell import Device, Surroundings
from capstan.node import cdi
from capstan.node.errors import NodeError

_FIRST_RETRY_SECONDS, _LONGEST_RETRY_SECONDS = 0.25, 30.0


@dataclass(frozen=True)
class AgentDirectories:
    """`state`: the agent's own files; `registrar`: plugins' registration sockets; `cdi`: the specs drivers write."""

    state: Path
    registrar: Path
    cdi: Path


class PodRun:
    """What the agent knows of one pod beyond the API object."""

    def __init__(self, pod: Pod, ip: str, resources: Iterable[str]) -> None:
        self.key, self.uid = pod.key, pod.metadata.uid
        self.ip = ip
        self.containers = PodContainers(pod)
        self.started_at = clock.parse(pod.status.start_time)
        self.admitted = False
        self.prepared = False
        self.failures = 0
        self.waiting_reason = "ContainerCreating"
        self.requests = requests_of(pod, resources)
        self.written: dict[str, Any] = {}


class NodeAgent:
    """One node. `now` is POSIX seconds; `allocatable` has whole units (cpu in millicores)."""

    def __init__(
        self,
        client: kube.Client,
        name: str,
        *,
        directories: AgentDirectories,
        recorder: kube.EventRecorder,
        now: Callable[[], float],
        allocatable: dict[str, int],
        node_ip: str,
        pod_ips: Callable[[], str],
    ) -> None:
        self.name = name
        self.node_ip = node_ip
        self.plugins = Plugins(directories.registrar, now)
        self.claims = NodeClaims(client, self.plugins, directories.state)
        self.runs: dict[str, PodRun] = {}
        self.halted = False
        """A halted node does nothing and answers nobody, as if its machine had lost power."""
        self._client = client
        self._directories = directories
        self._recorder = recorder
        self._now = now
        self._allocatable = allocatable
        self._pod_ips = pod_ips

    # -- the pod's way

    async def sync(self, pod: Pod) -> float | None:
        """Brings the pod forward; returns seconds until it wants to be called again, None if only events matter."""
        uid, now = pod.metadata.uid, self._now()
        run = self.runs.get(uid)
        if run is None:
            if pod.status.phase in ("Succeeded", "Failed"):
                return await self._retire(pod)
            run = self.runs[uid] = self._take_up(pod)
        containers = run.containers
        if not run.admitted:
            run.admitted, run.started_at = True, run.started_at or now
            if refusal := self._refusal(run):
                self._emit(pod, "Warning", refusal[0], refusal[1])
                containers.fail(*refusal, deadline=now)
        if pod.metadata.deletion_timestamp is not None:
            containers.terminate(clock.parse(pod.metadata.deletion_timestamp))
        limit = pod.spec.active_deadline_seconds
        if limit is not None and containers.stopping is None and now >= run.started_at + limit:
            message = "Pod was active on the node longer than the specified deadline"
            containers.fail("DeadlineExceeded", message, now + pod.spec.termination_grace_period_seconds)
            self._emit(pod, "Normal", "DeadlineExceeded", message)
        if containers.stopping is None and not run.prepared:
            retry = await self._prepare(pod, run)
            if retry is not None:
                await self._report(pod, run)
                return retry
        for notice in containers.advance(now, self._starter(pod)):
            self._emit(pod, notice.type, notice.reason, notice.message)
        if containers.stopped:
            return await self._finish(pod, run)
        await self._report(pod, run)
        deadline = run.started_at + limit if limit is not None and containers.stopping is None else None
        times = [containers.next_change(), deadline]
        due = min((time for time in times if time is not None), default=None)
        return None if due is None else max(0.0, due - self._now())

    def _take_up(self, pod: Pod) -> PodRun:
        """A new pod, or one that an earlier life of this agent has started: that goes on from its status."""
        ip = pod.status.pod_ip or (self.node_ip if pod.spec.host_network else self._pod_ips())
        run = PodRun(pod, ip, self._allocatable)
        if any(status.state.running or status.restart_count for status in pod.status.container_statuses):
            run.containers.restore(pod, self._starter(pod))
            run.admitted = run.prepared = True
        return run

    def _refusal(self, run: PodRun) -> tuple[str, str] | None:
        """Admission: a pod that does not fit into what is left fails here, whatever the scheduler thought."""
        used: dict[str, int] = {}
        for other in self.runs.values():
            if other is not run and other.admitted and not other.containers.stopped:
                for resource, amount in other.requests.items():
                    used[resource] = used.get(resource, 0) + amount
        for resource, amount in run.requests.items():
            capacity = self._allocatable.get(resource)
            if amount and capacity is not None and used.get(resource, 0) + amount > capacity:
                return (
                    f"OutOf{resource}",
                    f"Pod was rejected: Node didn't have enough resource: {resource}, requested: {amount}, "
                    f"used: {used.get(resource, 0)}, capacity: {capacity}",
                )
        return None

    async def _prepare(self, pod: Pod, run: PodRun) -> float | None:
        """Prepares claims and resolves devices; None when that is done, else the seconds until the next try."""
        try:
            if claims_of(pod):
                await self.claims.prepare(pod)
                await self._record(pod)
        except (ClaimNotReady, PluginError, kube.ApiError) as error:
            message = f"Failed to prepare dynamic resources: {error}"
            self._emit(pod, "Warning", "FailedPrepareDynamicResources", message)
        except NodeError as error:
            run.waiting_reason = "CreateContainerError"
            self._emit(pod, "Warning", "Failed", f"Error: failed to create containerd task: {error}")
        else:
            run.prepared, run.failures, run.waiting_reason = True, 0, "ContainerCreating"
            return None
        pause = min(_FIRST_RETRY_SECONDS * 2.0**run.failures, _LONGEST_RETRY_SECONDS)
        run.failures += 1
        return pause

    async def _finish(self, pod: Pod, run: PodRun) -> float | None:
        """Everything has stopped: give the claims back, report the end, and confirm a deletion."""
        if (retry := await self._unprepare(pod, run.uid)) is not None:
            return retry
        await self._report(pod, run)
        del self.runs[run.uid]
        return await self._retire(pod)

    async def _retire(self, pod: Pod) -> float | None:
        """A pod that runs no more, maybe since before this agent started."""
        if (retry := await self._unprepare(pod, pod.metadata.uid)) is not None:
            return retry
        if pod.metadata.deletion_timestamp is not None:
            try:
                metadata = pod.metadata
                await self._client.delete(PODS, metadata.name, metadata.namespace, uid=metadata.uid, grace_period=0)
            except (kube.NotFound, kube.Conflict):
                pass  # gone, or a namesake took its place
        return None

    def _emit(self, pod: Pod, type: Literal["Normal", "Warning"], reason: str, message: str) -> None:
        self._recorder.emit(pod, type, reason, message, host=self.name)

    async def _unprepare(self, pod: Pod, uid: str) -> float | None:
        """Until it works the pod is not let go: its devices are still in use."""
        try:
            await self.claims.unprepare(uid)
        except PluginError as error:
            message = f"Failed to unprepare dynamic resources: {error}"
            self._emit(pod, "Warning", "FailedUnprepareDynamicResources", message)
            return 5.0
        return None

    async def vanish(self, uid: str) -> None:
        """The pod object is gone although the pod was not stopped (force deletion). Raises PluginError; repeat then."""
        self.runs.pop(uid, None)
        await self.claims.unprepare(uid)
        self._forget_records(uid)

    # -- devices

    async def _record(self, pod: Pod) -> None:
        """Writes what the CDI specs add to each container (env, device nodes, mounts, hooks), to be looked at.

        Raises NodeError for a device that no spec defines: the container could not be created.
        """
        for container in (*pod.spec.init_containers, *pod.spec.containers):
            ids = [cdi_id for device in self.claims.devices(pod, container.name) for cdi_id in device.cdi_ids]
            if ids:
                own = self._environment(pod, container)
                args = command_line(container.command, container.args, own)
                path = self._record_path(pod.metadata.uid, container.name)
                # Beside the event loop: a slow disk must not hold up the other nodes.
                await asyncio.to_thread(_write_record, path, self._directories.cdi, ids, args, own)

    def _record_path(self, uid: str, container: str) -> Path:
        return self._directories.state / "pods" / uid / f"{container}.json"

    def _forget_records(self, uid: str) -> None:
        directory = self._directories.state / "pods" / uid
        if directory.exists():
            for file in directory.iterdir():
                file.unlink()
            directory.rmdir()

    def container_record(self, uid: str, container: str) -> dict[str, Any] | None:
        """The recorded container of a pod, None when no device was injected into it."""
        path = self._record_path(uid, container)
        return msgspec.json.decode(path.read_bytes()) if path.exists() else None

    def _starter(self, pod: Pod) -> Callable[[Container], Process]:
        has_claims = pod.spec.resource_claims or pod.status.extended_resource_claim_status is not None

        def start(container: Container) -> Process:
            own = self._environment(pod, container)
            record = self.container_record(pod.metadata.uid, container.name) if has_claims else None
            injected = dict(entry.partition("=")[::2] for entry in record["process"]["env"]) if record else {}
            around = Surroundings(
                image=container.image,
                env=own | injected,
                devices=[device for found in (record["devices"] if record else []) if (device := _device(found))],
                hostname=pod.metadata.name,
            )
            return Process(command_line(container.command, container.args, own), around)

        return start

    def _environment(self, pod: Pod, container: Container) -> dict[str, str]:
        run = self.runs.get(pod.metadata.uid)
        return environment(pod, container, self.node_ip, run.ip if run else pod.status.pod_ip)

    # -- the status

    async def _report(self, pod: Pod, run: PodRun) -> None:
        """Writes the status if it changed since the last report. The pod may be gone by now."""
        status = self._status(pod, run)
        if status == run.written:
            return
        patch = {"metadata": {"uid": run.uid}, "status": status}
        name, namespace = pod.metadata.name, pod.metadata.namespace
        try:
            await self._client.patch(PODS, name, namespace, patch=patch, kind="strategic", subresource="status")
        except (kube.NotFound, kube.Conflict):
            return  # gone, or a namesake took its place: the cache will say so
        run.written = status

    def _status(self, pod: Pod, run: PodRun) -> dict[str, Any]:
        containers = run.containers
        phase = containers.phase
        if phase in ("Succeeded", "Failed") and not containers.stopped:
            phase = "Running"
        done = phase in ("Succeeded", "Failed")
        for one in containers.all:
            if one.state == "waiting" and not run.prepared:
                one.reason = run.waiting_reason
        ready = containers.ready and containers.stopping is None
        unready = "PodCompleted" if done else "ContainersNotReady"
        conditions = [
            _condition("PodReadyToStartContainers", run.prepared and not done),
            _condition("Initialized", containers.initialized, "PodCompleted" if done else "ContainersNotInitialized"),
            _condition("ContainersReady", ready, unready),
            _condition("Ready", ready, unready),
        ]
        now = clock.render(self._now())
        before = {c.type: c for c in pod.status.conditions}
        written = {c["type"]: c for c in run.written.get("conditions", [])}
        for condition in conditions:
            kind = condition["type"]
            known = written.get(kind) or (
                {"status": before[kind].status, "lastTransitionTime": before[kind].last_transition_time or now}
                if kind in before
                else {}
            )
            same = known.get("status") == condition["status"]
            condition["lastTransitionTime"] = known["lastTransitionTime"] if same else now
        failure = containers.failure
        status: dict[str, Any] = {
            "phase": phase,
            "conditions": conditions,
            "hostIP": self.node_ip,
            "hostIPs": [{"ip": self.node_ip}],
            "startTime": clock.render(run.started_at),
            "containerStatuses": [one.status() for one in containers.main],
        }
        if containers.init:
            status["initContainerStatuses"] = [one.status() for one in containers.init]
        if run.prepared:
            status |= {"podIP": run.ip, "podIPs": [{"ip": run.ip}]}
        if failure is not None:
            status |= {"reason": failure[0], "message": failure[1]}
        return status

    # -- logs

    async def log_lines(self, pod: Pod, container: str, *, previous: bool) -> AsyncIterator[tuple[float, str]]:
        """(POSIX seconds, line) of what a container printed, from its status: the process is told again."""
        spec = next((c for c in (*pod.spec.init_containers, *pod.spec.containers) if c.name == container), None)
        statuses = (*pod.status.init_container_statuses, *pod.status.container_statuses)
        status = next((s for s in statuses if s.name == container), None)
        if spec is None or status is None:
            return
        state = status.last_state if previous else status.state
        found = state.running or state.terminated or status.last_state.terminated
        if not found:
            return
        started = clock.parse(found.get("startedAt"))
        until = clock.parse(found["finishedAt"]) if "finishedAt" in found else self._now()
        for offset, line in self._starter(pod)(spec).lines(until - started):
            yield started + offset, line


def requests_of(pod: Pod, resources: Iterable[str]) -> dict[str, int]:
    """What the kubelet admits a pod by: cpu in millicores, everything else in whole units."""
    totals: dict[str, int] = {}
    sidecars = [c for c in pod.spec.init_containers if c.restart_policy == "Always"]
    for resource in resources:
        number = quantity.milli if resource == "cpu" else quantity.whole
        amounts = [number(c.resources.requests.get(resource)) for c in (*pod.spec.containers, *sidecars)]
        peak = max((number(c.resources.requests.get(resource)) for c in pod.spec.init_containers), default=0)
        totals[resource] = max(sum(amounts), peak) + number(pod.spec.overhead.get(resource))
    return totals | {"pods": 1}


def _condition(kind: str, state: bool, reason: str = "") -> dict[str, Any]:
    condition: dict[str, Any] = {"type": kind, "status": "True" if state else "False"}
    return condition if state or not reason else condition | {"reason": reason}


def _write_record(path: Path, cdi_dir: Path, ids: Sequence[str], args: list[str], own: dict[str, str]) -> None:
    found = cdi.resolve(cdi_dir, ids)
    document = {
        "process": {
            "args": args,
            "env": [f"{name}={value}" for name, value in own.items()] + list(dict.fromkeys(_edits(found, "env"))),
        },
        "linux": {"devices": _edits(found, "deviceNodes")},
        "mounts": _edits(found, "mounts"),
        "hooks": _edits(found, "hooks"),
        "cdiDevices": ids,
        "devices": [device.get("annotations", {}) for device in found],
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    scratch = path.with_suffix(".tmp")
    scratch.write_bytes(msgspec.json.encode(document))
    os.replace(scratch, path)


def _device(annotations: dict[str, str]) -> Device | None:
    """A device as its driver describes it in the CDI spec; None if a CUDA program cannot see it (passthrough)."""
    prefix = "platform.capstan.dev"
    if f"{prefix}/uuid" not in annotations:
        return None
    fields = ("product", "uuid", "parentUUID", "profile")
    return Device(*(annotations.get(f"{prefix}/{field}", "") for field in fields))


def _edits(found: Sequence[dict[str, Any]], field: str) -> list[Any]:
    return [edit for device in found for edit in device["containerEdits"].get(field, [])]
