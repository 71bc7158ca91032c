"""One scheduler a SchedulingShard: pools apart, settings followed, mistakes told, one leader."""

from __future__ import annotations

import asyncio
import base64

import pytest

from capstan import kube, scheduling
from capstan.api import resources
from capstan.controllers import unserved, usage
from capstan.controllers.shards import CONFIG_RULES, Shards, follow_config
from capstan.embedded import accounts
from capstan.embedded.platform import install

pytestmark = pytest.mark.anyio

NAMESPACE = accounts.NAMESPACE
CPUS = [{"name": "main", "image": "x", "resources": {"requests": {"cpu": "8"}}}]
POOL = "kai.scheduler/node-pool"


def shard(name, pool="", **spec):
    if pool:
        spec["partitionLabelValue"] = pool
    return {"apiVersion": "kai.scheduler/v1", "kind": "SchedulingShard", "metadata": {"name": name}, "spec": spec}


async def granted(house, name="scheduler"):
    manifests = accounts.manifests_for(name, Shards.RULES, [*Shards.OWN_RULES, *kube.LeaderElector.RULES])
    await install(house.client, manifests, update=True)
    return house.account(name)


@pytest.fixture
async def shards(house):
    made = Shards(await granted(house), scheduling.Policy(), scheduling.Installation(), namespace=NAMESPACE)
    house.start(made)
    return made


async def label(house, resource, name, pool, namespace=""):
    await house.client.patch(resource, name, namespace, patch={"metadata": {"labels": {POOL: pool}}})


async def condition(house, name, kind):
    found = await house.client.get(resources.SCHEDULING_SHARDS, name)
    return next((c for c in found.status.conditions if c.type == kind), None)


async def test_two_shards_bind_their_pods_on_their_nodes_and_share_one_queue_status(house, shards):
    await install(house.client, [shard("default"), shard("red", "red")])
    for name in ("n1", "r1"):
        await house.node(name)
    await label(house, resources.NODES, "r1", "red")
    await house.group("pg-plain", 1)
    await house.group("pg-red", 1)
    await label(house, resources.POD_GROUPS, "pg-red", "red", "default")
    await house.pod("plain", group="pg-plain", containers=CPUS)
    await house.pod("red", group="pg-red", containers=CPUS)
    assert await house.until(lambda: house.bound("plain"), "the pod of no pool is bound") == "n1"
    assert await house.until(lambda: house.bound("red"), "the pod of the pool is bound") == "r1"

    async def allocated():
        queue = await house.client.get(resources.QUEUES, "default-queue")
        return queue.status.allocated.get("cpu") == "16"

    await house.until(allocated, "the queue counts the pods of both shards")


async def test_what_a_queue_held_in_an_earlier_life_is_taken_out_of_its_status(house, shards):
    stale = {"status": {"allocated": {"cpu": "7", "NVIDIA-L4": "3"}}}
    await house.client.patch(resources.QUEUES, "default-queue", patch=stale, subresource="status")
    await install(house.client, [shard("default")])

    async def counted():
        queue = await house.client.get(resources.QUEUES, "default-queue")
        return queue.status.allocated == {"cpu": "0", "memory": "0", "nvidia.com/gpu": "0"}

    await house.until(counted, "only what is held now stands there")


async def test_a_queue_says_since_when_it_cannot_be_used(house, shards):
    await install(house.client, [shard("default")])
    for name, parent in (("a", "b"), ("b", "a")):
        await house.client.create(resources.QUEUES, {"metadata": {"name": name}, "spec": {"parentQueue": parent}})

    async def orphan():
        queue = await house.client.get(resources.QUEUES, "a")
        return next((c for c in queue.status.conditions if c.type == "Orphan"), None)

    async def told():
        found = await orphan()
        return found is not None and found.status == "True" and found

    broken = await house.until(told, "it is told")
    assert broken.message == "its chain of parents is a circle: a, b, a"
    assert broken.last_transition_time
    await house.client.patch(resources.QUEUES, "b", patch={"spec": {"parentQueue": ""}})

    async def well():
        return (await orphan()).status == "False"

    await house.until(well, "it is taken back once the circle is broken")


async def test_a_pool_without_a_shard_waits_until_one_comes(house, shards):
    await install(house.client, [shard("default")])
    await house.node("r1")
    await label(house, resources.NODES, "r1", "red")
    await house.group("pg-red", 1)
    await label(house, resources.POD_GROUPS, "pg-red", "red", "default")
    await house.pod("red", group="pg-red")
    await house.until(lambda: ready(house, "default"), "the first shard runs")
    await asyncio.sleep(0.2)
    assert await house.bound("red") == ""
    await install(house.client, [shard("red", "red")])
    assert await house.until(lambda: house.bound("red"), "its shard binds it") == "r1"


