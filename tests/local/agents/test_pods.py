"""Pods on a simulated node live and die as on a real one."""

from __future__ import annotations

from typing import Any

import pytest

from capstan import kube
from capstan.api.resources import LEASES, NODES, PODS

pytestmark = pytest.mark.anyio


def conditions(pod: dict[str, Any]) -> dict[str, str]:
    return {c["type"]: c["status"] for c in pod["status"]["conditions"]}


def state(pod: dict[str, Any], container: str = "main") -> dict[str, Any]:
    statuses = [*pod["status"].get("initContainerStatuses", []), *pod["status"].get("containerStatuses", [])]
    none: dict[str, Any] = {"state": {}, "restartCount": 0}
    return next((s for s in statuses if s["name"] == container), none)


async def test_the_node_registers_with_what_it_has(house: Any) -> None:
    node = await house.client.get(NODES, "node-0")
    assert node.ready
    assert node.metadata.labels["nvidia.com/gpu.count"] == "2"
    assert node.metadata.labels["kubernetes.io/hostname"] == "node-0"
    assert node.status.allocatable["cpu"] == "32" and "nvidia.com/gpu" not in node.status.allocatable
    lease = await house.client.get(LEASES, "node-0", "kube-node-lease")
    assert lease.spec.holder_identity == "node-0"


async def test_a_pod_runs_and_reports(house: Any) -> None:
    await house.run("p", "sleep", "infinity")
    pod = await house.reach("p", "Running")
    assert conditions(pod) == {
        "PodScheduled": "True",
        "PodReadyToStartContainers": "True",
        "Initialized": "True",
        "ContainersReady": "True",
        "Ready": "True",
    }
    assert pod["status"]["podIP"].startswith("10.128.0.") and pod["status"]["hostIP"] == "172.16.0.0"
    assert state(pod)["ready"] and "startedAt" in state(pod)["state"]["running"]
    assert state(pod)["containerID"].startswith("simulated://")
    await house.fleet.recorder.drain()
    assert await house.events("Started") == ["Started container main"]


@pytest.mark.parametrize(("code", "phase", "reason"), [("0", "Succeeded", "Completed"), ("3", "Failed", "Error")])
async def test_a_container_that_ends_ends_the_pod(house: Any, code: str, phase: str, reason: str) -> None:
    await house.run("p", "sh", "-c", f"echo hello; exit {code}")
    pod = await house.reach("p", phase)
    terminated = state(pod)["state"]["terminated"]
    assert (terminated["exitCode"], terminated["reason"]) == (int(code), reason)
    assert conditions(pod)["Ready"] == "False"
    assert await house.logs("p") == ["hello"]


async def test_a_sleep_ends_on_time(house: Any) -> None:
    await house.run("p", "sleep", "100")
    await house.reach("p", "Running")
    house.skip(99)
    assert (await house.pod("p"))["status"]["phase"] == "Running"
    house.skip(2)
    await house.reach("p", "Succeeded")


async def test_restarts_follow_the_policy_with_backoff(house: Any) -> None:
    await house.run("p", "false", restartPolicy="Always")

    async def restarted(count: int) -> Any:
        pod = await house.pod("p")
        return pod if state(pod)["restartCount"] == count and "waiting" in state(pod)["state"] else None

    pod = await house.until(lambda: restarted(1))
    assert state(pod)["state"]["waiting"]["reason"] == "CrashLoopBackOff"
    assert state(pod)["lastState"]["terminated"]["exitCode"] == 1
    assert pod["status"]["phase"] == "Running" and conditions(pod)["Ready"] == "False"
    house.skip(11)
    await house.until(lambda: restarted(2))
    house.skip(11)
    assert state(await house.pod("p"))["restartCount"] == 2
    house.skip(10)
    await house.until(lambda: restarted(3))


async def test_on_failure_does_not_restart_what_succeeded(house: Any) -> None:
    await house.run("p", "true", restartPolicy="OnFailure")
    pod = await house.reach("p", "Succeeded")
    assert state(pod)["restartCount"] == 0


