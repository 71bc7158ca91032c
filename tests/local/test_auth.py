"""Who is let in, and what they may do: tokens, RBAC rules, escalation, impersonation, reviews."""

from __future__ import annotations

import base64
import os
import stat
from pathlib import Path
from typing import Any

import msgspec
import pytest
from cryptography import x509

from capstan.api import manifests
from capstan.api.rbac import PolicyRule
from capstan.local import User, service_account
from capstan.local.credentials import ensure, write_kubeconfig
from capstan.local.rbac import Action, allows, missing
from capstan.local.request import ANONYMOUS

RBAC = "/apis/rbac.authorization.k8s.io/v1"
MAPS = "/api/v1/namespaces/default/configmaps"
PODS = "/api/v1/namespaces/default/pods"
ALICE = User("alice", ("system:authenticated",))
GROUP = "rbac.authorization.k8s.io"


def rule(verbs: str, resources: str, groups: str = "", names: list[str] | None = None) -> dict[str, Any]:
    return {
        "verbs": verbs.split(),
        "resources": resources.split(),
        "apiGroups": [groups],
        **({"resourceNames": names} if names else {}),
    }


def grant(api, name: str, rules: list[dict[str, Any]], user: str = "alice", namespace: str = "") -> None:
    """A ClusterRole for the user, everywhere or in one namespace."""
    api.create(f"{RBAC}/clusterroles", {"metadata": {"name": name}, "rules": rules})
    binding = {
        "metadata": {"name": name},
        "roleRef": {"apiGroup": GROUP, "kind": "ClusterRole", "name": name},
        "subjects": [{"apiGroup": GROUP, "kind": "User", "name": user}],
    }
    where = f"{RBAC}/namespaces/{namespace}/rolebindings" if namespace else f"{RBAC}/clusterrolebindings"
    api.create(where, binding)


# rules


@pytest.mark.parametrize(
    ("rule", "action", "allowed"),
    [
        (PolicyRule(verbs=["get"], api_groups=[""], resources=["pods"]), Action("get", "", "pods"), True),
        (PolicyRule(verbs=["get"], api_groups=[""], resources=["pods"]), Action("list", "", "pods"), False),
        (PolicyRule(verbs=["*"], api_groups=["*"], resources=["*"]), Action("x", "y", "z", "w"), True),
        (PolicyRule(verbs=["get"], api_groups=["apps"], resources=["pods"]), Action("get", "", "pods"), False),
        (PolicyRule(verbs=["get"], api_groups=[""], resources=["pods"]), Action("get", "", "pods", "log"), False),
        (PolicyRule(verbs=["get"], api_groups=[""], resources=["pods/log"]), Action("get", "", "pods", "log"), True),
        (PolicyRule(verbs=["get"], api_groups=[""], resources=["*/scale"]), Action("get", "", "x", "scale"), True),
        (
            PolicyRule(verbs=["get"], api_groups=[""], resources=["pods"], resource_names=["a"]),
            Action("get", "", "pods", name="b"),
            False,
        ),
        (
            PolicyRule(verbs=["get"], api_groups=[""], resources=["pods"], resource_names=["a"]),
            Action("list", "", "pods"),
            False,
        ),
        (PolicyRule(verbs=["get"], non_resource_urls=["/apis/*"]), Action("get", path="/apis/apps"), True),
        (PolicyRule(verbs=["get"], non_resource_urls=["/apis/*"]), Action("get", path="/api"), False),
        (PolicyRule(verbs=["*"], api_groups=["*"], resources=["*"]), Action("get", path="/metrics"), False),
    ],
)
def test_what_one_rule_permits(rule: PolicyRule, action: Action, allowed: bool) -> None:
    assert allows(rule, action) is allowed


