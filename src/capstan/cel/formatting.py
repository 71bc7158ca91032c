"""`string.format`: %s %d %f %e %b %o %x %X and %%, with a precision for %f and %e (default 6)."""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from decimal import Decimal
from typing import Any, Final

from capstan.cel.errors import EvaluationError
from capstan.cel.library import Library
from capstan.cel.times import string_from_timestamp
from capstan.cel.values import Duration, Timestamp, TypeValue, Uint, type_name

FORMATTING: Final = Library("string formatting")

MAX_PRECISION: Final = 100

# What decoding makes of a byte that is no UTF-8.
_INVALID = re.compile("[\udc80-\udcff]+")
_CLAUSE = re.compile(r"%(?:\.([0-9]{1,9}))?(.?)", re.DOTALL)


@FORMATTING.declare("<string>.format(list(dyn)) -> string")
def format_text(template: str, arguments: list[Any]) -> str:
    """Raises EvaluationError for an unknown clause, a missing argument, or one of the wrong type."""
    used = 0
    pieces: list[str] = []
    last = 0
    for match in _CLAUSE.finditer(template):
        pieces.append(template[last : match.start()])
        last = match.end()
        precision, clause = match.groups()
        if clause == "%" and precision is None:
            pieces.append("%")
            continue
        if used >= len(arguments):
            raise EvaluationError(f"index {used} out of range")
        if clause not in _CLAUSES:
            raise EvaluationError(f'could not parse formatting clause: unrecognized formatting clause "{clause}"')
        if precision is not None and int(precision) > MAX_PRECISION:
            raise EvaluationError(f"could not parse formatting clause: precision {precision} exceeds {MAX_PRECISION}")
        pieces.append(_CLAUSES[clause](arguments[used], 6 if precision is None else int(precision)))
        used += 1
    pieces.append(template[last:])
    return "".join(pieces)


def _wrong(clause: str, kinds: str, value: object) -> EvaluationError:
    return EvaluationError(
        f"error during formatting: {clause} clause can only be used on {kinds}, was given {type_name(value)}"
    )


def _special(value: float) -> str | None:
    if math.isfinite(value):
        return None
    return "NaN" if math.isnan(value) else "Infinity" if value > 0 else "-Infinity"


def _string(value: Any, _: int = 0) -> str:
    kind = type(value)
    if kind is str:
        return str(value)
    if value is None:
        return "null"
    if kind is bool:
        return "true" if value else "false"
    if kind in (int, Uint):
        return str(int(value))
    if kind is float:
        return _special(value) or format(Decimal(repr(value)).normalize(), "f")
    if kind is bytes:
        return _INVALID.sub("\ufffd", value.decode(errors="surrogateescape"))
    if kind is TypeValue:
        return str(value.name)
    if kind is Timestamp:
        return string_from_timestamp(value)
    if kind is Duration:
        return str(value)
    if isinstance(value, (list, tuple)):
        return f"[{', '.join(map(_string, value))}]"
    if isinstance(value, dict):
        entries = sorted((_string(key), _string(item)) for key, item in value.items())
        return f"{{{', '.join(f'{key}: {item}' for key, item in entries)}}}"
    kinds = "strings, bools, bytes, ints, doubles, maps, lists, types, durations, and timestamps"
    raise _wrong("string", kinds, value)


def _decimal(value: Any, _: int) -> str:
    if type(value) in (int, Uint):
        return str(int(value))
    if type(value) is float:
        return _string(value)
    raise _wrong("decimal", "integers and doubles", value)


def _number(clause: str, value: Any) -> float | str:
    if type(value) in (int, Uint, float):
        return _special(float(value)) or float(value)
    if value in ("NaN", "Infinity", "-Infinity"):
        return str(value)
    raise _wrong(clause, "doubles", value)


def _fixed(value: Any, precision: int) -> str:
    number = _number("fixed-point", value)
    return number if isinstance(number, str) else f"{number:.{precision}f}"


def _scientific(value: Any, precision: int) -> str:
    number = _number("scientific", value)
    return number if isinstance(number, str) else f"{number:.{precision}e}"


def _binary(value: Any, _: int) -> str:
    if type(value) in (int, Uint, bool):
        return format(int(value), "b")
    raise _wrong("binary", "integers and bools", value)


def _octal(value: Any, _: int) -> str:
    if type(value) in (int, Uint):
        return format(int(value), "o")
    raise _wrong("octal", "integers", value)


def _hexadecimal(value: Any, _: int) -> str:
    if type(value) in (int, Uint):
        return format(int(value), "x")
    if type(value) is str:
        return str(value.encode().hex())
    if type(value) is bytes:
        return value.hex()
    raise _wrong("hex", "integers, byte buffers, and strings", value)


def _upper_hexadecimal(value: Any, precision: int) -> str:
    return _hexadecimal(value, precision).upper()


_CLAUSES: Final[dict[str, Callable[[Any, int], str]]] = {
    "s": _string,
    "d": _decimal,
    "f": _fixed,
    "e": _scientific,
    "b": _binary,
    "o": _octal,
    "x": _hexadecimal,
    "X": _upper_hexadecimal,
}
