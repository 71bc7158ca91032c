"""The JSONPath of printer columns: `.a.b`, `['a.b']`, `[0]`, `[-1]`, `[*]`, `.*`, `..a`, `[?(@.type=="Ready")]`, `\\.`
in names.

Rules: kubectl's JSONPath (k8s.io/client-go/util/jsonpath) without the template braces, as a CRD column writes it.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator
from typing import Any

Step = Callable[[Any], Iterator[Any]]


class InvalidJsonPath(ValueError):
    """A path that does not parse; the message says where."""


_NAME = re.compile(r"(?:\\.|[^.\[\]\\{}])+")
_QUOTED = re.compile(r"\[\s*(?:'([^']*)'|\"([^\"]*)\")\s*\]")
_INDEX = re.compile(r"\[\s*(-?\d+)\s*\]")
_SLICE = re.compile(r"\[\s*(-?\d+)?\s*:\s*(-?\d+)?\s*\]")
_STAR = re.compile(r"\[\s*\*\s*\]")
_FILTER = re.compile(
    r"\[\?\(\s*@((?:[.\[][^=!<>)\s]+)?)\s*(?:(==|!=|<=|>=|<|>)\s*('[^']*'|\"[^\"]*\"|[^)\s]+)\s*)?\)\]"
)
_COMPARE: dict[str, Callable[[Any, Any], bool]] = {
    "==": lambda left, right: bool(left == right),
    "!=": lambda left, right: bool(left != right),
    "<": lambda left, right: bool(left < right),
    ">": lambda left, right: bool(left > right),
    "<=": lambda left, right: bool(left <= right),
    ">=": lambda left, right: bool(left >= right),
}


class JsonPath:
    """A compiled path; `find` returns all values it leads to, absent ones left out. Raises InvalidJsonPath."""

    def __init__(self, text: str) -> None:
        self.text = text
        self._steps = list(_parse(text.strip().removeprefix("{").removesuffix("}").removeprefix("$")))

    def find(self, obj: Any) -> list[Any]:
        values = [obj]
        for step in self._steps:
            values = [found for value in values for found in step(value)]
        return values


def _parse(text: str) -> Iterator[Step]:
    if not text.startswith((".", "[")):
        raise InvalidJsonPath(f"the path {text!r} must start with '.' or '['")
    at = 0
    while at < len(text):
        if text.startswith("..", at):
            match = _NAME.match(text, at + 2)
            if match is None:
                raise InvalidJsonPath(f"a name must follow '..' at position {at} of {text!r}")
            yield _descend(_unescape(match[0]))
        elif text.startswith(".*", at):
            yield _every
            at += 2
            continue
        elif text[at] == ".":
            if at + 1 == len(text) or text[at + 1] == "[":
                at += 1
                continue
            match = _NAME.match(text, at + 1)
            if match is None:
                raise InvalidJsonPath(f"a name must follow '.' at position {at} of {text!r}")
            yield _field(_unescape(match[0]))
        elif match := _QUOTED.match(text, at):
            yield _field(match[1] if match[1] is not None else match[2])
        elif match := _INDEX.match(text, at):
            yield _item(int(match[1]))
        elif match := _SLICE.match(text, at):
            yield _slice(match[1], match[2])
        elif match := _STAR.match(text, at):
            yield _every
        elif match := _FILTER.match(text, at):
            yield _filter(match[1], match[2], match[3])
        else:
            raise InvalidJsonPath(f"cannot understand {text[at:]!r} in the path {text!r}")
        at = match.end()


def _unescape(name: str) -> str:
    return re.sub(r"\\(.)", r"\1", name)


def _field(name: str) -> Step:
    def step(value: Any) -> Iterator[Any]:
        if isinstance(value, dict) and name in value:
            yield value[name]

    return step


def _descend(name: str) -> Step:
    def step(value: Any) -> Iterator[Any]:
        if isinstance(value, dict):
            if name in value:
                yield value[name]
            for child in value.values():
                yield from step(child)
        elif isinstance(value, list):
            for child in value:
                yield from step(child)

    return step


def _item(index: int) -> Step:
    def step(value: Any) -> Iterator[Any]:
        if isinstance(value, list) and -len(value) <= index < len(value):
            yield value[index]

    return step


def _slice(start: str | None, end: str | None) -> Step:
    first, last = int(start) if start else None, int(end) if end else None

    def step(value: Any) -> Iterator[Any]:
        if isinstance(value, list):
            yield from value[first:last]

    return step


def _every(value: Any) -> Iterator[Any]:
    if isinstance(value, list):
        yield from value
    elif isinstance(value, dict):
        yield from value.values()


def _filter(path: str, operator: str | None, literal: str | None) -> Step:
    steps = list(_parse(path)) if path else []
    wanted = _literal(literal) if literal is not None else None

    def step(value: Any) -> Iterator[Any]:
        for item in value if isinstance(value, list) else ():
            found = [item]
            for inner in steps:
                found = [below for above in found for below in inner(above)]
            if operator is None:
                if found:
                    yield item
                continue
            try:
                holds = bool(found) and _COMPARE[operator](found[0], wanted)
            except TypeError:
                holds = False
            if holds:
                yield item

    return step


def _literal(text: str) -> Any:
    if text[0] in "'\"":
        return text[1:-1]
    try:
        return json.loads(text)
    except ValueError:
        return text
