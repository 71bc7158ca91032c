"""The grouper on the embedded API server, under its own rights."""

import pytest

from capstan import kube
from capstan.api import resources
from capstan.controllers.grouper import Grouper
from capstan.embedded.platform import install

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


@pytest.fixture
async def sweeping(house):
    client = await house.grant("grouper", Grouper.RULES)
    pods, groups = kube.Cache(client, resources.PODS), kube.Cache(client, resources.POD_GROUPS)
    house.start(pods, groups, Grouper(client, pods, groups, sweep_seconds=0.05))


async def test_an_edited_workload_changes_the_group_of_pods_that_wait(house, sweeping, monkeypatch):
    monkeypatch.setattr("capstan.controllers.grouper._OWNER_SECONDS", 0.0)
    owner = await job(house, "train", **{"kai.scheduler/batch-min-member": "2"})
    await pod_of(house, owner, "a")
    name = await house.until(lambda: group_of(house, "a"), "a is grouped")
    edited = {"metadata": {"annotations": {"kai.scheduler/batch-min-member": "3"}}}
    await house.client.patch(resources.JOBS, "train", "default", patch=edited)

    async def minimum():
        return (await house.client.get(resources.POD_GROUPS, name, "default")).spec.min_member == 3

    await house.until(minimum, "the new minimum")


async def test_a_group_that_somebody_deletes_comes_back(house, sweeping):
    await house.pod("a")
    name = await house.until(lambda: group_of(house, "a"), "a is grouped")
    first = await house.client.get(resources.POD_GROUPS, name, "default")
    await house.client.delete(resources.POD_GROUPS, name, "default")

    async def again():
        groups = (await house.client.list(resources.POD_GROUPS, "default")).items
        return any(g.metadata.name == name and g.metadata.uid != first.metadata.uid for g in groups)

    await house.until(again, "the new group")


async def test_a_group_that_its_user_has_yet_to_make_is_waited_for(house, sweeping):
    await house.pod("a", group="mine")
    await house.pod("b")
    name = await house.until(lambda: group_of(house, "b"), "b is grouped")
    assert await group_of(house, "a") == "mine"
    assert [g.metadata.name for g in (await house.client.list(resources.POD_GROUPS, "default")).items] == [name]


def definition(group, version, kind, plural):
    schema = {"type": "object", "x-kubernetes-preserve-unknown-fields": True}
    return {
        "apiVersion": "apiextensions.k8s.io/v1",
        "kind": "CustomResourceDefinition",
        "metadata": {
            "name": f"{plural}.{group}",
            "annotations": {"api-approved.kubernetes.io": "unapproved, made by a test"},
        },
        "spec": {
            "group": group,
            "scope": "Namespaced",
            "names": {"kind": kind, "plural": plural, "singular": kind.lower(), "listKind": f"{kind}List"},
            "versions": [{"name": version, "served": True, "storage": True, "schema": {"openAPIV3Schema": schema}}],
        },
    }


async def custom(house, api_version, kind, name, spec):
    """An object of a kind that the test defines."""
    group, version = api_version.split("/")
    await install(house.client, [definition(group, version, kind, f"{kind.lower()}s")])
    discovery = kube.Discovery(house.client)
    resource = await house.until(lambda: served(discovery, api_version, kind), f"{kind} is served")
    body = {"apiVersion": api_version, "kind": kind, "metadata": {"name": name, "namespace": "default"}, "spec": spec}
    return await house.client.create(resource, body, "default")


async def test_the_gang_of_a_grove_pod_is_read_from_its_pod_gang(house, grouper):
    owner = await custom(house, "grove.io/v1alpha1", "PodCliqueSet", "set", {})
    cliques = {"podgroups": [{"name": "a", "minReplicas": 2}]}
    await custom(house, "scheduler.grove.io/v1alpha1", "PodGang", "set-0", cliques)
    reference = {
        "apiVersion": "grove.io/v1alpha1",
        "kind": "PodCliqueSet",
        "name": "set",
        "uid": owner["metadata"]["uid"],
        "controller": True,
    }
    body = {
        "metadata": {
            "name": "p",
            "namespace": "default",
            "ownerReferences": [reference],
            "labels": {"grove.io/podgang": "set-0", "grove.io/podclique": "a"},
        },
        "spec": {"schedulerName": "kai-scheduler", "containers": [{"name": "m", "image": "x"}]},
    }
    await house.client.create(resources.PODS, body)
    name = await house.until(lambda: group_of(house, "p"), "p is grouped")
    group = await house.client.get(resources.POD_GROUPS, name, "default")
    assert [(sub.name, sub.min_member) for sub in group.spec.sub_groups] == [("a", 2)]
    pod = await house.client.get(resources.PODS, "p", "default")
    assert pod.metadata.labels["kai.scheduler/subgroup-name"] == "a"


async def test_a_pod_that_names_an_upstream_group_joins_it_in_whichever_version_is_served(house, grouper):
    upstream = resources.unstructured("scheduling.k8s.io", "v1alpha2", "podgroups", "PodGroup", namespaced=True)
    body = {"metadata": {"name": "gang"}, "spec": {"schedulingPolicy": {"gang": {"minCount": 4}}}}
    await house.client.create(upstream, body, "default")
    await house.pod("p", schedulingGroup={"podGroupName": "gang"})
    name = await house.until(lambda: group_of(house, "p"), "p is grouped")
    group = await house.client.get(resources.POD_GROUPS, name, "default")
    assert (group.spec.min_member, group.metadata.owner_references[0].name) == (4, "gang")


async def served(discovery, api_version, kind):
    try:
        return await discovery.resource(api_version, kind)
    except kube.UnknownKind:
        return None


async def claims(house, name):
    pod = await house.client.get(resources.PODS, name, "default")
    return [(c.status, c.message) for c in pod.status.conditions if c.type == "ClaimedByOnePodGroup"]


async def test_two_pod_groups_that_claim_a_pod_are_both_named(house, grouper):
    await house.group("mine", 1)
    await house.pod("torn", group="mine", schedulingGroup={"podGroupName": "theirs"})
    ((status, message),) = await house.until(lambda: claims(house, "torn"), "the pod says so")
    assert status == "False"
    assert message == (
        "PodGroup mine (annotation pod-group-name) and PodGroup theirs of scheduling.k8s.io (spec.schedulingGroup) "
        "both claim this pod; it counts in mine only: remove one of the two"
    )

    async def told():
        events = (await house.client.list(resources.EVENTS, "default")).items
        return any(e.reason == "ClaimedByTwoPodGroups" and e.message == message for e in events)

    await house.until(told, "an Event says so")
    assert await group_of(house, "torn") == "mine"


async def test_a_workload_of_which_one_pod_was_given_to_another_group_is_named_until_it_is_resolved(house, sweeping):
    owner = await job(house, "train")
    await pod_of(house, owner, "a")
    theirs = await house.until(lambda: group_of(house, "a"), "a is grouped")
    await house.group("mine", 1)
    await pod_of(house, owner, "b", **{"pod-group-name": "mine"})
    ((_, message),) = await house.until(lambda: claims(house, "b"), "the pod says so")
    assert f"PodGroup mine (annotation pod-group-name) and PodGroup {theirs} of its owner Job train both" in message
    assert await claims(house, "a") == []
    patch = {"metadata": {"annotations": {"pod-group-name": theirs}}}
    await house.client.patch(resources.PODS, "b", "default", patch=patch)

    async def resolved():
        return await claims(house, "b") == []

    await house.until(resolved, "it is taken back")
