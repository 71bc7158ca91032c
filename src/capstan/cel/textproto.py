"""Protocol buffer text format, as far as test files need it: fields, messages, lists, strings, numbers and enum names.

A message becomes a list of (field, value) pairs in the order of the text; `[type.url/name]` keys stay as they are.
"""

from __future__ import annotations

import re
from typing import Any, Final

from capstan.cel.errors import CelError

Message = list[tuple[str, Any]]

_TOKEN = re.compile(
    r"""\s+ | \#[^\n]*
    | (?P<string>"(?:[^"\\\n]|\\.)*" | '(?:[^'\\\n]|\\.)*')
    | (?P<extension>\[[\w./ -]+\])
    | (?P<word>[-+]?[\w.][\w.+-]*)
    | (?P<mark>[{}<>\[\]:,;])
    """,
    re.VERBOSE,
)
_ESCAPE = re.compile(r"\\(?:([abfnrtv\\?\"'])|[xX]([0-9a-fA-F]{1,2})|u([0-9a-fA-F]{4})|U([0-9a-fA-F]{8})|([0-7]{1,3}))")
_SIMPLE: Final = dict(zip("abfnrtv\\?\"'", (b"\a\b\f\n\r\t\v\\?\"'"[i : i + 1] for i in range(11)), strict=True))


class Enum(str):
    """A bare word: an enum value, true, false, inf or nan."""

    __slots__ = ()


class TextFormatError(CelError):
    """The file is not in protobuf text format."""


def parse(text: str) -> Message:
    """Raises TextFormatError with the line of the first mistake."""
    tokens: list[tuple[str, str, int]] = []
    position = 0
    while position < len(text):
        match = _TOKEN.match(text, position)
        if match is None:
            raise TextFormatError(f"line {text.count(chr(10), 0, position) + 1}: unexpected {text[position]!r}")
        if match.lastgroup:
            tokens.append((match.lastgroup, match.group(), position))
        position = match.end()
    reader = _Reader(text, tokens)
    return reader.fields(closing="")


class _Reader:
    def __init__(self, text: str, tokens: list[tuple[str, str, int]]) -> None:
        self.text = text
        self.tokens = tokens
        self.at = 0

    def fail(self, wanted: str) -> TextFormatError:
        position = self.tokens[self.at][2] if self.at < len(self.tokens) else len(self.text)
        return TextFormatError(f"line {self.text.count(chr(10), 0, position) + 1}: expected {wanted}")

    def peek(self) -> str:
        return self.tokens[self.at][1] if self.at < len(self.tokens) else ""

    def accept(self, *marks: str) -> str:
        found = self.peek()
        if found and found in marks and self.tokens[self.at][0] == "mark":
            self.at += 1
            return found
        return ""

    def fields(self, closing: str) -> Message:
        message: Message = []
        while self.at < len(self.tokens):
            if closing and self.accept(closing):
                return message
            kind, name, _ = self.tokens[self.at]
            if kind not in ("word", "extension"):
                raise self.fail("a field name")
            self.at += 1
            self.accept(":")
            if self.at < len(self.tokens) and self.tokens[self.at][0] == "extension":  # a list of one word
                message.append((name, _scalar(self.tokens[self.at][1][1:-1].strip())))
                self.at += 1
            elif self.accept("["):
                while not self.accept("]"):
                    message.append((name, self.value()))
                    self.accept(",")
            else:
                message.append((name, self.value()))
            self.accept(",", ";")
        if closing:
            raise self.fail(f"'{closing}'")
        return message

    def value(self) -> Any:
        if opening := self.accept("{", "<"):
            return self.fields("}" if opening == "{" else ">")
        if self.at >= len(self.tokens):
            raise self.fail("a value")
        kind, text, _ = self.tokens[self.at]
        if kind == "string":
            pieces = b""
            while self.at < len(self.tokens) and self.tokens[self.at][0] == "string":
                pieces += _unescape(self.tokens[self.at][1][1:-1])
                self.at += 1
            return pieces
        if kind != "word":
            raise self.fail("a value")
        self.at += 1
        return _scalar(text)


def _unescape(text: str) -> bytes:
    pieces = b""
    last = 0
    for match in _ESCAPE.finditer(text):
        pieces += text[last : match.start()].encode()
        last = match.end()
        simple, two, four, eight, octal = match.groups()
        if simple:
            pieces += _SIMPLE[simple]
        elif four or eight:
            pieces += chr(int(four or eight, 16)).encode()
        else:
            pieces += bytes([int(two, 16) if two else int(octal, 8) & 0xFF])
    return pieces + text[last:].encode()


def _scalar(text: str) -> Any:
    if re.fullmatch(r"[-+]?\d+", text):
        return int(text)
    if re.fullmatch(r"[-+]?0[xX][0-9a-fA-F]+", text):
        return int(text, 16)
    if re.fullmatch(r"[-+]?(?:\d+\.?\d*|\.\d+)(?:[eE][-+]?\d+)?[fF]?", text):
        return float(text.rstrip("fF"))
    if text.lower() in ("inf", "-inf", "infinity", "-infinity", "nan", "-nan"):
        return float(text)
    return Enum(text)
