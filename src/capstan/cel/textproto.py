"""Protocol buffer text format, as far as test files need it: fields, messages, lists, strings, numbers and enum names.

A message becomes a list of (field, value) pairs in the order of the text; an extension or the type URL of an expanded
`Any` is a field named `[type.url/name]`.
"""

from __future__ import annotations

import re
from typing import Any, Final, NamedTuple

from capstan.cel.errors import CelError

Message = list[tuple[str, Any]]

MAX_DEPTH: Final = 100
_TOKEN = re.compile(
    r"""(?P<space>\s+ | \#[^\n]*)
    | (?P<string>"(?:[^"\\\n]|\\.)*" | '(?:[^'\\\n]|\\.)*')
    | (?P<word>[\w.](?:[\w.]|[-+](?<=[eE].)(?=\d)|-(?=[a-zA-Z]))*)
    | (?P<mark>[-{}<>\[\]:,;/])
    """,
    re.VERBOSE,
)
_ESCAPE = re.compile(
    r"\\(?:([abfnrtv\\?\"'])|[xX]([0-9a-fA-F]{1,2})|u([0-9a-fA-F]{4})|U([0-9a-fA-F]{8})|([0-7]{1,3})|)"
)
_SIMPLE: Final = dict(zip("abfnrtv\\?\"'", (b"\a\b\f\n\r\t\v\\?\"'"[i : i + 1] for i in range(11)), strict=True))
_CLOSING: Final = {"{": "}", "<": ">"}


class Enum(str):
    """A bare word: an enum value, true or false."""

    __slots__ = ()


class TextFormatError(CelError):
    """The file is not in protobuf text format."""


class _Token(NamedTuple):
    kind: str
    text: str
    position: int


def parse(text: str) -> Message:
    """Raises TextFormatError with the line of the first mistake."""
    tokens: list[_Token] = []
    position = 0
    while position < len(text):
        match = _TOKEN.match(text, position)
        if match is None:
            raise TextFormatError(f"line {_line(text, position)}: unexpected {text[position]!r}")
        if match.lastgroup and match.lastgroup != "space":
            tokens.append(_Token(match.lastgroup, match.group(), position))
        position = match.end()
    tokens.append(_Token("end", "", len(text)))
    return _Reader(text, tokens).fields(closing="", depth=0)


def _line(text: str, position: int) -> int:
    return text.count("\n", 0, position) + 1


class _Reader:
    def __init__(self, text: str, tokens: list[_Token]) -> None:
        self.text = text
        self.tokens = tokens
        self.at = 0

    @property
    def token(self) -> _Token:
        return self.tokens[self.at]

    def fail(self, message: str) -> TextFormatError:
        return TextFormatError(f"line {_line(self.text, self.token.position)}: {message}")

    def accept(self, *marks: str) -> str:
        if self.token.kind != "mark" or self.token.text not in marks:
            return ""
        self.at += 1
        return self.tokens[self.at - 1].text

    def word(self, what: str) -> str:
        if self.token.kind != "word":
            raise self.fail(f"expected {what}")
        self.at += 1
        return self.tokens[self.at - 1].text

    def fields(self, closing: str, depth: int) -> Message:
        if depth > MAX_DEPTH:
            raise self.fail(f"messages nest deeper than {MAX_DEPTH}")
        message: Message = []
        while not self.accept(closing):
            if self.token.kind == "end":
                if closing:
                    raise self.fail(f"expected '{closing}'")
                break
            name = self.name()
            self.accept(":")
            if self.accept("["):
                while not self.accept("]"):
                    message.append((name, self.value(depth)))
                    self.accept(",")
            else:
                message.append((name, self.value(depth)))
            self.accept(",", ";")
        return message

    def name(self) -> str:
        if not self.accept("["):
            return self.word("a field name")
        parts = [self.word("an extension or a type URL")]
        while self.accept("/"):
            parts.append(self.word("a type name"))
        if not self.accept("]"):
            raise self.fail("expected ']'")
        return f"[{'/'.join(parts)}]"

    def value(self, depth: int) -> Any:
        if opening := self.accept("{", "<"):
            return self.fields(_CLOSING[opening], depth + 1)
        if self.token.kind == "string":
            pieces = b""
            while self.token.kind == "string":
                pieces += self.unescaped(self.token.text[1:-1])
                self.at += 1
            return pieces
        sign = -1 if self.accept("-") else 1
        return _scalar(self.word("a value"), sign)

    def unescaped(self, text: str) -> bytes:
        pieces = b""
        last = 0
        for match in _ESCAPE.finditer(text):
            pieces += text[last : match.start()].encode()
            last = match.end()
            simple, two, four, eight, octal = match.groups()
            code = int(four or eight or "0", 16)
            if simple:
                pieces += _SIMPLE[simple]
            elif two or octal:
                pieces += bytes([int(two, 16) if two else int(octal, 8) & 0xFF])
            elif not (four or eight) or code > 0x10FFFF or 0xD800 <= code <= 0xDFFF:
                raise self.fail(f"invalid escape sequence {text[match.start() : match.start() + 10]!r}")
            else:
                pieces += chr(code).encode()
        return pieces + text[last:].encode()


def _scalar(text: str, sign: int) -> Any:
    if re.fullmatch(r"0[xX][0-9a-fA-F]+", text):
        return sign * int(text, 16)
    if re.fullmatch(r"0[0-7]+", text):
        return sign * int(text, 8)
    if re.fullmatch(r"\d+", text):
        return sign * int(text)
    if re.fullmatch(r"(?:\d+\.?\d*|\.\d+)(?:[eE][-+]?\d+)?[fF]?", text):
        return sign * float(text.rstrip("fF"))
    if text.lower() in ("inf", "infinity", "nan"):
        return sign * float(text)
    return Enum(text if sign > 0 else f"-{text}")
