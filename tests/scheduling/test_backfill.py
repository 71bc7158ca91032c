"""Reservations for gangs that find no room, and who may start before them."""

from __future__ import annotations

import sys
from pathlib import Path

import msgspec
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from capstan.api import clock
from capstan.api.scheduling import PodGroup
from capstan.scheduling import Plan, Policy, World, cycle
from capstan.scheduling.amounts import GPU_COLUMN
from capstan.scheduling.canonical import dump
from capstan.scheduling.model import HOLDS_LATER, Status

sys.path.insert(0, str(Path(__file__).parent))
from clusters import START, gang, node, pod, queue, world
from test_claims import confirm, platform

POLICY = Policy()
EXPECTED = "kai.scheduler/expected-runtime"
LAST_START = "kai.scheduler/last-start-timestamp"


def lasting(group: PodGroup, seconds: float | None, since: float | None = None) -> PodGroup:
    """The gang with an expected run time, and with its start if it runs already."""
    if seconds is not None:
        group.metadata.annotations[EXPECTED] = f"{seconds:g}s"
    if since is not None:
        group.metadata.annotations[LAST_START] = clock.render(since)
    return group


def runs(made: World, name: str, on: str, gpus: int, seconds: float | None, since: float = START) -> None:
    made.upsert(lasting(gang(name, "a"), seconds, since))
    made.upsert(pod(f"{name}-0", name, gpus=gpus, on=on))


def waits(
    made: World, name: str, pods: int, gpus: int, seconds: float | None = None, rank: int = 0, **rest: object
) -> None:
    made.upsert(lasting(gang(name, str(rest.pop("queue", "a")), minimum=pods, rank=rank, **rest), seconds))  # type: ignore[arg-type]
    for i in range(pods):
        made.upsert(pod(f"{name}-{i}", name, gpus=gpus, rank=rank))


def cluster(nodes: int = 2) -> World:
    return world(*(node(f"n{i}") for i in range(nodes)), queue("a"))


def told(plan: Plan, name: str) -> str:
    return next(f"{v.reason}: {v.message}" for v in plan.verdicts if v.group == name)


def bound(plan: Plan) -> list[str]:
    return [bind.pod for bind in plan.binds]


def test_a_large_gang_is_told_when_and_where_it_will_start() -> None:
    made = cluster()
    runs(made, "x", "n0", 4, 600)
    runs(made, "y", "n1", 2, 300)
    waits(made, "big", 2, 4)
    plan = cycle(made, POLICY, START + 10)
    assert (
        f"reserved 8 GPUs on 2 nodes from {clock.render(START + 600)}, when default/y and default/x are expected"
        in (told(plan, "big"))
    )
    (verdict,) = plan.verdicts
    assert verdict.details["reservation"] == {"start": clock.render(START + 600), "nodes": ["n0", "n1"]}


def test_who_ends_before_a_reservation_or_leaves_it_room_may_start() -> None:
    made = cluster()
    runs(made, "x", "n0", 2, 600)
    waits(made, "big", 1, 4)
    made.delete("Node", "", "n1")
    made.upsert(node("n1", gpus=1))
    waits(made, "short", 1, 2, seconds=590, rank=1)
    waits(made, "long", 1, 2, seconds=591, rank=2)
    waits(made, "unknown", 1, 1, rank=3)
    plan = cycle(made, POLICY, START + 10)
    assert {b.pod: b.node for b in plan.binds} == {"short-0": "n0", "unknown-0": "n1"}
    assert "reserved 4 GPUs on 1 node" in told(plan, "big")


def test_who_would_delay_a_reservation_is_told_whose() -> None:
    made = cluster(1)
    runs(made, "x", "n0", 2, 600)
    waits(made, "big", 1, 4)
    waits(made, "long", 1, 2, seconds=3600, rank=1)
    plan = cycle(made, POLICY, START)
    assert bound(plan) == []
    assert told(plan, "long").startswith(
        "ReservedForOthers: there is room, but it would delay the reservation of default/big "
        f"(4 GPUs on 1 node from {clock.render(START + 600)})"
    )


