"""What a ResourcePoolStatusRequest is told (KEP-5677)."""

from __future__ import annotations

from typing import Any

import pytest

from capstan.allocation import Features, pool_statuses
from capstan.api.resource import (
    AllocationResult,
    PartitionTypeStatus,
    PoolStatus,
    ResourcePoolStatusRequestSpec,
    ShareableCapacityStatus,
)

PROFILE = "gpu.nvidia.com/profile"


def ask(make: Any, slices: list[Any], claims: Any = (), rules: Any = (), **spec: Any) -> list[PoolStatus]:
    asked = ResourcePoolStatusRequestSpec(driver=make.DRIVER, **spec)
    return pool_statuses(asked, slices, claims, rules, Features(shared_consumable_capacity=True))


def holding(make: Any, name: str, *devices: str, **more: Any) -> Any:
    results = [{"request": "r", "driver": make.DRIVER, "pool": "n1", "device": device, **more} for device in devices]
    claim = make.claim(name)
    claim.status.allocation = make.decode({"devices": {"results": results}}, AllocationResult)
    return claim


def counts(pool: PoolStatus) -> tuple[int | None, ...]:
    return (pool.total_devices, pool.allocated_devices, pool.unavailable_devices, pool.available_devices)


TAINT = {"taints": [{"key": "broken", "effect": "NoSchedule"}]}


def test_devices_are_held_or_kept_away_or_available(make: Any) -> None:
    devices = [
        *({"name": f"d{i}"} for i in range(3)),
        {"name": "t0", **TAINT},
        {"name": "t1", **TAINT},
        {"name": "i", "taints": [{"key": "k", "effect": "None"}]},
    ]
    held = [
        holding(make, "a", "d0", "t0"),
        holding(make, "admin", "d1", adminAccess=True),
        holding(make, "old", "gone"),
    ]
    (pool,) = ask(make, [make.slice(devices)], held)
    assert counts(pool) == (6, 2, 1, 3), "d0 and t0 are held, t1 is tainted; the rest is available"
    assert (pool.pool_name, pool.node_name, pool.generation, pool.resource_slice_count) == ("n1", "n1", 1, 1)
    rule = make.taint_rule("r", {})
    (pool,) = ask(make, [make.slice(devices)], held, [rule])
    assert counts(pool) == (6, 2, 4, 0)


def test_pools_of_the_driver_are_told_by_name(make: Any) -> None:
    slices = [make.slice([{"name": "d"}], name=f"s-{node}", node=node) for node in ("n2", "n1")]
    foreign = make.slice([{"name": "d"}], name="foreign", node="n1", driver="other.example.com")
    assert [pool.pool_name for pool in ask(make, [*slices, foreign])] == ["n1", "n2"]
    assert [pool.pool_name for pool in ask(make, slices, pool_name="n2")] == ["n2"]
    assert ask(make, slices, pool_name="n3") == []


def test_only_the_newest_generation_counts_and_it_must_be_complete(make: Any) -> None:
    old = make.slice([{"name": "a"}, {"name": "b"}], name="old", generation=1)
    new = make.slice([{"name": "c"}], name="new", generation=2)
    (pool,) = ask(make, [old, new])
    assert (counts(pool), pool.generation) == ((1, 0, 0, 1), 2)
    half = make.slice([{"name": "c"}], name="new", generation=2, count=2)
    (pool,) = ask(make, [old, half])
    assert counts(pool) == (None, None, None, None)
    assert pool.validation_error == (
        "PoolIncomplete: pool gpu.nvidia.com/n1 is incomplete: observed 1/2 slices at generation 2"
    )


def test_a_pool_that_contradicts_itself_says_so(make: Any) -> None:
    (pool,) = ask(make, [make.slice([{"name": "a"}, {"name": "a"}])])
    assert pool.validation_error == "PoolInvalid: pool gpu.nvidia.com/n1: the device a is published twice"
    assert counts(pool) == (None, None, None, None)


def partition(name: str, kind: str | None, amount: int, counter_set: str = "gpu") -> dict[str, Any]:
    consumes = [{"counterSet": counter_set, "counters": {"memory": {"value": amount}}}]
    return {"name": name, "consumesCounters": consumes, "attributes": {"profile": {"string": kind}} if kind else {}}


MIG = [partition("full", "Full", 80), partition("half-0", "Half", 40), partition("half-1", "Half", 40), {"name": "nic"}]
SETS = {"gpu": {"memory": 80}, "gpu-1": {"memory": 80}}


