"""HTTP: from ASGI messages to `request.Request` and back, and uvicorn around it. No framework objects per request."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import socket
import ssl
from collections.abc import AsyncIterator, Awaitable, Callable, Generator, MutableMapping
from contextlib import asynccontextmanager
from typing import Any
from urllib.parse import parse_qsl

import uvicorn
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from capstan.local import status
from capstan.local.request import ANONYMOUS, BODY_LIMIT, Request, Response, Stream, User
from capstan.local.server import Server, refusal

log = logging.getLogger(__name__)

Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
_KEEP_ALIVE_SECONDS = 120
_MOST_CONNECTIONS = 500
_DRAIN_LIMIT = 64 << 20
"""Bytes of a refused body that are still taken off the wire: a client that is cut off while it sends sees a broken
connection instead of the answer."""


class _BodyTooLarge(Exception):
    """The body exceeds the limit."""


async def _body(receive: Receive) -> bytes:
    message = await receive()
    body: bytes = message.get("body", b"")
    if not message.get("more_body"):
        return body
    parts, size = [body], len(body)
    while message.get("more_body"):
        message = await receive()
        part = message.get("body", b"")
        size += len(part)
        if size <= BODY_LIMIT:
            parts.append(part)
        elif size > _DRAIN_LIMIT:
            break
    if size > BODY_LIMIT:
        raise _BodyTooLarge
    return b"".join(parts)


class App:
    """The ASGI 3 application of a server."""

    def __init__(self, server: Server) -> None:
        self._server = server
        self.closing = asyncio.Event()

    async def __call__(self, scope: MutableMapping[str, Any], receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            # WebSocket: exec, attach and port-forward are not implemented.
            if scope["type"] == "websocket":
                await send({"type": "websocket.close", "code": 1011})
            return
        headers: dict[str, str] = {}
        for raw_name, raw_value in scope["headers"]:
            name, value = raw_name.decode("latin-1"), raw_value.decode("latin-1")
            headers[name] = f"{headers[name]},{value}" if name in headers else value
        user = self._user(headers.get("authorization", ""))
        if user is None:
            await _send_response(send, refusal(status.unauthorized()))
            return
        method = scope["method"]
        try:
            body = b"" if method == "GET" else await _body(receive)
        except _BodyTooLarge:
            answer = refusal(status.too_large(BODY_LIMIT))
            answer.headers["Connection"] = "close"
            await _send_response(send, answer)
            return
        raw_query = scope["query_string"]
        query = dict(parse_qsl(raw_query.decode("latin-1"), keep_blank_values=True)) if raw_query else {}
        result = await self._server.handle(Request(method, scope["path"], query, body, headers, user))
        if isinstance(result, Response):
            await _send_response(send, result)
        else:
            await _send_stream(receive, send, result, self.closing)

    def _user(self, authorization: str) -> User | None:
        """ANONYMOUS without credentials, None for wrong ones."""
        if not authorization:
            return ANONYMOUS
        scheme, _, token = authorization.partition(" ")
        return self._server.authenticator.authenticate(token.strip()) if scheme.lower() == "bearer" else None


def _headers(content_type: str, warnings: list[str]) -> list[tuple[bytes, bytes]]:
    headers = [(b"content-type", content_type.encode())]
    for warning in warnings:
        quoted = warning.replace("\\", "\\\\").replace('"', '\\"').replace("\n", " ")
        headers.append((b"warning", f'299 - "{quoted}"'.encode("latin-1", "replace")))
    return headers


async def _send_response(send: Send, answer: Response) -> None:
    headers = _headers(answer.content_type, answer.warnings)
    headers.append((b"content-length", str(len(answer.body)).encode()))
    headers += [(name.encode(), value.encode()) for name, value in answer.headers.items()]
    await send({"type": "http.response.start", "status": answer.code, "headers": headers})
    await send({"type": "http.response.body", "body": answer.body})


async def _send_stream(receive: Receive, send: Send, answer: Stream, closing: asyncio.Event) -> None:
    """Until the stream ends, the client goes away, or the server stops: then the stream ends like any other."""
    await send(
        {"type": "http.response.start", "status": 200, "headers": _headers(answer.content_type, answer.warnings)}
    )
    pump = asyncio.create_task(_pump(send, answer))
    gone = asyncio.create_task(_disconnected(receive))
    stopping = asyncio.create_task(closing.wait())
    try:
        await asyncio.wait((pump, gone, stopping), return_when=asyncio.FIRST_COMPLETED)
    finally:
        for task in (pump, gone, stopping):
            task.cancel()
        await asyncio.gather(pump, gone, stopping, return_exceptions=True)
    if pump.cancelled() and closing.is_set():
        await send({"type": "http.response.body", "body": b""})


async def _pump(send: Send, answer: Stream) -> None:
    # The head goes out with the first bytes; an empty part makes that happen before there is any event.
    await send({"type": "http.response.body", "body": b"", "more_body": True})
    try:
        async for pieces in answer.chunks:
            await send({"type": "http.response.body", "body": b"".join(pieces), "more_body": True})
    finally:
        await answer.chunks.aclose()
    await send({"type": "http.response.body", "body": b""})


async def _disconnected(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass


class _Connection(HttpToolsProtocol):
    """A connection that asks for nothing is closed, also before its first request; more than `_MOST_CONNECTIONS` at a
    time are turned away, so that no client uses up the process's files."""

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]  # as uvicorn has it
        super().connection_made(transport)
        if len(self.connections) > _MOST_CONNECTIONS:
            log.warning("more than %d connections are open, another one is turned away", _MOST_CONNECTIONS)
            transport.close()
        else:
            self.timeout_keep_alive_task = self.loop.call_later(
                self.timeout_keep_alive, self.timeout_keep_alive_handler
            )


