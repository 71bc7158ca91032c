"""How bytes reach an API server: the `Transport` protocol and its HTTP(S) form.

`Client` speaks the Kubernetes API over any Transport; the embedded server offers one without sockets.
"""

from __future__ import annotations

import asyncio
import ssl
import time
from collections.abc import AsyncIterator, Mapping
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol
from urllib.parse import quote, urlencode

import aiohttp
from yarl import URL

from capstan.kube import errors

LONGEST_LINE = 4 << 20
"""Bytes of one watch event that must fit into the read buffer: above the 3 MiB that an API server stores."""
REQUEST_TIMEOUT_SECONDS = 60.0
_TOKEN_LIFETIME_SECONDS = 60.0


@dataclass(frozen=True, slots=True)
class Response:
    """A complete answer. Header names are in lower case."""

    status: int
    body: bytes
    headers: Mapping[str, str] = field(default_factory=dict)


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


class HttpTransport:
    """HTTP/1.1 over TCP, with TLS when `tls` is given. Watches have connections of their own, beside the pool."""

    def __init__(
        self,
        server: str,
        *,
        token: Token | None = None,
        tls: ssl.SSLContext | None = None,
        server_hostname: str | None = None,
        connections: int = 64,
    ) -> None:
        self.server = server.rstrip("/")
        self._token = token or Token()
        self._tls = tls
        self._server_hostname = server_hostname
        self._connections = connections
        self._sessions: dict[str, aiohttp.ClientSession] = {}

    def _session(self, use: str, limit: int) -> aiohttp.ClientSession:
        # Made on first use: aiohttp binds a session to the loop that is running then.
        if use not in self._sessions:
            connector = aiohttp.TCPConnector(limit=limit, ssl=self._tls or True)
            self._sessions[use] = aiohttp.ClientSession(
                connector=connector, read_bufsize=LONGEST_LINE, auto_decompress=True, skip_auto_headers={"User-Agent"}
            )
        return self._sessions[use]

    def _url(self, path: str, query: Mapping[str, str] | None) -> URL:
        url = self.server + quote(path, safe="/:@!$&'()*+,;=~-._")
        return URL(f"{url}?{urlencode(query)}" if query else url, encoded=True)

    def _headers(self, headers: Mapping[str, str] | None) -> dict[str, str]:
        return {"Accept": "application/json", "User-Agent": "capstan", **self._token.header(), **(headers or {})}

    async def request(
        self,
        method: str,
        path: str,
        *,
        query: Mapping[str, str] | None = None,
        body: bytes | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> Response:
        session = self._session("requests", self._connections)
        try:
            async with session.request(
                method,
                self._url(path, query),
                data=body,
                headers=self._headers(headers),
                server_hostname=self._server_hostname,
                timeout=aiohttp.ClientTimeout(total=REQUEST_TIMEOUT_SECONDS),
                allow_redirects=False,
            ) as answer:
                content = await answer.read()
                return Response(answer.status, content, {name.lower(): value for name, value in answer.headers.items()})
        except (aiohttp.ClientError, TimeoutError, OSError) as error:
            raise errors.unreachable(f"{method} {self.server}{path}", error) from error

    @asynccontextmanager
    async def stream(
        self, path: str, *, query: Mapping[str, str] | None = None, headers: Mapping[str, str] | None = None
    ) -> AsyncIterator[AsyncIterator[bytes]]:
        session = self._session("streams", 0)
        what = f"GET {self.server}{path}"
        try:
            answer = await session.get(
                self._url(path, query),
                headers=self._headers(headers),
                server_hostname=self._server_hostname,
                timeout=aiohttp.ClientTimeout(total=None, sock_connect=REQUEST_TIMEOUT_SECONDS),
                allow_redirects=False,
            )
        except (aiohttp.ClientError, TimeoutError, OSError) as error:
            raise errors.unreachable(what, error) from error
        try:
            if answer.status >= 300:
                raise errors.from_response(answer.status, await answer.read(), answer.headers.get("Retry-After"))
            yield self._lines(answer, what)
        finally:
            # Dropped, not drained: the rest of an endless stream is of no use.
            answer.close()

    @staticmethod
    async def _lines(answer: aiohttp.ClientResponse, what: str) -> AsyncIterator[bytes]:
        try:
            async for line in answer.content:
                if not line.endswith(b"\n"):
                    raise errors.unreachable(what, "the stream ended in the middle of an event")
                yield line
        except (aiohttp.ClientError, OSError) as error:
            raise errors.unreachable(what, error) from error
        except ValueError as error:
            raise errors.unreachable(what, f"an event is longer than {LONGEST_LINE} bytes") from error

    async def close(self) -> None:
        sessions, self._sessions = self._sessions, {}
        for session in sessions.values():
            await session.close()
        if sessions:
            # aiohttp closes TLS transports one loop turn later.
            await asyncio.sleep(0)
