"""The value checks of one schema node, and what the API server says when one fails.

`checks_of` reads the keywords of a node once; `check` is the slow path that writes causes; `strict_scalar` is the same
set of keywords as JSON schema draft 7 for the fast path. The two must agree: a property test compares them.
"""

from __future__ import annotations

import ipaddress
import json
import re
import uuid
from collections.abc import Callable, Mapping
from datetime import date, datetime
from typing import Any

import msgspec
import re2

from capstan.api.base import StatusCause

JsonSchema = dict[str, Any]

SHORT_NAME = r"^[a-z0-9]([-a-z0-9]*[a-z0-9])?$"
LONG_NAME = r"^[a-z0-9]([-a-z0-9]*[a-z0-9])?(\.[a-z0-9]([-a-z0-9]*[a-z0-9])?)*$"
QUANTITY = r"^[+-]?([0-9]+(\.[0-9]*)?|\.[0-9]+)([eE][+-]?[0-9]{1,3}|[KMGTPE]i|[numkMGTPE])?$"
_INT_RANGE = {"int32": (-(2**31), 2**31 - 1), "int64": (-(2**63), 2**63 - 1)}
_TIME = r"^[0-9]{4}-[0-9]{2}-[0-9]{2}[Tt][0-9]{2}:[0-9]{2}:[0-9]{2}(\.[0-9]+)?([Zz]|[+-][0-9]{2}:[0-9]{2})$"
_GO_DURATION = re.compile(r"[+-]?(0|([0-9]+(\.[0-9]*)?|\.[0-9]+)(ns|us|µs|μs|ms|s|m|h))+")
_BASE64 = re.compile(r"([A-Za-z0-9+/]{4})*([A-Za-z0-9+/]{2}==|[A-Za-z0-9+/]{3}=)?")


class Checks(msgspec.Struct):
    """The keywords of one node; absent ones are None."""

    types: tuple[str, ...] = ()
    nullable: bool = False
    int_or_string: bool = False
    enum: list[Any] | None = None
    required: tuple[str, ...] = ()
    format: str = ""
    pattern: str = ""
    minimum: float | None = None
    exclusive_minimum: bool = False
    maximum: float | None = None
    exclusive_maximum: bool = False
    multiple_of: float | None = None
    min_length: int | None = None
    max_length: int | None = None
    min_items: int | None = None
    max_items: int | None = None
    min_properties: int | None = None
    max_properties: int | None = None
    unique_items: bool = False
    list_type: str = ""
    list_keys: tuple[str, ...] = ()
    all_of: list[JsonSchema] = []
    any_of: list[JsonSchema] = []
    one_of: list[JsonSchema] = []
    negated: JsonSchema | None = None


def checks_of(schema: JsonSchema) -> Checks:
    kind = schema.get("type")
    return Checks(
        types=(kind,) if kind else (),
        nullable=bool(schema.get("nullable")),
        int_or_string=bool(schema.get("x-kubernetes-int-or-string")),
        enum=schema.get("enum") or None,
        required=tuple(schema.get("required", ())),
        format=schema.get("format", ""),
        pattern=schema.get("pattern", ""),
        minimum=schema.get("minimum"),
        exclusive_minimum=bool(schema.get("exclusiveMinimum")),
        maximum=schema.get("maximum"),
        exclusive_maximum=bool(schema.get("exclusiveMaximum")),
        multiple_of=schema.get("multipleOf"),
        min_length=schema.get("minLength"),
        max_length=schema.get("maxLength"),
        min_items=schema.get("minItems"),
        max_items=schema.get("maxItems"),
        min_properties=schema.get("minProperties"),
        max_properties=schema.get("maxProperties"),
        unique_items=bool(schema.get("uniqueItems")),
        list_type=schema.get("x-kubernetes-list-type", ""),
        list_keys=tuple(schema.get("x-kubernetes-list-map-keys", ())),
        all_of=[] if _is_plain_reference(schema) else schema.get("allOf", []),
        any_of=schema.get("anyOf", []),
        one_of=schema.get("oneOf", []),
        negated=schema.get("not"),
    )


def _is_plain_reference(schema: JsonSchema) -> bool:
    branches = schema.get("allOf", [])
    return len(branches) == 1 and "$ref" in branches[0]


