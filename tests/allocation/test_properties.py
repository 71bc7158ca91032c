"""Random small clusters against a checker and a brute force that share no code with the allocator.

The brute force tries choices in the order in which kube-scheduler's allocator documents them, so its first solution
is what the policy `kubernetes` must answer, and whether it has one at all is what both policies must agree on.
"""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Iterator
from fractions import Fraction
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from capstan.allocation import Allocation, Features, Inventory, NodeView, Refusal, allocate
from capstan.allocation.search import Search

NODE = NodeView("n1", {"zone": "a"})
FEATURES = Features(shared_consumable_capacity=True)
SELECTORS = {
    "true": lambda d: True,
    "device.attributes['x.dev'].color == 'red'": lambda d: value(d, "color") == "red",
    "device.attributes['x.dev'].size > 1": lambda d: value(d, "size") > 1,
}
Device = dict[str, Any]
Picked = tuple[Any, Any, Device, dict[str, int] | None]
"""(claim, alternative, device, capacity taken of a shared device)."""


def value(device: Device, name: str) -> Any:
    return next(iter(device["attributes"][name].values()))


def as_set(device: Device, name: str) -> set[Any]:
    found = device["attributes"].get(name)
    if found is None:
        return set()
    kind, content = next(iter(found.items()))
    return {(kind.rstrip("s"), v) for v in content} if isinstance(content, list) else {(kind, content)}


# --- what a cluster and its claims look like


@st.composite
def devices(draw: st.DrawFn) -> list[Device]:
    result = []
    for position in range(draw(st.integers(1, 5))):
        attributes: dict[str, Any] = {
            "color": {"string": draw(st.sampled_from(["red", "blue"]))},
            "size": {"int": draw(st.integers(1, 3))},
        }
        if draw(st.booleans()):
            groups = draw(st.lists(st.sampled_from("xyz"), min_size=1, max_size=2, unique=True))
            attributes["groups"] = {"strings": groups} if draw(st.booleans()) else {"string": groups[0]}
        device: Device = {"name": f"d{position}", "attributes": attributes, "capacity": {"mem": {"value": "4"}}}
        if draw(st.integers(0, 2)) == 0:
            device["allowMultipleAllocations"] = True
        policy = draw(
            st.sampled_from(
                [
                    None,
                    {"default": "1"},
                    {"default": "2", "validValues": ["2", "3"]},
                    {"default": "1", "validRange": {"min": "1", "max": "3", "step": "2"}},
                ]
            )
        )
        if policy:
            device["capacity"]["mem"]["requestPolicy"] = policy
        if draw(st.booleans()):
            amounts = draw(st.dictionaries(st.sampled_from(["c", "k"]), st.integers(0, 2), min_size=1))
            device["consumesCounters"] = [
                {
                    "counterSet": draw(st.sampled_from(["s0", "s1"])),
                    "counters": {name: {"value": str(amount)} for name, amount in amounts.items()},
                }
            ]
            if draw(st.integers(0, 2)) == 0:
                name = draw(st.sampled_from(sorted(amounts)))
                device["consumesCounters"][0]["counters"][name] = {"valueFrom": {"capacityName": "band"}}
        if draw(st.integers(0, 5)) == 0:
            device["taints"] = [{"key": "bad", "effect": draw(st.sampled_from(["NoSchedule", "None"]))}]
        result.append(device)
    return result


@st.composite
def alternatives(draw: st.DrawFn, admin: bool = True) -> dict[str, Any]:
    spec: dict[str, Any] = {
        "deviceClassName": "x",
        "selectors": [{"cel": {"expression": draw(st.sampled_from(list(SELECTORS)))}}],
    }
    if draw(st.integers(0, 6)) == 0:
        spec["allocationMode"] = "All"
    else:
        spec["count"] = draw(st.integers(1, 3))
    if draw(st.integers(0, 2)) == 0:
        spec["capacity"] = {"requests": {"mem": str(draw(st.integers(1, 5)))}}
    if draw(st.integers(0, 5)) == 0:
        spec.setdefault("capacity", {"requests": {}})["requests"]["x.dev/band"] = str(draw(st.integers(0, 2)))
    if draw(st.booleans()):
        spec["tolerations"] = [{"key": "bad", "operator": "Exists"}]
    if admin and draw(st.integers(0, 7)) == 0:
        spec["adminAccess"] = True
    return spec


