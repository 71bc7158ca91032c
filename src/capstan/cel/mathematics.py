"""The math extension: extremes over mixed numbers, rounding, bits."""

from __future__ import annotations

import math
from typing import Any, Final

from capstan.cel.errors import EvaluationError
from capstan.cel.library import Library
from capstan.cel.operators import checked_int
from capstan.cel.values import NUMBERS, UINT_MAX, Uint, no_such_overload

MATH: Final = Library("math")

_KINDS: Final = ("int", "uint", "double")
VARIADIC: Final = frozenset(("math.greatest", "math.least"))
"""Macros in the specification: three arguments and more count as one list of them."""


def _extreme(name: str) -> list[str]:
    """One list, one number, or two: the same type in and out, dyn for mixtures."""
    pairs = [(left, right) for left in _KINDS for right in _KINDS]
    return [
        *(f"math.{name}(list({kind})) -> {kind}" for kind in _KINDS),
        *(f"math.{name}({kind}) -> {kind}" for kind in _KINDS),
        *(f"math.{name}({left}, {right}) -> {left if left == right else 'dyn'}" for left, right in pairs),
    ]


def _numbers(name: str, args: tuple[Any, ...]) -> list[Any]:
    numbers = list(args[0] if len(args) == 1 and isinstance(args[0], (list, tuple)) else args)
    if not numbers or not all(type(number) in NUMBERS for number in numbers):
        raise no_such_overload(name, *args)
    return numbers


@MATH.declare(*_extreme("greatest"))
def greatest(*args: Any) -> Any:
    """The first of the largest numbers, of its own type."""
    return max(_numbers("math.greatest", args))


@MATH.declare(*_extreme("least"))
def least(*args: Any) -> Any:
    return min(_numbers("math.least", args))


@MATH.declare("math.ceil(double) -> double")
def ceil(value: float) -> float:
    return math.copysign(float(math.ceil(value)), value) if math.isfinite(value) else value


@MATH.declare("math.floor(double) -> double")
def floor(value: float) -> float:
    return math.copysign(float(math.floor(value)), value) if math.isfinite(value) else value


@MATH.declare("math.round(double) -> double")
def round_(value: float) -> float:
    """To the nearest integer, halves away from zero."""
    if not math.isfinite(value):
        return value
    whole = math.trunc(value)
    away = abs(value - whole) >= 0.5
    return math.copysign(float(abs(whole) + away), value)


@MATH.declare("math.trunc(double) -> double")
def trunc(value: float) -> float:
    return math.copysign(float(math.trunc(value)), value) if math.isfinite(value) else value


@MATH.declare("math.isNaN(double) -> bool")
def is_nan(value: float) -> bool:
    return math.isnan(value)


@MATH.declare("math.isInf(double) -> bool")
def is_inf(value: float) -> bool:
    return math.isinf(value)


@MATH.declare("math.isFinite(double) -> bool")
def is_finite(value: float) -> bool:
    return math.isfinite(value)


@MATH.declare("math.abs(int) -> int")
def abs_int(value: int) -> int:
    return checked_int(abs(value))


@MATH.declare("math.abs(double) -> double")
def abs_double(value: float) -> float:
    return abs(value)


@MATH.declare("math.abs(uint) -> uint")
def abs_uint(value: Uint) -> Uint:
    return value


@MATH.declare("math.sign(int) -> int")
def sign_int(value: int) -> int:
    return int(value > 0) - int(value < 0)


@MATH.declare("math.sign(uint) -> uint")
def sign_uint(value: Uint) -> Uint:
    return Uint(value > 0)


@MATH.declare("math.sign(double) -> double")
def sign_double(value: float) -> float:
    return value if math.isnan(value) else float(int(value > 0) - int(value < 0))


@MATH.declare("math.sqrt(double) -> double", "math.sqrt(int) -> double", "math.sqrt(uint) -> double")
def sqrt(value: float) -> float:
    return math.sqrt(value) if value >= 0 else math.nan


def _like(sample: int, bits: int) -> Any:
    """64 bits read as a signed number, or as an unsigned one where the sample is."""
    bits &= UINT_MAX
    if type(sample) is Uint:
        return Uint(bits)
    return bits - 2**64 if bits >> 63 else bits


@MATH.declare("math.bitAnd(int, int) -> int", "math.bitAnd(uint, uint) -> uint")
def bit_and(left: int, right: int) -> Any:
    return _like(left, int(left) & int(right))


@MATH.declare("math.bitOr(int, int) -> int", "math.bitOr(uint, uint) -> uint")
def bit_or(left: int, right: int) -> Any:
    return _like(left, int(left) | int(right))


@MATH.declare("math.bitXor(int, int) -> int", "math.bitXor(uint, uint) -> uint")
def bit_xor(left: int, right: int) -> Any:
    return _like(left, int(left) ^ int(right))


@MATH.declare("math.bitNot(int) -> int", "math.bitNot(uint) -> uint")
def bit_not(value: int) -> Any:
    return _like(value, ~int(value))


@MATH.declare("math.bitShiftLeft(int, int) -> int", "math.bitShiftLeft(uint, int) -> uint")
def bit_shift_left(value: int, count: int) -> Any:
    if count < 0:
        raise EvaluationError(f"math.bitShiftLeft() negative offset: {count}")
    return _like(value, int(value) << count) if count < 64 else _like(value, 0)


@MATH.declare("math.bitShiftRight(int, int) -> int", "math.bitShiftRight(uint, int) -> uint")
def bit_shift_right(value: int, count: int) -> Any:
    """Logical: zeros come in from the left, for negative numbers too."""
    if count < 0:
        raise EvaluationError(f"math.bitShiftRight() negative offset: {count}")
    return _like(value, (int(value) & UINT_MAX) >> count) if count < 64 else _like(value, 0)
