"""PodDisruptionBudgets: nothing is proposed that the Eviction API would refuse."""

from __future__ import annotations

import sys
from pathlib import Path

import msgspec
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from capstan.api.core import Pod, PodStatus
from capstan.api.policy import PodDisruptionBudget
from capstan.scheduling import Plan, Policy, World, cycle

sys.path.insert(0, str(Path(__file__).parent))
from clusters import START, Cluster, clusters, gang, node, pod, queue, world

POLICY = Policy()


def budget(name: str, allowed: int, selector: dict[str, str] | None = None, **status: int) -> PodDisruptionBudget:
    """A budget over the pods with these labels (none given: all pods)."""
    body = {
        "metadata": {"name": name, "namespace": "default", "generation": status.pop("generation", 1)},
        "spec": {"selector": {"matchLabels": selector or {}}},
        "status": {"disruptionsAllowed": allowed, "observedGeneration": 1, "currentHealthy": 1, "desiredHealthy": 2}
        | {name.replace("_h", "H"): value for name, value in status.items()},
    }
    return msgspec.convert(body, PodDisruptionBudget)


def served(name: str, group: str, gpus: int, on: str, app: str = "web", *, ready: bool = True, rank: int = 0) -> Pod:
    found = pod(name, group, gpus=gpus, on=on, rank=rank)
    found.metadata.labels["app"] = app
    return running(found, ready=ready)


def running(entry: Pod, *, ready: bool = True) -> Pod:
    condition = {"type": "Ready", "status": "True" if ready else "False"}
    status = msgspec.convert({"phase": "Running", "conditions": [condition]}, PodStatus)
    return msgspec.structs.replace(entry, status=status)


def two_victims() -> World:
    """Two running jobs of one GPU each, the first in an app of its own, and one that may preempt either."""
    made = world(node("n0", gpus=2), queue("a"))
    for i, app in enumerate(("web", "db")):
        made.upsert(gang(f"low{i}", "a", rank=i))
        made.upsert(served(f"low{i}-0", f"low{i}", 1, "n0", app, rank=i))
    made.upsert(gang("high", "a", priority="build-preemptible", rank=9))
    made.upsert(pod("high-0", "high", gpus=1, rank=9))
    return made


def victims(made: World, now: float = START) -> list[str]:
    return [eviction.pod for eviction in cycle(made, POLICY, now).evictions]


def test_the_usual_victim_is_the_newest() -> None:
    assert victims(two_victims()) == ["low1-0"]


def test_a_victim_that_its_budget_keeps_is_passed_over() -> None:
    made = two_victims()
    made.upsert(budget("keep", 0, {"app": "db"}))
    assert victims(made) == ["low0-0"]
    made.delete("PodDisruptionBudget", "default", "keep")


def test_a_budget_that_is_gone_or_elsewhere_keeps_nobody() -> None:
    made = two_victims()
    made.upsert(budget("keep", 0, {"app": "db"}))
    made.delete("PodDisruptionBudget", "default", "keep")
    elsewhere = budget("keep", 0)
    elsewhere.metadata.namespace = "other"
    made.upsert(elsewhere)
    made.upsert(msgspec.convert({"metadata": {"name": "none", "namespace": "default"}}, PodDisruptionBudget))
    assert victims(made) == ["low1-0"]


def test_the_verdict_says_when_budgets_decide() -> None:
    made = two_victims()
    made.upsert(budget("keep", 0))
    plan = cycle(made, POLICY, START)
    assert plan.evictions == []
    (verdict,) = plan.verdicts
    assert "2 pods are kept by the disruption budget default/keep, which allows 0 disruptions" in verdict.message


def test_a_budget_is_counted_over_all_evictions_of_a_plan_and_those_in_flight() -> None:
    made = two_victims()
    made.upsert(budget("one", 1))
    made.upsert(gang("high2", "a", priority="build-preemptible", rank=10))
    made.upsert(pod("high2-0", "high2", gpus=1, rank=10))
    assert victims(made) == ["low1-0"]
    assert victims(made, START + 1) == [], "the first eviction may have been sent, but is not confirmed"
    made.forget("p-low1-0")
    assert victims(made, START + 2) == ["low1-0"]


