"""URLs as the Kubernetes library defines them: what Go's net/url accepts in a request, and its parts."""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import lru_cache
from typing import Final
from urllib.parse import quote, unquote, unquote_plus, unquote_to_bytes

from capstan.cel.errors import EvaluationError
from capstan.cel.library import Library
from capstan.cel.values import register_type

URLS: Final = Library("url")

_CONTROL = re.compile(r"[\x00-\x1f\x7f]")
_SCHEME = re.compile(r"([a-zA-Z][a-zA-Z0-9+.-]*):")
_BAD_ESCAPE = re.compile(r"%(?![0-9a-fA-F]{2})")
_USER = re.compile(r"[A-Za-z0-9._:~!$&'()*+,;=%@-]*")
# Escapes in a host are for what is beyond ASCII only.
_HOST = re.compile(r"(?:[A-Za-z0-9._~!$&'()*+,;=:\[\]<>\"-]|%[89a-fA-F][0-9a-fA-F]|[^\x00-\x7f])*")
_PORT = re.compile(r"(?::[0-9]*)?")
_PLAIN_PATH = re.compile(r"(?:[A-Za-z0-9._~!$&'()*+,;=:@\[\]/-]|%[0-9a-fA-F]{2})*")


@dataclass(frozen=True, slots=True)
class URL:
    """`path` and `query` are as they are written; `host` includes the port."""

    text: str
    scheme: str
    host: str
    path: str
    query: str


register_type("kubernetes.URL", URL)


@lru_cache(maxsize=1024)
def parse_url(text: str) -> URL | None:
    """An absolute URL or an absolute path; None for anything else."""
    if not text or _CONTROL.search(text):
        return None
    match = _SCHEME.match(text)
    scheme = match.group(1).lower() if match else ""
    whole = text[match.end() :] if match else text
    if text.startswith(":") or (not scheme and not whole.startswith("/")):
        return None
    rest, _, fragment = whole.partition("#")
    before, _, query = rest.partition("?")
    if scheme and not before.startswith("/"):  # opaque, as in mailto:name
        return URL(text, scheme, "", "", query)
    host, path = "", before
    if before.startswith("//"):
        authority, slash, tail = before[2:].partition("/")
        path = slash + tail
        user, _, host = authority.rpartition("@")
        if not _USER.fullmatch(user) or not _is_host(host):
            return None
    if _BAD_ESCAPE.search(path) or _BAD_ESCAPE.search(fragment):
        return None
    return URL(text, scheme, unquote(host), path, query)


def _is_host(host: str) -> bool:
    if host.startswith("["):
        address, bracket, port = host.rpartition("]")
        return bool(bracket) and bool(_HOST.fullmatch(address)) and bool(_PORT.fullmatch(port))
    name, colon, port = host.rpartition(":")
    return bool(_HOST.fullmatch(name if colon else host)) and (not colon or bool(_PORT.fullmatch(colon + port)))


@URLS.declare("url(string) -> kubernetes.URL")
def url(text: str) -> URL:
    parsed = parse_url(text)
    if parsed is None:
        raise EvaluationError(
            f"URL parse error during conversion from string: parse {text[:200]!r}: invalid URI for request"
        )
    return parsed


@URLS.declare("isURL(string) -> bool")
def is_url(text: str) -> bool:
    return parse_url(text) is not None


@URLS.declare("<kubernetes.URL>.getScheme() -> string")
def get_scheme(value: URL) -> str:
    return value.scheme


@URLS.declare("<kubernetes.URL>.getHost() -> string")
def get_host(value: URL) -> str:
    """Host and port; an IPv6 address keeps its brackets."""
    return value.host


@URLS.declare("<kubernetes.URL>.getHostname() -> string")
def get_hostname(value: URL) -> str:
    host = value.host
    return host[1 : host.index("]")] if host.startswith("[") and "]" in host else host.partition(":")[0]


@URLS.declare("<kubernetes.URL>.getPort() -> string")
def get_port(value: URL) -> str:
    return value.host.rpartition("]")[2].partition(":")[2]


@URLS.declare("<kubernetes.URL>.getEscapedPath() -> string")
def get_escaped_path(value: URL) -> str:
    """The path as it is written where that is a valid one, else everything that needs it escaped."""
    if _PLAIN_PATH.fullmatch(value.path):
        return value.path
    return quote(unquote_to_bytes(value.path), safe="/$&+,:;=@")


@URLS.declare("<kubernetes.URL>.getQuery() -> map(string, list(string))")
def get_query(value: URL) -> dict[str, list[str]]:
    """Values by key, unescaped; pairs that are malformed are left out."""
    found: dict[str, list[str]] = {}
    for pair in value.query.split("&"):
        if pair and ";" not in pair and not _BAD_ESCAPE.search(pair):
            key, _, text = pair.partition("=")
            found.setdefault(unquote_plus(key), []).append(unquote_plus(text))
    return found


@URLS.declare("string(kubernetes.URL) -> string")
def string_from_url(value: URL) -> str:
    return value.text
