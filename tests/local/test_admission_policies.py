"""ValidatingAdmissionPolicy and MutatingAdmissionPolicy: what is matched, refused, warned of and changed."""

from __future__ import annotations

from typing import Any

import pytest

ADMISSION = "/apis/admissionregistration.k8s.io/v1"
MAPS = "/api/v1/namespaces/default/configmaps"


def policy(api, expression: str = "object.data.size == 'small'", *, match: dict[str, Any] | None = None, **spec: Any):
    rule = {"apiGroups": [""], "apiVersions": ["v1"], "operations": ["CREATE", "UPDATE"], "resources": ["configmaps"]}
    validation = {"expression": expression, **spec.pop("validation", {})}
    body = {
        "metadata": {"name": "small"},
        "spec": {"matchConstraints": {"resourceRules": [rule], **(match or {})}, "validations": [validation], **spec},
    }
    return api.call("POST", f"{ADMISSION}/validatingadmissionpolicies", body)


def bind(api, actions: tuple[str, ...] = ("Deny",), **spec: Any) -> None:
    body = {"metadata": {"name": "all"}, "spec": {"policyName": "small", "validationActions": list(actions), **spec}}
    api.create(f"{ADMISSION}/validatingadmissionpolicybindings", body)


def write(api, name: str = "a", size: str = "big", **labels: str):
    return api.call("POST", MAPS, {"metadata": {"name": name, "labels": labels}, "data": {"size": size}})


def test_a_bound_policy_refuses_and_says_why(api) -> None:
    assert policy(api).code == 201
    assert write(api, "before").code == 201, "a policy does nothing without a binding"
    bind(api)
    answer = write(api)
    assert answer.status == (
        422,
        "Invalid",
        "configmaps \"a\" is forbidden: ValidatingAdmissionPolicy 'small' with binding 'all' denied request: "
        "failed expression: object.data.size == 'small'",
    )
    assert answer.body["details"]["causes"] == [{"message": "failed expression: object.data.size == 'small'"}]
    assert write(api, size="small").code == 201
    assert api.patch(f"{MAPS}/a", {"data": {"size": "big"}}).code == 422
    assert api.call("DELETE", f"{MAPS}/before").code == 200, "DELETE is not among the operations"
    api.call("DELETE", f"{ADMISSION}/validatingadmissionpolicybindings/all")
    assert write(api, "after").code == 201


def test_messages_and_reasons(api) -> None:
    validation = {"message": "too big", "messageExpression": "'size is ' + object.data.size", "reason": "Forbidden"}
    policy(api, validation=validation)
    bind(api)
    assert write(api).status[:2] == (403, "Forbidden")
    assert write(api).body["details"]["causes"] == [{"message": "size is big"}]


def test_warnings_do_not_refuse(api) -> None:
    policy(api)
    bind(api, ("Warn",))
    answer = write(api)
    assert answer.code == 201
    assert answer.warnings == [
        "Validation failed for ValidatingAdmissionPolicy 'small' with binding 'all': "
        "failed expression: object.data.size == 'small'"
    ]


@pytest.mark.parametrize(("failure", "code"), [("Fail", 422), ("Ignore", 201)])
def test_an_expression_that_fails_counts_by_the_failure_policy(api, failure: str, code: int) -> None:
    policy(api, "object.data.nothing == 'x'", failurePolicy=failure)
    bind(api)
    assert write(api).code == code


def test_conditions_variables_request_and_namespace(api) -> None:
    assert (
        policy(
            api,
            "variables.big && request.userInfo.username == 'kubernetes-admin' && "
            "namespaceObject.metadata.name == 'default' && oldObject == null && request.operation == 'CREATE'",
            variables=[
                {"name": "size", "expression": "object.data.size"},
                {"name": "big", "expression": "variables.size == 'big'"},
            ],
            matchConditions=[{"name": "named", "expression": "object.metadata.name.startsWith('checked')"}],
        ).code
        == 201
    )
    bind(api)
    assert write(api, "free", "tiny").code == 201
    assert write(api, "checked-1", "big").code == 201
    assert write(api, "checked-2", "tiny").code == 422


def test_selectors_and_exclusions(api) -> None:
    exclude = {
        "apiGroups": [""],
        "apiVersions": ["*"],
        "operations": ["*"],
        "resources": ["configmaps"],
        "resourceNames": ["spared"],
    }
    policy(
        api,
        match={
            "objectSelector": {"matchLabels": {"checked": "yes"}},
            "namespaceSelector": {"matchLabels": {"kubernetes.io/metadata.name": "default"}},
            "excludeResourceRules": [exclude],
        },
    )
    bind(api)
    assert write(api, "a").code == 201
    assert write(api, "b", checked="yes").code == 422
    assert write(api, "spared", checked="yes").code == 201
    api.create("/api/v1/namespaces", {"metadata": {"name": "other"}})
    body = {"metadata": {"name": "b", "labels": {"checked": "yes"}}, "data": {"size": "big"}}
    assert api.call("POST", "/api/v1/namespaces/other/configmaps", body).code == 201


