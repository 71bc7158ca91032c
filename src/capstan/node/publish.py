"""ResourceSlices: what the API server should have, what it has, and the writes between the two.

`diff` is pure and follows the rules of Kubernetes' resourceslice controller: objects are named
`<index, five hex digits>-<driver>-<node>-<random>`, so that their order is the order of preference; a pool's
generation stays when one slice's content changes and goes up for all when more does. `Publisher` carries the writes out
and looks at every answer for fields that an older API server dropped.
"""

from __future__ import annotations

import copy
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import msgspec

from capstan import kube
from capstan.api.resource import ResourceSlice, ResourceSliceSpec
from capstan.api.resources import RESOURCE_SLICES
from capstan.node.inventory import DRIVER

Body = dict[str, Any]
_INDEX = re.compile(r"([0-9a-f]{5,})-")
_ATTEMPTS = 5


class Create(msgspec.Struct, frozen=True):
    body: Body


class Update(msgspec.Struct, frozen=True):
    body: Body


class Delete(msgspec.Struct, frozen=True):
    name: str
    uid: str


Write = Create | Update | Delete


class PoolIdentity(msgspec.Struct, frozen=True):
    """Whose slices these are: they are owned by the Node and go with it."""

    node_name: str
    node_uid: str

    @property
    def owner(self) -> Body:
        return {
            "apiVersion": "v1",
            "kind": "Node",
            "name": self.node_name,
            "uid": self.node_uid,
            "controller": True,
        }


def diff(
    desired: Sequence[Body], actual: Sequence[ResourceSlice], identity: PoolIdentity, generation: int = 0
) -> list[Write]:
    """Writes that turn the actual slices of this driver and node into the desired specs, obsolete ones deleted first.

    Specs come without pool generation and slice count. Taints keep the time at which they were first added.
    `generation`: the last one that was written, so that it never goes back even when all slices were deleted.
    """
    kept: dict[int, ResourceSlice] = {}
    deletes: list[Write] = []
    for found in sorted(actual, key=lambda s: (-s.spec.pool.generation, s.metadata.name)):
        index = _index(found.metadata.name)
        ours = found.spec.pool.name == identity.node_name and index is not None and index < len(desired)
        if not ours or kept.setdefault(index or 0, found) is not found:
            deletes.append(Delete(found.metadata.name, found.metadata.uid))
    specs = [_with_times(spec, kept.get(i)) for i, spec in enumerate(desired)]
    generation = max([generation, *(found.spec.pool.generation for found in actual)])
    whole = not deletes and len(kept) == len(specs)
    settled = whole and all(
        found.spec.pool.generation == generation and found.spec.pool.resource_slice_count == len(specs)
        for found in kept.values()
    )
    changed = [i for i, spec in enumerate(specs) if i not in kept or not _same(spec, kept[i].spec)]
    if settled and not changed:
        return []
    if not settled or len(changed) > 1:
        generation += 1
        changed = list(range(len(specs)))
    writes = list(deletes)
    for i in changed:
        pool = {"name": identity.node_name, "generation": generation, "resourceSliceCount": len(specs)}
        writes.append(_write(i, specs[i] | {"pool": pool}, kept.get(i), identity))
    return writes


def _write(index: int, spec: Body, found: ResourceSlice | None, identity: PoolIdentity) -> Write:
    metadata: Body = {"ownerReferences": [identity.owner]}
    body = {"apiVersion": RESOURCE_SLICES.api_version, "kind": RESOURCE_SLICES.kind, "metadata": metadata, "spec": spec}
    if found is None:
        metadata["generateName"] = f"{index:05x}-{DRIVER}-{identity.node_name}-"
        return Create(body)
    metadata["name"] = found.metadata.name
    metadata["resourceVersion"] = found.metadata.resource_version
    return Update(body)


def _index(name: str) -> int | None:
    match = _INDEX.match(name)
    return int(match[1], 16) if match else None


def _same(spec: Body, actual: ResourceSliceSpec) -> bool:
    wanted = msgspec.convert(spec, ResourceSliceSpec)
    return msgspec.structs.replace(wanted, pool=actual.pool) == actual


