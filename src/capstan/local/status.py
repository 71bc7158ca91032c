"""The answers of a refused request: one exception that carries the `v1 Status`, and one constructor per upstream
reason.

Messages and reasons are those of `k8s.io/apimachinery/pkg/api/errors`, because kubectl and client libraries branch on
them.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import msgspec

from capstan.api.base import StatusCause

Json = dict[str, Any]


class Refused(Exception):
    """A request that is answered with a Status. `body` is the Status document, `code` its HTTP code."""

    def __init__(
        self, code: int, reason: str, message: str, details: Json | None = None, metadata: Json | None = None
    ) -> None:
        super().__init__(message)
        self.code = code
        self.reason = reason
        self.body: Json = {
            "kind": "Status",
            "apiVersion": "v1",
            "metadata": metadata or {},
            "status": "Failure",
            "message": message,
            "reason": reason,
            **({"details": details} if details else {}),
            "code": code,
        }


def qualified(plural: str, group: str) -> str:
    return f"{plural}.{group}" if group else plural


def _details(name: str, group: str, kind: str) -> Json:
    details = {"name": name, "group": group, "kind": kind}
    return {key: value for key, value in details.items() if value}


def not_found(plural: str, group: str, name: str) -> Refused:
    return Refused(404, "NotFound", f'{qualified(plural, group)} "{name}" not found', _details(name, group, plural))


def no_such_path() -> Refused:
    return Refused(404, "NotFound", "the server could not find the requested resource", {})


def already_exists(plural: str, group: str, name: str) -> Refused:
    message = f'{qualified(plural, group)} "{name}" already exists'
    return Refused(409, "AlreadyExists", message, _details(name, group, plural))


def conflict(plural: str, group: str, name: str, why: str) -> Refused:
    message = f'Operation cannot be fulfilled on {qualified(plural, group)} "{name}": {why}'
    return Refused(409, "Conflict", message, _details(name, group, plural))


MODIFIED = "the object has been modified; please apply your changes to the latest version and try again"


def apply_conflict(message: str, conflicts: Sequence[tuple[str, str]]) -> Refused:
    """Server-side apply met fields of other managers; `conflicts` are (field path, owner as `"name" using version`)."""
    causes = [
        {"reason": "FieldManagerConflict", "message": f"conflict with {owner}", "field": path}
        for path, owner in conflicts
    ]
    return Refused(409, "Conflict", message, {"causes": causes})


def invalid(kind: str, group: str, name: str, causes: Sequence[StatusCause]) -> Refused:
    texts = [f"{cause.field}: {cause.message}" if cause.field else cause.message for cause in causes]
    listing = texts[0] if len(texts) == 1 else "[" + ", ".join(texts) + "]"
    message = f'{qualified(kind, group)} "{name}" is invalid: {listing}'
    details = _details(name, group, kind) | {"causes": [msgspec.to_builtins(cause) for cause in causes]}
    return Refused(422, "Invalid", message, details)


def bad_request(message: str) -> Refused:
    return Refused(400, "BadRequest", message)


def unauthorized() -> Refused:
    return Refused(401, "Unauthorized", "Unauthorized")


def forbidden(plural: str, group: str, name: str, why: str) -> Refused:
    what = f'{qualified(plural, group)} "{name}"' if name else qualified(plural, group)
    return Refused(403, "Forbidden", f"{what} is forbidden: {why}", _details(name, group, plural))


def expired(message: str, continue_token: str = "") -> Refused:
    return Refused(410, "Expired", message, metadata={"continue": continue_token} if continue_token else None)


def method_not_allowed() -> Refused:
    return Refused(405, "MethodNotAllowed", "the server does not allow this method on the requested resource", {})


def not_implemented(what: str) -> Refused:
    return Refused(501, "NotImplemented", f"{what} is not implemented by the embedded control plane")


def unsupported_media_type(accepted: Sequence[str]) -> Refused:
    message = f"the body of the request was in an unknown format - accepted media types include: {', '.join(accepted)}"
    return Refused(415, "UnsupportedMediaType", message)


def not_acceptable() -> Refused:
    message = "only the following media types are accepted: application/json, application/yaml"
    return Refused(406, "NotAcceptable", message)


def too_large(limit: int) -> Refused:
    return Refused(413, "RequestEntityTooLarge", f"Request entity too large: limit is {limit}")


def future_revision(asked: int, current: int) -> Refused:
    details = {
        "causes": [{"reason": "ResourceVersionTooLarge", "message": "Too large resource version"}],
        "retryAfterSeconds": 1,
    }
    return Refused(504, "Timeout", f"Timeout: Too large resource version: {asked}, current: {current}", details)


def disruption_budget(budget: str, message: str) -> Refused:
    """Eviction refused by a PodDisruptionBudget (`policy.DisruptionBudgetCause`)."""
    causes = [{"reason": "DisruptionBudget", "message": message}]
    text = "Cannot evict pod as it would violate the pod's disruption budget."
    return Refused(429, "TooManyRequests", text, {"causes": causes})


def success(plural: str, group: str, name: str, uid: str) -> Json:
    details = _details(name, group, plural) | {"uid": uid}
    return {"kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Success", "details": details}