def test_missing_names_each_permission_that_is_not_held() -> None:
    held = [PolicyRule(verbs=["get", "list"], api_groups=[""], resources=["pods"])]
    wanted = [PolicyRule(verbs=["get", "delete"], api_groups=[""], resources=["pods", "secrets"])]
    assert {(each.verbs[0], each.resources[0]) for each in missing(held, wanted)} == {
        ("delete", "pods"),
        ("get", "secrets"),
        ("delete", "secrets"),
    }
    assert missing([PolicyRule(verbs=["*"], api_groups=["*"], resources=["*"])], wanted) == []
    named = [PolicyRule(verbs=["get"], api_groups=[""], resources=["pods"], resource_names=["a"])]
    assert missing(named, wanted[:1])
    assert missing(held, named) == []


# requests


def test_without_a_rule_everything_is_forbidden(api) -> None:
    answer = api.call("GET", PODS, user=ALICE)
    assert answer.status == (
        403,
        "Forbidden",
        'pods is forbidden: User "alice" cannot list resource "pods" in API group "" in the namespace "default"',
    )
    answer = api.call("DELETE", "/api/v1/nodes/n1", user=ALICE)
    assert answer.body["message"] == (
        'nodes "n1" is forbidden: User "alice" cannot delete resource "nodes" in API group "" at the cluster scope'
    )
    assert (
        api.call("GET", "/metrics", user=ALICE).body["message"] == 'forbidden: User "alice" cannot get path "/metrics"'
    )


def test_rules_count_as_soon_as_they_are_bound_and_no_longer(api) -> None:
    grant(api, "reader", [rule("get list", "configmaps")])
    assert api.call("GET", MAPS, user=ALICE).code == 200
    assert api.call("POST", MAPS, {"metadata": {"name": "a"}}, user=ALICE).code == 403
    api.call("DELETE", f"{RBAC}/clusterrolebindings/reader")
    assert api.call("GET", MAPS, user=ALICE).code == 403


def test_a_role_binding_holds_in_its_namespace_only(api) -> None:
    api.create("/api/v1/namespaces", {"metadata": {"name": "other"}})
    grant(api, "reader", [rule("get list", "configmaps")], namespace="default")
    assert api.call("GET", MAPS, user=ALICE).code == 200
    assert api.call("GET", "/api/v1/namespaces/other/configmaps", user=ALICE).code == 403
    assert api.call("GET", "/api/v1/configmaps", user=ALICE).code == 403


def test_service_accounts_are_subjects(api) -> None:
    body = {
        "metadata": {"name": "runner"},
        "roleRef": {"apiGroup": GROUP, "kind": "ClusterRole", "name": "view"},
        "subjects": [{"kind": "ServiceAccount", "name": "runner", "namespace": "default"}],
    }
    api.create(f"{RBAC}/namespaces/default/rolebindings", body)
    assert api.call("GET", PODS, user=service_account("default", "runner")).code == 200
    assert api.call("GET", PODS, user=service_account("other", "runner")).code == 403


def test_everybody_may_discover_and_ask_about_themselves(api) -> None:
    for path in ("/api", "/apis", "/apis/apps/v1", "/version", "/openapi/v3"):
        assert api.call("GET", path, user=ALICE).code == 200
    review = {"spec": {"resourceAttributes": {"verb": "get", "resource": "pods"}}}
    path = "/apis/authorization.k8s.io/v1/selfsubjectaccessreviews"
    assert api.call("POST", path, review, user=ALICE).body["status"]["allowed"] is False
    assert api.call("POST", path, review).body["status"] == {"allowed": True}


def test_anonymous_sees_the_probes_and_nothing_else(api) -> None:
    for path in ("/healthz", "/livez", "/readyz"):
        assert api.call("GET", path, user=ANONYMOUS).text == "ok"
    assert api.call("GET", "/version", user=ANONYMOUS).code == 200
    assert api.call("GET", PODS, user=ANONYMOUS).status == (401, "Unauthorized", "Unauthorized")
    assert api.call("GET", "/apis", user=ANONYMOUS).code == 401


# escalation