def test_parameters(api) -> None:
    write(api, "limits", "small")
    policy(api, "object.data.size == params.data.size", paramKind={"apiVersion": "v1", "kind": "ConfigMap"})
    bind(api, paramRef={"name": "limits", "namespace": "default", "parameterNotFoundAction": "Deny"})
    assert write(api, "a", "small").code == 201
    assert write(api, "b", "big").code == 422
    api.call("DELETE", f"{MAPS}/limits")
    assert "no params found" in write(api, "c", "small").status[2]


def test_an_expression_that_does_not_compile_is_refused_with_its_place(api) -> None:
    answer = policy(api, "object.data.size ==")
    assert answer.status[:2] == (422, "Invalid")
    assert answer.causes == [("spec.validations[0].expression", "FieldValueInvalid")]
    assert policy(api, "request.nonsense == 1").causes == [("spec.validations[0].expression", "FieldValueInvalid")]
    assert policy(api, "1 + 1").code == 422
    answer = policy(api, variables=[{"name": "x", "expression": "variables.y"}])
    assert answer.causes == [("spec.variables[0].expression", "FieldValueInvalid")]


def test_a_stored_policy_that_compiles_no_longer_counts_by_its_failure_policy(api) -> None:
    policy(api)
    bind(api)
    store = api.server.store
    key = "/admissionregistration.k8s.io/validatingadmissionpolicies//small"
    body = store.get(key).decode()
    body["spec"]["validations"][0]["expression"] = "object.data.size =="
    store.put(key, body)
    assert write(api, size="small").code == 422
    body["spec"]["failurePolicy"] = "Ignore"
    store.put(key, body)
    assert write(api, size="big").code == 201
    assert api.call("POST", "/api/v1/namespaces", {"metadata": {"name": "free"}}).code == 201


BETA = "/apis/admissionregistration.k8s.io/v1beta1"


def mutate(api, name: str, *mutations: dict[str, Any], reinvocation: str = "Never", **spec: Any):
    """A bound MutatingAdmissionPolicy for new config maps."""
    rule = {"apiGroups": [""], "apiVersions": ["v1"], "operations": ["CREATE"], "resources": ["configmaps"]}
    body = {
        "metadata": {"name": name},
        "spec": {
            "matchConstraints": {"resourceRules": [rule]},
            "failurePolicy": "Fail",
            "reinvocationPolicy": reinvocation,
            "mutations": list(mutations),
            **spec,
        },
    }
    answer = api.call("POST", f"{BETA}/mutatingadmissionpolicies", body)
    if answer.code == 201:
        binding = {"metadata": {"name": name}, "spec": {"policyName": name}}
        api.create(f"{BETA}/mutatingadmissionpolicybindings", binding)
    return answer


def applying(expression: str) -> dict[str, Any]:
    return {"patchType": "ApplyConfiguration", "applyConfiguration": {"expression": expression}}


def patching(expression: str) -> dict[str, Any]:
    return {"patchType": "JSONPatch", "jsonPatch": {"expression": expression}}


def test_mutating_policies_apply_and_patch_in_order(api) -> None:
    label = applying('Object{metadata: Object.metadata{labels: {"team": object.data.size + "-team"}}}')
    copy = patching('[JSONPatch{op: "add", path: "/data/team", value: object.metadata.labels.team}]')
    assert mutate(api, "first", label, copy).code == 201
    created = write(api, size="red", own="label").body
    assert created["metadata"]["labels"] == {"own": "label", "team": "red-team"}
    assert created["data"] == {"size": "red", "team": "red-team"}
    assert api.patch(f"{MAPS}/a", {"data": {"size": "blue"}}).body["data"]["team"] == "red-team", "CREATE only"


def test_a_policy_is_invoked_again_when_another_changed_the_object(api) -> None:
    count = 'Object{data: Object.data{seen: "extra" in object.data ? "all" : "part"}}'
    mutate(api, "a", applying(count), reinvocation="IfNeeded")
    mutate(api, "b", applying('Object{data: Object.data{extra: "x"}}'))
    assert write(api).body["data"] == {"size": "big", "seen": "all", "extra": "x"}


def test_mutations_are_validated_and_their_failures_refuse(api) -> None:
    mutate(api, "bad", patching('[JSONPatch{op: "remove", path: "/data/nothing"}]'))
    code, reason, message = write(api).status
    assert (code, reason) == (422, "Invalid")
    assert "MutatingAdmissionPolicy 'bad' with binding 'bad' denied request: mutation resulted in error" in message
    api.call("DELETE", f"{BETA}/mutatingadmissionpolicybindings/bad")
    mutate(api, "worse", applying('Object{metadata: Object.metadata{labels: {"a b": "c"}}}'))
    assert write(api).causes == [("metadata.labels", "FieldValueInvalid")]


def test_a_mutation_that_does_not_compile_is_refused_with_its_place(api) -> None:
    answer = mutate(api, "broken", applying("Object{"))
    assert answer.causes == [("spec.mutations[0].applyConfiguration.expression", "FieldValueInvalid")]
