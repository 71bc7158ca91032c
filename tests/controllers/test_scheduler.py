"""The scheduler's writes: in the right order, safe to repeat, under its own rights."""

import asyncio
import json

import pytest

from capstan import kube
from capstan.api import clock, resources
from capstan.controllers.scheduler import OBSERVED, Scheduler
from capstan.controllers.wall_clock import WallClock
from capstan.scheduling import snapshot
from capstan.scheduling.facts import NUMA_ANNOTATION

pytestmark = pytest.mark.anyio


@pytest.fixture
async def scheduler(house):
    made = Scheduler(await house.grant("scheduler", Scheduler.RULES))
    house.start(made)
    return made


async def claims(house):
    return (await house.client.list(resources.RESOURCE_CLAIMS, "default")).items


async def test_an_extended_resource_becomes_a_claim_that_is_allocated_and_reserved_before_the_pod_is_bound(
    house, scheduler
):
    await house.node("n1", gpus=2)
    await house.lone("p", gpus=2)
    assert await house.until(lambda: house.bound("p"), "p is bound") == "n1"
    (claim,) = await claims(house)
    pod = await house.client.get(resources.PODS, "p", "default")
    assert {r.device for r in claim.status.allocation.devices.results} == {"gpu-0", "gpu-1"}
    assert [user.uid for user in claim.status.reserved_for] == [pod.metadata.uid]
    assert claim.metadata.finalizers == ["resource.kubernetes.io/delete-protection"]
    assert pod.status.extended_resource_claim_status.resource_claim_name == claim.metadata.name


async def test_a_bound_pod_has_an_event_that_says_where(house, scheduler):
    await house.node("n1")
    await house.lone("p")

    async def scheduled():
        events = (await house.client.list(resources.EVENTS, "default")).items
        return [event for event in events if event.reason == "Scheduled"]

    (event,) = await house.until(scheduled, "the Event is written")
    assert (event.type, event.message) == ("Normal", "Successfully assigned default/p to n1")
    pod = await house.client.get(resources.PODS, "p", "default")
    assert event.involved_object.uid == pod.metadata.uid and await house.bound("p") == "n1"


async def test_a_bound_pod_says_which_numa_zones_it_was_given_and_they_stay_taken(house, scheduler):
    await house.node("n1")
    zones = {"policy": "single-numa-node", "zones": {name: {"cpu": "4", "memory": "8Gi"} for name in "ab"}}
    note = {"metadata": {"annotations": {NUMA_ANNOTATION: json.dumps(zones)}}}
    await house.client.patch(resources.NODES, "n1", patch=note)
    exact = {"cpu": "3", "memory": "1Gi"}
    containers = [{"name": "main", "image": "x", "resources": {"requests": exact, "limits": exact}}]
    for name in ("first", "second", "third"):
        await house.group(f"pg-{name}", 1)
        await house.pod(name, group=f"pg-{name}", containers=containers)
        if name != "third":
            await house.until(lambda name=name: house.bound(name), f"the {name} is bound")
    pods = [await house.client.get(resources.PODS, name, "default") for name in ("first", "second")]
    held = {"cpu": "3000m", "memory": "1073741824"}
    assert [json.loads(pod.metadata.annotations[NUMA_ANNOTATION]) for pod in pods] == [{"a": held}, {"b": held}]

    async def told():
        group = await house.client.get(resources.POD_GROUPS, "pg-third", "default")
        return group.status.scheduling_conditions

    await house.until(told, "the third is told that no zone has room for it")
    assert not await house.bound("third")


async def test_what_an_earlier_attempt_left_behind_is_used_again(house):
    rules = await house.grant("scheduler", Scheduler.RULES)
    await house.node("n1", gpus=1)
    interrupted = Breaking(rules.transport, "POST", "/binding", times=10**6)
    first = house.start(Scheduler(kube.Client(interrupted)))
    await house.lone("p", gpus=1)
    await house.until(lambda: claims(house), "the claim is made")
    await house.until(interrupted.broke, "binding fails")
    for task in first:
        task.cancel()
    assert await house.bound("p") == ""
    house.start(Scheduler(rules))
    assert await house.until(lambda: house.bound("p"), "another scheduler finishes the work") == "n1"
    assert len(await claims(house)) == 1


