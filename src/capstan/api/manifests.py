"""YAML and JSON documents as Kubernetes reads them.

YAML 1.1 as PyYAML speaks it turns `12:30:45` into a number and `2001-01-01` into a date; Kubernetes does neither.
Mapping keys are strings, a key that occurs twice is an error, and aliases may not blow a small text up.
"""

from __future__ import annotations

import math
import re
from collections.abc import Hashable
from typing import Any

import msgspec
import yaml

Manifest = dict[str, Any]

_LARGEST_BYTES = 8 * 1024 * 1024
_LARGEST_JSON_BYTES = 64 * 1024 * 1024
"""JSON is read a hundred times as fast; the slices of a large cluster need more than YAML may have."""
_MOST_NODES = 1_000_000
_DEEPEST = 128


class InvalidManifest(ValueError):
    """A document that cannot be read; the message names the source, the line and what is wrong."""


class _Loader(yaml.CSafeLoader):
    """PyYAML's C loader without sexagesimal numbers and timestamps, with unique string keys."""

    def construct_mapping(self, node: Any, deep: bool = False) -> dict[Hashable, Any]:
        self.flatten_mapping(node)
        mapping: dict[Hashable, Any] = {}
        for key_node, value_node in node.value:
            key = self.construct_object(key_node, deep=True)
            if not isinstance(key, str):
                key = key_node.value if isinstance(key_node, yaml.ScalarNode) else None
            if key is None:
                raise _refusal("a mapping key must be a string", key_node)
            if key in mapping:
                raise _refusal(f"the key {key!r} stands twice in one mapping", key_node)
            mapping[key] = self.construct_object(value_node, deep=True)
        return mapping


def _refusal(problem: str, where: Any) -> yaml.MarkedYAMLError:
    return yaml.MarkedYAMLError(problem=problem, problem_mark=where.start_mark)


def _check_size(text: str | bytes) -> None:
    """Refuse what would overrun the C parser's stack or explode through aliases, before any of it is built."""
    sizes: dict[str, int] = {}
    open_nodes: list[tuple[str | None, int]] = []
    total = 0
    for event in yaml.parse(text, Loader=yaml.CSafeLoader):
        if isinstance(event, yaml.DocumentStartEvent):
            sizes.clear()
        elif isinstance(event, yaml.AliasEvent):
            total += sizes.get(event.anchor or "", 0)
        elif isinstance(event, yaml.ScalarEvent):
            total += 1
        elif isinstance(event, yaml.CollectionStartEvent):
            open_nodes.append((event.anchor, total))
            total += 1
            if len(open_nodes) > _DEEPEST:
                raise _refusal(f"nested deeper than {_DEEPEST} levels", event)
        elif isinstance(event, yaml.CollectionEndEvent):
            anchor, before = open_nodes.pop()
            if anchor:
                sizes[anchor] = total - before
        if total > _MOST_NODES:
            raise _refusal(f"more than {_MOST_NODES} values", event)


def _construct_float(loader: _Loader, node: Any) -> float:
    value: float = loader.construct_yaml_float(node)
    if not math.isfinite(value):
        raise _refusal(f"{node.value} is no number that JSON can carry; write a finite one", node)
    return value


def _construct_map(loader: _Loader, node: Any) -> dict[Hashable, Any]:
    return loader.construct_mapping(node, deep=True)


_Loader.add_constructor("tag:yaml.org,2002:map", _construct_map)
_Loader.add_constructor("tag:yaml.org,2002:float", _construct_float)
_Loader.yaml_implicit_resolvers = {
    first: [(tag, pattern) for tag, pattern in resolvers if not tag.endswith((":timestamp", ":int", ":float"))]
    for first, resolvers in yaml.CSafeLoader.yaml_implicit_resolvers.items()
}
_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:int",
    re.compile(r"[-+]?(?:0b[01]+|0o?[0-7]+|0x[0-9a-fA-F]+|0|[1-9][0-9]*)\Z"),
    list("-+0123456789"),
)
_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float",
    re.compile(
        r"[-+]?(?:\.[0-9]+|[0-9]+\.[0-9]*|[0-9]+(?=[eE]))(?:[eE][-+]?[0-9]+)?\Z|[-+]?\.(?:inf|Inf|INF)\Z|\.(?:nan|NaN|NAN)\Z"
    ),
    list("-+.0123456789"),
)


