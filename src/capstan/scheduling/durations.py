"""Durations as KAI's fields and annotations carry them: Go's (`1h30m`, `600s`), and Prometheus' days, weeks, years."""

from __future__ import annotations

import re

_UNITS = {"ns": 1e-9, "us": 1e-6, "µs": 1e-6, "ms": 1e-3, "s": 1.0, "m": 60.0, "h": 3600.0}
_UNITS |= {"d": 86_400.0, "w": 604_800.0, "y": 31_536_000.0}
_PART = re.compile(r"(\d+(?:\.\d*)?|\.\d+)(ns|us|µs|ms|s|m|h|d|w|y)")


def seconds(text: str) -> float:
    """Seconds of a duration. Raises ValueError when it is malformed."""
    sign, rest = (-1.0, text[1:]) if text.startswith("-") else (1.0, text.removeprefix("+"))
    if rest == "0":
        return 0.0
    parts = _PART.findall(rest)
    if not parts or "".join(number + unit for number, unit in parts) != rest:
        raise ValueError(f"{text!r} is not a duration; write for example 90s, 10m or 1h30m")
    return sign * sum(float(number) * _UNITS[unit] for number, unit in parts)


def positive(text: str, name: str) -> float:
    """Seconds of the duration that an annotation or field gives. Raises ValueError, naming it, unless it is above 0."""
    try:
        value = seconds(text)
    except ValueError as malformed:
        raise ValueError(f"{name}: {malformed}") from malformed
    if value <= 0:
        raise ValueError(f"{name}: {text!r} is not above 0; leave it out for none")
    return value