@st.composite
def pods(draw: st.DrawFn) -> list[dict[str, Any]]:
    claims = []
    for number in range(draw(st.integers(1, 2))):
        requests = []
        for position in range(draw(st.integers(1, 2))):
            if draw(st.integers(0, 3)) == 0:
                options = [draw(alternatives(admin=False)) | {"name": f"o{i}"} for i in range(draw(st.integers(1, 2)))]
                requests.append({"name": f"r{position}", "firstAvailable": options})
            else:
                requests.append({"name": f"r{position}", "exactly": draw(alternatives())})
        constraints = [
            {kind: f"x.dev/{draw(st.sampled_from(['color', 'size', 'groups']))}", "requests": names}
            for kind, names in draw(
                st.lists(
                    st.tuples(st.sampled_from(["matchAttribute", "distinctAttribute"]), st.sampled_from([[], ["r0"]])),
                    max_size=2,
                )
            )
        ]
        claims.append({"name": f"c{number}", "requests": requests, "constraints": constraints})
    return claims


# --- the checker


def consumed(device: Device, requested: dict[str, str]) -> dict[str, int] | None:
    """Capacity `mem` that one share takes, None if it cannot have it."""
    entry = device["capacity"]["mem"]
    policy, wanted = entry.get("requestPolicy"), requested.get("mem")
    if wanted is None:
        amount: Fraction | None = Fraction(policy["default"] if policy else entry["value"])
    elif policy is None or policy.keys() == {"default"}:
        amount = Fraction(wanted)
    elif "validValues" in policy:
        amount = min((v for v in map(Fraction, policy["validValues"]) if v >= Fraction(wanted)), default=None)
    else:
        low, high, step = (Fraction(policy["validRange"][key]) for key in ("min", "max", "step"))
        amount = next((v for v in (low + step * n for n in range(100)) if v >= Fraction(wanted)), None)
        amount = None if amount is None or amount > high else amount
    return None if amount is None or amount > Fraction(entry["value"]) else {"mem": int(amount)}


def drawn(device: Device, option: Any, counters: dict[str, dict[str, int]]) -> dict[tuple[str, str], int]:
    """What the option takes of the device's counters because it asks for it: all there is if it says nothing."""
    asked = option.get("capacity", {}).get("requests", {}).get("x.dev/band")
    return {
        (taken["counterSet"], name): counters[taken["counterSet"]][name] if asked is None else int(asked)
        for taken in device.get("consumesCounters", [])
        for name, amount in taken["counters"].items()
        if "valueFrom" in amount
    }


def overcommitted(used: list[Picked], counters: dict[str, dict[str, int]]) -> bool:
    """Whether the devices in use (admin access left out) are more than there is."""
    whole = Counter(device["name"] for _, _, device, takes in used if takes is None)
    memory = Counter[str]()
    by_name = {}
    for _, _, device, takes in used:
        by_name[device["name"]] = device
        memory[device["name"]] += takes["mem"] if takes else 0
    spent = Counter[tuple[str, str]]()
    for device in by_name.values():
        for taken in device.get("consumesCounters", []):
            for name, amount in taken["counters"].items():
                spent[taken["counterSet"], name] += int(amount.get("value", 0))
    for _, option, device, _ in used:
        spent.update(drawn(device, option, counters))
    return (
        any(count > 1 for count in whole.values())
        or any(amount > int(by_name[name]["capacity"]["mem"]["value"]) for name, amount in memory.items())
        or any(amount > counters[set_][name] for (set_, name), amount in spent.items())
    )


