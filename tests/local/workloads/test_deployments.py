"""Deployments and ReplicaSets as kubectl users see them."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from capstan.api.apps import Deployment, ReplicaSet, RollingUpdate
from capstan.local.workloads import rollout

pytestmark = pytest.mark.anyio

SELECTOR = {"matchLabels": {"app": "web"}}


async def deploy(house: Any, template: Any, replicas: int = 4, **spec: Any) -> None:
    content = {"replicas": replicas, "selector": SELECTOR, "template": template(), **spec}
    await house.create("Deployment", "web", spec=content)
    await house.status("Deployment", "web", availableReplicas=replicas, updatedReplicas=replicas)


async def update(house: Any, image: str) -> None:
    containers = [{"name": "main", "image": image}]
    await house.patch("Deployment", "web", {"spec": {"template": {"spec": {"containers": containers}}}})


async def test_a_deployment_becomes_available_and_says_so(house: Any, template: Any) -> None:
    await deploy(house, template)
    found = await house.status("Deployment", "web", readyReplicas=4, replicas=4, unavailableReplicas=0)
    conditions = {c["type"]: (c["status"], c["reason"]) for c in found["status"]["conditions"]}
    assert conditions == {
        "Available": ("True", "MinimumReplicasAvailable"),
        "Progressing": ("True", "NewReplicaSetAvailable"),
    }
    assert found["metadata"]["annotations"]["deployment.kubernetes.io/revision"] == "1"
    [name] = await house.names("ReplicaSet")
    owner = (await house.get("ReplicaSet", name))["metadata"]["ownerReferences"][0]
    assert (owner["kind"], owner["controller"]) == ("Deployment", True)
    await house.until(lambda: len(house.created) == 4)


async def test_a_rolling_update_keeps_its_bounds(house: Any, template: Any) -> None:
    strategy = {"type": "RollingUpdate", "rollingUpdate": {"maxSurge": 1, "maxUnavailable": 1}}
    await deploy(house, template, 6, strategy=strategy)
    house.most_pods, house.fewest_ready = 0, 10**9
    await update(house, "app:2")
    found = await house.status(
        "Deployment", "web", availableReplicas=6, updatedReplicas=6, replicas=6, observedGeneration=2
    )
    assert found["metadata"]["annotations"]["deployment.kubernetes.io/revision"] == "2"
    # A pod that is going away still exists for a moment beside its successor.
    assert house.fewest_ready >= 5
    await house.until(lambda: len(house.created) == 12)
    sizes = sorted([(await house.get("ReplicaSet", n))["spec"]["replicas"] for n in await house.names("ReplicaSet")])
    assert sizes == [0, 6]


async def test_undo_brings_the_old_replica_set_back_with_a_new_revision(house: Any, template: Any) -> None:
    await deploy(house, template, 2)
    await update(house, "app:2")
    await house.status("Deployment", "web", availableReplicas=2, updatedReplicas=2, replicas=2, observedGeneration=2)
    await update(house, "app:1")
    found = await house.status(
        "Deployment", "web", availableReplicas=2, updatedReplicas=2, replicas=2, observedGeneration=3
    )
    assert found["metadata"]["annotations"]["deployment.kubernetes.io/revision"] == "3"
    revisions = []
    for name in await house.names("ReplicaSet"):
        found = await house.get("ReplicaSet", name)
        annotations = found["metadata"]["annotations"]
        revisions.append((annotations["deployment.kubernetes.io/revision"], found["spec"]["replicas"]))
    assert sorted(revisions) == [("2", 0), ("3", 2)]


async def test_recreate_starts_nothing_new_before_the_old_is_gone(house: Any, template: Any) -> None:
    await deploy(house, template, 3, strategy={"type": "Recreate"})
    house.most_pods = 0
    await update(house, "app:2")
    await house.status("Deployment", "web", availableReplicas=3, updatedReplicas=3, replicas=3, observedGeneration=2)
    assert house.most_pods == 3 and house.fewest_ready == 0


async def test_a_paused_deployment_scales_but_does_not_roll_out(house: Any, template: Any) -> None:
    await deploy(house, template, 2)
    await house.patch("Deployment", "web", {"spec": {"paused": True, "replicas": 3}})
    await update(house, "app:2")
    found = await house.status("Deployment", "web", availableReplicas=3, observedGeneration=3, updatedReplicas=0)
    progressing = next(c for c in found["status"]["conditions"] if c["type"] == "Progressing")
    assert progressing["reason"] == "DeploymentPaused"
    assert len(await house.names("ReplicaSet")) == 1
    await house.patch("Deployment", "web", {"spec": {"paused": False}})
    await house.status("Deployment", "web", availableReplicas=3, updatedReplicas=3, replicas=3)


async def test_scaling_down_takes_pods_that_are_not_ready_first(house: Any, template: Any) -> None:
    await deploy(house, template, 3)
    house.running = False
    await house.patch("Deployment", "web", {"spec": {"replicas": 4}})
    await house.until(lambda: len(house.created) == 4)
    await house.patch("Deployment", "web", {"spec": {"replicas": 3}})
    await house.until(lambda: house.deleted)
    await house.until(lambda: house.deleted == [house.created[3]])


async def test_a_deleted_or_failed_pod_is_replaced(house: Any, template: Any) -> None:
    await deploy(house, template, 2)
    await house.delete("Pod", house.created[0])
    await house.until(lambda: len(house.created) == 3)
    await house.set_phase(house.created[1], "Failed")
    await house.until(lambda: len(house.created) == 4)
    await house.status("Deployment", "web", availableReplicas=2)


async def test_min_ready_seconds_hold_availability_back(house: Any, template: Any) -> None:
    content = {"replicas": 1, "selector": SELECTOR, "template": template(), "minReadySeconds": 60}
    await house.create("Deployment", "web", spec=content)
    await house.status("Deployment", "web", readyReplicas=1, availableReplicas=0)
    house.skip(100)
    await house.patch("ReplicaSet", (await house.names("ReplicaSet"))[0], {"metadata": {"labels": {"poke": "1"}}})
    await house.status("Deployment", "web", readyReplicas=1, availableReplicas=1)


async def test_a_rollout_that_does_not_move_misses_its_deadline(house: Any, template: Any) -> None:
    await deploy(house, template, 1, progressDeadlineSeconds=60)
    house.running = False
    await update(house, "app:2")
    await house.status("Deployment", "web", updatedReplicas=1, replicas=2)
    house.skip(100)
    await house.patch("Deployment", "web", {"metadata": {"labels": {"poke": "1"}}})

    async def timed_out() -> bool:
        conditions = (await house.get("Deployment", "web"))["status"]["conditions"]
        return any(c["reason"] == "ProgressDeadlineExceeded" and c["status"] == "False" for c in conditions)

    await house.until(timed_out)


async def test_old_revisions_beyond_the_limit_are_deleted(house: Any, template: Any) -> None:
    await deploy(house, template, 1, revisionHistoryLimit=1)
    for number in (2, 3, 4):
        await update(house, f"app:{number}")
        await house.status(
            "Deployment", "web", updatedReplicas=1, replicas=1, availableReplicas=1, observedGeneration=number
        )

    async def kept() -> bool:
        return len(await house.names("ReplicaSet")) == 2

    await house.until(kept)


async def test_a_replica_set_adopts_matching_orphans_and_releases_what_no_longer_matches(
    house: Any, template: Any
) -> None:
    await house.create("Pod", "stray", metadata={"labels": {"app": "web"}}, spec=template()["spec"])
    await house.create("ReplicaSet", "web", spec={"replicas": 2, "selector": SELECTOR, "template": template()})
    await house.status("ReplicaSet", "web", readyReplicas=2)
    await house.until(lambda: len(house.created) == 2)
    await house.patch("Pod", "stray", {"metadata": {"labels": {"app": "other"}}})
    await house.until(lambda: len(house.created) == 3)
    await house.until(lambda: not house.pods.get("stray", "default").metadata.owner_references)


async def test_no_pod_is_made_twice_under_load(house: Any, template: Any) -> None:
    """Every reconcile sees its own writes, so 100 replicas cost exactly 100 pods."""
    await house.create("ReplicaSet", "web", spec={"replicas": 100, "selector": SELECTOR, "template": template()})
    for _ in range(20):
        await house.patch("ReplicaSet", "web", {"metadata": {"labels": {"poke": str(_)}}})
        await asyncio.sleep(0)
    await house.status("ReplicaSet", "web", readyReplicas=100, replicas=100)
    await house.until(lambda: len(house.created) == 100)
    assert not house.deleted


async def test_deleting_a_deployment_takes_everything_with_it(house: Any, template: Any) -> None:
    await deploy(house, template, 3)
    await house.delete("Deployment", "web", propagation="Background")

    async def empty() -> bool:
        return not await house.names("ReplicaSet") and not await house.names("Pod")

    await house.until(empty)


def replica_set(name: str, size: int, available: int, created: int) -> ReplicaSet:
    one = ReplicaSet()
    one.metadata.name = name
    one.metadata.creation_timestamp = f"2026-01-01T00:00:{created:02d}Z"
    one.spec.replicas, one.status.available_replicas, one.status.replicas = size, available, size
    return one


@settings(deadline=None, max_examples=200)
@given(
    wanted=st.integers(0, 20),
    surge=st.one_of(st.integers(0, 10), st.integers(0, 100).map("{}%".format)),
    unavailable=st.one_of(st.integers(0, 10), st.integers(0, 100).map("{}%".format)),
    old_sizes=st.lists(st.integers(0, 8), max_size=3),
    data=st.data(),
)
def test_every_rollout_ends_and_never_leaves_its_bounds(
    wanted: int, surge: int | str, unavailable: int | str, old_sizes: list[int], data: st.DataObject
) -> None:
    deployment = Deployment()
    deployment.spec.replicas = wanted
    deployment.spec.strategy.rolling_update = RollingUpdate(max_surge=surge, max_unavailable=unavailable)
    new = replica_set("new", 0, 0, 9)
    old = [replica_set(f"old-{i}", size, size, i) for i, size in enumerate(old_sizes)]
    most, least = rollout.surge_and_unavailable(deployment)
    ceiling = max(wanted + most, sum(old_sizes))
    floor = min(wanted - least, sum(old_sizes))
    for _ in range(200):
        for one in (new, *old):
            # Some pods become ready; those above the size are on their way out and count no more.
            ready = data.draw(st.integers(min(one.status.available_replicas, one.spec.replicas), one.spec.replicas))
            one.status.available_replicas = ready
        sizes = rollout.rolling(deployment, new, old)
        for one in (new, *old):
            one.spec.replicas = sizes.get(one.metadata.name, one.spec.replicas)
        available = sum(min(one.status.available_replicas, one.spec.replicas) for one in (new, *old))
        assert sum(one.spec.replicas for one in (new, *old)) <= ceiling
        assert available >= floor
        if not sizes:
            for one in (new, *old):
                one.status.available_replicas = one.spec.replicas
            if not rollout.rolling(deployment, new, old):
                break
    assert new.spec.replicas == wanted and not any(one.spec.replicas for one in old)


@settings(deadline=None, max_examples=200)
@given(wanted=st.integers(0, 30), new_size=st.integers(0, 10), old_sizes=st.lists(st.integers(0, 10), max_size=3))
def test_proportional_scaling_adds_up(wanted: int, new_size: int, old_sizes: list[int]) -> None:
    deployment = Deployment()
    deployment.spec.replicas = wanted
    new = replica_set("new", new_size, 0, 9)
    old = [replica_set(f"old-{i}", size, size, i) for i, size in enumerate(old_sizes)]
    sizes = rollout.proportional(deployment, new, old)
    total = sum(sizes.get(one.metadata.name, one.spec.replicas) for one in (new, *old))
    active = [one for one in (new, *old) if one.spec.replicas]
    surge = rollout.surge_and_unavailable(deployment)[0] if wanted else 0
    assert all(size >= 0 for size in sizes.values())
    assert total == (wanted if len(active) <= 1 else wanted + surge)