async def test_a_gang_of_a_pool_that_no_shard_serves_is_told_so_until_one_does(house, shards, monkeypatch):
    monkeypatch.setattr(unserved, "EVERY_SECONDS", 0.05)
    await install(house.client, [shard("default")])
    await house.until(lambda: ready(house, "default"), "a shard runs")
    await house.group("pg-lost", 1)
    await label(house, resources.POD_GROUPS, "pg-lost", "rde", "default")
    await house.pod("lost", group="pg-lost")

    async def told():
        group = await house.client.get(resources.POD_GROUPS, "pg-lost", "default")
        return next(iter(group.status.scheduling_conditions), None)

    said = await house.until(told, "the PodGroup says so")
    assert said.reason == unserved.REASON and "'rde'" in said.message
    await install(house.client, [shard("red", "rde")])

    async def taken_back():
        found = await told()
        return found is None or found.reason != unserved.REASON

    await house.until(taken_back, "the new shard speaks for it now")


async def ready(house, name):
    found = await condition(house, name, "Ready")
    return found is not None and found.status == "True"


async def test_a_shard_that_is_deleted_schedules_no_more_and_the_others_go_on(house, shards):
    await install(house.client, [shard("default"), shard("red", "red")])
    await house.until(lambda: ready(house, "red"), "both run")
    await house.client.delete(resources.SCHEDULING_SHARDS, "red")

    async def gone():
        return list(shards.schedulers) == ["default"]

    await house.until(gone, "the scheduler of the shard ended")
    await house.node("n1")
    await house.lone("p")
    await house.until(lambda: house.bound("p"), "the other shard goes on")


async def test_settings_are_followed_without_a_restart_and_a_new_pool_with_one(house, shards):
    await install(house.client, [shard("default")])
    await house.until(lambda: ready(house, "default"), "the shard runs")
    first = shards.schedulers["default"]
    await house.client.patch(resources.SCHEDULING_SHARDS, "default", patch={"spec": {"kValue": 3}})

    async def followed():
        return first.policy.k_value == 3.0

    await house.until(followed, "the new value holds")
    assert shards.schedulers["default"] is first
    await house.client.patch(resources.SCHEDULING_SHARDS, "default", patch={"spec": {"partitionLabelValue": "red"}})

    async def restarted():
        return shards.schedulers.get("default", first) is not first

    await house.until(restarted, "another World is made")


async def test_what_makes_no_sense_is_told_on_the_shard_and_taken_back(house, shards):
    await install(house.client, [shard("default", kValue=-1, args={"no-such-flag": "1"})])

    async def told():
        found = await condition(house, "default", "Valid")
        return found if found is not None and found.status == "False" else None

    found = await house.until(told, "the condition names the fields")
    assert "spec.kValue" in found.message and "spec.args[no-such-flag]" in found.message
    await house.node("n1")
    await house.lone("p")
    await house.until(lambda: house.bound("p"), "the shard schedules all the same")
    await house.client.patch(
        resources.SCHEDULING_SHARDS, "default", patch={"spec": {"kValue": 1, "args": {"no-such-flag": None}}}
    )

    async def valid():
        found = await condition(house, "default", "Valid")
        return found is not None and found.status == "True" and found.observed_generation == 2

    await house.until(valid, "the condition is taken back")


async def test_the_younger_of_two_shards_of_a_pool_is_refused(house, shards):
    await install(house.client, [shard("a", "red")])
    await house.until(lambda: ready(house, "a"), "the first runs")
    await install(house.client, [shard("b", "red")])

    async def refused():
        found = await condition(house, "b", "Ready")
        return found if found is not None and found.status == "False" else None

    found = await house.until(refused, "the second is refused")
    assert found.reason == "NodePoolServedTwice" and "shard a" in found.message
    assert list(shards.schedulers) == ["a"]
    await house.client.delete(resources.SCHEDULING_SHARDS, "a")
    await house.until(lambda: ready(house, "b"), "the second takes over")


async def test_a_change_of_the_config_starts_the_work_again(house):
    client = await house.grant("reader", CONFIG_RULES)
    seen = []

    async def work(said):
        seen.append(said.scheduler_name)
        await asyncio.Event().wait()

    task = asyncio.create_task(follow_config(client, work))
    config = {"apiVersion": "kai.scheduler/v1", "kind": "Config", "metadata": {"name": "kai-config"}}
    await install(house.client, [config | {"spec": {"global": {"schedulerName": "mine"}}}])

    async def both():
        return seen[-1:] == ["mine"]

    await house.until(both, "it started again")
    await house.client.patch(resources.CONFIGS, "kai-config", patch={"spec": {"global": {"jsonLog": True}}})
    await asyncio.sleep(0.2)
    assert seen[-1] == "mine" and len(seen) <= 2
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)


# -- usage ---------------------------------------------------------------------------------------------------------

COUNTED = {"usageDBConfig": {"clientType": "prometheus", "usageParams": {"fetchInterval": "1s"}}}


async def stored(house, name="default"):
    try:
        return await house.client.get(resources.CONFIG_MAPS, usage.config_map_name(name), NAMESPACE)
    except kube.NotFound:
        return None