async def test_a_binding_that_fails_is_decided_anew(house):
    client = await house.grant("scheduler", Scheduler.RULES)
    breaking = Breaking(client.transport, "POST", "/binding", times=2)
    house.start(Scheduler(kube.Client(breaking)))
    await house.node("n1")
    await house.lone("p")
    await house.until(lambda: house.bound("p"), "p is bound in the third attempt")
    assert await breaking.broke()


async def test_a_server_in_trouble_is_not_hammered(house):
    client = await house.grant("scheduler", Scheduler.RULES)
    breaking = Breaking(client.transport, "POST", "/binding", times=10**6)
    house.start(Scheduler(kube.Client(breaking)))
    await house.node("n1")
    await house.lone("p")
    await house.until(breaking.broke, "binding fails")
    await asyncio.sleep(0.3)
    assert breaking.broken == 1


async def test_a_gang_is_finished_by_the_next_scheduler_when_the_first_dies_between_two_bindings(house):
    client = await house.grant("scheduler", Scheduler.RULES)
    await house.node("n1", gpus=4)
    await house.group("gang", 2)
    breaking = Breaking(client.transport, "POST", "/pods/b/binding", times=10**6)
    first = house.start(Scheduler(kube.Client(breaking)))
    for name in "ab":
        await house.pod(name, gpus=2, group="gang")
    await house.until(lambda: house.bound("a"), "a is bound")
    await house.until(breaking.broke, "b is not")
    for task in first:
        task.cancel()
    house.start(Scheduler(client))
    await house.until(lambda: house.bound("b"), "the gang is complete")


async def test_a_waiting_gang_is_told_why_and_later_no_more(house, scheduler):
    await house.node("n1", gpus=1)
    await house.group("gang", 2)
    for name in "ab":
        await house.pod(name, gpus=1, group="gang")

    async def verdict():
        group = await house.client.get(resources.POD_GROUPS, "gang", "default")
        return next(iter(group.status.scheduling_conditions), None)

    told = await house.until(verdict, "the PodGroup says why")
    assert (told.type, told.status, told.node_pool) == ("UnschedulableOnNodePool", "True", "default")
    assert "2" in told.message
    pod = await house.client.get(resources.PODS, "a", "default")
    scheduled = next(c for c in pod.status.conditions if c.type == "PodScheduled")
    assert (scheduled.status, scheduled.reason) == ("False", "Unschedulable")
    assert await house.bound("a") == ""
    await house.node("n2", gpus=1)
    await house.until(lambda: house.bound("a"), "the gang starts")

    async def cleared():
        return await verdict() is None

    await house.until(cleared, "the verdict is taken back")


async def test_a_disruption_budget_keeps_its_pod_and_is_named_until_it_allows_the_eviction(house):
    client = await house.grant("scheduler", Scheduler.RULES)
    watched = Breaking(client.transport, "POST", "/eviction", times=0)
    scheduler = Scheduler(kube.Client(watched))
    house.start(scheduler)
    await house.node("n1", gpus=1)
    await house.lone("victim", gpus=1)
    await house.until(lambda: house.bound("victim"), "the first pod is bound")
    ready = {"phase": "Running", "conditions": [{"type": "Ready", "status": "True"}]}
    await house.client.patch(resources.PODS, "victim", "default", patch={"status": ready}, subresource="status")
    await house.client.create(
        resources.POD_DISRUPTION_BUDGETS,
        {
            "metadata": {"name": "keep", "namespace": "default"},
            "spec": {"minAvailable": 1, "selector": {"matchLabels": {"app": "victim"}}},
        },
    )
    seen = scheduler.cycles

    async def went_by():
        return scheduler.cycles > seen

    await house.until(went_by, "the scheduler has seen the budget")
    await house.lone("winner", gpus=1, priorityClassName="build")

    async def named():
        group = await house.client.get(resources.POD_GROUPS, "pg-winner", "default")
        told = group.status.scheduling_conditions
        return any("kept by the disruption budget default/keep" in condition.message for condition in told)

    await house.until(named, "the verdict names the budget")
    assert watched.seen == 0, "nobody asked for an eviction that would be refused"
    assert (await house.client.get(resources.PODS, "victim", "default")).metadata.deletion_timestamp is None
    assert await house.bound("winner") == ""
    counted = {"disruptionsAllowed": 1, "currentHealthy": 2, "desiredHealthy": 1, "observedGeneration": 1}
    await house.client.patch(
        resources.POD_DISRUPTION_BUDGETS, "keep", "default", patch={"status": counted}, subresource="status"
    )

    async def terminating():
        return (await house.client.get(resources.PODS, "victim", "default")).metadata.deletion_timestamp

    await house.until(terminating, "the victim is evicted")
    assert await house.bound("winner") == "", "the grace period of the victim has not passed"
    await house.client.delete(resources.PODS, "victim", "default", grace_period=0)
    for claim in await claims(house):
        await house.client.patch(
            resources.RESOURCE_CLAIMS, claim.metadata.name, "default", patch={"status": None}, subresource="status"
        )
    assert await house.until(lambda: house.bound("winner"), "the winner gets the room when it is free") == "n1"


