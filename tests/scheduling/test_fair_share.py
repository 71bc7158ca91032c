"""The division of one resource among sibling queues: exact, fair and complete, whatever the numbers."""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path

from hypothesis import given, settings
from hypothesis import strategies as st

from capstan.scheduling.amounts import GPU
from capstan.scheduling.fair_share import Claimant, divide, promise

sys.path.insert(0, str(Path(__file__).parent))
from clusters import START, Cluster, clusters

many = settings(deadline=None, max_examples=400)
amounts = st.integers(0, 40)


@st.composite
def level(draw: st.DrawFn) -> list[Claimant]:
    """Sibling queues of one resource; some without quota, limit or weight, some that limit what they lend."""
    found = []
    for i in range(draw(st.integers(1, 6))):
        quota = draw(st.just(-1) | amounts)
        found.append(
            Claimant(
                name=f"q{i}",
                priority=draw(st.sampled_from([100, 100, 200])),
                rank=i,
                quota=quota,
                limit=draw(st.just(-1) | amounts),
                weight=draw(st.sampled_from([0.0, 0.5, 1.0, 1.0, 3.0])),
                request=draw(amounts),
                usage=draw(st.sampled_from([0.0, 0.0, 0.25, 0.5])),
                lending=draw(st.just(-1) | amounts) if quota >= 0 else -1,
            )
        )
    return found


@many
@given(level(), st.integers(0, 100), st.sampled_from([1, 7]), st.sampled_from([0.0, 1.0, 2.0]))
def test_no_more_is_handed_out_than_there_is_and_nobody_gets_more_than_it_can_use(
    queues: list[Claimant], total: int, unit: int, k: float
) -> None:
    """But for the last unit, of which it may need a part only."""
    divide(total, queues, unit, k)
    assert sum(queue.fair for queue in queues) <= total
    assert all(0 <= queue.fair < queue.requestable + unit for queue in queues if queue.fair or queue.requestable)


@many
@given(level(), st.integers(0, 100), st.sampled_from([1, 7]))
def test_what_is_promised_is_divided_where_there_is_enough_for_all_quotas(
    queues: list[Claimant], total: int, unit: int
) -> None:
    promised = [replace(queue) for queue in queues]
    promise(total, promised, unit)
    if not divide(total, queues, unit):
        assert queues == promised
    for queue in promised:
        assert queue.fair >= min(queue.quota, queue.requestable)


@many
@given(level(), st.integers(0, 100))
def test_what_is_left_over_is_of_no_use_to_anybody_or_kept_by_its_owner(queues: list[Claimant], total: int) -> None:
    """Weights share everything out, up to what lending limits hold back; usage may close a queue for a while."""
    queues = [replace(queue, usage=0.0) for queue in queues]
    divide(total, queues)
    left = total - sum(queue.fair for queue in queues)
    kept = sum(queue.kept for queue in queues)
    hungry = [queue for queue in queues if queue.fair < queue.requestable and queue.weight > 0]
    assert left <= kept or not hungry


@many
@given(level(), st.integers(0, 100))
def test_a_queue_gets_what_it_deserves_and_asks_for_as_far_as_all_quotas_can_be_met(
    queues: list[Claimant], total: int
) -> None:
    queues = [replace(queue, quota=max(0, queue.quota)) for queue in queues]
    divide(total, queues)
    if sum(queue.quota for queue in queues) <= total:
        assert all(queue.fair >= min(queue.quota, queue.requestable) for queue in queues)


@many
@given(level(), st.integers(0, 100))
def test_what_a_queue_keeps_is_there_for_it(queues: list[Claimant], total: int) -> None:
    """Whoever limits what it lends finds, beyond what it asks for, the rest of its quota unused."""
    divide(total, queues)
    guaranteed = sum(min(queue.quota, queue.requestable) for queue in queues if queue.quota >= 0)
    kept = sum(queue.kept for queue in queues)
    if guaranteed + kept <= total:
        assert total - sum(queue.fair for queue in queues) >= kept


@many
@given(level(), st.integers(0, 100), st.integers(0, 5), st.sampled_from([0.5, 1.0, 5.0]))
def test_a_larger_weight_never_gets_less(queues: list[Claimant], total: int, which: int, more: float) -> None:
    queues = [replace(queue, usage=0.0) for queue in queues]
    chosen = which % len(queues)
    heavier = [replace(queue, weight=queue.weight + more * (i == chosen)) for i, queue in enumerate(queues)]
    divide(total, queues)
    divide(total, heavier)
    assert heavier[chosen].fair >= queues[chosen].fair


@many
@given(level(), st.integers(0, 100), st.permutations(range(6)))
def test_the_order_in_which_queues_are_listed_does_not_matter(
    queues: list[Claimant], total: int, order: list[int]
) -> None:
    shuffled = [replace(queues[i]) for i in order if i < len(queues)]
    divide(total, queues)
    divide(total, shuffled)
    assert {queue.name: queue.fair for queue in shuffled} == {queue.name: queue.fair for queue in queues}


@settings(deadline=None, max_examples=60)
@given(clusters(products=True))
def test_every_level_of_the_tree_divides_no_more_than_the_level_above_it_got(cluster: Cluster) -> None:
    world = cluster.build()
    world.begin(START)
    world.share_out(world.policy)
    for i in range(len(world.resources)):
        assert sum(root.fair[i] for root in world.roots) <= world.total[i]
        for queue in world.queues.values():
            assert sum(child.fair[i] for child in queue.children) <= queue.fair[i] or not queue.children
            assert queue.fair[i] <= queue.requested[i]
    assert all(amount % GPU == 0 for amount in world.total[2:])