def test_a_gang_that_its_budget_would_leave_in_parts_is_no_victim() -> None:
    made = world(node("n0", gpus=2), queue("a"), gang("low", "a", minimum=2))
    for i in range(2):
        made.upsert(served(f"low-{i}", "low", 1, "n0"))
    made.upsert(gang("high", "a", priority="build-preemptible", rank=9))
    made.upsert(pod("high-0", "high", gpus=1, rank=9))
    made.upsert(budget("one", 1))
    assert victims(made) == []
    made.upsert(budget("one", 2))
    assert victims(made) == ["low-0", "low-1"]


@pytest.mark.parametrize(
    ("status", "policy", "spared"),
    [
        ({"current_healthy": 1, "desired_healthy": 2}, "IfHealthyBudget", True),
        ({"current_healthy": 2, "desired_healthy": 2}, "IfHealthyBudget", False),
        ({"current_healthy": 0, "desired_healthy": 0}, "IfHealthyBudget", True),
        ({"current_healthy": 1, "desired_healthy": 2}, "AlwaysAllow", False),
    ],
)
def test_pods_that_are_not_ready_follow_the_unhealthy_pod_eviction_policy(
    status: dict[str, int], policy: str, spared: bool
) -> None:
    made = world(node("n0", gpus=1), queue("a"), gang("low", "a"), served("low-0", "low", 1, "n0", ready=False))
    made.upsert(gang("high", "a", priority="build-preemptible", rank=9))
    made.upsert(pod("high-0", "high", gpus=1, rank=9))
    kept = budget("keep", 0, **status)
    kept.spec.unhealthy_pod_eviction_policy = policy
    made.upsert(kept)
    assert victims(made) == ([] if spared else ["low-0"])


def test_pods_under_two_budgets_are_never_evicted() -> None:
    made = two_victims()
    made.upsert(budget("one", 5))
    made.upsert(budget("two", 5, {"app": "db"}))
    assert victims(made) == ["low0-0"]


def test_a_budget_that_its_controller_has_not_seen_allows_nothing() -> None:
    made = two_victims()
    made.upsert(budget("new", 5, generation=2))
    assert victims(made) == []


def test_a_stale_gang_waits_for_its_budget() -> None:
    made = world(node("n0"), queue("a"), gang("g", "a", minimum=2), served("g-0", "g", 1, "n0"), budget("keep", 0))
    cycle(made, POLICY, START)
    assert victims(made, START + 61) == []
    made.upsert(budget("keep", 1))
    assert victims(made, START + 62) == ["g-0"]


def over_spent(made: World, plan: Plan, budgets: list[PodDisruptionBudget]) -> list[str]:
    """The budgets of which a plan takes more than they allow; all pods of these tests are ready while they run."""
    evicted = [made.tasks[eviction.uid] for eviction in plan.evictions]
    return [
        b.metadata.name
        for b in budgets
        if sum(b.spec.selector.matches(task.labels) for task in evicted) > b.status.disruptions_allowed  # type: ignore[union-attr]
    ]


@settings(deadline=None, max_examples=60, suppress_health_check=list(HealthCheck))
@given(clusters(), st.lists(st.integers(0, 2), min_size=2, max_size=2), st.data())
def test_no_plan_takes_more_than_the_budgets_allow(cluster: Cluster, amounts: list[int], data: st.DataObject) -> None:
    for (kind, _), entry in list(cluster.objects.items()):
        if kind == "Pod":
            entry.metadata.labels["app"] = data.draw(st.sampled_from(["web", "db", "none"]))
    budgets = [budget(app, amount, {"app": app}) for app, amount in zip(("web", "db"), amounts, strict=True)]
    made = cluster.build()
    for number in range(4):
        for entry in budgets:
            made.upsert(entry)
        plan = cycle(made, POLICY, START + number)
        assert over_spent(made, plan, budgets) == []
        cluster.carry_out(made, plan)
        for (kind, _), entry in list(cluster.objects.items()):
            if kind == "Pod" and isinstance(entry, Pod) and entry.status.phase == "Running":
                cluster.put(running(entry))
                made.upsert(cluster.objects[(kind, entry.metadata.name)])
