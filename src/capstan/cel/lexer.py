"""Source text to tokens, by one regular expression (linear in the length of the text)."""

from __future__ import annotations

import re
from typing import NamedTuple

from capstan.cel.errors import CompileError, Issue
from capstan.cel.values import Uint

KEYWORDS = {"true": True, "false": False, "null": None}
RESERVED = frozenset(
    {"as", "break", "const", "continue", "else", "for", "function", "if", "import", "let", "loop", "package"}
    | {"namespace", "return", "var", "void", "while"}
)
MAX_TOKENS = 5_000
INT_MIN, INT_MAX, UINT_MAX = -(2**63), 2**63 - 1, 2**64 - 1

_TOKEN = re.compile(
    r"""
    (?P<space>(?:[ \t\n\f\r]|//[^\n]*)+)
  | (?P<string>[bB]?[rR](?:\"{3}[\s\S]*?\"{3}|'{3}[\s\S]*?'{3}|"[^"\r\n]*"|'[^'\r\n]*')
      | [bB]?(?:\"{3}(?:[^\\]|\\[\s\S])*?\"{3}|'{3}(?:[^\\]|\\[\s\S])*?'{3}
      | "(?:[^"\\\r\n]|\\.)*"|'(?:[^'\\\r\n]|\\.)*'))
  | (?P<float>\d+\.\d+(?:[eE][+-]?\d+)?|\d+[eE][+-]?\d+|\.\d+(?:[eE][+-]?\d+)?)
  | (?P<uint>(?:0x[0-9a-fA-F]+|\d+)[uU])
  | (?P<int>0x[0-9a-fA-F]+|\d+)
  | (?P<name>[_a-zA-Z][_a-zA-Z0-9]*)
  | (?P<quoted>`[a-zA-Z0-9_.\-/ ]+`)
  | (?P<operator>==|!=|<=|>=|&&|\|\||[-+*/%<>!?:.,()\[\]{}])
  | (?P<nothing>[\s\S])
    """,
    re.VERBOSE | re.ASCII,
)
_ESCAPE = re.compile(
    r"\\(?:([abfnrtv\\?\"'`])|[xX]([0-9a-fA-F]{2})|u([0-9a-fA-F]{4})|U([0-9a-fA-F]{8})|([0-3][0-7]{2})|)"
)
_SIMPLE = dict(zip("abfnrtv\\?\"'`", "\a\b\f\n\r\t\v\\?\"'`", strict=True))


class Token(NamedTuple):
    """`kind` is name, quoted, literal, end, or the operator itself; `value` the name or the literal's value."""

    kind: str
    position: int
    value: object = None


def tokenize(source: str) -> list[Token]:
    """All tokens, with an `end` token last. Raises CompileError at the first character that starts none, and where
    there are too many."""
    tokens: list[Token] = []
    for match in _TOKEN.finditer(source):
        kind = match.lastgroup
        if kind == "space":
            continue
        text = match.group()
        start = match.start()
        if kind == "nothing":
            raise CompileError(source, [Issue(start, f"Syntax error: token recognition error at: {text!r}")])
        if len(tokens) == MAX_TOKENS:
            raise CompileError(source, [Issue(start, f"expression exceeds the limit of {MAX_TOKENS} tokens")])
        if kind == "operator":
            tokens.append(Token(text, start))
        elif kind == "name":
            if text in KEYWORDS:
                tokens.append(Token("literal", start, KEYWORDS[text]))
            else:
                tokens.append(Token("in" if text == "in" else "name", start, text))
        elif kind == "quoted":
            tokens.append(Token("quoted", start, text[1:-1]))
        else:
            tokens.append(Token("literal", start, _literal(source, start, str(kind), text)))
    tokens.append(Token("end", len(source)))
    return tokens


def _literal(source: str, position: int, kind: str, text: str) -> object:
    if kind == "string":
        return _text_literal(source, position, text)
    if kind == "float":
        return float(text)
    digits = text.rstrip("uU") if kind == "uint" else text
    number = int(digits, 16 if digits.startswith("0x") else 10) if len(digits) < 64 else UINT_MAX + 1
    if kind == "uint":
        if number > UINT_MAX:
            raise CompileError(source, [Issue(position, "invalid uint literal")])
        return Uint(number)
    # -9223372036854775808 is a literal, its digits alone are not: the parser checks the sign.
    if number > INT_MAX + 1:
        raise CompileError(source, [Issue(position, "invalid int literal")])
    return number


def _text_literal(source: str, position: int, text: str) -> str | bytes:
    start = min(index for index in (text.find('"'), text.find("'")) if index >= 0)
    prefix = text[:start].lower()
    quotes = 3 if text[start : start + 3] in ('"""', "'''") and len(text) >= start + 6 else 1
    body = text[start + quotes : -quotes]
    if quotes == 3:
        body = body.replace("\r\n", "\n").replace("\r", "\n")
    if "r" in prefix or "\\" not in body:
        return body.encode() if "b" in prefix else body

    def fail(message: str) -> CompileError:
        return CompileError(source, [Issue(position, f"Syntax error: {message}")])

    pieces: list[str] = []
    raw = bytearray()
    last = 0
    for match in _ESCAPE.finditer(body):
        simple, two, four, eight, octal = match.groups()
        before = body[last : match.start()]
        last = match.end()
        if "b" in prefix:
            raw += before.encode()
            if simple:
                raw += _SIMPLE[simple].encode()
            elif two or octal:
                raw.append(int(two, 16) if two else int(octal, 8))
            else:
                raise fail("invalid escape sequence in a bytes literal")
            continue
        pieces.append(before)
        if simple:
            pieces.append(_SIMPLE[simple])
            continue
        digits = two or four or eight
        if not digits and not octal:
            raise fail("invalid escape sequence")
        point = int(digits, 16) if digits else int(octal, 8)
        if point > 0x10FFFF or 0xD800 <= point <= 0xDFFF:
            raise fail("invalid unicode code point")
        pieces.append(chr(point))
    if "b" in prefix:
        return bytes(raw + body[last:].encode())
    return "".join(pieces) + body[last:]