def strict_scalar(schema: JsonSchema) -> JsonSchema:
    """The node's own keywords (not its children) as JSON schema draft 7."""
    strict: JsonSchema = {}
    for key in ("type", "enum", "required", "pattern", "multipleOf", "minLength", "maxLength", "minItems", "maxItems"):
        if schema.get(key) not in (None, []):
            strict[key] = schema[key]
    for key in ("minProperties", "maxProperties", "uniqueItems"):
        if key in schema:
            strict[key] = schema[key]
    for bound in ("minimum", "maximum"):
        if bound in schema:
            exclusive = f"exclusive{bound.capitalize()}"
            strict[exclusive if schema.get(exclusive) else bound] = schema[bound]
    if not _is_plain_reference(schema):
        for key in ("allOf", "anyOf", "oneOf"):
            if schema.get(key):
                strict[key] = [_draft7(branch) for branch in schema[key]]
        if "not" in schema:
            strict["not"] = _draft7(schema["not"])
    formatted = schema.get("format", "")
    if schema.get("x-kubernetes-int-or-string"):
        strict["type"] = ["string", "number"] if formatted == "quantity" else ["string", "integer"]
    if formatted in _INT_RANGE and schema.get("type") == "integer":
        low, high = _INT_RANGE[formatted]
        strict.setdefault("minimum", low)
        strict.setdefault("maximum", high)
    if (pattern := _FORMAT_PATTERNS.get(formatted)) is not None:
        strict = {"allOf": [strict, pattern]}
    return strict


_FORMAT_PATTERNS: dict[str, JsonSchema] = {
    "k8s-short-name": {"pattern": SHORT_NAME, "maxLength": 63},
    "k8s-long-name": {"pattern": LONG_NAME, "maxLength": 253},
    "quantity": {"pattern": QUANTITY},
    "date-time": {"pattern": _TIME},
    "byte": {"pattern": r"^([A-Za-z0-9+/]{4})*([A-Za-z0-9+/]{2}==|[A-Za-z0-9+/]{3}=)?$"},
}


def _draft7(schema: JsonSchema) -> JsonSchema:
    """A schema below allOf, anyOf, oneOf or not, which may restrict values but not add fields."""
    strict = strict_scalar(schema)
    if "properties" in schema:
        strict["properties"] = {key: _draft7(child) for key, child in schema["properties"].items()}
    if isinstance(schema.get("items"), dict):
        strict["items"] = _draft7(schema["items"])
    if isinstance(schema.get("additionalProperties"), dict):
        strict["additionalProperties"] = _draft7(schema["additionalProperties"])
    return strict


def json_type(value: object) -> str:
    if value is None:
        return "null"
    if isinstance(value, bool):
        return "boolean"
    if isinstance(value, int):
        return "integer"
    if isinstance(value, float):
        return "number"
    if isinstance(value, str):
        return "string"
    return "array" if isinstance(value, list) else "object"


def type_error(checks: Checks, value: object) -> tuple[str, str] | None:
    """(expected, found) when the JSON type is wrong."""
    found = json_type(value)
    if found == "null":
        return None if checks.nullable or not (checks.types or checks.int_or_string) else (_expected(checks), found)
    if checks.int_or_string:
        if found in ("integer", "string") or (found == "number" and checks.format == "quantity"):
            return None
        return (_expected(checks), found)
    if not checks.types or found in checks.types:
        return None
    if found == "integer" and "number" in checks.types:
        return None
    if isinstance(value, float) and "integer" in checks.types and value.is_integer():
        return None
    return (_expected(checks), found)


def _expected(checks: Checks) -> str:
    return "integer or string" if checks.int_or_string else checks.types[0]


def show(value: object) -> str:
    """A value as it stands in an error message."""
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)


def invalid(field: str, value: object, detail: str) -> StatusCause:
    shown = json.dumps(value, ensure_ascii=False)
    return StatusCause(reason="FieldValueInvalid", message=f"Invalid value: {shown}: {detail}", field=field)


def required(field: str, detail: str = "") -> StatusCause:
    message = f"Required value: {detail}" if detail else "Required value"
    return StatusCause(reason="FieldValueRequired", message=message, field=field)


def unsupported(field: str, value: object, supported: list[Any]) -> StatusCause:
    words = ", ".join(json.dumps(word) for word in supported)
    message = f"Unsupported value: {json.dumps(value, ensure_ascii=False)}: supported values: {words}"
    return StatusCause(reason="FieldValueNotSupported", message=message, field=field)


def duplicate(field: str, value: object) -> StatusCause:
    message = f"Duplicate value: {json.dumps(value, ensure_ascii=False)}"
    return StatusCause(reason="FieldValueDuplicate", message=message, field=field)


def forbidden(field: str, detail: str) -> StatusCause:
    return StatusCause(reason="FieldValueForbidden", message=f"Forbidden: {detail}", field=field)


def too_many(field: str, found: int, limit: int) -> StatusCause:
    items = "item" if limit == 1 else "items"
    return StatusCause(
        reason="FieldValueTooMany", message=f"Too many: {found}: must have at most {limit} {items}", field=field
    )


