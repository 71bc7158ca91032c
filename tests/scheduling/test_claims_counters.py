"""Counters drawn as claims ask (KEP-5941): gangs, what ends, snapshots and restarts count exactly what was drawn."""

from __future__ import annotations

import itertools
import sys
from collections.abc import Sequence
from pathlib import Path

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from capstan.allocation import Features, Inventory
from capstan.api.core import Node
from capstan.api.resource import DeviceClass, ResourceClaim, ResourceClaimStatus, ResourceSlice
from capstan.scheduling import Plan, Policy, World, cycle, snapshot

sys.path.insert(0, str(Path(__file__).parent))
from clusters import START, gang, pod, queue
from test_properties import several

DRIVER = "net.example.com"
ON = Policy(features=Features(shared_consumable_capacity=True))
OFF = Policy()


def port(node: str, functions: int, bandwidth: int, **pool: int) -> ResourceSlice:
    """A network port with virtual functions that draw their bandwidth (in G) from it."""
    counter = {"bandwidth": {"valueFrom": {"capacityName": "bandwidth"}}}
    consumed = [{"counterSet": "port", "counters": counter}]
    policy = {"default": "1G", "validRange": {"min": "1G", "step": "1G"}}
    counters = {"bandwidth": {"value": f"{bandwidth}G", "requestPolicy": policy}}
    spec = {
        "driver": DRIVER,
        "nodeName": node,
        "pool": {"name": node, **pool},
        "devices": [{"name": f"vf-{i}", "consumesCounters": consumed} for i in range(functions)],
        "sharedCounters": [{"name": "port", "counters": counters}],
    }
    return msgspec.convert({"metadata": {"name": f"{node}-port"}, "spec": spec}, ResourceSlice)


def facts(nodes: int, functions: int = 4, bandwidth: int = 10) -> list[object]:
    status = {
        "allocatable": {"cpu": 64, "memory": "256Gi", "pods": 110},
        "conditions": [{"type": "Ready", "status": "True"}],
    }
    found: list[object] = [msgspec.convert({"metadata": {"name": "vf"}}, DeviceClass), queue("top"), queue("a", "top")]
    for name in (f"n{i}" for i in range(nodes)):
        found.append(msgspec.convert({"metadata": {"name": name}, "status": status}, Node))
        found.append(port(name, functions, bandwidth))
    return found


def claim(name: str, amount: int | None) -> ResourceClaim:
    asked = {} if amount is None else {"capacity": {"requests": {f"{DRIVER}/bandwidth": f"{amount}G"}}}
    request = {"name": "vf", "exactly": {"deviceClassName": "vf", **asked}}
    meta = {"name": name, "namespace": "default", "uid": name}
    return msgspec.convert({"metadata": meta, "spec": {"devices": {"requests": [request]}}}, ResourceClaim)


def job(name: str, amounts: Sequence[int | None], minimum: int | None = None) -> list[object]:
    """A gang with a pod for each amount of bandwidth."""
    made: list[object] = [gang(name, "a", minimum=len(amounts) if minimum is None else minimum)]
    for i, amount in enumerate(amounts):
        made.append(claim(f"{name}-{i}", amount))
        uses = [{"name": "net", "resourceClaimName": f"{name}-{i}"}]
        made.append(pod(f"{name}-{i}", name, rank=i, resourceClaims=uses))
    return made


def world(objects: Sequence[object], policy: Policy = ON) -> World:
    made = World(Inventory(policy.features), policy)
    for obj in objects:
        made.upsert(obj)  # type: ignore[arg-type]
    return made


def drawn(plan: Plan) -> list[str]:
    return sorted(
        f"{bind.node} {counters.counters['bandwidth']}"
        for bind in plan.binds
        for held in bind.claims.values()
        for result in held.devices.results
        for counters in result.consumed_counters
    )


def left(made: World, node: str = "n0") -> int:
    assert made.inventory is not None
    return int(made.inventory.left((DRIVER, node))["port"]["bandwidth"]) // 10**9


def told(plan: Plan, before: Sequence[object]) -> list[object]:
    """The claims and pods as the API server has them once the plan is carried out."""
    found: list[object] = []
    for obj in before:
        for bind in plan.binds:
            if isinstance(obj, ResourceClaim) and obj.key in bind.claims:
                obj = msgspec.structs.replace(obj, status=ResourceClaimStatus(allocation=bind.claims[obj.key]))
            elif obj.__class__.__name__ == "Pod" and obj.metadata.uid == bind.uid:  # type: ignore[attr-defined]
                spec = msgspec.structs.replace(obj.spec, node_name=bind.node)  # type: ignore[attr-defined]
                obj = msgspec.structs.replace(obj, spec=spec)  # type: ignore[type-var]
        found.append(obj)
    return found


