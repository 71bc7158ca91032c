"""Kubernetes quantities (`100m`, `1.5Gi`, `2e3`) as exact numbers.

The grammar is that of `resource.Quantity`: a signed decimal number followed by a binary SI suffix (Ki … Ei), a decimal
SI suffix (n, u, m, none, k, M … E) or a decimal exponent. Values are rounded up, away from zero, to the nano unit.
"""

from __future__ import annotations

import re
from decimal import ROUND_UP, Decimal
from functools import lru_cache

_GRAMMAR = re.compile(
    r"([+-]?(?:[0-9]+(?:\.[0-9]*)?|\.[0-9]+))(?:([eE][+-]?[0-9]{1,3})|(Ki|Mi|Gi|Ti|Pi|Ei|[numkMGTPE]))?"
)
_SCALE = {
    "n": Decimal("1e-9"),
    "u": Decimal("1e-6"),
    "m": Decimal("1e-3"),
    "k": Decimal(10) ** 3,
    "M": Decimal(10) ** 6,
    "G": Decimal(10) ** 9,
    "T": Decimal(10) ** 12,
    "P": Decimal(10) ** 15,
    "E": Decimal(10) ** 18,
    "Ki": Decimal(1024),
    "Mi": Decimal(1024) ** 2,
    "Gi": Decimal(1024) ** 3,
    "Ti": Decimal(1024) ** 4,
    "Pi": Decimal(1024) ** 5,
    "Ei": Decimal(1024) ** 6,
}
_NANO = Decimal("1e-9")
_MAX_LENGTH = 64


class InvalidQuantity(ValueError):
    """{text!r} is not a quantity; write a number with an optional suffix such as m, k, M, G, Ki, Mi or Gi"""

    def __init__(self, text: object) -> None:
        super().__init__(
            f"{text!r} is not a quantity; write a number with an optional suffix such as m, k, M, G, Ki, Mi or Gi"
        )


@lru_cache(maxsize=8192)
def _parse_text(text: str) -> Decimal:
    match = _GRAMMAR.fullmatch(text) if len(text) <= _MAX_LENGTH else None
    if match is None:
        raise InvalidQuantity(text)
    number, exponent, suffix = match.groups()
    value = Decimal(number + exponent) if exponent else Decimal(number) * _SCALE[suffix] if suffix else Decimal(number)
    return value if value == value.to_integral_value() else value.quantize(_NANO, rounding=ROUND_UP)


def parse(value: str | int | float | None) -> Decimal:
    """The exact value of a quantity; 0 for None. Raises InvalidQuantity, also for NaN and infinities."""
    if value is None:
        return Decimal(0)
    if isinstance(value, bool):
        raise InvalidQuantity(value)
    if isinstance(value, int):
        return Decimal(value)
    return _parse_text(value if isinstance(value, str) else repr(value))


def whole(value: str | int | float | None) -> int:
    """The value in whole units, rounded up (bytes, pods, devices)."""
    exact = parse(value)
    return int(exact.to_integral_value(rounding=ROUND_UP))


def milli(value: str | int | float | None) -> int:
    """The value in thousandths, rounded up (CPU millicores)."""
    return int((parse(value) * 1000).to_integral_value(rounding=ROUND_UP))


def render(value: Decimal | int) -> str:
    """A short exact text: whole numbers with the largest dividing suffix from Mi on, fractions in m, u or n."""
    exact = Decimal(value)
    if exact == exact.to_integral_value():
        number = int(exact)
        for suffix in ("Ei", "Pi", "Ti", "Gi", "Mi"):
            scale = int(_SCALE[suffix])
            if number and number % scale == 0:
                return f"{number // scale}{suffix}"
        return str(number)
    for suffix in ("m", "u", "n"):
        scaled = exact / _SCALE[suffix]
        if scaled == scaled.to_integral_value():
            return f"{int(scaled)}{suffix}"
    return f"{int((exact / _SCALE['n']).to_integral_value(rounding=ROUND_UP))}n"


_BINARY = ("Ei", "Pi", "Ti", "Gi", "Mi", "Ki")
_DECIMAL = (("E", 18), ("P", 15), ("T", 12), ("G", 9), ("M", 6), ("k", 3), ("", 0), ("m", -3), ("u", -6), ("n", -9))


@lru_cache(maxsize=8192)
def canonical(value: str | int | float) -> str:
    """The text the API server answers with: the same family of suffixes, the largest one that leaves a whole number.

    `1000m` is `1`, `0.5` is `500m`, `1024Mi` is `1Gi`, `1e3` stays `1e3`. Raises InvalidQuantity.
    """
    exact = parse(value)
    text = str(value)
    if text.endswith("i") and abs(exact) >= 1024:
        number = int(exact.to_integral_value(rounding=ROUND_UP))
        for suffix in _BINARY:
            if number % int(_SCALE[suffix]) == 0:
                return f"{number // int(_SCALE[suffix])}{suffix}"
        return str(number)
    by_exponent = text[-1:].isdigit() and ("e" in text or "E" in text)
    for suffix, power in _DECIMAL:
        scaled = exact.scaleb(-power)
        if scaled == scaled.to_integral_value():
            if not exact:
                return "0"
            return f"{int(scaled)}e{power}" if by_exponent and power else f"{int(scaled)}{suffix}"
    return f"{int((exact / _NANO).to_integral_value(rounding=ROUND_UP))}n"
