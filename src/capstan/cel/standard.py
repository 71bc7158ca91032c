"""The standard functions of the language definition: sizes, text tests, conversions. Time has its own module."""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from decimal import Decimal
from functools import lru_cache
from typing import Any, Final

import re2

from capstan.cel.errors import EvaluationError
from capstan.cel.library import Library
from capstan.cel.operators import checked_int, checked_uint
from capstan.cel.values import Timestamp, TypeValue, Uint, type_name

STANDARD = Library("standard")

_INTEGER = re.compile(r"[+-]?[0-9]{1,64}")
_FLOAT = re.compile(r"[+-]?(?:(?:[0-9]+\.?[0-9]*|\.[0-9]+)(?:[eE][+-]?[0-9]+)?|inf(?:inity)?|nan)", re.IGNORECASE)
_TRUE: Final = frozenset(("1", "t", "T", "true", "TRUE", "True"))
_FALSE: Final = frozenset(("0", "f", "F", "false", "FALSE", "False"))
# What one compiled pattern may occupy: bounds the time to compile a pattern with nested repetitions.
_REGEX_MEMORY: Final = 1 << 18
SHORT: Final = 256
"""Characters of a text for which it is worth remembering whether it matches."""


@STANDARD.declare(
    "size(string) -> int",
    "size(bytes) -> int",
    "size(list(A)) -> int",
    "size(map(A, B)) -> int",
    "<string>.size() -> int",
    "<bytes>.size() -> int",
    "<list(A)>.size() -> int",
    "<map(A, B)>.size() -> int",
)
def size(value: Any) -> int:
    return len(value)


@STANDARD.declare("<string>.contains(string) -> bool")
def contains_text(text: str, part: str) -> bool:
    return part in text


@STANDARD.declare("<string>.startsWith(string) -> bool")
def starts_with(text: str, prefix: str) -> bool:
    return text.startswith(prefix)


@STANDARD.declare("<string>.endsWith(string) -> bool")
def ends_with(text: str, suffix: str) -> bool:
    return text.endswith(suffix)


@lru_cache(maxsize=512)
def regex(pattern: str) -> Any:
    """A compiled RE2 pattern. Raises EvaluationError when it does not parse or is too big."""
    options = re2.Options()
    options.log_errors = False
    options.max_mem = _REGEX_MEMORY
    try:
        return re2.compile(pattern, options)
    except re2.error as error:
        detail = error.args[0].decode(errors="replace") if isinstance(error.args[0], bytes) else error.args[0]
        raise EvaluationError(f"error parsing regexp: {detail}: `{pattern[:200]}`") from None


@STANDARD.declare("<string>.matches(string) -> bool", "matches(string, string) -> bool")
def matches(text: str, pattern: str) -> bool:
    return regex(pattern).search(text) is not None if len(text) > SHORT else matcher(pattern)(text)


@lru_cache(maxsize=512)
def matcher(pattern: str, prepare: Callable[[Any], str] | None = None) -> Callable[[Any], bool]:
    """Whether a short text, or what is prepared from it, matches; remembered: the same few values (product names) meet
    the same few patterns again and again. Raises EvaluationError as `regex`."""
    search = regex(pattern).search

    @lru_cache(maxsize=512)
    def matches_pattern(text: Any) -> bool:
        return search(prepare(text) if prepare else text) is not None

    return matches_pattern


@STANDARD.declare("int(int) -> int")
def int_from_int(value: int) -> int:
    return value


@STANDARD.declare("int(uint) -> int")
def int_from_uint(value: Uint) -> int:
    return checked_int(int(value))


@STANDARD.declare("int(double) -> int")
def int_from_double(value: float) -> int:
    """Truncates; the bounds themselves are refused, as a double cannot tell them from their neighbours."""
    if math.isnan(value) or not -(2.0**63) < value < 2.0**63:
        raise EvaluationError("integer overflow")
    return int(value)


