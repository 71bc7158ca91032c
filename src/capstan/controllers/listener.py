"""The pages of a component on a socket of its own, for clusters whose API server does not serve them.

Who asks is what the cluster says (TokenReview), and whether they may `get` the path, too (SubjectAccessReview), as for
the metrics of other Kubernetes components. Its answers hold for a minute. `/healthz` is for everybody.
"""

from __future__ import annotations

import asyncio
import hashlib
import ipaddress
import logging
import ssl
import time
from collections.abc import Awaitable, Callable, Mapping
from pathlib import Path

from aiohttp import web

from capstan import kube
from capstan.api import resources
from capstan.api.rbac import PolicyRule

log = logging.getLogger(__name__)

Page = Callable[[str], Awaitable[tuple[bytes, str]]]
RENEW_SECONDS = 60.0
_HOLDS_SECONDS = 60.0
_REMEMBERED = 1024
_TOKEN_REVIEWS = resources.unstructured("authentication.k8s.io", "v1", "tokenreviews", "TokenReview", namespaced=False)
_ACCESS_REVIEWS = resources.unstructured(
    "authorization.k8s.io", "v1", "subjectaccessreviews", "SubjectAccessReview", namespaced=False
)


class CannotListen(Exception):
    """The address is taken or not one of this machine, or certificate and key are of no use; the message says which."""


class Listener:
    """Serves `pages` until cancelled. Raises ValueError for an address beyond this machine without a certificate."""

    RULES = [
        PolicyRule(api_groups=["authentication.k8s.io"], resources=["tokenreviews"], verbs=["create"]),
        PolicyRule(api_groups=["authorization.k8s.io"], resources=["subjectaccessreviews"], verbs=["create"]),
    ]

    def __init__(
        self,
        client: kube.Client,
        pages: Mapping[str, Page],
        *,
        host: str = "127.0.0.1",
        port: int = 8443,
        certificate: Path | None = None,
        key: Path | None = None,
    ) -> None:
        if certificate is None and not _is_loopback(host):
            raise ValueError(
                f"{host} is reached from other machines: give a certificate and key, or listen on 127.0.0.1"
            )
        self._client, self._pages = client, pages
        self._host, self.port = host, port
        self._tls = (certificate, key) if certificate is not None else None
        self._known: dict[tuple[bytes, str], tuple[int, float]] = {}
        self.listening = asyncio.Event()

    async def run(self) -> None:
        """Raises CannotListen."""
        if self._tls is None:
            await self._serve(None)
            return
        try:
            context = _context(*self._tls)
        except OSError as error:
            raise CannotListen(f"{self._tls[0]} and its key cannot be used: {error}") from error
        renewing = asyncio.create_task(self._renew(context, *self._tls))
        try:
            await self._serve(context)
        finally:
            renewing.cancel()

    async def _serve(self, context: ssl.SSLContext | None) -> None:
        app = web.Application()
        app.router.add_route("*", "/{path:.*}", self._answer)
        runner = web.AppRunner(app, access_log=None)
        await runner.setup()
        try:
            site = web.TCPSite(runner, self._host, self.port, ssl_context=context)
            try:
                await site.start()
            except OSError as error:
                raise CannotListen(f"{self._host}:{self.port} cannot be listened on: {error.strerror}") from error
            self.port = runner.addresses[0][1]
            self.listening.set()
            await asyncio.Event().wait()
        finally:
            await runner.cleanup()

    async def _renew(self, context: ssl.SSLContext, certificate: Path, key: Path | None) -> None:
        """Certificates are replaced in their files before they expire: new connections get the newest."""
        while True:
            await asyncio.sleep(RENEW_SECONDS)
            try:
                _context(certificate, key)  # one that does not go with its key yet must not spoil the one in use
                context.load_cert_chain(certificate, key)
            except OSError as error:
                log.warning("%s: the certificate is not renewed, the last one stays: %s", certificate, error)

    async def _answer(self, request: web.Request) -> web.Response:
        if request.path == "/healthz":
            return web.Response(text="ok")
        scheme, _, token = request.headers.get("Authorization", "").partition(" ")
        code = await self._judge(token.strip() if scheme.lower() == "bearer" else "", request.path)
        page = self._pages.get(request.path)
        if code == 200:
            code = 404 if page is None else 405 if request.method != "GET" else 200
        if code != 200 or page is None:
            return web.Response(status=code, text=_TEXTS[code])
        body, content_type = await page(request.headers.get("Accept", ""))
        return web.Response(body=body, headers={"Content-Type": content_type})

    async def _judge(self, token: str, path: str) -> int:
        """200, or the HTTP status to refuse with."""
        if not token:
            return 401
        asked, now = (hashlib.sha256(token.encode()).digest(), path), time.monotonic()
        known = self._known.get(asked)
        if known is not None and now < known[1]:
            return known[0]
        try:
            code = await self._review(token, path)
        except kube.ApiError as error:
            log.warning("nobody can be let in, because the cluster does not say who they are: %s", error)
            return 503
        if len(self._known) >= _REMEMBERED:
            self._known.clear()
        self._known[asked] = (code, now + _HOLDS_SECONDS)
        return code

    async def _review(self, token: str, path: str) -> int:
        who = (await self._client.create(_TOKEN_REVIEWS, {"spec": {"token": token}})).get("status") or {}
        if not who.get("authenticated"):
            return 401
        user = who.get("user") or {}
        spec = {
            "user": user.get("username", ""),
            "groups": user.get("groups") or [],
            "uid": user.get("uid", ""),
            "extra": user.get("extra") or {},
            "nonResourceAttributes": {"path": path, "verb": "get"},
        }
        may = (await self._client.create(_ACCESS_REVIEWS, {"spec": spec})).get("status") or {}
        return 200 if may.get("allowed") else 403


def _context(certificate: Path, key: Path | None) -> ssl.SSLContext:
    """Raises OSError (ssl.SSLError is one) when the files cannot be read or do not belong together."""
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    context.load_cert_chain(certificate, key)
    return context


_TEXTS = {
    401: "a bearer token of the cluster is needed\n",
    403: "the token's user may not get this path; the ClusterRole capstan:observer grants it\n",
    404: "there is no such page\n",
    405: "pages are only read\n",
    503: "the cluster does not answer who you are; try again\n",
}


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"
