"""Message literals: the well-known types of protobuf, which CEL reads as plain values, and objects of admission."""

from __future__ import annotations

import base64
import math
import struct
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Final

from capstan.cel.errors import EvaluationError
from capstan.cel.operators import checked_timestamp, long_duration
from capstan.cel.times import string_from_timestamp
from capstan.cel.types import (
    BOOL,
    BYTES,
    DOUBLE,
    DURATION,
    DYN,
    INT,
    STRING,
    TIMESTAMP,
    WRAPPERS,
    Type,
    list_of,
    map_of,
)
from capstan.cel.values import NANOS, Duration, Timestamp, Uint, is_instance, type_name

Fields = dict[str, Any]

_PACKAGE: Final = "google.protobuf."
_INT32: Final = 2**31
_FLOAT32_END: Final = float(2**128 - 2**103)  # from here on the nearest single-precision number is infinity
_EXACT_INTEGERS: Final = 2**53 - 1  # beyond it a JSON number is not interoperable, and text is used
_ZEROS: Final[Fields] = {"bool": False, "int": 0, "uint": Uint(0), "double": 0.0, "string": "", "bytes": b""}


@dataclass(frozen=True, slots=True)
class MessageType:
    """What a message literal may set (`fields`; None means anything), the type of the value, and what builds it."""

    name: str
    type: Type
    fields: dict[str, Type] | None
    build: Callable[[Fields], Any] = dict


def build_message(name: str, *entries: tuple[str, Any]) -> Any:
    """The value of a message literal. Raises EvaluationError where a value does not fit its field."""
    message = WELL_KNOWN.get(name)
    if message is None or message.fields is None:
        return dict(entries)
    for field, value in entries:
        declared = message.fields[field]
        if not is_instance(value, declared.name):
            raise _no_conversion(value, str(declared))
    return message.build(dict(entries))


def _no_conversion(value: object, wanted: str) -> EvaluationError:
    return EvaluationError(f"type conversion error from '{type_name(value)}' to '{wanted}'")


def json_value(value: Any) -> Any:
    """A value as `google.protobuf.Value` holds it: the language definition's conversion to JSON."""
    if value is None or isinstance(value, (bool, float, str)):
        return value
    if isinstance(value, int):
        return float(value) if abs(value) <= _EXACT_INTEGERS else str(int(value))
    if isinstance(value, bytes):
        return base64.b64encode(value).decode()
    if isinstance(value, Timestamp):
        return string_from_timestamp(value)
    if isinstance(value, Duration):
        return str(value)
    if isinstance(value, (list, tuple)):
        return [json_value(each) for each in value]
    if isinstance(value, dict):
        for key in value:
            if type(key) is not str:
                raise _no_conversion(key, "string")
        return {key: json_value(each) for key, each in value.items()}
    raise EvaluationError(f"{type_name(value)} is not convertible to JSON")


def _seconds(kind: str, fields: Fields) -> int:
    """`seconds` and `nanos` as nanoseconds."""
    seconds, nanos = fields.get("seconds", 0), fields.get("nanos", 0)
    if not -NANOS < nanos < NANOS or (kind == "timestamp" and nanos < 0):
        raise EvaluationError(f"invalid {kind} nanoseconds: {nanos}")
    if seconds * nanos < 0 and kind == "duration":
        raise EvaluationError(f"duration sign mismatch: seconds={seconds}, nanos={nanos}")
    return int(seconds * NANOS + nanos)


def _value(fields: Fields) -> Any:
    """The last of the fields that is set, as they are alternatives."""
    if not fields:
        return None
    kind, value = list(fields.items())[-1]
    if kind == "null_value":
        if value is not None and type(value) is not int:
            raise _no_conversion(value, "null_type")
        return None
    return value if kind == "number_value" else json_value(value)


def _any(fields: Fields) -> Any:
    return unpack(fields.get("type_url", ""), fields.get("value", b""))