class _Dumper(yaml.CSafeDumper):
    """Quotes every text that our loader or a YAML 1.1 one would take for something else."""


_Dumper.yaml_implicit_resolvers = {
    first: _Loader.yaml_implicit_resolvers.get(first, []) + yaml.CSafeDumper.yaml_implicit_resolvers.get(first, [])
    for first in _Loader.yaml_implicit_resolvers.keys() | yaml.CSafeDumper.yaml_implicit_resolvers.keys()
}


def load_all(text: str | bytes, source: str = "input") -> list[Any]:
    """Every non-empty document of a YAML stream or of a JSON text. Raises InvalidManifest."""
    stripped = text.lstrip()
    if len(text) <= _LARGEST_JSON_BYTES and stripped[:1] in ("{", b"{"):
        try:
            return [msgspec.json.decode(stripped)]
        except (msgspec.DecodeError, RecursionError):
            pass  # flow-style YAML starts like JSON too
    if len(text) > _LARGEST_BYTES:
        limits = f"{_LARGEST_BYTES >> 20} MiB of YAML or {_LARGEST_JSON_BYTES >> 20} MiB of JSON"
        raise InvalidManifest(f"{source}: larger than {limits}; split the file, or give it as JSON")
    try:
        _check_size(text)
        return [document for document in yaml.load_all(text, Loader=_Loader) if document is not None]
    except (yaml.YAMLError, ValueError) as error:
        raise InvalidManifest(f"{source}: {_explain(error)}") from error


def load_manifests(text: str | bytes, source: str = "input") -> list[Manifest]:
    """The Kubernetes objects of a text, `kind: List` unfolded. Raises InvalidManifest for what states no kind."""
    manifests: list[Manifest] = []
    for number, document in enumerate(load_all(text, source), 1):
        where = f"{source}: document {number}"
        if not isinstance(document, dict):
            raise InvalidManifest(f"{where}: expected an object with apiVersion and kind, found {_kind_of(document)}")
        items = document.get("items") if document.get("kind") == "List" else [document]
        if not isinstance(items, list):
            raise InvalidManifest(f"{where}: items: expected a list, found {_kind_of(items)}")
        for item in items:
            if not isinstance(item, dict):
                raise InvalidManifest(f"{where}: expected an object with apiVersion and kind, found {_kind_of(item)}")
            for field in ("apiVersion", "kind"):
                if not isinstance(item.get(field), str) or not item[field]:
                    raise InvalidManifest(f"{where}: {field}: missing; every object states its {field}")
            if not isinstance(item.get("metadata", {}), dict):
                raise InvalidManifest(f"{where}: metadata: expected an object, found {_kind_of(item['metadata'])}")
            manifests.append(item)
    return manifests


def dump(value: Any) -> str:
    """One block-style YAML document, keys in the order given."""
    text: str = yaml.dump(value, Dumper=_Dumper, sort_keys=False, default_flow_style=False, allow_unicode=True)
    return text


def _explain(error: Exception) -> str:
    if isinstance(error, yaml.MarkedYAMLError) and error.problem_mark is not None:
        mark = error.problem_mark
        return f"line {mark.line + 1}, column {mark.column + 1}: {error.problem or error.context}"
    return str(error)


def _kind_of(value: object) -> str:
    names = {dict: "an object", list: "a list", str: "text", bool: "a boolean", int: "a number", float: "a number"}
    return names.get(type(value), "nothing")
