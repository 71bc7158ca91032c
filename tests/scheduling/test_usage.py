"""Usage is the ratio of two decayed integrals over a window, whatever clocks, restarts and stored bytes do."""

from __future__ import annotations

import math
import zlib
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.scheduling import clusters

from capstan.api import clock
from capstan.scheduling import CorruptUsage, Policy, Usage, World
from capstan.scheduling.usage import Cron, Sliding, Tumbling, sample

START = clock.parse("2026-03-02T00:00:00Z")  # a Monday
HOUR, DAY = 3600.0, 86_400.0
CAPACITY = {"gpu": 8.0, "cpu": 64_000.0}

amounts = st.dictionaries(
    st.tuples(st.sampled_from(["a", "b", "c"]), st.sampled_from(["gpu", "cpu"])), st.integers(0, 8), max_size=4
)
steps = st.lists(st.tuples(st.integers(0, 1200).map(lambda quarters: quarters / 4), amounts), min_size=2, max_size=12)
half_lives = st.sampled_from([0.0, 10.0, 600.0, DAY])
windows = st.sampled_from([Sliding(HOUR), Sliding(DAY), Tumbling(HOUR, START), Cron("*/30 * * * *"), Sliding(1.0)])


def watched(history, usage: Usage, start: float = START) -> float:
    """Observe one amount after another; returns the time of the last observation."""
    now = start
    for wait, held in history:
        now += wait
        usage.observe(now, held, CAPACITY)
    return now


def direct(history, begin: float, half_life: float, start: float = START) -> dict[tuple[str, str], float]:
    """The definition: integrals of constant pieces, each decayed to the end."""
    times = [start + sum(wait for wait, _ in history[: i + 1]) for i in range(len(history))]
    end = times[-1]

    def integral(a: float, b: float) -> float:
        if not half_life:
            return b - a
        return half_life / math.log(2) * (2 ** ((b - end) / half_life) - 2 ** ((a - end) / half_life))

    held: dict[tuple[str, str], float] = {}
    whole = 0.0
    for (a, b), (_, amounts) in zip(pairwise(times), history, strict=False):
        weight = integral(max(a, begin), b) if b > begin else 0.0
        whole += weight
        for key, amount in amounts.items():
            held[key] = held.get(key, 0.0) + amount * weight
    return {key: amount / whole / CAPACITY[key[1]] for key, amount in held.items() if amount and whole}


def flat(usage: Usage) -> dict[tuple[str, str], float]:
    return {(queue, name): part for queue, parts in usage.shares().items() for name, part in parts.items()}


# -- the integral --------------------------------------------------------------------------------------------------


@given(steps, half_lives)
def test_usage_is_the_decayed_integral_of_what_was_held_over_that_of_the_capacity(history, half_life):
    usage = Usage(Sliding(DAY), half_life=half_life)
    watched(history, usage)
    assert flat(usage) == pytest.approx(direct(history, -math.inf, half_life), rel=1e-6, abs=1e-12)


@given(steps, half_lives)
def test_a_sliding_window_forgets_what_is_older_but_for_the_edge_of_a_slice(history, half_life):
    usage = Usage(Sliding(HOUR / 4), half_life=half_life)
    end = watched(history, usage)
    exact = direct(history, end - HOUR / 4, half_life)
    found = flat(usage)
    for key in exact.keys() | found.keys():
        assert found.get(key, 0.0) == pytest.approx(exact.get(key, 0.0), abs=1 / 24 + 1e-6)


def test_a_queue_that_had_half_of_the_gpus_for_half_of_the_time_used_a_quarter():
    usage = Usage(Sliding(DAY), staleness=HOUR)
    usage.observe(START, {("a", "gpu"): 4}, CAPACITY)
    usage.observe(START + HOUR, {}, CAPACITY)
    usage.observe(START + 2 * HOUR, {}, CAPACITY)
    assert usage.shares() == {"a": {"gpu": 0.25}}


def test_what_is_one_half_life_old_counts_half():
    usage = Usage(Sliding(DAY), half_life=HOUR, staleness=HOUR)
    usage.observe(START, {("a", "gpu"): 8}, CAPACITY)
    usage.observe(START + HOUR, {("b", "gpu"): 8}, CAPACITY)
    usage.observe(START + 2 * HOUR, {}, CAPACITY)
    found = usage.shares()
    assert found["b"]["gpu"] == pytest.approx(2 * found["a"]["gpu"]) == pytest.approx(2 / 3)


