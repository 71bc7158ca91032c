"""PURE. What a pod of a tenant with an isolation level must look like. Used by admission, controllers and linting."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import msgspec

from capstan.api.core import Pod
from capstan.isolation.levels import Level
from capstan.isolation.runtime_classes import VFIO_CLASS, runtime_class

SHARE_ANNOTATIONS = ("gpu-fraction", "gpu-memory")
_RANK = {Level.CONTAINER: 0, Level.MICROVM: 1, Level.CONFIDENTIAL: 2}
_NVIDIA_SUFFIX = ".nvidia.com"
_GPU_RESOURCE = "nvidia.com/"


class Violation(msgspec.Struct, frozen=True):
    field: str
    message: str

    def __str__(self) -> str:
        return f"{self.field}: {self.message}"


def violations(pod: Pod, level: Level, device_classes: Mapping[str, Sequence[str]]) -> list[Violation]:
    """What keeps the pod from running at this level or a stronger one; empty when nothing does.

    `device_classes`: for each claim of the pod (by its name in `spec.resourceClaims`) the device classes that its
    requests, or their alternatives, ask for.
    """
    if level is Level.CONTAINER:
        return []
    found: list[Violation] = []
    name = pod.spec.runtime_class_name
    spec = runtime_class(name) if name else None
    if spec is None or _RANK[spec.level] < _RANK[level]:
        given = f"{name!r} does not give" if name else "is empty, the default runtime does not give"
        found.append(
            Violation("spec.runtimeClassName", f"{given} isolation level {level.value}; use a Kata class that does")
        )
    if pod.spec.host_network:
        found.append(Violation("spec.hostNetwork", f"a pod of isolation level {level.value} has its own network"))
    wants_gpu = False
    for claim, classes in device_classes.items():
        for device_class in classes:
            if device_class == VFIO_CLASS:
                wants_gpu = True
            elif device_class.endswith(_NVIDIA_SUFFIX):
                found.append(
                    Violation(
                        f"spec.resourceClaims[{claim}]",
                        f"device class {device_class} shares the host's driver; use {VFIO_CLASS}",
                    )
                )
    found += _extended_resources(pod)
    found += [
        Violation(
            f"metadata.annotations[{annotation}]", "a share of a GPU cannot be passed through; ask for whole GPUs"
        )
        for annotation in SHARE_ANNOTATIONS
        if annotation in pod.metadata.annotations
    ]
    if wants_gpu and spec is not None and not spec.gpu:
        found.append(Violation("spec.runtimeClassName", f"guests of {name!r} have no driver for NVIDIA GPUs"))
    return found


def _extended_resources(pod: Pod) -> list[Violation]:
    return [
        Violation(
            f"spec.{kind}[{container.name}].resources.limits[{resource}]",
            f"is served by the host's driver; claim a device of class {VFIO_CLASS}",
        )
        for kind, containers in (("containers", pod.spec.containers), ("initContainers", pod.spec.init_containers))
        for container in containers
        for resource in sorted({*container.resources.limits, *container.resources.requests})
        if resource.startswith(_GPU_RESOURCE)
    ]
