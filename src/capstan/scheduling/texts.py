"""Settings are texts: here they become values, and what cannot is noted and replaced."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass

from capstan.scheduling import durations
from capstan.scheduling.policy import Placement

LONGEST = 1e10
"""Seconds, some three hundred years: every longer time is as good as this one."""
_TRUE, _FALSE = ("1", "t", "T", "TRUE", "true", "True"), ("0", "f", "F", "FALSE", "false", "False")
"""As Go reads flags."""


@dataclass(frozen=True, slots=True)
class Problem:
    """`field` is the path of the value that is not used, `message` what is wrong and what holds instead."""

    field: str
    message: str
    unknown: bool = False
    """Whether the name means nothing here, whatever its value."""


class Reader:
    """Turns texts into values; what cannot be is noted and replaced."""

    def __init__(self) -> None:
        self.problems: list[Problem] = []

    def refuse(self, field: str, message: str) -> None:
        self.problems.append(Problem(field, message))

    def pass_over(self, field: str, message: str = "is not known; it changes nothing") -> None:
        self.problems.append(Problem(field, message, unknown=True))

    def duration(self, field: str, text: str, default: float, *, lowest: float = 0.0) -> float:
        if not text:
            return default
        try:
            value = durations.seconds(text)
        except ValueError as malformed:
            self.refuse(field, f"{malformed}; {default:g}s is used")
            return default
        if value < lowest:
            self.refuse(field, f"{text} is less than {lowest:g}s; {default:g}s is used")
            return default
        return min(value, LONGEST)

    def number(self, field: str, text: str, default: float, *, lowest: float) -> float:
        try:
            value = float(text)
        except ValueError:
            value = math.nan
        if math.isfinite(value) and value >= lowest:
            return value
        self.refuse(field, f"{text!r} is no number of at least {lowest:g}; {default:g} is used")
        return default

    def integer(self, field: str, text: str, default: int, *, lowest: int) -> int:
        if re.fullmatch(r"-?\d{1,9}", text) and int(text) >= lowest:
            return int(text)
        self.refuse(field, f"{text!r} is no whole number of at least {lowest}; {default} is used")
        return default

    def boolean(self, field: str, text: str, default: bool) -> bool:
        if text in _TRUE or text in _FALSE:
            return text in _TRUE
        self.refuse(field, f"{text!r} is neither true nor false; {str(default).lower()} is used")
        return default

    def placement(self, field: str, text: str, default: Placement) -> Placement:
        if text == "binpack":
            return "binpack"
        if text == "spread":
            return "spread"
        if text:
            self.refuse(field, f"{text!r} is neither binpack nor spread; {default} is used")
        return default

    def pairs(self, field: str, text: str) -> tuple[tuple[str, str], ...]:
        found = []
        for part in filter(None, (part.strip() for part in text.split(","))):
            key, equals, value = part.partition("=")
            if not equals or not key.strip() or not value.strip():
                self.refuse(field, f"{part!r} is not of the form key=value; it is left out")
                continue
            found.append((key.strip(), value.strip()))
        return tuple(found)