# -- windows -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("window", [Tumbling(DAY, START - 3 * DAY), Cron("0 0 * * *")])
def test_a_new_window_begins_with_nothing(window):
    usage = Usage(window, staleness=HOUR)
    for minute in range(0, 120, 10):
        usage.observe(START - HOUR + minute * 60, {("a" if minute < 60 else "b", "gpu"): 8}, CAPACITY)
        before = {"a": {"gpu": 1.0}} if 0 < minute < 60 else {}
        assert usage.shares() == (before if minute <= 60 else {"b": {"gpu": 1.0}})


def test_a_tumbling_window_that_has_not_begun_counts_nothing():
    usage = Usage(Tumbling(DAY, START + HOUR))
    usage.observe(START, {("a", "gpu"): 8}, CAPACITY)
    usage.observe(START + 60, {("a", "gpu"): 8}, CAPACITY)
    assert usage.shares() == {}


@given(windows, st.floats(0.0, 3e9))
def test_a_window_contains_its_present_and_its_slices_end(window, now):
    assert window.start(now) <= now < window.cut(now)


# -- gaps and jumps ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("gap", [299.0, 301.0])
def test_time_without_a_look_counts_on_neither_side(gap):
    usage = Usage(Sliding(DAY), staleness=300.0)
    usage.observe(START, {("a", "gpu"): 8}, CAPACITY)
    usage.observe(START + 100, {("a", "gpu"): 8}, CAPACITY)
    usage.observe(START + 100 + gap, {}, CAPACITY)
    usage.observe(START + 200 + gap, {}, CAPACITY)
    counted = 100 + (gap if gap <= 300 else 0)
    assert usage.shares()["a"]["gpu"] == pytest.approx(counted / (counted + 100))


@given(
    st.lists(st.tuples(st.floats(-1e7, 1e7) | st.floats(-10, 400), amounts), max_size=15),
    windows,
    half_lives,
)
def test_whatever_the_clock_does_usage_is_a_part_of_the_whole(history, window, half_life):
    usage, now = Usage(window, half_life=half_life), START
    for wait, held in history:
        now = max(0.0, now + wait)
        usage.observe(now, held, CAPACITY)
        assert all(0 < part <= 1 for part in flat(usage).values())


@pytest.mark.parametrize(("jump", "told"), [(-5 * HOUR, True), (-5 * HOUR, False), (5 * HOUR, True)])
def test_a_clock_that_is_set_makes_nothing_older_or_younger(jump, told):
    steady, jumping = (Usage(Sliding(DAY), half_life=HOUR, staleness=HOUR) for _ in range(2))
    for usage, offset in ((steady, 0.0), (jumping, jump)):
        usage.observe(START, {("a", "gpu"): 8}, CAPACITY)
        usage.observe(START + HOUR, {("a", "gpu"): 8}, CAPACITY)
        if told:
            usage.shift_clock(offset)
        usage.observe(START + HOUR + offset, {}, CAPACITY)
        usage.observe(START + 2 * HOUR + offset, {}, CAPACITY)
    assert flat(steady) == pytest.approx(flat(jumping))


def test_nodes_that_vanish_leave_usage_a_part_of_the_whole():
    usage = Usage(Sliding(DAY))
    usage.observe(START, {("a", "gpu"): 8}, {"gpu": 0.0})
    usage.observe(START + 60, {}, CAPACITY)
    assert usage.shares() == {"a": {"gpu": 1.0}}


# -- restarts ------------------------------------------------------------------------------------------------------


@given(steps, steps, windows, half_lives)
def test_a_restart_changes_nothing(before, after, window, half_life):
    steady, stopped = (Usage(window, half_life=half_life) for _ in range(2))
    end = watched(before, steady)
    watched(before, stopped)
    restarted = Usage(window, half_life=half_life)
    restarted.restore(stopped.encode())
    assert flat(restarted) == pytest.approx(flat(steady), rel=1e-5, abs=1e-9)
    watched(after, steady, end)
    watched(after, restarted, end)
    assert flat(restarted) == pytest.approx(flat(steady), rel=1e-5, abs=1e-9)


