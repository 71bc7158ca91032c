"""An API server in memory for contract tests: requests in, Status documents out."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Any, TypeVar
from urllib.parse import parse_qsl

import msgspec
import pytest

from capstan.api.feature_gates import FeatureGates
from capstan.local import ADMIN, Server, User
from capstan.local.request import Request, Response, Stream

T = TypeVar("T")


class Answer:
    def __init__(self, response: Response) -> None:
        self.code = response.code
        self.warnings = response.warnings
        self.headers = response.headers
        self.content_type = response.content_type
        self.text = response.body.decode()
        self.body: Any = msgspec.json.decode(response.body) if response.content_type == "application/json" else None

    def __repr__(self) -> str:
        return f"<{self.code} {self.text}>"

    @property
    def status(self) -> tuple[int, str, str]:
        """(code, reason, message) of a Status that says the same code in its body and its header."""
        assert self.body["kind"] == "Status", self
        assert self.body["apiVersion"] == "v1"
        assert self.body["code"] == self.code
        assert self.body["status"] == "Failure"
        return self.code, self.body["reason"], self.body["message"]

    @property
    def causes(self) -> list[tuple[str, str]]:
        """(field, reason) of each cause."""
        return [(cause.get("field", ""), cause["reason"]) for cause in self.body["details"]["causes"]]


class Watch:
    """An open watch; `next` gives (type, object) pairs."""

    def __init__(self, api: Api, stream: Stream) -> None:
        self._api = api
        self._pending: list[bytes] = []
        self._chunks = stream.chunks

    def next(self, count: int = 1) -> list[tuple[str, Any]]:
        while len(self._pending) < count:
            self._pending += self._api.run(asyncio.wait_for(anext(self._chunks), 5))
        taken, self._pending = self._pending[:count], self._pending[count:]
        events = [msgspec.json.decode(line) for line in taken]
        return [(event["type"], event["object"]) for event in events]

    def names(self, count: int) -> list[tuple[str, str]]:
        return [(kind, item["metadata"]["name"]) for kind, item in self.next(count)]

    def ended(self) -> bool:
        """Whether the stream ends without another event."""
        assert not self._pending, self._pending

        async def first() -> bool:
            async for _ in self._chunks:
                return False
            return True

        return self._api.run(asyncio.wait_for(first(), 5))

    def close(self) -> None:
        self._api.run(self._chunks.aclose())


class Clock:
    def __init__(self) -> None:
        self.seconds = 1_700_000_000.0

    def __call__(self) -> float:
        return self.seconds


class Api:
    """A server and the loop it runs on. `call` takes the body as an object, text or bytes."""

    def __init__(self, gates: FeatureGates | None = None) -> None:
        self.loop = asyncio.new_event_loop()
        self.clock = Clock()
        self.server = Server(now=self.clock, gates=gates or FeatureGates())
        self.run(self.server.start())

    def run(self, work: Awaitable[T]) -> T:
        async def wait() -> T:
            return await work

        return self.loop.run_until_complete(wait())

    def request(
        self,
        method: str,
        path: str,
        body: object = None,
        user: User = ADMIN,
        headers: dict[str, str] | None = None,
    ) -> Request:
        path, _, query = path.partition("?")
        content = body if isinstance(body, bytes) else body.encode() if isinstance(body, str) else b""
        if body is not None and not isinstance(body, str | bytes):
            content = msgspec.json.encode(body)
        return Request(
            method,
            path,
            dict(parse_qsl(query, keep_blank_values=True)),
            content,
            {"user-agent": "tests", "content-type": "application/json", **(headers or {})},
            user,
        )

    def call(
        self,
        method: str,
        path: str,
        body: object = None,
        *,
        user: User = ADMIN,
        headers: dict[str, str] | None = None,
    ) -> Answer:
        response = self.run(self.server.handle(self.request(method, path, body, user, headers)))
        assert isinstance(response, Response), path
        return Answer(response)

    def get(self, path: str, **options: Any) -> Any:
        answer = self.call("GET", path, **options)
        assert answer.code == 200, answer
        return answer.body

    def create(self, path: str, body: object, **options: Any) -> Any:
        answer = self.call("POST", path, body, **options)
        assert answer.code == 201, answer
        return answer.body

    def patch(self, path: str, body: object, kind: str = "merge-patch+json", **options: Any) -> Answer:
        return self.call("PATCH", path, body, headers={"content-type": f"application/{kind}"}, **options)

    def apply(self, path: str, body: object, manager: str = "tests", query: str = "", **options: Any) -> Answer:
        return self.patch(f"{path}?fieldManager={manager}{query}", body, "apply-patch+yaml", **options)

    def watch(self, path: str, *, user: User = ADMIN, headers: dict[str, str] | None = None) -> Watch:
        joined = f"{path}{'&' if '?' in path else '?'}watch=true"
        response = self.run(self.server.handle(self.request("GET", joined, None, user, headers)))
        assert isinstance(response, Stream), response
        return Watch(self, response)

    def names(self, path: str) -> list[str]:
        return [item["metadata"]["name"] for item in self.get(path)["items"]]

    def close(self) -> None:
        self.run(self.server.stop())
        self.loop.run_until_complete(self.loop.shutdown_asyncgens())
        self.loop.close()


@pytest.fixture
def api() -> Iterator[Api]:
    server = Api()
    yield server
    server.close()


@pytest.fixture(scope="session")
def fresh_api() -> Callable[..., AbstractContextManager[Api]]:
    """For property tests, and for servers with other feature gates: a new server for each example."""

    @contextmanager
    def make(gates: FeatureGates | None = None) -> Iterator[Api]:
        server = Api(gates)
        try:
            yield server
        finally:
            server.close()

    return make
