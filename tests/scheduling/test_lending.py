"""Lending limits: how much of an unused quota others may use, in fair shares and when pods start."""

from __future__ import annotations

import sys
from pathlib import Path

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from capstan.api.scheduling import Queue
from capstan.scheduling import Policy, World, cycle
from capstan.scheduling.amounts import GPU

sys.path.insert(0, str(Path(__file__).parent))
from clusters import PRODUCT, START, ApiObject, gang, node, pod, queue, world

H100 = {PRODUCT: "H100"}


def ones(name: str, count: int) -> list[ApiObject]:
    """Jobs of one GPU each in the queue of that name."""
    found: list[ApiObject] = []
    for i in range(count):
        found += [gang(f"{name}{i}", name, rank=i), pod(f"{name}{i}", f"{name}{i}", gpus=1, rank=i)]
    return found


def held(made: World, name: str) -> int:
    return made.queues[name].allocated[2] // GPU


def test_others_borrow_no_more_than_the_limit() -> None:
    made = world(
        node("n0", gpus=8),
        queue("a", quota=4, rank=1),
        queue("b", quota=4, lending=1, rank=2),
        *ones("a", 8),
    )
    plan = cycle(made, Policy(), START)
    assert held(made, "a") == 5
    assert made.queues["a"].fair[2] == 5 * GPU
    refused = {verdict.reason: verdict for verdict in plan.verdicts}
    assert list(refused) == ["OverLendingLimit"]
    assert refused["OverLendingLimit"].message == (
        "needs 1 GPU beyond the quota of queue a, 0 left of the 8 of the cluster, "
        "where other queues keep 3 that they do not lend"
    )


def test_what_is_kept_is_there_at_once_and_nobody_is_evicted_for_it() -> None:
    made = world(
        node("n0", gpus=8),
        queue("a", quota=4, rank=1),
        queue("b", quota=4, lending=0, rank=2),
        *ones("a", 8),
    )
    cycle(made, Policy(), START)
    for entry in ones("b", 4):
        made.upsert(entry)
    plan = cycle(made, Policy(), START + 1)
    assert sorted(bind.pod for bind in plan.binds) == ["b0", "b1", "b2", "b3"]
    assert plan.evictions == []


def test_without_a_limit_everything_is_lent() -> None:
    made = world(node("n0", gpus=8), queue("a", quota=4), queue("b", quota=4, rank=2), *ones("a", 8))
    cycle(made, Policy(), START)
    assert held(made, "a") == 8


def test_a_queue_within_its_own_quota_is_never_held_up_by_what_others_keep() -> None:
    """The quotas promise more than there is; what is deserved goes before what is kept."""
    made = world(
        node("n0", gpus=4),
        queue("a", quota=4, rank=1),
        queue("b", quota=4, lending=0, rank=2),
        *ones("a", 4),
    )
    cycle(made, Policy(), START)
    assert held(made, "a") == 4


def test_a_branch_may_lend_inside_what_it_does_not_lend_outside() -> None:
    made = world(
        node("n0", gpus=8),
        queue("left", quota=4, lending=0, rank=1),
        queue("a", "left", quota=2, rank=2),
        queue("b", "left", quota=2, rank=3),
        queue("right", quota=4, rank=4),
        queue("c", "right", quota=4, rank=5),
        *ones("a", 4),
        *ones("c", 8),
    )
    cycle(made, Policy(), START)
    assert (held(made, "a"), held(made, "c")) == (4, 4)


def test_what_a_sibling_keeps_also_counts_when_the_branch_borrows_from_outside() -> None:
    made = world(
        node("n0", gpus=8),
        queue("left", quota=4, rank=1),
        queue("a", "left", quota=2, rank=2),
        queue("b", "left", quota=2, lending=0, rank=3),
        queue("right", quota=4, rank=4),
        queue("c", "right", quota=4, rank=5),
        *ones("a", 8),
    )
    cycle(made, Policy(), START)
    assert held(made, "a") == 6, "its own 2 and the 4 of the other branch"


def test_products_have_lending_limits_of_their_own() -> None:
    keeps: dict[str, dict[str, float]] = {"H100": {"quota": 4, "lendingLimit": 1}}
    made = world(
        node("n0", gpus=4, labels=H100),
        node("n1", gpus=4, labels={PRODUCT: "A100"}),
        queue("a", quota=0, rank=1, gpu_types={"H100": {"quota": 0}}),
        queue("b", quota=0, rank=2, gpu_types=keeps),
        *ones("a", 8),
    )
    plan = cycle(made, Policy(), START)
    assert held(made, "a") == 5
    (text,) = {text for verdict in plan.verdicts for text in verdict.nodes if "H100" in text}
    assert text == (
        "needs 1 H100 GPU beyond the quota of queue a, 0 left of the 4 of the cluster, "
        "where other queues keep 3 that they do not lend"
    )


def test_a_limit_on_what_an_unlimited_quota_lends_makes_no_sense() -> None:
    made = world(node("n0"), queue("a", lending=1), queue("b"), *ones("b", 1))
    assert [bind.pod for bind in cycle(made, Policy(), START).binds] == ["b0"]
    assert made.queue_status()["a"].error == (
        "gpu.lendingLimit says how much of the quota is lent, but the quota is unlimited; set one"
    )


Number = st.integers(0, 6).map(float)


@settings(deadline=None, max_examples=80, suppress_health_check=list(HealthCheck))
@given(Number, Number, Number, st.integers(0, 10), st.integers(0, 6), st.booleans(), st.booleans())
def test_a_borrower_never_gets_at_what_its_sibling_keeps(
    own: float, quota: float, lending: float, wanted: int, owned: int, nested: bool, product: bool
) -> None:
    """Whatever starts first, ends and comes back: beyond its quota a queue leaves quota - lendingLimit alone."""
    typed: dict[str, dict[str, float]] = {"H100": {"quota": quota, "lendingLimit": lending}}
    lender: Queue
    if product:
        lender = queue("b", "top" if nested else "", quota=0, gpu_types=typed, rank=2)
    else:
        lender = queue("b", "top" if nested else "", quota=quota, lending=lending, rank=2)
    borrower = queue("a", "top" if nested else "", quota=own, gpu_types={"H100": {"quota": own}}, rank=1)
    made = world(node("n0", gpus=8, labels=H100), queue("top"), lender, borrower)
    place = 3 if product else 2
    for number in range(5):
        for entry in [*ones("a", wanted), *(ones("b", owned) if number in (1, 2) else [])]:
            if number < 3:
                made.upsert(entry)
        if number == 3:
            for i in range(owned):
                made.delete("Pod", "default", f"b{i}")
        cycle(made, Policy(), START + number)
        a, b = (made.queues[name].allocated[place] / GPU for name in "ab")
        assert a <= max(own, 8 - max(b, quota - lending))