async def test_a_pool_that_contradicts_itself_is_reported_and_ignored(house, scheduler):
    from tests.controllers.conftest import slice_of

    await house.node("n1", gpus=1)
    twice = slice_of("n1", 1)
    twice["metadata"]["name"] = "other"
    twice["spec"]["pool"] = {"name": "broken", "generation": 1, "resourceSliceCount": 2}
    again = slice_of("n1", 1) | {"metadata": {"name": "again"}}
    again["spec"]["pool"] = twice["spec"]["pool"]
    for body in (twice, again):
        await house.client.create(resources.RESOURCE_SLICES, body)

    async def reported():
        events = (await house.client.list(resources.EVENTS)).items
        return [event for event in events if event.reason == "InvalidPool"]

    (event, *_) = await house.until(reported, "the pool is reported")
    assert "broken" in event.message
    await house.lone("p", gpus=1)
    await house.until(lambda: house.bound("p"), "the good pool still serves")


async def test_a_started_gang_is_stamped_for_the_next_scheduler(house, scheduler, monkeypatch):
    monkeypatch.setattr("capstan.controllers.scheduler.STAMP_SECONDS", 0.05)
    await house.node("n1")
    await house.lone("p")
    await house.until(lambda: house.bound("p"), "p is bound")

    async def stamped():
        group = await house.client.get(resources.POD_GROUPS, "pg-p", "default")
        return group.metadata.annotations.get("kai.scheduler/last-start-timestamp")

    await house.until(stamped, "the PodGroup says when it started")


async def test_a_gang_that_runs_too_long_is_evicted_and_stamped_but_not_because_the_clock_was_set(house, monkeypatch):
    monkeypatch.setattr("capstan.controllers.scheduler.STAMP_SECONDS", 0.05)
    wall, steady = [1_750_000_000.0], [0.0]
    client = await house.grant("scheduler", Scheduler.RULES)
    scheduler = Scheduler(client, wall=WallClock(lambda: wall[0], lambda: steady[0]), period=0.05)
    house.start(scheduler)
    notes = {"kai.scheduler/max-runtime": "1h", "kai.scheduler/requeue-delay": "10m"}
    await house.client.patch(resources.QUEUES, "default-queue", patch={"metadata": {"annotations": notes}})
    await house.node("n1")
    await house.lone("p")
    await house.until(lambda: house.bound("p"), "p is bound")
    running = {"status": {"phase": "Running"}}
    await house.client.patch(resources.PODS, "p", "default", patch=running, subresource="status")

    async def terminating():
        return (await house.client.get(resources.PODS, "p", "default")).metadata.deletion_timestamp

    async def go_by():
        seen = scheduler.cycles

        async def went_by():
            return scheduler.cycles > seen + 3

        await house.until(went_by, "some cycles went by")

    await go_by()
    wall[0] += 86_400
    await go_by()
    assert await terminating() is None
    wall[0] += 3601
    steady[0] += 3601
    await house.until(terminating, "its max runtime is over")

    async def stamped():
        group = await house.client.get(resources.POD_GROUPS, "pg-p", "default")
        return group.metadata.annotations.get("kai.scheduler/requeue-not-before")

    assert await house.until(stamped, "the PodGroup says until when it waits") == clock.render(wall[0] + 600)


