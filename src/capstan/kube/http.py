"""The HTTP(S) form of a `Transport`. Loaded when a connection is made: an embedded platform does without it."""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from urllib.parse import quote, urlencode

import aiohttp
from yarl import URL

from capstan.kube import errors
from capstan.kube.transport import Response, Token

LONGEST_LINE = 4 << 20
"""Bytes of one watch event that must fit into the read buffer: above the 3 MiB that an API server stores."""
REQUEST_TIMEOUT_SECONDS = 60.0


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