async def test_usage_is_counted_told_to_the_world_and_survives_a_restart(house, monkeypatch):
    monkeypatch.setattr(usage, "LOOK_SECONDS", 0.05)
    monkeypatch.setattr(usage, "SAVE_SECONDS", 0.1)
    await install(house.client, [shard("default", **COUNTED)])
    client = await granted(house)
    first = Shards(client, scheduling.Policy(), scheduling.Installation(), namespace=NAMESPACE)
    (running,) = house.start(first)
    await house.node("n1")
    await house.group("pg-p", 1)
    await house.pod("p", group="pg-p", containers=CPUS)
    await house.until(lambda: house.bound("p"), "the pod is bound")

    async def counted():
        return first.schedulers["default"].world.usage.get("default-queue", {}).get("cpu", 0.0) > 0.2

    await house.until(counted, "fair shares know what the queue used")
    await house.until(lambda: stored(house), "it is remembered")
    running.cancel()
    await asyncio.gather(running, return_exceptions=True)
    owners = (await stored(house)).metadata.owner_references
    assert [(owner.kind, owner.name) for owner in owners] == [("SchedulingShard", "default")]

    await house.client.delete(resources.PODS, "p", "default")
    second = Shards(client, scheduling.Policy(), scheduling.Installation(), namespace=NAMESPACE)
    house.start(second)

    async def known():
        return "default" in second.schedulers and "default-queue" in second.schedulers["default"].world.usage

    await house.until(known, "the next scheduler knows what was used")


async def test_usage_that_cannot_be_read_is_told_and_counted_anew(house, monkeypatch):
    monkeypatch.setattr(usage, "LOOK_SECONDS", 0.05)
    monkeypatch.setattr(usage, "SAVE_SECONDS", 0.1)
    noise = base64.b64encode(b"noise").decode()
    name = usage.config_map_name("default")
    await house.client.create(
        resources.CONFIG_MAPS, {"metadata": {"name": name}, "binaryData": {"usage": noise}}, NAMESPACE
    )
    await install(house.client, [shard("default", **COUNTED)])
    house.start(Shards(await granted(house), scheduling.Policy(), scheduling.Installation(), namespace=NAMESPACE))

    async def told():
        events = (await house.client.list(resources.EVENTS)).items
        return [event for event in events if event.reason == "UsageLost"]

    (event, *_) = await house.until(told, "an Event on the shard says so")
    assert event.involved_object.name == "default" and name in event.message

    async def anew():
        return (await stored(house)).binary_data["usage"] != noise

    await house.until(anew, "a new account is remembered")


async def test_the_scheduler_may_touch_config_maps_in_its_own_namespace_only(house):
    client = await granted(house)
    with pytest.raises(kube.Forbidden):
        await client.create(resources.CONFIG_MAPS, {"metadata": {"name": "x"}}, "default")
    with pytest.raises(kube.Forbidden):
        await client.list(resources.CONFIG_MAPS, NAMESPACE)


# -- leadership ----------------------------------------------------------------------------------------------------


class Watched:
    """A transport that notes which pods it bound."""

    def __init__(self, transport, log):
        self._transport, self._log = transport, log

    async def request(self, method, path, **options):
        answer = await self._transport.request(method, path, **options)
        if method == "POST" and path.endswith("/binding") and answer.status < 300:
            self._log.append(path.split("/")[-2])
        return answer

    def stream(self, path, **options):
        return self._transport.stream(path, **options)

    async def close(self):
        await self._transport.close()


async def test_when_the_leader_dies_the_other_scheduler_goes_on_and_nothing_is_bound_twice(house):
    await install(house.client, [shard("default")])
    account = await granted(house)
    bound = {"one": [], "two": []}

    def campaign(name):
        client = kube.Client(Watched(account.transport, bound[name]))
        elector = kube.LeaderElector(
            client, "capstan-scheduler", NAMESPACE, name, lease_seconds=1, renew_seconds=0.5, retry_seconds=0.05
        )
        fenced = elector.fenced(client)
        made = Shards(fenced, scheduling.Policy(), scheduling.Installation(), namespace=NAMESPACE)
        return elector, asyncio.create_task(elector.run(made.run))

    await house.node("n1")
    ((one, first),) = [campaign("one")]

    async def leads():
        return one.is_leader

    await house.until(leads, "one leads")
    _, second = campaign("two")
    for i in range(5):
        await house.lone(f"a{i}")
    for i in range(5):
        await house.until(lambda i=i: house.bound(f"a{i}"), f"a{i} is bound")
    assert sorted(bound["one"]) == [f"a{i}" for i in range(5)] and bound["two"] == []
    one._release = lambda: asyncio.sleep(0)  # killed, it gives nothing back: the lease has to expire
    first.cancel()
    await asyncio.gather(first, return_exceptions=True)
    for i in range(5):
        await house.lone(f"b{i}")
    for i in range(5):
        await house.until(lambda i=i: house.bound(f"b{i}"), f"b{i} is bound")
    assert sorted(bound["two"]) == [f"b{i}" for i in range(5)]
    assert len(bound["one"]) == 5
    second.cancel()
    await asyncio.gather(second, return_exceptions=True)
