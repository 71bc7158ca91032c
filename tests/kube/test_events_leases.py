"""Events aggregate repeats; a lease has one holder at a time."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from capstan import kube
from capstan.api import resources
from capstan.api.base import ObjectMeta
from capstan.api.core import Pod

pytestmark = pytest.mark.anyio

POD = Pod(metadata=ObjectMeta(name="a", namespace="default", uid="u1"))


def events(wire: Any) -> list[dict[str, Any]]:
    return [obj for (collection, _, _), obj in wire.objects.items() if collection == "events"]


async def test_repeats_raise_the_count_of_one_event(wire: Any, client: kube.Client) -> None:
    recorder = kube.EventRecorder(client, "kubelet", now=lambda: 0.0)
    for _ in range(3):
        recorder.emit(POD, "Normal", "Pulled", "the image is there", host="n1")
    await recorder.drain()
    recorder.emit(POD, "Normal", "Pulled", "the image is there", host="n1")
    recorder.emit(POD, "Warning", "Failed", "it is not")
    await recorder.drain()
    found = {event["reason"]: event for event in events(wire)}
    assert {reason: event["count"] for reason, event in found.items()} == {"Pulled": 4, "Failed": 1}
    pulled = found["Pulled"]
    assert pulled["involvedObject"] == {
        "apiVersion": "v1",
        "kind": "Pod",
        "namespace": "default",
        "name": "a",
        "uid": "u1",
    }
    assert pulled["source"] == {"component": "kubelet", "host": "n1"}
    assert pulled["firstTimestamp"] == "1970-01-01T00:00:00Z"


async def test_an_expired_event_is_written_anew(wire: Any, client: kube.Client) -> None:
    recorder = kube.EventRecorder(client, "kubelet")
    recorder.emit(POD, "Normal", "Pulled", "x")
    await recorder.drain()
    await wire.remove(events(wire)[0]["metadata"]["name"], collection="events")
    recorder.emit(POD, "Normal", "Pulled", "x")
    await recorder.drain()
    assert [event["count"] for event in events(wire)] == [1]


async def test_a_refused_event_is_counted_and_hurts_nobody(wire: Any, client: kube.Client) -> None:
    recorder = kube.EventRecorder(client, "kubelet")
    wire.faults = [(403, {})]
    recorder.emit(POD, "Normal", "Pulled", "x")
    recorder.emit(POD, "Normal", "Started", "y")
    await recorder.drain()
    assert recorder.dropped == 1 and [event["reason"] for event in events(wire)] == ["Started"]


async def test_events_wait_for_calm_keep_their_times_and_the_oldest_give_way(wire: Any, client: kube.Client) -> None:
    calm, clock = asyncio.Event(), iter(range(100))

    async def until_calm() -> None:
        await calm.wait()

    recorder = kube.EventRecorder(client, "scheduler", now=lambda: next(clock), backlog=2, calm=until_calm)
    for reason in ("First", "Second", "Third", "Third"):
        recorder.emit(POD, "Normal", reason, "x")
    await asyncio.sleep(0.01)
    assert not events(wire)
    calm.set()
    await recorder.drain()
    assert recorder.dropped == 1
    assert [(e["reason"], e["count"], e["firstTimestamp"][-3:], e["lastTimestamp"][-3:]) for e in events(wire)] == [
        ("Second", 1, "01Z", "01Z"),
        ("Third", 2, "02Z", "03Z"),
    ]


async def test_a_closed_recorder_drops_what_waits(wire: Any, client: kube.Client) -> None:
    async def never() -> None:
        await asyncio.Event().wait()

    recorder = kube.EventRecorder(client, "scheduler", calm=never)
    recorder.emit(POD, "Normal", "Scheduled", "x")
    await asyncio.sleep(0)
    recorder.close()
    await recorder.drain()
    assert recorder.dropped == 1 and not events(wire)


async def test_the_last_events_are_written_at_once_also_by_a_task_that_is_cancelled(
    wire: Any, client: kube.Client
) -> None:
    async def never() -> None:
        await asyncio.Event().wait()

    slow = kube.EventRecorder(client, "kubelet", rate=0.001)
    waiting = kube.EventRecorder(client, "kubelet", calm=never)

    async def work() -> None:
        try:
            await never()
        finally:
            await slow.finish()
            await waiting.finish()

    task = asyncio.create_task(work())
    for reason in ("Pulled", "Created", "Started"):
        slow.emit(POD, "Normal", reason, "x")
    waiting.emit(POD, "Normal", "Killing", "x")
    await asyncio.sleep(0.01)
    await stop(task)
    assert [event["reason"] for event in events(wire)] == ["Pulled", "Created", "Started", "Killing"]
    assert slow.dropped == waiting.dropped == 0


async def test_what_cannot_be_written_in_time_at_the_end_is_dropped(wire: Any, client: kube.Client) -> None:
    recorder = kube.EventRecorder(client, "kubelet")
    recorder.emit(POD, "Normal", "Pulled", "x")
    recorder.emit(POD, "Normal", "Created", "x")
    await recorder.finish(seconds=0)
    await asyncio.sleep(0.01)
    assert len(events(wire)) < 2 and recorder.dropped > 0


def elector(client: kube.Client, identity: str, **options: Any) -> kube.LeaderElector:
    return kube.LeaderElector(client, "scheduler", "default", identity, **({"retry_seconds": 0.01} | options))


async def stop(*tasks: asyncio.Task[None]) -> None:
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)


async def test_one_leads_and_the_next_takes_over_at_once_when_it_leaves(
    wire: Any, client: kube.Client, until: Any
) -> None:
    leaders: list[str] = []
    both = {name: elector(client, name) for name in ("one", "two")}

    async def work(name: str) -> None:
        leaders.append(name)
        await asyncio.Event().wait()

    first = asyncio.create_task(both["one"].run(lambda: work("one")))
    await until(lambda: leaders == ["one"])
    second = asyncio.create_task(both["two"].run(lambda: work("two")))
    await asyncio.sleep(0.1)
    assert leaders == ["one"] and not both["two"].is_leader
    await stop(first)
    await until(lambda: leaders == ["one", "two"])  # the released lease counts for one second
    lease = wire.objects["leases", "default", "scheduler"]["spec"]
    assert lease["holderIdentity"] == "two" and lease["leaseTransitions"] == 1
    await stop(second)


async def test_a_leader_that_cannot_renew_stops_working(wire: Any, client: kube.Client, until: Any) -> None:
    stopped = asyncio.Event()
    leader = elector(client, "one", renew_seconds=0.05)

    async def work() -> None:
        try:
            await asyncio.Event().wait()
        finally:
            stopped.set()

    task = asyncio.create_task(leader.run(work))
    await until(lambda: leader.is_leader)
    wire.faults = [(403, {})] * 1000
    await asyncio.wait_for(stopped.wait(), 10)
    wire.faults = []
    await stop(task)


async def test_a_leader_that_is_replaced_stops_at_once(wire: Any, client: kube.Client, until: Any) -> None:
    leader = elector(client, "one", renew_seconds=1000)
    task = asyncio.create_task(leader.run(asyncio.Event().wait))
    await until(lambda: leader.is_leader)
    lease = wire.objects["leases", "default", "scheduler"]
    await wire.put("scheduler", collection="leases", spec=lease["spec"] | {"holderIdentity": "two"})
    await until(lambda: not leader.is_leader)
    await stop(task)


async def test_writes_pass_the_fence_only_while_the_lease_is_surely_held(
    wire: Any, client: kube.Client, until: Any
) -> None:
    leader = elector(client, "one", renew_seconds=0.2, retry_seconds=1000)
    fenced = leader.fenced(client)
    lease = {"metadata": {"name": "other", "namespace": "default"}}
    with pytest.raises(kube.Unavailable, match="does not lead"):
        await fenced.create(resources.LEASES, lease)
    task = asyncio.create_task(leader.run(asyncio.Event().wait))
    await until(lambda: leader.is_leader)
    await fenced.create(resources.LEASES, lease)
    await asyncio.sleep(
        0.3
    )  # it sleeps past its time, as a stopped process does, and still takes itself for the leader
    assert leader.is_leader
    with pytest.raises(kube.Unavailable, match="does not lead"):
        await fenced.delete(resources.LEASES, "other", "default")
    assert (await fenced.get(resources.LEASES, "other", "default")).metadata.name == "other"
    await stop(task)


async def test_work_that_is_told_to_stop_may_write_its_last_words(wire: Any, client: kube.Client, until: Any) -> None:
    leader = elector(client, "one")
    fenced = leader.fenced(client)

    async def work() -> None:
        try:
            await asyncio.Event().wait()
        finally:
            await fenced.create(resources.LEASES, {"metadata": {"name": "last-words", "namespace": "default"}})

    task = asyncio.create_task(leader.run(work))
    await until(lambda: leader.is_leader)
    await asyncio.sleep(0.05)
    await stop(task)
    assert ("leases", "default", "last-words") in wire.objects
    assert wire.objects["leases", "default", "scheduler"]["spec"].get("holderIdentity") is None
    with pytest.raises(kube.Unavailable, match="does not lead"):
        await fenced.delete(resources.LEASES, "last-words", "default")


async def test_the_result_of_the_work_ends_the_campaign(wire: Any, client: kube.Client) -> None:
    async def work() -> None:
        raise ValueError("done for")

    with pytest.raises(ValueError, match="done for"):
        await elector(client, "one").run(work)
    assert wire.objects["leases", "default", "scheduler"]["spec"].get("holderIdentity") is None
