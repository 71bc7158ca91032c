"""Work queues hand a key to one worker at a time; controllers retry failures and say so."""

from __future__ import annotations

import asyncio
import logging

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from capstan import kube

pytestmark = pytest.mark.anyio


async def test_a_key_that_waits_is_not_added_twice() -> None:
    queue: kube.WorkQueue[str] = kube.WorkQueue()
    queue.add("a")
    queue.add("b")
    queue.add("a")
    assert [await queue.get(), await queue.get()] == ["a", "b"]
    assert len(queue) == 0


async def test_a_key_added_while_worked_on_comes_again_after_done() -> None:
    queue: kube.WorkQueue[str] = kube.WorkQueue()
    queue.add("a")
    key = await queue.get()
    queue.add("a")
    with pytest.raises(TimeoutError):
        await asyncio.wait_for(queue.get(), 0.01)
    queue.done(key)
    assert await queue.get() == "a"
    queue.done("a")
    assert queue.idle


async def test_pauses_double_until_forgotten() -> None:
    queue: kube.WorkQueue[str] = kube.WorkQueue(first_pause=1, longest_pause=5)
    assert [queue.retry("a") for _ in range(5)] == [1, 2, 4, 5, 5]
    queue.forget("a")
    assert queue.retry("a") == 1
    assert not queue.idle
    queue.close()


async def test_of_several_delays_the_earliest_counts() -> None:
    queue: kube.WorkQueue[str] = kube.WorkQueue()
    queue.add_after("a", 60)
    queue.add_after("a", 0.001)
    queue.add_after("a", 60)
    assert await asyncio.wait_for(queue.get(), 5) == "a"
    queue.done("a")
    assert queue.idle


class Flaky(kube.Controller[str]):
    """Fails as often as told, and checks that nobody else has the key."""

    def __init__(self, failures: dict[str, int]) -> None:
        super().__init__()
        self.left = dict(failures)
        self.calls: list[str] = []
        self.inside: set[str] = set()
        self.most = 0

    async def reconcile(self, key: str) -> float | None:
        assert key not in self.inside
        self.inside.add(key)
        self.most = max(self.most, len(self.inside))
        await asyncio.sleep(0)
        self.inside.discard(key)
        self.calls.append(key)
        if self.left.get(key, 0) > 0:
            self.left[key] -= 1
            raise ValueError(f"{key} is not ready")
        return None


async def settle(controller: kube.Controller[str]) -> None:
    task = asyncio.create_task(controller.run())
    async with asyncio.timeout(10):
        while True:
            if controller.queue.idle:
                break
            await asyncio.sleep(0.001)
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)


async def test_failures_are_logged_with_the_key_counted_and_retried(caplog: pytest.LogCaptureFixture) -> None:
    controller = Flaky({"b": 2})
    with caplog.at_level(logging.WARNING):
        for key in "abc":
            controller.queue.add(key)
        await settle(controller)
    assert sorted(controller.calls) == ["a", "b", "b", "b", "c"]
    assert controller.failures == 2
    assert [record.getMessage().split(";")[0] for record in caplog.records] == ["Flaky b: b is not ready"] * 2


async def test_at_most_workers_keys_are_in_work() -> None:
    controller = Flaky({})
    for i in range(50):
        controller.queue.add(str(i))
    await settle(controller)
    assert len(controller.calls) == 50 and controller.most <= controller.WORKERS


async def test_reconcile_may_ask_to_be_called_again() -> None:
    class Twice(Flaky):
        async def reconcile(self, key: str) -> float | None:
            await super().reconcile(key)
            return 0.001 if len(self.calls) < 2 else None

    controller = Twice({})
    controller.queue.add("a")
    await settle(controller)
    assert controller.calls == ["a", "a"]


@settings(deadline=None, max_examples=50)
@given(st.lists(st.tuples(st.sampled_from(["add", "get", "done"]), st.sampled_from("abc")), max_size=60))
def test_every_added_key_is_handed_out_and_never_to_two(steps: list[tuple[str, str]]) -> None:
    async def play() -> None:
        queue: kube.WorkQueue[str] = kube.WorkQueue()
        owed: set[str] = set()
        held: set[str] = set()
        for step, key in steps:
            if step == "add":
                queue.add(key)
                owed.add(key)
            elif step == "get" and owed - held:
                got = await asyncio.wait_for(queue.get(), 1)
                assert got in owed and got not in held
                owed.discard(got)
                held.add(got)
            elif step == "done" and key in held:
                held.discard(key)
                queue.done(key)
        for key in held:
            queue.done(key)
        while owed:
            owed.remove(await asyncio.wait_for(queue.get(), 1))

    asyncio.run(play())
