"""The containers of a pod under any mix of lengths, exit codes, policies and interruptions."""

from __future__ import annotations

from typing import Any

import msgspec
from hypothesis import given, settings
from hypothesis import strategies as st

from capstan.api.core import Container, Pod
from capstan.local.agents.containers import PodContainers
from capstan.local.agents.process import Process
from capstan.local.agents.shell import Surroundings

START = 1_800_000_000.0
scripts = st.one_of(
    st.builds("sleep {}; exit {}".format, st.integers(0, 900), st.sampled_from([0, 0, 1])),
    st.just("sleep infinity"),
    st.just("trap 'exit 0' TERM; sleep 50 & wait"),
)


def start(container: Container) -> Process:
    return Process(["sh", "-c", container.args[0]], Surroundings())


@st.composite
def pods(draw: st.DrawFn) -> Pod:
    def containers(prefix: str, most: int, least: int) -> list[dict[str, Any]]:
        found = [{"name": f"{prefix}{i}", "args": [draw(scripts)]} for i in range(draw(st.integers(least, most)))]
        for one in found:
            if prefix == "init" and draw(st.booleans()):
                one["restartPolicy"] = "Always"
        return found

    spec = {
        "containers": containers("main", 3, 1),
        "initContainers": containers("init", 2, 0),
        "restartPolicy": draw(st.sampled_from(["Always", "OnFailure", "Never"])),
    }
    return msgspec.convert({"metadata": {"name": "p", "uid": "u"}, "spec": spec}, Pod)


def report(containers: PodContainers) -> dict[str, Any]:
    return {
        "phase": containers.phase,
        "containerStatuses": [run.status() for run in containers.main],
        "initContainerStatuses": [run.status() for run in containers.init],
    }


def run(containers: PodContainers, now: float, steps: int) -> float:
    """Lets time jump from change to change; returns the last moment."""
    for _ in range(steps):
        containers.advance(now, start)
        due = containers.next_change()
        assert due is None or due > now, "what is due is done, or the agent would spin"
        if due is None or containers.stopped:
            break
        now = due
    return now


@settings(deadline=None, max_examples=300)
@given(pods(), st.integers(0, 30), st.integers(0, 60))
def test_time_always_moves_on_and_a_stopped_pod_comes_to_rest(pod: Pod, steps: int, grace: int) -> None:
    containers = PodContainers(pod)
    now = run(containers, START, steps)
    containers.terminate(now + grace)
    end = run(containers, now, 20)
    assert containers.stopped and end <= now + 2 * grace + 1
    assert all(status["state"].get("running") is None for status in report(containers)["containerStatuses"])


@settings(deadline=None, max_examples=300)
@given(pods(), st.integers(0, 30), st.integers(1, 30))
def test_a_rebuilt_pod_goes_on_as_the_first_one_would_have(pod: Pod, before: int, after: int) -> None:
    first = PodContainers(pod)
    now = run(first, START, before)
    if first.phase in ("Succeeded", "Failed") or any(r.state == "waiting" for r in first.main):
        return  # ended, or not begun: such a pod is not rebuilt but left alone or started afresh
    second = PodContainers(pod)
    pod.status = msgspec.convert(report(first), type(pod.status))
    second.restore(pod, start)
    for containers in (first, second):
        run(containers, now, after)
    assert report(second) == report(first)