def _with_times(spec: Body, found: ResourceSlice | None) -> Body:
    """The API server sets a taint's `timeAdded`; asking for none again would be an endless difference."""
    if found is None or not any(device.taints for device in found.spec.devices):
        return spec
    times = {
        (device.name, taint.key, taint.value, taint.effect): taint.time_added
        for device in found.spec.devices
        for taint in device.taints
        if taint.time_added
    }
    spec = copy.deepcopy(spec)
    for device in spec.get("devices", ()):
        for taint in device.get("taints", ()):
            time_added = times.get((device["name"], taint["key"], taint.get("value", ""), taint["effect"]))
            if time_added:
                taint.setdefault("timeAdded", time_added)
    return spec


def dropped_fields(sent: Any, got: Any, path: str = "") -> Iterator[str]:
    """Paths of what was sent and did not come back, list positions left out: `spec.devices[].consumesCounters`."""
    if isinstance(sent, Mapping) and isinstance(got, Mapping):
        for name, value in sent.items():
            where = f"{path}.{name}" if path else name
            if name in got:
                yield from dropped_fields(value, got[name], where)
            elif value not in ({}, [], "", 0, False, None):
                yield where
    elif isinstance(sent, list) and isinstance(got, list):
        for one, other in zip(sent, got, strict=False):
            yield from dropped_fields(one, other, f"{path}[]")


def without(spec: Body, paths: frozenset[str]) -> Body:
    """A spec without the fields at these paths (as `dropped_fields` writes them)."""
    kept: Body = _without(spec, paths, "spec")
    return kept


def _without(value: Any, paths: frozenset[str], path: str) -> Any:
    if isinstance(value, Mapping):
        fields = ((name, f"{path}.{name}", item) for name, item in value.items())
        return {name: _without(item, paths, where) for name, where, item in fields if where not in paths}
    if isinstance(value, list):
        return [_without(item, paths, f"{path}[]") for item in value]
    return value


class Published(msgspec.Struct, frozen=True):
    versions: Mapping[str, str]
    """Resource versions of the pool's slices by name."""
    writes: int
    dropped: frozenset[str]
    """Paths of fields that the API server does not know."""


class Publisher:
    """Brings the node's slices in line with desired specs."""

    def __init__(self, client: kube.Client, identity: PoolIdentity) -> None:
        self._client = client
        self._identity = identity
        self._generation = 0

    async def publish(self, desired: Sequence[Body]) -> Published:
        """Raises kube.ApiError. Writes that lost a race against somebody else are tried again from a fresh list."""
        dropped: set[str] = set()
        writes = 0
        for attempt in range(1, _ATTEMPTS + 1):
            listing = await self._client.list(
                RESOURCE_SLICES, fields=f"spec.nodeName={self._identity.node_name},spec.driver={DRIVER}"
            )
            versions = {found.metadata.name: found.metadata.resource_version for found in listing.items}
            try:
                for write in diff(desired, listing.items, self._identity, self._generation):
                    writes += 1
                    await self._carry_out(write, versions, dropped)
                return Published(versions, writes, frozenset(dropped))
            except (kube.Conflict, kube.AlreadyExists, kube.NotFound):
                if attempt == _ATTEMPTS:
                    raise
        raise AssertionError("the last attempt returns or raises")

    async def _carry_out(self, write: Write, versions: dict[str, str], dropped: set[str]) -> None:
        if isinstance(write, Delete):
            await self._client.delete(RESOURCE_SLICES, write.name, uid=write.uid)
            versions.pop(write.name, None)
            return
        if isinstance(write, Create):
            answer = await self._client.create(RESOURCE_SLICES, write.body)
        else:
            answer = await self._client.update(RESOURCE_SLICES, write.body)
        self._generation = write.body["spec"]["pool"]["generation"]
        versions[answer["metadata"]["name"]] = answer["metadata"]["resourceVersion"]
        dropped.update(dropped_fields(write.body["spec"], answer["spec"], "spec"))
