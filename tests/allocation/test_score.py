"""`best-fit` against its documentation: every valid choice is enumerated and scored as docs/allocation.md says.

The nodes are small: a few GPUs, whole, in MIG placements or shared, and NICs; the claims mix them. Nothing here knows
how the allocator searches or computes.
"""

from __future__ import annotations

import itertools
import os
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import msgspec
from hypothesis import Phase, event, given, settings
from hypothesis import strategies as st

from capstan.allocation import Allocation, Inventory, NodeView, allocate
from capstan.api.resource import ResourceClaim

EXAMPLES = int(os.environ.get("PROPERTY_EXAMPLES", "100"))
NODE = NodeView("n1")
GPU = 40
"""GiB of a GPU."""
PROFILES = {"1g": (1, (0, 1, 2, 3)), "2g": (2, (0, 2))}
"""Slices of a MIG profile, and where it may begin."""


@dataclass(frozen=True)
class Device:
    name: str
    kind: str
    memory: int = 0
    parent: int = -1
    slices: tuple[int, ...] = ()
    """Of its GPU; empty for what is no partition."""
    numa: int = 0
    pcie: str = ""
    nvlink: str = ""
    informed: bool = False
    """Has a taint that only informs."""
    binding: bool = False

    @property
    def driver(self) -> str:
        return "nic.dev" if self.kind == "nic" else "gpu.nvidia.com"

    @property
    def shared(self) -> bool:
        return self.kind == "shared"

    def published(self, make: Any) -> dict[str, Any]:
        attributes = {"type": self.kind, "numa": self.numa, "pcie": self.pcie, "parent": self.parent}
        if self.nvlink:
            attributes["nvlink"] = self.nvlink
        body: dict[str, Any] = {"name": self.name, "attributes": make.attributes(**attributes)}
        if self.memory:
            body["capacity"] = {"memory": {"value": f"{self.memory}Gi"}}
        if self.shared:
            body["allowMultipleAllocations"] = True
        if self.slices:
            counters = {f"slice-{slice_}": {"value": "1"} for slice_ in self.slices}
            body["consumesCounters"] = [{"counterSet": f"gpu-{self.parent}", "counters": counters}]
        if self.informed:
            body["taints"] = [{"key": "info", "effect": "None"}]
        if self.binding:
            body["bindingConditions"] = ["ready"]
        return body


@dataclass(frozen=True)
class Want:
    """One alternative of a request."""

    kinds: tuple[str, ...]
    count: int = 1
    memory: int = 0
    """GiB asked of a shared GPU."""


@dataclass(frozen=True)
class Claim:
    requests: tuple[tuple[Want, ...], ...]
    match: str = ""


@dataclass
class Choice:
    """Devices in the order of the requests, with the share that is taken of each."""

    taken: list[tuple[int, Device, int]] = field(default_factory=list)
    """(claim, device, GiB of a share)."""
    ranks: int = 0
    """How far down the preferences of the requests are, together."""


# --- the score


