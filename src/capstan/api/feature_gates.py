"""Kubernetes feature gates of Dynamic Resource Allocation: which are on, and which fields of objects they govern.

An API server drops the fields of a feature that is off from every write, unless the stored object uses the feature
already, and does not serve the kinds of one (`@` lines with `gate=`). Which field belongs to which gate is said by the
schemas (`gate(NAME)` in `capstan/api/schemas`). The scheduler decides without the features that are off.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import msgspec

from capstan.api.openapi import FEATURE_GATE, REF, JsonSchema


class Gate(msgspec.Struct, frozen=True):
    """`needs` are gates without which this one is of no use and may not be on; a locked one cannot be switched."""

    name: str
    default: bool
    needs: tuple[str, ...] = ()
    locked: bool = False


GATES: Mapping[str, Gate] = {
    gate.name: gate
    for gate in (
        Gate("DynamicResourceAllocation", True, locked=True),
        Gate("DRAAdminAccess", True),
        Gate("DRAConsumableCapacity", True),
        Gate("DRADerivedAttributes", False),
        Gate("DRADeviceBindingConditions", True, ("DRAResourceClaimDeviceStatus",)),
        Gate("DRADeviceCompatibilityGroups", False, ("DRAPartitionableDevices",)),
        Gate("DRADeviceTaintRules", True, ("DRADeviceTaints",)),
        Gate("DRADeviceTaints", True),
        Gate("DRAExtendedResource", True),
        Gate("DRAFractionalCapacityRange", True, ("DRAConsumableCapacity",)),
        Gate("DRAListTypeAttributes", True),
        Gate("DRANodeAllocatableResources", False),
        Gate("DRAOptionalNodeOperations", True),
        Gate("DRAPartitionableDevices", True),
        Gate("DRAPartitionableDevicesType", False, ("DRAPartitionableDevices", "DRAResourcePoolStatus")),
        Gate("DRAPrioritizedList", True),
        Gate("DRAResourceClaimDeviceStatus", True),
        Gate("DRAResourcePoolStatus", True),
        Gate("DRASharedConsumableCapacity", False, ("DRAPartitionableDevices", "DRAConsumableCapacity")),
    )
}
"""With the defaults of Kubernetes 1.37; DRAListTypeAttributes, DRAOptionalNodeOperations and DRAResourcePoolStatus,
which are off there, are on: they change nothing for objects that do not use them."""


class InvalidFeatureGates(ValueError):
    """{message}: names the gate, and what is allowed."""


class FeatureGates(msgspec.Struct, frozen=True):
    """The gates that are on. Equal sets are interchangeable."""

    on: frozenset[str] = frozenset(name for name, gate in GATES.items() if gate.default)

    def __contains__(self, name: str) -> bool:
        return name in self.on

    def __str__(self) -> str:
        return ",".join(f"{name}={str(name in self.on).lower()}" for name in GATES if name in changed(self))


def changed(gates: FeatureGates) -> list[str]:
    """The gates that are not as by default."""
    return [name for name, gate in GATES.items() if gate.default != (name in gates.on)]


def parse(text: str) -> FeatureGates:
    """`NAME=true,NAME=false` on top of the defaults, as Kubernetes' `--feature-gates`. What needs a gate that is
    switched off goes off with it, unless it is asked for. Raises InvalidFeatureGates."""
    asked: dict[str, bool] = {}
    for item in filter(None, (each.strip() for each in text.split(","))):
        name, _, value = item.partition("=")
        if name not in GATES or value not in ("true", "false"):
            raise InvalidFeatureGates(f"{item!r} is not NAME=true or NAME=false with one of: {', '.join(GATES)}")
        if GATES[name].locked and value == "false":
            raise InvalidFeatureGates(f"cannot set feature gate {name} to false, feature is locked to true")
        asked[name] = value == "true"
    on = {name for name, gate in GATES.items() if asked.get(name, gate.default)}
    for name in sorted(on):
        for needed in (each for each in _needs(name) if each not in on):
            if asked.get(name):
                raise InvalidFeatureGates(f"{name}=true needs {needed}=true")
            on.discard(name)
    return FeatureGates(frozenset(on))


def _needs(name: str) -> Iterator[str]:
    """Everything that a gate needs, directly or not."""
    for needed in GATES[name].needs:
        yield needed
        yield from _needs(needed)


Path = tuple[str, ...]
"""Where a field stands: keys, and `[]` for every item of a list, `{}` for every value of a map."""


class GatedFields:
    """The fields of one schema that gates govern, by gate."""

    def __init__(self, schema: JsonSchema, definitions: Mapping[str, JsonSchema]) -> None:
        self.paths: dict[str, list[Path]] = {}
        for gate, path in _gated(schema, definitions, ()):
            self.paths.setdefault(gate, []).append(path)

    def without(self, gates: FeatureGates) -> DroppedFields:
        """The fields of features that are off."""
        return DroppedFields({gate: paths for gate, paths in self.paths.items() if gate not in gates})


class DroppedFields:
    """The fields of features that are off."""

    def __init__(self, paths: Mapping[str, list[Path]]) -> None:
        self._root = _Step()
        for gate, own in paths.items():
            for path in own:
                self._root.add(path, gate)

    def drop(self, obj: Any, old: Any = None) -> None:
        """Remove them in place, but for those of features that the stored object uses already."""
        found: list[_Use] = []
        self._root.collect(obj, found)
        if found:
            used: list[_Use] = []
            self._root.collect(old, used)
            kept = {gate for gate, _, _ in used}
            for gate, holder, key in found:
                if gate not in kept:
                    holder.pop(key, None)


_Use = tuple[str, dict[str, Any], str]
"""(gate, mapping, key) of a gated field."""


class _Step:
    """A step of one or more paths: what leads on from it, and the gates of the fields that are reached by it."""

    __slots__ = ("gates", "items", "keys", "values")

    def __init__(self) -> None:
        self.keys: dict[str, _Step] = {}
        self.items: _Step | None = None
        self.values: _Step | None = None
        self.gates: list[str] = []

    def add(self, path: Path, gate: str) -> None:
        step, rest = path[0], path[1:]
        if step == "[]":
            below = self.items = self.items or _Step()
        elif step == "{}":
            below = self.values = self.values or _Step()
        else:
            below = self.keys.setdefault(step, _Step())
        if rest:
            below.add(rest, gate)
        else:
            below.gates.append(gate)

    def collect(self, value: Any, found: list[_Use]) -> None:
        """Every gated field below the value."""
        if isinstance(value, dict):
            for key, below in self.keys.items():
                if key in value:
                    found += [(gate, value, key) for gate in below.gates]
                    below.collect(value[key], found)
            if self.values is not None:
                for item in value.values():
                    self.values.collect(item, found)
        elif self.items is not None and isinstance(value, list):
            for item in value:
                self.items.collect(item, found)


def _gated(
    schema: JsonSchema, definitions: Mapping[str, JsonSchema], path: Path, within: frozenset[str] = frozenset()
) -> Iterator[tuple[str, Path]]:
    """(gate, path) of every gated field; `within` are the types around it, because a type may contain itself."""
    for reference in (schema, *schema.get("allOf", ())):
        name = reference.get("$ref", "").removeprefix(REF)
        if name and name not in within:
            yield from _gated(definitions[name], definitions, path, within | {name})
    for key, child in schema.get("properties", {}).items():
        if FEATURE_GATE in child:
            yield child[FEATURE_GATE], (*path, key)
        yield from _gated(child, definitions, (*path, key), within)
    for word, step in (("items", "[]"), ("additionalProperties", "{}")):
        if isinstance(schema.get(word), dict):
            yield from _gated(schema[word], definitions, (*path, step), within)