def too_long(field: str, limit: int) -> StatusCause:
    return StatusCause(reason="FieldValueTooLong", message=f"Too long: may not be more than {limit} bytes", field=field)


def not_found(field: str, value: object) -> StatusCause:
    message = f"Not found: {json.dumps(value, ensure_ascii=False)}"
    return StatusCause(reason="FieldValueNotFound", message=message, field=field)


def check(checks: Checks, value: object, path: str, causes: list[StatusCause]) -> bool:
    """Append what is wrong with the value itself; False when looking below it makes no sense."""
    if (wrong := type_error(checks, value)) is not None:
        expected, found = wrong
        shown = json.dumps(found)
        causes.append(
            StatusCause(
                reason="FieldValueTypeInvalid",
                message=f"Invalid value: {shown}: {path} in body must be of type {expected}: {shown}",
                field=path,
            )
        )
        return False
    if value is None:
        return False
    if checks.enum is not None and value not in checks.enum:
        causes.append(unsupported(path, value, checks.enum))
    if isinstance(value, str):
        _check_string(checks, value, path, causes)
    elif isinstance(value, (int, float)) and not isinstance(value, bool):
        _check_number(checks, value, path, causes)
    elif isinstance(value, list):
        _check_list(checks, value, path, causes)
    elif isinstance(value, dict):
        _check_object(checks, value, path, causes)
    _check_junctors(checks, value, path, causes)
    return True


def _check_string(checks: Checks, value: str, path: str, causes: list[StatusCause]) -> None:
    if checks.min_length is not None and len(value) < checks.min_length:
        if checks.min_length == 1 and not value:
            causes.append(required(path))
            return
        causes.append(invalid(path, value, f"{path} in body should be at least {checks.min_length} chars long"))
    if checks.max_length is not None and len(value) > checks.max_length:
        causes.append(too_long(path, checks.max_length))
    if checks.pattern and not re2.search(checks.pattern, value):
        causes.append(invalid(path, value, f"{path} in body should match '{checks.pattern}'"))
    if (complaint := format_error(checks.format, value)) is not None:
        causes.append(invalid(path, value, complaint.replace("{path}", path)))


def _check_number(checks: Checks, value: float, path: str, causes: list[StatusCause]) -> None:
    low, high = _INT_RANGE.get(checks.format, (None, None)) if "integer" in checks.types else (None, None)
    minimum = checks.minimum if checks.minimum is not None else low
    maximum = checks.maximum if checks.maximum is not None else high
    if minimum is not None and (value < minimum or (value == minimum and checks.exclusive_minimum)):
        than = "greater than" if checks.exclusive_minimum else "greater than or equal to"
        causes.append(invalid(path, value, f"{path} in body should be {than} {minimum:g}"))
    if maximum is not None and (value > maximum or (value == maximum and checks.exclusive_maximum)):
        than = "less than" if checks.exclusive_maximum else "less than or equal to"
        causes.append(invalid(path, value, f"{path} in body should be {than} {maximum:g}"))
    if checks.multiple_of and value % checks.multiple_of:
        causes.append(invalid(path, value, f"{path} in body should be a multiple of {checks.multiple_of:g}"))


def _check_list(checks: Checks, value: list[Any], path: str, causes: list[StatusCause]) -> None:
    if checks.max_items is not None and len(value) > checks.max_items:
        causes.append(too_many(path, len(value), checks.max_items))
    if checks.min_items is not None and len(value) < checks.min_items:
        if checks.min_items == 1:
            causes.append(required(path))
        else:
            causes.append(invalid(path, len(value), f"{path} in body should have at least {checks.min_items} items"))
    if checks.unique_items:
        _check_unique(value, path, causes)


def check_keys(checks: Checks, value: list[Any], path: str, causes: list[StatusCause]) -> None:
    """Append the items whose key, or who themselves, occur twice in a list of type map or set."""
    if checks.list_type == "set":
        _check_unique(value, path, causes)
    elif checks.list_type == "map" and all(isinstance(item, dict) for item in value):
        _check_unique(value, path, causes, checks.list_keys)


def _check_unique(value: list[Any], path: str, causes: list[StatusCause], keys: tuple[str, ...] = ()) -> None:
    seen: set[str] = set()
    for index, item in enumerate(value):
        shown = {name: item[name] for name in keys if name in item} if keys else item
        identity = json.dumps(shown, sort_keys=True)
        if identity in seen:
            causes.append(duplicate(f"{path}[{index}]", shown))
        seen.add(identity)


