"""One pod's containers on virtual time: started in order, restarted by policy, stopped with grace.

A pure state machine: the time is an argument, and what it would tell a person comes out as `Notice`s. It can be rebuilt
from the status it last reported, so a restarted agent takes up every pod where it was.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from capstan.api import clock
from capstan.api.core import Container, ContainerStatus, Pod
from capstan.local.agents.process import KILLED, Process

_FIRST_BACKOFF_SECONDS, _LONGEST_BACKOFF_SECONDS = 10.0, 300.0
_CALM_SECONDS = 600.0
"""A container that ran this long starts with the first backoff again."""

StartProcess = Callable[[Container], Process]


@dataclass(frozen=True)
class Notice:
    """An event on the pod."""

    type: Literal["Normal", "Warning"]
    reason: str
    message: str


@dataclass
class ContainerRun:
    """One container. Times are POSIX seconds."""

    spec: Container
    pod_uid: str
    state: Literal["waiting", "running", "terminated"] = "waiting"
    reason: str = "ContainerCreating"
    restarts: int = 0
    started_at: float = 0.0
    finished_at: float = 0.0
    exit_code: int = 0
    restart_at: float | None = None
    last: dict[str, Any] = field(default_factory=dict)
    process: Process | None = None
    stop: tuple[float, int] | None = None
    """When and with which exit code a container that is being stopped ends."""

    @property
    def container_id(self) -> str:
        digest = hashlib.sha256(f"{self.pod_uid}/{self.spec.name}/{self.restarts}".encode()).hexdigest()
        return f"simulated://{digest}"

    def ends(self) -> tuple[float, int] | None:
        """(time, exit code) of its end, None while that is open."""
        found = (
            [(self.started_at + self.process.ends[0], self.process.ends[1])]
            if self.process and self.process.ends
            else []
        )
        return min([*found, *([self.stop] if self.stop else [])], default=None)

    def start(self, process: Process, now: float) -> None:
        if self.state == "terminated":
            self.last = {"terminated": self._terminated()}
            self.restarts += 1
        self.state, self.process, self.stop, self.restart_at = "running", process, None, None
        # Kept in whole seconds, as the API reports it: a rebuilt state must end at the same moment.
        self.started_at = float(int(now))

    def advance(self, now: float) -> None:
        end = self.ends() if self.state == "running" else None
        if end is not None and end[0] <= now:
            self.state, self.finished_at, self.exit_code = "terminated", end[0], end[1]

    def terminate(self, now: float, deadline: float) -> None:
        """SIGTERM now, SIGKILL at the deadline."""
        if self.state == "waiting" and self.last:
            # It waits for a restart that will not come: what counts is how it ended.
            self.state = "terminated"
        if self.state != "running" or self.process is None:
            return
        answer = self.process.on_terminate(now - self.started_at)
        self.stop = min(self.stop or (deadline, KILLED), (now, answer) if answer is not None else (deadline, KILLED))

    def restart_later(self) -> None:
        """Plans the next start: at once after the first end, then after 10 s, 20 s, … 300 s."""
        if self.restart_at is None:
            failures = self.restarts if self.finished_at - self.started_at < _CALM_SECONDS else 0
            pause = min(_FIRST_BACKOFF_SECONDS * 2.0 ** (failures - 1), _LONGEST_BACKOFF_SECONDS) if failures else 0.0
            self.restart_at = self.finished_at + pause

    def _terminated(self) -> dict[str, Any]:
        reason = "Completed" if self.exit_code == 0 else "Error"
        return {
            "exitCode": self.exit_code,
            "reason": reason,
            "startedAt": clock.render(self.started_at),
            "finishedAt": clock.render(self.finished_at),
            "containerID": self.container_id,
        }

    def status(self) -> dict[str, Any]:
        running = self.state == "running"
        if running:
            state: dict[str, Any] = {"running": {"startedAt": clock.render(self.started_at)}}
        elif self.state == "terminated" and self.restart_at is None:
            state = {"terminated": self._terminated()}
        elif self.state == "terminated":
            pause = max(0, round((self.restart_at or 0) - self.finished_at))
            message = f"back-off {pause}s restarting failed container={self.spec.name}"
            state = {"waiting": {"reason": "CrashLoopBackOff", "message": message}}
        else:
            state = {"waiting": {"reason": self.reason}}
        last = {"terminated": self._terminated()} if self.state == "terminated" and self.restart_at else self.last
        started = self.state != "waiting"
        return {
            "name": self.spec.name,
            "image": self.spec.image,
            "imageID": f"simulated://{hashlib.sha256(self.spec.image.encode()).hexdigest()}" if started else "",
            **({"containerID": self.container_id} if started else {}),
            "ready": running,
            "started": running,
            "restartCount": self.restarts,
            "state": state,
            "lastState": last,
        }

    def restore(self, status: ContainerStatus, start: StartProcess) -> None:
        """Takes up the state that was reported."""
        self.restarts = status.restart_count
        ended = status.last_state.terminated
        self.last = {"terminated": ended} if ended else {}
        if status.state.running:
            self.state, self.process = "running", start(self.spec)
            self.started_at = clock.parse(status.state.running.get("startedAt"))
        elif terminated := status.state.terminated or (ended if status.state.waiting else None):
            self.state = "terminated"
            self.started_at = clock.parse(terminated.get("startedAt"))
            self.finished_at = clock.parse(terminated.get("finishedAt"))
            self.exit_code = terminated.get("exitCode", 0)


class PodContainers:
    """All containers of a pod. Call `advance` until `done`; `next_change` says when it is worth calling again."""

    def __init__(self, pod: Pod) -> None:
        uid = pod.metadata.uid
        self._policy = pod.spec.restart_policy
        self.init = [ContainerRun(spec, uid, reason="PodInitializing") for spec in pod.spec.init_containers]
        waiting = "PodInitializing" if self.init else "ContainerCreating"
        self.main = [ContainerRun(spec, uid, reason=waiting) for spec in pod.spec.containers]
        self.stopping: float | None = None
        """The time of SIGKILL for what runs then."""
        self.failure: tuple[str, str] | None = None
        """(reason, message) of a pod that the agent itself made fail."""

    def restore(self, pod: Pod, start: StartProcess) -> None:
        reported = {s.name: s for s in (*pod.status.init_container_statuses, *pod.status.container_statuses)}
        for run in (*self.init, *self.main):
            if run.spec.name in reported:
                run.restore(reported[run.spec.name], start)

    @property
    def all(self) -> Sequence[ContainerRun]:
        return (*self.init, *self.main)

    @property
    def stopped(self) -> bool:
        """Nothing runs any more and nothing will start."""
        ended = self.stopping is not None or self.phase in ("Succeeded", "Failed")
        return ended and all(run.state != "running" for run in self.all)

    @property
    def initialized(self) -> bool:
        return all(
            run.state == "running" if is_sidecar(run) else run.state == "terminated" and run.exit_code == 0
            for run in self.init
        )

    @property
    def ready(self) -> bool:
        return all(run.state == "running" for run in self.main) and self.initialized

    @property
    def phase(self) -> str:
        if self.failure is not None:
            return "Failed"
        if any(
            not is_sidecar(r) and r.state == "terminated" and r.exit_code and self._policy == "Never" for r in self.init
        ):
            return "Failed"
        if all(run.state == "terminated" and not self._restarts(run) for run in self.main):
            return "Failed" if any(run.exit_code for run in self.main) else "Succeeded"
        if any(run.state == "waiting" for run in self.main):
            return "Pending"
        return "Running"

    def _restarts(self, run: ContainerRun) -> bool:
        if self.stopping is not None:
            return False
        return is_sidecar(run) or self._policy == "Always" or (self._policy == "OnFailure" and run.exit_code != 0)

    def fail(self, reason: str, message: str, deadline: float) -> None:
        """Ends the pod as Failed; what runs is stopped."""
        self.failure = self.failure or (reason, message)
        self.terminate(deadline)

    def terminate(self, deadline: float) -> None:
        """Stops everything; the earliest deadline counts."""
        self.stopping = deadline if self.stopping is None else min(self.stopping, deadline)

    def advance(self, now: float, start: StartProcess) -> list[Notice]:
        """Brings everything up to `now`."""
        notices: list[Notice] = []
        for run in self.all:
            run.advance(now)
        if self.stopping is not None:
            self._stop(now, self.stopping, notices)
        elif self._run_init(now, start, notices):
            for run in self.main:
                self._keep_running(run, now, start, notices)
            if self.phase in ("Succeeded", "Failed"):
                # Sidecars end with the containers they served.
                self._stop(now, now + 30.0, notices)
        return notices

    def _stop(self, now: float, deadline: float, notices: list[Notice]) -> None:
        """Main containers first; sidecars when those are gone."""
        for group in (self.main, self.init):
            for run in group:
                if run.state == "running" and run.stop is None:
                    notices.append(Notice("Normal", "Killing", f"Stopping container {run.spec.name}"))
                run.terminate(now, deadline)
                run.advance(now)
            if any(run.state == "running" for run in group):
                return

    def _run_init(self, now: float, start: StartProcess, notices: list[Notice]) -> bool:
        """Whether the main containers may run. What has begun is kept running even if something before it fails."""
        begun = any(run.state != "waiting" for run in self.main)
        blocked = False
        for run in self.init:
            if (begun and not is_sidecar(run)) or (blocked and run.state == "waiting"):
                continue
            self._keep_running(run, now, start, notices)
            passed = run.state == "running" if is_sidecar(run) else run.state == "terminated" and not run.exit_code
            blocked = blocked or not (begun or passed)
        return not blocked

    def _keep_running(self, run: ContainerRun, now: float, start: StartProcess, notices: list[Notice]) -> None:
        """Starts what is due, again if it ends at once; the second restart has a pause, so that this ends."""
        name, image = run.spec.name, run.spec.image
        while True:
            # An init container that succeeded is done whatever the policy says.
            done = run in self.init and not is_sidecar(run) and run.exit_code == 0
            if run.state == "terminated" and not done and self._restarts(run):
                run.restart_later()
            if run.state != "waiting" and (run.restart_at is None or run.restart_at > now):
                break
            run.start(start(run.spec), now)
            notices.append(Notice("Normal", "Pulled", f'Container image "{image}" already present on machine'))
            notices.append(Notice("Normal", "Created", f"Created container: {name}"))
            notices.append(Notice("Normal", "Started", f"Started container {name}"))
            run.advance(now)
        if run.restart_at is not None:
            notices.append(Notice("Warning", "BackOff", f"Back-off restarting failed container {name}"))

    def next_change(self) -> float | None:
        """The next moment at which something happens by itself."""
        times = [end[0] for run in self.all if run.state == "running" and (end := run.ends())]
        times += [run.restart_at for run in self.all if run.restart_at is not None and self.stopping is None]
        return min(times, default=None)


def is_sidecar(run: ContainerRun) -> bool:
    """A restartable init container. (Main containers have no policy of their own.)"""
    return run.spec.restart_policy == "Always"
