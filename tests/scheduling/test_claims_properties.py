"""With devices behind claims: whatever happens, no device is promised to more than it can hold."""

from __future__ import annotations

import itertools
import sys
from fractions import Fraction
from pathlib import Path

import msgspec
import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from capstan.api.quantity import whole
from capstan.api.resource import AllocationResult, ResourceClaimStatus
from capstan.scheduling import Plan, Policy, World, cycle, devices
from capstan.scheduling.amounts import GPU, UNLIMITED
from capstan.scheduling.placement import ShapeIndex
from capstan.scheduling.session import Session

sys.path.insert(0, str(Path(__file__).parent))
from clusters import START, gang, pod, queue
from test_claims import claim, platform, slice_of

DEVICE_MEMORY = 40 << 30
KINDS = st.sampled_from(["whole", "pair", "half", "quarter", "claim"])
Jobs = list[tuple[str, str, str, int]]
Types = dict[str, dict[str, float]]


@st.composite
def jobs(draw: st.DrawFn) -> Jobs:
    """(kind, queue, priority, pods) of up to eight gangs."""
    return draw(
        st.lists(
            st.tuples(
                KINDS, st.sampled_from(["b", "c"]), st.sampled_from(["train", "train", "inference"]), st.integers(1, 3)
            ),
            min_size=1,
            max_size=8,
        )
    )


class Platform:
    """Carries plans out and keeps the books of devices on its own."""

    def __init__(self, nodes: int, gpus: int, wanted: Jobs, types: Types | None = None) -> None:
        self.world: World = platform(gpus=gpus, nodes=nodes)
        self.world.upsert(queue("b", "top", quota=1, rank=2, gpu_types=types))
        self.world.upsert(queue("c", "top", quota=2, rank=3))
        self.held: dict[str, list[tuple[tuple[str, str], AllocationResult]]] = {}
        for rank, (kind, where, priority, pods) in enumerate(wanted):
            name = f"g{rank}"
            self.world.upsert(gang(name, where, minimum=pods, priority=priority, rank=rank))
            for i in range(pods):
                extra: dict[str, object] = {}
                if kind == "claim":
                    own = claim(f"{name}-{i}")
                    own.metadata.labels["kai.scheduler/queue"] = where
                    self.world.upsert(own)
                    extra["resourceClaims"] = [{"name": "gpu", "resourceClaimName": f"{name}-{i}"}]
                self.world.upsert(
                    pod(
                        f"{name}-{i}",
                        name,
                        gpus={"whole": 1, "pair": 2}.get(kind, 0),
                        fraction={"half": "0.5", "quarter": "0.25"}.get(kind, ""),
                        rank=rank,
                        **extra,  # type: ignore[arg-type]
                    )
                )

    def carry_out(self, plan: Plan) -> None:
        for bind in plan.binds:
            granted = list(bind.claims.items())
            if bind.implied is not None:
                granted.append((bind.implied.claim.key, bind.implied.allocation))
            self.held[bind.pod] = granted
            for key, allocation in granted:
                known = self.world.claims.get(key) or (bind.implied.claim if bind.implied is not None else None)
                assert known is not None
                status = ResourceClaimStatus(allocation=allocation)
                self.world.upsert(msgspec.structs.replace(known, status=status))
            old = self.world.pod(bind.uid)
            spec = msgspec.structs.replace(old.spec, node_name=bind.node)
            running = msgspec.structs.replace(old.status, phase="Running")
            self.world.upsert(msgspec.structs.replace(old, spec=spec, status=running))
        for eviction in plan.evictions:
            old = self.world.pod(eviction.uid)
            self.world.delete("Pod", "default", eviction.pod)
            for key, _ in self.held.pop(eviction.pod, []):
                kept = self.world.claims[key]
                if kept.metadata.owner_references:
                    self.world.delete("ResourceClaim", *key)
                else:
                    self.world.upsert(msgspec.structs.replace(kept, status=ResourceClaimStatus()))
            meta = msgspec.structs.replace(old.metadata, uid=f"{old.metadata.uid}+")
            spec = msgspec.structs.replace(old.spec, node_name="")
            waiting = msgspec.structs.replace(old.status, phase="Pending")
            self.world.upsert(msgspec.structs.replace(old, metadata=meta, spec=spec, status=waiting))

    def check_products(self) -> None:
        """What queues hold of a product is what the devices of their pods are, and never beyond a limit."""
        inventory = self.world.inventory
        assert inventory is not None
        self.world.begin(START)
        counted: dict[tuple[str, str], Fraction] = {}
        for name, granted in self.held.items():
            task = self.world.task_of("default", name)
            assert task is not None
            assert task.gang is not None
            for _, allocation in granted:
                for result in allocation.devices.results:
                    device = inventory.device(result.driver, result.pool, result.device)
                    assert device is not None
                    taken = [whole(amount) for amount in result.consumed_capacity.values()]
                    where = (task.gang.queue_name, str(device.spec.attributes["productName"].string))
                    part = Fraction(taken[0], DEVICE_MEMORY) if taken else Fraction(1)
                    counted[where] = counted.get(where, Fraction(0)) + part
        for name in ("b", "c"):
            held = self.world.queues[name]
            for product, place in self.world.products.items():
                assert held.limit[place] == UNLIMITED or held.allocated[place] <= held.limit[place]
                assert Fraction(held.allocated[place], GPU) == counted.get((name, product), 0)

    def check(self) -> None:
        used: dict[tuple[str, str], Fraction] = {}
        for granted in self.held.values():
            for _, allocation in granted:
                for result in allocation.devices.results:
                    taken = [whole(amount) for amount in result.consumed_capacity.values()]
                    part = Fraction(taken[0], DEVICE_MEMORY) if taken else Fraction(1)
                    device = (result.pool, result.device)
                    used[device] = used.get(device, Fraction(0)) + part
        assert all(part <= 1 for part in used.values()), used


