"""Everything a cycle is decided from, in one file: objects, policy, time, usage, decisions in flight.

A snapshot is gzip-compressed JSON. Of objects it holds the fields that this platform reads, and of pods only those that
scheduling reads: no environment, command, arguments or image, no other annotations, nothing of Secrets. `restore`
makes a World of it that decides as the one it was taken from would have; only learned run times are not in it.
"""

from __future__ import annotations

import dataclasses
import math
import zlib
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import msgspec

from capstan.allocation import Inventory
from capstan.api import clock
from capstan.api.base import ObjectMeta, Struct
from capstan.api.core import Container, Namespace, Node, PersistentVolume, PersistentVolumeClaim, Pod, PodStatus
from capstan.api.policy import PodDisruptionBudget
from capstan.api.resource import DeviceClass, DeviceTaintRule, ResourceClaim, ResourceClaimTemplate, ResourceSlice
from capstan.api.scheduling import (
    POD_GROUP_ANNOTATION,
    STALE_SINCE,
    BindRequest,
    PodGroup,
    PriorityClass,
    Queue,
    RuntimeClass,
    Topology,
)
from capstan.api.storage import StorageClass
from capstan.scheduling.gangs import LAST_START
from capstan.scheduling.plan import Bind, Eviction
from capstan.scheduling.policy import Policy
from capstan.scheduling.world import Object, World

API_VERSION = "platform.capstan.dev/v1alpha1"
KIND = "SchedulerSnapshot"
LARGEST_FILE = 256 << 20
"""Bytes, compressed: ten times what 4,000 nodes with 140,000 pods take."""
LARGEST_TEXT = 2 << 30
"""Bytes, unpacked."""
_PART = 1 << 20
_ANNOTATIONS = ("kai.scheduler/", "platform.capstan.dev/", "gpu-", "runai-gpu-group", POD_GROUP_ANNOTATION)
"""How the names of annotations begin that scheduling reads."""


class InvalidSnapshot(ValueError):
    """A file is no snapshot, is damaged, or is larger than any real one; the message says which."""


class Objects(Struct):
    nodes: list[Node] = []
    namespaces: list[Namespace] = []
    queues: list[Queue] = []
    priority_classes: list[PriorityClass] = []
    runtime_classes: list[RuntimeClass] = []
    topologies: list[Topology] = []
    device_classes: list[DeviceClass] = []
    resource_slices: list[ResourceSlice] = []
    device_taint_rules: list[DeviceTaintRule] = []
    resource_claims: list[ResourceClaim] = []
    resource_claim_templates: list[ResourceClaimTemplate] = []
    storage_classes: list[StorageClass] = []
    persistent_volumes: list[PersistentVolume] = []
    persistent_volume_claims: list[PersistentVolumeClaim] = []
    pod_disruption_budgets: list[PodDisruptionBudget] = []
    bind_requests: list[BindRequest] = []
    pod_groups: list[PodGroup] = []
    pods: list[Pod] = []

    def __iter__(self) -> Iterator[Object]:
        """Surroundings first, pods last."""
        for name in self.__struct_fields__:
            yield from getattr(self, name)


KINDS: dict[type[Any], str] = {
    Node: "nodes",
    Namespace: "namespaces",
    Queue: "queues",
    PriorityClass: "priority_classes",
    RuntimeClass: "runtime_classes",
    Topology: "topologies",
    DeviceClass: "device_classes",
    ResourceSlice: "resource_slices",
    DeviceTaintRule: "device_taint_rules",
    ResourceClaim: "resource_claims",
    ResourceClaimTemplate: "resource_claim_templates",
    StorageClass: "storage_classes",
    PersistentVolume: "persistent_volumes",
    PersistentVolumeClaim: "persistent_volume_claims",
    PodDisruptionBudget: "pod_disruption_budgets",
    BindRequest: "bind_requests",
    PodGroup: "pod_groups",
    Pod: "pods",
}


_Stamps = Mapping[tuple[str, str], tuple[float | None, float | None]]


class Promised(Struct):
    """Nodes that were cleared for a gang: uid of a pod -> node."""

    namespace: str = ""
    group: str = ""
    nodes: dict[str, str] = {}


class Moved(Struct):
    """Nodes where the pods of a gang go that were evicted to be moved, in their order."""

    namespace: str = ""
    group: str = ""
    nodes: list[str] = []


