"""Which runtime class a level means, which pods break its rules, and what may be reported as isolated."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest

from capstan.api.core import Pod
from capstan.api.scheduling import RuntimeClass
from capstan.isolation import (
    Evidence,
    Level,
    NoRuntimeClass,
    node_labels,
    report,
    runtime_class,
    runtime_classes,
    select_runtime_class,
    violations,
)

ALL = [spec.name for spec in runtime_classes()]


# -- runtime classes


def test_containers_use_the_default_runtime_and_the_shared_driver() -> None:
    choice = select_runtime_class(Level.CONTAINER, gpu=True, available=ALL)
    assert (choice.runtime_class, choice.device_class) == (None, "gpu.nvidia.com")


@pytest.mark.parametrize(
    ("level", "gpu", "tee", "name"),
    [
        (Level.MICROVM, False, None, "kata-qemu"),
        (Level.MICROVM, True, None, "kata-qemu-nvidia-gpu"),
        (Level.CONFIDENTIAL, False, "tdx", "kata-qemu-tdx"),
        (Level.CONFIDENTIAL, True, "tdx", "kata-qemu-nvidia-gpu-tdx"),
        (Level.CONFIDENTIAL, True, None, "kata-qemu-nvidia-gpu-snp"),
    ],
)
def test_a_level_means_a_kata_class_and_for_gpus_the_vfio_device_class(
    level: Level, gpu: bool, tee: str | None, name: str
) -> None:
    choice = select_runtime_class(level, gpu=gpu, available=ALL, tee=tee)
    assert choice.runtime_class is not None and choice.runtime_class.name == name
    assert choice.device_class == ("vfio.gpu.nvidia.com" if gpu else None)


def test_only_what_the_cluster_has_is_chosen() -> None:
    choice = select_runtime_class(Level.MICROVM, gpu=False, available=["kata-clh", "runc"])
    assert choice.runtime_class is not None and choice.runtime_class.name == "kata-clh"
    choice = select_runtime_class(Level.MICROVM, gpu=True, available=["kata-qemu-nvidia-gpu-runtime-rs"])
    assert choice.runtime_class is not None and choice.runtime_class.name == "kata-qemu-nvidia-gpu-runtime-rs"
    with pytest.raises(NoRuntimeClass, match=r"level confidential with GPUs .*install Kata Containers with kata-qemu"):
        select_runtime_class(Level.CONFIDENTIAL, gpu=True, available=["kata-qemu-nvidia-gpu"])


def test_a_runtime_class_object_carries_overhead_and_node_selector() -> None:
    spec = runtime_class("kata-qemu-nvidia-gpu-snp")
    assert spec is not None
    body = msgspec.convert(spec.manifest(), RuntimeClass)
    assert body.handler == "kata-qemu-nvidia-gpu-snp"
    assert body.overhead is not None and body.scheduling is not None
    assert body.overhead.pod_fixed == {"memory": "10240Mi", "cpu": "1", "sev-snp.amd.com/esids": "1"}
    assert body.scheduling.node_selector == {
        "nvidia.com/cc.ready.state": "true",
        "amd.feature.node.kubernetes.io/snp": "true",
    }


@pytest.mark.parametrize("spec", runtime_classes(), ids=lambda spec: spec.name)
def test_a_node_with_the_labels_of_its_kind_is_selected(spec: Any) -> None:
    labels = node_labels(gpu=spec.gpu, tee=spec.tee)
    assert spec.node_selector.items() <= labels.items()


def test_an_unknown_handler_is_not_taken_for_a_microvm() -> None:
    assert runtime_class("runc") is None and runtime_class("kata-qemu-mine") is None


# -- rules


def pod(runtime: str | None = "kata-qemu-nvidia-gpu-snp", **spec: Any) -> Pod:
    container = {"name": "main", "resources": spec.pop("resources", {})}
    annotations = spec.pop("annotations", {})
    body = {"metadata": {"annotations": annotations}, "spec": {"containers": [container], **spec}}
    if runtime:
        body["spec"]["runtimeClassName"] = runtime
    return msgspec.convert(body, Pod)


VFIO = {"gpu": ["vfio.gpu.nvidia.com"]}


def fields(subject: Pod, level: Level, classes: dict[str, list[str]]) -> list[str]:
    return [violation.field for violation in violations(subject, level, classes)]


def test_a_confidential_pod_on_a_vfio_device_in_a_kata_class_is_right() -> None:
    assert violations(pod(), Level.CONFIDENTIAL, VFIO) == []
    assert violations(pod("kata-qemu-snp"), Level.CONFIDENTIAL, {}) == []


def test_the_runtime_class_must_give_the_level_or_more() -> None:
    for runtime in (None, "runc", "kata-qemu-nvidia-gpu"):
        assert fields(pod(runtime), Level.CONFIDENTIAL, VFIO) == ["spec.runtimeClassName"]
    assert fields(pod("kata-qemu-nvidia-gpu-snp"), Level.MICROVM, VFIO) == []


def test_a_guest_with_a_gpu_needs_a_driver_for_it() -> None:
    (violation,) = violations(pod("kata-qemu-snp"), Level.CONFIDENTIAL, VFIO)
    assert "no driver for NVIDIA GPUs" in str(violation)


def test_devices_of_the_hosts_driver_are_refused_by_claim() -> None:
    classes = {
        "gpu": ["vfio.gpu.nvidia.com", "gpu.nvidia.com"],
        "part": ["mig.nvidia.com"],
        "nic": ["sriov.example.com"],
    }
    assert fields(pod(), Level.CONFIDENTIAL, classes) == ["spec.resourceClaims[gpu]", "spec.resourceClaims[part]"]


def test_extended_resources_shares_and_the_hosts_network_are_refused() -> None:
    subject = pod(
        hostNetwork=True, annotations={"gpu-fraction": "0.5"}, resources={"limits": {"nvidia.com/gpu": 1, "cpu": 1}}
    )
    assert fields(subject, Level.CONFIDENTIAL, {}) == [
        "spec.hostNetwork",
        "spec.containers[main].resources.limits[nvidia.com/gpu]",
        "metadata.annotations[gpu-fraction]",
    ]


def test_containers_may_do_as_they_like() -> None:
    assert violations(pod(None, hostNetwork=True), Level.CONTAINER, {"gpu": ["gpu.nvidia.com"]}) == []


# -- reports

PROVEN = Evidence(
    booted=True,
    accelerated=True,
    passthrough=True,
    iommu_active=True,
    group_viable=True,
    driver_verified=True,
    attested=True,
)


def test_a_level_is_verified_when_everything_was_checked() -> None:
    for level in Level:
        assert report(level, PROVEN).verified
    assert str(report(Level.MICROVM, PROVEN)) == "microvm"


@pytest.mark.parametrize("missing", ["booted", "iommu_active", "group_viable", "driver_verified", "attested"])
def test_anything_missing_makes_it_unverified_and_is_said(missing: str) -> None:
    found = report(Level.CONFIDENTIAL, msgspec.structs.replace(PROVEN, **{missing: False}))
    assert found.label == "unverified" and len(found.missing) == 1
    assert str(found).startswith("confidential (unverified): ")


def test_a_microvm_needs_no_attestation_and_one_without_devices_no_iommu() -> None:
    assert report(Level.MICROVM, msgspec.structs.replace(PROVEN, attested=False)).verified
    assert report(Level.MICROVM, Evidence(booted=True, accelerated=True)).verified


def test_emulation_is_called_emulated_and_simulation_simulated() -> None:
    assert report(Level.MICROVM, msgspec.structs.replace(PROVEN, accelerated=False)).label == "emulated"
    assert report(Level.CONFIDENTIAL, msgspec.structs.replace(PROVEN, simulated=True)).label == "simulated"
    assert report(Level.CONTAINER, Evidence(simulated=True)).label == "simulated"
