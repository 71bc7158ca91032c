"""The Kubernetes libraries for quantities and semantic versions. A quantity is a Decimal, exact to the nano unit."""

from __future__ import annotations

import re
from decimal import ROUND_UP, Context, Decimal
from functools import lru_cache, total_ordering
from typing import Any, Final

from capstan.cel.errors import EvaluationError
from capstan.cel.library import Library
from capstan.cel.values import INT_MAX, INT_MIN, UINT_MAX, register_type

QUANTITIES = Library("quantity")
SEMVERS = Library("semver")

_QUANTITY = re.compile(
    r"([+-]?(?:[0-9]+(?:\.[0-9]*)?|\.[0-9]+))(?:([eE][+-]?[0-9]{1,3})|(Ki|Mi|Gi|Ti|Pi|Ei|[numkMGTPE]))?"
)
_SCALE = {name: Decimal(1024) ** power for power, name in enumerate(("Ki", "Mi", "Gi", "Ti", "Pi", "Ei"), 1)} | {
    name: Decimal(10) ** power
    for name, power in (("n", -9), ("u", -6), ("m", -3), ("k", 3), ("M", 6), ("G", 9), ("T", 12), ("P", 15), ("E", 18))
}
_NANO: Final = Decimal("1e-9")
_EXACT: Final = Context(prec=1200)  # an exponent has at most three digits, so sums and products stay exact


@lru_cache(maxsize=4096)
def parse_quantity(text: str) -> Decimal | None:
    """The exact value of a quantity, rounded up to the nano unit; None when the text is not one."""
    match = _QUANTITY.fullmatch(text) if len(text) <= 128 else None
    if match is None:
        return None
    number, exponent, suffix = match.groups()
    value = Decimal(number + (exponent or ""))
    if suffix:
        value = _EXACT.multiply(value, _SCALE[suffix])
    return value if value == value.to_integral_value(context=_EXACT) else value.quantize(_NANO, ROUND_UP, _EXACT)


@QUANTITIES.declare("quantity(string) -> kubernetes.Quantity")
def quantity(text: str) -> Decimal:
    value = parse_quantity(text)
    if value is None:
        raise EvaluationError(
            "quantities must match the regular expression '^([+-]?[0-9.]+)([eEinumkKMGTP]*[-+]?[0-9]*)$'"
        )
    return value


@QUANTITIES.declare("isQuantity(string) -> bool")
def is_quantity(text: str) -> bool:
    return parse_quantity(text) is not None


# Upstream documents a method and declares a function.
@QUANTITIES.declare("<kubernetes.Quantity>.sign() -> int", "sign(kubernetes.Quantity) -> int")
def sign(value: Decimal) -> int:
    return (value > 0) - (value < 0)


@QUANTITIES.declare("<kubernetes.Quantity>.isInteger() -> bool")
def is_integer(value: Decimal) -> bool:
    return value == value.to_integral_value(context=_EXACT) and INT_MIN <= value <= INT_MAX


@QUANTITIES.declare("<kubernetes.Quantity>.asInteger() -> int")
def as_integer(value: Decimal) -> int:
    if not is_integer(value):
        raise EvaluationError("cannot convert value to integer")
    return int(value)


@QUANTITIES.declare("<kubernetes.Quantity>.asApproximateFloat() -> double")
def as_approximate_float(value: Decimal) -> float:
    return float(value)


@QUANTITIES.declare("<kubernetes.Quantity>.add(kubernetes.Quantity) -> kubernetes.Quantity")
def add(left: Decimal, right: Decimal) -> Decimal:
    return _EXACT.add(left, right)


@QUANTITIES.declare("<kubernetes.Quantity>.add(int) -> kubernetes.Quantity")
def add_integer(left: Decimal, right: int) -> Decimal:
    return _EXACT.add(left, Decimal(right))


@QUANTITIES.declare("<kubernetes.Quantity>.sub(kubernetes.Quantity) -> kubernetes.Quantity")
def subtract(left: Decimal, right: Decimal) -> Decimal:
    return _EXACT.subtract(left, right)


@QUANTITIES.declare("<kubernetes.Quantity>.sub(int) -> kubernetes.Quantity")
def subtract_integer(left: Decimal, right: int) -> Decimal:
    return _EXACT.subtract(left, Decimal(right))


@QUANTITIES.declare("<kubernetes.Quantity>.isGreaterThan(kubernetes.Quantity) -> bool")
@SEMVERS.declare("<kubernetes.Semver>.isGreaterThan(kubernetes.Semver) -> bool")
def is_greater_than(left: Any, right: Any) -> bool:
    return bool(left > right)


