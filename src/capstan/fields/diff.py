"""Differences that people read: which fields have another value, two-way and three-way."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Literal

import msgspec

from capstan.fields.paths import Path, readable
from capstan.fields.schema import Schema
from capstan.fields.sets import SELF, Tree
from capstan.fields.typed import compare

Value = Any


class _Absent:
    """The value of a field that is not there; JSON null is a value of its own."""

    def __repr__(self) -> str:
        return "<absent>"

    def __bool__(self) -> bool:
        return False


ABSENT = _Absent()


class Difference(msgspec.Struct, frozen=True):
    """One field that differs. `old` or `new` is ABSENT when the field was added or removed."""

    path: Path
    old: Value
    new: Value

    @property
    def change(self) -> Literal["added", "removed", "changed"]:
        if self.old is ABSENT:
            return "added"
        return "removed" if self.new is ABSENT else "changed"

    def __str__(self) -> str:
        name = readable(self.path)
        match self.change:
            case "added":
                return f"+ {name}: {_text(self.new)}"
            case "removed":
                return f"- {name}: {_text(self.old)}"
        return f"~ {name}: {_text(self.old)} -> {_text(self.new)}"


def diff(old: dict[str, Value], new: dict[str, Value], schema: Schema) -> list[Difference]:
    """Fields that differ, in path order. What was added or removed whole is one difference, not one per leaf."""
    comparison = compare(old, new, schema)
    found = {}
    for fields in comparison:
        for path in _tops(fields.tree, ()):
            before, after = lookup(old, path, schema), lookup(new, path, schema)
            if before is not after and before != after:
                found[path] = Difference(path, before, after)
    return [found[path] for path in sorted(found)]


def three_way_merge_patch(last: dict[str, Value], new: dict[str, Value], live: dict[str, Value]) -> dict[str, Value]:
    """The merge patch that brings `live` to `new` and removes what `last` had and `new` has not; other fields stay.

    Lists are single values here, as in kubectl's apply of custom resources.
    """
    patch: dict[str, Value] = {name: None for name in last if name not in new and name in live}
    for name, value in new.items():
        current = live.get(name, ABSENT)
        if isinstance(value, dict) and isinstance(current, dict):
            before = last.get(name)
            if below := three_way_merge_patch(before if isinstance(before, dict) else {}, value, current):
                patch[name] = below
        elif current is ABSENT or current != value:
            patch[name] = value
    return patch


def lookup(value: Value, path: Path, schema: Schema) -> Value:
    """The value at a path, or ABSENT."""
    for step in path:
        if step[0] == "f":
            name = step[2:]
            if not isinstance(value, dict) or name not in value:
                return ABSENT
            value, schema = value[name], schema.child(name)
        elif not isinstance(value, list):
            return ABSENT
        elif step[0] == "i":
            index = int(step[2:])
            if index >= len(value):
                return ABSENT
            value, schema = value[index], schema.item
        else:
            if not schema.granular_list:
                return ABSENT
            found = [item for item in value if schema.step(item) == step]
            if not found:
                return ABSENT
            value, schema = found[0], schema.item
    return value


def _tops(tree: Tree, prefix: Path) -> Iterator[Path]:
    """The outermost members of a set."""
    for step, below in tree.items():
        if not below or SELF in below:
            yield (*prefix, step)
        else:
            yield from _tops(below, (*prefix, step))


def _text(value: Value) -> str:
    return value if isinstance(value, str) else msgspec.json.encode(value).decode()