def test_nobody_is_held_back_while_no_end_is_known() -> None:
    made = cluster(1)
    runs(made, "x", "n0", 2, None)
    waits(made, "big", 1, 4)
    waits(made, "small", 1, 2, rank=1)
    plan = cycle(made, POLICY, START)
    assert bound(plan) == ["small-0"]
    assert "reserved" not in told(plan, "big")


def test_a_starving_gang_is_reserved_for_although_no_end_is_known() -> None:
    policy = Policy(starving_after=3600, assumed_runtime=900)
    made = cluster(1)
    runs(made, "x", "n0", 2, None)
    waits(made, "big", 1, 4)  # created 10,000 s ago
    waits(made, "small", 1, 2, rank=9000)
    plan = cycle(made, policy, START)
    assert bound(plan) == []
    assert f"from {clock.render(START + 900)}, when default/x is assumed to have ended" in told(plan, "big")
    later = cycle(made, policy, START + 1000)
    assert f"from {clock.render(START + 1800)}" in told(later, "big"), "what runs on is assumed to take twice as long"


def test_the_reserved_gang_starts_first_when_its_time_has_come() -> None:
    made = cluster(1)
    runs(made, "x", "n0", 4, 600)
    waits(made, "big", 1, 4)
    cycle(made, POLICY, START)
    waits(made, "older", 1, 4, rank=-100)
    assert bound(cycle(made, POLICY, START + 1)) == []
    made.delete("Pod", "default", "x-0")
    assert bound(cycle(made, POLICY, START + 600)) == ["big-0"]


def test_it_starts_sooner_when_room_comes_free_sooner() -> None:
    made = cluster(1)
    runs(made, "x", "n0", 4, 600)
    waits(made, "big", 1, 4)
    cycle(made, POLICY, START)
    made.delete("Pod", "default", "x-0")
    assert bound(cycle(made, POLICY, START + 60)) == ["big-0"]


def test_who_may_evict_the_gang_does_not_wait_for_it() -> None:
    made = cluster(1)
    runs(made, "x", "n0", 2, 600)
    waits(made, "big", 1, 4)
    cycle(made, POLICY, START)
    waits(made, "urgent", 1, 2, rank=1, priority="build-preemptible")
    assert bound(cycle(made, POLICY, START + 1)) == ["urgent-0"]


def test_a_queue_within_its_quota_does_not_wait_for_one_beyond() -> None:
    made = world(node("n0"), queue("a", quota=2), queue("b", quota=2, rank=1))
    runs(made, "x", "n0", 2, 600)
    waits(made, "big", 1, 4)
    cycle(made, POLICY, START)
    waits(made, "theirs", 1, 2, rank=1, queue="b")
    assert bound(cycle(made, POLICY, START + 1)) == ["theirs-0"]


def test_bounds_of_queues_are_no_reason_for_a_reservation() -> None:
    made = world(node("n0"), queue("a", limit=3))
    runs(made, "x", "n0", 2, 600)
    waits(made, "big", 1, 4)
    waits(made, "small", 1, 1, rank=1)
    plan = cycle(made, POLICY, START)
    assert bound(plan) == ["small-0"]
    assert told(plan, "big").startswith("OverLimit")


def test_reservations_follow_each_other() -> None:
    made = cluster(1)
    runs(made, "x", "n0", 4, 600)
    waits(made, "first", 1, 4, seconds=100)
    waits(made, "second", 1, 4, seconds=50, rank=1)
    waits(made, "third", 1, 4, seconds=1, rank=2)
    plan = cycle(made, POLICY, START)
    assert f"from {clock.render(START + 600)}" in told(plan, "first")
    assert f"from {clock.render(START + 700)}" in told(plan, "second")
    assert f"from {clock.render(START + 750)}" in told(plan, "third")


def test_no_more_reservations_than_the_policy_allows() -> None:
    made = cluster(1)
    runs(made, "x", "n0", 4, 600)
    for i in range(4):
        waits(made, f"g{i}", 1, 4, seconds=100, rank=i)
    plan = cycle(made, Policy(reservations=2), START)
    assert sum("reserved" in verdict.message for verdict in plan.verdicts) == 2
    assert all("reserved" not in v.message for v in cycle(made, Policy(reservations=0), START).verdicts)


