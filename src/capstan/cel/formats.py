"""The Kubernetes format library: named text formats, and what is wrong with a text
(`format.dns1123Label().validate(x)`)."""

from __future__ import annotations

import base64
import binascii
import re
from collections.abc import Callable
from dataclasses import dataclass
from datetime import date
from typing import Final

from capstan.cel.errors import EvaluationError
from capstan.cel.library import Library
from capstan.cel.network import is_url
from capstan.cel.times import timestamp_from_string
from capstan.cel.values import NONE, Optional, register_type

FORMATS: Final = Library("format")

_LABEL = r"[a-z0-9]([-a-z0-9]*[a-z0-9])?"
_NAME = r"([A-Za-z0-9][-A-Za-z0-9_.]*)?[A-Za-z0-9]"
_UUID = r"[0-9a-fA-F]{8}-?([0-9a-fA-F]{4}-?){3}[0-9a-fA-F]{12}"


@dataclass(frozen=True, slots=True)
class Format:
    """A named format; `problems` lists what is wrong with a text."""

    name: str
    problems: Callable[[str], list[str]]


register_type("kubernetes.NamedFormat", Format)


def _pattern(pattern: str, limit: int, message: str) -> Callable[[str], list[str]]:
    compiled = re.compile(pattern)

    def problems(text: str) -> list[str]:
        found = []
        if len(text) > limit:
            found.append(f"must be no more than {limit} characters")
        elif not compiled.fullmatch(text):
            found.append(f"{message} (regex used for validation is '{pattern}')")
        return found

    return problems


def _parsed(parse: Callable[[str], object], message: str) -> Callable[[str], list[str]]:
    def problems(text: str) -> list[str]:
        try:
            parse(text)
        except (ValueError, binascii.Error, EvaluationError):
            return [message]
        return []

    return problems


def _prefixed(problems: Callable[[str], list[str]]) -> Callable[[str], list[str]]:
    """A name to which something will be added may end in a dash."""
    return lambda text: problems(text[:-1] + "a" if text.endswith("-") else text)


def _qualified_name(text: str) -> list[str]:
    prefix, slash, name = text.rpartition("/")
    found = []
    if slash and not prefix:
        found.append("prefix part must be non-empty")
    elif slash:
        found += [f"prefix part {each}" for each in _SUBDOMAIN(prefix)]
    if not name:
        found.append("name part must be non-empty")
    else:
        found += [f"name part {each}" for each in _NAME_PART(name)]
    return found


_LABEL_RULE = (
    "must consist of lower case alphanumeric characters or '-', and must start and end with an alphanumeric character"
)
_DNS_LABEL = _pattern(_LABEL, 63, f"a lowercase RFC 1123 label {_LABEL_RULE}")
_SUBDOMAIN = _pattern(
    rf"{_LABEL}(\.{_LABEL})*", 253, f"a lowercase RFC 1123 subdomain {_LABEL_RULE}, with '.' between labels"
)
_DNS_1035 = _pattern(
    r"[a-z]([-a-z0-9]*[a-z0-9])?", 63, "a DNS-1035 label must start with a letter and end with an alphanumeric"
)
_NAME_PART = _pattern(
    _NAME, 63, "must consist of alphanumeric characters, '-', '_' or '.', and start and end with an alphanumeric"
)
_LABEL_VALUE = _pattern(
    f"({_NAME})?", 63, "a valid label must be empty or consist of alphanumeric characters, '-', '_' or '.'"
)

_ALL: Final[dict[str, Callable[[str], list[str]]]] = {
    "dns1123Label": _DNS_LABEL,
    "dns1123Subdomain": _SUBDOMAIN,
    "dns1035Label": _DNS_1035,
    "qualifiedName": _qualified_name,
    "dns1123LabelPrefix": _prefixed(_DNS_LABEL),
    "dns1123SubdomainPrefix": _prefixed(_SUBDOMAIN),
    "dns1035LabelPrefix": _prefixed(_DNS_1035),
    "labelValue": _LABEL_VALUE,
    "uri": lambda text: [] if is_url(text) else ["must be a valid URI"],
    "uuid": _pattern(_UUID, 36, "does not match the UUID format"),
    "byte": _parsed(lambda text: base64.b64decode(text, validate=True), "invalid base64"),
    "date": _parsed(date.fromisoformat, "invalid date"),
    "datetime": _parsed(timestamp_from_string, "invalid datetime"),
}
_NAMED: Final = {name: Format(name, problems) for name, problems in _ALL.items()}


def _constant(value: Format) -> Callable[[], Format]:
    return lambda: value


for _name, _format in _NAMED.items():
    FORMATS.declare(f"format.{_name}() -> kubernetes.NamedFormat")(_constant(_format))


@FORMATS.declare("format.named(string) -> optional(kubernetes.NamedFormat)")
def named(name: str) -> Optional:
    return Optional(_NAMED[name]) if name in _NAMED else NONE


@FORMATS.declare("<kubernetes.NamedFormat>.validate(string) -> optional(list(string))")
def validate(format_: Format, text: str) -> Optional:
    """Empty when the text is right, else the list of problems."""
    problems = format_.problems(text)
    return Optional(problems) if problems else NONE
