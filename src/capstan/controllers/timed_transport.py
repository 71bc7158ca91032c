"""A transport that tells how long each write took."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import AbstractAsyncContextManager

from capstan import kube

Report = Callable[[str, str, int, float], None]
"""(Kubernetes verb, `plural` or `plural/subresource`, HTTP status or 0 without an answer, seconds)"""

_VERBS = {"POST": "create", "PUT": "update", "PATCH": "patch", "DELETE": "delete"}


class TimedTransport:
    """A `kube.Transport` around another one; reads go through unseen."""

    def __init__(self, transport: kube.Transport, report: Report) -> None:
        self._transport, self._report = transport, report

    async def request(
        self,
        method: str,
        path: str,
        *,
        query: Mapping[str, str] | None = None,
        body: bytes | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> kube.Response:
        verb = _VERBS.get(method)
        if verb is None:
            return await self._transport.request(method, path, query=query, body=body, headers=headers)
        began, code = time.perf_counter(), 0
        try:
            answer = await self._transport.request(method, path, query=query, body=body, headers=headers)
            code = answer.status
            return answer
        finally:
            self._report(verb, _resource(path), code, time.perf_counter() - began)

    def stream(
        self, path: str, *, query: Mapping[str, str] | None = None, headers: Mapping[str, str] | None = None
    ) -> AbstractAsyncContextManager[AsyncIterator[bytes]]:
        return self._transport.stream(path, query=query, headers=headers)

    async def close(self) -> None:
        await self._transport.close()


def _resource(path: str) -> str:
    """`pods/binding` of /api/v1/namespaces/n/pods/p/binding: what names no single object, so that there are few."""
    parts = path.split("/")[3 if path.startswith("/api/") else 4 :]
    if len(parts) > 2 and parts[0] == "namespaces":
        parts = parts[2:]
    return f"{parts[0]}/{parts[2]}" if len(parts) > 2 else parts[0] if parts else ""
