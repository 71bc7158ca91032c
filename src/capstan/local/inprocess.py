"""The in-process transport: `kube.Client` without sockets, through the same handler as HTTP, after the parsing."""

from __future__ import annotations

from collections.abc import AsyncGenerator, AsyncIterator, Mapping
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING

from capstan import kube
from capstan.local.request import Request, Response, User

if TYPE_CHECKING:
    from capstan.local.server import Server

_NOTHING: Mapping[str, str] = {}


class InProcessTransport:
    """A `kube.Transport` that acts as one user."""

    def __init__(self, server: Server, user: User, user_agent: str) -> None:
        self._server = server
        self._user = user
        self._headers = {"user-agent": user_agent}

    def _request(
        self, method: str, path: str, query: Mapping[str, str] | None, body: bytes, headers: Mapping[str, str] | None
    ) -> Request:
        lowered = self._headers | {name.lower(): value for name, value in headers.items()} if headers else self._headers
        return Request(method, path, query or _NOTHING, body, lowered, self._user)

    async def request(
        self,
        method: str,
        path: str,
        *,
        query: Mapping[str, str] | None = None,
        body: bytes | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> kube.Response:
        answer = await self._server.handle(self._request(method, path, query, body or b"", headers))
        if isinstance(answer, Response):
            found = {name.lower(): value for name, value in answer.headers.items()} if answer.headers else {}
            found["content-type"] = answer.content_type
            return kube.Response(answer.code, answer.body, found)
        content = [piece async for pieces in answer.chunks for piece in pieces]
        return kube.Response(200, b"".join(content), {"content-type": answer.content_type})

    @asynccontextmanager
    async def stream(
        self, path: str, *, query: Mapping[str, str] | None = None, headers: Mapping[str, str] | None = None
    ) -> AsyncIterator[AsyncIterator[bytes]]:
        answer = await self._server.handle(self._request("GET", path, query, b"", headers))
        if isinstance(answer, Response):
            raise kube.from_response(answer.code, answer.body, answer.headers.get("Retry-After"))
        documents = _flat(answer.chunks)
        try:
            yield documents
        finally:
            await documents.aclose()
            await answer.chunks.aclose()

    async def close(self) -> None:
        """Nothing is held open."""


async def _flat(chunks: AsyncGenerator[list[bytes], None]) -> AsyncGenerator[bytes, None]:
    async for chunk in chunks:
        for document in chunk:
            yield document