def _check_object(checks: Checks, value: Mapping[str, Any], path: str, causes: list[StatusCause]) -> None:
    prefix = f"{path}." if path else ""
    causes.extend(required(prefix + name) for name in checks.required if name not in value)
    if checks.max_properties is not None and len(value) > checks.max_properties:
        causes.append(too_many(path, len(value), checks.max_properties))
    if checks.min_properties is not None and len(value) < checks.min_properties:
        causes.append(
            invalid(path, len(value), f"{path} in body should have at least {checks.min_properties} properties")
        )


def _check_junctors(checks: Checks, value: object, path: str, causes: list[StatusCause]) -> None:
    for branch in checks.all_of:
        causes.extend(branch_errors(branch, value, path))
    if checks.any_of:
        attempts = [branch_errors(branch, value, path) for branch in checks.any_of]
        if all(attempts):
            causes.append(invalid(path, value, f"{path} in body must validate at least one schema (anyOf)"))
            causes.extend(attempts[0])
    if checks.one_of:
        passed = sum(not branch_errors(branch, value, path) for branch in checks.one_of)
        if passed != 1:
            found = "none" if passed == 0 else str(passed)
            causes.append(
                invalid(
                    path, value, f"{path} in body must validate one and only one schema (oneOf). Found {found} valid"
                )
            )
    if checks.negated is not None and not branch_errors(checks.negated, value, path):
        causes.append(invalid(path, value, f"{path} in body must not validate the schema (not)"))


def branch_errors(schema: JsonSchema, value: object, path: str) -> list[StatusCause]:
    """Errors of a schema below a junctor, which is interpreted, not compiled: such branches are few and small."""
    causes: list[StatusCause] = []
    if not check(checks_of(schema), value, path, causes):
        return causes
    if isinstance(value, dict):
        values = schema.get("additionalProperties")
        properties = schema.get("properties", {})
        for key, item in value.items():
            child = properties.get(key) or (values if isinstance(values, dict) else None)
            if child is not None:
                causes.extend(branch_errors(child, item, f"{path}.{key}" if path else key))
    elif isinstance(value, list) and isinstance(schema.get("items"), dict):
        for index, item in enumerate(value):
            causes.extend(branch_errors(schema["items"], item, f"{path}[{index}]"))
    return causes


_LABEL_RULE = (
    "a lowercase RFC 1123 label must consist of lower case alphanumeric characters or '-', and must start and end "
    "with an "
    "alphanumeric character (e.g. 'my-name',  or '123-abc', regex used for validation is "
    "'[a-z0-9]([-a-z0-9]*[a-z0-9])?')"
)
_SUBDOMAIN_RULE = (
    "a lowercase RFC 1123 subdomain must consist of lower case alphanumeric characters, '-' or '.', and must start "
    "and end "
    "with an alphanumeric character (e.g. 'example.com', regex used for validation is "
    "'[a-z0-9]([-a-z0-9]*[a-z0-9])?(\\.[a-z0-9]([-a-z0-9]*[a-z0-9])?)*')"
)
_SHORT = re.compile(SHORT_NAME)
_LONG = re.compile(LONG_NAME)
_QUANTITY = re.compile(QUANTITY)


def _parses(parse: Callable[[str], object]) -> Callable[[str], bool]:
    def accepts(text: str) -> bool:
        try:
            parse(text)
        except ValueError:
            return False
        return True

    return accepts


_FORMATS: dict[str, Callable[[str], bool]] = {
    "date-time": lambda text: re.match(_TIME, text) is not None,
    "date": _parses(date.fromisoformat),
    "duration": lambda text: _GO_DURATION.fullmatch(text) is not None,
    "byte": lambda text: _BASE64.fullmatch(text) is not None,
    "ipv4": _parses(ipaddress.IPv4Address),
    "ipv6": _parses(ipaddress.IPv6Address),
    "cidr": _parses(lambda text: ipaddress.ip_network(text, strict=False)),
    "uuid": _parses(uuid.UUID),
    "datetime": _parses(datetime.fromisoformat),
}


def format_error(name: str, value: str) -> str | None:
    """What is wrong with a string of the named format; None for nothing, and for formats that are not checked."""
    if name == "k8s-short-name":
        if len(value) > 63:
            return "must be no more than 63 characters"
        return None if _SHORT.match(value) and "\n" not in value else _LABEL_RULE
    if name == "k8s-long-name":
        if len(value) > 253:
            return "must be no more than 253 characters"
        return None if _LONG.match(value) and "\n" not in value else _SUBDOMAIN_RULE
    if name == "quantity":
        if _QUANTITY.match(value):
            return None
        return "quantities must match the regular expression '^([+-]?[0-9.]+)([eEinumkKMGTP]*[-+]?[0-9]*)$'"
    accepts = _FORMATS.get(name)
    return (
        None if accepts is None or accepts(value) else f"{{path}} in body must be of type {name}: {json.dumps(value)}"
    )
