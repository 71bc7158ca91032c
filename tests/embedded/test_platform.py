"""One cluster in one process: its parts have only the rights they state, and a part that fails starts again."""

import asyncio

import pytest

from capstan import kube, local
from capstan.api import resources
from capstan.embedded import Platform, PlatformError, accounts
from capstan.embedded import platform as platform_module
from capstan.embedded.components import Component, controllers
from capstan.node.models import parse_fleet

pytestmark = pytest.mark.anyio


@pytest.fixture
def anyio_backend():
    return "asyncio"


async def seen(look, what, patience=20):
    for _ in range(int(patience / 0.05)):
        found = await look()
        if found:
            return found
        await asyncio.sleep(0.05)
    raise AssertionError(f"not seen: {what}")


async def test_a_pod_runs_on_a_gpu_of_the_embedded_cluster(tmp_path):
    async with Platform(parse_fleet("1xl4x1"), data_dir=tmp_path, port=None) as platform:
        client = platform.client()
        await client.create(
            resources.PODS,
            {
                "metadata": {"name": "p", "namespace": "default", "labels": {"kai.scheduler/queue": "default-queue"}},
                "spec": {
                    "schedulerName": "kai-scheduler",
                    "containers": [{"name": "m", "image": "x", "resources": {"limits": {"nvidia.com/gpu": "1"}}}],
                },
            },
        )

        async def runs():
            return (await client.get(resources.PODS, "p", "default")).status.phase == "Running"

        await seen(runs, "the pod runs")


async def test_no_component_may_do_what_its_rules_do_not_say(tmp_path):
    async with Platform(parse_fleet("1xcpux4"), data_dir=tmp_path, port=None) as platform:
        for component in controllers({}):
            user = local.service_account(accounts.NAMESPACE, component.name)
            client = kube.Client(platform.server.transport(user))
            with pytest.raises(kube.Forbidden):
                await client.create(resources.CLUSTER_ROLES, {"metadata": {"name": "more"}})
            with pytest.raises(kube.Forbidden):
                await client.post(resources.PODS, "p", "default", "exec", {})


async def test_a_component_that_fails_is_started_again(tmp_path, monkeypatch, caplog):
    starts = []

    async def fragile(client):
        starts.append(client)
        if len(starts) == 1:
            raise RuntimeError("broken on purpose")
        await asyncio.Event().wait()

    monkeypatch.setattr(platform_module, "controllers", lambda pages, policy: (Component("fragile", [], fragile),))
    monkeypatch.setattr(platform_module, "_FIRST_PAUSE_SECONDS", 0.01)
    async with Platform([], data_dir=tmp_path, port=None):

        async def again():
            return len(starts) == 2

        await seen(again, "the second start")
    assert "the fragile failed" in caplog.text


async def test_a_taken_port_is_named_with_what_to_do(tmp_path):
    async with Platform([], data_dir=tmp_path / "a", port=0) as first:
        port = int(first.url.rpartition(":")[2])
        with pytest.raises(PlatformError, match=rf"port {port} cannot be used.*--port"):
            async with Platform([], data_dir=tmp_path / "b", port=port):
                raise AssertionError("it must not start")


async def test_nodes_that_are_no_longer_asked_for_are_gone_after_a_restart(tmp_path):
    for fleet, expected in (("2xl4x1", {"l4x1-0", "l4x1-1"}), ("1xcpux4,1xl4x1", {"cpux4-0", "l4x1-0"})):
        async with Platform(parse_fleet(fleet), data_dir=tmp_path, port=None) as platform:
            client = platform.client()

            async def named(client=client, expected=expected):
                return {node.metadata.name for node in (await client.list(resources.NODES)).items} == expected

            await seen(named, f"exactly {expected}")


async def test_metrics_are_served_to_those_who_may_read_them(tmp_path):
    async with Platform(parse_fleet("1xl4x1"), data_dir=tmp_path, port=0) as platform:
        server = platform.server

        async def served():
            return "/metrics" in server.pages

        await seen(served, "the scheduler has registered its page")
        answer = await kube.kubeconfig(platform.kubeconfig).transport().request("GET", "/metrics")
        assert answer.status == 200
        assert answer.headers["content-type"].startswith("text/plain")
        assert b"kai_e2e_scheduling_latency_milliseconds" in answer.body
        nobody = server.transport(local.User("nobody", ("system:authenticated",)))
        assert (await nobody.request("GET", "/metrics")).status == 403
        monitor = server.transport(local.User("prometheus", ("system:monitoring",)))
        assert (await monitor.request("GET", "/metrics")).status == 200
        assert (await monitor.request("POST", "/metrics")).status == 403
