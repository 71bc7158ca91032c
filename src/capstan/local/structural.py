"""Structural schemas compiled once per type: unknown fields, pruning, defaulting and errors of objects as plain dicts.

An OpenAPI v3 schema (built-in or of a CRD) becomes a tree of `Node`s and one strict JSON schema. The strict schema runs
in Rust and answers the common case — nothing unknown, nothing wrong — in microseconds; only an object that fails it is
walked in Python, to say which fields are unknown and what is wrong with them, in the words of the Kubernetes API
server.

Rules: apiextensions.k8s.io/v1 structural schemas (KEP-1152), pruning (KEP-709), defaulting (KEP-575).
"""

from __future__ import annotations

import copy
import json
from collections.abc import Callable, Iterator, Mapping
from functools import cached_property, lru_cache
from typing import Any

import jsonschema_rs

from capstan.api import quantity
from capstan.api.base import StatusCause
from capstan.local.structural_errors import Checks, check, check_keys, checks_of, strict_scalar, type_error

JsonSchema = dict[str, Any]
Default = Callable[[Any], None]

REF = "#/components/schemas/"
PRESERVE = "x-kubernetes-preserve-unknown-fields"
EMBEDDED = "x-kubernetes-embedded-resource"
INT_OR_STRING = "x-kubernetes-int-or-string"
AS_WRITTEN = "x-capstan-as-written"
DEFAULT_ZERO = "x-capstan-default-zero"
METADATA = f"{REF}io.k8s.apimachinery.pkg.apis.meta.v1.ObjectMeta"

_SCALAR_DEFAULTS = (str, int, float, bool, type(None))
_TYPE_META: JsonSchema = {"apiVersion": {"type": "string"}, "kind": {"type": "string"}, "metadata": {"$ref": METADATA}}


class Node:
    """One place in a schema. `properties`, `values` (of a map) and `items` are what may stand below it."""

    __slots__ = (
        "as_written",
        "checks",
        "default",
        "default_zero",
        "has_default",
        "items",
        "preserve",
        "properties",
        "values",
    )

    def __init__(self) -> None:
        self.properties: dict[str, Node] | None = None
        self.values: Node | None = None
        self.items: Node | None = None
        self.preserve = False
        self.has_default = False
        self.default: Any = None
        self.default_zero = False
        self.as_written = False
        self.checks = Checks()


