"""What users are told on PodGroups and pods, in the words of KAI Scheduler."""

import asyncio
import logging
import time

import pytest

from capstan import kube
from capstan.api import resources
from capstan.controllers.scheduler import Scheduler
from capstan.controllers.wall_clock import WallClock

pytestmark = pytest.mark.anyio


@pytest.fixture
async def scheduler(house):
    made = Scheduler(await house.grant("scheduler", Scheduler.RULES))
    house.start(made)
    return made


async def test_a_gang_over_its_quota_is_told_so_in_kais_words(house, scheduler):
    free = {"quota": -1, "limit": -1}
    resources_ = {"gpu": {"quota": 1, "limit": 1}, "cpu": free, "memory": free}
    await house.client.create(resources.QUEUES, {"metadata": {"name": "small"}, "spec": {"resources": resources_}})
    await house.node("n1", gpus=4)
    await house.lone("p", gpus=2, queue="small")

    async def verdict():
        group = await house.client.get(resources.POD_GROUPS, "pg-p", "default")
        return next(iter(group.status.scheduling_conditions), None)

    told = await house.until(verdict, "the PodGroup says why")
    assert (told.type, told.reason) == ("UnschedulableOnNodePool", "Unschedulable")
    (reason,) = told.reasons
    assert reason.reason == "OverLimit"
    details = reason.details["queueDetails"]
    assert details["name"] == "small"
    assert details["podGroupRequestedResources"]["nvidia.com/gpu"] == "2"
    assert details["queueResourceLimits"] == {"nvidia.com/gpu": "1"}
    assert details["queueAllocatedResources"]["nvidia.com/gpu"] == "0"

    async def events():
        found = (await house.client.list(resources.EVENTS, "default")).items
        return {(e.involved_object.kind, e.type, e.reason) for e in found} >= {
            ("PodGroup", "Normal", "Unschedulable"),
            ("Pod", "Warning", "FailedScheduling"),
        }

    await house.until(events, "Events say it on the PodGroup and on the pod")


async def test_a_podgroup_that_asks_for_it_keeps_its_pods_unmarked(house, scheduler):
    await house.group("gang", 1, markUnschedulable=False)
    await house.pod("p", gpus=1, group="gang")

    async def told():
        group = await house.client.get(resources.POD_GROUPS, "gang", "default")
        return group.status.scheduling_conditions

    await house.until(told, "the PodGroup says why")
    await asyncio.sleep(0.1)
    pod = await house.client.get(resources.PODS, "p", "default")
    assert not any(c.type == "PodScheduled" and c.reason == "Unschedulable" for c in pod.status.conditions)


async def test_a_podgroup_says_what_its_pods_hold_and_ask_for(house, scheduler, monkeypatch):
    monkeypatch.setattr("capstan.controllers.podgroup_status.EVERY_SECONDS", 0.05)
    await house.node("n1", gpus=1)
    await house.group("gang", 1, priorityClassName="build")
    stale = {"status": {"resourcesStatus": {"allocated": {"NVIDIA-L4": "3"}}}}
    await house.client.patch(resources.POD_GROUPS, "gang", "default", patch=stale, subresource="status")
    for name in "ab":
        await house.pod(name, gpus=1, group="gang")

    async def status():
        group = await house.client.get(resources.POD_GROUPS, "gang", "default")
        seen = group.status.resources_status or {}
        return seen if seen.get("allocated", {}).get("nvidia.com/gpu") == "1" else None

    seen = await house.until(status, "one GPU is allocated")
    assert seen["allocated"].keys() == {"cpu", "memory", "nvidia.com/gpu"}
    assert seen["allocatedNonPreemptible"]["nvidia.com/gpu"] == "1"
    assert seen["requested"]["nvidia.com/gpu"] == "2"
    await house.client.delete(resources.PODS, "b", "default")

    async def less():
        return (await status() or {}).get("requested", {}).get("nvidia.com/gpu") == "1"

    await house.until(less, "the other one is no longer asked for")