class Score:
    def __init__(self, devices: list[Device], held: list[Device], claims: list[Claim]) -> None:
        self.devices, self.held = devices, held
        self.largest = max(device.memory for device in devices)
        self.spread: dict[str, int] = {}
        for want in (want for claim in claims for request in claim.requests for want in request):
            candidates = [d for d in devices if d.kind in want.kinds and d not in held]
            for domain in ("nvlink", "numa"):
                free: dict[Any, int] = {}
                for device in candidates:
                    if getattr(device, domain) != "":
                        value = getattr(device, domain)
                        free[value] = free.get(value, 0) + self.weight(device)
                for device in candidates:
                    if len(free) > 1 and getattr(device, domain) in free:
                        share = 100 * free[getattr(device, domain)] * self.weight(device)
                        points = share // (max(free.values()) * 1000)
                        self.spread[device.name] = max(points, self.spread.get(device.name, 0))

    def weight(self, device: Device) -> int:
        if not device.memory:
            return 1000
        return max(1, 1000 * device.memory**2 // self.largest**2)

    def of(self, choice: Choice) -> int:
        total = 1_000_000_000 * choice.ranks
        devices = [device for _, device, _ in choice.taken]
        after = [*self.held, *devices]
        lost = [d for d in self.devices if whole(d, self.held) and not whole(d, after)]
        total += sum(map(self.weight, lost))
        for name, points in (("nvlink", 4000), ("numa", 2000), ("pcie", 1000)):
            values = {getattr(device, name) for device in devices} - {""}
            total += points * max(0, len(values) - 1)
        used: dict[str, int] = {}
        for _, device, memory in choice.taken:
            total += self.spread.get(device.name, 0) + 300 * device.informed + 300 * device.binding
            if device.shared:
                if device.name in used:
                    total += 100 * (device.memory - used[device.name] - memory) // device.memory
                used[device.name] = used.get(device.name, 0) + memory
        return total


def whole(device: Device, taken: list[Device]) -> bool:
    """Whether the device can still be had whole."""
    if device in taken:
        return False
    return not any(
        other.parent == device.parent and set(other.slices) & set(device.slices) for other in taken if other.slices
    )


# --- every valid choice


def choices(devices: list[Device], held: list[Device], claims: list[Claim]) -> Iterator[Choice]:
    flat = [(number, request) for number, claim in enumerate(claims) for request in claim.requests]
    for ranks in itertools.product(*(range(len(request)) for _, request in flat)):
        wants = [request[rank] for (_, request), rank in zip(flat, ranks, strict=True)]
        ways = [itertools.combinations([d for d in devices if d.kind in want.kinds], want.count) for want in wants]
        for picked in itertools.product(*ways):
            taken = [
                (number, device, (want.memory or device.memory) if device.shared else 0)
                for (number, _), want, some in zip(flat, wants, picked, strict=True)
                for device in some
            ]
            if valid(held, claims, taken):
                yield Choice(taken, sum(ranks))


def valid(held: list[Device], claims: list[Claim], taken: list[tuple[int, Device, int]]) -> bool:
    before = list(held)
    shares: dict[str, int] = {}
    for _, device, memory in taken:
        if device.shared:
            shares[device.name] = shares.get(device.name, 0) + memory
            if device in held or shares[device.name] > device.memory:
                return False
            continue
        if not whole(device, before):
            return False
        before.append(device)
    for number, claim in enumerate(claims):
        own = [device for owner, device, _ in taken if owner == number]
        if claim.match and len({getattr(device, claim.match) for device in own}) > 1:
            return False
        if claim.match == "parent" and any(device.kind == "nic" for device in own):
            return False  # which NICs do not have
    return True


# --- small nodes and claims


@st.composite
def nodes(draw: st.DrawFn) -> list[Device]:
    devices = []
    fabric = draw(st.booleans())
    for gpu in range(draw(st.integers(1, 2))):
        place: dict[str, Any] = {
            "parent": gpu,
            "numa": draw(st.integers(0, 1)),
            "pcie": f"p{gpu}",
            "nvlink": f"d{draw(st.integers(0, 1))}" if fabric else "",
            "informed": draw(st.integers(0, 4)) == 4,
        }
        kind = draw(st.sampled_from(["whole", "mig", "mig", "shared"]))
        if kind == "mig":
            devices.append(Device(f"gpu-{gpu}", "whole", GPU, slices=(0, 1, 2, 3), **place))
            for profile, (size, starts) in PROFILES.items():
                devices += [
                    Device(
                        f"gpu-{gpu}-{profile}-{s}", profile, GPU * size // 4, slices=tuple(range(s, s + size)), **place
                    )
                    for s in starts
                ]
        else:
            memory = draw(st.sampled_from([GPU, GPU, 20]))
            devices.append(Device(f"gpu-{gpu}", kind, memory, binding=draw(st.integers(0, 4)) == 4, **place))
    for nic in range(draw(st.integers(0, 2))):
        devices.append(Device(f"nic-{nic}", "nic", numa=draw(st.integers(0, 1)), pcie=f"p{nic}"))
    return devices


KINDS = st.sampled_from([("whole",), ("1g",), ("1g",), ("2g",), ("whole", "1g", "2g"), ("shared",), ("nic",)])


@st.composite
def wants(draw: st.DrawFn) -> Want:
    kinds = draw(KINDS)
    if kinds == ("shared",):
        return Want(kinds, 1, draw(st.sampled_from([0, 5, 10, 20])))
    return Want(kinds, draw(st.integers(1, 2)))


@st.composite
def pods(draw: st.DrawFn) -> list[Claim]:
    claims = []
    for requests in draw(st.sampled_from([(1,), (2,), (1, 1)])):
        options = st.lists(wants(), min_size=1, max_size=2).map(tuple)
        requests = draw(st.lists(options, min_size=requests, max_size=requests))
        claims.append(Claim(tuple(requests), draw(st.sampled_from(["", "", "parent", "numa"]))))
    return claims


def asked(make: Any, number: int, claim: Claim) -> ResourceClaim:
    requests = []
    for position, request in enumerate(claim.requests):
        options = []
        for place, want in enumerate(request):
            kinds = ", ".join(f"'{kind}'" for kind in want.kinds)
            driver = "nic.dev" if want.kinds == ("nic",) else make.DRIVER
            expression = f"device.driver == '{driver}' && device.attributes['{driver}'].type in [{kinds}]"
            option = {"name": f"o{place}", "deviceClassName": "any", "count": want.count}
            option["selectors"] = [{"cel": {"expression": expression}}]
            if want.memory:
                option["capacity"] = {"requests": {"memory": f"{want.memory}Gi"}}
            options.append(option)
        requests.append({"name": f"r{position}", "firstAvailable": options})
    names = {"numa": "resource.kubernetes.io/numaNode", "parent": f"{make.DRIVER}/parent"}
    constraints = [{"matchAttribute": names[claim.match]}] if claim.match else []
    return make.claim(f"c{number}", *requests, constraints=constraints)  # type: ignore[no-any-return]


def inventory_of(make: Any, devices: list[Device], held: list[Device], slices: int = 4) -> Inventory:
    counters = {f"gpu-{d.parent}": {f"slice-{s}": 1 for s in range(slices)} for d in devices if d.slices}
    gpus = [device.published(make) for device in devices if device.kind != "nic"]
    nics = [device.published(make) for device in devices if device.kind == "nic"]
    inventory = make.inventory(
        make.slice(gpus, counters=counters), make.slice(nics, driver="nic.dev"), make.device_class("any", "true")
    )
    for device in held:
        result = {"request": "r", "driver": device.driver, "pool": "n1", "device": device.name}
        body = {"metadata": {"name": device.name, "namespace": "ns"}, "status": {}}
        body["status"] = {"allocation": {"devices": {"results": [result]}}}
        inventory.upsert(msgspec.convert(body, ResourceClaim))
    return inventory  # type: ignore[no-any-return]


@settings(max_examples=EXAMPLES, phases=(Phase.explicit, Phase.reuse, Phase.generate, Phase.shrink))
@given(data=st.data())
def test_no_valid_choice_is_better_than_the_one_that_is_made(make: Any, data: st.DataObject) -> None:
    devices = data.draw(nodes(), label="devices")
    claims = data.draw(pods(), label="claims")
    held: list[Device] = []
    for device in data.draw(st.lists(st.sampled_from(devices), max_size=3, unique=True), label="held"):
        held += [device] if whole(device, held) else []
    answer = allocate(
        inventory_of(make, devices, held), [asked(make, n, claim) for n, claim in enumerate(claims)], NODE
    )
    score = Score(devices, held, claims)
    best = min((score.of(choice) for choice in choices(devices, held, claims)), default=None)
    if best is None:
        assert not isinstance(answer, Allocation)
        return
    assert isinstance(answer, Allocation), answer
    made = sum(choice.cost for choice in answer.explanation) + 1_000_000_000 * ranks(answer)
    event(f"proven: {answer.optimal}, best: {made == best}")
    assert made >= best
    if answer.optimal:
        assert made == best


def ranks(answer: Allocation) -> int:
    chosen = {(choice.claim, choice.request.partition("/")[0]): choice.request for choice in answer.explanation}
    return sum(int(request.removeprefix(request.partition("/")[0] + "/o")) for request in chosen.values())


def test_small_partitions_leave_the_largest_placements_whole(make: Any) -> None:
    """The placements of an A100 and seven small claims: no choice is better than each one made, and the 4g placement,
    which the first fit would break at once, is given up last."""
    placements = {"1g": (1, range(7)), "2g": (2, (0, 2, 4)), "3g": (4, (0, 4)), "4g": (4, (0,)), "whole": (8, (0,))}
    memory = {"1g": 5, "2g": 10, "3g": 20, "4g": 20, "whole": GPU}
    devices = [
        Device(f"{kind}-{start}", kind, memory[kind], 0, tuple(range(start, start + size)), pcie="p0")
        for kind, (size, starts) in placements.items()
        for start in starts
    ]
    small = Claim(((Want(("1g",)),),))
    held: list[Device] = []
    for _ in range(7):
        inventory = inventory_of(make, devices, held, slices=8)
        answer = allocate(inventory, [asked(make, 0, small)], NODE)
        assert isinstance(answer, Allocation)
        score = Score(devices, held, [small])
        made = next(device for device in devices if device.name == answer.explanation[0].device.device)
        best = min(map(score.of, choices(devices, held, [small])))
        assert answer.explanation[0].cost == score.of(Choice([(0, made, 0)])) == best
        held.append(made)
        left = {device.kind for device in devices if whole(device, held)}
        assert ("4g" in left) == (len(held) <= 3), held