def constraints_hold(claim: Any, picks: list[Picked]) -> bool:
    for constraint in claim["constraints"]:
        covered = [
            device
            for owner, option, device, _ in picks
            if owner is claim and (not constraint["requests"] or option["base"] in constraint["requests"])
        ]
        kind = "matchAttribute" if "matchAttribute" in constraint else "distinctAttribute"
        sets = [as_set(device, constraint[kind].removeprefix("x.dev/")) for device in covered]
        if not all(sets):
            return False
        if kind == "matchAttribute" and sets and not set.intersection(*sets):
            return False
        if kind == "distinctAttribute" and any(a & b for a, b in itertools.combinations(sets, 2)):
            return False
    return True


def suits(option: Any, device: Device, counters: dict[str, dict[str, int]]) -> bool:
    """Selectors and capacity: what makes a device one of those that `All` means."""
    if not all(SELECTORS[s["cel"]["expression"]](device) for s in option["selectors"]):
        return False
    requested = option.get("capacity", {}).get("requests", {})
    own = drawn(device, option, counters)
    if "x.dev/band" in requested and not own:
        return False
    if not option.get("adminAccess") and any(amount > counters[s][name] for (s, name), amount in own.items()):
        return False
    if requested or (device.get("allowMultipleAllocations") and not option.get("adminAccess")):
        return consumed(device, requested) is not None
    return True


def tolerated(option: Any, device: Device) -> bool:
    return bool(option.get("tolerations")) or all(t["effect"] == "None" for t in device.get("taints", []))


# --- the brute force


def solutions(
    claims: list[Any], held: list[Picked], offered: list[Device], counters: Any, *, as_upstream: bool
) -> Iterator[list[Picked]]:
    """Every valid choice, in allocation order."""

    def usable(claim: Any, option: Any, device: Device, picks: list[Picked]) -> Picked | None:
        admin = bool(option.get("adminAccess"))
        shared = bool(device.get("allowMultipleAllocations")) and not admin
        for owner, other, taken, _ in picks:
            if taken is device and not device.get("allowMultipleAllocations"):
                by_admin = bool(other.get("adminAccess"))
                if owner is claim or (not admin and (as_upstream or not by_admin)):
                    return None
        takes = consumed(device, option.get("capacity", {}).get("requests", {})) if shared else None
        pick = (claim, option, device, takes)
        real = [p for p in (*held, *picks, pick) if not p[1].get("adminAccess")]
        if not tolerated(option, device) or (not admin and overcommitted(real, counters)):
            return None
        return pick if constraints_hold(claim, [*picks, pick]) else None

    def requests(index: int, picks: list[Picked]) -> Iterator[list[Picked]]:
        flat = [(claim, request) for claim in claims for request in claim["requests"]]
        if index == len(flat):
            yield picks
            return
        claim, request = flat[index]
        options = [request["exactly"]] if "exactly" in request else request["firstAvailable"]
        for option in options:
            option = option | {"base": request["name"]}
            fitting = [device for device in offered if suits(option, device, counters)]
            every = option.get("allocationMode") == "All"
            count = len(free(fitting, option)) if every else option["count"]
            if every:
                fitting = free(fitting, option)
            if count:
                for chosen in itertools.combinations(fitting, count):
                    trail, complete = list(picks), True
                    for device in chosen:
                        pick = usable(claim, option, device, trail)
                        if pick is None:
                            complete = False
                            break
                        trail.append(pick)
                    if complete:
                        yield from requests(index + 1, trail)

    def free(fitting: list[Device], option: Any) -> list[Device]:
        """`All` leaves out shared devices that have too little room before the search begins."""
        return [
            d
            for d in fitting
            if not d.get("allowMultipleAllocations")
            or option.get("adminAccess")
            or not overcommitted_capacity(d, option)
        ]

    def overcommitted_capacity(device: Device, option: Any) -> bool:
        takes = consumed(device, option.get("capacity", {}).get("requests", {}))
        spent = sum(t["mem"] for _, o, d, t in held if t and d is device and not o.get("adminAccess"))
        return takes is None or spent + takes["mem"] > int(device["capacity"]["mem"]["value"])

    yield from requests(0, [])