def test_a_node_that_disappears_takes_its_reservations_with_it() -> None:
    made = cluster(2)
    runs(made, "x", "n0", 4, 600)
    runs(made, "y", "n1", 4, 900)
    waits(made, "big", 1, 4)
    assert clock.render(START + 600) in told(cycle(made, POLICY, START), "big")
    made.delete("Node", "", "n0")
    assert clock.render(START + 900) in told(cycle(made, POLICY, START + 1), "big")


def test_a_clock_that_is_set_moves_reservations_and_evicts_nobody() -> None:
    for jump in (-86_400.0, 86_400.0):
        made = cluster(1)
        runs(made, "x", "n0", 4, 600)
        waits(made, "big", 1, 4)
        cycle(made, POLICY, START)
        made.shift_clock(jump)
        plan = cycle(made, POLICY, START + jump + 1)
        assert plan.evictions == []
        assert f"from {clock.render(START + jump + 600)}" in told(plan, "big")


def test_learned_run_times_count_if_the_policy_says_so() -> None:
    made = cluster(1)
    runs(made, "x", "n0", 4, None)
    found = made.gangs[("default", "x")]
    for seconds in (500, 550, 600):
        made.history.note(("default", "a", next(iter(found.tasks.values())).shape.number, 1), seconds)
    waits(made, "big", 2, 2)
    assert "reserved" not in told(cycle(made, POLICY, START), "big")
    plan = cycle(made, Policy(learn_runtimes=True), START)
    assert f"from {clock.render(START + 600)}" in told(plan, "big")


def test_devices_of_resource_slices_are_reserved_like_those_of_device_plugins() -> None:
    made = platform(gpus=4, nodes=2)
    for i in range(2):
        waits(made, f"now{i}", 1, 3, seconds=600, rank=i)
    for bind in cycle(made, POLICY, START).binds:
        confirm(made, bind.uid, bind.node)
    waits(made, "big", 2, 4, rank=5)
    waits(made, "short", 1, 1, seconds=300, rank=6)
    waits(made, "long", 1, 1, rank=7)
    plan = cycle(made, POLICY, START + 60)
    assert bound(plan) == ["short-0"]
    assert f"reserved 8 GPUs on 2 nodes from {clock.render(START + 600)}" in told(plan, "big")
    assert "would delay the reservation of default/big" in told(plan, "long")
    for name in ("now0", "now1", "short"):
        made.delete("Pod", "default", f"{name}-0")
    assert bound(cycle(made, POLICY, START + 600)) == ["big-0", "big-1"]


# -- what holds for every cluster


Jobs = list[tuple[int, int, int | None]]
"""Pods, GPUs of each, run time in minutes (None: unknown), in order of arrival."""
several = settings(deadline=None, max_examples=60, suppress_health_check=list(HealthCheck))


@st.composite
def histories(draw: st.DrawFn) -> tuple[int, Jobs]:
    """Nodes of 4 GPUs, and gangs."""
    jobs = st.tuples(st.integers(1, 3), st.integers(1, 4), st.sampled_from([None, 1, 2, 3, 5, 8]))
    return draw(st.integers(1, 3)), draw(st.lists(jobs, min_size=1, max_size=12))


