"""Fairness among the users of one queue: opt-in, after priority, in both directions."""

from __future__ import annotations

import sys
from pathlib import Path

import msgspec

from capstan.api.core import Pod
from capstan.scheduling import Plan, Policy, World, cycle

sys.path.insert(0, str(Path(__file__).parent))
from clusters import START, ApiObject, gang, node, pod, queue, world

ALLOCATE = Policy(actions=("allocate",))


def jobs(
    user: str, count: int, *, rank: int, on: str = "", priority: str = "train", queue_name: str = "q"
) -> list[ApiObject]:
    """One-GPU jobs of a user, in order of age."""
    found: list[ApiObject] = []
    for i in range(count):
        name = f"{user}{i}"
        found.append(gang(name, queue_name, rank=rank + i, user=user, priority=priority))
        found.append(pod(name, name, gpus=1, on=on, rank=rank + i))
    return found


def started(made: World, policy: Policy = ALLOCATE) -> list[str]:
    return sorted(bind.pod for bind in cycle(made, policy, START).binds)


def evicted(plan: Plan) -> list[str]:
    return sorted(eviction.pod for eviction in plan.evictions)


def fair(parent: str = "", **bounds: float) -> ApiObject:
    return queue("q", parent, user_fairness="DominantShare", **bounds)  # type: ignore[arg-type]


def test_users_take_turns_whoever_came_first() -> None:
    made = world(node("n0", gpus=4), fair(), *jobs("ann", 4, rank=0), *jobs("bob", 4, rank=10))
    assert started(made) == ["ann0", "ann1", "bob0", "bob1"]


def test_without_it_age_decides_as_in_kai() -> None:
    made = world(node("n0", gpus=4), queue("q"), *jobs("ann", 4, rank=0), *jobs("bob", 4, rank=10))
    assert started(made) == ["ann0", "ann1", "ann2", "ann3"]


def test_what_already_runs_counts() -> None:
    made = world(
        node("n0", gpus=5),
        fair(),
        *jobs("eve", 2, rank=0, on="n0"),
        *jobs("ann", 3, rank=5),
        *jobs("bob", 3, rank=20),
        gang("late", "q", rank=2, user="eve"),
        pod("late", "late", gpus=1, rank=2),
    )
    assert started(made) == ["ann0", "ann1", "bob0"], "eve has two already"


def test_priority_comes_before_turns() -> None:
    made = world(
        node("n0", gpus=3),
        fair(),
        *jobs("ann", 2, rank=0, priority="inference"),
        *jobs("bob", 2, rank=10),
    )
    assert started(made) == ["ann0", "ann1", "bob0"]


def test_the_dominant_resource_decides_not_the_number_of_jobs() -> None:
    made = world(
        node("n0", gpus=4, cpu=8),
        fair(),
        gang("big", "q", rank=0, user="ann"),
        pod("big", "big", gpus=2, cpu=1),
        gang("more", "q", rank=1, user="ann"),
        pod("more", "more", gpus=1, cpu=1),
        *jobs("bob", 4, rank=10),
    )
    assert started(made) == ["big", "bob0", "bob1"]


def test_the_label_of_the_pods_counts_where_the_pod_group_has_none() -> None:
    def labelled(name: str, user: str, rank: int) -> list[ApiObject]:
        plain = pod(name, name, gpus=1, rank=rank)
        meta = msgspec.structs.replace(plain.metadata, labels={"user": user})
        return [gang(name, "q", rank=rank), msgspec.structs.replace(plain, metadata=meta)]

    made = world(
        node("n0", gpus=2), fair(), *labelled("a0", "ann", 0), *labelled("a1", "ann", 1), *labelled("b0", "bob", 2)
    )
    assert started(made) == ["a0", "b0"]


def test_preemption_ends_jobs_of_the_user_who_has_most() -> None:
    made = world(
        node("n0", gpus=4),
        fair(),
        *jobs("ann", 3, rank=0, on="n0"),
        *jobs("bob", 1, rank=20, on="n0"),
        gang("now", "q", rank=30, user="eve", priority="inference"),
        pod("now", "now", gpus=2, rank=30),
    )
    assert evicted(cycle(made, Policy(), START)) == ["ann1", "ann2"], "bob's is the newest, but he has only this one"


def test_what_was_taken_counts_for_the_next() -> None:
    made = world(
        node("n0", gpus=5),
        fair(),
        *jobs("ann", 3, rank=0, on="n0"),
        *jobs("bob", 2, rank=20, on="n0"),
        gang("now", "q", rank=30, user="eve", priority="inference"),
        pod("now", "now", gpus=3, rank=30),
    )
    assert evicted(cycle(made, Policy(), START)) == ["ann1", "ann2", "bob1"]


def test_a_lower_priority_goes_before_a_user_who_has_more() -> None:
    made = world(
        node("n0", gpus=4),
        fair(),
        *jobs("ann", 3, rank=0, on="n0", priority="build-preemptible"),
        *jobs("bob", 1, rank=20, on="n0"),
        gang("now", "q", rank=30, user="eve", priority="inference"),
        pod("now", "now", gpus=2, rank=30),
    )
    assert evicted(cycle(made, Policy(), START)) == ["ann2", "bob0"]


def test_reclaim_takes_from_the_user_who_has_most() -> None:
    made = world(
        node("n0", gpus=4),
        queue("top"),
        fair("top", quota=2, rank=1),
        queue("other", "top", quota=2, rank=2),
        *jobs("ann", 3, rank=0, on="n0"),
        *jobs("bob", 1, rank=20, on="n0"),
        gang("mine", "other", minimum=1, rank=30),
        pod("mine", "mine", gpus=2, rank=30),
    )
    assert evicted(cycle(made, Policy(), START)) == ["ann1", "ann2"]


def test_turns_in_a_queue_with_child_queues_are_a_warning() -> None:
    made = world(node("n0"), fair(), queue("below", "q"))
    assert made.queue_status()["q"].warnings == (
        "userFairness has no effect: the queue has child queues; set it on those that hold jobs",
    )


def test_an_unknown_way_of_taking_turns_is_an_error_of_the_queue() -> None:
    made = world(queue("q", user_fairness="RoundRobin"))
    assert made.queue_status()["q"].error == "userFairness is 'RoundRobin'; write DominantShare, or None"


def test_what_users_hold_follows_their_pods() -> None:
    made = world(node("n0", gpus=4), fair(), *jobs("ann", 2, rank=0, on="n0"))
    made.begin(START)
    assert made.queues["q"].users == {"ann": [2000, 2 << 30, 2_000_000]}
    old: Pod = made.pod("p-ann0")
    made.upsert(msgspec.structs.replace(old, status=msgspec.structs.replace(old.status, phase="Succeeded")))
    assert made.queues["q"].users == {"ann": [1000, 1 << 30, 1_000_000]}
    made.upsert(queue("q"))
    made.begin(START)
    assert made.queues["q"].users is None
