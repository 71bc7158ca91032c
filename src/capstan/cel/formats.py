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
from capstan.cel.times import timestamp_from_string
from capstan.cel.urls import is_url
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


def _told(message: str, pattern: str, *examples: str) -> str:
    """In the words of k8s.io/apimachinery, which users meet wherever a name is refused."""
    shown = " or ".join(f"'{example}', " for example in examples)
    return f"{message} ({f'e.g. {shown}' if examples else ''}regex used for validation is '{pattern}')"


def _limited(text: str, limit: int) -> list[str]:
    return [f"must be no more than {limit} characters"] if len(text) > limit else []


def _pattern(pattern: str, limit: int, message: str, *examples: str) -> Callable[[str], list[str]]:
    compiled = re.compile(pattern)

    def problems(text: str) -> list[str]:
        wrong = [] if compiled.fullmatch(text) else [_told(message, pattern, *examples)]
        return [*_limited(text, limit), *wrong]

    return problems


def _dns_label(text: str) -> list[str]:
    problems = _LABEL_PROBLEMS(text)
    dotted = "." in text and not _SUBDOMAIN(text)
    return [*_limited(text, 63), "must not contain dots"] if dotted else problems


def _parsed(parse: Callable[[str], object], message: str) -> Callable[[str], list[str]]:
    def problems(text: str) -> list[str]:
        try:
            parse(text)
        except (ValueError, binascii.Error, EvaluationError):
            return [message]
        return []

    return problems


def _date(text: str) -> date:
    """RFC 3339's full-date; Python's reader takes other forms of ISO 8601, too."""
    if not re.fullmatch(r"[0-9]{4}-[0-9]{2}-[0-9]{2}", text):
        raise ValueError(text)
    return date.fromisoformat(text)


def _prefixed(problems: Callable[[str], list[str]]) -> Callable[[str], list[str]]:
    """A name to which something will be added may end in a dash."""
    return lambda text: problems(text[:-1] + "a" if text.endswith("-") else text)


def _qualified_name(text: str) -> list[str]:
    prefix, slash, name = text.partition("/")
    if not slash:
        prefix, name = "", text
    if "/" in name:
        wrong = _told(_QUALIFIED_MESSAGE, _NAME, *_QUALIFIED_EXAMPLES)
        return [f"a qualified name {wrong} with an optional DNS subdomain prefix and '/' (e.g. 'example.com/MyName')"]
    found = []
    if slash and not prefix:
        found.append("prefix part must be non-empty")
    elif slash:
        found += [f"prefix part {each}" for each in _SUBDOMAIN(prefix)]
    return [*found, *(f"name part {each}" for each in ([] if name else ["must be non-empty"]) + _NAME_PART(name))]


_QUALIFIED_MESSAGE: Final = (
    "must consist of alphanumeric characters, '-', '_' or '.', and must start and end with an alphanumeric character"
)
_QUALIFIED_EXAMPLES: Final = ("MyName", "my.name", "123-abc")
_LOWER: Final = "must consist of lower case alphanumeric characters"
_LABEL_PROBLEMS = _pattern(
    _LABEL,
    63,
    f"a lowercase RFC 1123 label {_LOWER} or '-', and must start and end with an alphanumeric character",
    *("my-name", "123-abc"),
)
_SUBDOMAIN = _pattern(
    rf"{_LABEL}(\.{_LABEL})*",
    253,
    f"a lowercase RFC 1123 subdomain {_LOWER}, '-' or '.', and must start and end with an alphanumeric character",
    "example.com",
)
_DNS_1035 = _pattern(
    r"[a-z]([-a-z0-9]*[a-z0-9])?",
    63,
    f"a DNS-1035 label {_LOWER} or '-', start with an alphabetic character, and end with an alphanumeric character",
    *("my-name", "abc-123"),
)
_NAME_PART = _pattern(_NAME, 63, _QUALIFIED_MESSAGE, *_QUALIFIED_EXAMPLES)
_LABEL_VALUE = _pattern(
    f"({_NAME})?",
    63,
    f"a valid label must be an empty string or {_QUALIFIED_MESSAGE.removeprefix('must ')}",
    *("MyValue", "my_value", "12345"),
)
_ALL: Final[dict[str, Callable[[str], list[str]]]] = {
    "dns1123Label": _dns_label,
    "dns1123Subdomain": _SUBDOMAIN,
    "dns1035Label": _DNS_1035,
    "qualifiedName": _qualified_name,
    "dns1123LabelPrefix": _prefixed(_dns_label),
    "dns1123SubdomainPrefix": _prefixed(_SUBDOMAIN),
    "dns1035LabelPrefix": _prefixed(_DNS_1035),
    "labelValue": _LABEL_VALUE,
    "uri": lambda text: [] if is_url(text) else ["must be a valid URI"],
    "uuid": lambda text: [] if re.fullmatch(_UUID, text) else ["does not match the UUID format"],
    "byte": _parsed(lambda text: base64.b64decode(text, validate=True), "invalid base64"),
    "date": _parsed(_date, "invalid date"),
    "datetime": _parsed(lambda text: timestamp_from_string(text.upper()), "invalid datetime"),
}
_NAMED: Final = {name: Format(name, problems) for name, problems in _ALL.items()}


def _constant(value: Format) -> Callable[[], Format]:
    return lambda: value


for _name, _format in _NAMED.items():
    FORMATS.declare(f"format.{_name}() -> kubernetes.NamedFormat")(_constant(_format))


def problems(format_name: str, text: str) -> list[str]:
    """What is wrong with a text that should be of the named format."""
    return _NAMED[format_name].problems(text)


@FORMATS.declare("format.named(string) -> optional(kubernetes.NamedFormat)")
def named(name: str) -> Optional:
    return Optional(_NAMED[name]) if name in _NAMED else NONE


@FORMATS.declare("<kubernetes.NamedFormat>.validate(string) -> optional(list(string))")
def validate(format_: Format, text: str) -> Optional:
    """Empty when the text is right, else the list of problems."""
    found = format_.problems(text)
    return Optional(found) if found else NONE
