"""ResourcePoolStatusRequests are answered once, by a controller with no more rights than it needs."""

from __future__ import annotations

import pytest

from capstan import kube
from capstan.allocation import Features
from capstan.api import resources
from capstan.controllers.pool_status import KEPT_SECONDS, PoolStatusController

pytestmark = pytest.mark.anyio

REQUESTS = resources.RESOURCE_POOL_STATUS_REQUESTS


class Clock:
    seconds = 1_700_000_000.0

    def __call__(self):
        return self.seconds


async def begin(house, clock=None):
    client = await house.grant("pool-status", PoolStatusController.RULES)
    controller = PoolStatusController(client, Features(), clock or Clock())
    house.start(controller)
    return controller


async def ask(house, name="ask", driver="gpu.nvidia.com", **spec):
    await house.client.create(REQUESTS, {"metadata": {"name": name}, "spec": {"driver": driver, **spec}})


async def answer(house, name="ask"):
    async def look():
        return (await house.client.get(REQUESTS, name)).status

    return await house.until(look, f"{name} is answered")


async def test_a_request_is_answered_with_what_is_there(house):
    for name, gpus in (("n1", 2), ("n2", 3)):
        await house.node(name, gpus=gpus)
    await begin(house)
    await ask(house)
    status = await answer(house)
    assert [(pool.pool_name, pool.total_devices, pool.allocated_devices) for pool in status.pools] == [
        ("n1", 2, 0),
        ("n2", 3, 0),
    ]
    assert status.pool_count == 2
    (condition,) = status.conditions
    assert (condition.type, condition.status, condition.reason) == ("Complete", "True", "CalculationComplete")
    assert condition.message == "Calculated status for 2 pools"


async def test_a_limit_leaves_out_the_last_pools_and_says_how_many_there_are(house):
    for name in ("n1", "n2", "n3"):
        await house.node(name, gpus=1)
    await begin(house)
    await ask(house, limit=2)
    status = await answer(house)
    assert ([pool.pool_name for pool in status.pools], status.pool_count) == (["n1", "n2"], 3)


async def test_the_answer_is_final_and_the_question_cannot_change(house):
    await begin(house)
    await ask(house)
    await answer(house)
    await house.node("n1", gpus=1)
    for patch, subresource in (
        ({"spec": {"driver": "other.example.com"}}, ""),
        ({"status": {"poolCount": 7}}, "status"),
    ):
        with pytest.raises(kube.Invalid, match="field is immutable"):
            await house.client.patch(REQUESTS, "ask", patch=patch, subresource=subresource)
    assert (await answer(house)).pool_count == 0


async def test_a_pool_that_is_being_published_is_waited_for(house):
    await house.node("n1", gpus=1)
    await house.client.patch(resources.RESOURCE_SLICES, "n1-gpus", patch={"spec": {"pool": {"resourceSliceCount": 2}}})
    controller = await begin(house)
    await ask(house)

    async def looked():
        return sum(controller._looks.values())

    await house.until(looked, "the pool is seen to be incomplete")
    await house.client.patch(resources.RESOURCE_SLICES, "n1-gpus", patch={"spec": {"pool": {"resourceSliceCount": 1}}})
    (pool,) = (await answer(house)).pools
    assert (pool.total_devices, pool.validation_error) == (1, None)


async def test_a_pool_that_stays_incomplete_is_told(house, monkeypatch):
    monkeypatch.setattr("capstan.controllers.pool_status.WAITS", (0.01, 0.01))
    await house.node("n1", gpus=1)
    await house.client.patch(resources.RESOURCE_SLICES, "n1-gpus", patch={"spec": {"pool": {"resourceSliceCount": 2}}})
    await begin(house)
    await ask(house)
    status = await answer(house)
    assert status.pools[0].validation_error.startswith("PoolIncomplete: ") and status.pools[0].total_devices is None
    assert status.conditions[0].message == "Calculated status for 1 pools (1 with errors)"


async def test_an_answered_request_is_deleted_after_an_hour(house):
    clock = Clock()
    controller = await begin(house, clock)
    await ask(house)
    await answer(house)
    key = ("", "ask")
    await house.until(lambda: _expiry(controller, key), "the answer is seen")
    clock.seconds += KEPT_SECONDS + 1
    await controller.reconcile(key)
    assert (await house.client.list(REQUESTS)).items == []


async def _expiry(controller, key):
    request = controller._requests.objects.get(key)
    return request is not None and request.status is not None


@pytest.mark.parametrize(
    ("spec", "field"),
    [
        ({"driver": ""}, "spec.driver"),
        ({"driver": "-"}, "spec.driver"),
        ({"driver": "d", "poolName": ""}, "spec.poolName"),
        ({"driver": "d", "poolName": "a//b"}, "spec.poolName"),
        ({"driver": "d", "limit": 0}, "spec.limit"),
        ({"driver": "d", "limit": 1001}, "spec.limit"),
    ],
)
async def test_questions_that_are_refused(house, spec, field):
    with pytest.raises(kube.Invalid, match=field):
        await house.client.create(REQUESTS, {"metadata": {"name": "ask"}, "spec": spec})
