"""Leader election on a Lease: at most one of several processes works.

As in client-go, expiry is judged by the own monotonic clock since the record was last *seen to change*, so clocks of
different machines need not agree. Beyond client-go, a leader's writes go through a `Fence`: one that slept past its
lease, or that was replaced, writes nothing more, even before it has noticed.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import AbstractAsyncContextManager, suppress

from capstan.api import clock
from capstan.api.base import Status
from capstan.api.coordination import LeaseSpec
from capstan.api.rbac import PolicyRule
from capstan.api.resources import LEASES
from capstan.kube import errors
from capstan.kube.client import Body, Client
from capstan.kube.transport import Response, Transport

_log = logging.getLogger(__name__)


class LeaderElector:
    """Campaigns for the Lease `namespace/name` and runs work while it holds it."""

    RULES = [PolicyRule(api_groups=["coordination.k8s.io"], resources=["leases"], verbs=["get", "create", "update"])]

    def __init__(
        self,
        client: Client,
        name: str,
        namespace: str,
        identity: str,
        *,
        lease_seconds: int = 15,
        renew_seconds: float = 10.0,
        retry_seconds: float = 2.0,
    ) -> None:
        self.identity = identity
        self.is_leader = False
        self._client, self._name, self._namespace = client, name, namespace
        self._lease_seconds, self._renew_seconds, self._retry_seconds = lease_seconds, renew_seconds, retry_seconds
        self._seen: tuple[LeaseSpec | None, float] = (None, 0.0)
        self._holder: str | None = None
        self._until = 0.0

    @property
    def may_write(self) -> bool:
        """Whether the lease is held and was renewed within `renew_seconds`; then nobody else can hold it.

        Work that is told to stop may write last words: the lease is released only after it has ended.
        """
        return self._holder == self.identity and time.monotonic() <= self._until

    def fenced(self, client: Client) -> Client:
        """A client for the work: its writes fail with Unavailable as soon as the lease is not surely ours."""
        return Client(Fence(client.transport, self), field_manager=client.field_manager)

    async def run(self, work: Callable[[], Awaitable[None]]) -> None:
        """Waits for leadership and runs `work`; cancels it when leadership is lost, and campaigns again.

        Returns when `work` returns, raises what it raises. The lease is released on the way out.
        """
        try:
            while True:
                await self._acquire()
                _log.info("%s leads %s/%s", self.identity, self._namespace, self._name)
                self.is_leader = True
                working = asyncio.ensure_future(work())
                try:
                    if await self._hold(working):
                        return
                finally:
                    self.is_leader = False
                    working.cancel()
                    with suppress(asyncio.CancelledError):
                        await working
                _log.warning("%s lost %s/%s", self.identity, self._namespace, self._name)
        finally:
            await asyncio.shield(self._release())

    async def _acquire(self) -> None:
        while True:
            if await self._try():
                return
            await asyncio.sleep(self._retry_seconds)

    async def _hold(self, working: asyncio.Future[None]) -> bool:
        """Renews until `working` ends (True), another holds the lease, or no renewal succeeded for `renew_seconds`."""
        while True:
            done, _ = await asyncio.wait([working], timeout=self._retry_seconds)
            if done:
                working.result()
                return True
            if not await self._try() and (self._holder != self.identity or time.monotonic() > self._until):
                return False

    async def _try(self) -> bool:
        """Takes or renews the lease; False when another holds it or the server does not answer."""
        asked = time.monotonic()
        now = clock.render_micro(time.time())
        try:
            try:
                lease = await self._client.get(LEASES, self._name, self._namespace)
            except errors.NotFound:
                await self._client.create(LEASES, self._body(now, now, 0, ""), self._namespace)
                self._held(since=asked)
                return True
            spec = lease.spec
            self._holder = spec.holder_identity
            if spec != self._seen[0]:
                self._seen = (spec, time.monotonic())
            ours = spec.holder_identity == self.identity
            expires = self._seen[1] + (spec.lease_duration_seconds or self._lease_seconds)
            if not ours and spec.holder_identity and time.monotonic() < expires:
                return False
            acquired = spec.acquire_time or now if ours else now
            transitions = (spec.lease_transitions or 0) + (0 if ours else 1)
            body = self._body(acquired, now, transitions, lease.metadata.resource_version)
            await self._client.update(LEASES, body)
        except errors.ApiError as error:
            _log.debug("lease %s/%s: %s", self._namespace, self._name, error)
            return False
        self._held(since=asked)
        return True

    def _held(self, since: float) -> None:
        self._holder, self._until = self.identity, since + self._renew_seconds

    def _body(self, acquired: str, renewed: str, transitions: int, version: str) -> Body:
        return {
            "apiVersion": LEASES.api_version,
            "kind": LEASES.kind,
            "metadata": {"name": self._name, "namespace": self._namespace}
            | ({"resourceVersion": version} if version else {}),
            "spec": {
                "holderIdentity": self.identity,
                "leaseDurationSeconds": self._lease_seconds,
                "acquireTime": acquired,
                "renewTime": renewed,
                "leaseTransitions": transitions,
            },
        }

    async def _release(self) -> None:
        """Lets the next one start at once instead of after the lease has run out."""
        self._until = 0.0
        try:
            lease = await self._client.get(LEASES, self._name, self._namespace)
            if lease.spec.holder_identity == self.identity:
                body = self._body("", "", lease.spec.lease_transitions or 0, lease.metadata.resource_version)
                now = clock.render_micro(time.time())
                body["spec"] |= {"leaseDurationSeconds": 1, "acquireTime": now, "renewTime": now}
                del body["spec"]["holderIdentity"]
                await self._client.update(LEASES, body)
        except errors.ApiError as error:
            _log.info(
                "lease %s/%s could not be released and runs out by itself: %s", self._namespace, self._name, error
            )


class Fence:
    """A transport that lets writes through only while its elector may write."""

    def __init__(self, transport: Transport, elector: LeaderElector) -> None:
        self._transport, self._elector = transport, elector
        self._shut = False

    async def request(
        self,
        method: str,
        path: str,
        *,
        query: Mapping[str, str] | None = None,
        body: bytes | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> Response:
        if method != "GET" and not self._elector.may_write:
            message = f"{self._elector.identity} does not lead any more"
            if not self._shut:
                self._shut = True
                _log.warning("%s: what it decides is not written", message)
            status = Status(code=503, reason="ServiceUnavailable", message=f"{method} {path}: {message}")
            raise errors.NotLeading(status)
        self._shut = False
        return await self._transport.request(method, path, query=query, body=body, headers=headers)

    def stream(
        self, path: str, *, query: Mapping[str, str] | None = None, headers: Mapping[str, str] | None = None
    ) -> AbstractAsyncContextManager[AsyncIterator[bytes]]:
        return self._transport.stream(path, query=query, headers=headers)

    async def close(self) -> None:
        await self._transport.close()
