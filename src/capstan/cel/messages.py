"""Message literals: the well-known types of protobuf, which CEL reads as plain values, and objects of admission."""

from __future__ import annotations

import math
import struct
from dataclasses import dataclass
from typing import Any, Final

from capstan.cel.errors import EvaluationError
from capstan.cel.operators import checked_timestamp, long_duration
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
from capstan.cel.values import NANOS, Uint, equal

_PACKAGE: Final = "google.protobuf."
_INT32: Final = 2**31
_FLOAT32_END: Final = float(2**128 - 2**103)  # from here on the nearest single-precision number is infinity


@dataclass(frozen=True, slots=True)
class MessageType:
    """What a message literal may set (`fields`; None means anything) and the type of the value it builds."""

    name: str
    type: Type
    fields: dict[str, Type] | None


WELL_KNOWN: Final[dict[str, MessageType]] = {
    each.name: each
    for each in (
        *(
            MessageType(_PACKAGE + name, Type("wrapper", (scalar,)), {"value": scalar})
            for name, scalar in WRAPPERS.items()
        ),
        MessageType(TIMESTAMP.name, TIMESTAMP, {"seconds": INT, "nanos": INT}),
        MessageType(DURATION.name, DURATION, {"seconds": INT, "nanos": INT}),
        MessageType(_PACKAGE + "Struct", map_of(STRING, DYN), {"fields": map_of(STRING, DYN)}),
        MessageType(_PACKAGE + "ListValue", list_of(DYN), {"values": list_of(DYN)}),
        MessageType(
            _PACKAGE + "Value",
            DYN,
            {
                "null_value": DYN,
                "number_value": DOUBLE,
                "string_value": STRING,
                "bool_value": BOOL,
                "struct_value": map_of(STRING, DYN),
                "list_value": list_of(DYN),
            },
        ),
        MessageType(_PACKAGE + "Any", DYN, {"type_url": STRING, "value": BYTES}),
    )
}
JSON_PATCH: Final = MessageType(
    "JSONPatch", Type("JSONPatch"), {"op": STRING, "path": STRING, "from": STRING, "value": DYN}
)
_ZEROS: Final[dict[str, Any]] = {"bool": False, "int": 0, "uint": Uint(0), "double": 0.0, "string": "", "bytes": b""}


def build_message(name: str, *entries: tuple[str, Any]) -> Any:
    """The value of a message literal. Raises EvaluationError where a value does not fit its field."""
    fields = dict(entries)
    short = name.removeprefix(_PACKAGE)
    if name not in WELL_KNOWN:
        return fields
    if short in WRAPPERS:
        return _wrapper(short, fields.get("value"))
    if short in ("Timestamp", "Duration"):
        seconds, nanos = fields.get("seconds", 0), fields.get("nanos", 0)
        if short == "Duration" and seconds * nanos < 0:
            raise EvaluationError(f"duration sign mismatch: seconds={seconds}, nanos={nanos}")
        nanos += seconds * NANOS
        if short == "Timestamp":
            return checked_timestamp(nanos)
        return long_duration(nanos)
    if short == "Struct":
        return fields.get("fields", {})
    if short == "ListValue":
        return fields.get("values", [])
    if short == "Value":
        if "number_value" in fields:
            return float(fields["number_value"])
        return None if "null_value" in fields else next(iter(fields.values()), None)
    raise EvaluationError("messages packed in google.protobuf.Any are not supported")


def _wrapper(short: str, value: Any) -> Any:
    if value is None:
        return _ZEROS[WRAPPERS[short].name]
    if short == "Int32Value" and not -_INT32 <= value < _INT32:
        raise EvaluationError("range error: value does not fit a 32-bit integer")
    if short == "FloatValue":
        return struct.unpack("f", struct.pack("f", value))[0] if abs(value) < _FLOAT32_END else value * math.inf
    if short == "UInt32Value" and not equal(value, value % 2**32):
        raise EvaluationError("range error: value does not fit a 32-bit unsigned integer")
    return value
