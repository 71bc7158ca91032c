"""Which opaque config counts, what it makes of a claim, and which claims are refused with which words."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from capstan.api import nvidia
from capstan.api.resource import ResourceClaim
from capstan.node.errors import ClaimRefused, DeviceBusy
from capstan.node.inventory import Catalog
from capstan.node.nvml import MigDevice
from capstan.node.plan import MigState, plan
from capstan.node.records import (
    ComputeMode,
    MemoryLimit,
    MigInstance,
    MigMode,
    MpsDaemon,
    Passthrough,
    Record,
    TimeSlice,
)
from capstan.node.simulated import SimulatedNvml

Plan = Callable[..., Record]
LONG = {"kind": "GpuConfig", "sharing": {"strategy": "TimeSlicing", "timeSlicingConfig": {"interval": "Long"}}}
SHORT = {"kind": "GpuConfig", "sharing": {"strategy": "TimeSlicing", "timeSlicingConfig": {"interval": "Short"}}}
MPS = {
    "kind": "GpuConfig",
    "sharing": {
        "strategy": "MPS",
        "mpsConfig": {"defaultActiveThreadPercentage": 50, "defaultPinnedDeviceMemoryLimit": "10Gi"},
    },
}


@pytest.fixture
def catalog(gpus: Callable[[str], SimulatedNvml]) -> Catalog:
    return Catalog(gpus("a100x2").host())


@pytest.fixture
def make(catalog: Catalog) -> Plan:
    def plan_it(claim: ResourceClaim, *others: Record, mig: MigState | None = None) -> Record:
        return plan(claim, "node-0", catalog, mig or MigState(), others)

    return plan_it


def intervals(record: Record) -> list[int]:
    return [step.interval for step in record.steps if isinstance(step, TimeSlice)]


# -- precedence


def test_a_claims_config_wins_over_its_classs_and_a_later_one_over_an_earlier(claims: Any, make: Plan) -> None:
    of_class, of_claim = claims.opaque(LONG, "FromClass", ("r0",)), claims.opaque(SHORT)
    assert intervals(make(claims.on("a", "gpu-0", config=(of_claim, of_class)))) == [1]
    assert intervals(make(claims.on("a", "gpu-0", config=(claims.opaque(LONG), claims.opaque(SHORT))))) == [1]
    assert intervals(make(claims.on("a", "gpu-0", config=(of_class,)))) == [3]
    assert intervals(make(claims.on("a", "gpu-0"))) == []


def test_a_config_is_for_the_requests_it_names(claims: Any, make: Plan) -> None:
    record = make(claims.on("a", "gpu-0", "gpu-1", config=(claims.opaque(LONG, requests=("r1",)),)))
    assert [(step.gpu, step.interval) for step in record.steps if isinstance(step, TimeSlice)] == [
        (record.holdings[1].gpu, 3)
    ]


def test_a_config_that_names_a_request_holds_for_its_chosen_alternative(claims: Any, make: Plan) -> None:
    claim = claims("a", claims.result("gpu-0", "r0/second"), config=(claims.opaque(LONG, requests=("r0",)),))
    assert intervals(make(claim)) == [3]


def test_a_config_for_all_requests_skips_devices_of_other_types(claims: Any, make: Plan) -> None:
    record = make(claims.on("a", "gpu-0", "gpu-1-mig-1g5gb-19-0", config=(claims.opaque(LONG),)))
    assert intervals(record) == [3]


def test_a_config_for_a_named_request_must_be_of_the_devices_type(claims: Any, make: Plan) -> None:
    claim = claims.on("a", "gpu-vfio-0", config=(claims.opaque(LONG, requests=("r0",)),))
    with pytest.raises(
        ClaimRefused, match="default/a request r0: opaque config: kind: GpuConfig is not for a device of type vfio"
    ):
        make(claim)


@pytest.mark.parametrize(
    ("parameters", "said"),
    [
        ({"kind": "GpuConfig", "shering": {}}, "unknown field `shering`"),
        ({"kind": "GpuConf"}, "kind: Invalid value 'GpuConf'; known kinds: GpuConfig, MigDeviceConfig"),
        ({"kind": "GpuConfig", "apiVersion": "v1"}, "apiVersion: 'v1' is not supported"),
        ({"kind": "ComputeDomainDaemonConfig", "domainID": "x"}, "belongs to driver compute-domain.nvidia.com"),
        (
            {"kind": "GpuConfig", "sharing": {"strategy": "TimeSlicing", "timeSlicingConfig": {"interval": "Longer"}}},
            "sharing.timeSlicingConfig.interval: Invalid enum value 'Longer'",
        ),
        (
            {"kind": "GpuConfig", "sharing": {"strategy": "TimeSlicing", "mpsConfig": {}}},
            "sharing.mpsConfig: is only for",
        ),
        (
            {"kind": "GpuConfig", "sharing": {"strategy": "MPS", "mpsConfig": {"defaultActiveThreadPercentage": 101}}},
            "defaultActiveThreadPercentage: 101 is not within 0 and 100",
        ),
        (
            {
                "kind": "GpuConfig",
                "sharing": {"strategy": "MPS", "mpsConfig": {"defaultPinnedDeviceMemoryLimit": "1k"}},
            },
            "defaultPinnedDeviceMemoryLimit: 1k is less than 1Mi",
        ),
        (
            {"kind": "MigDeviceConfig", "sharing": {"strategy": "TimeSlicing", "timeSlicingConfig": {}}},
            "timeSlicingConfig",
        ),
    ],
)
def test_a_wrong_config_names_claim_request_and_field(
    parameters: dict[str, Any], said: str, claims: Any, make: Plan
) -> None:
    with pytest.raises(ClaimRefused) as caught:
        make(claims.on("a", "gpu-0", config=(claims.opaque(parameters),)))
    assert "claim default/a request r0: opaque config of the claim: " in str(caught.value)
    assert said in str(caught.value)


def test_normalising_fills_in_the_defaults_of_the_chosen_strategy() -> None:
    parameters = {"apiVersion": nvidia.API_VERSION, "kind": "GpuConfig", "sharing": {"strategy": "TimeSlicing"}}
    config = nvidia.decode(parameters, nvidia.DRIVER)
    assert isinstance(config, nvidia.GpuConfig) and config.sharing is not None
    assert config.sharing.time_slicing_config == nvidia.TimeSlicingConfig("Default")


# -- steps


def test_time_slicing_sets_the_slice_and_the_default_compute_mode(claims: Any, make: Plan) -> None:
    record = make(claims.on("a", "gpu-0", config=(claims.opaque(LONG),)))
    gpu = record.holdings[0].gpu
    assert record.steps[:2] == (TimeSlice(gpu, 3), ComputeMode(gpu, "Default"))


def test_mps_makes_the_gpu_exclusive_and_starts_one_daemon_for_it(claims: Any, make: Plan) -> None:
    record = make(claims.on("a", "gpu-0", config=(claims.opaque(MPS),)))
    gpu = record.holdings[0].gpu
    mode, daemon = record.steps[:2]
    assert mode == ComputeMode(gpu, "ExclusiveProcess")
    assert isinstance(daemon, MpsDaemon) and daemon.name == gpu
    assert daemon.settings.active_thread_percentage == 50
    assert daemon.settings.pinned_memory_limits == {gpu: 10 << 30}


def test_time_slicing_means_nothing_to_a_mig_device(claims: Any, make: Plan) -> None:
    config = claims.opaque({"kind": "MigDeviceConfig", "sharing": {"strategy": "TimeSlicing"}})
    record = make(claims.on("a", "gpu-0-mig-1g5gb-19-0", config=(config,)))
    assert [type(step) for step in record.steps[:-1]] == [MigMode, MigInstance]


def test_a_share_is_held_to_its_memory(claims: Any, make: Plan) -> None:
    record = make(claims.share("a", "gpu-0", "4Gi"))
    assert [(step.limit >> 30, step.name_space) for step in record.steps if isinstance(step, MemoryLimit)] == [
        (4, "uid-a-gpu-0")
    ]


def test_all_of_the_memory_needs_no_limit(claims: Any, make: Plan) -> None:
    record = make(claims.share("a", "gpu-0", "40Gi"))
    assert not any(isinstance(step, MemoryLimit) for step in record.steps)


def test_mig_mode_that_was_on_already_is_left_alone(claims: Any, make: Plan) -> None:
    claim = claims.on("a", "gpu-0-mig-1g5gb-19-0")
    gpu = make(claim).holdings[0].gpu
    record = make(claim, mig=MigState(enabled={gpu: True}))
    assert not any(isinstance(step, MigMode) for step in record.steps)


def test_mig_mode_that_we_switched_on_is_held_by_every_claim_on_the_gpu(claims: Any, make: Plan) -> None:
    first = make(claims.on("a", "gpu-0-mig-1g5gb-19-0"))
    gpu = first.holdings[0].gpu
    second = make(claims.on("b", "gpu-0-mig-1g5gb-19-1"), first, mig=MigState(enabled={gpu: True}))
    assert MigMode(gpu) in second.steps


def test_somebody_elses_mig_device_is_adopted(claims: Any, make: Plan) -> None:
    claim = claims.on("a", "gpu-0-mig-3g20gb-9-4")
    gpu = make(claim).holdings[0].gpu
    theirs = MigDevice(gpu, 2, 9, 4, "MIG-theirs")
    (step, _) = make(claim, mig=MigState({gpu: True}, {gpu: [theirs]})).steps
    assert isinstance(step, MigInstance) and step.adopted and step.uuid == "MIG-theirs"


def test_a_vfio_config_chooses_the_device_files(claims: Any, make: Plan) -> None:
    iommu = {"backendPolicy": "PreferIommuFD", "enableAPIDevice": True}
    (step, _) = make(
        claims.on("a", "gpu-vfio-0", config=(claims.opaque({"kind": "VfioDeviceConfig", "iommu": iommu}),))
    ).steps
    assert isinstance(step, Passthrough) and step.use_iommufd and step.api_device


# -- refusals


def test_an_unallocated_claim_is_refused(claims: Any, make: Plan) -> None:
    claim = claims("a")
    claim.status.allocation = None
    with pytest.raises(ClaimRefused, match="claim default/a is not allocated"):
        make(claim)


def test_results_of_other_drivers_are_not_ours_to_prepare(claims: Any, make: Plan) -> None:
    record = make(claims("a", claims.result("nic-0") | {"driver": "nic.example.com"}))
    assert (record.holdings, record.steps) == ((), ())


def test_a_device_of_another_nodes_pool_is_refused(claims: Any, make: Plan) -> None:
    with pytest.raises(ClaimRefused, match="is of pool node-1, this node's pool is node-0"):
        make(claims("a", claims.result("gpu-0") | {"pool": "node-1"}))


def test_an_unknown_device_is_refused(claims: Any, make: Plan) -> None:
    with pytest.raises(ClaimRefused, match="pool node-0 has no device gpu-9"):
        make(claims.on("a", "gpu-9"))


OVERLAPS = [
    ("gpu-0", "gpu-0"),
    ("gpu-0", "gpu-vfio-0"),
    ("gpu-0", "gpu-0-mig-1g5gb-19-6"),
    ("gpu-vfio-0", "gpu-0-mig-1g5gb-19-6"),
    ("gpu-0-mig-3g20gb-9-4", "gpu-0-mig-1g5gb-19-6"),
    ("gpu-0-mig-1g5gb-19-6", "gpu-0-mig-1g5gb-19-6"),
]


@pytest.mark.parametrize(("one", "other"), OVERLAPS + [(b, a) for a, b in OVERLAPS])
def test_the_same_hardware_is_never_given_twice(one: str, other: str, claims: Any, make: Plan) -> None:
    """Also while the first claim is only started, and whatever its allocation in the API says by now."""
    with pytest.raises(DeviceBusy, match="default/first"):
        make(claims.on("second", other), make(claims.on("first", one)))


@pytest.mark.parametrize(
    ("one", "other"),
    [("gpu-0", "gpu-1"), ("gpu-0", "gpu-1-mig-1g5gb-19-0"), ("gpu-0-mig-3g20gb-9-4", "gpu-0-mig-1g5gb-19-0")],
)
def test_apart_hardware_is_given_to_several(one: str, other: str, claims: Any, make: Plan) -> None:
    make(claims.on("second", other), make(claims.on("first", one)))


def test_one_claim_cannot_have_the_same_hardware_twice(claims: Any, make: Plan) -> None:
    with pytest.raises(DeviceBusy):
        make(claims.on("a", "gpu-0", "gpu-vfio-0"))


def test_shares_fit_as_long_as_the_memory_lasts(claims: Any, make: Plan) -> None:
    first, second = make(claims.share("a", "gpu-0", "24Gi")), make(claims.share("b", "gpu-0", "16Gi"))
    make(claims.share("b", "gpu-0", "16Gi"), first)
    with pytest.raises(
        DeviceBusy,
        match="needs 1 MiB of gpu-0, 0 of 40960 MiB are free beside what claim default/a, claim default/b holds",
    ):
        make(claims.share("c", "gpu-0", "1Mi"), first, second)


def test_claims_that_share_a_gpu_have_the_same_settings(claims: Any, make: Plan) -> None:
    first = make(claims.share("a", "gpu-0", "1Gi", config=(claims.opaque(LONG),)))
    make(claims.share("b", "gpu-0", "1Gi", config=(claims.opaque(LONG),)), first)
    with pytest.raises(DeviceBusy, match="has other sharing settings than gpu-0, which claim default/a holds"):
        make(claims.share("b", "gpu-0", "1Gi", config=(claims.opaque(SHORT),)), first)
    with pytest.raises(DeviceBusy):
        make(claims.share("b", "gpu-0", "1Gi"), first)


def test_admin_access_watches_a_used_gpu_and_changes_nothing(claims: Any, make: Plan) -> None:
    used = make(claims.on("a", "gpu-0"))
    watching = make(claims("b", claims.result("gpu-0", adminAccess=True)), used)
    assert [type(step).__name__ for step in watching.steps] == ["CdiSpec"]
    make(claims.on("c", "gpu-1"), watching)
    make(claims.on("a", "gpu-0"), watching)


def test_admin_access_to_a_share_is_not_held_to_what_the_share_names(claims: Any, make: Plan) -> None:
    named = claims.result("gpu-0", adminAccess=True, shareID="share-b", consumedCapacity={"memory": "4Gi"})
    assert [holding.limit for holding in make(claims("b", named)).holdings] == [None]