class Snapshot(Struct):
    api_version: str = API_VERSION
    kind: str = KIND
    taken: str = ""
    """RFC 3339, for people."""
    now: float = 0.0
    """POSIX seconds at which the next cycle is decided."""
    policy: dict[str, Any] = {}
    """See `policy_from`."""
    usage: dict[str, dict[str, float]] = {}
    binds: list[Bind] = []
    evictions: list[Eviction] = []
    promised: list[Promised] = []
    moved: list[Moved] = []
    objects: Objects = msgspec.field(default_factory=Objects)


@dataclasses.dataclass(frozen=True, slots=True)
class Moment:
    """What has to be read at one moment. `snapshot` makes the rest of it, at leisure: objects never change."""

    rest: Snapshot
    objects: tuple[Object, ...]
    stamps: _Stamps
    """Gang -> when it last started and since when it is stale, as the engine knows it and may not have written yet."""

    def snapshot(self) -> Snapshot:
        found = Objects()
        for obj in self.objects:
            getattr(found, KINDS[type(obj)]).append(_bare(obj, self.stamps))
        return msgspec.structs.replace(self.rest, objects=found)


def capture(world: World, now: float, objects: Iterable[Object]) -> Moment:
    """A World at this moment, and the objects that it was fed with."""
    rest = Snapshot(
        taken=clock.render(now),
        now=now,
        policy=policy_document(world.policy),
        usage={queue: dict(shares) for queue, shares in world.usage.items()},
        binds=list(world.binds.values()),
        evictions=list(world.evictions.values()),
        promised=[Promised(namespace=ns, group=name, nodes=dict(at)) for (ns, name), at in world.standing.items()],
        moved=[Moved(namespace=ns, group=name, nodes=list(at)) for (ns, name), at in world.destinations.items()],
    )
    stamps = {key: (gang.last_start, gang.stale_since) for key, gang in world.gangs.items()}
    return Moment(rest, tuple(objects), stamps)


def restore(snapshot: Snapshot, policy: Policy | None = None) -> World:
    """The World of a snapshot, under its own policy or another. Raises InvalidSnapshot for what it cannot read."""
    policy = policy or policy_from(snapshot.policy)
    world = World(Inventory(policy.features), policy)
    for obj in snapshot.objects:
        try:
            world.upsert(obj)
        except ValueError as wrong:  # an API server lets no such time in, a file may have it
            raise InvalidSnapshot(f"{type(obj).__name__} {'/'.join(filter(None, obj.key))}: {wrong}") from wrong
    world.usage = snapshot.usage
    world.resume(snapshot.binds, snapshot.evictions)
    world.standing = {(each.namespace, each.group): dict(each.nodes) for each in snapshot.promised}
    world.destinations = {(each.namespace, each.group): list(each.nodes) for each in snapshot.moved}
    return world


# -- what is kept ------------------------------------------------------------------------------------------------------


def _bare(obj: Object, stamps: _Stamps) -> Object:
    match obj:
        case Pod():
            return _bare_pod(obj)
        case PodGroup():
            return _stamped(obj, stamps)
        case _:
            meta = msgspec.structs.replace(obj.metadata, annotations=_read(obj.metadata.annotations))
            return msgspec.structs.replace(obj, metadata=meta)


def _read(annotations: Mapping[str, str]) -> dict[str, str]:
    return {name: text for name, text in annotations.items() if name.startswith(_ANNOTATIONS)}


def _bare_pod(pod: Pod) -> Pod:
    meta, spec, status = pod.metadata, pod.spec, pod.status
    return Pod(
        metadata=ObjectMeta(
            name=meta.name,
            namespace=meta.namespace,
            uid=meta.uid,
            creation_timestamp=meta.creation_timestamp,
            deletion_timestamp=meta.deletion_timestamp,
            labels=meta.labels,
            annotations=_read(meta.annotations),
            owner_references=meta.owner_references,
        ),
        spec=msgspec.structs.replace(
            spec,
            containers=[_bare_container(each) for each in spec.containers],
            init_containers=[_bare_container(each) for each in spec.init_containers],
            volumes=[each for each in spec.volumes if each.persistent_volume_claim or each.ephemeral],
        ),
        status=PodStatus(
            phase=status.phase,
            start_time=status.start_time,
            conditions=[condition for condition in status.conditions if condition.type == "Ready"],
            nominated_node_name=status.nominated_node_name,
            resource_claim_statuses=status.resource_claim_statuses,
            extended_resource_claim_status=status.extended_resource_claim_status,
        ),
    )


