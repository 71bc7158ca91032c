"""Defragmentation windows: nodes are emptied for nobody in particular, and nothing thrashes."""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from capstan.api import clock
from capstan.scheduling import DefragmentWindow, Policy, World, cycle
from capstan.scheduling.amounts import GPU_COLUMN
from capstan.scheduling.canonical import dump

sys.path.insert(0, str(Path(__file__).parent))
from clusters import START, Cluster, clusters, gang, node, pod, queue, world

ALWAYS = Policy(defragment_windows=(DefragmentWindow("* * * * *", 60),))


def scattered(nodes: int = 4, **spec: object) -> World:
    """One GPU of four taken on every node, by jobs that have run for hours."""
    made = world(*(node(f"n{i}") for i in range(nodes)), queue("a"))
    for i in range(nodes):
        group = gang(f"g{i}", "a", rank=i, **spec)
        group.metadata.annotations["kai.scheduler/last-start-timestamp"] = clock.render(START - 10_000)
        made.upsert(group)
        made.upsert(pod(f"g{i}-0", f"g{i}", gpus=1, on=f"n{i}", rank=i))
    return made


def moves(made: World, policy: Policy = ALWAYS, now: float = START) -> dict[str, str]:
    """Moved pod -> where it goes."""
    plan = cycle(made, policy, now)
    assert {e.action for e in plan.evictions} <= {"defragment"}
    assert {e.pod for e in plan.evictions} == {p.pod for p in plan.promises}
    return {promise.pod: promise.node for promise in plan.promises}


def test_nodes_are_emptied_onto_one() -> None:
    made = scattered()
    found = moves(made)
    assert len(found) == 3
    assert len(set(found.values())) == 1
    reasons = {e.reason for e in made.evictions.values()}
    assert "moved in a defragmentation window, so that node n0 gets all its GPUs free" in reasons


def test_outside_of_a_window_nothing_moves() -> None:
    night = replace(ALWAYS, defragment_windows=(DefragmentWindow("0 2 * * *", 3600, "Europe/Berlin"),))
    before = clock.parse("2025-06-16T01:59:59+02:00")
    assert moves(scattered(), night, before) == {}
    assert moves(scattered(), night, before + 1) != {}
    assert moves(scattered(), night, before + 3600) != {}
    assert moves(scattered(), night, before + 3601) == {}
    assert moves(scattered(), Policy()) == {}


def test_no_more_pods_move_at_a_time_than_the_policy_allows() -> None:
    assert len(moves(scattered(), replace(ALWAYS, defragment_max_victims=2))) == 2
    assert moves(scattered(), replace(ALWAYS, defragment_max_victims=0)) == {}


def test_who_started_lately_is_left_alone() -> None:
    made = scattered()
    made.gangs[("default", "g1")].last_start = START - 3599
    assert sorted(moves(made)) == ["g0-0", "g2-0", "g3-0"], "the one that stays is the one the others join"
    young = scattered()
    for found in young.gangs.values():
        found.last_start = START - 3599
    assert moves(young) == {}


def test_non_preemptible_gangs_and_cores_stay() -> None:
    made = scattered(2, preemptibility="non-preemptible")
    assert moves(made) == {}
    assert moves(scattered(2, preemptibility="semi-preemptible")) == {}


def test_nothing_moves_that_frees_no_node() -> None:
    made = scattered(1)
    made.upsert(node("n9"))
    assert moves(made) == {}
    full = scattered(2)
    for i in range(2):
        full.upsert(gang(f"big{i}", "a", rank=10 + i))
        full.upsert(pod(f"big{i}-0", f"big{i}", gpus=3, on=f"n{i}", rank=10 + i))
    assert moves(full) == {}


def test_nothing_moves_while_something_is_under_way() -> None:
    made = scattered()
    assert moves(made) != {}
    assert moves(made, now=START + 1) == {}


def test_spreading_is_not_undone() -> None:
    assert moves(scattered(), replace(ALWAYS, gpu_placement="spread")) == {}


def empty_nodes(made: World) -> int:
    nodes = made.nodes.values()
    return sum(n.capacity[GPU_COLUMN] > 0 and n.later[GPU_COLUMN] == n.capacity[GPU_COLUMN] for n in nodes)


@settings(deadline=None, max_examples=40, suppress_health_check=list(HealthCheck))
@given(clusters(), st.integers(1, 8))
def test_every_batch_frees_nodes_places_everybody_and_ends(cluster: Cluster, most: int) -> None:
    policy = replace(ALWAYS, defragment_max_victims=most)
    made = cluster.build()
    for number in range(10):
        plan = cycle(made, Policy(), START + number)
        cluster.carry_out(made, plan)
        if not plan.binds and not plan.evictions:
            break
    for batch in range(12):
        now = START + 10_000 * (batch + 1)
        made.begin(now)
        before, whole = dump(made), empty_nodes(made)
        plan = cycle(made, policy, now)
        moved = [e for e in plan.evictions if e.action == "defragment"]
        if not moved:
            if not plan.binds and not plan.evictions:
                made.begin(now)
                assert dump(made)["nodes"] == before["nodes"]
                return
        else:
            assert len(moved) <= most
            assert {e.pod for e in moved} <= {p.pod for p in plan.promises}
            assert empty_nodes(made) > whole
        cluster.carry_out(made, plan)
        for settling in range(3):
            cluster.carry_out(made, cycle(made, Policy(), now + 1 + settling))
    raise AssertionError("it never comes to rest")
