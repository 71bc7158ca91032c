"""A node that disappears while pods are being bound to it: nobody is left with a place that is none."""

import asyncio

import pytest

from capstan import kube
from capstan.api import resources
from capstan.controllers.scheduler import Scheduler

pytestmark = pytest.mark.anyio


class Vanishing:
    """A transport that lets a node and its devices disappear before the first claim is written, and then waits until
    the scheduler has heard of it."""

    def __init__(self, house, transport):
        self.house, self.transport = house, transport
        self.scheduler = None
        self._task = None

    async def request(self, method, path, **rest):
        if method != "GET" and "resourceclaims" in path:
            self._task = self._task or asyncio.create_task(self._vanish())
            await self._task
        return await self.transport.request(method, path, **rest)

    async def _vanish(self):
        await self.house.client.delete(resources.RESOURCE_SLICES, "n1-gpus")
        await self.house.client.delete(resources.NODES, "n1")
        while "n1" in self.scheduler.world.nodes:
            await asyncio.sleep(0.01)

    def __getattr__(self, name):
        return getattr(self.transport, name)


async def test_a_gang_whose_node_disappears_in_the_middle_of_binding_goes_elsewhere(house):
    await house.node("n1", gpus=4)
    door = Vanishing(house, (await house.grant("scheduler", Scheduler.RULES)).transport)
    door.scheduler = Scheduler(kube.Client(door, field_manager="scheduler"), period=0.1)
    names = [f"p{i}" for i in range(4)]
    await house.group("gang", 4)
    for name in names:
        await house.pod(name, gpus=1, group="gang")
    house.start(door.scheduler)

    async def told():
        group = await house.client.get(resources.POD_GROUPS, "gang", "default")
        return any("there are no nodes" in c.message for c in group.status.scheduling_conditions)

    await house.until(told, "it waits again, and says for what")
    assert [await house.bound(name) for name in names] == [""] * 4
    await house.node("n2", gpus=4)

    async def bound():
        return [await house.bound(name) for name in names] == ["n2"] * 4

    await house.until(bound, "the other node has them all")
    claims = (await house.client.list(resources.RESOURCE_CLAIMS, "default")).items
    devices = [(r.pool, r.device) for claim in claims for r in claim.status.allocation.devices.results]
    assert sorted(devices) == [("n2", f"gpu-{i}") for i in range(4)]
    assert all(len(claim.status.reserved_for) == 1 for claim in claims)
