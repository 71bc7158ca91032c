"""The properties of test_properties.py on clusters with everything at once, and what only shows there."""

from __future__ import annotations

import os
import sys
from pathlib import Path

from bench import naive
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st

from capstan.scheduling import Policy, World, cycle
from capstan.scheduling.canonical import dump

sys.path.insert(0, str(Path(__file__).parent))
from clusters import START, world
from mixed import MixedCluster, mixed_clusters
from test_properties import check_evictions, check_gangs, check_nothing_is_overcommitted, check_queues

EXAMPLES = int(os.environ.get("PROPERTY_EXAMPLES", "12"))
"""`make properties` runs thousands."""
several = settings(deadline=None, max_examples=EXAMPLES, suppress_health_check=list(HealthCheck))
ROUNDS = 5
POLICIES = st.sampled_from([Policy(), Policy(gpu_placement="spread", cpu_placement="spread")])


@several
@given(mixed_clusters(), POLICIES)
def test_no_rule_is_ever_broken(cluster: MixedCluster, policy: Policy) -> None:
    made = cluster.build()
    for number in range(ROUNDS):
        plan = cycle(made, policy, START + number)
        check_nothing_is_overcommitted(made)
        check_queues(made)
        check_gangs(made, plan)
        check_evictions(made, plan)
        cluster.carry_out(made, plan)
        check_nothing_is_overcommitted(made)


@several
@given(mixed_clusters(), st.randoms(use_true_random=False))
def test_the_order_in_which_objects_arrive_changes_no_plan(cluster: MixedCluster, shuffled: object) -> None:
    for number in range(2):
        objects = list(cluster.objects.values())
        shuffled.shuffle(objects)  # type: ignore[attr-defined]
        plan = cycle(cluster.build(), Policy(), START + number)
        assert cycle(world(*objects), Policy(), START + number) == plan
        cluster.carry_out(cluster.build(), plan)


@several
@given(mixed_clusters(), st.booleans())
def test_an_incremental_world_equals_a_rebuilt_one(cluster: MixedCluster, backwards: bool) -> None:
    made = cluster.build()
    for number in range(ROUNDS):
        cluster.carry_out(made, cycle(made, Policy(), START + number))
    made.begin(START + ROUNDS)
    rebuilt = World()
    objects = list(cluster.objects.values())
    for entry in reversed(objects) if backwards else objects:
        rebuilt.upsert(entry)
    rebuilt.begin(START + ROUNDS)
    assert dump(made) == dump(rebuilt)


@several
@given(mixed_clusters())
def test_the_cluster_comes_to_rest(cluster: MixedCluster) -> None:
    """Nobody is evicted for ever: after some rounds nothing starts and nothing ends any more."""
    made = cluster.build()
    evicted, quiet = 0, 0
    for number in range(40):
        plan = cycle(made, Policy(), START + number)
        evicted += len(plan.evictions)
        cluster.carry_out(made, plan)
        quiet = quiet + 1 if not plan.binds and not plan.evictions else 0
        if quiet == 3:
            break
    else:
        raise AssertionError("the cluster does not come to rest")
    pods = sum(key[0] == "Pod" for key in cluster.objects)
    assert evicted <= 4 * pods


@several
@given(mixed_clusters())
def test_a_cycle_that_is_rolled_back_leaves_no_trace(cluster: MixedCluster) -> None:
    from capstan.scheduling.allocate import allocate
    from capstan.scheduling.evict import consolidate, evict_stale, preempt, reclaim
    from capstan.scheduling.session import Session

    made = cluster.build()
    cluster.carry_out(made, cycle(made, Policy(), START))
    made.begin(START + 1)
    made.share_out(Policy())
    before, mark = dump(made), made.mark()
    session = Session(made, Policy(), START + 1)
    for action in (allocate, consolidate, reclaim, preempt, evict_stale):
        action(session)
    made.rollback(mark)
    assert dump(made) == before


def unlike_under_a_topology(cluster: MixedCluster) -> bool:
    made = cluster.build()
    return any(
        len({task.shape.number for task in gang.tasks.values()}) > 1
        for gang in made.gangs.values()
        if gang.root.levels is not None
    )


@several
@given(mixed_clusters(), st.sampled_from(["binpack", "spread"]))
def test_what_starts_is_what_the_naive_scheduler_starts(cluster: MixedCluster, placement: str) -> None:
    """Pod for pod, node for node: indexes, shapes and counting bounds change how a start is found, not which."""
    assume(not unlike_under_a_topology(cluster))  # a difference on purpose: scenarios/differences.yaml
    policy = Policy(actions=("allocate",), gpu_placement=placement, cpu_placement=placement)  # type: ignore[arg-type]
    with naive.deciding():
        expected = cycle(cluster.build(), policy, START)
    plan = cycle(cluster.build(), policy, START)
    assert [(b.pod, b.node, b.gpu_groups) for b in plan.binds] == [
        (b.pod, b.node, b.gpu_groups) for b in expected.binds
    ]
