"""Request bodies in `application/vnd.kubernetes.protobuf`, which kubectl's typed commands send (`create configmap`,
`auth can-i`).

Only reading is implemented; answers are JSON, which these clients accept as well. `protobuf.txt` has the field
numbers.
"""

from __future__ import annotations

import base64
import struct
from functools import cache
from importlib import resources
from typing import Any

import msgspec

from capstan.api import clock
from capstan.local.status import Json

MEDIA_TYPE = "application/vnd.kubernetes.protobuf"
_MAGIC = b"k8s\x00"
_VARINT, _FIXED64, _BYTES, _FIXED32 = 0, 1, 2, 5
_DEEPEST = 64
_MEANINGFUL_WHEN_EMPTY = frozenset({"storageClassName", "key", "value"})
# fmt: off
_ABSENT_WHEN_ZERO = frozenset({
    "generation", "observedGeneration", "hostPort", "nodePort", "healthCheckNodePort",
    "publishNotReadyAddresses", "minReadySeconds", "paused", "stdin", "stdinOnce", "tty", "hostIPC",
    "hostNetwork", "hostPID", "readOnly", "unschedulable", "initialDelaySeconds", "timeoutSeconds",
    "periodSeconds", "successThreshold", "failureThreshold", "count", "globalDefault",
})
# fmt: on
"""Go encodes these although they were left out; other numbers and booleans are pointers there, or required."""


class Undecodable(ValueError):
    """The body is not a Kubernetes protobuf envelope of a known kind."""


class _Field(msgspec.Struct, frozen=True):
    name: str
    type: str
    """`s i b y d`, or the name of a message."""
    form: str
    """`*` list, `%` map, `!` inlined, empty for one value."""


@cache
def _messages() -> dict[str, dict[int, _Field]]:
    text = resources.files("capstan.local").joinpath("protobuf.txt").read_text()
    found: dict[str, dict[int, _Field]] = {}
    for line in text.splitlines():
        if line.startswith("#"):
            continue
        name, *words = line.split()
        fields = found[name] = {}
        for word in words:
            number, field, kind = word.split(":")
            form = kind[0] if kind[0] in "*%!" else ""
            fields[int(number)] = _Field(field, kind.removeprefix(form), form)
    return found


def decode(body: bytes) -> Json:
    """The object of an envelope, as JSON decoding would give it. Raises Undecodable."""
    if not body.startswith(_MAGIC):
        raise Undecodable("the body does not start with the protobuf envelope's magic number")
    try:
        return _envelope(body[len(_MAGIC) :])
    except (IndexError, struct.error, UnicodeDecodeError, msgspec.DecodeError, OverflowError) as error:
        raise Undecodable(f"the protobuf body is damaged: {error}") from error


def _envelope(data: bytes) -> Json:
    """`runtime.Unknown`: 1 is the type {1 apiVersion, 2 kind}, 2 the raw object."""
    api_version = kind = ""
    raw = b""
    for number, value in _split(data):
        if number == 1 and isinstance(value, bytes):
            for part, text in _split(value):
                if part == 1 and isinstance(text, bytes):
                    api_version = text.decode()
                elif part == 2 and isinstance(text, bytes):
                    kind = text.decode()
        elif number == 2 and isinstance(value, bytes):
            raw = value
    message = _message_of(api_version, kind)
    if message not in _messages():
        raise Undecodable(f"{api_version} {kind} is not accepted as protobuf; send JSON")
    return {"apiVersion": api_version, "kind": kind, **_object(message, raw, 0)}


def _message_of(api_version: str, kind: str) -> str:
    if kind == "DeleteOptions":
        return "meta.v1.DeleteOptions"
    group, _, version = api_version.rpartition("/")
    return f"{group.split('.')[0] or 'core'}.{version}.{kind}"


