"""What those who wait are told, and what is shown of them."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from capstan.api.scheduling import PodGroup
from capstan.scheduling import Policy, World, cycle, resources_of, standings

sys.path.insert(0, str(Path(__file__).parent))
from clusters import START, gang, node, pod, queue, world

POLICY = Policy()


def verdict(made: World) -> tuple[str, str]:
    (only,) = cycle(made, POLICY, START).verdicts
    return only.reason, only.message


# -- contradictory PodGroups

TWO = [{"name": "x", "minMember": 1}, {"name": "y", "minMember": 1}]


@pytest.mark.parametrize(
    ("group", "words"),
    [
        (
            gang("g", "a", subgroups=TWO, minimum_subgroups=1, minMember=2),
            "the pod group has minMember and minSubGroup, which exclude each other; keep one",
        ),
        (
            gang("g", "a", subgroups=[*TWO, {"name": "z", "minMember": 1, "minSubGroup": 1}]),
            "subgroup z has minMember and minSubGroup, which exclude each other; keep one",
        ),
        (
            gang("g", "a", subgroups=[*TWO, {"name": "z", "minSubGroup": 2}]),
            "subgroup z needs 2 subgroups and has none; give it minMember",
        ),
    ],
)
@pytest.mark.parametrize("subgroup", ["x", ""])
def test_a_gang_with_two_kinds_of_minimum_says_so_to_all_of_its_pods(
    group: PodGroup, words: str, subgroup: str
) -> None:
    made = world(node("n0"), queue("a"), group, pod("p", "g", subgroup=subgroup))
    assert verdict(made) == ("InvalidPodGroup", words)


def test_a_pod_in_no_subgroup_of_its_gang_is_told_which_there_are() -> None:
    made = world(node("n0"), queue("a"), gang("g", "a", subgroups=TWO), pod("p", "g", subgroup="z"))
    assert verdict(made) == (
        "InvalidRequest",
        "1 pod is in no subgroup: pod p says kai.scheduler/subgroup-name=z; the subgroups with pods are x, y",
    )
    made.upsert(pod("q", "g"))
    assert verdict(made)[1].startswith("2 pods are in no subgroup: pod p says")


def test_the_rest_of_the_gang_starts_without_the_pods_that_are_in_no_subgroup() -> None:
    made = world(node("n0"), queue("a"), gang("g", "a", subgroups=TWO), pod("stray", "g"))
    made.upsert(pod("x-0", "g", subgroup="x"))
    made.upsert(pod("y-0", "g", subgroup="y"))
    plan = cycle(made, POLICY, START)
    assert [bind.pod for bind in plan.binds] == ["x-0", "y-0"]
    assert [(v.reason, v.pods) for v in plan.verdicts] == [("InvalidRequest", ("stray",))]
    assert "has no label kai.scheduler/subgroup-name" in plan.verdicts[0].message
    made.delete("Pod", "default", "stray")
    assert cycle(made, POLICY, START + 1).verdicts == []


# -- what gangs hold


def test_of_a_semi_preemptible_gang_only_the_core_counts_as_not_preemptible() -> None:
    made = world(node("n0"), queue("a"), gang("g", "a", minimum=2, preemptibility="semi-preemptible"))
    for i in range(3):
        made.upsert(pod(f"g-{i}", "g", gpus=1, on="n0"))
    (found,) = made.gangs.values()
    assert resources_of(found)["allocated"]["nvidia.com/gpu"] == "3"
    assert resources_of(found)["allocatedNonPreemptible"]["nvidia.com/gpu"] == "2"


def test_a_core_that_changes_is_seen_without_a_change_of_counts() -> None:
    def grown(core: int) -> World:
        made = world(node("n0"), queue("a"))
        made.upsert(gang("g", "a", minimum=1, preemptibility="semi-preemptible", minNonPreemptible=core))
        made.upsert(pod("g-0", "g", gpus=1, on="n0"))
        made.upsert(pod("g-1", "g", gpus=2, on="n0"))
        return made

    assert standings(grown(1)) != standings(grown(2))


def test_the_surplus_of_a_semi_preemptible_gang_asks_for_nothing_that_is_not_preemptible() -> None:
    made = world(node("n0"), queue("a", quota=2, limit=2))
    made.upsert(gang("g", "a", minimum=2, preemptibility="semi-preemptible"))
    for i in range(3):
        made.upsert(pod(f"g-{i}", "g", gpus=1))
    (over,) = cycle(made, POLICY, START).verdicts
    assert over.reason == "OverLimit"
    details = over.details["queueDetails"]
    assert isinstance(details, dict)
    assert details["podGroupRequestedResources"]["nvidia.com/gpu"] == "1"
    assert details["podGroupRequestedNonPreemptibleResources"]["nvidia.com/gpu"] == "0"
