"""Arithmetic, and the signatures of all operators. int and uint overflow is an error, doubles follow IEEE 754."""

from __future__ import annotations

import math
from typing import Any

from capstan.cel.errors import EvaluationError
from capstan.cel.library import Library
from capstan.cel.values import (
    DURATION_MAX,
    INT_MAX,
    INT_MIN,
    TIMESTAMP_MAX,
    TIMESTAMP_MIN,
    UINT_MAX,
    Duration,
    Timestamp,
    Uint,
    contains,
    equal,
    greater,
    greater_equal,
    index,
    less,
    less_equal,
)

OPERATORS = Library("operators")


def checked_int(value: int) -> int:
    """The value when it fits int64. Raises EvaluationError otherwise."""
    if INT_MIN <= value <= INT_MAX:
        return value
    raise EvaluationError("integer overflow")


def checked_uint(value: int) -> Uint:
    if 0 <= value <= UINT_MAX:
        return Uint(value)
    raise EvaluationError("unsigned integer overflow")


def checked_duration(nanos: int) -> Duration:
    """The result of arithmetic, which must fit 64 bits of nanoseconds (292 years); longer ones can be written."""
    if INT_MIN <= nanos <= INT_MAX:
        return Duration(nanos)
    raise EvaluationError("duration overflow")


def long_duration(nanos: int) -> Duration:
    """A duration as it is written or sent: up to ten thousand years."""
    if -DURATION_MAX <= nanos <= DURATION_MAX:
        return Duration(nanos)
    raise EvaluationError("duration out of range")


def checked_timestamp(nanos: int) -> Timestamp:
    if TIMESTAMP_MIN <= nanos <= TIMESTAMP_MAX:
        return Timestamp(nanos)
    raise EvaluationError("timestamp overflow")


@OPERATORS.declare("_+_(int, int) -> int")
def add_int(left: int, right: int) -> int:
    return checked_int(left + right)


@OPERATORS.declare("_+_(uint, uint) -> uint")
def add_uint(left: int, right: int) -> Uint:
    return checked_uint(int(left) + int(right))


@OPERATORS.declare(
    "_+_(double, double) -> double",
    "_+_(string, string) -> string",
    "_+_(bytes, bytes) -> bytes",
    "_+_(list(A), list(A)) -> list(A)",
)
def add_plain(left: Any, right: Any) -> Any:
    return left + right


@OPERATORS.declare("_+_(timestamp, duration) -> timestamp", "_+_(duration, timestamp) -> timestamp")
def add_timestamp(left: Any, right: Any) -> Timestamp:
    return checked_timestamp(left.nanos + right.nanos)


@OPERATORS.declare("_+_(duration, duration) -> duration")
def add_duration(left: Duration, right: Duration) -> Duration:
    return checked_duration(left.nanos + right.nanos)


@OPERATORS.declare("_-_(int, int) -> int")
def subtract_int(left: int, right: int) -> int:
    return checked_int(left - right)


@OPERATORS.declare("_-_(uint, uint) -> uint")
def subtract_uint(left: int, right: int) -> Uint:
    return checked_uint(int(left) - int(right))


@OPERATORS.declare("_-_(double, double) -> double")
def subtract_double(left: float, right: float) -> float:
    return left - right


@OPERATORS.declare("_-_(timestamp, duration) -> timestamp")
def subtract_from_timestamp(left: Timestamp, right: Duration) -> Timestamp:
    return checked_timestamp(left.nanos - right.nanos)


@OPERATORS.declare("_-_(timestamp, timestamp) -> duration", "_-_(duration, duration) -> duration")
def subtract_to_duration(left: Any, right: Any) -> Duration:
    return checked_duration(left.nanos - right.nanos)


@OPERATORS.declare("_*_(int, int) -> int")
def multiply_int(left: int, right: int) -> int:
    return checked_int(left * right)


@OPERATORS.declare("_*_(uint, uint) -> uint")
def multiply_uint(left: int, right: int) -> Uint:
    return checked_uint(int(left) * int(right))


@OPERATORS.declare("_*_(double, double) -> double")
def multiply_double(left: float, right: float) -> float:
    return left * right


@OPERATORS.declare("_/_(int, int) -> int")
def divide_int(left: int, right: int) -> int:
    """Truncates toward zero."""
    if right == 0:
        raise EvaluationError("division by zero")
    quotient = abs(left) // abs(right)
    return checked_int(quotient if (left < 0) == (right < 0) else -quotient)


@OPERATORS.declare("_/_(uint, uint) -> uint")
def divide_uint(left: int, right: int) -> Uint:
    if right == 0:
        raise EvaluationError("division by zero")
    return Uint(int(left) // int(right))


@OPERATORS.declare("_/_(double, double) -> double")
def divide_double(left: float, right: float) -> float:
    if right != 0.0:
        return left / right
    if left == 0.0 or math.isnan(left):
        return math.nan
    return math.copysign(math.inf, left) * math.copysign(1.0, right)


@OPERATORS.declare("_%_(int, int) -> int")
def modulo_int(left: int, right: int) -> int:
    """The sign is that of the dividend."""
    if right == 0:
        raise EvaluationError("modulus by zero")
    if left == INT_MIN and right == -1:
        raise EvaluationError("integer overflow")  # as the division has no result
    remainder = abs(left) % abs(right)
    return -remainder if left < 0 else remainder


@OPERATORS.declare("_%_(uint, uint) -> uint")
def modulo_uint(left: int, right: int) -> Uint:
    if right == 0:
        raise EvaluationError("modulus by zero")
    return Uint(int(left) % int(right))


@OPERATORS.declare("-_(int) -> int")
def negate_int(value: int) -> int:
    return checked_int(-value)


@OPERATORS.declare("-_(double) -> double")
def negate_double(value: float) -> float:
    return -value


@OPERATORS.declare("!_(bool) -> bool")
def logical_not(value: bool) -> bool:
    return not value


_ORDERED = ("bool", "int", "uint", "double", "string", "bytes", "timestamp", "duration")
_CROSSED = [(left, right) for left in _ORDERED[1:4] for right in _ORDERED[1:4] if left != right]


def _ordering(operator: str) -> list[str]:
    pairs = [(kind, kind) for kind in _ORDERED] + _CROSSED
    return [f"_{operator}_({left}, {right}) -> bool" for left, right in pairs]


OPERATORS.declare(*_ordering("<"))(less)
OPERATORS.declare(*_ordering("<="))(less_equal)
OPERATORS.declare(*_ordering(">"))(greater)
OPERATORS.declare(*_ordering(">="))(greater_equal)
# Statically, both sides must have a type in common; behind dyn, numbers of different types are equal by value.
OPERATORS.declare("_==_(A, A) -> bool")(equal)


@OPERATORS.declare("_!=_(A, A) -> bool")
def not_equal(left: object, right: object) -> bool:
    return not equal(left, right)


OPERATORS.declare("@in(A, list(A)) -> bool", "@in(A, map(A, B)) -> bool")(contains)
OPERATORS.declare("_[_](list(A), int) -> A", "_[_](map(A, B), A) -> B")(index)
