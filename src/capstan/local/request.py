"""What goes into and comes out of the API server's core, whether it came over HTTP or from within the process.

`route` reads a URL path the way kube-apiserver's RequestInfo does: the resource that is meant, or None for anything
else.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, Mapping
from typing import Any

import msgspec

from capstan.local.status import Json, bad_request

BODY_LIMIT = 3 << 20
"""Bytes of a request body (kube-apiserver's `MaxRequestBodyBytes`)."""
JSON = "application/json"


class User(msgspec.Struct, frozen=True):
    """Who asks (`authentication.k8s.io/v1 UserInfo`)."""

    name: str
    groups: tuple[str, ...] = ()
    uid: str = ""
    extra: tuple[tuple[str, tuple[str, ...]], ...] = ()


ANONYMOUS = User("system:anonymous", ("system:unauthenticated",))
ADMIN = User("kubernetes-admin", ("system:masters", "system:authenticated"))


def service_account(namespace: str, name: str, uid: str = "") -> User:
    """The user that a ServiceAccount's token stands for."""
    groups = ("system:serviceaccounts", f"system:serviceaccounts:{namespace}", "system:authenticated")
    return User(f"system:serviceaccount:{namespace}:{name}", groups, uid)


class Request(msgspec.Struct, gc=False):
    """`headers` has lower-case names; of a repeated query parameter the last value counts."""

    method: str
    path: str
    query: Mapping[str, str]
    body: bytes
    headers: Mapping[str, str]
    user: User

    def flag(self, name: str) -> bool:
        value = self.query.get(name)
        return value is not None and value.lower() in ("true", "1", "t", "")

    def number(self, name: str) -> int | None:
        """A non-negative integer parameter. Raises 400."""
        text = self.query.get(name)
        if not text:
            return None
        if not (text.isascii() and text.isdigit()):
            raise bad_request(f'strconv.ParseInt: parsing "{text}": invalid syntax (parameter {name})')
        return int(text)

    @property
    def dry_run(self) -> bool:
        value = self.query.get("dryRun")
        if value in (None, "All"):
            return value is not None
        raise bad_request(f'dryRun: Unsupported value: "{value}": supported values: "All"')

    @property
    def field_manager(self) -> str:
        """The manager named in the query, else the first word of the user agent, as upstream defaults it."""
        return self.query.get("fieldManager") or self.headers.get("user-agent", "").split("/")[0][:128] or "unknown"


class Response(msgspec.Struct, gc=False):
    code: int
    body: bytes
    content_type: str = JSON
    warnings: list[str] = []
    """Become `Warning: 299 - "…"` headers."""
    headers: dict[str, str] = {}


class Stream(msgspec.Struct, gc=False):
    """An answer without end: a watch, one JSON document per chunk item, or followed logs."""

    chunks: AsyncGenerator[list[bytes], None]
    content_type: str = JSON
    warnings: list[str] = []


class Target(msgspec.Struct, gc=False):
    """The resource that a path names. Empty strings: not given."""

    group: str
    version: str
    plural: str
    namespace: str = ""
    name: str = ""
    subresource: str = ""
    rest: str = ""
    """What follows the subresource (`services/x/proxy/…`)."""


def route(path: str) -> Target | None:
    parts = path.split("/")
    if len(parts) > 3 and parts[1] == "api":
        group, version, tail = "", parts[2], parts[3:]
    elif len(parts) > 4 and parts[1] == "apis":
        group, version, tail = parts[2], parts[3], parts[4:]
    else:
        return None
    if tail[-1] == "":
        tail.pop()
        if not tail:
            return None
    namespace = ""
    # `namespaces/x/status` and `namespaces/x/finalize` belong to the namespace itself, any other third part lies in it.
    if tail[0] == "namespaces" and len(tail) > 2 and tail[2] not in ("status", "finalize"):
        namespace = tail[1]
        tail = tail[2:]
    elif tail[0] == "namespaces" and len(tail) > 1:
        namespace = tail[1]
    size = len(tail)
    return Target(
        group,
        version,
        tail[0],
        namespace,
        tail[1] if size > 1 else "",
        tail[2] if size > 2 else "",
        "/".join(tail[3:]) if size > 3 else "",
    )


_VERBS = {"POST": "create", "PUT": "update", "PATCH": "patch"}


def verb_of(request: Request, target: Target) -> str:
    """The RBAC verb of a resource request; empty for a method that no resource has."""
    method = request.method
    if method == "GET" or method == "HEAD":
        if target.name:
            return "get"
        return "watch" if "watch" in request.query and request.flag("watch") else "list"
    if method == "DELETE":
        return "delete" if target.name else "deletecollection"
    return _VERBS.get(method, "")


def encode(document: Json | Any) -> bytes:
    return msgspec.json.encode(document)