def unpack(type_url: str, data: bytes) -> Any:
    """The value of a serialized well-known message. Raises EvaluationError for others, and for what is none."""
    from google.protobuf import any_pb2, duration_pb2, struct_pb2, timestamp_pb2, wrappers_pb2  # only who packs pays
    from google.protobuf.message import DecodeError, Message

    modules = {"Timestamp": timestamp_pb2, "Duration": duration_pb2, "Any": any_pb2}
    modules |= dict.fromkeys(("Struct", "ListValue", "Value"), struct_pb2) | dict.fromkeys(WRAPPERS, wrappers_pb2)
    _, slash, name = type_url.rpartition("/")
    short = name.removeprefix(_PACKAGE)
    if not slash or _PACKAGE + short != name or short not in modules:
        raise EvaluationError(f"unable to find a descriptor for type URL {type_url[:200]!r}")
    message: Message = getattr(modules[short], short)()
    try:
        message.MergeFromString(data)
    except DecodeError as error:
        raise EvaluationError(f"the value is no {name}: {error}") from None
    return _unpacked(message)


def _unpacked(message: Any) -> Any:
    name = message.DESCRIPTOR.full_name
    short = name.removeprefix(_PACKAGE)
    if short == "Struct":
        return {key: _unpacked(value) for key, value in message.fields.items()}
    if short == "ListValue":
        return [_unpacked(value) for value in message.values]
    if short == "Value":
        kind = message.WhichOneof("kind")
        value = getattr(message, kind) if kind else None
        return _unpacked(value) if kind in ("struct_value", "list_value") else None if kind == "null_value" else value
    if short == "Any":
        return unpack(message.type_url, message.value)
    fields = {field.name: value for field, value in message.ListFields()}
    if short.startswith("UInt"):
        fields = {field: Uint(value) for field, value in fields.items()}
    return WELL_KNOWN[name].build(fields)


def _wrapper(short: str) -> Callable[[Fields], Any]:
    scalar = WRAPPERS[short]

    def build(fields: Fields) -> Any:
        value: Any = fields.get("value", _ZEROS[scalar.name])
        if short == "Int32Value" and not -_INT32 <= value < _INT32:
            raise EvaluationError("range error: value does not fit a 32-bit integer")
        if short == "UInt32Value" and value >= 2 * _INT32:
            raise EvaluationError("range error: value does not fit a 32-bit unsigned integer")
        if short == "FloatValue":
            return struct.unpack("f", struct.pack("f", value))[0] if abs(value) < _FLOAT32_END else value * math.inf
        return value

    return build


_OBJECT: Final = map_of(STRING, DYN)
_ALTERNATIVES: Final = {
    "null_value": DYN,
    "number_value": DOUBLE,
    "string_value": STRING,
    "bool_value": BOOL,
    "struct_value": _OBJECT,
    "list_value": list_of(DYN),
}
_MOMENT: Final = {"seconds": INT, "nanos": INT}

WELL_KNOWN: Final[dict[str, MessageType]] = {
    each.name: each
    for each in (
        *(
            MessageType(_PACKAGE + name, Type("wrapper", (scalar,)), {"value": scalar}, _wrapper(name))
            for name, scalar in WRAPPERS.items()
        ),
        MessageType(
            TIMESTAMP.name, TIMESTAMP, _MOMENT, lambda fields: checked_timestamp(_seconds("timestamp", fields))
        ),
        MessageType(DURATION.name, DURATION, _MOMENT, lambda fields: long_duration(_seconds("duration", fields))),
        MessageType(
            _PACKAGE + "Struct", _OBJECT, {"fields": _OBJECT}, lambda fields: json_value(fields.get("fields", {}))
        ),
        MessageType(
            _PACKAGE + "ListValue",
            list_of(DYN),
            {"values": list_of(DYN)},
            lambda fields: json_value(fields.get("values", [])),
        ),
        MessageType(_PACKAGE + "Value", DYN, _ALTERNATIVES, _value),
        MessageType(_PACKAGE + "Any", DYN, {"type_url": STRING, "value": BYTES}, _any),
    )
}
JSON_PATCH: Final = MessageType(
    "JSONPatch", Type("JSONPatch"), {"op": STRING, "path": STRING, "from": STRING, "value": DYN}
)
