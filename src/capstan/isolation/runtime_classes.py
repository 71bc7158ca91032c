"""Kata Containers' runtime classes as they are shipped, and which of them an isolation level means.

Names, handlers, pod overhead and node selectors are those of the kata-deploy chart; classes for NVIDIA GPUs reserve
10 GiB because the guest's memory is pinned for DMA. Pods in a TEE also consume one key or encrypted-state id each.
"""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

import msgspec

from capstan.isolation.levels import Level

GPU_CLASS = "gpu.nvidia.com"
VFIO_CLASS = "vfio.gpu.nvidia.com"
_CC_READY = "nvidia.com/cc.ready.state"
_SNP_NODE = {"amd.feature.node.kubernetes.io/snp": "true"}
_TDX_NODE = {"intel.feature.node.kubernetes.io/tdx": "true"}
_SNP_ID = {"sev-snp.amd.com/esids": "1"}
_TDX_KEY = {"tdx.intel.com/keys": "1"}


class RuntimeClassSpec(msgspec.Struct, frozen=True):
    name: str
    level: Level
    gpu: bool
    """Whether its guests have an NVIDIA driver and get devices by VFIO."""
    pod_fixed: dict[str, str]
    node_selector: dict[str, str] = {}
    tee: str = ""
    """`snp`, `tdx`, or none."""

    def manifest(self) -> dict[str, Any]:
        """The `node.k8s.io/v1` object."""
        body: dict[str, Any] = {
            "apiVersion": "node.k8s.io/v1",
            "kind": "RuntimeClass",
            "metadata": {"name": self.name},
            "handler": self.name,
            "overhead": {"podFixed": dict(self.pod_fixed)},
        }
        if self.node_selector:
            body["scheduling"] = {"nodeSelector": dict(self.node_selector)}
        return body


class NoRuntimeClass(LookupError):
    """No runtime class of the cluster gives the isolation that is asked for; `hint` says what to install."""

    def __init__(self, message: str, hint: str) -> None:
        super().__init__(f"{message} ({hint})")
        self.hint = hint


class Choice(msgspec.Struct, frozen=True):
    """What a pod of some isolation level has to use."""

    runtime_class: RuntimeClassSpec | None
    """None: the cluster's default runtime."""
    device_class: str | None
    """DeviceClass of its GPUs; None when it has none."""


def _overhead(memory: str, cpu: str, **more: str) -> dict[str, str]:
    return {"memory": memory, "cpu": cpu} | more


_CLASSES = (
    RuntimeClassSpec("kata-qemu", Level.MICROVM, False, _overhead("320Mi", "250m")),
    RuntimeClassSpec("kata-clh", Level.MICROVM, False, _overhead("130Mi", "250m")),
    RuntimeClassSpec("kata-fc", Level.MICROVM, False, _overhead("130Mi", "250m")),
    RuntimeClassSpec("kata-dragonball", Level.MICROVM, False, _overhead("130Mi", "250m")),
    RuntimeClassSpec("kata-qemu-snp", Level.CONFIDENTIAL, False, _overhead("2048Mi", "1", **_SNP_ID), _SNP_NODE, "snp"),
    RuntimeClassSpec(
        "kata-qemu-tdx", Level.CONFIDENTIAL, False, _overhead("2048Mi", "1", **_TDX_KEY), _TDX_NODE, "tdx"
    ),
    RuntimeClassSpec("kata-qemu-nvidia-gpu", Level.MICROVM, True, _overhead("10240Mi", "1"), {_CC_READY: "false"}),
    RuntimeClassSpec(
        "kata-qemu-nvidia-gpu-snp",
        Level.CONFIDENTIAL,
        True,
        _overhead("10240Mi", "1", **_SNP_ID),
        {_CC_READY: "true"} | _SNP_NODE,
        "snp",
    ),
    RuntimeClassSpec(
        "kata-qemu-nvidia-gpu-tdx",
        Level.CONFIDENTIAL,
        True,
        _overhead("10240Mi", "1", **_TDX_KEY),
        {_CC_READY: "true"} | _TDX_NODE,
        "tdx",
    ),
)
_RUST_TWIN = "-runtime-rs"
_BY_NAME = {spec.name: spec for spec in _CLASSES}


def runtime_classes() -> tuple[RuntimeClassSpec, ...]:
    """All known classes, in order of preference within a level."""
    return _CLASSES


def runtime_class(name: str) -> RuntimeClassSpec | None:
    """The class of that name, or the one whose twin for the Rust runtime it is; None for any other handler."""
    spec = _BY_NAME.get(name.removesuffix(_RUST_TWIN))
    return msgspec.structs.replace(spec, name=name) if spec and spec.name != name else spec


def select_runtime_class(level: Level, *, gpu: bool, available: Collection[str], tee: str | None = None) -> Choice:
    """The runtime class and device class for a pod.

    `available`: names of the cluster's RuntimeClasses. `tee`: `snp` or `tdx` when the tenant insists on one. Of several
    that fit, the first of `runtime_classes` is taken, its Go runtime before the Rust twin. Raises NoRuntimeClass.
    """
    if level is Level.CONTAINER:
        return Choice(None, GPU_CLASS if gpu else None)
    fitting = [s for s in _CLASSES if (s.level, s.gpu) == (level, gpu) and tee in (None, s.tee)]
    for suffix in ("", _RUST_TWIN):
        for spec in fitting:
            if spec.name + suffix in available:
                return Choice(runtime_class(spec.name + suffix), VFIO_CLASS if gpu else None)
    wanted = f"isolation level {level.value}{' with GPUs' if gpu else ''}{f' on {tee}' if tee else ''}"
    names = " or ".join(spec.name for spec in fitting) or "a TEE called snp or tdx"
    raise NoRuntimeClass(f"no runtime class of the cluster gives {wanted}", f"install Kata Containers with {names}")


def node_labels(*, gpu: bool, tee: str = "") -> dict[str, str]:
    """Labels that the node selectors above look for, for nodes on which nobody else sets them (simulated ones).

    On real nodes they come from the confidential computing manager and node feature discovery, which verify them.
    """
    labels = {_CC_READY: "true" if tee else "false"} if gpu else {}
    return labels | {"snp": _SNP_NODE, "tdx": _TDX_NODE, "": {}}[tee]
