"""What can go wrong between a client and an API server.

ApiError                 the server answered with a Status, or nothing usable came back
├── BadRequest           400
├── Unauthorized         401
├── Forbidden            403
├── NotFound             404
├── AlreadyExists        409, reason AlreadyExists
├── Conflict             409
├── Gone                 410: a resource version or continue token that is no longer kept
├── Invalid              422
├── TooManyRequests      429
└── Unavailable          5xx, or no answer at all (then the code is 503)
    └── NotLeading       never sent: who writes leads no more
ConfigError              a kubeconfig or service account that cannot be used
UnknownKind              no served resource has this apiVersion and kind
UnknownResource          no served resource is called so
Undecodable              an object whose fields do not have the types of its API
"""

from __future__ import annotations

import http
import logging

import msgspec

from capstan.api.base import Status


class ApiError(Exception):
    """A refused or failed API call. `status` is the server's Status, `retry_after` its wish in seconds, if any."""

    def __init__(self, status: Status, retry_after: float | None = None) -> None:
        super().__init__(status.message or status.reason or str(status.code))
        self.status = status
        self.retry_after = retry_after

    @property
    def code(self) -> int:
        return self.status.code

    @property
    def reason(self) -> str:
        return self.status.reason


class BadRequest(ApiError):
    """The server did not understand the request."""


class Unauthorized(ApiError):
    """The credentials are missing or not accepted."""


class Forbidden(ApiError):
    """The user may not do this."""


class NotFound(ApiError):
    """There is no such object or resource."""


class AlreadyExists(ApiError):
    """An object of this name is there already."""


class Conflict(ApiError):
    """The object changed since it was read, a precondition failed, or another manager owns a field."""


class Gone(ApiError):
    """The resource version or continue token is too old; list again."""


class Invalid(ApiError):
    """The object fails validation; `status.details.causes` names the fields."""


class TooManyRequests(ApiError):
    """The server is busy, or an eviction would break a disruption budget."""


class Unavailable(ApiError):
    """The server failed, or could not be reached."""


class NotLeading(Unavailable):
    """A write that a `Fence` held back. The elector reports that, once; who wrote need not say it for every object."""


class ConfigError(Exception):
    """A kubeconfig or service account that cannot be used. `hint` says what to do."""

    def __init__(self, message: str, hint: str = "") -> None:
        super().__init__(f"{message}; {hint}" if hint else message)
        self.hint = hint


class UnknownKind(Exception):
    """No served resource has this apiVersion and kind."""

    def __init__(self, api_version: str, kind: str) -> None:
        self.hint = "install its CustomResourceDefinition first, or correct apiVersion and kind"
        super().__init__(f"the API server serves no kind {kind!r} in {api_version!r}; {self.hint}")


class UnknownResource(Exception):
    """No served resource is called so."""

    def __init__(self, name: str) -> None:
        self.hint = "`kubectl api-resources` lists them"
        super().__init__(f"the API server serves nothing called {name!r}; {self.hint}")


class Undecodable(Exception):
    """An object whose fields do not have the types of its API."""


_BY_CODE: dict[int, type[ApiError]] = {
    400: BadRequest,
    401: Unauthorized,
    403: Forbidden,
    404: NotFound,
    409: Conflict,
    410: Gone,
    422: Invalid,
    429: TooManyRequests,
}


def from_status(status: Status, retry_after: float | None = None) -> ApiError:
    """The error class for a Status, by its code (AlreadyExists shares 409 with Conflict and goes by its reason)."""
    if status.reason == "AlreadyExists":
        return AlreadyExists(status, retry_after)
    kind = _BY_CODE.get(status.code, Unavailable if status.code >= 500 else ApiError)
    return kind(status, retry_after)


def from_response(code: int, body: bytes, retry_after: str | None = None) -> ApiError:
    """The error of a non-2xx response; a body that is no Status (a proxy's page) becomes the message, shortened."""
    try:
        status = msgspec.json.decode(body, type=Status)
    except msgspec.DecodeError:
        status = Status(message=body[:300].decode(errors="replace").strip())
    status.code = code
    status.message = status.message or http.HTTPStatus(code).phrase if code in set(http.HTTPStatus) else status.message
    return from_status(status, _seconds(retry_after))


def severity(error: ApiError) -> int:
    """The level at which to log that a write failed and is tried again."""
    return logging.DEBUG if isinstance(error, NotLeading) else logging.WARNING


def unreachable(what: str, error: BaseException | str) -> Unavailable:
    """No answer came: refused, reset, timed out."""
    detail = str(error) or type(error).__name__
    return Unavailable(Status(code=503, reason="ServiceUnavailable", message=f"{what}: {detail}"))


def _seconds(retry_after: str | None) -> float | None:
    """The seconds form of Retry-After; the date form, which no API server sends, counts as absent."""
    return float(retry_after) if retry_after and retry_after.isdigit() else None