class _Uvicorn(uvicorn.Server):
    """Signals stay with the program around us."""

    @contextlib.contextmanager
    def capture_signals(self) -> Generator[None, None, None]:
        yield


@asynccontextmanager
async def serving(server: Server, host: str = "127.0.0.1", port: int = 0, *, tls: bool = True) -> AsyncIterator[str]:
    """Serve a started server on a socket while the context lasts; gives the URL. Port 0 takes a free one.

    Raises OSError when the port is taken. `tls` needs a server with a data directory.
    """
    listener = socket.create_server(
        (host, port), family=socket.AF_INET6 if ":" in host else socket.AF_INET, backlog=1024
    )
    app = App(server)
    config = uvicorn.Config(
        app,
        http=_Connection,
        ws="none",
        lifespan="off",
        access_log=False,
        log_config=None,
        timeout_keep_alive=_KEEP_ALIVE_SECONDS,
        timeout_graceful_shutdown=2,
        server_header=False,
        date_header=False,
        proxy_headers=False,
    )
    if tls:
        assert server.credentials is not None, "TLS needs the certificates of a data directory"
        config.ssl_certfile = server.credentials.certificate
        config.ssl_keyfile = server.credentials.key
        config.ssl_version = ssl.PROTOCOL_TLS_SERVER
    runner = _Uvicorn(config)
    task = asyncio.create_task(runner.serve([listener]), name="http-server")
    try:
        while not runner.started:
            if task.done():
                await task
                raise OSError("the HTTP server stopped before it listened")
            await asyncio.sleep(0.005)
        address = f"[{host}]" if ":" in host else host
        yield f"{'https' if tls else 'http'}://{address}:{listener.getsockname()[1]}"
    finally:
        server.reads.close()
        app.closing.set()
        runner.should_exit = True
        await task


async def serve(server: Server, host: str = "127.0.0.1", port: int = 6443, *, tls: bool = True) -> None:
    """Serve until cancelled."""
    async with serving(server, host, port, tls=tls):
        await asyncio.Event().wait()