@pytest.mark.parametrize(
    ("amounts", "nodes", "expected"),
    [
        ([6, 4], 1, ["n0 4G", "n0 6G"]),
        ([6, 5], 1, []),
        ([None, 9], 1, ["n0 1G", "n0 9G"]),
        ([6, 5, 4], 1, []),
        ([3, 3, 3, 3], 1, []),
        ([11], 1, []),
    ],
)
def test_a_gang_draws_all_it_asks_for_or_nothing(amounts: list[int | None], nodes: int, expected: list[str]) -> None:
    made = world([*facts(nodes), *job("job", amounts)])
    assert drawn(cycle(made, ON, START)) == expected
    assert left(made) == 10 - sum(amount or 1 for amount in amounts) * bool(expected)


def test_without_the_gate_counters_that_are_drawn_from_cost_nothing() -> None:
    made = world([*facts(1), *job("job", [None, None, None])], OFF)
    plan = cycle(made, OFF, START)
    assert (len(plan.binds), drawn(plan), left(made)) == (3, [], 10)


def test_a_gang_that_cannot_draw_says_what_is_in_the_way() -> None:
    made = world([*facts(1), *job("job", [6, 5])])
    (verdict,) = cycle(made, ON, START).verdicts
    assert "the shared counters" in verdict.message


def test_what_ends_gives_back_what_it_drew() -> None:
    objects = [*facts(1), *job("one", [6])]
    made = world(objects)
    for obj in told(cycle(made, ON, START), objects):
        made.upsert(obj)  # type: ignore[arg-type]
    for obj in job("two", [5]):
        made.upsert(obj)  # type: ignore[arg-type]
    assert drawn(cycle(made, ON, START + 1)) == []
    made.delete("Pod", "default", "one-0")
    made.delete("ResourceClaim", "default", "one-0")
    assert drawn(cycle(made, ON, START + 2)) == ["n0 5G"]
    assert left(made) == 5


def test_a_restart_counts_what_the_claims_say_whatever_the_slices_say_meanwhile() -> None:
    objects = [*facts(1), *job("one", [6])]
    after = told(cycle(world(objects), ON, START), objects)
    republished = [port("n0", 4, 8, generation=2) if isinstance(obj, ResourceSlice) else obj for obj in after]
    for order in (republished, republished[::-1]):
        again = world(order)
        assert left(again) == 2, "8G are offered now, and 6G of them drawn"
    vanished = [port("n0", 0, 8, generation=2) if isinstance(obj, ResourceSlice) else obj for obj in after]
    assert left(world(vanished)) == 2


@pytest.mark.parametrize("in_flight", [True, False])
def test_a_snapshot_counts_what_was_drawn_under_the_gates_it_was_taken_with(in_flight: bool) -> None:
    objects = [*facts(1), *job("one", [6])]
    made = world(objects)
    plan = cycle(made, ON, START)
    if not in_flight:
        objects = told(plan, objects)
        for obj in objects:
            made.upsert(obj)  # type: ignore[arg-type]
    taken = snapshot.decode(snapshot.encode(snapshot.capture(made, START, objects).snapshot()))  # type: ignore[arg-type]
    restored = snapshot.restore(taken)
    assert restored.policy.features == ON.features
    assert left(restored) == 4
    for obj in job("two", [5]):
        restored.upsert(obj)  # type: ignore[arg-type]
    assert drawn(cycle(restored, restored.policy, START + 1)) == []


@several
@given(
    st.lists(st.lists(st.integers(1, 8), min_size=1, max_size=3), min_size=1, max_size=4),
    st.integers(1, 2),
    st.integers(1, 4),
)
def test_no_port_is_drawn_from_beyond_its_bandwidth_and_gangs_are_whole(
    gangs: list[list[int]], nodes: int, functions: int
) -> None:
    made = world([*facts(nodes, functions), *(obj for i, g in enumerate(gangs) for obj in job(f"g{i}", g))])
    plan = cycle(made, ON, START)
    bound: dict[str, int] = {}
    for bind in plan.binds:
        bound[bind.pod.rpartition("-")[0]] = bound.get(bind.pod.rpartition("-")[0], 0) + 1
    assert all(count == len(gangs[int(name[1:])]) for name, count in bound.items())
    for node in (f"n{i}" for i in range(nodes)):
        amounts = [int(text.split()[1][:-1]) for text in drawn(plan) if text.startswith(f"{node} ")]
        assert len(amounts) <= functions
        assert sum(amounts) == 10 - left(made, node) <= 10
    if not plan.binds:
        assert not any(_fits(amounts, nodes, functions) for amounts in gangs)


def _fits(amounts: list[int], nodes: int, functions: int) -> bool:
    """Whether some assignment of pods to empty nodes stays within functions and bandwidth."""
    for where in itertools.product(range(nodes), repeat=len(amounts)):
        used = [[a for a, n in zip(amounts, where, strict=True) if n == node] for node in range(nodes)]
        if all(len(each) <= functions and sum(each) <= 10 for each in used):
            return True
    return False
