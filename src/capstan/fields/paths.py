"""One step of a field path, in the text form that `metadata.managedFields` uses, and how paths are printed.

A path is a tuple of steps. A step is the key of a fieldsV1 node: `f:<field>`, `k:<key fields as JSON>` (an item of a
keyed list), `v:<value as JSON>` (an item of a set) or `i:<index>`. Keeping the wire form everywhere means that field
sets need no conversion when they are read from or written to an object. JSON in a step is canonical: sorted keys, no
spaces.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import msgspec

from capstan.fields.errors import InvalidFieldSet

Path = tuple[str, ...]

_encoder = msgspec.json.Encoder(order="sorted")


def field_step(name: str) -> str:
    return "f:" + name


def value_step(value: Any) -> str:
    return "v:" + _encoder.encode(value).decode()


def key_step(key: Mapping[str, Any]) -> str:
    return "k:" + _encoder.encode(key).decode()


def normalized(step: str) -> str:
    """The canonical spelling of a step that came from outside. Raises InvalidFieldSet."""
    kind, text = step[:2], step[2:]
    if kind == "f:":
        return step
    try:
        content = msgspec.json.decode(text)
    except msgspec.DecodeError as error:
        raise InvalidFieldSet(f"the step {step!r} of a field set is not JSON after {kind!r}: {error}") from error
    match kind:
        case "k:" if isinstance(content, dict) and content:
            return key_step(content)
        case "v:":
            return value_step(content)
        case "i:" if isinstance(content, int):
            return step
    raise InvalidFieldSet(
        f"the step {step!r} of a field set is not f:<field>, k:<keys as JSON>, v:<value as JSON> or i:<index>"
    )


def render(path: Path) -> str:
    """The path as kube-apiserver prints it in conflicts: `.spec.containers[name="app"].image`."""
    return "".join(_rendered(step) for step in path)


def readable(path: Path) -> str:
    """The path for people: `spec.containers[name=app].image`, and `metadata.labels[kai.scheduler/queue]` for
    odd keys.
    """
    text = ""
    for step in path:
        kind, content = step[:2], step[2:]
        if kind == "f:":
            text += f"[{content}]" if "." in content or "/" in content else f".{content}"
        elif kind == "k:":
            key = msgspec.json.decode(content)
            text += "[" + ",".join(f"{name}={_plain(value)}" for name, value in sorted(key.items())) + "]"
        elif kind == "v:":
            text += f"[={_plain(msgspec.json.decode(content))}]"
        else:
            text += f"[{content}]"
    return text.removeprefix(".")


def _rendered(step: str) -> str:
    kind, content = step[:2], step[2:]
    if kind == "f:":
        return "." + content
    if kind == "k:":
        key = msgspec.json.decode(content)
        return "[" + ",".join(f"{name}={_encoder.encode(value).decode()}" for name, value in sorted(key.items())) + "]"
    return f"[={content}]" if kind == "v:" else f"[{content}]"


def _plain(value: Any) -> str:
    return value if isinstance(value, str) else _encoder.encode(value).decode()