@STANDARD.declare("int(string) -> int")
def int_from_string(text: str) -> int:
    if not _INTEGER.fullmatch(text):
        raise EvaluationError(f"type conversion error from 'string' to 'int': {text[:64]!r}")
    return checked_int(int(text))


@STANDARD.declare("int(timestamp) -> int")
def int_from_timestamp(value: Timestamp) -> int:
    return value.nanos // 10**9


@STANDARD.declare("uint(uint) -> uint")
def uint_from_uint(value: Uint) -> Uint:
    return value


@STANDARD.declare("uint(int) -> uint")
def uint_from_int(value: int) -> Uint:
    return checked_uint(value)


@STANDARD.declare("uint(double) -> uint")
def uint_from_double(value: float) -> Uint:
    if math.isnan(value) or not 0.0 <= value < 2.0**64:
        raise EvaluationError("unsigned integer overflow")
    return Uint(int(value))


@STANDARD.declare("uint(string) -> uint")
def uint_from_string(text: str) -> Uint:
    if not _INTEGER.fullmatch(text) or text[0] in "+-":
        raise EvaluationError(f"type conversion error from 'string' to 'uint': {text[:64]!r}")
    return checked_uint(int(text))


@STANDARD.declare("double(double) -> double", "double(int) -> double", "double(uint) -> double")
def double_from_number(value: float) -> float:
    return float(value)


@STANDARD.declare("double(string) -> double")
def double_from_string(text: str) -> float:
    if len(text) > 400 or not _FLOAT.fullmatch(text):
        raise EvaluationError(f"type conversion error from 'string' to 'double': {text[:64]!r}")
    return float(text)


@STANDARD.declare("string(string) -> string")
def string_from_string(value: str) -> str:
    return value


@STANDARD.declare("string(int) -> string", "string(uint) -> string")
def string_from_integer(value: int) -> str:
    return str(int(value))


@STANDARD.declare("string(bool) -> string")
def string_from_bool(value: bool) -> str:
    return "true" if value else "false"


@STANDARD.declare("string(double) -> string")
def string_from_double(value: float) -> str:
    """The shortest digits that read back the same, with an exponent below 1e-4 and from 1e6 on (Go's %g)."""
    if math.isnan(value):
        return "NaN"
    if math.isinf(value):
        return "+Inf" if value > 0 else "-Inf"
    sign, digits, exponent = Decimal(repr(value)).normalize().as_tuple()
    text = "".join(map(str, digits))
    assert isinstance(exponent, int)  # only NaN and infinities have a letter there
    scientific = exponent + len(digits) - 1
    prefix = "-" if sign else ""
    if text == "0":
        return prefix + "0"
    if scientific < -4 or scientific >= 6:
        mantissa = text[0] + ("." + text[1:] if len(text) > 1 else "")
        return f"{prefix}{mantissa}e{'-' if scientific < 0 else '+'}{abs(scientific):02d}"
    return prefix + format(Decimal((0, digits, exponent)), "f")


@STANDARD.declare("string(bytes) -> string")
def string_from_bytes(value: bytes) -> str:
    try:
        return value.decode()
    except UnicodeDecodeError:
        raise EvaluationError("invalid UTF-8 in bytes, cannot convert to string") from None


@STANDARD.declare("bytes(bytes) -> bytes")
def bytes_from_bytes(value: bytes) -> bytes:
    return value


@STANDARD.declare("bytes(string) -> bytes")
def bytes_from_string(value: str) -> bytes:
    return value.encode()


@STANDARD.declare("bool(bool) -> bool")
def bool_from_bool(value: bool) -> bool:
    return value


@STANDARD.declare("bool(string) -> bool")
def bool_from_string(text: str) -> bool:
    if text in _TRUE:
        return True
    if text in _FALSE:
        return False
    raise EvaluationError(f"type conversion error from 'string' to 'bool': {text[:64]!r}")


@STANDARD.declare("dyn(A) -> dyn")
def dyn(value: Any) -> Any:
    return value


@STANDARD.declare("type(A) -> type(A)")
def type_value(value: object) -> TypeValue:
    return TypeValue(type_name(value))
