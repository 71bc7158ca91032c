"""Optional values: `optional.of`, `optional.none`, `or`, `orValue` and their kin."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from capstan.cel.errors import EvaluationError
from capstan.cel.library import Library
from capstan.cel.values import NONE, Duration, Optional, Timestamp, no_such_overload

OPTIONALS = Library("optional")


@OPTIONALS.declare("optional.of(A) -> optional(A)")
def of(value: object) -> Optional:
    return Optional(value)


@OPTIONALS.declare("optional.none() -> optional(A)")
def none() -> Optional:
    return NONE


@OPTIONALS.declare("optional.ofNonZeroValue(A) -> optional(A)")
def of_non_zero_value(value: object) -> Optional:
    """Empty for null, false, 0, empty text and containers, the epoch and the zero duration."""
    if isinstance(value, Duration):
        return Optional(value) if value.nanos else NONE
    if isinstance(value, Timestamp):
        return Optional(value) if value.nanos else NONE
    return Optional(value) if value else NONE


@OPTIONALS.declare("<optional(A)>.hasValue() -> bool")
def has_value(optional: Optional) -> bool:
    return optional is not NONE


@OPTIONALS.declare("<optional(A)>.value() -> A")
def value(optional: Optional) -> Any:
    if optional is NONE:
        raise EvaluationError("optional.none() dereference")
    return optional.value


@OPTIONALS.declare("<optional(A)>.or(optional(A)) -> optional(A)")
def or_other(optional: Optional, other: Optional) -> Optional:
    return other if optional is NONE else optional


@OPTIONALS.declare("<optional(A)>.orValue(A) -> A")
def or_value(optional: Optional, default: object) -> Any:
    return default if optional is NONE else optional.value


@OPTIONALS.declare("<list(optional(A))>.unwrapOpt() -> list(A)", "optional.unwrap(list(optional(A))) -> list(A)")
def unwrap(optionals: list[Any]) -> list[Any]:
    """The values that are there, in order."""
    if not all(isinstance(each, Optional) for each in optionals):
        raise EvaluationError("no such overload: unwrap of a list with elements that are not optional")
    return [each.value for each in optionals if each is not NONE]


# What the generator uses: arguments that are evaluated only when they are needed, and optional entries of literals


def or_lazily(optional: Any, other: Callable[[], Any]) -> Any:
    if type(optional) is not Optional:
        raise no_such_overload("or", optional)
    if optional is not NONE:
        return optional
    result = other()
    if type(result) is not Optional:
        raise no_such_overload("or", optional, result)
    return result


def or_value_lazily(optional: Any, default: Callable[[], Any]) -> Any:
    if type(optional) is not Optional:
        raise no_such_overload("orValue", optional)
    return default() if optional is NONE else optional.value


def optional_map(optional: Any, body: Callable[[Any], Any]) -> Any:
    if type(optional) is not Optional:
        raise no_such_overload("optMap", optional)
    return NONE if optional is NONE else Optional(body(optional.value))


def optional_flat_map(optional: Any, body: Callable[[Any], Any]) -> Any:
    if type(optional) is not Optional:
        raise no_such_overload("optFlatMap", optional)
    return NONE if optional is NONE else body(optional.value)


def optional_items(optional: Any) -> tuple[Any, ...]:
    """`[?x]`: nothing, or the value."""
    if type(optional) is not Optional:
        raise no_such_overload("[?]", optional)
    return () if optional is NONE else (optional.value,)


def optional_entry(key: Any, optional: Any) -> tuple[tuple[Any, Any], ...]:
    """`{?k: v}`: nothing, or the entry."""
    if type(optional) is not Optional:
        raise no_such_overload("{?}", optional)
    return () if optional is NONE else ((key, optional.value),)