@QUANTITIES.declare("<kubernetes.Quantity>.isLessThan(kubernetes.Quantity) -> bool")
@SEMVERS.declare("<kubernetes.Semver>.isLessThan(kubernetes.Semver) -> bool")
def is_less_than(left: Any, right: Any) -> bool:
    return bool(left < right)


@QUANTITIES.declare("<kubernetes.Quantity>.compareTo(kubernetes.Quantity) -> int")
@SEMVERS.declare("<kubernetes.Semver>.compareTo(kubernetes.Semver) -> int")
def compare_to(left: Any, right: Any) -> int:
    return int(left > right) - int(left < right)


_NUMBER = r"(0|[1-9][0-9]{0,19})"
_SEMVER = re.compile(
    rf"{_NUMBER}\.{_NUMBER}\.{_NUMBER}"
    r"(?:-((?:0|[1-9][0-9]*|[0-9]*[a-zA-Z-][0-9a-zA-Z-]*)(?:\.(?:0|[1-9][0-9]*|[0-9]*[a-zA-Z-][0-9a-zA-Z-]*))*))?"
    r"(?:\+([0-9a-zA-Z-]+(?:\.[0-9a-zA-Z-]+)*))?"
)


@total_ordering
class Semver:
    """A semantic version. Build metadata takes no part in equality or order (semver.org 2.0.0, item 10)."""

    __slots__ = ("key", "text")

    def __init__(self, major: int, minor: int, patch: int, prerelease: str = "", text: str = "") -> None:
        # A release comes after all its prereleases; numeric identifiers before others, numerically (item 11).
        identifiers = tuple(
            (0, int(part), "") if part.isdigit() else (1, 0, part) for part in prerelease.split(".") if prerelease
        )
        self.key = (major, minor, patch, not prerelease, identifiers)
        self.text = text or f"{major}.{minor}.{patch}" + (f"-{prerelease}" if prerelease else "")

    @classmethod
    def parse(cls, text: str, *, normalize: bool = False) -> Semver:
        """Raises EvaluationError when the text is no semantic version (with `normalize`: after repairing it)."""
        version = parse_semver(text, normalize)
        if version is None:
            raise EvaluationError(f"invalid semver: {text[:64]!r}")
        return version

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Semver) and self.key == other.key

    def __lt__(self, other: Semver) -> bool:
        return self.key < other.key

    def __gt__(self, other: Semver) -> bool:
        return self.key > other.key

    def __hash__(self) -> int:
        return hash(self.key)

    def __repr__(self) -> str:
        return f"Semver({self.text})"

    def __str__(self) -> str:
        return self.text


register_type("kubernetes.Semver", Semver)


@lru_cache(maxsize=4096)
def parse_semver(text: str, normalize: bool = False) -> Semver | None:
    """The version, or None; `normalize` repairs what is nearly one."""
    if len(text) > 256:
        return None
    if normalize:
        text = _normalized(text)
    match = _SEMVER.fullmatch(text)
    if match is None:
        return None
    major, minor, patch, prerelease, _ = match.groups()
    numbers = [major, minor, patch, *filter(str.isdigit, (prerelease or "").split("."))]
    if any(int(number) > UINT_MAX for number in numbers):
        return None
    return Semver(int(major), int(minor), int(patch), prerelease or "", text)


def _normalized(text: str) -> str:
    """What upstream tries to parse: without `v` and zeros in front, and with three numbers. Only a version that has all
    three may carry more than numbers."""
    parts = text.removeprefix("v").split(".", 2)
    parts = [re.sub(r"^0+(?=[0-9])", "", part) for part in parts]
    if len(parts) < 3 and re.search(r"[-+]", parts[-1]):
        return ""
    return ".".join(parts + ["0"] * (3 - len(parts)))


@SEMVERS.declare("semver(string) -> kubernetes.Semver", "semver(string, bool) -> kubernetes.Semver")
def semver(text: str, normalize: bool = False) -> Semver:
    return Semver.parse(text, normalize=normalize)


@SEMVERS.declare("isSemver(string) -> bool", "isSemver(string, bool) -> bool")
def is_semver(text: str, normalize: bool = False) -> bool:
    return parse_semver(text, normalize) is not None


@SEMVERS.declare("<kubernetes.Semver>.major() -> int")
def major(version: Semver) -> int:
    return version.key[0]


@SEMVERS.declare("<kubernetes.Semver>.minor() -> int")
def minor(version: Semver) -> int:
    return version.key[1]


@SEMVERS.declare("<kubernetes.Semver>.patch() -> int")
def patch(version: Semver) -> int:
    return version.key[2]