async def test_what_an_earlier_scheduler_told_is_taken_back_when_it_holds_no_longer(house):
    await house.node("n1", gpus=1)
    for name in ("starts", "waits"):
        await house.group(name, 1)
        await house.pod(name, gpus=1 if name == "starts" else 2, group=name)
        said = {
            "type": "UnschedulableOnNodePool",
            "nodePool": "default",
            "reason": "Unschedulable",
            "message": "no room",
            "reasons": [{"reason": "PodSchedulingErrors", "message": "no room"}],
            "transitionID": "3",
            "status": "True",
        }
        status = {"status": {"schedulingConditions": [said]}}
        await house.client.patch(resources.POD_GROUPS, name, "default", patch=status, subresource="status")
    house.start(Scheduler(await house.grant("scheduler", Scheduler.RULES)))

    async def told():
        groups = (await house.client.list(resources.POD_GROUPS, "default")).items
        return {g.metadata.name: [c.transition_id for c in g.status.scheduling_conditions] for g in groups}

    async def corrected():
        return await told() == {"starts": [], "waits": ["4"]}

    await house.until(corrected, "one waits no longer, the other is told anew")


def foreign(pool: str) -> dict:
    said = {"reason": "OverLimit", "message": f"of {pool}", "details": {"queueDetails": {"name": "q"}}}
    return {"type": "UnschedulableOnNodePool", "nodePool": pool, "reasons": [said], "status": "True"}


async def test_what_schedulers_of_other_node_pools_say_stays(house, scheduler):
    await house.node("n1", gpus=1)
    await house.group("gang", 1)
    status = {"status": {"schedulingConditions": [foreign("red"), foreign("blue")]}}
    await house.client.patch(resources.POD_GROUPS, "gang", "default", patch=status, subresource="status")
    await house.pod("p", gpus=2, group="gang")

    async def pools():
        group = await house.client.get(resources.POD_GROUPS, "gang", "default")
        return {c.node_pool: c.reasons[0] for c in group.status.scheduling_conditions}

    async def told():
        return len(await pools()) == 3

    await house.until(told, "ours is added")
    assert (await pools())["red"].details == {"queueDetails": {"name": "q"}}
    await house.client.delete(resources.PODS, "p", "default")
    await house.pod("small", gpus=1, group="gang")

    async def taken_back():
        return (await pools()).keys() == {"red", "blue"}

    await house.until(taken_back, "only ours is taken back")


class Shut:
    """A transport that lets no writes to PodGroups through while it is shut."""

    def __init__(self, transport, error):
        self.transport, self.error, self.shut = transport, error, True

    async def request(self, method, path, **rest):
        if self.shut and method == "PATCH" and "podgroups" in path:
            raise self.error(kube.Status(code=503, message=f"{path}: shut"))
        return await self.transport.request(method, path, **rest)

    def __getattr__(self, name):
        return getattr(self.transport, name)


@pytest.mark.parametrize(("error", "level"), [(kube.Unavailable, "WARNING"), (kube.NotLeading, "DEBUG")])
async def test_verdicts_that_cannot_be_written_are_one_line_a_cycle_and_come_later(house, caplog, error, level):
    client = await house.grant("scheduler", Scheduler.RULES)
    door = Shut(client.transport, error)
    for i in range(20):
        await house.group(f"g{i}", 1)
        await house.pod(f"p{i}", gpus=1, group=f"g{i}")
    caplog.set_level(logging.DEBUG, "capstan.controllers.verdicts")
    made = Scheduler(kube.Client(door, field_manager="scheduler"), period=0.1)
    house.start(made)

    async def failed():
        return [r for r in caplog.records if "and those of 19 others is not written" in r.getMessage()]

    lines = await house.until(failed, "the failure is reported")
    assert lines[0].levelname == level
    assert len(caplog.records) <= made.cycles
    door.shut = False

    async def told():
        groups = (await house.client.list(resources.POD_GROUPS, "default")).items
        return all(group.status.scheduling_conditions for group in groups)

    await house.until(told, "all are told once it works")


async def test_news_is_told_although_the_clock_was_set_back(house, monkeypatch):
    monkeypatch.setattr("capstan.controllers.verdicts.REPEAT_SECONDS", 0.1)
    wall = [time.time()]
    made = Scheduler(
        await house.grant("scheduler", Scheduler.RULES), wall=WallClock(lambda: wall[0], time.monotonic), period=0.05
    )
    await house.node("n1", gpus=1)
    await house.lone("p", gpus=4)
    house.start(made)

    async def says(words):
        group = await house.client.get(resources.POD_GROUPS, "pg-p", "default")
        return any(words in c.message for c in group.status.scheduling_conditions)

    await house.until(lambda: says("the largest node has 1 GPU"), "it is told")
    wall[0] -= 86_400
    await house.node("n2", gpus=2)
    await house.until(lambda: says("the largest node has 2 GPUs"), "and told what changed")