@given(st.binary(max_size=200), st.integers(0, 400), st.integers(0, 255))
def test_bytes_that_are_not_what_was_written_are_refused_and_change_nothing(noise, place, value):
    usage = Usage(Sliding(DAY))
    usage.observe(START, {("a", "gpu"): 8}, CAPACITY)
    usage.observe(START + 60, {("a", "gpu"): 8}, CAPACITY)
    written = usage.encode()
    spoilt = bytearray(written)
    spoilt[place % len(written)] = value
    for data in (noise, written[: place % len(written)], bytes(spoilt)):
        if unpacked(data) == unpacked(written):
            continue  # a few bits of compressed bytes mean nothing
        with pytest.raises(CorruptUsage):
            usage.restore(data)
        assert usage.shares() == {"a": {"gpu": 1.0}}


def unpacked(data: bytes) -> bytes:
    try:
        return zlib.decompress(data)
    except zlib.error:
        return b""


def test_ten_thousand_queues_fit_into_a_config_map():
    usage = Usage(Sliding(DAY), half_life=DAY / 4, staleness=DAY)
    for hour in range(25):
        held = {
            (f"team-{i:05}-of-a-large-company", r): 1.0 + (i * 7 + hour) % 13 for i in range(10_000) for r in CAPACITY
        }
        usage.observe(START + hour * HOUR, held | {(f"q{i}", "memory"): 1e12 for i in range(10_000)}, CAPACITY)
    assert len(usage.encode()) < 1_000_000
    assert len(usage.shares()) == 20_000


# -- in fair shares ------------------------------------------------------------------------------------------------


def shares_of(world: World, k: float = 1.0) -> dict[str, float]:
    world.refresh(START)
    world.share_out(Policy(k_value=k))
    return {name: queue.fair[2] / 1e6 for name, queue in world.queues.items()}


def two_queues() -> World:
    world = World()
    world.upsert(clusters.node("n1", gpus=8))
    for rank, name in enumerate("ab"):
        world.upsert(clusters.queue(name, quota=0, rank=rank))
        world.upsert(clusters.gang(f"g{name}", name, minimum=8))
        for i in range(8):
            world.upsert(clusters.pod(f"{name}{i}", f"g{name}", gpus=1))
    return world


def test_a_queue_that_used_more_than_its_part_gets_less_for_a_while():
    world = two_queues()
    assert shares_of(world) == {"a": 4.0, "b": 4.0}
    world.usage = {"a": {"gpu": 0.75}, "b": {"gpu": 0.25}}
    # Weights by KAI's formula: 0.5 + k * (0.5 - 0.75) and 0.5 + k * (0.5 - 0.25).
    assert shares_of(world, k=1.0) == {"a": 2.0, "b": 6.0}
    assert shares_of(world, k=2.0) == {"a": 0.0, "b": 8.0}
    assert shares_of(world, k=0.0) == {"a": 4.0, "b": 4.0}


def test_a_sample_is_what_queues_hold_and_the_capacity():
    world = two_queues()
    world.upsert(clusters.pod("running", "ga", gpus=1, on="n1"))
    held, capacity = sample(world)
    assert held["a", "gpu"] == 1_000_000 and ("b", "gpu") not in held
    assert capacity["gpu"] == 8_000_000


def test_past_use_of_a_gpu_product_counts_in_the_division_of_that_product():
    world = World()
    world.upsert(clusters.node("n1", gpus=8, labels={"nvidia.com/gpu.product": "H100"}))
    for rank, name in enumerate("ab"):
        world.upsert(clusters.queue(name, quota=0, rank=rank, gpu_types={"H100": {"quota": 0}}))
        world.upsert(clusters.gang(f"g{name}", name, minimum=8))
        for i in range(8):
            world.upsert(clusters.pod(f"{name}{i}", f"g{name}", gpus=1))
    world.upsert(clusters.pod("running", "ga", gpus=1, on="n1"))
    usage = Usage(Sliding(DAY))
    world.refresh(START)
    usage.observe(START, *sample(world))
    usage.observe(START + 60, *sample(world))
    assert usage.shares()["a"]["H100"] == 1 / 8
    world.usage = {"a": {"H100": 0.75}, "b": {"H100": 0.25}}
    world.share_out(Policy(k_value=1.0))
    # 0.5 + (0.5 - 0.75) against 0.5 + (0.5 - 0.25) of the product; of GPUs as such nobody used any.
    assert [queue.fair[3] / 1e6 for queue in world.queues.values()] == [2.0, 6.0]
    assert [queue.fair[2] / 1e6 for queue in world.queues.values()] == [4.0, 4.0]