async def test_init_containers_run_one_after_another_before_the_main_ones(house: Any) -> None:
    init = [
        {"name": "first", "image": "x", "command": ["sleep", "50"]},
        {"name": "second", "image": "x", "command": ["sleep", "50"]},
    ]
    await house.run("p", "sleep", "infinity", initContainers=init)

    async def running(name: str) -> bool:
        return "running" in state(await house.pod("p"), name)["state"]

    await house.until(lambda: running("first"))
    pod = await house.pod("p")
    assert state(pod, "second")["state"]["waiting"]["reason"] == "PodInitializing"
    assert pod["status"]["phase"] == "Pending" and conditions(pod)["Initialized"] == "False"
    house.skip(51)
    await house.until(lambda: running("second"))
    house.skip(51)
    await house.until(lambda: running("main"))
    assert conditions(await house.pod("p"))["Initialized"] == "True"


async def test_a_failing_init_container_fails_the_pod_that_never_restarts(house: Any) -> None:
    await house.run("p", "sleep", "1", initContainers=[{"name": "i", "image": "x", "command": ["false"]}])
    pod = await house.reach("p", "Failed")
    assert "waiting" in state(pod)["state"]


async def test_sidecars_start_first_and_end_last(house: Any) -> None:
    sidecar = {"name": "side", "image": "x", "command": ["server"], "restartPolicy": "Always"}
    await house.run("p", "sleep", "100", initContainers=[sidecar])
    pod = await house.reach("p", "Running")
    assert "running" in state(pod, "side")["state"]
    house.skip(101)
    pod = await house.reach("p", "Succeeded")
    assert "terminated" in state(pod, "side")["state"]


async def test_a_trap_ends_at_once_and_a_sleep_at_the_end_of_its_grace(house: Any) -> None:
    await house.run("polite", "sh", "-c", "trap 'exit 0' TERM; sleep 9999 & wait")
    await house.run("deaf", "sleep", "infinity", terminationGracePeriodSeconds=20)
    for name in ("polite", "deaf"):
        await house.reach(name, "Running")
        await house.client.delete(PODS, name, "default")
    await house.gone("polite")
    pod = await house.pod("deaf")
    assert pod["metadata"]["deletionTimestamp"] and "running" in state(pod)["state"]
    house.skip(21)
    await house.gone("deaf")


async def test_the_active_deadline_ends_a_pod(house: Any) -> None:
    await house.run("p", "server", activeDeadlineSeconds=60)
    await house.reach("p", "Running")
    house.skip(61)
    pod = await house.reach("p", "Failed")
    assert pod["status"]["reason"] == "DeadlineExceeded"


async def test_a_pod_past_its_deadline_that_ignores_signals_is_left_in_peace_until_it_is_killed(house: Any) -> None:
    await house.run("p", "sleep", "infinity", activeDeadlineSeconds=60, terminationGracePeriodSeconds=20)
    await house.reach("p", "Running")
    house.ahead += 61
    agent, pod = house.fleet.agents["node-0"], await house.client.get(PODS, "p", "default")
    assert 15 < await agent.sync(pod) <= 20
    house.skip(21)
    pod = await house.reach("p", "Failed")
    assert state(pod)["state"]["terminated"]["exitCode"] == 137


async def test_a_pod_that_does_not_fit_is_refused_by_the_node(house: Any) -> None:
    cpu = {"resources": {"requests": {"cpu": "20"}}}
    await house.run("first", "server", container=cpu)
    await house.reach("first", "Running")
    await house.run("second", "server", container=cpu)
    pod = await house.reach("second", "Failed")
    assert pod["status"]["reason"] == "OutOfcpu" and "requested: 20000" in pod["status"]["message"]