@settings(deadline=None, max_examples=40, suppress_health_check=list(HealthCheck))
@given(st.integers(1, 2), st.integers(1, 3), jobs())
def test_no_device_is_given_out_twice(nodes: int, gpus: int, wanted: Jobs) -> None:
    made = Platform(nodes, gpus, wanted)
    for number in range(10):
        plan = cycle(made.world, Policy(), START + number)
        made.carry_out(plan)
        made.check()
        if not plan.binds and not plan.evictions:
            break
    else:
        raise AssertionError("the platform does not come to rest")


@settings(deadline=None, max_examples=40, suppress_health_check=list(HealthCheck))
@given(
    st.lists(st.lists(st.sampled_from(["H100", "A100"]), min_size=1, max_size=3), min_size=1, max_size=2),
    st.sampled_from([-1.0, 0.0, 1.0, 2.0]),
    st.sampled_from([-1.0, 0.0, 1.0]),
    jobs(),
)
@example(
    # A pod that consolidation leaves on its node with another device has to end, too.
    [["A100", "H100"], ["H100"]],
    0.0,
    -1.0,
    [("whole", "b", "train", 2), ("half", "b", "train", 1), ("claim", "c", "train", 2)],
)
def test_devices_are_charged_by_their_own_product(
    products: list[list[str]], h100: float, a100: float, wanted: Jobs
) -> None:
    """Also on nodes with GPUs of several products."""
    types = {"H100": {"quota": 1.0, "limit": h100}, "A100": {"quota": 0.0, "limit": a100}}
    made = Platform(len(products), 1, wanted, types)
    for i, names in enumerate(products):
        made.world.upsert(slice_of(f"n{i}", len(names), *names))
    for number in range(10):
        plan = cycle(made.world, Policy(), START + number)
        made.carry_out(plan)
        made.check()
        made.check_products()
        if not plan.binds and not plan.evictions:
            break
    else:
        raise AssertionError("the platform does not come to rest")


@settings(deadline=None, max_examples=40, suppress_health_check=list(HealthCheck))
@given(
    st.integers(1, 4),
    st.integers(1, 3),
    jobs(),
    st.sampled_from([None, {"H100": {"quota": 1.0, "limit": 2.0}}]),
    st.booleans(),
)
def test_what_is_not_asked_would_have_been_refused(
    nodes: int, gpus: int, wanted: Jobs, types: Types | None, shared: bool
) -> None:
    """A node that refused a pod's devices is not asked again for equal pods until something changes there, and none is
    where counting devices refuses a gang; asking every time gives the same plans."""
    made, asking = Platform(nodes, gpus, wanted, types), Platform(nodes, gpus, wanted, types)
    for cluster, i in itertools.product((made, asking), range(nodes)):
        entry = slice_of(f"n{i}", gpus)
        for device in entry.spec.devices:
            device.allow_multiple_allocations = shared
        cluster.world.upsert(entry)
    for number in range(6):
        plan = cycle(made.world, Policy(), START + number)
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(ShapeIndex, "shelve", lambda *_: None)
            patch.setattr(Session, "_too_few_devices", lambda *_: False)
            patch.setattr(devices, "_in_vain", lambda *_: False)
            expected = cycle(asking.world, Policy(), START + number)
        assert _decided(plan) == _decided(expected)
        made.carry_out(plan)
        asking.carry_out(expected)


def _decided(plan: Plan) -> object:
    """All but the texts of verdicts: those speak of the node that was asked last."""
    return plan.binds, plan.evictions, plan.promises, [(v.group, v.reason, v.nodes, v.pods) for v in plan.verdicts]