def test_nobody_grants_more_than_they_hold(api) -> None:
    grant(api, "granter", [rule("create update get", "roles rolebindings", GROUP), rule("get", "pods")])
    roles = f"{RBAC}/namespaces/default/roles"
    assert api.call("POST", roles, {"metadata": {"name": "ok"}, "rules": [rule("get", "pods")]}, user=ALICE).code == 201
    answer = api.call("POST", roles, {"metadata": {"name": "more"}, "rules": [rule("delete", "pods")]}, user=ALICE)
    assert answer.status[:2] == (403, "Forbidden")
    assert (
        'user "alice" (groups=["system:authenticated"]) is attempting to grant RBAC permissions not currently held'
        in (answer.body["message"])
    )
    assert '{APIGroups:[""], Resources:["pods"], Verbs:["delete"]}' in answer.body["message"]


def test_binding_needs_the_roles_rules_or_the_verb_bind(api) -> None:
    grant(api, "granter", [rule("create", "rolebindings", GROUP)])
    binding = {
        "metadata": {"name": "mine"},
        "roleRef": {"apiGroup": GROUP, "kind": "ClusterRole", "name": "edit"},
        "subjects": [{"apiGroup": GROUP, "kind": "User", "name": "alice"}],
    }
    path = f"{RBAC}/namespaces/default/rolebindings"
    assert api.call("POST", path, binding, user=ALICE).status[:2] == (403, "Forbidden")
    grant(api, "binder", [rule("bind", "clusterroles", GROUP, ["edit"])])
    assert api.call("POST", path, binding, user=ALICE).code == 201


# impersonation


def test_impersonation_needs_its_verb(api) -> None:
    as_bob = {"impersonate-user": "bob"}
    answer = api.call("GET", PODS, user=ALICE, headers=as_bob)
    assert 'cannot impersonate resource "users"' in answer.body["message"]
    answer = api.call("GET", PODS, headers=as_bob)
    assert 'User "bob" cannot list' in answer.body["message"]
    masters = {"impersonate-user": "bob", "impersonate-group": "system:masters"}
    assert api.call("GET", PODS, headers=masters).code == 200


# reviews


def test_subject_access_review(api) -> None:
    grant(api, "reader", [rule("get", "configmaps")])
    path = "/apis/authorization.k8s.io/v1/subjectaccessreviews"
    spec = {"user": "alice", "resourceAttributes": {"verb": "get", "resource": "configmaps", "namespace": "x"}}
    assert api.create(path, {"spec": spec})["status"] == {"allowed": True}
    spec["resourceAttributes"] |= {"verb": "delete"}
    assert api.create(path, {"spec": spec})["status"] == {"allowed": False}
    assert api.call("POST", path, {"spec": {"user": "alice"}}).status[:2] == (400, "BadRequest")
    assert api.call("GET", path).status[:2] == (405, "MethodNotAllowed")


def test_rules_review_and_self_review(api) -> None:
    grant(api, "reader", [rule("get", "configmaps")])
    path = "/apis/authorization.k8s.io/v1/selfsubjectrulesreviews"
    status = api.create(path, {"spec": {"namespace": "default"}}, user=ALICE)["status"]
    assert {"verbs": ["get"], "apiGroups": [""], "resources": ["configmaps"]} in status["resourceRules"]
    assert status["nonResourceRules"]
    who = api.create("/apis/authentication.k8s.io/v1/selfsubjectreviews", {}, user=ALICE)["status"]["userInfo"]
    assert who == {"username": "alice", "groups": ["system:authenticated"]}


# tokens


def account(api, name: str = "robot") -> dict[str, Any]:
    return api.create("/api/v1/namespaces/default/serviceaccounts", {"metadata": {"name": name}})


def token_for(api, name: str = "robot", **spec: Any) -> str:
    path = f"/api/v1/namespaces/default/serviceaccounts/{name}/token"
    return str(api.create(path, {"spec": spec})["status"]["token"])


