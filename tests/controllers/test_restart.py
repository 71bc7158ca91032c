"""The scheduler is killed after each of the writes that bind a gang: the next one finishes the gang or undoes it."""

from __future__ import annotations

import asyncio

import pytest

from capstan import kube
from capstan.api import resources
from capstan.controllers.scheduler import Scheduler

pytestmark = pytest.mark.anyio

WRITES = 4
"""Of each pod: its claim is made, allocated and named in the pod's status, and the pod is bound."""


class Mortal:
    """A transport whose client dies after a number of writes for pods and claims."""

    def __init__(self, transport, writes):
        self._transport, self._left = transport, writes
        self.dead = asyncio.Event()

    async def request(self, method, path, **options):
        counts = method != "GET" and ("/resourceclaims" in path or "/pods/" in path)
        if self.dead.is_set() or (counts and self._left == 0):
            self.dead.set()
            await asyncio.Event().wait()
        self._left -= counts
        return await self._transport.request(method, path, **options)

    def stream(self, path, **options):
        return self._transport.stream(path, **options)

    async def close(self):
        await self._transport.close()


async def kill_after(house, client, writes):
    """Start a scheduler and kill it when it has written so often."""
    transport = Mortal(client.transport, writes)
    tasks = house.start(Scheduler(kube.Client(transport)))
    await asyncio.wait_for(transport.dead.wait(), 10)
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)


async def bound(house, names):
    return {name: where for name in names if (where := await house.bound(name))}


@pytest.mark.parametrize("writes", range(3 * WRITES))
async def test_the_next_scheduler_finishes_the_gang(house, writes):
    client = await house.grant("scheduler", Scheduler.RULES)
    await house.node("n1", gpus=2)
    await house.node("n2", gpus=1)
    await house.group("gang", 3)
    for name in "abc":
        await house.pod(name, gpus=1, group="gang")
    await kill_after(house, client, writes)
    house.start(Scheduler(client))

    async def complete():
        return len(await bound(house, "abc")) == 3

    await house.until(complete, "all three are bound")
    held, pods = set(), {}
    for name in "abc":
        pod = await house.client.get(resources.PODS, name, "default")
        pods[pod.metadata.uid] = pod.spec.node_name
    for claim in (await house.client.list(resources.RESOURCE_CLAIMS, "default")).items:
        (device,) = claim.status.allocation.devices.results
        (user,) = claim.status.reserved_for
        assert device.pool == pods[user.uid], "a pod runs where its device is"
        held.add((device.pool, device.device))
    assert len(held) == 3, "no device is held twice"


@pytest.mark.parametrize("started", [1, 2])
async def test_what_was_started_is_evicted_when_the_rest_has_no_place_any_more(house, started):
    client = await house.grant("scheduler", Scheduler.RULES)
    for name in ("n1", "n2", "n3"):
        await house.node(name, gpus=1)
    await house.group("gang", 3, stalenessGracePeriod="1s")
    for name in "abc":
        await house.pod(name, gpus=1, group="gang")

    class AfterBinds(Mortal):
        async def request(self, method, path, **options):
            if method != "GET" and path.endswith("/binding"):
                return await super().request(method, path, **options)
            if self.dead.is_set():
                await asyncio.Event().wait()
            return await self._transport.request(method, path, **options)

    transport = AfterBinds(client.transport, started)
    tasks = house.start(Scheduler(kube.Client(transport)))
    await asyncio.wait_for(transport.dead.wait(), 10)
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
    taken = await bound(house, "abc")
    assert len(taken) == started
    for name in {"n1", "n2", "n3"} - set(taken.values()):
        await house.client.delete(resources.NODES, name)
    house.start(Scheduler(client))

    async def undone():
        for name in taken:
            try:
                pod = await house.client.get(resources.PODS, name, "default")
            except kube.NotFound:
                continue
            if pod.metadata.deletion_timestamp is None:
                return False
        return True

    await house.until(undone, "the started part is evicted", patience=15)
    assert set(await bound(house, "abc")) <= set(taken), "nothing else was started"
