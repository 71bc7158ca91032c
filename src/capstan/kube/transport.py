"""How bytes reach an API server: the `Transport` protocol.

`Client` speaks the Kubernetes API over any Transport: HTTP(S) in `kube.http`, or straight into the embedded server.
"""

from __future__ import annotations

import time
from collections.abc import AsyncIterator, Mapping
from contextlib import AbstractAsyncContextManager
from pathlib import Path
from typing import Any, Protocol

import msgspec

_TOKEN_LIFETIME_SECONDS = 60.0


class Response(msgspec.Struct, frozen=True):
    """A complete answer. Header names are in lower case."""

    status: int
    body: bytes
    headers: Mapping[str, str] = {}


class Document(bytes):
    """One JSON document of a stream that several readers in this process get. `decoded` holds what they made of it, by
    type: each shape is decoded once and shared, for decoded objects are never changed."""

    decoded: dict[type[Any], Any]

    def __init__(self, content: bytes) -> None:
        self.decoded = {}


class Transport(Protocol):
    async def request(
        self,
        method: str,
        path: str,
        *,
        query: Mapping[str, str] | None = None,
        body: bytes | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> Response:
        """One exchange. Any HTTP status is returned; `Unavailable` is raised when no answer came."""
        ...

    def stream(
        self, path: str, *, query: Mapping[str, str] | None = None, headers: Mapping[str, str] | None = None
    ) -> AbstractAsyncContextManager[AsyncIterator[bytes]]:
        """A GET that answers with one JSON document per item. A non-2xx answer raises ApiError on entry."""
        ...

    async def close(self) -> None: ...


class Token:
    """A bearer token: fixed, or a file that is read again every minute because kubelet rotates it."""

    def __init__(self, value: str = "", file: Path | None = None) -> None:
        self._value, self._file, self._read_at = value, file, float("-inf")

    def header(self) -> dict[str, str]:
        if self._file and time.monotonic() - self._read_at > _TOKEN_LIFETIME_SECONDS:
            self._value, self._read_at = self._file.read_text().strip(), time.monotonic()
        return {"Authorization": f"Bearer {self._value}"} if self._value else {}
