"""Snapshots of KAI Scheduler (`GET /get-snapshot` of its snapshot plugin): a zip file with one `snapshot.json`.

What KAI was told is read where it means something here: the objects that scheduling reads, the scheduler's name and
node pool, and settings of its actions and plugins. CSI objects, ConfigMaps and discovery are not.
"""

from __future__ import annotations

import io
import zipfile
import zlib
from collections.abc import Iterator
from dataclasses import replace
from typing import Any, TypeVar

import msgspec

from capstan.api import clock
from capstan.api.base import Struct
from capstan.api.core import Node, PersistentVolumeClaim, Pod
from capstan.api.kai import ActionConfig, PluginConfig, SchedulingShard, SchedulingShardSpec
from capstan.api.resource import DeviceClass, ResourceClaim, ResourceSlice
from capstan.api.scheduling import BindRequest, PodGroup, PriorityClass, Queue, Topology
from capstan.api.storage import StorageClass
from capstan.scheduling import Installation, Policy, shard_settings
from capstan.scheduling.policy import ACTIONS, KAI_ACTIONS
from capstan.scheduling.snapshot import (
    LARGEST_FILE,
    LARGEST_TEXT,
    InvalidSnapshot,
    Objects,
    Snapshot,
    policy_document,
)

MAGIC = b"PK\x03\x04"
_DOCUMENT = "snapshot.json"
_PART = 1 << 20
_NANOSECONDS = 1_000_000_000
_T = TypeVar("_T")


class _Raw(Struct):
    """KAI writes `null` for lists that are empty."""

    pods: list[Pod] | None = None
    nodes: list[Node] | None = None
    queues: list[Queue] | None = None
    pod_groups: list[PodGroup] | None = None
    bind_requests: list[BindRequest] | None = None
    priority_classes: list[PriorityClass] | None = None
    persistent_volume_claims: list[PersistentVolumeClaim] | None = None
    storage_classes: list[StorageClass] | None = None
    resource_claims: list[Any] | None = None
    resource_slices: list[Any] | None = None
    device_classes: list[DeviceClass] | None = None
    topologies: list[Topology] | None = None


class _Partition(msgspec.Struct):
    key: str = msgspec.field(default="", name="NodePoolLabelKey")
    value: str = msgspec.field(default="", name="NodePoolLabelValue")


class _Params(Struct):
    scheduler_name: str = ""
    partition_params: _Partition | None = None
    max_number_consolidation_preemptees: int | None = None
    allow_consolidating_reclaim: bool = False
    global_default_staleness_grace_period: int | None = None
    """Nanoseconds, as all durations of Go in JSON."""
    stuck_in_releasing_threshold: int | None = None
    queue_label_key: str = ""


class _Plugin(Struct):
    name: str = ""
    arguments: dict[str, str] | None = None


class _Tier(Struct):
    plugins: list[_Plugin] | None = None


class _Config(Struct):
    actions: str = ""
    tiers: list[_Tier] | None = None
    queue_depth_per_action: dict[str, int] | None = None


class _KaiSnapshot(Struct):
    config: _Config | None = None
    scheduler_params: _Params | None = None
    raw_objects: _Raw | None = None


def decode(data: bytes, now: float | None = None) -> Snapshot:
    """Raises InvalidSnapshot.

    KAI does not write when the snapshot was taken: without `now` it is the newest time that stands in an object.
    """
    try:
        kai = msgspec.json.decode(_unzip(data), type=_KaiSnapshot)
        if kai.raw_objects is None:
            raise InvalidSnapshot(f"{_DOCUMENT}: no rawObjects; is this a snapshot of KAI Scheduler?")
        objects = _objects(kai.raw_objects)
    except RecursionError as error:
        raise InvalidSnapshot(f"{_DOCUMENT} is nested too deeply") from error
    except (msgspec.DecodeError, UnicodeDecodeError) as wrong:
        raise InvalidSnapshot(f"{_DOCUMENT}: {wrong}") from wrong
    try:
        moment = now if now is not None else max(_times(objects), default=0.0)
    except ValueError as wrong:
        raise InvalidSnapshot(f"{_DOCUMENT}: {wrong}") from wrong
    policy = _policy(kai.config or _Config(), kai.scheduler_params or _Params())
    return Snapshot(taken=clock.render(moment), now=moment, policy=policy_document(policy), objects=objects)


def _unzip(data: bytes) -> bytes:
    if len(data) > LARGEST_FILE:
        raise InvalidSnapshot(f"the file is larger than {LARGEST_FILE >> 20} MiB")
    try:
        with zipfile.ZipFile(io.BytesIO(data)) as archive, archive.open(_DOCUMENT) as packed:
            parts, size = [], 0
            while part := packed.read(_PART):  # what the directory says about sizes is not to be believed
                size += len(part)
                if size > LARGEST_TEXT:
                    raise InvalidSnapshot(f"{_DOCUMENT} unpacks to more than {LARGEST_TEXT >> 30} GiB")
                parts.append(part)
            return b"".join(parts)
    except KeyError as error:
        raise InvalidSnapshot(f"the zip file has no {_DOCUMENT}; is this a snapshot of KAI Scheduler?") from error
    except (zipfile.BadZipFile, zlib.error, NotImplementedError, RuntimeError, EOFError, OSError) as error:
        raise InvalidSnapshot(f"the zip file is damaged or packed in a way that is not read: {error}") from error


