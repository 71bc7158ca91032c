"""The review APIs: questions about permissions and tokens, answered and never stored (`authorization.k8s.io`,
`authentication.k8s.io`)."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import msgspec

from capstan.local import bodies, status
from capstan.local.auth import ISSUER, Authenticator
from capstan.local.rbac import Action, Authorizer
from capstan.local.request import Request, Response, Target, User, encode
from capstan.local.status import Json

_AUTHORIZATION, _AUTHENTICATION = "authorization.k8s.io", "authentication.k8s.io"


def _text(document: Json, field: str) -> str:
    value = document.get(field)
    return value if isinstance(value, str) else ""


def _action(spec: Json, namespace: str = "") -> Action:
    """The question of a SubjectAccessReview. Raises 400 when it asks nothing or two things."""
    resource, path = spec.get("resourceAttributes"), spec.get("nonResourceAttributes")
    if isinstance(resource, dict) == isinstance(path, dict):
        raise status.bad_request("spec: exactly one of nonResourceAttributes or resourceAttributes must be specified")
    if isinstance(path, dict):
        return Action(_text(path, "verb"), path=_text(path, "path"))
    assert isinstance(resource, dict)
    return Action(
        _text(resource, "verb"),
        _text(resource, "group"),
        _text(resource, "resource"),
        _text(resource, "subresource"),
        namespace or _text(resource, "namespace"),
        _text(resource, "name"),
    )


def user_document(user: User) -> Json:
    document: Json = {"username": user.name, "groups": list(user.groups)}
    if user.uid:
        document["uid"] = user.uid
    if user.extra:
        document["extra"] = {key: list(values) for key, values in user.extra}
    return document


class Reviews:
    def __init__(self, authorizer: Authorizer, authenticator: Authenticator) -> None:
        self._authorizer = authorizer
        self._authenticator = authenticator
        self._answers: dict[tuple[str, str], Callable[[Request, Target, Json], Json]] = {
            (_AUTHORIZATION, "selfsubjectaccessreviews"): self._self_access,
            (_AUTHORIZATION, "subjectaccessreviews"): self._access,
            (_AUTHORIZATION, "localsubjectaccessreviews"): self._access,
            (_AUTHORIZATION, "selfsubjectrulesreviews"): self._rules,
            (_AUTHENTICATION, "tokenreviews"): self._token,
            (_AUTHENTICATION, "selfsubjectreviews"): self._self,
        }

    def answers(self, target: Target) -> bool:
        return (target.group, target.plural) in self._answers

    def create(self, request: Request, target: Target) -> Response:
        document = bodies.document(request)
        spec = document.get("spec")
        if spec is not None and not isinstance(spec, dict):
            raise status.bad_request("spec: must be an object")
        document["status"] = self._answers[target.group, target.plural](request, target, spec or {})
        return Response(201, encode(document))

    def _decide(self, user: User, action: Action) -> Json:
        # RBAC gives no reason: that no rule allows it is all there is to say.
        return {"allowed": self._authorizer.allowed(user, action)}

    def _self_access(self, request: Request, target: Target, spec: Json) -> Json:
        return self._decide(request.user, _action(spec))

    def _access(self, request: Request, target: Target, spec: Json) -> Json:
        if not spec.get("user") and not spec.get("groups"):
            raise status.bad_request("spec.user: at least one of user or group must be specified")
        user = User(_text(spec, "user"), tuple(map(str, spec.get("groups") or [])), _text(spec, "uid"))
        return self._decide(user, _action(spec, target.namespace))

    def _rules(self, request: Request, target: Target, spec: Json) -> Json:
        rules: list[Json] = [
            msgspec.to_builtins(rule) for rule in self._authorizer.rules(request.user, _text(spec, "namespace"))
        ]
        return {
            "resourceRules": [rule for rule in rules if "nonResourceURLs" not in rule],
            "nonResourceRules": [rule for rule in rules if "nonResourceURLs" in rule],
            "incomplete": False,
        }

    def _token(self, request: Request, target: Target, spec: Json) -> Json:
        audiences: list[Any] = spec.get("audiences") or []
        user = self._authenticator.authenticate(_text(spec, "token"), [str(each) for each in audiences])
        if user is None:
            return {"authenticated": False, "error": "the token is unknown, expired or meant for others"}
        return {"authenticated": True, "user": user_document(user), "audiences": audiences or [ISSUER]}

    def _self(self, request: Request, target: Target, spec: Json) -> Json:
        return {"userInfo": user_document(request.user)}
