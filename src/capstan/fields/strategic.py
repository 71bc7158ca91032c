"""Strategic merge patch: a merge patch that knows which lists merge, by which key, and has directives.

Directives: `$patch: replace|delete|merge` in an object or as a list item, `$retainKeys`, `$setElementOrder/<list>`,
`$deleteFromPrimitiveList/<list>`. The rules are those of the API server ("strategic-merge-patch.md" of
kubernetes/community); merge keys and strategies come from `x-kubernetes-patch-merge-key` and
`x-kubernetes-patch-strategy`.
"""

from __future__ import annotations

from typing import Any

from capstan.fields.errors import InvalidPatch
from capstan.fields.schema import Schema

Value = Any
Map = dict[str, Value]

DIRECTIVE = "$patch"
RETAIN = "$retainKeys"
ORDER = "$setElementOrder/"
DELETE = "$deleteFromPrimitiveList/"
_DIRECTIVES = frozenset((DIRECTIVE, RETAIN, "$setElementOrder", "$deleteFromPrimitiveList"))


def strategic_merge_patch(document: Map, patch: Map, schema: Schema) -> Map:
    """Apply a strategic merge patch. Neither argument is changed. Raises InvalidPatch, naming the field."""
    if not isinstance(patch, dict):
        raise InvalidPatch("a strategic merge patch is an object")
    return _merge_map(document, patch, schema, "")


def _merge_map(original: Map, patch: Map, schema: Schema, path: str) -> Map:
    match patch.get(DIRECTIVE, "merge"):
        case "replace":
            return _plain_map(patch)
        case "delete":
            return {}
        case "merge":
            pass
        case unknown:
            raise InvalidPatch(f"{path or '.'}: unknown directive $patch: {unknown!r}; use merge, replace or delete")
    result = dict(original)
    if RETAIN in patch:
        _retain(result, patch, path)
    deletions: dict[str, list[Value]] = {}
    orders: dict[str, list[Value]] = {}
    for name, value in patch.items():
        if name.startswith(ORDER):
            orders[name.removeprefix(ORDER)] = _list(value, f"{path}.{name}")
        elif name.startswith(DELETE):
            deletions[name.removeprefix(DELETE)] = _list(value, f"{path}.{name}")
    for name, gone in deletions.items():
        if isinstance(result.get(name), list):
            result[name] = [value for value in result[name] if value not in gone]
    for name, value in patch.items():
        if name.split("/")[0] in _DIRECTIVES:
            continue
        if value is None:
            result.pop(name, None)
        else:
            result[name] = _merge_value(
                result.get(name), value, schema.child(name), f"{path}.{name}", orders.pop(name, None)
            )
    for name, order in orders.items():
        if isinstance(result.get(name), list):
            result[name] = _ordered(result[name], result[name], order, schema.child(name).patch_key)
    return result


def _merge_value(original: Value, patch: Value, schema: Schema, path: str, order: list[Value] | None) -> Value:
    if isinstance(patch, dict) and isinstance(original, dict) and "replace" not in schema.patch_strategies:
        return _merge_map(original, patch, schema, path)
    if isinstance(patch, list) and isinstance(original, list) and "merge" in schema.patch_strategies:
        merge_items = _merge_items if schema.patch_key else _merge_primitives
        return merge_items(original, patch, schema, path, order)
    return _plain(patch)


def _merge_primitives(
    original: list[Value], patch: list[Value], _: Schema, path: str, order: list[Value] | None
) -> list[Value]:
    for value in patch:
        if order is not None and value not in order:
            raise InvalidPatch(f"{path}: {value!r} is patched but is not in $setElementOrder")
    merged = original + [
        value for position, value in enumerate(patch) if value not in original and value not in patch[:position]
    ]
    return _ordered(merged, original, patch if order is None else order, "")


def _merge_items(
    original: list[Value], patch: list[Value], schema: Schema, path: str, order: list[Value] | None
) -> list[Value]:
    key = schema.patch_key
    kept = list(original)
    ordinary: list[Map] = []
    replaced = False
    for item in patch:
        if not isinstance(item, dict):
            raise InvalidPatch(f"{path}: the list is merged by {key!r}, so every item must be an object, not {item!r}")
        directive = item.get(DIRECTIVE)
        if directive == "replace" and key not in item:
            replaced = True
        elif directive == "delete":
            kept = [each for each in kept if each.get(key) != _identity(item, key, path)]
        else:
            _identity(item, key, path)
            ordinary.append(item)
    if replaced:
        return [_plain(item) for item in ordinary]
    for item in ordinary:
        if order is not None and not any(each.get(key) == item[key] for each in order):
            raise InvalidPatch(f"{path}: the item with {key} {item[key]!r} is patched but is not in $setElementOrder")
        position = next((at for at, each in enumerate(kept) if each.get(key) == item[key]), None)
        if position is None:
            kept.append(_plain(item))
        else:
            kept[position] = _merge_map(kept[position], item, schema.item, f"{path}[{key}={item[key]}]")
    return _ordered(kept, original, ordinary if order is None else order, key)


def _ordered(merged: list[Value], original: list[Value], order: list[Value], key: str) -> list[Value]:
    """Items named in `order` come in that order; the others keep their place among them as far as the original
    tells.
    """

    def identity(item: Value) -> Value:
        return item.get(key) if key and isinstance(item, dict) else item

    wanted = [identity(item) for item in order]
    before = [identity(item) for item in original]
    named = sorted((item for item in merged if identity(item) in wanted), key=lambda item: wanted.index(identity(item)))
    others = [item for item in merged if identity(item) not in wanted]
    result: list[Value] = []
    while named and others:
        first, other = identity(named[0]), identity(others[0])
        # A new item precedes those that the patch does not mention.
        earlier = first in before and before.index(other) < before.index(first)
        result.append((others if earlier else named).pop(0))
    return result + named + others


def _identity(item: Map, key: str, path: str) -> Value:
    if item.get(key) is None:
        raise InvalidPatch(f"{path}: a list item does not contain the merge key {key!r}")
    return item[key]


def _retain(result: Map, patch: Map, path: str) -> None:
    keys = _list(patch[RETAIN], f"{path}.{RETAIN}")
    for name, value in patch.items():
        if value is not None and name.split("/")[0] not in _DIRECTIVES and name not in keys:
            raise InvalidPatch(f"{path}.{name} is patched but is not in $retainKeys")
    for name in [name for name in result if name not in keys]:
        del result[name]


def _plain(value: Value) -> Value:
    """A patch value as content: without nulls, directives and items to delete."""
    if isinstance(value, dict):
        return _plain_map(value)
    if isinstance(value, list):
        return [
            _plain(item)
            for item in value
            if not (isinstance(item, dict) and (item.get(DIRECTIVE) == "delete" or item.keys() == {DIRECTIVE}))
        ]
    return value


def _plain_map(value: Map) -> Map:
    return {
        name: _plain(child)
        for name, child in value.items()
        if child is not None and name.split("/")[0] not in _DIRECTIVES
    }


def _list(value: Value, path: str) -> list[Value]:
    if not isinstance(value, list):
        raise InvalidPatch(f"{path} must be a list")
    return value
