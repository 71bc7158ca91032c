"""The client against the embedded API server: over HTTPS with a kubeconfig and in process, with the same results."""

from __future__ import annotations

import asyncio
import re
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import msgspec
import pytest

from capstan import kube
from capstan.api import crds
from capstan.api.resources import CONFIG_MAPS, LEASES, PODS, unstructured
from capstan.local import Server, serving
from capstan.local.credentials import write_kubeconfig

pytestmark = pytest.mark.anyio

MAPS = unstructured("", "v1", "configmaps", "ConfigMap", namespaced=True)


@pytest.fixture(params=["in process", "https"])
async def api(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[kube.Client]:
    server = Server(tmp_path / "data")
    await server.start()
    if request.param == "in process":
        yield kube.Client(server.transport())
    else:
        async with serving(server) as url:
            assert server.credentials is not None
            write_kubeconfig(tmp_path / "kubeconfig", url, server.credentials)
            client = kube.Client(kube.from_kubeconfig(tmp_path / "kubeconfig"))
            yield client
            await client.close()
    await server.stop()


def config_map(name: str, **data: str) -> dict[str, Any]:
    return {"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": name, "namespace": "default"}, "data": data}


async def failure(call: Any) -> tuple[str, int, str]:
    with pytest.raises(kube.ApiError) as caught:
        await call
    return type(caught.value).__name__, caught.value.code, caught.value.reason


async def test_every_verb(api: kube.Client) -> None:
    created = (await api.create(MAPS, config_map("a", x="1"))).document
    assert created["metadata"]["uid"] and created["data"] == {"x": "1"}
    assert (await api.create(MAPS, config_map("dry"), dry_run=True))["metadata"]["name"] == "dry"
    assert (await api.get(CONFIG_MAPS, "a", "default")).data == {"x": "1"}
    created["data"]["y"] = "2"
    updated = await api.update(MAPS, created)
    assert await failure(api.update(MAPS, created)) == ("Conflict", 409, "Conflict")
    assert updated["data"] == {"x": "1", "y": "2"}
    merged = await api.patch(MAPS, "a", "default", patch={"data": {"x": None}})
    assert merged["data"] == {"y": "2"}
    operations = [{"op": "add", "path": "/data/z", "value": "3"}]
    assert (await api.patch(MAPS, "a", "default", patch=operations, kind="json"))["data"] == {"y": "2", "z": "3"}
    strategic = await api.patch(MAPS, "a", "default", patch={"metadata": {"labels": {"l": "1"}}}, kind="strategic")
    assert strategic["metadata"]["labels"] == {"l": "1"}
    applied = await api.apply(MAPS, config_map("b", x="1"), field_manager="one")
    assert [f["manager"] for f in applied["metadata"]["managedFields"]] == ["one"]
    assert await failure(api.apply(MAPS, config_map("b", x="2"), field_manager="two")) == ("Conflict", 409, "Conflict")
    assert (await api.apply(MAPS, config_map("b", x="2"), field_manager="two", force=True))["data"] == {"x": "2"}
    assert [m.metadata.name for m in (await api.list(CONFIG_MAPS, "default", labels="l=1")).items] == ["a"]
    assert [m.metadata.name for m in (await api.list(CONFIG_MAPS, "default", fields="metadata.name=b")).items] == ["b"]
    await api.delete(MAPS, "a", "default", uid=created["metadata"]["uid"])
    assert await failure(api.get(MAPS, "a", "default")) == ("NotFound", 404, "NotFound")
    await api.delete_collection(MAPS, "default")
    assert (await api.list(MAPS, "default")).items == []


async def test_every_error(api: kube.Client) -> None:
    await api.create(MAPS, config_map("a"))
    assert await failure(api.create(MAPS, config_map("a"))) == ("AlreadyExists", 409, "AlreadyExists")
    assert await failure(api.create(MAPS, config_map("Not_A_Name"))) == ("Invalid", 422, "Invalid")
    wrong = {"metadata": {"name": "p", "namespace": "default"}, "spec": {"containers": []}}
    assert await failure(api.create(PODS, wrong)) == ("Invalid", 422, "Invalid")
    assert await failure(api.delete(MAPS, "a", "default", uid="other")) == ("Conflict", 409, "Conflict")
    gone = unstructured("none.example.com", "v1", "things", "Thing", namespaced=True)
    assert (await failure(api.list(gone)))[1] == 404
    assert (await failure(api.list(PODS, labels="=;=")))[1] == 400


async def test_pages_are_one_consistent_list(api: kube.Client) -> None:
    for i in range(7):
        await api.create(MAPS, config_map(f"m{i}"))
    listing = await api.list(CONFIG_MAPS, "default", limit=3)
    assert [m.metadata.name for m in listing.items] == [f"m{i}" for i in range(7)]
    assert int(listing.resource_version) > 0