class Structural:
    """A compiled schema. `definitions` resolves `#/components/schemas/` references."""

    def __init__(self, schema: JsonSchema, definitions: Mapping[str, JsonSchema]) -> None:
        self._schema = schema
        self._definitions = definitions
        self._nodes: dict[str, Node] = {}
        self.root = self._node(schema)
        self._default = _defaulter(self.root, {})
        self._has_keyed_lists = '"x-kubernetes-list-type"' in json.dumps(schema)

    def valid(self, obj: object) -> bool:
        """True when the object has no unknown field, no null that should not be there and no error. Microseconds."""
        if (strict := self._strict) is None:
            return next(_unknown(self.root, obj, ()), None) is None and not self.errors(obj)
        return bool(strict.is_valid(obj))

    @cached_property
    def _strict(self) -> jsonschema_rs.Validator | None:
        """The compiled strict schema; None for one that only the slow walk can interpret (an RE2-only pattern)."""
        try:
            return jsonschema_rs.validator_for(
                {"$schema": "http://json-schema.org/draft-07/schema#", **self._strict_document()},
                pattern_options=jsonschema_rs.RegexOptions(),
                validate_formats=False,
            )
        except (jsonschema_rs.ValidationError, ValueError):
            return None

    def unknown(self, obj: object) -> list[str]:
        """The paths of fields the schema does not know (`spec.containers[0].imagee`), in document order."""
        return [_join(path) for path in _unknown(self.root, obj, ())]

    def prune(self, obj: object) -> None:
        """Remove unknown fields in place."""
        for path in list(_unknown(self.root, obj, ())):
            _delete(obj, path)

    def drop_nulls(self, obj: object) -> None:
        """Remove nulls and the empty strings of optional enumerations: Go's JSON decoding reads both as absent."""
        _drop_nulls(self.root, obj)

    def type_errors(self, obj: object) -> list[tuple[str, str, str]]:
        """(path, expected JSON type, found JSON type) of every value whose type is wrong."""
        return list(_type_errors(self.root, obj, ()))

    def default(self, obj: Any) -> None:
        """Fill in the defaults in place, and write resource lists in canonical form."""
        if self._default is not None:
            self._default(obj)

    def errors(self, obj: object) -> list[StatusCause]:
        """What is wrong, one cause per field; empty when `valid` holds."""
        causes: list[StatusCause] = []
        _errors(self.root, obj, "", causes)
        return causes

    def duplicates(self, obj: object) -> list[StatusCause]:
        """Items that occur twice in lists of type set or map. Custom resources only: built-in kinds say themselves."""
        causes: list[StatusCause] = []
        if self._has_keyed_lists:
            _duplicates(self.root, obj, "", causes)
        return causes

    def _node(self, schema: JsonSchema) -> Node:
        """The node of a schema; one node per named definition, so that recursive types end."""
        if reference := schema.get("$ref"):
            name = reference.removeprefix(REF)
            if name not in self._nodes:
                self._nodes[name] = node = Node()
                self._fill(node, self._definitions[name])
            return self._nodes[name]
        node = Node()
        self._fill(node, schema)
        return node

    def _fill(self, node: Node, schema: JsonSchema) -> None:
        branches = schema.get("allOf", [])
        if len(branches) == 1 and "$ref" in branches[0]:
            target = self._node(branches[0])
            node.properties, node.values, node.items = target.properties, target.values, target.items
            node.preserve, node.checks = target.preserve, target.checks
        else:
            node.checks = checks_of(schema)
            node.as_written = bool(schema.get(AS_WRITTEN))
            node.preserve = bool(schema.get(PRESERVE)) or (schema.get("additionalProperties") is True)
            properties = schema.get("properties")
            if schema.get(EMBEDDED):
                properties = {**_TYPE_META, **{k: v for k, v in (properties or {}).items() if k != "metadata"}}
            if properties is not None or schema.get("type") == "object":
                node.properties = {}
                for key, child in (properties or {}).items():
                    node.properties[key] = self._node(child)
            values = schema.get("additionalProperties")
            if isinstance(values, dict):
                node.values = self._node(values)
            if isinstance(schema.get("items"), dict):
                node.items = self._node(schema["items"])
        if "default" in schema:
            node.has_default, node.default = True, schema["default"]
            node.default_zero = bool(schema.get(DEFAULT_ZERO))

    def _strict_document(self) -> JsonSchema:
        needed: dict[str, JsonSchema] = {}
        root = self._strict_schema(self._schema, needed)
        return {**root, "components": {"schemas": needed}}

    def _strict_schema(self, schema: JsonSchema, needed: dict[str, JsonSchema]) -> JsonSchema:
        if reference := schema.get("$ref"):
            name = reference.removeprefix(REF)
            if name not in needed:
                needed[name] = {}
                needed[name].update(self._strict_schema(self._definitions[name], needed))
            return {"$ref": reference}
        strict = strict_scalar(schema)
        branches = schema.get("allOf", [])
        if len(branches) == 1 and "$ref" in branches[0]:
            return {**strict, "allOf": [self._strict_schema(branches[0], needed)]}
        properties = schema.get("properties")
        if schema.get(EMBEDDED):
            properties = {**_TYPE_META, **{k: v for k, v in (properties or {}).items() if k != "metadata"}}
        if properties is not None:
            strict["properties"] = {key: self._strict_schema(child, needed) for key, child in properties.items()}
        values = schema.get("additionalProperties")
        if isinstance(values, dict):
            strict["additionalProperties"] = self._strict_schema(values, needed)
        elif schema.get("type") == "object" and not schema.get(PRESERVE) and values is not True:
            strict["additionalProperties"] = False
        if isinstance(schema.get("items"), dict):
            strict["items"] = self._strict_schema(schema["items"], needed)
        if schema.get("nullable"):
            return {"anyOf": [{"type": "null"}, strict]}
        return strict


Path = tuple[str | int, ...]


def _join(path: Path) -> str:
    text = ""
    for step in path:
        text += f"[{step}]" if isinstance(step, int) else f".{step}" if text else step
    return text


def _delete(obj: Any, path: Path) -> None:
    for step in path[:-1]:
        obj = obj[step]
    del obj[path[-1]]


def _children(node: Node, value: object) -> Iterator[tuple[str | int, Node | None, object]]:
    """(step, node, value) below a value; the node is None where the schema knows nothing and preserves nothing."""
    if isinstance(value, dict):
        if node.properties is None and node.values is None:
            return
        properties = node.properties or {}
        for key, item in value.items():
            child = properties.get(key) or node.values
            if child is not None or not node.preserve:
                yield key, child, item
    elif isinstance(value, list) and node.items is not None:
        for index, item in enumerate(value):
            yield index, node.items, item


def _unknown(node: Node, value: object, path: Path) -> Iterator[Path]:
    for step, child, item in _children(node, value):
        if child is None:
            yield (*path, step)
        elif isinstance(item, (dict, list)):
            yield from _unknown(child, item, (*path, step))


def _type_errors(node: Node, value: object, path: Path) -> Iterator[tuple[str, str, str]]:
    if (wrong := type_error(node.checks, value)) is not None:
        yield (_join(path), *wrong)
        return
    for step, child, item in _children(node, value):
        if child is not None:
            yield from _type_errors(child, item, (*path, step))


