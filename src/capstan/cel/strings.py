"""The strings extension: characters by code point, ASCII case, replace, split, join, quote."""

from __future__ import annotations

import string

from capstan.cel.errors import EvaluationError
from capstan.cel.library import Library

STRINGS = Library("strings")

_LOWER = str.maketrans(string.ascii_uppercase, string.ascii_lowercase)
_UPPER = str.maketrans(string.ascii_lowercase, string.ascii_uppercase)
# Go's unicode.IsSpace, which is narrower than Python's str.strip().
_SPACE = "\t\n\v\f\r \x85\xa0\u1680" + "".join(map(chr, range(0x2000, 0x200B))) + "\u2028\u2029\u202f\u205f\u3000"
_QUOTED = str.maketrans(
    {
        "\a": "\\a",
        "\b": "\\b",
        "\f": "\\f",
        "\n": "\\n",
        "\r": "\\r",
        "\t": "\\t",
        "\v": "\\v",
        "\\": "\\\\",
        '"': '\\"',
    }
)


@STRINGS.declare("<string>.lowerAscii() -> string")
def lower_ascii(text: str) -> str:
    return text.lower() if text.isascii() else text.translate(_LOWER)


@STRINGS.declare("<string>.upperAscii() -> string")
def upper_ascii(text: str) -> str:
    return text.upper() if text.isascii() else text.translate(_UPPER)


@STRINGS.declare("<string>.charAt(int) -> string")
def char_at(text: str, position: int) -> str:
    """One character; empty at the very end."""
    if not 0 <= position <= len(text):
        raise EvaluationError(f"index out of range: {position}")
    return text[position : position + 1]


@STRINGS.declare("<string>.indexOf(string) -> int")
def index_of(text: str, part: str) -> int:
    return text.find(part)


@STRINGS.declare("<string>.indexOf(string, int) -> int")
def index_of_from(text: str, part: str, start: int) -> int:
    if start < 0 or start > len(text):
        raise EvaluationError(f"index out of range: {start}")
    return text.find(part, start)


@STRINGS.declare("<string>.lastIndexOf(string) -> int")
def last_index_of(text: str, part: str) -> int:
    return text.rfind(part)


@STRINGS.declare("<string>.lastIndexOf(string, int) -> int")
def last_index_of_from(text: str, part: str, start: int) -> int:
    """The last occurrence that begins at or before `start`."""
    if start < 0 or start > len(text):
        raise EvaluationError(f"index out of range: {start}")
    return text.rfind(part, 0, start + len(part))


@STRINGS.declare("<string>.replace(string, string) -> string")
def replace(text: str, old: str, new: str) -> str:
    return text.replace(old, new)


@STRINGS.declare("<string>.replace(string, string, int) -> string")
def replace_some(text: str, old: str, new: str, limit: int) -> str:
    return text.replace(old, new, max(limit, -1))


@STRINGS.declare("<string>.split(string) -> list(string)")
def split(text: str, separator: str) -> list[str]:
    return text.split(separator) if separator else list(text)


@STRINGS.declare("<string>.split(string, int) -> list(string)")
def split_some(text: str, separator: str, limit: int) -> list[str]:
    """At most `limit` pieces; all of them when it is negative."""
    if limit < 0:
        return split(text, separator)
    if limit == 0:
        return []
    if separator:
        return text.split(separator, limit - 1)
    return [*text[: limit - 1], text[limit - 1 :]] if len(text) >= limit else list(text)


@STRINGS.declare("<list(string)>.join() -> string")
def join(parts: list[str]) -> str:
    return join_with(parts, "")


@STRINGS.declare("<list(string)>.join(string) -> string")
def join_with(parts: list[str], separator: str) -> str:
    if not all(type(part) is str for part in parts):
        raise EvaluationError("no such overload: join of a list with elements that are not strings")
    return separator.join(parts)


@STRINGS.declare("<string>.substring(int) -> string")
def substring_from(text: str, start: int) -> str:
    return substring(text, start, len(text))


@STRINGS.declare("<string>.substring(int, int) -> string")
def substring(text: str, start: int, end: int) -> str:
    if not 0 <= start <= end <= len(text):
        raise EvaluationError(f"invalid substring range. start: {start}, end: {end}")
    return text[start:end]


@STRINGS.declare("<string>.trim() -> string")
def trim(text: str) -> str:
    return text.strip(_SPACE)


@STRINGS.declare("<string>.reverse() -> string")
def reverse(text: str) -> str:
    return text[::-1]


@STRINGS.declare("strings.quote(string) -> string")
def quote(text: str) -> str:
    return f'"{text.translate(_QUOTED)}"'
