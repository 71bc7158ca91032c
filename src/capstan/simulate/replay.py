"""A snapshot on the virtual clock: the same cycles again, under its own policy or another one.

The cluster plays along as simply as it can: what is bound runs a moment later, what is evicted goes away and comes back
as a new pending pod, and the allocation of a claim ends with its last user.
"""

from __future__ import annotations

import msgspec

from capstan.api import clock
from capstan.api.core import ExtendedResourceClaimStatus, Pod, PodStatus
from capstan.api.resource import AllocationResult, ConsumerReference, ResourceClaim, ResourceClaimStatus
from capstan.scheduling import Bind, Eviction, Plan, Policy, World, cycle
from capstan.scheduling.facts import GPU_GROUP_LABEL, NUMA_ANNOTATION
from capstan.scheduling.snapshot import Snapshot, decode, restore
from capstan.simulate import kai_snapshot

_CYCLE_SECONDS = 1.0
Key = tuple[str, str]


def read(data: bytes, now: float | None = None) -> Snapshot:
    """A snapshot of ours or of KAI Scheduler, told apart by their first bytes. Raises InvalidSnapshot.

    `now` overrides the time of the next cycle, in POSIX seconds.
    """
    if data.startswith(kai_snapshot.MAGIC):
        return kai_snapshot.decode(data, now)
    snapshot = decode(data)
    return snapshot if now is None else msgspec.structs.replace(snapshot, now=now, taken=clock.render(now))


class Replay:
    """`step` decides a cycle, `settle` lets the cluster carry it out. Raises what `restore` raises."""

    def __init__(self, snapshot: Snapshot, policy: Policy | None = None) -> None:
        self.world: World = restore(snapshot, policy)
        self.policy = self.world.policy
        self.now = snapshot.now
        self._returns = 0

    def step(self) -> Plan:
        return cycle(self.world, self.policy, self.now)

    def settle(self, plan: Plan) -> None:
        for bind in plan.binds:
            self._start(bind)
        for eviction in plan.evictions:
            self._end(eviction)
        self.now += _CYCLE_SECONDS

    def _start(self, bind: Bind) -> None:
        world = self.world
        pod = world.pod(bind.uid)
        consumer = ConsumerReference(resource="pods", name=bind.pod, uid=bind.uid)
        extended = pod.status.extended_resource_claim_status
        if bind.implied is not None:
            claim = bind.implied.claim
            self._hold(claim, bind.implied.allocation, consumer)
            extended = ExtendedResourceClaimStatus(
                resource_claim_name=claim.metadata.name, request_mappings=list(bind.implied.mappings)
            )
        for key in bind.reserve:
            known = world.claims.get(key)
            if known is not None:
                allocation = bind.claims.get(key) or known.status.allocation
                if allocation is not None:
                    self._hold(known, allocation, consumer)
        meta = pod.metadata
        labels = meta.labels | {f"{GPU_GROUP_LABEL}/{group}": group for group in bind.gpu_groups}
        notes = dict(meta.annotations)
        if bind.zones:
            placed: dict[str, dict[str, str]] = {}
            for zone, resource, amount in bind.zones:
                placed.setdefault(zone, {})[resource] = f"{amount}m" if resource == "cpu" else str(amount)
            notes[NUMA_ANNOTATION] = msgspec.json.encode(placed).decode()
        world.upsert(
            msgspec.structs.replace(
                pod,
                metadata=msgspec.structs.replace(meta, labels=labels, annotations=notes),
                spec=msgspec.structs.replace(pod.spec, node_name=bind.node),
                status=msgspec.structs.replace(pod.status, phase="Running", extended_resource_claim_status=extended),
            )
        )

    def _hold(self, claim: ResourceClaim, allocation: AllocationResult, consumer: ConsumerReference) -> None:
        users = [user for user in claim.status.reserved_for if user.uid != consumer.uid]
        status = ResourceClaimStatus(allocation=allocation, reserved_for=[*users, consumer])
        self.world.upsert(msgspec.structs.replace(claim, status=status))

    def _end(self, eviction: Eviction) -> None:
        """The pod's claims are given back; its controller makes a pod like it, which waits."""
        world = self.world
        pod = world.pod(eviction.uid)
        extended = pod.status.extended_resource_claim_status
        world.delete("Pod", *pod.key)
        if extended is not None:
            world.delete("ResourceClaim", pod.metadata.namespace, extended.resource_claim_name)
        for claim in [claim for claim in world.claims.values() if _reserved(claim, eviction.uid)]:
            users = [user for user in claim.status.reserved_for if user.uid != eviction.uid]
            allocation = claim.status.allocation if users else None
            status = ResourceClaimStatus(allocation=allocation, reserved_for=users)
            world.upsert(msgspec.structs.replace(claim, status=status))
        self._returns += 1
        meta = pod.metadata
        world.upsert(
            Pod(
                metadata=msgspec.structs.replace(
                    meta,
                    uid=f"{meta.uid}-{self._returns}",
                    creation_timestamp=clock.render(self.now),
                    deletion_timestamp=None,
                    labels={k: v for k, v in meta.labels.items() if not k.startswith(GPU_GROUP_LABEL)},
                    annotations={k: v for k, v in meta.annotations.items() if k != NUMA_ANNOTATION},
                ),
                spec=msgspec.structs.replace(pod.spec, node_name=""),
                status=PodStatus(resource_claim_statuses=pod.status.resource_claim_statuses),
            )
        )


def _reserved(claim: ResourceClaim, uid: str) -> bool:
    return any(user.uid == uid for user in claim.status.reserved_for)
