"""With devices behind claims: whatever happens, no device is promised to more than it can hold."""

from __future__ import annotations

import sys
from fractions import Fraction
from pathlib import Path

import msgspec
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from capstan.api.quantity import whole
from capstan.api.resource import AllocationResult, ResourceClaimStatus
from capstan.scheduling import Plan, Policy, World, cycle

sys.path.insert(0, str(Path(__file__).parent))
from clusters import START, gang, pod, queue
from test_claims import claim, platform

DEVICE_MEMORY = 40 << 30
KINDS = st.sampled_from(["whole", "pair", "half", "quarter", "claim"])
Jobs = list[tuple[str, str, str, int]]


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

    def __init__(self, nodes: int, gpus: int, wanted: Jobs) -> None:
        self.world: World = platform(gpus=gpus, nodes=nodes)
        self.world.upsert(queue("b", "top", quota=1, rank=2))
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