def _split(data: bytes) -> list[tuple[int, int | bytes]]:
    """The (field number, value) pairs of a message; fixed-width values stay bytes."""
    found: list[tuple[int, int | bytes]] = []
    position, end = 0, len(data)
    while position < end:
        tag, position = _varint(data, position)
        kind = tag & 7
        if kind == _VARINT:
            number, position = _varint(data, position)
            found.append((tag >> 3, number))
            continue
        if kind == _BYTES:
            size, position = _varint(data, position)
        elif kind in (_FIXED64, _FIXED32):
            size = 8 if kind == _FIXED64 else 4
        else:
            raise Undecodable(f"the protobuf body uses wire type {kind}")
        if position + size > end:
            raise Undecodable("the protobuf body is cut off")
        found.append((tag >> 3, data[position : position + size]))
        position += size
    return found


def _varint(data: bytes, position: int) -> tuple[int, int]:
    result = shift = 0
    while True:
        byte = data[position]
        position += 1
        result |= (byte & 0x7F) << shift
        if byte < 0x80:
            return result, position
        shift += 7
        if shift > 63:
            raise Undecodable("the protobuf body has an integer of more than 64 bits")


def _object(message: str, data: bytes, depth: int) -> Json:
    if depth > _DEEPEST:
        raise Undecodable("the protobuf body is nested too deeply")
    fields = _messages()[message]
    found: Json = {}
    for number, raw in _split(data):
        field = fields.get(number)
        if field is None:
            continue
        if isinstance(raw, int) and (field.form == "%" or field.type not in ("i", "b")):
            raise Undecodable(f"the protobuf body has a number where {field.name} stands")
        if field.form == "%":
            assert isinstance(raw, bytes)
            entry = dict(_split(raw))
            key = entry.get(1, b"")
            value = _value(field.type, entry.get(2, b"" if field.type not in ("i", "b") else 0), depth)
            found.setdefault(field.name, {})[key.decode() if isinstance(key, bytes) else str(key)] = value
            continue
        value = _value(field.type, raw, depth)
        if field.form == "!":
            found.update(value)
        elif field.form == "*":
            found.setdefault(field.name, []).append(value)
        elif not _absent(field.name, value):
            found[field.name] = value
    return found


def _absent(name: str, value: Any) -> bool:
    """Whether a value stands for a field that was left out: Go encodes absent text as empty text."""
    if value is None or value == "":
        return value is None or name not in _MEANINGFUL_WHEN_EMPTY
    return not value and isinstance(value, int) and name in _ABSENT_WHEN_ZERO


def _value(kind: str, raw: int | bytes, depth: int) -> Any:
    if isinstance(raw, int):
        if kind == "b":
            return raw != 0
        return raw - (1 << 64) if raw >> 63 else raw
    match kind:
        case "s":
            return raw.decode()
        case "y":
            return base64.b64encode(raw).decode()
        case "d":
            return struct.unpack("<d", raw)[0]
        case "meta.v1.Time" | "meta.v1.MicroTime":
            return _time(kind, dict(_split(raw)))
        case "api.resource.Quantity":
            return next((text.decode() for _, text in _split(raw) if isinstance(text, bytes)), "0")
        case "util.intstr.IntOrString":
            parts = dict(_split(raw))
            text = parts.get(3, b"")
            return (
                text.decode() if parts.get(1) == 1 and isinstance(text, bytes) else _value("i", parts.get(2, 0), depth)
            )
        case "meta.v1.FieldsV1" | "runtime.RawExtension":
            content = dict(_split(raw)).get(1, b"")
            return msgspec.json.decode(content) if isinstance(content, bytes) and content else None
        case "authorization.v1.ExtraValue" | "authentication.v1.ExtraValue":
            return [text.decode() for _, text in _split(raw) if isinstance(text, bytes)]
    if kind not in _messages():
        raise Undecodable(f"the protobuf body has bytes where {kind} stands")
    return _object(kind, raw, depth + 1)


def _time(kind: str, parts: dict[int, int | bytes]) -> str | None:
    """RFC 3339; None for the zero time, which Go encodes as an empty message."""
    seconds, nanos = _value("i", parts.get(1, 0), 0), _value("i", parts.get(2, 0), 0)
    if not parts or not isinstance(seconds, int) or not isinstance(nanos, int):
        return None
    if kind == "meta.v1.MicroTime":
        return clock.render_micro(seconds + nanos / 1e9)
    return clock.render(seconds)
