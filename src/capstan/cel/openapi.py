"""OpenAPI v3 schemas of custom resources as CEL types, with the sizes that bound the cost of rules over them.

An object with properties becomes an object type named by its path; `additionalProperties` a map; formats
`date-time`, `date`,
`duration` and `byte` become timestamps, durations and bytes; int-or-string and unknown content are dyn. A property
whose name
is no identifier is reached by its escaped form (`my__dash__name`) or in backticks.
"""

from __future__ import annotations

import base64
import math
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Final

from capstan.cel.estimates import ONE, Range, Size
from capstan.cel.lexer import KEYWORDS, RESERVED
from capstan.cel.times import duration_from_string, timestamp_from_string
from capstan.cel.types import BOOL, BYTES, DOUBLE, DURATION, DYN, INT, STRING, TIMESTAMP, Type, list_of, map_of
from capstan.cel.values import KeyedList, Timestamp

# The largest object the API server takes; what no schema bounds is bounded by it.
MAX_REQUEST_BYTES: Final = 3 * 1024 * 1024

_ESCAPES: Final = (("__", "__underscores__"), (".", "__dot__"), ("-", "__dash__"), ("/", "__slash__"))
_REACHABLE = re.compile(r"[a-zA-Z_./-][a-zA-Z0-9_./-]*")
_FORMATS: Final = {"date-time": TIMESTAMP, "date": TIMESTAMP, "duration": DURATION, "byte": BYTES}
_METADATA: Final = {"type": "object", "properties": {"name": {"type": "string"}, "generateName": {"type": "string"}}}
_IDENTITY: Final = {"apiVersion": {"type": "string"}, "kind": {"type": "string"}, "metadata": _METADATA}

_ANY_SIZE: Final = Size(Range(0, float(MAX_REQUEST_BYTES)), total=float(MAX_REQUEST_BYTES))


@dataclass(slots=True)
class SchemaTypes:
    """The types found under one schema: fields by object type name, bounds and conversions from JSON by `Type.field` or
    variable, and data keys by CEL field name."""

    root: Type = DYN
    objects: dict[str, dict[str, Type]] = field(default_factory=dict)
    bounds: dict[str, Size] = field(default_factory=dict)
    keys: dict[str, str] = field(default_factory=dict)
    conversions: dict[str, Callable[[Any], Any]] = field(default_factory=dict)


def schema_types(schema: Mapping[str, Any], name: str = "selfType", *, resource: bool = False) -> SchemaTypes:
    """Types of a structural schema; `resource` adds what every root object has (apiVersion, kind, metadata)."""
    types = SchemaTypes()
    if resource:
        schema = {**schema, "x-kubernetes-embedded-resource": True}
    types.root, types.bounds["self"] = _declare(schema, name, types)
    types.bounds["oldSelf"] = types.bounds["self"]
    if convert := conversion(schema):
        types.conversions["self"] = types.conversions["oldSelf"] = convert
    return types


def escape(name: str) -> str | None:
    """The identifier under which a property is reached; None when there is none."""
    if not _REACHABLE.fullmatch(name):
        return None
    if name in RESERVED or name in KEYWORDS or name == "in":
        return f"__{name}__"
    for raw, escaped in _ESCAPES:
        name = name.replace(raw, escaped)
    return name


def _declare(schema: Mapping[str, Any], path: str, types: SchemaTypes) -> tuple[Type, Size]:
    declared, size = _shape(schema, path, types)
    if schema.get("nullable") and not declared.params and declared.name not in types.objects and declared != DYN:
        return Type("wrapper", (declared,)), size
    return declared, size


def _shape(schema: Mapping[str, Any], path: str, types: SchemaTypes) -> tuple[Type, Size]:
    kind = schema.get("type", "")
    if schema.get("x-kubernetes-int-or-string"):
        return DYN, _ANY_SIZE
    if kind == "object" or schema.get("x-kubernetes-embedded-resource"):
        return _object(schema, path, types)
    if kind == "array":
        element, size = _declare(schema.get("items", {}), f"{path}.@items", types)
        count = _count(schema, "minItems", "maxItems", schema.get("items", {}))
        return list_of(element), Size(count, size, float(MAX_REQUEST_BYTES))
    if kind == "string":
        return _FORMATS.get(schema.get("format", ""), STRING), _text_size(schema)
    scalar = {"boolean": BOOL, "integer": INT, "number": DOUBLE}.get(kind)
    return (scalar, Size(ONE)) if scalar else (DYN, _ANY_SIZE)


