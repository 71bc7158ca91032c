"""The grouper on the embedded API server, under its own rights."""

import pytest

from capstan import kube
from capstan.api import resources
from capstan.controllers.grouper import Grouper

pytestmark = pytest.mark.anyio


@pytest.fixture
async def grouper(house):
    client = await house.grant("grouper", Grouper.RULES)
    pods, groups = kube.Cache(client, resources.PODS), kube.Cache(client, resources.POD_GROUPS)
    made = Grouper(client, pods, groups)
    house.start(pods, groups, made)
    return made


async def job(house, name, **annotations):
    body = {
        "metadata": {"name": name, "namespace": "default", "annotations": annotations},
        "spec": {"template": {"spec": {"restartPolicy": "Never", "containers": [{"name": "m", "image": "x"}]}}},
    }
    return await house.client.create(resources.JOBS, body)


async def pod_of(house, owner, name, **annotations):
    reference = {
        "apiVersion": "batch/v1",
        "kind": "Job",
        "name": owner["metadata"]["name"],
        "uid": owner["metadata"]["uid"],
        "controller": True,
    }
    body = {
        "metadata": {
            "name": name,
            "namespace": "default",
            "ownerReferences": [reference],
            "annotations": annotations,
        },
        "spec": {"schedulerName": "kai-scheduler", "containers": [{"name": "m", "image": "x"}]},
    }
    await house.client.create(resources.PODS, body)


async def group_of(house, name):
    pod = await house.client.get(resources.PODS, name, "default")
    return pod.metadata.annotations.get("pod-group-name")


async def test_the_pods_of_a_job_join_one_group(house, grouper):
    owner = await job(house, "train", **{"kai.scheduler/batch-min-member": "2"})
    for name in ("a", "b"):
        await pod_of(house, owner, name)
    names = {await house.until(lambda n=n: group_of(house, n), f"{n} is grouped") for n in ("a", "b")}
    (name,) = names
    group = await house.client.get(resources.POD_GROUPS, name, "default")
    assert group.spec.min_member == 2
    assert group.metadata.owner_references[0].uid == owner["metadata"]["uid"]


async def test_a_pod_of_another_scheduler_is_left_alone(house, grouper):
    await house.client.create(
        resources.PODS,
        {
            "metadata": {"name": "other", "namespace": "default"},
            "spec": {"containers": [{"name": "m", "image": "x"}]},
        },
    )
    await house.pod("ours")
    await house.until(lambda: group_of(house, "ours"), "ours is grouped")
    assert await group_of(house, "other") is None


async def test_who_opts_out_keeps_the_group_of_their_own(house, grouper):
    owner = await job(house, "train", **{"kai.scheduler/skip-podgrouper": "true"})
    await house.group("mine", 1)
    await pod_of(house, owner, "a", **{"pod-group-name": "mine"})
    await house.pod("later")
    await house.until(lambda: group_of(house, "later"), "a later pod is grouped")
    assert await group_of(house, "a") == "mine"
    groups = (await house.client.list(resources.POD_GROUPS, "default")).items
    assert len(groups) == 2


async def test_a_wrong_annotation_is_an_event_that_names_it(house, grouper):
    owner = await job(house, "train", **{"kai.scheduler/batch-min-member": "two"})
    await pod_of(house, owner, "a")

    async def told():
        events = (await house.client.list(resources.EVENTS, "default")).items
        return [event for event in events if event.reason == "InvalidWorkload"]

    (event, *_) = await house.until(told, "the event")
    assert "Job default/train: metadata.annotations[kai.scheduler/batch-min-member]" in event.message