class Breaking:
    """A transport that answers 500 to some requests, a number of times."""

    def __init__(self, transport, method, suffix, *, times):
        self._transport = transport
        self._method, self._suffix, self._times = method, suffix, times
        self.broken = self.seen = 0

    async def broke(self):
        return self.broken > 0

    async def request(self, method, path, **options):
        concerned = method == self._method and path.endswith(self._suffix)
        self.seen += concerned
        if concerned and self.broken < self._times:
            self.broken += 1
            return kube.Response(500, b'{"kind":"Status","code":500,"message":"broken on purpose"}', {})
        return await self._transport.request(method, path, **options)

    def stream(self, path, **options):
        return self._transport.stream(path, **options)

    async def close(self):
        await self._transport.close()


async def test_a_snapshot_holds_objects_of_every_kind_that_is_observed(house, scheduler):
    assert {resource.struct for resource in OBSERVED} == set(snapshot.KINDS)


STORAGE = {
    "apiVersion": "storage.k8s.io/v1",
    "kind": "StorageClass",
    "metadata": {"name": "fast"},
    "provisioner": "csi.example",
    "volumeBindingMode": "WaitForFirstConsumer",
}
CLAIM = {
    "apiVersion": "v1",
    "kind": "PersistentVolumeClaim",
    "metadata": {"name": "data", "namespace": "default"},
    "spec": {
        "storageClassName": "fast",
        "accessModes": ["ReadWriteOnce"],
        "resources": {"requests": {"storage": "1Gi"}},
    },
}
VOLUME = {
    "apiVersion": "v1",
    "kind": "PersistentVolume",
    "metadata": {"name": "disk"},
    "spec": {
        "storageClassName": "fast",
        "accessModes": ["ReadWriteOnce"],
        "capacity": {"storage": "2Gi"},
        "local": {"path": "/disk"},
        "nodeAffinity": {
            "required": {
                "nodeSelectorTerms": [
                    {"matchExpressions": [{"key": "kubernetes.io/hostname", "operator": "In", "values": ["n1"]}]}
                ]
            }
        },
    },
}
MOUNTED = [{"name": "data", "persistentVolumeClaim": {"claimName": "data"}}]


async def mounting(house, **storage):
    """A pod whose claim waits for it, in a class with the given settings."""
    await house.client.create(resources.STORAGE_CLASSES, STORAGE | storage)
    await house.client.create(resources.PERSISTENT_VOLUME_CLAIMS, CLAIM)
    await house.group("gang", 1)
    await house.pod("p", group="gang", volumes=MOUNTED)


async def bind_claim(house, volume):
    """What the volume controller does."""
    patch = {"spec": {"volumeName": volume}}
    await house.client.patch(resources.PERSISTENT_VOLUME_CLAIMS, "data", "default", patch=patch)


async def test_a_pod_is_bound_once_its_volume_was_made_on_its_node(house, scheduler):
    await house.node("n1")
    await mounting(house)

    async def selected():
        claim = await house.client.get(resources.PERSISTENT_VOLUME_CLAIMS, "data", "default")
        return claim.metadata.annotations.get("volume.kubernetes.io/selected-node")

    assert await house.until(selected, "the provisioner is told the node") == "n1"
    assert await house.bound("p") == ""
    await bind_claim(house, "made")
    assert await house.until(lambda: house.bound("p"), "p is bound") == "n1"


async def test_a_free_volume_is_given_to_the_claim_before_the_pod_is_bound(house, scheduler):
    await house.node("n0")
    await house.node("n1")
    await house.client.create(resources.PERSISTENT_VOLUMES, VOLUME)
    await mounting(house, provisioner="kubernetes.io/no-provisioner")

    async def owner():
        found = (await house.client.get(resources.PERSISTENT_VOLUMES, "disk")).spec.claim_ref
        return found.name if found is not None else ""

    assert await house.until(owner, "the volume is taken") == "data"
    assert await house.bound("p") == ""
    await bind_claim(house, "disk")
    assert await house.until(lambda: house.bound("p"), "p is bound") == "n1"
