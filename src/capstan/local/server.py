"""The embedded API server: puts the parts together and answers requests, from HTTP or from within the process alike.

request → who asks (`auth`) → may they (`rbac`) → which resource (`registry`) → verb (`reads`, `handlers`,
`subresources`, `reviews`)
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import secrets
import time
from collections.abc import Awaitable, Callable
from pathlib import Path

from capstan.api.feature_gates import FeatureGates
from capstan.local import bootstrap, credentials, status
from capstan.local.admission import Chain
from capstan.local.auth import Authenticator
from capstan.local.definitions import Definitions
from capstan.local.documents import Documents
from capstan.local.handlers import Writes
from capstan.local.inprocess import InProcessTransport
from capstan.local.policies import Policies
from capstan.local.rbac import Action, Authorizer, denial
from capstan.local.reads import BOOKMARK_SECONDS, Reads
from capstan.local.registry import Registry
from capstan.local.request import (
    ADMIN,
    ANONYMOUS,
    JSON,
    Request,
    Response,
    Stream,
    User,
    encode,
    route,
    verb_of,
)
from capstan.local.reviews import Reviews
from capstan.local.store import LogFailed, Store
from capstan.local.subresources import LogProvider, Subresources
from capstan.local.types import builtin_types

log = logging.getLogger(__name__)

_LONGEST_BURST_SECONDS = 30.0
_LOOK_SECONDS = 0.02
_LATE_SECONDS = 0.005
Page = Callable[[str], Awaitable[tuple[bytes, str]]]
"""From an Accept header to a body and its content type."""
_PROBES = frozenset({"/healthz", "/livez", "/readyz"})


class Server:
    """`data_dir` None keeps the state in memory. `now` gives POSIX seconds. `gates` say which features of Kubernetes
    are on.

    `logs` maps a node's name to what reads the logs of its pods; node agents register themselves there. `pages` maps a
    path outside of the API, such as `/metrics`, to what answers it; components register theirs, and callers need the
    right to `get` that path (`nonResourceURLs`).
    """

    def __init__(
        self,
        data_dir: Path | None = None,
        *,
        now: Callable[[], float] = time.time,
        gates: FeatureGates = FeatureGates(),  # noqa: B008  # immutable
    ) -> None:
        self.data_dir = data_dir
        self.now = now
        self.store = Store(data_dir / "state.db" if data_dir is not None else None)
        self.registry = Registry(builtin_types(gates))
        self.admission = Chain(self.store)
        self.authorizer = Authorizer(self.store)
        self.admission.mutating.append(Policies(self.store, self.registry, "Mutating").admit)
        self.admission.validating += [self.authorizer.admit, Policies(self.store, self.registry, "Validating").admit]
        self.credentials: credentials.Credentials | None = None
        self.logs: dict[str, LogProvider] = {}
        self.pages: dict[str, Page] = {}
        self.reads = Reads(self.store)
        self.writes = Writes(self.store, self.admission, now)
        self.definitions = Definitions(self.registry, self.reads, self.writes)
        self._background: list[asyncio.Task[None]] = []
        self._ready = False

    async def start(self) -> None:
        """Open the store, make what every cluster has. Raises store.DataDirectoryInUse."""
        await self.store.open()
        try:
            await self._assemble()
        except BaseException:
            await self.store.close()
            raise

    async def _assemble(self) -> None:
        if self.data_dir is not None:
            self.credentials = credentials.ensure(self.data_dir / "pki")
        key = self.credentials.signing_key if self.credentials is not None else secrets.token_bytes(32)
        self.authenticator = Authenticator(self.store, key, self.now)
        if self.credentials is not None:
            self.authenticator.add_static(self.credentials.admin_token, ADMIN)
        self._reviews = Reviews(self.authorizer, self.authenticator)
        self._subresources = Subresources(self.reads, self.writes, self.authenticator, self.logs)
        self.definitions.start()
        self._discovery = Documents(self.registry)
        await bootstrap.ensure(self)
        self._background = [asyncio.create_task(self._send_bookmarks()), asyncio.create_task(self.definitions.run())]
        self._ready = True

    async def stop(self) -> None:
        self._ready = False
        self.reads.close()
        for task in self._background:
            task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await task
        await self.store.close()

    def transport(self, user: User = ADMIN, *, user_agent: str = "capstan") -> InProcessTransport:
        """A `kube.Transport` straight into this server."""
        return InProcessTransport(self, user, user_agent)

    async def calm(self) -> None:
        """Returns when no burst of pods is being bound or this thread has time to spare, and after
        `_LONGEST_BURST_SECONDS` in any case: what shares a processor with the control plane waits here, so that
        scheduling goes first.

        A burst is not over while this thread is busy: the pause between two bindings may be a long decision.
        """
        loop = asyncio.get_running_loop()
        now, worked = loop.time(), time.thread_time()
        latest = now + _LONGEST_BURST_SECONDS
        spare = 0
        while now < latest and spare < (2 if now < self._subresources.burst.over else 1):
            await asyncio.sleep(_LOOK_SECONDS)
            before, worked_before = now, worked
            now, worked = loop.time(), time.thread_time()
            took = now - before
            busy = worked - worked_before > took / 2 or took > _LOOK_SECONDS + _LATE_SECONDS
            spare = 0 if busy else spare + 1

    async def handle(self, request: Request) -> Response | Stream:
        """Answer one request. Every failure becomes a Status."""
        try:
            return await self._dispatch(request)
        except status.Refused as refused:
            return refusal(refused)
        except RecursionError:
            return refusal(status.bad_request("the object is nested too deeply"))
        except LogFailed as failed:
            return refusal(status.Refused(503, "ServiceUnavailable", str(failed)))
        except Exception:
            log.exception("%s %s failed", request.method, request.path)
            message = f"Internal error occurred: {request.method} {request.path} failed; see the server's log"
            return refusal(status.Refused(500, "InternalError", message))

    async def _dispatch(self, request: Request) -> Response | Stream:
        if "impersonate-user" in request.headers:
            request.user = self._impersonated(request)
        target = route(request.path)
        if target is None:
            return await self._other(request)
        verb = verb_of(request, target)
        if not verb:
            raise status.method_not_allowed()
        self._authorize(
            request, Action(verb, target.group, target.plural, target.subresource, target.namespace, target.name)
        )
        if self._reviews.answers(target):
            if verb != "create":
                raise status.method_not_allowed()
            return self._reviews.create(request, target)
        served = self.registry.find(target.group, target.version, target.plural)
        if served is None:
            raise status.no_such_path()
        resource = served.type
        if target.plural == "namespaces" and not target.group:
            target.namespace = ""
        if bool(target.namespace) > resource.namespaced:
            raise status.no_such_path()
        if target.subresource:
            return await self._subresources.handle(verb, request, served, target)
        if verb not in resource.verbs or (verb in ("update", "patch")) > bool(target.name):
            raise status.method_not_allowed()
        if verb == "create" and target.name:
            raise status.method_not_allowed()
        if resource.namespaced and not target.namespace and verb not in ("list", "watch"):
            raise status.method_not_allowed()
        if target.plural == "bindings" and not target.group:
            pods = self.registry.find("", "v1", "pods")
            assert pods is not None
            return await self._subresources.bind_named(request, pods, target)
        match verb:
            case "get":
                return await self.reads.get(request, served, target)
            case "list":
                return await self.reads.list_(request, served, target)
            case "watch":
                return await self.reads.watch(request, served, target)
            case "create":
                return await self.writes.create(request, served, target)
            case "update":
                return await self.writes.update(request, served, target)
            case "patch":
                return await self.writes.patch(request, served, target)
            case "delete":
                return await self.writes.delete(request, served, target)
        return await self.writes.delete_collection(request, served, target)

    def _authorize(self, request: Request, action: Action) -> None:
        user = request.user
        if self.authorizer.allowed(user, action):
            return
        if user is ANONYMOUS:
            raise status.unauthorized()
        if action.path:
            raise status.Refused(403, "Forbidden", f"forbidden: {denial(user, action)}", {})
        raise status.forbidden(action.plural, action.group, action.name, denial(user, action))

    def _impersonated(self, request: Request) -> User:
        """`kubectl --as`: the caller needs the verb `impersonate` on each user and group it takes on."""
        name = request.headers["impersonate-user"]
        groups = tuple(each.strip() for each in request.headers.get("impersonate-group", "").split(",") if each.strip())
        self._authorize(request, Action("impersonate", "", "users", name=name))
        for group in groups:
            self._authorize(request, Action("impersonate", "", "groups", name=group))
        if name.startswith("system:serviceaccount:") and not groups:
            namespace = name.split(":")[2]
            groups = ("system:serviceaccounts", f"system:serviceaccounts:{namespace}")
        if "system:authenticated" not in groups:
            groups += ("system:authenticated",)
        return User(name, groups)

    async def _other(self, request: Request) -> Response:
        """Paths that name no resource: probes, pages of components, version, discovery, OpenAPI."""
        path = request.path.rstrip("/") or "/"
        if path in _PROBES or path.startswith(("/livez/", "/readyz/", "/healthz/")):
            ready = self._ready and not self.store.failed
            return Response(200 if ready else 500, b"ok" if ready else b"not ready", "text/plain; charset=utf-8")
        self._authorize(request, Action(request.method.lower(), path=path))
        if request.method not in ("GET", "HEAD"):
            raise status.method_not_allowed()
        page = self.pages.get(path)
        if page is not None:
            return Response(200, *await page(request.headers.get("accept", "")))
        answer = self._discovery.answer(
            path, request.headers.get("accept", ""), request.headers.get("if-none-match", "")
        )
        if answer is None:
            raise status.no_such_path()
        return answer

    async def _send_bookmarks(self) -> None:
        while True:
            await asyncio.sleep(BOOKMARK_SECONDS)
            self.reads.send_bookmarks()


def refusal(refused: status.Refused) -> Response:
    headers = {}
    seconds = refused.body.get("details", {}).get("retryAfterSeconds")
    if seconds:
        headers["Retry-After"] = str(seconds)
    return Response(refused.code, encode(refused.body), JSON, headers=headers)