class Machine:
    """Plays gangs on a cluster: each runs exactly as long as it says, those of unknown run time for ever."""

    def __init__(self, nodes: int, jobs: Jobs) -> None:
        self.jobs, self.now = jobs, START
        self.world = cluster(nodes)
        self.ends: dict[int, float] = {}
        self.promised: dict[str, float] = {}

    def arrive(self, number: int) -> None:
        pods, gpus, minutes = self.jobs[number]
        waits(self.world, f"g{number}", pods, gpus, minutes * 60 if minutes else None, rank=number)

    def step(self) -> Plan:
        plan = cycle(self.world, POLICY, self.now)
        for bind in plan.binds:
            number = int(bind.group[1:])
            entry = self.world.pod(bind.uid)
            spec = msgspec.structs.replace(entry.spec, node_name=bind.node)
            self.world.upsert(
                msgspec.structs.replace(entry, spec=spec, status=msgspec.structs.replace(entry.status, phase="Running"))
            )
            minutes = self.jobs[number][2]
            if minutes:
                self.ends[number] = self.now + minutes * 60
        for eviction in plan.evictions:
            self.ends.pop(int(eviction.group[1:]), None)
            entry = self.world.pod(eviction.uid)
            self.world.delete("Pod", "default", eviction.pod)
            meta = msgspec.structs.replace(entry.metadata, uid=f"{eviction.uid}+")
            spec = msgspec.structs.replace(entry.spec, node_name="")
            status = msgspec.structs.replace(entry.status, phase="Pending")
            self.world.upsert(msgspec.structs.replace(entry, metadata=meta, spec=spec, status=status))
        return plan

    def end(self, number: int) -> float:
        """When a gang ends that runs, or is promised room that is being cleared."""
        minutes = self.jobs[number][2]
        return self.ends.get(number, self.now + minutes * 60 if minutes else float("inf"))

    def advance(self, seconds: float) -> None:
        self.now += seconds
        for number in [number for number, end in self.ends.items() if end <= self.now]:
            del self.ends[number]
            for i in range(self.jobs[number][0]):
                self.world.delete("Pod", "default", f"g{number}-{i}")


@several
@given(histories())
def test_a_reserved_gang_starts_no_later_than_it_was_told(
    history: tuple[int, Jobs],
) -> None:
    nodes, jobs = history
    machine = Machine(nodes, jobs)
    promised: dict[str, float] = {}
    for tick in range(len(jobs) + 60):
        if tick < len(jobs):
            machine.arrive(tick)
        plan = machine.step()
        for bind in plan.binds:
            assert machine.now <= promised.pop(bind.group, machine.now) + 30, f"{bind.group} starts late"
        for (_, name), made in machine.world.reservations.items():
            assert made.at <= promised.setdefault(name, made.at), f"{name} was promised an earlier time"
            promised[name] = made.at
        assert all(at + 30 > machine.now for name, at in promised.items()), promised
        machine.advance(30)


@several
@given(histories())
def test_nothing_that_runs_stands_in_the_way_of_a_reservation(
    history: tuple[int, Jobs],
) -> None:
    nodes, jobs = history
    machine = Machine(nodes, jobs)
    for tick in range(len(jobs) + 20):
        if tick < len(jobs):
            machine.arrive(tick)
        machine.step()
        world = machine.world
        for made in world.reservations.values():
            for name, need in made.need.items():
                there = world.nodes[name]
                held = 0
                for task in there.tasks.values():
                    number = int(task.gang.name[1:])  # type: ignore[union-attr]
                    if HOLDS_LATER[task.status] and machine.end(number) > made.at:
                        held += task.shape.gpus
                others = sum(
                    other.need.get(name, {}).get(GPU_COLUMN, 0)
                    for other in world.reservations.values()
                    if other is not made and other.at <= made.at < other.until
                )
                assert held + others + need[GPU_COLUMN] <= there.capacity[GPU_COLUMN]
        machine.advance(30)


@several
@given(histories())
def test_looking_for_a_time_leaves_no_trace_and_equal_clusters_get_equal_reservations(
    history: tuple[int, Jobs],
) -> None:
    nodes, jobs = history
    plans = []
    for _ in range(2):
        machine = Machine(nodes, jobs)
        for number in range(len(jobs)):
            machine.arrive(number)
        first = machine.step()
        machine.world.begin(machine.now)
        before = dump(machine.world)
        again = cycle(machine.world, POLICY, machine.now)
        machine.world.begin(machine.now)
        if not again.binds and not again.evictions:
            assert dump(machine.world) == before
            assert all(task.status in (Status.RUNNING, Status.PENDING) for task in machine.world.tasks.values())
        plans.append((first, again, list(machine.world.reservations.items())))
    assert plans[0] == plans[1]
