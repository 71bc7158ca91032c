"""The client's contract with any API server: typed reads, plain writes, safe retries, clear errors."""

from __future__ import annotations

import asyncio
import gc
import time
from typing import Any

import pytest

from capstan import kube
from capstan.api import resources
from capstan.api.resources import PODS
from capstan.kube.http import HttpTransport

pytestmark = pytest.mark.anyio

UNSTRUCTURED_PODS = resources.unstructured("", "v1", "pods", "Pod", namespaced=True)


@pytest.fixture(autouse=True)
def no_pauses(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    pauses: list[float] = []
    sleep = asyncio.sleep

    async def record(seconds: float) -> None:
        pauses.append(seconds)
        await sleep(0)

    monkeypatch.setattr("capstan.kube.client.asyncio.sleep", record)
    return pauses


async def test_reads_are_typed_and_unknown_fields_are_ignored(wire: Any, client: kube.Client) -> None:
    await wire.put("a", spec={"nodeName": "n1", "somethingNew": {"x": 1}})
    pod = await client.get(PODS, "a", "default")
    assert (pod.key, pod.spec.node_name) == (("default", "a"), "n1")


async def test_unstructured_items_always_say_what_they_are(wire: Any, client: kube.Client) -> None:
    await wire.put("a")
    [pod] = (await client.list(UNSTRUCTURED_PODS)).items
    assert (pod["apiVersion"], pod["kind"]) == ("v1", "Pod")


async def test_null_fields_count_as_absent(wire: Any, client: kube.Client) -> None:
    await wire.put("a", metadata={"labels": None}, spec={"nodeName": None, "containers": [{"name": "c", "args": None}]})
    await wire.put("b", spec={"nodeName": "n1"})
    listing = await client.list(PODS, "default")
    assert [(p.metadata.name, p.metadata.labels, p.spec.node_name) for p in listing.items] == [
        ("a", {}, ""),
        ("b", {}, "n1"),
    ]


async def test_an_object_with_wrong_types_is_named_and_does_not_hide_the_others(wire: Any, client: kube.Client) -> None:
    await wire.put("good")
    await wire.put("odd", spec={"containers": "none"})
    listing = await client.list(PODS)
    assert [pod.metadata.name for pod in listing.items] == ["good"]
    assert "default/odd" in str(listing.undecodable[0]) and "spec.containers" in str(listing.undecodable[0])
    with pytest.raises(kube.Undecodable, match="odd"):
        await client.get(PODS, "odd", "default")


async def test_a_limit_fetches_everything_in_pages(wire: Any, client: kube.Client) -> None:
    for name in "abcde":
        await wire.put(name)
    listing = await client.list(PODS, limit=2)
    assert [pod.metadata.name for pod in listing.items] == list("abcde")
    assert len(wire.requests) == 3


async def test_an_empty_list_may_have_null_items(wire: Any, client: kube.Client) -> None:
    listing = await client.list(PODS)
    assert (listing.items, listing.resource_version) == ([], "0")


async def test_the_garbage_collector_is_back_on_after_a_list(wire: Any, client: kube.Client) -> None:
    await client.list(PODS)
    assert gc.isenabled()


async def test_selectors_are_quoted(wire: Any, client: kube.Client) -> None:
    await client.list(PODS, labels="app in (a,b),x!=y&z", fields="spec.nodeName=n 1")
    assert wire.requests[-1][2] == {"labelSelector": "app in (a,b),x!=y&z", "fieldSelector": "spec.nodeName=n 1"}


async def test_errors_have_the_class_of_their_code(wire: Any, client: kube.Client) -> None:
    with pytest.raises(kube.NotFound, match="says the test server"):
        await client.get(PODS, "none", "default")
    await client.create(PODS, {"metadata": {"name": "a", "namespace": "default"}})
    with pytest.raises(kube.AlreadyExists):
        await client.create(PODS, {"metadata": {"name": "a", "namespace": "default"}})
    with pytest.raises(kube.Conflict):
        await client.update(PODS, {"metadata": {"name": "a", "namespace": "default", "resourceVersion": "77"}})
    with pytest.raises(kube.Conflict):
        await client.delete(PODS, "a", "default", uid="another")
    await client.delete(PODS, "a", "default", uid=wire.objects["pods", "default", "a"]["metadata"]["uid"])
    assert not wire.objects


async def test_a_read_is_repeated_after_a_server_failure(wire: Any, client: kube.Client) -> None:
    await wire.put("a")
    wire.faults = [(500, {}), (503, {})]
    assert (await client.get(PODS, "a", "default")).metadata.name == "a"
    assert len(wire.requests) == 3


async def test_a_write_is_not_repeated_after_a_server_failure(wire: Any, client: kube.Client) -> None:
    wire.faults = [(500, {})]
    with pytest.raises(kube.Unavailable, match="proxy's page"):
        await client.create(PODS, {"metadata": {"name": "a"}}, "default")
    assert len(wire.requests) == 1


async def test_429_is_repeated_only_when_the_server_says_when(
    wire: Any, client: kube.Client, no_pauses: list[float]
) -> None:
    wire.faults = [(429, {"Retry-After": "3"})]
    await client.create(PODS, {"metadata": {"name": "a"}}, "default")
    assert no_pauses == [3.0]
    wire.faults = [(429, {})]
    with pytest.raises(kube.TooManyRequests):
        await client.create(PODS, {"metadata": {"name": "b"}}, "default")


async def test_retries_end(wire: Any, client: kube.Client) -> None:
    wire.faults = [(500, {})] * 50
    with pytest.raises(kube.Unavailable):
        await client.get(PODS, "a", "default")
    assert len(wire.requests) < 10


async def test_a_server_that_is_not_there_is_unavailable() -> None:
    client = kube.Client(HttpTransport("http://127.0.0.1:1"))
    with pytest.raises(kube.Unavailable, match=r"GET http://127\.0\.0\.1:1/api/v1/pods"):
        await client.list(PODS)
    await client.close()


async def test_a_watch_event_longer_than_aiohttps_default_buffer_arrives(wire: Any, client: kube.Client) -> None:
    await wire.put("big", metadata={"annotations": {"x": "y" * 3_000_000}})
    async for event in client.watch(PODS, resource_version="0"):
        assert (event.type, len(event.object.metadata.annotations["x"])) == ("ADDED", 3_000_000)
        break


async def test_a_refused_watch_raises_the_error(wire: Any, client: kube.Client) -> None:
    wire.faults = [(403, {})]
    with pytest.raises(kube.Forbidden):
        async for _ in client.watch(PODS):
            pytest.fail("no event can come")


async def test_names_with_colons_and_odd_characters_stay_one_path_segment(wire: Any, client: kube.Client) -> None:
    with pytest.raises(kube.NotFound):
        await client.get(PODS, "system:x y?z", "default")
    assert wire.requests[-1][1] == "/api/v1/namespaces/default/pods/system:x y?z"


async def test_a_token_file_is_read_again(tmp_path: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "token"
    file.write_text("one\n")
    token = kube.Token(file=file)
    assert token.header() == {"Authorization": "Bearer one"}
    file.write_text("two")
    later = time.monotonic() + 61
    monkeypatch.setattr("capstan.kube.transport.time.monotonic", lambda: later)
    assert token.header() == {"Authorization": "Bearer two"}