async def test_a_restarted_agent_takes_its_pods_up_where_they_were(house: Any) -> None:
    await house.run("p", "sh", "-c", "echo one; sleep 100; echo two; sleep 100", restartPolicy="OnFailure")
    before = await house.reach("p", "Running")
    await house.stop_agents()
    house.ahead += 150
    await house.start_agents()
    await house.until(lambda: house.fleet.agents["node-0"].runs)
    after = await house.pod("p")
    assert state(after)["state"] == state(before)["state"] and state(after)["restartCount"] == 0
    assert after["status"]["podIP"] == before["status"]["podIP"]
    assert await house.logs("p") == ["one", "two"]
    house.skip(51)
    await house.reach("p", "Succeeded")


async def test_deletion_while_the_agent_is_away_is_finished_later(house: Any) -> None:
    await house.run("p", "server")
    await house.reach("p", "Running")
    await house.stop_agents()
    await house.client.delete(PODS, "p", "default")
    await house.start_agents()
    await house.gone("p")


async def test_a_halted_node_does_nothing_until_it_is_back(house: Any) -> None:
    house.fleet.halt("node-0")
    await house.run("p", "server")
    await house.run("q", "server", bind=False)
    assert (await house.pod("p"))["status"]["phase"] == "Pending"
    await house.fleet.resume("node-0")
    await house.reach("p", "Running")


async def test_logs_can_be_cut_stamped_and_followed(house: Any) -> None:
    await house.run("p", "sh", "-c", "echo a; echo b; sleep 100; echo c; sleep 100")
    await house.reach("p", "Running")
    assert await house.logs("p") == ["a", "b"]
    assert await house.logs("p", tailLines="1") == ["b"]
    assert await house.logs("p", limitBytes="3") == ["a", "b"]
    [line, _] = await house.logs("p", timestamps="true")
    assert line.endswith("Z a")
    house.skip(101)
    assert await house.logs("p") == ["a", "b", "c"]
    assert await house.logs("p", sinceSeconds="50") == ["c"]
    house.skip(100)
    await house.reach("p", "Succeeded")
    assert await house.logs("p", follow="true") == ["a", "b", "c"]


async def test_a_namesake_after_a_forced_deletion_starts_afresh(house: Any) -> None:
    first = await house.run("p", "sleep", "infinity")
    await house.reach("p", "Running")
    await house.client.delete(PODS, "p", "default", grace_period=0)
    await house.gone("p")
    second = await house.run("p", "sh", "-c", "exit 0")
    await house.reach("p", "Succeeded")
    assert first["metadata"]["uid"] != second["metadata"]["uid"]
    assert list(house.fleet.agents["node-0"].runs) == []


async def test_the_log_of_an_unbound_pod_is_refused(house: Any) -> None:
    await house.run("p", "server", bind=False)
    with pytest.raises(kube.BadRequest, match="does not have a host assigned"):
        await house.logs("p")


async def test_the_downward_api_reaches_the_process(house: Any) -> None:
    def field(name: str, path: str) -> dict[str, Any]:
        return {"name": name, "valueFrom": {"fieldRef": {"fieldPath": path}}}

    env = [field("POD", "metadata.name"), field("NODE", "spec.nodeName"), {"name": "PLAIN", "value": "x"}]
    await house.run("p", "sh", "-c", "echo $POD $NODE $(PLAIN) $PLAIN", container={"env": env})
    await house.reach("p", "Succeeded")
    assert await house.logs("p") == ["p node-0 x x"]


async def test_extra_resources_are_offered_and_admitted_by(house: Any) -> None:
    node = await house.client.get(NODES, "node-0")
    assert node.status.allocatable["example.com/key"] == "1"
    one = {"resources": {"requests": {"example.com/key": "1"}, "limits": {"example.com/key": "1"}}}
    await house.run("first", "server", container=one)
    await house.reach("first", "Running")
    await house.run("second", "server", container=one)
    assert (await house.reach("second", "Failed"))["status"]["reason"] == "OutOfexample.com/key"
