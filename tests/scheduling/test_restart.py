"""A scheduler that dies between two writes: the next one finishes what was begun, or undoes it."""

from __future__ import annotations

import sys
from pathlib import Path

from hypothesis import given
from hypothesis import strategies as st

from capstan.scheduling import Plan, Policy, cycle

sys.path.insert(0, str(Path(__file__).parent))
from clusters import START, clusters, gang, node, pod, queue, world
from test_properties import several

STEP = 20.0
GRACE_IN_STEPS = 4


def half_started(made):
    return [gang for gang in made.gangs.values() if gang.active and not gang.root.satisfied and not gang.error]


@several
@given(clusters(), st.data())
def test_no_gang_stays_half_started_whatever_part_of_a_plan_was_written(cluster, data):
    policy = Policy()
    plan = cycle(cluster.build(), policy, START)
    chosen = data.draw(st.sets(st.sampled_from(range(len(plan.binds)))) if plan.binds else st.just(set()))
    cluster.carry_out(cluster.build(), Plan(binds=[plan.binds[i] for i in sorted(chosen)]))
    made, now = cluster.build(), START
    for _ in range(2 * GRACE_IN_STEPS):
        now += STEP
        cluster.carry_out(made, cycle(made, policy, now))
    assert half_started(made) == []


def test_a_gang_that_was_begun_is_finished_before_others_start():
    begun = [pod("b-0", "begun", gpus=1, on="n"), *(pod(f"b-{i}", "begun", gpus=1) for i in (1, 2))]
    first = [pod("f-0", "first", gpus=1)]
    made = world(
        node("n", gpus=3),
        queue("q"),
        gang("first", "q", rank=0),
        gang("begun", "q", minimum=3, rank=1),
        *begun,
        *first,
    )
    plan = cycle(made, Policy(), START)
    assert [bind.pod for bind in plan.binds] == ["b-1", "b-2"]


def test_what_cannot_be_finished_is_undone_after_its_grace_period():
    made = world(
        node("n", gpus=1),
        queue("q"),
        gang("begun", "q", minimum=2, stalenessGracePeriod="30s"),
        pod("b-0", "begun", gpus=1, on="n"),
        pod("b-1", "begun", gpus=1),
    )
    for now, evicted in ((START, []), (START + 29, []), (START + 31, ["b-0"])):
        assert [eviction.pod for eviction in cycle(made, Policy(), now).evictions] == evicted
