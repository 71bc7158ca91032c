"""The authorizer of admission expressions: a chain of method calls that describes one access and asks about it.

The decision itself comes from outside: `Authorizer` holds a function from a `Request` to a `Decision`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Final

from capstan.cel.errors import EvaluationError
from capstan.cel.formats import problems
from capstan.cel.library import Library
from capstan.cel.values import register_type

AUTHORIZATION: Final = Library("authorization")


@dataclass(frozen=True, slots=True)
class Request:
    """One access: to a `path`, or to a resource. `service_account` is (namespace, name) when it is not the user's
    own."""

    verb: str = ""
    path: str = ""
    group: str = ""
    resource: str = ""
    subresource: str = ""
    namespace: str = ""
    name: str = ""
    field_selector: str = ""
    label_selector: str = ""
    service_account: tuple[str, str] | None = None


@dataclass(frozen=True, slots=True)
class Decision:
    allowed: bool
    reason: str = ""
    error: str = ""


Decide = Callable[[Request], Decision]


@dataclass(frozen=True, slots=True)
class Authorizer:
    decide: Decide
    request: Request = Request()


@dataclass(frozen=True, slots=True)
class PathCheck:
    decide: Decide
    request: Request


@dataclass(frozen=True, slots=True)
class GroupCheck:
    decide: Decide
    request: Request


@dataclass(frozen=True, slots=True)
class ResourceCheck:
    decide: Decide
    request: Request


_PREFIX: Final = "kubernetes.authorization."
for _python in (Authorizer, PathCheck, GroupCheck, ResourceCheck, Decision):
    register_type(_PREFIX + _python.__name__, _python)


def _require(what: str, text: str) -> None:
    if not text.strip():
        raise EvaluationError(f"{what} must not be empty")


@AUTHORIZATION.declare(f"<{_PREFIX}Authorizer>.path(string) -> {_PREFIX}PathCheck")
def path(authorizer: Authorizer, path: str) -> PathCheck:
    _require("path", path)
    return PathCheck(authorizer.decide, replace(authorizer.request, path=path))


@AUTHORIZATION.declare(f"<{_PREFIX}Authorizer>.group(string) -> {_PREFIX}GroupCheck")
def group(authorizer: Authorizer, group: str) -> GroupCheck:
    return GroupCheck(authorizer.decide, replace(authorizer.request, group=group))


@AUTHORIZATION.declare(f"<{_PREFIX}Authorizer>.serviceAccount(string, string) -> {_PREFIX}Authorizer")
def service_account(authorizer: Authorizer, namespace: str, name: str) -> Authorizer:
    for text, format_, what in ((name, "dns1123Subdomain", "name"), (namespace, "dns1123Label", "namespace")):
        if found := problems(format_, text):
            raise EvaluationError(f"Invalid service account {what}: {', '.join(found)}")
    return Authorizer(authorizer.decide, replace(authorizer.request, service_account=(namespace, name)))


@AUTHORIZATION.declare(f"<{_PREFIX}GroupCheck>.resource(string) -> {_PREFIX}ResourceCheck")
def resource(check: GroupCheck, resource: str) -> ResourceCheck:
    _require("resource", resource)
    return ResourceCheck(check.decide, replace(check.request, resource=resource))


def _field(method: str, narrowed: Callable[[Request, str], Request]) -> None:
    @AUTHORIZATION.declare(f"<{_PREFIX}ResourceCheck>.{method}(string) -> {_PREFIX}ResourceCheck")
    def narrow(check: ResourceCheck, value: str) -> ResourceCheck:
        return ResourceCheck(check.decide, narrowed(check.request, value))

    narrow.__name__ = method


_field("subresource", lambda request, value: replace(request, subresource=value))
_field("namespace", lambda request, value: replace(request, namespace=value))
_field("name", lambda request, value: replace(request, name=value))
_field("fieldSelector", lambda request, value: replace(request, field_selector=value))
_field("labelSelector", lambda request, value: replace(request, label_selector=value))


@AUTHORIZATION.declare(
    f"<{_PREFIX}PathCheck>.check(string) -> {_PREFIX}Decision",
    f"<{_PREFIX}ResourceCheck>.check(string) -> {_PREFIX}Decision",
)
def check(checked: PathCheck | ResourceCheck, verb: str) -> Decision:
    return checked.decide(replace(checked.request, verb=verb))


@AUTHORIZATION.declare(f"<{_PREFIX}Decision>.allowed() -> bool")
def allowed(decision: Decision) -> bool:
    return decision.allowed


@AUTHORIZATION.declare(f"<{_PREFIX}Decision>.reason() -> string")
def reason(decision: Decision) -> str:
    return decision.reason


@AUTHORIZATION.declare(f"<{_PREFIX}Decision>.errored() -> bool")
def errored(decision: Decision) -> bool:
    return bool(decision.error)


@AUTHORIZATION.declare(f"<{_PREFIX}Decision>.error() -> string")
def error(decision: Decision) -> str:
    return decision.error