# -- objects -----------------------------------------------------------------------------------------------------------


def _objects(raw: _Raw) -> Objects:
    return Objects(
        nodes=raw.nodes or [],
        queues=raw.queues or [],
        priority_classes=raw.priority_classes or [],
        topologies=raw.topologies or [],
        device_classes=raw.device_classes or [],
        resource_slices=_read("resourceSlices", [_slice(each) for each in raw.resource_slices or []], ResourceSlice),
        resource_claims=_read("resourceClaims", [_claim(each) for each in raw.resource_claims or []], ResourceClaim),
        persistent_volume_claims=raw.persistent_volume_claims or [],
        storage_classes=raw.storage_classes or [],
        pod_groups=raw.pod_groups or [],
        bind_requests=raw.bind_requests or [],
        pods=raw.pods or [],
    )


def _read(field: str, documents: list[Any], of: type[_T]) -> list[_T]:
    try:
        return msgspec.convert(documents, list[of])  # type: ignore[valid-type]
    except msgspec.ValidationError as wrong:
        raise InvalidSnapshot(f"{_DOCUMENT}: rawObjects.{field}: {wrong}") from wrong


def _slice(document: Any) -> Any:
    """As resource.k8s.io/v1 writes it; in v1beta1, which older KAI uses, what a device is stands under `basic`."""
    match document:
        case {"spec": {"devices": list(devices)} as spec}:
            return document | {"spec": spec | {"devices": [_device(device) for device in devices]}}
    return document


def _device(document: Any) -> Any:
    match document:
        case {"basic": dict(basic), **rest}:
            return rest | basic
    return document


def _claim(document: Any) -> Any:
    """As resource.k8s.io/v1 writes it; in v1beta1 what is asked for exactly stands in the request itself."""
    match document:
        case {"spec": {"devices": {"requests": list(requests)} as devices} as spec}:
            changed = devices | {"requests": [_request(request) for request in requests]}
            return document | {"spec": spec | {"devices": changed}}
    return document


def _request(document: Any) -> Any:
    match document:
        case {"name": name, "deviceClassName": _, **_rest}:
            return {"name": name, "exactly": {k: v for k, v in document.items() if k != "name"}}
    return document


def _times(objects: Objects) -> Iterator[float]:
    for obj in objects:
        meta = obj.metadata
        yield from (clock.parse(text) for text in (meta.creation_timestamp, meta.deletion_timestamp) if text)


# -- settings ----------------------------------------------------------------------------------------------------------


def _policy(config: _Config, params: _Params) -> Policy:
    """As a SchedulingShard would say it: KAI's operator makes the configuration of its scheduler from one."""
    settings = shard_settings(_shard(config, params), Installation(), Policy())
    for problem in settings.problems:
        if not problem.unknown:
            raise InvalidSnapshot(f"{_DOCUMENT}: {problem.field.removeprefix('spec.')}: {problem.message}")
    policy = replace(settings.policy, reclaim_may_consolidate=params.allow_consolidating_reclaim)
    return policy if params.partition_params is not None else replace(policy, node_pool=None)


def _shard(config: _Config, params: _Params) -> SchedulingShard:
    pool = params.partition_params or _Partition()
    args = {
        "scheduler-name": params.scheduler_name,
        "queue-label-key": params.queue_label_key,
        "nodepool-label-key": pool.key,
        "partition-label-value": pool.value,
    }
    if params.max_number_consolidation_preemptees is not None:
        args["max-consolidation-preemptees"] = str(params.max_number_consolidation_preemptees)
    for flag, nanoseconds in (
        ("default-staleness-grace-period", params.global_default_staleness_grace_period),
        ("stuck-in-releasing-threshold", params.stuck_in_releasing_threshold),
    ):
        if nanoseconds is not None:
            args[flag] = f"{nanoseconds / _NANOSECONDS:.9f}s"
    plugins = {
        plugin.name: PluginConfig(enabled=True, arguments=plugin.arguments or {})
        for tier in config.tiers or []
        for plugin in tier.plugins or []
    }
    depths = config.queue_depth_per_action or {}
    spec = SchedulingShardSpec(args=args, plugins=plugins, actions=_actions(config), queue_depth_per_action=depths)
    return SchedulingShard(spec=spec)


def _actions(config: _Config) -> dict[str, ActionConfig]:
    """Those that are listed, in that order, and no others; all where nothing is listed."""
    listed = [name.strip() for name in config.actions.split(",") if name.strip()]
    if not listed:
        return {}
    kai = {ours: theirs for theirs, ours in KAI_ACTIONS.items()}
    disabled = {kai.get(name, name): ActionConfig(enabled=False) for name in ACTIONS}
    return disabled | {name: ActionConfig(priority=-rank) for rank, name in enumerate(listed)}