def _drop_nulls(node: Node, value: object) -> None:
    if isinstance(value, dict):
        required = node.checks.required
        for step, child, item in list(_children(node, value)):
            optional_word = child is not None and child.checks.enum is not None and step not in required
            if item is None or (item == "" and optional_word):
                del value[step]
            elif child is not None:
                _drop_nulls(child, item)
    elif isinstance(value, list) and node.items is not None:
        for item in value:
            _drop_nulls(node.items, item)


def _duplicates(node: Node, value: object, path: str, causes: list[StatusCause]) -> None:
    if isinstance(value, list):
        check_keys(node.checks, value, path, causes)
    if isinstance(value, (dict, list)):
        for step, child, item in _children(node, value):
            if child is not None:
                below = f"{path}[{step}]" if isinstance(step, int) else f"{path}.{step}" if path else step
                _duplicates(child, item, below, causes)


def _errors(node: Node, value: object, path: str, causes: list[StatusCause]) -> None:
    if not check(node.checks, value, path, causes):
        return
    if isinstance(value, dict):
        for key, child, item in _children(node, value):
            if child is not None:
                named = node.properties is not None and key in node.properties
                below = (f"{path}.{key}" if path else str(key)) if named else f"{path}[{key}]"
                _errors(child, item, below, causes)
    elif isinstance(value, list) and node.items is not None:
        for index, item in enumerate(value):
            _errors(node.items, item, f"{path}[{index}]", causes)


def _defaulter(node: Node, seen: dict[int, Default | None]) -> Default | None:
    """A function that fills in the defaults below a node, or None when there are none.

    A type that contains itself has no defaults inside the cycle (JSONSchemaProps is the only one), so a node that is
    still being compiled counts as one without defaults.
    """
    key = id(node)
    if key in seen:
        return seen[key]
    seen[key] = None
    made: Default | None = None
    if node.properties:
        made = _object_defaulter(node.properties, seen)
    if node.values is not None:
        if _is_quantity(node.values) and not node.values.as_written:
            made = _canonical_quantities
        elif (each := _defaulter(node.values, seen)) is not None:
            made = _both(made, _map_defaulter(each))
    if node.items is not None and (each := _defaulter(node.items, seen)) is not None:
        made = _list_defaulter(each)
    seen[key] = made
    return made


def _object_defaulter(properties: dict[str, Node], seen: dict[int, Default | None]) -> Default | None:
    scalars: list[tuple[str, Any]] = []
    zeros: list[tuple[str, Any]] = []
    quantities: list[str] = []
    structured: list[tuple[str, Any]] = []
    below: list[tuple[str, Default]] = []
    for key, child in properties.items():
        if child.has_default:
            if not isinstance(child.default, _SCALAR_DEFAULTS):
                structured.append((key, child.default))
            elif child.default_zero:
                zeros.append((key, child.default))
            else:
                scalars.append((key, child.default))
        if _is_quantity(child):
            quantities.append(key)
        if (inner := _defaulter(child, seen)) is not None:
            below.append((key, inner))
    nullable = {key for key, child in properties.items() if child.checks.nullable}
    if not (scalars or zeros or structured or quantities or below):
        return None

    def fill(obj: Any) -> None:
        if not isinstance(obj, dict):
            return
        for key, value in scalars:
            if obj.get(key) is None and not (key in obj and key in nullable):
                obj[key] = value
        for key, value in zeros:
            if not obj.get(key):
                obj[key] = value
        for key, value in structured:
            if obj.get(key) is None and not (key in obj and key in nullable):
                obj[key] = copy.deepcopy(value) if value else type(value)()
        for key in quantities:
            if isinstance(amount := obj.get(key), (int, float)):
                obj[key] = quantity.canonical(amount)
        for key, inner in below:
            if (child := obj.get(key)) is not None:
                inner(child)

    return fill


def _is_quantity(node: Node) -> bool:
    return node.checks.int_or_string and node.checks.format == "quantity"


def _canonical_quantities(amounts: Any) -> None:
    """Resource lists are kept in canonical form; what is not a quantity is left for validation."""
    if isinstance(amounts, dict):
        for name, amount in amounts.items():
            if (text := _canonical(amount)) is not amount:
                amounts[name] = text


@lru_cache(maxsize=8192)
def _canonical(amount: Any) -> Any:
    try:
        text = quantity.canonical(amount)
    except quantity.InvalidQuantity:
        return amount
    return amount if text == amount else text


def _list_defaulter(each: Default) -> Default:
    def fill(obj: Any) -> None:
        if isinstance(obj, list):
            for item in obj:
                each(item)

    return fill


def _map_defaulter(each: Default) -> Default:
    def fill(obj: Any) -> None:
        if isinstance(obj, dict):
            for item in obj.values():
                each(item)

    return fill


def _both(first: Default | None, second: Default) -> Default:
    if first is None:
        return second

    def fill(obj: Any) -> None:
        first(obj)
        second(obj)

    return fill
