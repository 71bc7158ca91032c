"""What a client reads before it asks for objects: version, discovery, OpenAPI. Encoded once, until the served types
change."""

from __future__ import annotations

import hashlib
import platform

from capstan import __version__
from capstan.local import discovery, openapi
from capstan.local.registry import Registry
from capstan.local.request import JSON, Response, encode
from capstan.local.status import Json

KUBERNETES_VERSION = ("1", "34")
"""The release whose API semantics are implemented; clients compare it with their own."""


def version() -> Json:
    """`/version`"""
    major, minor = KUBERNETES_VERSION
    return {
        "major": major,
        "minor": minor,
        "gitVersion": f"v{major}.{minor}.0+capstan-{__version__}",
        "gitCommit": "",
        "gitTreeState": "clean",
        "buildDate": "1970-01-01T00:00:00Z",
        "goVersion": "",
        "compiler": platform.python_implementation(),
        "platform": f"{platform.system().lower()}/{platform.machine()}",
    }


class Documents:
    def __init__(self, registry: Registry) -> None:
        self._registry = registry
        self._generation = -1
        self._known: dict[tuple[str, str], tuple[bytes, str, str] | None] = {}

    def answer(self, path: str, accept: str, if_none_match: str) -> Response | None:
        """The document at a path, 304 when the client has it; None when there is none."""
        if self._generation != self._registry.generation or len(self._known) > 1000:
            self._generation = self._registry.generation
            self._known.clear()
        key = (path, accept)
        if key not in self._known:
            self._known[key] = self._make(path, accept)
        found = self._known[key]
        if found is None:
            return None
        body, content_type, etag = found
        headers = {"ETag": etag, "Vary": "Accept"}
        if if_none_match == etag:
            return Response(304, b"", content_type, headers=headers)
        return Response(200, body, content_type, headers=headers)

    def _make(self, path: str, accept: str) -> tuple[bytes, str, str] | None:
        types = self._registry.types()
        if path == "/version":
            made: tuple[bytes, str] | None = (encode(version()), JSON)
        elif path == "/openapi" or path.startswith("/openapi/"):
            made = openapi.respond(path, accept, types)
        else:
            made = discovery.respond(path, accept, types)
        if made is None:
            return None
        return (*made, f'"{hashlib.sha256(made[0]).hexdigest()}"')
