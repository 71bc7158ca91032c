"""A cache is what the server has, whatever happens to the connection, and its handlers hear every change in order."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any

import pytest

from capstan import kube
from capstan.api.core import Pod
from capstan.api.resources import PODS

pytestmark = pytest.mark.anyio

Until = Callable[[Callable[[], bool]], Awaitable[None]]


@asynccontextmanager
async def running(cache: kube.Cache[Pod]) -> Any:
    task = asyncio.create_task(cache.run())
    try:
        await asyncio.wait_for(cache.synced(), 10)
        yield cache
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


def names(cache: kube.Cache[Pod]) -> list[str]:
    return sorted(name for _, name in cache.objects)


def record(cache: kube.Cache[Pod]) -> list[tuple[str, str]]:
    heard: list[tuple[str, str]] = []
    cache.on_change(lambda change: heard.append((change.type, change.object.metadata.name)))
    return heard


async def test_list_then_watch(wire: Any, client: kube.Client, until: Until) -> None:
    await wire.put("a")
    cache = kube.Cache(client, PODS)
    heard = record(cache)
    async with running(cache):
        assert names(cache) == ["a"]
        await wire.put("b")
        await wire.put("a", spec={"nodeName": "n1"})
        await wire.remove("b")
        await until(lambda: len(heard) == 4)
        assert heard == [("added", "a"), ("added", "b"), ("modified", "a"), ("deleted", "b")]
        assert cache.get("a", "default").spec.node_name == "n1"  # type: ignore[union-attr]


async def test_a_dropped_watch_goes_on_where_it_was(wire: Any, client: kube.Client, until: Until) -> None:
    cache = kube.Cache(client, PODS)
    heard = record(cache)
    async with running(cache):
        await wire.put("a")
        await until(lambda: names(cache) == ["a"])
        await wire.drop_watches()
        await wire.put("b")
        await wire.remove("a")
        await until(lambda: names(cache) == ["b"])
        assert heard == [("added", "a"), ("added", "b"), ("deleted", "a")]
        assert cache.relists == 1


async def test_after_410_the_list_makes_up_for_what_was_missed(wire: Any, client: kube.Client, until: Until) -> None:
    for name in ("deleted", "modified", "same"):
        await wire.put(name)
    cache = kube.Cache(client, PODS)
    heard = record(cache)
    async with running(cache):
        await until(lambda: wire.watches == 1)
        heard.clear()
        wire.faults = [(500, {})]  # keeps the client away while the history is lost
        await wire.drop_watches()
        await wire.remove("deleted")
        await wire.put("modified", spec={"nodeName": "n1"})
        await wire.put("new")
        await wire.compact()
        await until(lambda: cache.relists == 2)
        assert heard == [("deleted", "deleted"), ("modified", "modified"), ("added", "new")]


async def test_a_namesake_after_a_gap_is_a_deletion_and_an_addition(
    wire: Any, client: kube.Client, until: Until
) -> None:
    await wire.put("a")
    cache = kube.Cache(client, PODS)
    heard = record(cache)
    async with running(cache):
        await until(lambda: wire.watches == 1)
        heard.clear()
        wire.faults = [(500, {})]
        await wire.drop_watches()
        await wire.remove("a")
        await wire.put("a")
        await wire.compact()
        await until(lambda: len(heard) == 2)
        assert heard == [("deleted", "a"), ("added", "a")]


async def test_a_truncated_event_is_not_applied_and_not_lost(wire: Any, client: kube.Client, until: Until) -> None:
    cache = kube.Cache(client, PODS)
    async with running(cache):
        await until(lambda: wire.watches == 1)
        wire.truncate_next_event = True
        await wire.put("a")
        await until(lambda: names(cache) == ["a"])
        assert wire.watches == 2 and cache.relists == 1


async def test_a_bookmark_moves_the_position_past_a_compaction(wire: Any, client: kube.Client, until: Until) -> None:
    cache = kube.Cache(client, PODS)
    async with running(cache):
        await until(lambda: wire.watches == 1)
        wire.version += 5
        await wire.bookmark()
        await until(lambda: cache.resource_version == "5")
        await wire.compact()
        await wire.drop_watches()
        await wire.put("a")
        await until(lambda: names(cache) == ["a"])
        assert cache.relists == 1


async def test_an_undecodable_event_costs_one_list_and_hides_one_object(
    wire: Any, client: kube.Client, until: Until
) -> None:
    cache = kube.Cache(client, PODS)
    async with running(cache):
        await until(lambda: wire.watches == 1)
        await wire.put("odd", spec={"containers": "none"})
        await wire.put("good")
        await until(lambda: names(cache) == ["good"])
        assert cache.relists == 2


async def test_a_late_handler_hears_what_is_there(wire: Any, client: kube.Client) -> None:
    await wire.put("a")
    cache = kube.Cache(client, PODS)
    async with running(cache):
        assert record(cache) == [("added", "a")]


async def test_an_index_follows_and_is_current_inside_handlers(wire: Any, client: kube.Client, until: Until) -> None:
    cache = kube.Cache(client, PODS)
    seen: list[list[str]] = []
    cache.on_change(lambda change: seen.append([pod.metadata.name for pod in by_node.get("n1").values()]))
    by_node = cache.index(lambda pod: [pod.spec.node_name] if pod.spec.node_name else [])
    async with running(cache):
        await wire.put("a", spec={"nodeName": "n1"})
        await wire.put("b")
        await wire.put("b", spec={"nodeName": "n1"})
        await wire.put("a", spec={"nodeName": "n2"})
        await wire.remove("b")
        await until(lambda: len(seen) == 5)
        assert seen == [["a"], ["a"], ["a", "b"], ["b"], []]
        assert list(by_node.keys()) == ["n2"]


async def test_handlers_never_see_an_event_twice_however_often_the_watch_breaks(
    wire: Any, client: kube.Client, until: Until
) -> None:
    cache = kube.Cache(client, PODS)
    heard = record(cache)
    async with running(cache):
        for i in range(30):
            await wire.put(f"p{i}")
            if i % 7 == 3:
                await wire.drop_watches()
            if i % 11 == 5:
                await wire.compact()
        await until(lambda: len(cache.objects) == 30)
        assert sorted(heard) == sorted(("added", f"p{i}") for i in range(30))


async def test_a_failing_handler_ends_the_cache_loudly(wire: Any, client: kube.Client) -> None:
    await wire.put("a")
    cache = kube.Cache(client, PODS)

    def broken(change: kube.Change[Pod]) -> None:
        raise RuntimeError("a bug")

    cache.on_change(broken)
    with pytest.raises(RuntimeError, match="a bug"):
        await cache.run()


async def test_reached_waits_for_the_own_write_to_arrive(wire: Any, client: kube.Client, until: Until) -> None:
    cache = kube.Cache(client, PODS)
    async with running(cache):
        await until(lambda: wire.watches == 1)
        written = await client.create(PODS, {"metadata": {"name": "a"}}, "default")
        await cache.reached(written["metadata"]["resourceVersion"])
        assert names(cache) == ["a"]
        await cache.reached("1")
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(cache.reached("99"), 0.01)


async def test_an_optional_kind_that_the_server_does_not_know_is_empty_until_it_does(
    wire: Any, client: kube.Client, until: Until
) -> None:
    await wire.put("a")
    cache = kube.Cache(client, PODS, optional=True)
    heard = record(cache)
    wire.faults = [(404, {}), (404, {})]
    async with running(cache):
        assert names(cache) == []
        await until(lambda: wire.watches == 1)
        assert names(cache) == ["a"]
        wire.faults = [(404, {}), (404, {})]  # its definition is deleted, and comes back
        await wire.drop_watches()
        await until(lambda: wire.watches == 2)
        assert heard == [("added", "a"), ("deleted", "a"), ("added", "a")]


async def test_nothing_is_concluded_from_any_other_kind_that_the_server_does_not_know(
    wire: Any, client: kube.Client, until: Until
) -> None:
    await wire.put("a")
    cache = kube.Cache(client, PODS)
    heard = record(cache)
    wire.faults = [(404, {})]
    async with running(cache):
        assert names(cache) == ["a"]
        await until(lambda: wire.watches == 1)
        wire.faults = [(404, {})]
        await wire.drop_watches()
        await until(lambda: wire.watches == 2)
        assert heard == [("added", "a")]