@pytest.mark.parametrize(("held", "full", "half"), [((), 1, 2), (("half-0",), 0, 1), (("full",), 0, 0)])
def test_every_type_of_partition_is_measured_for_itself(make: Any, held: Any, full: int, half: int) -> None:
    wanted = [PartitionTypeStatus(PROFILE, "Full", 1, full), PartitionTypeStatus(PROFILE, "Half", 2, half)]
    claims = [holding(make, "c", *held)] if held else []
    (pool,) = ask(make, [make.slice(MIG, counters=SETS, partitionTypeAttribute=PROFILE)], claims)
    assert (pool.partition_summary, pool.validation_error) == (wanted, None)
    (pool,) = ask(make, [make.slice(MIG, counters=SETS)], claims, default_partition_type_attribute=PROFILE)
    assert pool.partition_summary == wanted
    (pool,) = ask(make, [make.slice(MIG, counters=SETS)], claims)
    assert pool.partition_summary == []


def test_equal_parts_of_two_gpus_are_of_one_type(make: Any) -> None:
    devices = [partition("a", "Half", 40), partition("b", "Half", 40, "gpu-1")]
    (pool,) = ask(make, [make.slice(devices, counters=SETS, partitionTypeAttribute=PROFILE)])
    assert pool.partition_summary == [PartitionTypeStatus(PROFILE, "Half", 2, 2)]


@pytest.mark.parametrize(
    ("devices", "counters", "error"),
    [
        ([partition("a", None, 1)], SETS, "PartitionTypeMissing: device 'a' in pool gpu.nvidia.com/n1 does not carry"),
        ([{"name": "a"}], None, "PartitionTypeMissing: pool gpu.nvidia.com/n1 groups by gpu.nvidia.com/profile but"),
        (
            [partition("a", "x", 1), partition("b", "x", 2)],
            SETS,
            "PartitionCostMismatch: devices of partition type 'x'",
        ),
        (
            [partition(f"p{i}", f"x{i}", 1) for i in range(33)],
            SETS,
            "PartitionSummaryOverCap: pool gpu.nvidia.com/n1 has 33",
        ),
    ],
)
def test_partitions_that_cannot_be_summed_up_leave_the_counts(
    make: Any, devices: Any, counters: Any, error: str
) -> None:
    (pool,) = ask(make, [make.slice(devices, counters=counters, partitionTypeAttribute=PROFILE)])
    assert pool.validation_error is not None and pool.validation_error.startswith(error)
    assert pool.partition_summary == [] and counts(pool) == (len(devices), 0, 0, len(devices))


def test_shared_devices_are_summed_up_by_capacity(make: Any) -> None:
    devices = [make.shared("a", "8Gi"), make.shared("b", "8Gi"), make.gpu("c")]
    held = holding(make, "c", "a", shareID="11111111-1111-1111-1111-111111111111", consumedCapacity={"memory": "3Gi"})
    (pool,) = ask(make, [make.slice(devices)], [held])
    summary = pool.shareable_summary
    assert summary is not None
    assert (summary.fully_available_devices, summary.partially_available_devices) == (1, 1)
    assert summary.capacity == [ShareableCapacityStatus("memory", "16Gi", "3Gi", "13Gi")]
    assert counts(pool) == (3, 1, 0, 2)


def test_counters_drawn_on_request_count_as_they_were_drawn(make: Any) -> None:
    drawn = [{"counterSet": "gpu", "counters": {"memory": {"valueFrom": {"capacityName": "memory"}}}}]
    devices = [
        {"name": f"v{i}", "consumesCounters": drawn, "attributes": {"profile": {"string": "vf"}}} for i in range(4)
    ]
    sets = [{"name": "gpu", "counters": {"memory": {"value": 80, "requestPolicy": {"default": 30}}}}]
    offered = make.slice(devices, sharedCounters=sets, partitionTypeAttribute=PROFILE)
    (pool,) = ask(make, [offered])
    assert pool.partition_summary == [PartitionTypeStatus(PROFILE, "vf", 4, 2)]
    held = holding(make, "c", "v0", consumedCounters=[{"counterSet": "gpu", "counters": {"memory": "60"}}])
    (pool,) = ask(make, [offered], [held])
    assert pool.partition_summary == [PartitionTypeStatus(PROFILE, "vf", 4, 0)]
