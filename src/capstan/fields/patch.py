"""JSON merge patch (RFC 7386) and JSON patch (RFC 6902) on decoded JSON. Arguments are never changed in place."""

from __future__ import annotations

import copy
from typing import Any

from capstan.fields.errors import InvalidPatch, PatchFailed

Value = Any


def merge_patch(document: Value, patch: Value) -> Value:
    """Apply a JSON merge patch: null deletes a key, objects merge, everything else replaces."""
    if not isinstance(patch, dict):
        return patch
    result = dict(document) if isinstance(document, dict) else {}
    for key, value in patch.items():
        if value is None:
            result.pop(key, None)
        elif isinstance(value, dict):
            result[key] = merge_patch(result.get(key), value)
        else:
            result[key] = value
    return result


def create_merge_patch(old: dict[str, Value], new: dict[str, Value]) -> dict[str, Value]:
    """The smallest merge patch from `old` to `new`. Nulls inside `new` cannot be expressed and must not occur."""
    patch: dict[str, Value] = {key: None for key in old if key not in new}
    for key, value in new.items():
        before = old.get(key)
        if key in old and before == value:
            continue
        if isinstance(value, dict) and isinstance(before, dict):
            patch[key] = create_merge_patch(before, value)
        else:
            patch[key] = value
    return patch


def json_patch(document: Value, operations: Any) -> Value:
    """Apply a JSON patch; all or nothing.

    Raises InvalidPatch for a malformed operation and PatchFailed for one that does not fit the document.
    """
    if not isinstance(operations, list):
        raise InvalidPatch("a JSON patch is a list of operations")
    result = copy.deepcopy(document)
    for number, operation in enumerate(operations):
        where = f"operation {number}"
        if not isinstance(operation, dict) or not isinstance(operation.get("op"), str):
            raise InvalidPatch(f"{where} must be an object with the field op")
        where = f"{where} ({operation['op']} {operation.get('path')!r})"
        path = _pointer(operation, "path", where)
        match operation["op"]:
            case "add":
                result = _add(result, path, copy.deepcopy(_value(operation, where)), where)
            case "remove":
                result, _ = _take(result, path, where)
            case "replace":
                _get(result, path, where)
                result = _put(result, path, copy.deepcopy(_value(operation, where)))
            case "move":
                source = _pointer(operation, "from", where)
                if path[: len(source)] == source and path != source:
                    raise PatchFailed(f"{where}: cannot move a value into itself")
                result, moved = _take(result, source, where)
                result = _add(result, path, moved, where)
            case "copy":
                result = _add(
                    result, path, copy.deepcopy(_get(result, _pointer(operation, "from", where), where)), where
                )
            case "test":
                found, wanted = _get(result, path, where), _value(operation, where)
                if not _same(found, wanted):
                    raise PatchFailed(f"{where}: the value is {found!r}, not {wanted!r}")
            case unknown:
                raise InvalidPatch(f"{where}: unknown op {unknown!r}; use add, remove, replace, move, copy or test")
    return result


def _value(operation: dict[str, Value], where: str) -> Value:
    if "value" not in operation:
        raise InvalidPatch(f"{where} needs a value")
    return operation["value"]


def _pointer(operation: dict[str, Value], field: str, where: str) -> list[str]:
    text = operation.get(field)
    if not isinstance(text, str) or (text and not text.startswith("/")):
        raise InvalidPatch(f"{where}: {field} must be a JSON pointer like /metadata/labels, not {text!r}")
    return [part.replace("~1", "/").replace("~0", "~") for part in text.split("/")[1:]]


def _index(part: str, length: int, where: str) -> int:
    if part != "0" and (not part.isascii() or not part.isdigit() or part.startswith("0")):
        raise PatchFailed(f"{where}: {part!r} is not a list index")
    index = int(part)
    if index >= length:
        raise PatchFailed(f"{where}: index {index} is outside of the list of {length}")
    return index


def _get(document: Value, path: list[str], where: str) -> Value:
    for depth, part in enumerate(path):
        if isinstance(document, list):
            document = document[_index(part, len(document), where)]
        elif isinstance(document, dict) and part in document:
            document = document[part]
        else:
            raise PatchFailed(f"{where}: /{'/'.join(path[: depth + 1])} does not exist")
    return document


def _parent(document: Value, path: list[str], where: str) -> dict[str, Value] | list[Value]:
    parent = _get(document, path[:-1], where)
    if not isinstance(parent, (dict, list)):
        raise PatchFailed(f"{where}: /{'/'.join(path[:-1])} is neither an object nor a list")
    return parent


def _add(document: Value, path: list[str], value: Value, where: str) -> Value:
    if not path:
        return value
    parent = _parent(document, path, where)
    if isinstance(parent, dict):
        parent[path[-1]] = value
    else:
        parent.insert(len(parent) if path[-1] == "-" else _index(path[-1], len(parent) + 1, where), value)
    return document


def _put(document: Value, path: list[str], value: Value) -> Value:
    """Replace a value that exists."""
    if not path:
        return value
    parent = _parent(document, path, "")
    if isinstance(parent, dict):
        parent[path[-1]] = value
    else:
        parent[int(path[-1])] = value
    return document


def _take(document: Value, path: list[str], where: str) -> tuple[Value, Value]:
    """Remove a value that exists; returns the document and the value."""
    value = _get(document, path, where)
    if not path:
        return None, value
    parent = _parent(document, path, where)
    if isinstance(parent, dict):
        del parent[path[-1]]
    else:
        del parent[int(path[-1])]
    return document, value


def _same(left: Value, right: Value) -> bool:
    """JSON equality: 1 equals 1.0 but not true."""
    if isinstance(left, bool) or isinstance(right, bool):
        return left is right
    if isinstance(left, dict) and isinstance(right, dict):
        return left.keys() == right.keys() and all(_same(left[key], right[key]) for key in left)
    if isinstance(left, list) and isinstance(right, list):
        return len(left) == len(right) and all(map(_same, left, right))
    return bool(left == right)