def _bare_container(container: Container) -> Container:
    return Container(
        name=container.name,
        ports=container.ports,
        resources=container.resources,
        restart_policy=container.restart_policy,
    )


def _stamped(group: PodGroup, stamps: _Stamps) -> PodGroup:
    notes = _read(group.metadata.annotations)
    known = stamps.get(group.key)
    if known is not None:
        for name, moment in zip((LAST_START, STALE_SINCE), known, strict=True):
            notes.pop(name, None)
            if moment is not None:
                notes[name] = clock.render(moment)
    meta = msgspec.structs.replace(group.metadata, annotations=notes)
    return PodGroup(metadata=meta, spec=group.spec)


# -- policies ----------------------------------------------------------------------------------------------------------

_FIELDS = {
    "".join([name.split("_")[0], *(word.title() for word in name.split("_")[1:])]): name
    for name in (field.name for field in dataclasses.fields(Policy))
}


def policy_document(policy: Policy) -> dict[str, Any]:
    """A policy as it is written in files: the fields of `Policy` in camelCase."""
    found = {}
    for name, field in _FIELDS.items():
        value = getattr(policy, field)
        found[name] = msgspec.to_builtins(sorted(value) if isinstance(value, frozenset) else value)
    return found


def policy_from(document: Mapping[str, Any]) -> Policy:
    """The policy of a file; what it does not say is as by default. Raises InvalidSnapshot, naming the field."""
    unknown = sorted(set(document) - set(_FIELDS))
    if unknown:
        raise InvalidSnapshot(f"policy: unknown field {unknown[0]!r}; the fields are {', '.join(_FIELDS)}")
    try:
        policy = msgspec.convert({_FIELDS[name]: value for name, value in document.items()}, Policy)
    except msgspec.ValidationError as wrong:
        raise InvalidSnapshot(f"policy: {wrong}") from wrong
    for name, field in _FIELDS.items():
        value = getattr(policy, field)
        if isinstance(value, float) and not math.isfinite(value):
            raise InvalidSnapshot(f"policy: {name} is {value}; write a number")
    return policy


# -- files -------------------------------------------------------------------------------------------------------------


def encode(snapshot: Snapshot) -> bytes:
    packer = zlib.compressobj(level=6, wbits=31)
    return packer.compress(msgspec.json.encode(snapshot)) + packer.flush()


def decode(data: bytes) -> Snapshot:
    """Raises InvalidSnapshot."""
    try:
        snapshot = msgspec.json.decode(unpack(data), type=Snapshot)
    except RecursionError as error:
        raise InvalidSnapshot("the snapshot is nested too deeply") from error
    except (msgspec.DecodeError, UnicodeDecodeError) as wrong:
        raise InvalidSnapshot(f"not a snapshot: {wrong}") from wrong
    if (snapshot.api_version, snapshot.kind) != (API_VERSION, KIND):
        found = f"{snapshot.kind} of {snapshot.api_version}"
        raise InvalidSnapshot(f"expected a {KIND} of {API_VERSION}, found a {found}")
    return snapshot


def unpack(data: bytes) -> bytes:
    """Gunzip, up to the limits. Raises InvalidSnapshot."""
    if len(data) > LARGEST_FILE:
        raise InvalidSnapshot(f"the file is larger than {LARGEST_FILE >> 20} MiB")
    unpacker = zlib.decompressobj(wbits=31)
    parts, size, rest = [], 0, data
    try:
        while rest and not unpacker.eof:
            part = unpacker.decompress(rest, _PART)
            size += len(part)
            if size > LARGEST_TEXT:
                raise InvalidSnapshot(f"the file unpacks to more than {LARGEST_TEXT >> 30} GiB")
            parts.append(part)
            rest = unpacker.unconsumed_tail
    except zlib.error as error:
        raise InvalidSnapshot(f"not a gzip file, or damaged: {error}") from error
    if not unpacker.eof:
        raise InvalidSnapshot("the file is cut off")
    return b"".join(parts)
