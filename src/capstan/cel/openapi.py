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

from capstan.cel.cost import ONE, Range, Size
from capstan.cel.lexer import KEYWORDS, RESERVED
from capstan.cel.times import duration_from_string, timestamp_from_string
from capstan.cel.types import BOOL, BYTES, DOUBLE, DURATION, DYN, INT, STRING, TIMESTAMP, Type, list_of, map_of

# The largest object the API server takes; what no schema bounds is bounded by it.
MAX_REQUEST_BYTES: Final = 3 * 1024 * 1024

_ESCAPES: Final = (("__", "__underscores__"), (".", "__dot__"), ("-", "__dash__"), ("/", "__slash__"))
_REACHABLE = re.compile(r"[a-zA-Z_./-][a-zA-Z0-9_./-]*")
_FORMATS: Final = {"date-time": TIMESTAMP, "date": TIMESTAMP, "duration": DURATION, "byte": BYTES}
_METADATA: Final = {"type": "object", "properties": {"name": {"type": "string"}, "generateName": {"type": "string"}}}
_IDENTITY: Final = {"apiVersion": {"type": "string"}, "kind": {"type": "string"}, "metadata": _METADATA}


@dataclass(slots=True)
class SchemaTypes:
    """The types found under one schema: fields and bounds by object type name, and data keys by CEL field name."""

    root: Type = DYN
    objects: dict[str, dict[str, Type]] = field(default_factory=dict)
    bounds: dict[str, Size] = field(default_factory=dict)
    keys: dict[str, str] = field(default_factory=dict)


def schema_types(schema: Mapping[str, Any], name: str = "selfType", *, resource: bool = False) -> SchemaTypes:
    """Types of a structural schema; `resource` adds what every root object has (apiVersion, kind, metadata)."""
    types = SchemaTypes()
    if resource:
        schema = {**schema, "x-kubernetes-embedded-resource": True}
    types.root, types.bounds["self"] = _declare(schema, name, types)
    types.bounds["oldSelf"] = types.bounds["self"]
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
        return DYN, Size(Range(0, float(MAX_REQUEST_BYTES)))
    if kind == "object" or schema.get("x-kubernetes-embedded-resource"):
        return _object(schema, path, types)
    if kind == "array":
        element, size = _declare(schema.get("items", {}), f"{path}.@items", types)
        return list_of(element), Size(_count(schema, "minItems", "maxItems", schema.get("items", {})), size)
    if kind == "string":
        return _FORMATS.get(schema.get("format", ""), STRING), _text_size(schema)
    scalar = {"boolean": BOOL, "integer": INT, "number": DOUBLE}.get(kind)
    return (scalar, Size(ONE)) if scalar else (DYN, Size(Range(0, float(MAX_REQUEST_BYTES))))


def _object(schema: Mapping[str, Any], path: str, types: SchemaTypes) -> tuple[Type, Size]:
    properties = dict(schema.get("properties", {}))
    if schema.get("x-kubernetes-embedded-resource"):
        properties = {**_IDENTITY, **properties, "metadata": _METADATA}
    additional = schema.get("additionalProperties")
    if not properties and isinstance(additional, Mapping):
        value, size = _declare(additional, f"{path}.@values", types)
        return map_of(STRING, value), Size(_count(schema, "minProperties", "maxProperties", additional), size)
    if not properties:
        return (DYN if schema.get("x-kubernetes-preserve-unknown-fields") or additional else map_of(STRING, DYN)), Size(
            Range(0, float(MAX_REQUEST_BYTES))
        )
    fields = types.objects.setdefault(path, {})
    for name, property_ in properties.items():
        declared, size = _declare(property_, f"{path}.{name}", types)
        for alias in {name, escape(name) or name}:
            fields[alias] = declared
            types.bounds[f"{path}.{alias}"] = size
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
    most = schema.get(high, math.ceil(MAX_REQUEST_BYTES / (_smallest(element) + 1)))
    return Range(float(schema.get(low, 0)), float(most))


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


def converter(type_: Type) -> Callable[[Any], Any] | None:
    """How a JSON value of the type becomes a CEL value; None when it already is one."""
    if type_ == DOUBLE:
        return _converted_double
    if type_ in (TIMESTAMP, DURATION, BYTES):
        return _TEXT_CONVERTERS[type_]
    inner = converter(type_.params[-1]) if type_.params else None
    if inner is None:
        return None
    if type_.name == "wrapper":
        return lambda value: None if value is None else inner(value)
    if type_.name == "list":
        return lambda values: list(map(inner, values))
    return lambda mapping: {key: inner(value) for key, value in mapping.items()}


def _converted_double(value: Any) -> Any:
    return float(value) if type(value) is int else value


def _converted_timestamp(value: Any) -> Any:
    return timestamp_from_string(f"{value}T00:00:00Z" if len(value) == len("2006-01-02") else value)


_TEXT_CONVERTERS: Final[dict[Type, Callable[[Any], Any]]] = {
    TIMESTAMP: _converted_timestamp,
    DURATION: duration_from_string,
    BYTES: base64.b64decode,
}
