"""Where a live object is not as its manifest says, judged by the fields that the manifest states and nothing else.

No schema is needed: the managed fields of the live object show which lists are keyed and by what. What the API server
defaulted and what others added is not stated by the manifest, so it never shows up here.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import msgspec

from capstan import fields
from capstan.api import quantity
from capstan.fields import ABSENT, Difference, FieldSet, Path

Value = Any
Tree = Mapping[str, Any] | None
"""A node of a field set; None where nobody owns anything."""

_QUANTITY_MAPS = frozenset(("limits", "requests", "capacity", "podFixed", "hard"))
"""Maps of quantities, which API servers store in canonical form."""
_DEFAULTED_TEXTS = frozenset(("apiVersion", "apiGroup", "divisor"))
"""What API servers default inside of small references: `fieldRef`, `roleRef`, `resourceFieldRef`."""
_IDENTITY = frozenset(("apiVersion", "kind"))


def stated_differences(desired: Mapping[str, Value], live: Mapping[str, Value]) -> list[Difference]:
    """Fields of the manifest that have another value in the live object (`old` live, `new` desired)."""
    tree = _structure(live)
    return [found for found in _walk(desired, live, tree, ()) if found.path[0][2:] not in _IDENTITY]


def abandoned(desired: Mapping[str, Value], live: Mapping[str, Value], manager: str) -> list[Difference]:
    """Fields that the manager applied earlier, alone, and that the manifest no longer has: applying removes them."""
    mine, others = FieldSet(), FieldSet()
    for (name, operation, _, _), entry in fields.managers(dict(live)).items():
        if name == manager and operation == fields.APPLY:
            mine |= entry.fields
        else:
            others |= entry.fields
    gone: list[Difference] = []
    for path in sorted(mine - others):
        if any(path[: len(each.path)] == each.path for each in gone):
            continue
        value = find(live, path)
        if value is not ABSENT and find(desired, path) is ABSENT:
            gone.append(Difference(path, value, ABSENT))
    return gone


def stated_paths(desired: Mapping[str, Value], live: Mapping[str, Value]) -> list[Path]:
    """The leaves of the manifest, as the live object's managed fields would name them."""
    return list(_leaves({k: v for k, v in desired.items() if k not in _IDENTITY}, _structure(live), ()))


def find(value: Value, path: Path) -> Value:
    """The value at a path of managed fields, or ABSENT."""
    for step in path:
        kind, text = step[0], step[2:]
        if kind == "f":
            if not isinstance(value, Mapping) or text not in value:
                return ABSENT
            value = value[text]
        elif not isinstance(value, list):
            return ABSENT
        elif kind == "v":
            wanted = msgspec.json.decode(text)
            if wanted not in value:
                return ABSENT
            value = wanted
        elif kind == "k":
            key = msgspec.json.decode(text)
            value = next((item for item in value if _has_key(item, key)), ABSENT)
            if value is ABSENT:
                return ABSENT
        else:
            index = int(text)
            if index >= len(value):
                return ABSENT
            value = value[index]
    return value


def _structure(live: Mapping[str, Value]) -> Tree:
    union = FieldSet()
    for entry in fields.managers(dict(live)).values():
        union |= entry.fields
    return union.tree or None


def _walk(desired: Value, live: Value, tree: Tree, path: Path) -> Iterator[Difference]:
    if isinstance(desired, Mapping) and isinstance(live, Mapping) and not _is_atomic(tree, live):
        for name, value in desired.items():
            step = "f:" + name
            here = (*path, step)
            if value is None:
                continue
            if name not in live:
                if value not in ({}, []):
                    yield Difference(here, ABSENT, value)
            else:
                yield from _walk(value, live[name], (tree or {}).get(step), here)
    elif isinstance(desired, list) and isinstance(live, list) and (keys := _keys(tree)):
        for item in desired:
            step = _step(item, keys, tree)
            found = find(live, (step,))
            if found is ABSENT:
                yield Difference((*path, step), ABSENT, item)
            else:
                yield from _walk(item, found, (tree or {}).get(step), (*path, step))
    elif differs(desired, live, path):
        yield Difference(path, live, desired)


def _leaves(desired: Value, tree: Tree, path: Path) -> Iterator[Path]:
    if isinstance(desired, Mapping) and desired and tree != {}:
        for name, value in desired.items():
            if value is not None:
                yield from _leaves(value, (tree or {}).get("f:" + name), (*path, "f:" + name))
    elif isinstance(desired, list) and (keys := _keys(tree)):
        for item in desired:
            step = _step(item, keys, tree)
            yield from _leaves(item, (tree or {}).get(step), (*path, step))
    else:
        yield path


def _is_atomic(tree: Tree, live: Mapping[str, Value]) -> bool:
    """A map with content that somebody owns as one value."""
    return tree is not None and not tree and bool(live)


def _keys(tree: Tree) -> tuple[str, ...]:
    """How the items of a list are told apart: the names of its keys, `=` for a set, nothing for a list that is
    one value.
    """
    for step in tree or ():
        if step[0] == "k":
            return tuple(msgspec.json.decode(step[2:]))
        if step[0] == "v":
            return ("=",)
    return ()


def _step(item: Value, keys: tuple[str, ...], tree: Tree) -> str:
    """The step of an item. Keys that the manifest leaves out to be defaulted are taken from the live object's steps."""
    if keys == ("=",) or not isinstance(item, Mapping):
        return "v:" + msgspec.json.encode(item, order="sorted").decode()
    step = "k:" + msgspec.json.encode({key: item[key] for key in sorted(keys) if key in item}).decode()
    if not tree or step in tree:
        return step
    known = (each for each in tree if each[0] == "k" and _has_key(item, msgspec.json.decode(each[2:])))
    return next(known, step)


def _has_key(item: Value, key: Mapping[str, Value]) -> bool:
    """Keys that an item leaves out have their default, which is what the other side states."""
    return (
        isinstance(item, Mapping)
        and any(name in item for name in key)
        and all(item.get(name, value) == value for name, value in key.items())
    )


def differs(desired: Value, live: Value, path: Path) -> bool:
    """Whether a single value, be it a map or a list, is another one than stated, defaults inside of it aside."""
    return not _covers(desired, live, path) or _surplus(desired, live)


def _surplus(desired: Value, live: Value) -> bool:
    """Whether a map of texts, such as a node selector, has more than is stated: applying would remove it.

    In other maps that are one value, more is what the API server defaulted; what was dropped from them shows nowhere.
    """
    if not isinstance(desired, Mapping) or not isinstance(live, Mapping):
        return False
    texts = all(isinstance(value, str) for each in (desired, live) for value in each.values())
    return texts and bool(live.keys() - desired.keys() - _DEFAULTED_TEXTS)


def _covers(desired: Value, live: Value, path: Path) -> bool:
    """Whether `live` has all that `desired` states; inside of single values defaults may have been added."""
    if isinstance(desired, Mapping) and isinstance(live, Mapping):
        return all(
            value is None or (name in live and _covers(value, live[name], (*path, "f:" + name)))
            for name, value in desired.items()
        )
    if isinstance(desired, list) and isinstance(live, list):
        return len(desired) == len(live) and all(
            _covers(wanted, found, path) for wanted, found in zip(desired, live, strict=True)
        )
    if isinstance(desired, bool) or isinstance(live, bool):
        return desired is live
    if desired == live:
        return True
    if len(path) > 1 and path[-2][2:] in _QUANTITY_MAPS:
        try:
            return quantity.parse(desired) == quantity.parse(live)
        except (quantity.InvalidQuantity, TypeError):
            return False
    return False
