"""Semi-preemptible gangs: a core that counts against the quota and is safe, and surplus that is neither."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from capstan.api.scheduling import PodGroup
from capstan.scheduling import Policy, World, cycle
from capstan.scheduling.amounts import GPU
from capstan.scheduling.canonical import dump
from capstan.scheduling.model import ACTIVE

sys.path.insert(0, str(Path(__file__).parent))
from clusters import START, Cluster, clusters, gang, node, pod, queue, world

POLICY = Policy()


def semi(name: str = "g", minimum: int = 2, rank: int = 0, **spec: object) -> PodGroup:
    return gang(name, "a", minimum=minimum, rank=rank, preemptibility="semi-preemptible", **spec)


def pods(made: World, name: str, count: int, *, on: str = "", gpus: int = 1) -> None:
    for i in range(count):
        made.upsert(pod(f"{name}-{i}", name, gpus=gpus, on=on))


def fixed(made: World) -> float:
    return made.queues["a"].fixed[2] / GPU


def test_the_core_must_fit_into_the_quota_and_the_surplus_need_not() -> None:
    made = world(node("n0"), queue("a", quota=2), semi())
    pods(made, "g", 4)
    assert len(cycle(made, POLICY, START).binds) == 4
    assert fixed(made) == 2
    tight = world(node("n0"), queue("a", quota=1), semi())
    pods(tight, "g", 4)
    plan = cycle(tight, POLICY, START)
    assert plan.binds == []
    assert plan.verdicts[0].reason == "NonPreemptibleOverQuota"


def test_the_surplus_stays_within_the_limit() -> None:
    made = world(node("n0"), queue("a", quota=2, limit=3), semi())
    pods(made, "g", 4)
    plan = cycle(made, POLICY, START)
    assert len(plan.binds) == 3
    assert plan.verdicts[0].reason == "OverLimit"


def test_a_more_important_gang_takes_the_surplus_but_never_the_core() -> None:
    made = world(node("n0"), queue("a", quota=2), semi())
    pods(made, "g", 4, on="n0")
    made.upsert(gang("high", "a", priority="build-preemptible", rank=1))
    made.upsert(pod("high-0", "high", gpus=2, rank=1))
    plan = cycle(made, POLICY, START)
    assert [eviction.pod for eviction in plan.evictions] == ["g-2", "g-3"]
    made = world(node("n0"), queue("a", quota=2), semi())
    pods(made, "g", 4, on="n0")
    made.upsert(gang("high", "a", priority="build-preemptible", rank=1))
    made.upsert(pod("high-0", "high", gpus=3, rank=1))
    assert cycle(made, POLICY, START).evictions == []


def test_another_queue_reclaims_the_surplus_but_never_the_core() -> None:
    for wanted, lost in ((2, ["g-2", "g-3"]), (3, [])):
        made = world(node("n0"), queue("a", quota=0), queue("b", quota=4, rank=1), semi())
        pods(made, "g", 4, on="n0")
        made.upsert(gang("theirs", "b", rank=1))
        made.upsert(pod("theirs-0", "theirs", gpus=wanted, rank=1))
        assert [eviction.pod for eviction in cycle(made, POLICY, START).evictions] == lost


def replicas(minimum: int, **spec: object) -> PodGroup:
    names = [{"name": f"r{i}", "minMember": 2} for i in range(4)]
    return gang("g", "a", subgroups=names, minimum_subgroups=minimum, preemptibility="semi-preemptible", **spec)


def test_whole_subgroups_are_core_or_surplus() -> None:
    made = world(node("n0", gpus=8), queue("a", quota=4), replicas(2))
    for r in range(4):
        for i in range(2):
            made.upsert(pod(f"r{r}-{i}", "g", gpus=1, subgroup=f"r{r}"))
    assert len(cycle(made, POLICY, START).binds) == 8
    assert fixed(made) == 4
    (found,) = made.gangs.values()
    assert [task.name for task in found.core()] == ["r0-0", "r0-1", "r1-0", "r1-1"]
    made.upsert(gang("high", "a", priority="build-preemptible", rank=1))
    made.upsert(pod("high-0", "high", gpus=3, rank=1))
    assert {e.pod for e in cycle(made, POLICY, START + 1).evictions} == {"r2-0", "r2-1", "r3-0", "r3-1"}


def test_a_complete_subgroup_is_core_before_a_broken_one() -> None:
    made = world(node("n0", gpus=8), queue("a", quota=4), replicas(2))
    for name, r in (("r0-0", 0), ("r1-0", 1), ("r1-1", 1), ("r2-0", 2), ("r2-1", 2)):
        made.upsert(pod(name, "g", gpus=1, subgroup=f"r{r}", on="n0"))
    (found,) = made.gangs.values()
    assert [task.name for task in found.core()] == ["r1-0", "r1-1", "r2-0", "r2-1"]


def test_more_than_the_minimum_may_be_protected() -> None:
    made = world(node("n0"), queue("a", quota=3), semi(minimum=1, minNonPreemptible=3))
    pods(made, "g", 4)
    assert len(cycle(made, POLICY, START).binds) == 4
    assert fixed(made) == 3
    made.upsert(gang("high", "a", priority="build-preemptible", rank=1))
    made.upsert(pod("high-0", "high", gpus=2, rank=1))
    assert cycle(made, POLICY, START + 1).evictions == []
    short = world(node("n0"), queue("a", quota=2), semi(minimum=1, minNonPreemptible=3))
    pods(short, "g", 4)
    plan = cycle(short, POLICY, START)
    assert len(plan.binds) == 2, "it starts with one, and grows as far as the quota lets its core"
    assert plan.verdicts[0].reason == "NonPreemptibleOverQuota"


@pytest.mark.parametrize(
    ("group", "words"),
    [
        (semi(minimum=3, minNonPreemptible=2), "minNonPreemptible is 2, below the minimum of 3"),
        (gang("g", "a", minNonPreemptible=2), "minNonPreemptible is for semi-preemptible groups"),
        (replicas(2, minNonPreemptible=5), "minNonPreemptible is 5, and there are 4 subgroups"),
    ],
)
def test_a_core_that_makes_no_sense_is_named(group: PodGroup, words: str) -> None:
    made = world(node("n0"), queue("a"), group, pod("g-0", "g", gpus=1, subgroup="r0"))
    (verdict,) = cycle(made, POLICY, START).verdicts
    assert verdict.reason == "InvalidPodGroup"
    assert words in verdict.message


# -- what holds for every cluster


def semi_clusters(cluster: Cluster, chosen: list[bool]) -> Cluster:
    groups = [entry for entry in cluster.objects.values() if isinstance(entry, PodGroup)]
    for entry, yes in zip(groups, chosen, strict=False):
        entry.spec.preemptibility = "semi-preemptible" if yes else ""
    return cluster


@settings(deadline=None, max_examples=80, suppress_health_check=list(HealthCheck))
@given(clusters(), st.lists(st.booleans(), min_size=10, max_size=10))
def test_quotas_hold_for_cores_and_no_core_is_evicted_for_others(cluster: Cluster, chosen: list[bool]) -> None:
    made = semi_clusters(cluster, chosen).build()
    for number in range(4):
        protected = {task.uid for found in made.gangs.values() if found.semi for task in found.core()}
        plan = cycle(made, POLICY, START + number)
        assert not [e.pod for e in plan.evictions if e.uid in protected and e.action != "evict-stale"]
        for level in made.queues.values():
            below = [found for found in made.gangs.values() if found.queue is not None and level in found.queue.path()]
            held = [0, 0, 0]
            for found in below:
                active = [task for task in found.tasks.values() if ACTIVE[task.status] and task.group is not None]
                kept = found.core() if found.semi else [] if found.preemptible else active
                for task in kept:
                    held = [have + more for have, more in zip(held, task.charge, strict=True)]
            assert level.fixed == held
            assert all(quota == -1 or have <= quota for have, quota in zip(level.fixed, level.quota, strict=True))
        cluster.carry_out(made, plan)


@settings(deadline=None, max_examples=60, suppress_health_check=list(HealthCheck))
@given(clusters(), st.lists(st.booleans(), min_size=10, max_size=10))
def test_undoing_and_rebuilding_give_the_same_quotas(cluster: Cluster, chosen: list[bool]) -> None:
    made = semi_clusters(cluster, chosen).build()
    for number in range(3):
        cluster.carry_out(made, cycle(made, POLICY, START + number))
    made.begin(START + 3)
    rebuilt = cluster.build()
    rebuilt.begin(START + 3)
    assert dump(made) == dump(rebuilt)
