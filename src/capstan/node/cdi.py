"""CDI specs: how prepared devices get into containers. One file per claim, named and laid out as by NVIDIA's driver.

Device ids are `k8s.gpu.nvidia.com/claim=<claim UID>-<device>`. The spec carries the claim's record as an annotation:
from it a lost ledger is rebuilt, and by it our files are told from those of others. `resolve` reads ids back into
container edits for whoever plays the container runtime.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import msgspec

from capstan.node.models import MIB
from capstan.node.nvml import Gpu
from capstan.node.records import Holding, MigInstance, MpsDaemon, Passthrough, Record

VERSION = "0.6.0"
VENDOR = "k8s.gpu.nvidia.com"
KIND = f"{VENDOR}/claim"
RECORD_ANNOTATION = "platform.capstan.dev/record"
_PREFIX = f"{VENDOR}-claim_"
_COMMON_NODES = ("/dev/nvidiactl", "/dev/nvidia-uvm", "/dev/nvidia-uvm-tools", "/dev/nvidia-modeset")
_HOOK = "/usr/bin/nvidia-cdi-hook"
_MPS_PIPE = "/tmp/nvidia-mps"

Body = dict[str, Any]


def device_id(cdi_name: str) -> str:
    return f"{KIND}={cdi_name}"


def path(cdi_dir: Path, claim_uid: str) -> Path:
    return cdi_dir / f"{_PREFIX}{claim_uid}.json"


def spec(record: Record, gpus: Mapping[str, Gpu], mps_dir: Path) -> Body:
    """The claim's CDI spec. `gpus` by UUID; `mps_dir` holds the pipe directories of MPS daemons."""
    passthrough = all(holding.kind == "vfio" for holding in record.holdings)
    common: Body = {"env": ["NVIDIA_VISIBLE_DEVICES=void"]}
    if not passthrough:
        common["deviceNodes"] = [{"path": node} for node in _COMMON_NODES]
    return {
        "cdiVersion": VERSION,
        "kind": KIND,
        "annotations": {RECORD_ANNOTATION: msgspec.json.encode(record).decode()},
        "devices": [_device(holding, record, gpus[holding.gpu], mps_dir) for holding in record.holdings],
        "containerEdits": common,
    }


def _device(holding: Holding, record: Record, gpu: Gpu, mps_dir: Path) -> Body:
    annotations = {"platform.capstan.dev/product": gpu.model.product_name}
    if holding.kind == "vfio":
        edits = _passthrough_edits(holding, record)
        annotations["platform.capstan.dev/pciBusID"] = gpu.pci_bus_id
    else:
        instance = _instance(holding, record)
        nodes = [f"/dev/nvidia{gpu.minor}"]
        annotations["platform.capstan.dev/uuid"] = instance.uuid if instance else gpu.uuid
        if instance is not None:
            nodes += [f"/dev/nvidia-caps/nvidia-cap{cap}" for cap in (instance.gi_cap, instance.ci_cap)]
            annotations["platform.capstan.dev/parentUUID"] = gpu.uuid
            if (profile := gpu.model.profile(instance.profile_id)) is not None:
                annotations["platform.capstan.dev/profile"] = profile.name
        edits = {"deviceNodes": [{"path": node} for node in nodes]}
        if holding.limit is not None:
            _limit_edits(edits, holding.limit, gpu)
            annotations["platform.capstan.dev/memoryLimit"] = str(holding.limit)
        _mps_edits(edits, holding, record, mps_dir)
    return {"name": holding.cdi_name, "annotations": annotations, "containerEdits": edits}


def _instance(holding: Holding, record: Record) -> MigInstance | None:
    """The MIG device of a holding; None for other kinds, and for an observer of one that is not there now."""
    at = (holding.gpu, holding.profile_id, holding.start)
    instances = (step for step in record.steps if isinstance(step, MigInstance))
    return next((step for step in instances if (step.gpu, step.profile_id, step.start) == at), None)


def _limit_edits(edits: Body, limit: int, gpu: Gpu) -> None:
    """The container toolkit's hook sets the limit on the container's cgroup; it reads MiB from the environment."""
    mib = limit // MIB
    edits["env"] = [f"NVIDIA_GPU_MEMORY_REQUEST={mib}", f"NVIDIA_GPU_MEMORY_LIMIT={mib}"]
    edits["hooks"] = [
        {
            "hookName": "createRuntime",
            "path": _HOOK,
            "args": ["nvidia-cdi-hook", "apply-cuda-memory-limits", "--gpu-id", gpu.uuid],
        }
    ]


