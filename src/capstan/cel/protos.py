"""The messages of `cel.expr` that tests are written in, read from text format: types, declarations, values.

What would need the descriptors of other messages than the well-known ones raises `NeedsMessages`; anything that is not
understood raises ValueError.
"""

from __future__ import annotations

from functools import partial
from string import ascii_uppercase
from typing import Any, Final

from capstan.cel.errors import EvaluationError, UnknownValue
from capstan.cel.library import Library, Overload
from capstan.cel.messages import WELL_KNOWN, unpack
from capstan.cel.textproto import Message
from capstan.cel.types import (
    BOOL,
    BYTES,
    DOUBLE,
    DURATION,
    DYN,
    ERROR,
    INT,
    NULL,
    STRING,
    TIMESTAMP,
    UINT,
    Type,
    list_of,
    map_of,
    type_of,
)
from capstan.cel.values import Optional, TypeValue, Uint, build_map

# Enums may be written by name or by number.
_PRIMITIVES: Final = {
    name: type_
    for number, (word, type_) in enumerate(
        (("BOOL", BOOL), ("INT64", INT), ("UINT64", UINT), ("DOUBLE", DOUBLE), ("STRING", STRING), ("BYTES", BYTES)), 1
    )
    for name in (word, number)
}
_WELL_KNOWN: Final = {"ANY": DYN, 1: DYN, "TIMESTAMP": TIMESTAMP, 2: TIMESTAMP, "DURATION": DURATION, 3: DURATION}
_NULL_VALUE: Final = "google.protobuf.NullValue"


class NeedsMessages(Exception):
    """Messages of a schema that is not here."""


def field(message: Message, name: str, default: Any = None) -> Any:
    """The value of the last field of the name, as later ones win."""
    return next((value for key, value in reversed(message) if key == name), default)


def repeated(message: Message, name: str) -> list[Any]:
    return [value for key, value in message if key == name]


def text(message: Message, name: str) -> str:
    value = field(message, name, b"")
    return value.decode() if isinstance(value, bytes) else str(value)


def true(value: Any) -> bool:
    if value in ("true", "True", "t", 1):
        return True
    if value in ("false", "False", "f", 0, None):
        return False
    raise ValueError(f"{value!r} is no bool")


def _only(message: Message, what: str) -> tuple[str, Any]:
    """The field of a oneof that is set."""
    if not message:
        raise ValueError(f"{what} without a kind")
    return message[-1]


# cel.expr.Type and cel.expr.Decl


def read_type(message: Message, parameters: dict[str, str] | None = None) -> Type:
    """A `cel.expr.Type`; `parameters` collects the names of type parameters and the letters that stand for them."""
    read = partial(read_type, parameters=parameters)
    if not message:
        return DYN
    kind, value = _only(message, "a type")
    match kind:
        case "dyn":
            return DYN
        case "null":
            return NULL
        case "error":
            return ERROR
        case "primitive":
            return _PRIMITIVES[value]
        case "wrapper":
            return Type("wrapper", (_PRIMITIVES[value],))
        case "well_known":
            return _WELL_KNOWN[value]
        case "list_type":
            return list_of(read(field(value, "elem_type", [])))
        case "map_type":
            return map_of(read(field(value, "key_type", [])), read(field(value, "value_type", [])))
        case "type":
            return type_of(read(value))
        case "type_param":
            if parameters is None:
                raise ValueError(f"type parameter {value.decode()!r} outside a function")
            return Type(parameters.setdefault(value.decode(), ascii_uppercase[len(parameters)]))
        case "abstract_type":
            return Type(text(value, "name"), tuple(map(read, repeated(value, "parameter_types"))))
        case "message_type":
            name = value.decode()
            if name not in WELL_KNOWN:
                raise NeedsMessages(name)
            return WELL_KNOWN[name].type
    raise ValueError(f"type of kind {kind!r}")


def read_variables(declarations: list[Message]) -> dict[str, Type]:
    """The types of the variables among declarations."""
    return {
        text(each, "name"): read_type(field(ident, "type", []))
        for each in declarations
        if (ident := field(each, "ident")) is not None
    }


def read_constants(declarations: list[Message]) -> dict[str, Any]:
    """The values of the variables that are declared with one."""
    idents = ((text(each, "name"), field(each, "ident", [])) for each in declarations)
    return {name: read_value(value) for name, ident in idents if (value := field(ident, "value")) is not None}