def test_a_service_accounts_token(api) -> None:
    created = account(api)
    body = api.create("/api/v1/namespaces/default/serviceaccounts/robot/token", {"spec": {"expirationSeconds": 600}})
    assert body["status"]["expirationTimestamp"] == "2023-11-14T22:23:20Z"
    user = api.server.authenticator.authenticate(body["status"]["token"])
    assert user == service_account("default", "robot", created["metadata"]["uid"])


def test_tokens_end_with_their_time_and_with_their_account(api) -> None:
    account(api)
    token = token_for(api, expirationSeconds=600)
    api.clock.seconds += 599
    assert api.server.authenticator.authenticate(token)
    api.clock.seconds += 1
    assert api.server.authenticator.authenticate(token) is None
    token = token_for(api)
    api.call("DELETE", "/api/v1/namespaces/default/serviceaccounts/robot")
    assert api.server.authenticator.authenticate(token) is None
    account(api)
    assert api.server.authenticator.authenticate(token) is None, "a new account of the same name has another uid"


def test_forged_tokens(api) -> None:
    account(api)
    head, claims, signature = token_for(api).split(".")
    authenticate = api.server.authenticator.authenticate
    changed = msgspec.json.decode(base64.urlsafe_b64decode(claims + "=="))
    changed["kubernetes.io"]["serviceaccount"]["name"] = "root"
    forged = base64.urlsafe_b64encode(msgspec.json.encode(changed)).rstrip(b"=").decode()
    none = base64.urlsafe_b64encode(b'{"alg":"none"}').rstrip(b"=").decode()
    for token in (
        f"{head}.{forged}.{signature}",
        f"{none}.{claims}.",
        f"{head}.{claims}.",
        "",
        "a.b.c",
        "é",
        signature,
    ):
        assert authenticate(token) is None


def test_tokens_are_for_their_audience(api) -> None:
    account(api)
    token = token_for(api, audiences=["vault"])
    assert api.server.authenticator.authenticate(token) is None
    path = "/apis/authentication.k8s.io/v1/tokenreviews"
    review = api.create(path, {"spec": {"token": token, "audiences": ["vault"]}})["status"]
    assert review["authenticated"] is True
    assert review["user"]["username"] == "system:serviceaccount:default:robot"
    assert api.create(path, {"spec": {"token": token}})["status"]["authenticated"] is False


def test_a_token_lives_at_least_ten_minutes(api) -> None:
    account(api)
    answer = api.call(
        "POST", "/api/v1/namespaces/default/serviceaccounts/robot/token", {"spec": {"expirationSeconds": 5}}
    )
    assert answer.causes == [("spec.expirationSeconds", "FieldValueInvalid")]


# credentials


def test_credentials_are_kept_and_secret(tmp_path: Path) -> None:
    first = ensure(tmp_path / "pki")
    assert ensure(tmp_path / "pki") == first
    for name in ("admin.token", "signing.key", "server.key"):
        assert stat.S_IMODE(os.stat(tmp_path / "pki" / name).st_mode) == 0o600
    server = x509.load_pem_x509_certificate(first.certificate.read_bytes())
    authority = x509.load_pem_x509_certificate(first.ca.read_bytes())
    server.verify_directly_issued_by(authority)
    names = server.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    assert [str(each) for each in names.get_values_for_type(x509.IPAddress)] == ["127.0.0.1", "::1"]


def test_the_kubeconfig_is_for_its_owner_only(tmp_path: Path) -> None:
    credentials = ensure(tmp_path / "pki")
    path = tmp_path / "kubeconfig"
    path.write_text("world readable")
    path.chmod(0o644)
    write_kubeconfig(path, "https://127.0.0.1:6443", credentials)
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    (config,) = manifests.load_all(path.read_text())
    assert config["current-context"] == "capstan"
    assert config["users"][0]["user"]["token"] == credentials.admin_token
    assert config["clusters"][0]["cluster"]["server"] == "https://127.0.0.1:6443"