def _object(schema: Mapping[str, Any], path: str, types: SchemaTypes) -> tuple[Type, Size]:
    properties = dict(schema.get("properties", {}))
    if schema.get("x-kubernetes-embedded-resource"):
        properties = {**_IDENTITY, **properties, "metadata": _METADATA}
    additional = schema.get("additionalProperties")
    if not properties and isinstance(additional, Mapping):
        value, size = _declare(additional, f"{path}.@values", types)
        count = _count(schema, "minProperties", "maxProperties", additional)
        return map_of(STRING, value), Size(count, size, float(MAX_REQUEST_BYTES))
    if not properties:
        open_ended = schema.get("x-kubernetes-preserve-unknown-fields") or additional
        return DYN if open_ended else map_of(STRING, DYN), _ANY_SIZE
    fields = types.objects.setdefault(path, {})
    for name, property_ in properties.items():
        declared, size = _declare(property_, f"{path}.{name}", types)
        for alias in {name, escape(name) or name}:
            fields[alias] = declared
            types.bounds[f"{path}.{alias}"] = size
            if convert := conversion(property_):
                types.conversions[f"{path}.{alias}"] = convert
            if alias != name:
                types.keys[alias] = name
    return Type(path), Size(ONE)


def _text_size(schema: Mapping[str, Any]) -> Size:
    if "enum" in schema:
        return Size(Range(0, float(max((len(str(each)) for each in schema["enum"]), default=0))))
    if schema.get("format") in ("date-time", "date", "duration"):
        return Size(ONE)
    return Size(Range(0, float(schema.get("maxLength", MAX_REQUEST_BYTES))))


def _count(schema: Mapping[str, Any], low: str, high: str, element: Mapping[str, Any]) -> Range:
    most = schema.get(high, most_places(element))
    return Range(float(schema.get(low, 0)), float(most))


def most_places(schema: Mapping[str, Any]) -> float:
    """How many values of the schema fit into one request."""
    return math.ceil(MAX_REQUEST_BYTES / (_smallest(schema) + 1))


def _smallest(schema: Mapping[str, Any]) -> int:
    """The fewest bytes a value of the schema takes in JSON."""
    kind = schema.get("type", "")
    if kind == "boolean":
        return 4
    if kind == "object":
        required = schema.get("required", ())
        properties = schema.get("properties", {})
        return 2 + sum(len(name) + 4 + _smallest(properties.get(name, {})) for name in required)
    return 2 if kind in ("string", "array") else 1


def conversion(schema: Mapping[str, Any]) -> Callable[[Any], Any] | None:
    """How a JSON value of the schema becomes a CEL value; None when it already is one.

    Objects with properties stay as they are: their fields are converted when they are selected.
    """
    convert = _conversion(schema)
    if convert is None or not schema.get("nullable"):
        return convert
    return lambda value: None if value is None else convert(value)


def _conversion(schema: Mapping[str, Any]) -> Callable[[Any], Any] | None:
    kind = schema.get("type", "")
    if kind == "number":
        return _double
    if kind == "string":
        return _TEXT_CONVERSIONS.get(schema.get("format", ""))
    if kind == "array":
        element = conversion(schema.get("items", {}))
        if schema.get("x-kubernetes-list-type") in ("set", "map"):
            keys = tuple(schema.get("x-kubernetes-list-map-keys", ()))
            return lambda values: KeyedList(map(element, values) if element else values, keys)
        return (lambda values: list(map(element, values))) if element else None
    additional = schema.get("additionalProperties")
    if kind == "object" and not schema.get("properties") and isinstance(additional, Mapping):
        value = conversion(additional)
        return (lambda mapping: {key: value(each) for key, each in mapping.items()}) if value else None
    return None


def _double(value: Any) -> Any:
    return float(value) if type(value) is int else value


def _timestamp(value: str) -> Timestamp:
    return timestamp_from_string(f"{value}T00:00:00Z" if len(value) == len("2006-01-02") else value)


_TEXT_CONVERSIONS: Final[dict[str, Callable[[Any], Any]]] = {
    "date-time": _timestamp,
    "date": _timestamp,
    "duration": duration_from_string,
    "byte": base64.b64decode,
}