def read_functions(declarations: list[Message]) -> Library:
    """The functions among declarations: the checker knows them, to call one is an error, as nobody implements them."""
    library = Library("declared by the test")
    for declaration in declarations:
        name = text(declaration, "name")
        for overload in repeated(field(declaration, "function", []), "overloads"):
            parameters: dict[str, str] = {}
            params = tuple(read_type(each, parameters) for each in repeated(overload, "params"))
            result = read_type(field(overload, "result_type", []), parameters)
            member = true(field(overload, "is_instance_function"))
            library.declared.append((name, Overload(params, result, member, partial(_unimplemented, name))))
    return library


def _unimplemented(name: str, *_: Any) -> Any:
    raise EvaluationError(f"the function {name} is declared only")


# cel.expr.Value and cel.expr.ExprValue


def read_binding(message: Message, declared: Type) -> Any:
    """A `cel.expr.ExprValue`: a value, or the exception that stands for an error or an unknown value."""
    kind, content = _only(message, "a binding")
    match kind:
        case "error":
            errors = repeated(content, "errors")
            return EvaluationError("; ".join(text(each, "message") for each in errors) or "an error without a message")
        case "unknown":
            return UnknownValue("an input is unknown")
        case "value":
            value = read_value(content)
            # No kind of value is an optional one: what is bound to an optional variable is what is in it.
            return Optional(value) if declared.name == "optional_type" else value
    raise ValueError(f"binding of kind {kind!r}")


def read_value(message: Message) -> Any:
    """A `cel.expr.Value`."""
    kind, value = _only(message, "a value")
    match kind:
        case "null_value":
            return None
        case "bool_value":
            return true(value)
        case "int64_value":
            return int(value)
        case "uint64_value":
            return Uint(value)
        case "double_value":
            return float(value)
        case "string_value":
            return value.decode()
        case "bytes_value":
            return value
        case "type_value":
            return TypeValue(value.decode())
        case "list_value":
            return list(map(read_value, repeated(value, "values")))
        case "map_value":
            entries = repeated(value, "entries")
            pairs = ((read_value(field(each, "key", [])), read_value(field(each, "value", []))) for each in entries)
            return build_map(*pairs)
        case "object_value":
            return read_any(value)
        case "enum_value":
            if text(value, "type") != _NULL_VALUE:
                raise NeedsMessages(text(value, "type"))
            return None
    raise ValueError(f"value of kind {kind!r}")


def read_any(message: Message) -> Any:
    """A `google.protobuf.Any` of a well-known message: expanded (`[url/name] {...}`), or as type_url and bytes."""
    key, content = _only(message, "a message")
    if not key.startswith("["):
        type_url = text(message, "type_url")
        if _name(type_url) not in WELL_KNOWN:
            raise NeedsMessages(_name(type_url))
        return unpack(type_url, field(message, "value", b""))
    return _well_known(_name(key.strip("[]")), content)


def _name(type_url: str) -> str:
    return type_url.rpartition("/")[2]


def _well_known(name: str, message: Message) -> Any:
    known = WELL_KNOWN.get(name)
    if known is None or known.fields is None:
        raise NeedsMessages(name)
    match name.rpartition(".")[2]:
        case "Any":
            return read_any(message)
        case "Struct" | "ListValue" | "Value" as kind:
            return _json(kind, message)
    return known.build({key: _scalar(known.fields[key], value) for key, value in message})


def _scalar(declared: Type, value: Any) -> Any:
    match declared.name:
        case "bool":
            return true(value)
        case "int":
            return int(value)
        case "uint":
            return Uint(value)
        case "double":
            return float(value)
        case "string":
            return value.decode()
    return value


def _json(kind: str, message: Message) -> Any:
    if kind == "Struct":
        entries = repeated(message, "fields")
        return {text(each, "key"): _json("Value", field(each, "value", [])) for each in entries}
    if kind == "ListValue":
        return [_json("Value", each) for each in repeated(message, "values")]
    if not message:
        return None
    match message[-1]:
        case ("struct_value", value):
            return _json("Struct", value)
        case ("list_value", value):
            return _json("ListValue", value)
        case ("null_value", _):
            return None
        case ("number_value", value):
            return float(value)
        case ("string_value", value):
            return value.decode()
        case ("bool_value", value):
            return true(value)
    raise ValueError(f"a JSON value with the field {message[-1][0]!r}")
