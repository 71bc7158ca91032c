"""Run times: what ends a gang that runs too long, what is learned, and clocks that are set."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TypeVar

import msgspec
import pytest

from capstan.api import clock
from capstan.api.core import Pod
from capstan.api.scheduling import PodGroup, Queue
from capstan.scheduling import Policy, World, cycle
from capstan.scheduling.runtimes import Ends, ahead

sys.path.insert(0, str(Path(__file__).parent))
from clusters import START, gang, node, pod, queue, world

T = TypeVar("T", PodGroup, Queue, Pod)
POLICY = Policy()


def noted(obj: T, **notes: str) -> T:
    """The object with annotations under `kai.scheduler/`; underscores stand for dashes."""
    for name, value in notes.items():
        obj.metadata.annotations[f"kai.scheduler/{name.replace('_', '-')}"] = value
    return obj


def running(since: float = START, **notes: str) -> PodGroup:
    return noted(gang("g", "a", minimum=2), last_start_timestamp=clock.render(since), **notes)


def evicted(made: World, now: float) -> list[str]:
    return [f"{eviction.action} {eviction.pod}" for eviction in cycle(made, POLICY, now).evictions]


def cluster(group: PodGroup, *rest: Queue) -> World:
    made = world(node("n0"), *(rest or (queue("a"),)), group)
    for i in range(2):
        made.upsert(pod(f"g-{i}", "g", gpus=1, on="n0"))
    return made


def recreate(made: World) -> None:
    for i in range(2):
        made.delete("Pod", "default", f"g-{i}")
        made.upsert(pod(f"g-{i}", "g", gpus=1))


def test_a_gang_is_evicted_as_a_whole_when_its_max_runtime_is_over() -> None:
    made = cluster(running(max_runtime="1h"))
    assert evicted(made, START + 3599) == []
    plan = cycle(made, POLICY, START + 3600)
    assert [eviction.pod for eviction in plan.evictions] == ["g-0", "g-1"]
    assert plan.evictions[0].reason == "has run for 3600 s; its max runtime is 3600 s"
    recreate(made)
    assert len(cycle(made, POLICY, START + 3601).binds) == 2


def test_it_waits_for_its_requeue_delay_and_says_until_when() -> None:
    made = cluster(running(max_runtime="1h", requeue_delay="10m"))
    plan = cycle(made, POLICY, START + 3600)
    assert [(s.annotation, s.value) for s in plan.stamps] == [
        ("kai.scheduler/requeue-not-before", clock.render(START + 4200))
    ]
    recreate(made)
    (verdict,) = cycle(made, POLICY, START + 3601).verdicts
    assert verdict.reason == "RequeueDelayNotElapsed"
    assert verdict.message == f"ran longer than its max runtime and waits until {clock.render(START + 4200)}"
    assert cycle(made, POLICY, START + 4199).binds == []
    assert len(cycle(made, POLICY, START + 4200).binds) == 2
    assert evicted(made, START + 4201) == [], "its time starts anew"


def test_a_new_scheduler_goes_on_waiting() -> None:
    made = world(node("n0"), queue("a"))
    made.upsert(running(max_runtime="1h", requeue_delay="10m", requeue_not_before=clock.render(START + 600)))
    for i in range(2):
        made.upsert(pod(f"g-{i}", "g", gpus=1))
    assert cycle(made, POLICY, START + 599).binds == []
    assert len(cycle(made, POLICY, START + 600).binds) == 2


def test_queues_give_defaults_from_the_leaf_to_the_root() -> None:
    above = noted(queue("top"), max_runtime="1h", requeue_delay="1m")
    assert evicted(cluster(running(), above, queue("a", "top")), START + 3600) == ["requeue g-0", "requeue g-1"]
    nearer = noted(queue("a", "top"), max_runtime="2h")
    assert evicted(cluster(running(), above, nearer), START + 3600) == []
    assert evicted(cluster(running(max_runtime="30m"), above, nearer), START + 1800) != []


def test_a_changed_default_of_the_queue_counts_at_once() -> None:
    made = cluster(running())
    assert evicted(made, START + 3600) == []
    made.upsert(noted(queue("a"), max_runtime="1h"))
    assert evicted(made, START + 3601) != []


def test_priority_does_not_protect_from_the_maximum() -> None:
    group = running(max_runtime="1h")
    group.spec.priority_class_name = "inference"
    assert evicted(cluster(group), START + 3600) != []


def test_a_pod_without_pod_group_carries_its_own_maximum() -> None:
    policy = Policy(scheduler_names=frozenset({"default-scheduler"}))
    made = World(policy=policy)
    made.upsert(node("n0"))
    alone = noted(pod("p", "", on="n0", schedulerName="default-scheduler"), max_runtime="1h")
    alone.status.start_time = clock.render(START)
    made.upsert(alone)
    assert cycle(made, policy, START + 3599).evictions == []
    assert [e.pod for e in cycle(made, policy, START + 3600).evictions] == ["p"]


@pytest.mark.parametrize("value", ["soon", "-5m", "0s", ""])
def test_a_wrong_duration_is_named(value: str) -> None:
    made = cluster(running(max_runtime=value))
    made.upsert(pod("g-2", "g", gpus=1))
    (verdict,) = cycle(made, POLICY, START + 10**6).verdicts
    assert verdict.reason == "InvalidPodGroup"
    assert "kai.scheduler/max-runtime" in verdict.message
    wrong = cluster(running(), noted(queue("a"), max_runtime=value))
    wrong.upsert(pod("g-2", "g", gpus=1))
    plan = cycle(wrong, POLICY, START + 10**6)
    assert plan.evictions == []
    assert "kai.scheduler/max-runtime" in plan.verdicts[0].message


# -- clocks that are set


def test_a_clock_that_is_set_forward_ends_nobody_early() -> None:
    made = cluster(running(max_runtime="1h"))
    assert evicted(made, START + 60) == []
    made.shift_clock(86_400)
    assert evicted(made, START + 86_400 + 61) == []
    assert evicted(made, START + 86_400 + 3599) == []
    assert evicted(made, START + 86_400 + 3600) != []


def test_a_clock_that_is_set_back_makes_nobody_run_longer() -> None:
    made = cluster(running(max_runtime="1h"))
    assert evicted(made, START + 60) == []
    made.shift_clock(-86_400)
    assert evicted(made, START - 86_400 + 3599) == []
    assert evicted(made, START - 86_400 + 3600) != []


def test_nobody_waits_longer_than_the_delay_when_the_clock_was_wrong() -> None:
    made = world(node("n0"), queue("a"))
    made.upsert(running(max_runtime="1h", requeue_delay="10m", requeue_not_before=clock.render(START + 10**7)))
    for i in range(2):
        made.upsert(pod(f"g-{i}", "g", gpus=1))
    assert cycle(made, POLICY, START).binds == []
    assert len(cycle(made, POLICY, START + 600).binds) == 2


def test_a_grace_period_that_began_in_the_future_begins_now() -> None:
    group = noted(gang("g", "a", minimum=2), stale_podgroup_timestamp=clock.render(START + 10**7))
    made = world(node("n0"), queue("a"), group, pod("g-0", "g", gpus=1, on="n0"))
    (stamp,) = cycle(made, POLICY, START).stamps
    assert stamp.value == clock.render(START)
    assert evicted(made, START + 61) == ["evict-stale g-0"]


def test_timers_of_stale_gangs_move_with_the_clock() -> None:
    made = world(node("n0"), queue("a"), gang("g", "a", minimum=2), pod("g-0", "g", gpus=1, on="n0"))
    cycle(made, POLICY, START)
    made.shift_clock(3600)
    assert evicted(made, START + 3600 + 59) == []
    assert evicted(made, START + 3600 + 60) == ["evict-stale g-0"]


# -- expected ends


def test_an_exceeded_expectation_is_doubled_until_it_lies_ahead() -> None:
    assert ahead(100, 60, now=100) == 160
    assert ahead(100, 60, now=160) == 220
    assert ahead(100, 60, now=340) == 580


def test_the_shortest_declared_run_time_counts() -> None:
    made = cluster(running(max_runtime="1h", expected_runtime="20m"))
    for i in range(2):
        made.upsert(pod(f"g-{i}", "g", gpus=1, on="n0", activeDeadlineSeconds=600 + i))
    (found,) = made.gangs.values()
    assert made.timed == {found: 601.0}
    assert Ends(made.timed, START + 5).of_gang(found) == START + 601


def finish(made: World, name: str, seconds: float, now: float) -> None:
    """A gang of one pod that ran for so long."""
    made.upsert(noted(gang(name, "a"), last_start_timestamp=clock.render(now - seconds)))
    one = pod(f"{name}-0", name, gpus=1, on="n0")
    made.upsert(one)
    done = {"name": "main", "state": {"terminated": {"finishedAt": clock.render(now)}}}
    status = msgspec.convert({"phase": "Succeeded", "containerStatuses": [done]}, type(one.status))
    made.upsert(msgspec.structs.replace(one, status=status))


def test_run_times_are_learned_from_finished_gangs_like_it() -> None:
    made = world(node("n0"), queue("a"))
    for i, seconds in enumerate((100, 300)):
        finish(made, f"done-{i}", seconds, START)
    made.upsert(gang("next", "a"))
    made.upsert(pod("next-0", "next", gpus=1))
    found = made.gangs[("default", "next")]
    assert Ends(made.timed, START, history=made.history).runtime(found) == float("inf"), "two runs are too few"
    finish(made, "done-2", 200, START)
    assert Ends(made.timed, START, history=made.history, quantile=0.5).runtime(found) == 200
    assert Ends(made.timed, START, history=made.history, quantile=0.9).runtime(found) == 300
    made.upsert(gang("other", "a"))
    made.upsert(pod("other-0", "other", gpus=2))
    other = made.gangs[("default", "other")]
    assert Ends(made.timed, START, history=made.history).runtime(other) == float("inf")
