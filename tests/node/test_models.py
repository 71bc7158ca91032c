"""Node models: fleets by name, and product tables that contradict neither themselves nor the simulated NVML."""

from __future__ import annotations

import pytest

from capstan.node import models
from capstan.node.errors import UnknownModel

MIG_PRODUCTS = [models.A100_40, models.A100_80, models.H100, models.H200, models.B200]


def test_a_fleet_names_its_nodes_by_model_and_number() -> None:
    fleet = models.parse_fleet("2xdgx-a100, 1xl4x4,dgx-a100")
    assert [spec.name for spec in fleet] == ["dgx-a100-0", "dgx-a100-1", "l4x4-0", "dgx-a100-2"]
    assert [len(spec.model.slots) for spec in fleet] == [8, 8, 4, 8]


def test_nodes_of_one_model_share_its_tables() -> None:
    first, second = models.parse_fleet("2xh100x8")
    assert first.model is second.model


@pytest.mark.parametrize("name", ["dgx-a100", "dgx-a100-80g", "dgx-h100", "dgx-h200", "dgx-b200"])
def test_a_dgx_has_eight_gpus_on_one_nvlink_and_two_or_more_numa_nodes(name: str) -> None:
    model = models.node_model(name)
    assert len(model.slots) == 8
    assert {slot.nvlink_domain for slot in model.slots} == {0}
    assert len({slot.numa_node for slot in model.slots}) >= 2
    assert len({slot.pci_bus_id for slot in model.slots}) == 8


def test_every_known_model_is_described() -> None:
    lines = dict(models.describe())
    assert list(lines) == list(models.KNOWN_MODELS)
    assert lines["dgx-a100"] == "8 x NVIDIA A100-SXM4-40GB, MIG, NVLink, 4 NUMA nodes"
    assert lines["l4xN"] == "N x NVIDIA L4, 2 NUMA nodes"


def test_the_suffix_leaves_mig_out() -> None:
    assert models.node_model("dgx-h100").mig
    assert not models.node_model("dgx-h100-nomig").mig
    assert not models.node_model("l4x4").mig


def test_a_node_without_gpus() -> None:
    assert models.node_model("cpux16").slots == ()


@pytest.mark.parametrize(
    ("fleet", "token"),
    [
        ("2xdgx-a1000", "'2xdgx-a1000'"),
        ("dgx-a100,oops", "'oops'"),
        ("0xl4x4", "'0xl4x4'"),
        ("99999xl4x4", "'99999xl4x4'"),
        ("l4x4-nomig", "'l4x4-nomig'"),
        ("l4x99", "'l4x99'"),
        ("!", "'!'"),
        (" , ", "the fleet is empty"),
    ],
)
def test_a_wrong_token_is_named(fleet: str, token: str) -> None:
    with pytest.raises(UnknownModel) as caught:
        models.parse_fleet(fleet)
    assert token in str(caught.value)


def test_an_unknown_model_lists_the_known_ones() -> None:
    with pytest.raises(UnknownModel, match=r"dgx-h100.*l40sxN"):
        models.parse_fleet("h1000")


@pytest.mark.parametrize("gpu", MIG_PRODUCTS, ids=lambda gpu: gpu.product_name)
def test_mig_profiles_fit_their_gpu(gpu: models.GpuModel) -> None:
    whole = gpu.profile(0)
    assert whole is not None and whole.name.startswith("7g.")
    for profile in gpu.profiles:
        assert all(start + profile.size <= 8 for start in profile.starts)
        assert profile.memory <= whole.memory <= gpu.memory
        assert profile.multiprocessors <= whole.multiprocessors <= gpu.multiprocessors


@pytest.mark.parametrize("gpu", MIG_PRODUCTS, ids=lambda gpu: gpu.product_name)
@pytest.mark.parametrize("profile_id", [19, 15, 14, 9])
def test_a_gpu_is_filled_by_one_profile_at_all_its_places(gpu: models.GpuModel, profile_id: int) -> None:
    profile, whole = gpu.profile(profile_id), gpu.profile(0)
    assert profile is not None and whole is not None
    count = len(profile.starts)
    for engine in ("memory", "slices", "multiprocessors", "copy_engines", "decoders", "jpeg_engines", "ofa_engines"):
        assert count * getattr(profile, engine) <= getattr(whole, engine)