async def test_a_watch_from_a_list_sees_everything_after_it(api: kube.Client) -> None:
    listing = await api.list(CONFIG_MAPS, "default")
    await api.create(MAPS, config_map("a", x="1"))
    await api.patch(MAPS, "a", "default", patch={"data": {"x": "2"}})
    await api.delete(MAPS, "a", "default")
    seen = []
    async for event in api.watch(CONFIG_MAPS, "default", resource_version=listing.resource_version):
        seen.append((event.type, event.object.metadata.name, event.object.data))
        if len(seen) == 3:
            break
    assert seen == [("ADDED", "a", {"x": "1"}), ("MODIFIED", "a", {"x": "2"}), ("DELETED", "a", {"x": "2"})]


async def test_a_cache_follows_and_reads_its_own_writes(api: kube.Client) -> None:
    cache = kube.Cache(api, CONFIG_MAPS)
    running = asyncio.create_task(cache.run())
    await cache.synced()
    for i in range(20):
        written = await api.create(MAPS, config_map(f"m{i}"))
        await cache.reached(written["metadata"]["resourceVersion"])
        assert cache.get(f"m{i}", "default") is not None
    running.cancel()
    await asyncio.gather(running, return_exceptions=True)


async def test_discovery_finds_the_resource_of_a_manifest(api: kube.Client) -> None:
    discovery = kube.Discovery(api)
    deployments = await discovery.resource("apps/v1", "Deployment")
    assert deployments.path("ns", "x") == "/apis/apps/v1/namespaces/ns/deployments/x"
    assert not (await discovery.resource("v1", "Node")).namespaced
    with pytest.raises(kube.UnknownKind, match="install its CustomResourceDefinition"):
        await discovery.resource("example.com/v1", "Thing")
    collectable = {resource.group_resource for resource in await discovery.all("list", "delete")}
    assert {"pods", "deployments.apps", "leases.coordination.k8s.io"} <= collectable
    assert not any("/" in name for name in collectable)


async def test_discovery_finds_resources_that_the_preferred_version_of_their_group_lacks(api: kube.Client) -> None:
    definitions = unstructured(
        "apiextensions.k8s.io", "v1", "customresourcedefinitions", "CustomResourceDefinition", namespaced=False
    )
    for definition in crds.load():
        if definition["spec"]["group"] == "scheduling.run.ai":
            await api.create(definitions, definition)
    found = {r.plural: r.version for r in await kube.Discovery(api).all("list") if r.group == "scheduling.run.ai"}
    assert found == {"queues": "v2", "podgroups": "v2alpha2", "bindrequests": "v1alpha2"}


async def test_events_and_leases(api: kube.Client) -> None:
    recorder = kube.EventRecorder(api, "test")
    created = await api.create(MAPS, config_map("a"))
    for _ in range(3):
        recorder.emit(created, "Normal", "Seen", "it was seen")
    await recorder.drain()
    [event] = (await api.list(unstructured("", "v1", "events", "Event", namespaced=True), "default")).items
    assert (event["count"], event["involvedObject"]["name"]) == (3, "a")
    elector = kube.LeaderElector(api, "job", "default", "me")

    async def work() -> None:
        assert (await api.get(LEASES, "job", "default")).spec.holder_identity == "me"

    await elector.run(work)
    assert (await api.get(LEASES, "job", "default")).spec.holder_identity is None


async def test_both_transports_answer_with_the_same_documents(tmp_path: Path) -> None:
    """Whatever a client asks, it cannot tell how it is connected."""
    server = Server(tmp_path / "data")
    await server.start()
    async with serving(server) as url:
        assert server.credentials is not None
        write_kubeconfig(tmp_path / "kubeconfig", url, server.credentials)
        clients = [kube.Client(server.transport()), kube.Client(kube.from_kubeconfig(tmp_path / "kubeconfig"))]
        answers = []
        for client in clients:
            await client.create(MAPS, config_map("a", x="1"))
            documents: list[Any] = [
                msgspec.json.decode((await client.request("GET", path)).body)
                for path in ("/api/v1", "/apis", "/version", "/api/v1/configmaps", "/api/v1/nodes")
            ]
            documents.append(await failure(client.get(MAPS, "none", "default")))
            await client.delete(MAPS, "a", "default")
            answers.append(re.sub(r"'(uid|resourceVersion|creationTimestamp|time)': '[^']*'", "", str(documents)))
        assert answers[0] == answers[1]
        await clients[1].close()
    await server.stop()
