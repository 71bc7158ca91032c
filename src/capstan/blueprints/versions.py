"""Semantic versions (semver.org 2.0.0) and ranges like `>=1.34 <1.37`."""

from __future__ import annotations

import re
from typing import NamedTuple

_VERSION = re.compile(
    r"v?(0|[1-9]\d*)\.(0|[1-9]\d*)\.(0|[1-9]\d*)(?:-([0-9A-Za-z-]+(?:\.[0-9A-Za-z-]+)*))?(?:\+[0-9A-Za-z.-]+)?"
)
_LOOSE = re.compile(r"v?(\d+)(?:\.(\d+))?(?:\.(\d+))?(?:[-+.].*)?")
_TERM = re.compile(r"(>=|<=|>|<|==?|!=)?\s*v?(\d+(?:\.\d+){0,2})")


class Version(NamedTuple):
    """Ordered as semver says: a pre-release precedes its release; numeric identifiers precede words."""

    major: int
    minor: int
    patch: int
    prerelease: tuple[tuple[int, int, str], ...]

    def __str__(self) -> str:
        text = f"{self.major}.{self.minor}.{self.patch}"
        names = [word if kind else str(number) for kind, number, word in self.prerelease if (kind, word) != (2, "")]
        return f"{text}-{'.'.join(names)}" if names else text


_RELEASE = ((2, 0, ""),)


def parse(text: str) -> Version | None:
    """A strict semantic version; None when it is not one."""
    found = _VERSION.fullmatch(text)
    if found is None or text.startswith("v"):
        return None
    identifiers = tuple(
        (0, int(part), "") if part.isdigit() else (1, 0, part) for part in (found[4].split(".") if found[4] else ())
    )
    return Version(int(found[1]), int(found[2]), int(found[3]), identifiers or _RELEASE)


def is_range(text: str) -> bool:
    return bool(_terms(text))


def within(version: str, range_text: str) -> bool:
    """Whether a version like `v1.34.2-gke.1` lies in a range like `>=1.34 <1.37` or `1.35`; pre-releases count as such.

    A term without an operator fixes as many places as it states: `1.35` is any 1.35.x. An unreadable version is in no
    range.
    """
    found = _LOOSE.fullmatch(version.strip())
    if found is None:
        return False
    number = tuple(int(part or 0) for part in found.groups())
    return all(_holds(number, operator, bound) for operator, bound in _terms(range_text))


def _terms(text: str) -> list[tuple[str, tuple[int, ...]]]:
    """The terms of a range; empty when it cannot be read."""
    words = [word for word in re.sub(r"([<>=!])\s+", r"\1", text).replace(",", " ").split() if word]
    terms = []
    for word in words:
        found = _TERM.fullmatch(word)
        if found is None:
            return []
        terms.append((found[1] or "", tuple(map(int, found[2].split(".")))))
    return terms


def _holds(number: tuple[int, ...], operator: str, bound: tuple[int, ...]) -> bool:
    stated = number[: len(bound)]
    match operator:
        case "" | "=" | "==":
            return stated == bound
        case "!=":
            return stated != bound
        case ">=":
            return stated >= bound
        case "<":
            return stated < bound
        case ">":
            return stated > bound
    return stated <= bound