def _mps_edits(edits: Body, holding: Holding, record: Record, mps_dir: Path) -> None:
    daemon = next((s for s in record.steps if isinstance(s, MpsDaemon) and s.name == mps_name(holding)), None)
    if daemon is None:
        return
    edits.setdefault("env", []).append(f"CUDA_MPS_PIPE_DIRECTORY={_MPS_PIPE}")
    if holding.limit is not None:
        edits["env"].append(f"CUDA_MPS_PINNED_DEVICE_MEM_LIMIT=0={holding.limit // MIB}M")
    edits["mounts"] = [
        {
            "hostPath": str(mps_dir / daemon.name / host),
            "containerPath": container,
            "options": ["rw", "nosuid", "nodev", "bind"],
        }
        for host, container in (("pipe", _MPS_PIPE), ("shm", "/dev/shm"))
    ]


def mps_name(holding: Holding) -> str:
    """One daemon per GPU, or per MIG device, whichever the holding is on; claims that share it share the daemon."""
    return f"{holding.gpu}-{holding.start}-{holding.size}" if holding.kind == "mig" else holding.gpu


def _passthrough_edits(holding: Holding, record: Record) -> Body:
    step = next(s for s in record.steps if isinstance(s, Passthrough) and s.gpu == holding.gpu)
    iommufd = step.use_iommufd and step.cdev is not None
    nodes = [step.cdev if iommufd and step.cdev else f"/dev/vfio/{step.group}"]
    if step.api_device:
        nodes.append("/dev/iommu" if iommufd else "/dev/vfio/vfio")
    return {"deviceNodes": [{"path": node} for node in nodes]}


# -- files -----------------------------------------------------------------------------------------------------------


def write(cdi_dir: Path, claim_uid: str, body: Body) -> None:
    """Atomic: a runtime that scans the directory sees the whole spec or none.

    No fsync: the ledger is the truth, and after a power cut every claim is prepared anew.
    """
    cdi_dir.mkdir(parents=True, exist_ok=True)
    target = path(cdi_dir, claim_uid)
    scratch = target.with_name(f".{target.name}.tmp")
    scratch.write_bytes(msgspec.json.encode(body))
    os.replace(scratch, target)


def intact(cdi_dir: Path, claim_uid: str, body: Body) -> bool:
    target = path(cdi_dir, claim_uid)
    return target.exists() and target.read_bytes() == msgspec.json.encode(body)


def remove(cdi_dir: Path, claim_uid: str) -> None:
    path(cdi_dir, claim_uid).unlink(missing_ok=True)


def recorded(cdi_dir: Path) -> Iterator[tuple[Path, Record | None]]:
    """The specs that this driver wrote, with their records; None for one that cannot be read back."""
    for file in sorted(cdi_dir.glob(f"{_PREFIX}*.json")) if cdi_dir.exists() else ():
        try:
            annotations = msgspec.json.decode(file.read_bytes()).get("annotations", {})
            if RECORD_ANNOTATION in annotations:
                yield file, msgspec.json.decode(annotations[RECORD_ANNOTATION], type=Record)
        except (msgspec.DecodeError, AttributeError):
            yield file, None


class UnresolvableDevice(LookupError):
    """A CDI device id that no spec in the directory defines."""


def resolve(cdi_dir: Path, ids: Sequence[str]) -> list[Body]:
    """The definitions of these devices, each `{name, annotations, containerEdits}`, the spec's common edits merged in.

    Raises UnresolvableDevice, as a container runtime fails the container then.
    """
    found: dict[str, Body] = {}
    for file in sorted(cdi_dir.glob("*.json")) if cdi_dir.exists() else ():
        document = msgspec.json.decode(file.read_bytes())
        for device in document["devices"]:
            edits = _merge(document.get("containerEdits", {}), device.get("containerEdits", {}))
            found[f"{document['kind']}={device['name']}"] = device | {"containerEdits": edits}
    missing = [name for name in ids if name not in found]
    if missing:
        raise UnresolvableDevice(f"unresolvable CDI devices {', '.join(missing)} in {cdi_dir}")
    return [found[name] for name in ids]


def _merge(*edits: Body) -> Body:
    names: Iterable[str] = dict.fromkeys(name for edit in edits for name in edit)
    return {name: [item for edit in edits for item in edit.get(name, ())] for name in names}