def options_by_name(claim: Any) -> dict[str, Any]:
    named = {}
    for request in claim["requests"]:
        if "exactly" in request:
            named[request["name"]] = request["exactly"] | {"base": request["name"]}
        for option in request.get("firstAvailable", []):
            named[f"{request['name']}/{option['name']}"] = option | {"base": request["name"]}
    return named


def picked(claims: list[Any], answer: Allocation, offered: list[Device]) -> list[Picked]:
    by_name = {device["name"]: device for device in offered}
    picks: list[Picked] = []
    for claim in claims:
        key = next(key for key in answer.results if key[1].endswith(claim["name"]))
        named = options_by_name(claim)
        for result in answer.results[key].devices.results:
            takes = {n: int(str(v)) for n, v in result.consumed_capacity.items()} if result.share_id else None
            picks.append((claim, named[result.request], by_name[result.device], takes))
    return picks


@settings(max_examples=400, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(
    offered=devices(),
    work=st.lists(pods(), min_size=1, max_size=3),
    counters=st.fixed_dictionaries(
        {s: st.fixed_dictionaries({"c": st.integers(0, 4), "k": st.integers(0, 4)}) for s in ("s0", "s1")}
    ),
    policy=st.sampled_from(["kubernetes", "best-fit"]),
)
def test_answers_are_valid_complete_and_in_order(
    make: Any, offered: list[Device], work: list[Any], counters: dict[str, dict[str, int]], policy: Any
) -> None:
    inv = inventory_of(make, offered, counters)
    held: list[Picked] = []
    for number, pod in enumerate(work):
        claims = [make.claim(f"p{number}-{c['name']}", *c["requests"], constraints=c["constraints"]) for c in pod]
        before = inv.dump()
        answer = allocate(inv, claims, NODE, policy, features=FEATURES)
        assert inv.dump() == before
        again = allocate(inv, claims, NODE, policy, features=FEATURES)
        assert answer == again, "the same question has the same answer"
        expected = next(solutions(pod, held, offered, counters, as_upstream=policy == "kubernetes"), None)
        if isinstance(answer, Refusal):
            assert answer.reason != "BudgetExhausted"
            assert expected is None, f"refused with {answer.message}"
            continue
        picks = picked(pod, answer, offered)
        assert expected is not None, "nothing should fit"
        if policy == "kubernetes":
            assert [(o["base"], d["name"]) for _, o, d, _ in picks] == [
                (o["base"], d["name"]) for _, o, d, _ in expected
            ]
        for claim in pod:
            assert constraints_hold(claim, picks)
        assert all(suits(o, d, counters) and tolerated(o, d) for _, o, d, _ in picks)
        held += [pick for pick in picks if not pick[1].get("adminAccess")]
        assert not overcommitted(held, counters)
        shares = [r.share_id for a in answer.results.values() for r in a.devices.results if r.share_id]
        assert len(shares) == len(set(shares))
        for key, allocation in answer.results.items():
            inv.assume(key, allocation)


def inventory_of(make: Any, offered: list[Device], counters: Any) -> Inventory:
    inv = Inventory()
    inv.upsert(make.device_class("x", "device.driver == 'x.dev'"))
    inv.upsert(make.slice(offered, driver="x.dev", counters=counters))
    return inv


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(offered=devices(), work=st.lists(pods(), min_size=2, max_size=4), order=st.randoms(use_true_random=False))
def test_rollback_and_release_restore_everything(make: Any, offered: list[Device], work: list[Any], order: Any) -> None:
    counters = {s: {"c": 3, "k": 3} for s in ("s0", "s1")}
    inv = inventory_of(make, offered, counters)
    empty = inv.dump()
    dumps, marks, keys = [], [], []
    for number, pod in enumerate(work):
        marks.append(inv.mark())
        dumps.append(inv.dump())
        claims = [make.claim(f"p{number}-{c['name']}", *c["requests"], constraints=c["constraints"]) for c in pod]
        answer = allocate(inv, claims, NODE, features=FEATURES)
        if isinstance(answer, Allocation):
            for key, allocation in answer.results.items():
                inv.assume(key, allocation)
                keys.append(key)
    full = inv.dump()
    middle = inv.mark()
    order.shuffle(keys)
    for key in keys:
        inv.release(key)
    assert inv.dump() == empty
    inv.rollback(middle)
    assert inv.dump() == full
    for mark, dump in reversed(list(zip(marks, dumps, strict=True))):
        inv.rollback(mark)
        assert inv.dump() == dump


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(data=st.data(), offered=devices(), work=st.lists(pods(), min_size=2, max_size=4))
def test_republished_slices_never_lead_to_overcommit(
    make: Any, data: st.DataObject, offered: list[Device], work: list[Any]
) -> None:
    """Between allocations devices vanish, come back and the generation is bumped: what is held stays counted."""
    counters = {s: {"c": 3, "k": 3} for s in ("s0", "s1")}
    inv = inventory_of(make, offered, counters)
    held: list[Picked] = []
    for number, pod in enumerate(work):
        here = data.draw(st.lists(st.sampled_from(offered), unique_by=lambda d: d["name"]), label="published")
        here.sort(key=lambda d: d["name"])
        inv.upsert(make.slice(here, driver="x.dev", counters=counters, generation=number + 2))
        claims = [make.claim(f"p{number}-{c['name']}", *c["requests"], constraints=c["constraints"]) for c in pod]
        answer = allocate(inv, claims, NODE, features=FEATURES)
        if isinstance(answer, Allocation):
            picks = picked(pod, answer, offered)
            assert {d["name"] for _, _, d, _ in picks} <= {d["name"] for d in here}
            held += [pick for pick in picks if not pick[1].get("adminAccess")]
            assert not overcommitted(held, counters)
            for key, allocation in answer.results.items():
                inv.assume(key, allocation)


class Exhaustive(Search):
    """The search without symmetry and memory: it looks at every solution."""

    def _kind(self, device: Any, states: dict[int, int]) -> tuple[int, int, Any]:
        return (0, 0, device)

    def _seen_before(self, index: int, position: int, need: int, states: dict[int, int]) -> bool:
        return False


@settings(max_examples=200, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(offered=devices(), pod=pods(), before=pods())
def test_a_choice_called_optimal_is_as_cheap_as_any(
    make: Any, offered: list[Device], pod: list[Any], before: list[Any]
) -> None:
    inv = inventory_of(make, offered, {s: {"c": 4, "k": 4} for s in ("s0", "s1")})
    earlier = allocate(inv, [make.claim(f"b-{c['name']}", *c["requests"]) for c in before], NODE, features=FEATURES)
    if isinstance(earlier, Allocation):
        for key, held in earlier.results.items():
            inv.assume(key, held)
    claims = [make.claim(c["name"], *c["requests"], constraints=c["constraints"]) for c in pod]
    answer = allocate(inv, claims, NODE, features=FEATURES)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("capstan.allocation.allocator.Search", Exhaustive)
        patch.setattr("capstan.allocation.search.IMPROVEMENT_STEPS", 2_000)
        cheapest = allocate(inv, claims, NODE, features=FEATURES)
    if isinstance(answer, Refusal) or isinstance(cheapest, Refusal):
        assert isinstance(answer, Refusal)
        assert isinstance(cheapest, Refusal)
        return
    if answer.optimal and cheapest.optimal:
        assert sum(c.cost for c in answer.explanation) == sum(c.cost for c in cheapest.explanation)


@pytest.mark.parametrize("policy", ["best-fit", "kubernetes"])
def test_the_same_allocation_whatever_the_order_of_facts(make: Any, policy: Any) -> None:
    slices = [make.slice([make.gpu(f"gpu-{i}", numa=i % 2)], pool="p", name=f"s{i}", count=4) for i in range(4)]
    wanted = [
        make.claim("c", make.request(count=2), constraints=[{"matchAttribute": "resource.kubernetes.io/numaNode"}])
    ]
    answers = {
        tuple(make.devices(allocate(make.inventory(*order), wanted, NODE, policy)))
        for order in itertools.permutations(slices)
    }
    assert len(answers) == 1
