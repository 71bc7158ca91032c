"""What the rules of built-in kinds refuse: the field, and the words users know."""

from __future__ import annotations

import copy
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from capstan.api import quantity
from capstan.local import validation

from .types_samples import complaints, created, kind, pod

Object = dict[str, Any]


def container(**fields: Any) -> Object:
    return pod(containers=[{"name": "main", "image": "a", **fields}])


POD_ERRORS: list[tuple[Object, str, str]] = [
    (pod(containers=[]), "spec.containers", "Required value"),
    (pod(containers=[{"image": "a"}]), "spec.containers[0].name", "Required value"),
    (pod(containers=[{"name": "A_b", "image": "a"}]), "spec.containers[0].name", "RFC 1123 label"),
    (pod(containers=[{"name": "a"}]), "spec.containers[0].image", "Required value"),
    (
        pod(containers=[{"name": "a", "image": "a"}, {"name": "a", "image": "b"}]),
        "spec.containers[1].name",
        'Duplicate value: "a"',
    ),
    (pod(restartPolicy="Sometimes"), "spec.restartPolicy", "Unsupported value"),
    (container(ports=[{"containerPort": 70000}]), "spec.containers[0].ports[0].containerPort", "65535"),
    (
        container(volumeMounts=[{"name": "v", "mountPath": "/v"}]),
        "spec.containers[0].volumeMounts[0].name",
        "Not found",
    ),
    (
        container(resources={"requests": {"cpu": "2"}, "limits": {"cpu": "1"}}),
        "spec.containers[0].resources.requests",
        "must be less than or equal to cpu limit of 1",
    ),
    (
        container(resources={"limits": {"nvidia.com/gpu": "0.5"}}),
        "spec.containers[0].resources.limits[nvidia.com/gpu]",
        "must be an integer",
    ),
    (
        container(resources={"requests": {"nvidia.com/gpu": "1"}}),
        "spec.containers[0].resources.limits",
        "cannot be overcommitted",
    ),
    (
        container(resources={"limits": {"cpu": "-1"}}),
        "spec.containers[0].resources.limits[cpu]",
        "greater than or equal",
    ),
    (
        container(resources={"limits": {"cpu": "1x"}}),
        "spec.containers[0].resources.limits[cpu]",
        "quantities must match",
    ),
    (container(resources={"claims": [{"name": "gpu"}]}), "spec.containers[0].resources.claims[0].name", "Not found"),
    (
        container(env=[{"name": "A", "value": "x", "valueFrom": {"fieldRef": {"fieldPath": "metadata.name"}}}]),
        "spec.containers[0].env[0].valueFrom",
        "may not be specified when `value` is not empty",
    ),
    (pod(resourceClaims=[{"name": "gpu"}]), "spec.resourceClaims[0]", "must specify one of"),
    (
        pod(resourceClaims=[{"name": "gpu", "resourceClaimName": "a", "resourceClaimTemplateName": "b"}]),
        "spec.resourceClaims[0]",
        "at most one of",
    ),
    (pod(tolerations=[{"operator": "Equal"}]), "spec.tolerations[0].operator", "must be Exists when `key` is empty"),
    (pod(nodeSelector={"a b": "c"}), "spec.nodeSelector", "name part must consist of"),
    (
        pod(volumes=[{"name": "v", "emptyDir": {}, "hostPath": {"path": "/"}}]),
        "spec.volumes[0]",
        "may not specify more than 1 volume type",
    ),
    (
        pod(schedulingGates=[{"name": "example.com/g"}], nodeName="n1"),
        "spec.nodeName",
        "until all schedulingGates have been cleared",
    ),
]


@pytest.mark.parametrize(
    ("obj", "field", "words"), POD_ERRORS, ids=[row[1] + str(at) for at, row in enumerate(POD_ERRORS)]
)
def test_pods_that_are_refused(obj: Object, field: str, words: str) -> None:
    found = complaints(created(obj))
    assert words in found.get(field, ""), found


@pytest.mark.parametrize(
    ("meta", "field", "words"),
    [
        ({"name": ""}, "metadata.name", "name or generateName is required"),
        ({"name": "Upper"}, "metadata.name", "RFC 1123 subdomain"),
        ({"name": "a" * 254}, "metadata.name", "no more than 253"),
        ({"name": "a\n"}, "metadata.name", "RFC 1123 subdomain"),
        ({"name": "a", "labels": {"k": "v" * 64}}, "metadata.labels", "no more than 63"),
        ({"name": "a", "labels": {"/k": "v"}}, "metadata.labels", "prefix part must be non-empty"),
        ({"name": "a", "annotations": {"k": "v" * 300_000}}, "metadata.annotations", "Too long"),
        ({"name": "a", "ownerReferences": [{"kind": "A"}]}, "metadata.ownerReferences[0].uid", "Required value"),
        ({"name": "a", "finalizers": ["bad name"]}, "metadata.finalizers[0]", "name part must consist of"),
        ({"name": "a", "namespace": "A"}, "metadata.namespace", "RFC 1123 label"),
    ],
)
def test_metadata_that_is_refused(meta: Object, field: str, words: str) -> None:
    found = complaints(created({"apiVersion": "v1", "kind": "ConfigMap", "metadata": meta}))
    assert words in found.get(field, ""), found


def test_cluster_scoped_objects_have_no_namespace() -> None:
    node = created({"apiVersion": "v1", "kind": "Node", "metadata": {"name": "n", "namespace": "x"}})
    assert list(complaints(node)) == ["metadata.namespace"]


def test_a_deleted_object_takes_no_new_finalizers() -> None:
    old = created({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "a"}})
    old["metadata"].update(deletionTimestamp="2026-11-23T12:00:00Z", finalizers=["example.com/a"])
    new = copy.deepcopy(old)
    new["metadata"]["finalizers"] = ["example.com/b"]
    assert list(complaints(new, old)) == ["metadata.finalizers"]


def test_roles_take_names_with_colons_and_bindings_keep_their_role() -> None:
    binding = created(
        {
            "apiVersion": "rbac.authorization.k8s.io/v1",
            "kind": "ClusterRoleBinding",
            "metadata": {"name": "system:x"},
            "roleRef": {"kind": "ClusterRole", "name": "view"},
            "subjects": [{"kind": "User", "name": "u"}],
        }
    )
    assert binding["roleRef"]["apiGroup"] == "rbac.authorization.k8s.io"
    assert complaints(binding) == {}
    other = copy.deepcopy(binding)
    other["roleRef"]["name"] = "edit"
    assert complaints(other, binding) == {
        "roleRef": 'Invalid value: {"kind": "ClusterRole", "name": "edit", "apiGroup": "rbac.authorization.k8s.io"}: '
        "cannot change roleRef"
    }


WORKLOAD_ERRORS: list[tuple[str, str, Object, str, str]] = [
    ("apps/v1", "Deployment", {"selector": {}}, "spec.selector", "empty selector"),
    (
        "apps/v1",
        "Deployment",
        {"selector": {"matchLabels": {"app": "other"}}},
        "spec.template.metadata.labels",
        "`selector` does not match template `labels`",
    ),
    ("apps/v1", "Deployment", {"replicas": -1}, "spec.replicas", "greater than or equal to 0"),
    (
        "apps/v1",
        "Deployment",
        {"strategy": {"type": "Recreate", "rollingUpdate": {}}},
        "spec.strategy.rollingUpdate",
        "may not be specified",
    ),
    (
        "apps/v1",
        "Deployment",
        {"strategy": {"rollingUpdate": {"maxUnavailable": 0, "maxSurge": 0}}},
        "spec.strategy.rollingUpdate.maxUnavailable",
        "may not be 0",
    ),
    ("batch/v1", "Job", {}, "spec.template.spec.restartPolicy", 'supported values: "OnFailure", "Never"'),
    ("batch/v1", "Job", {"completionMode": "Indexed", "parallelism": 2}, "spec.completions", "Required value"),
]


@pytest.mark.parametrize(("api_version", "name", "change", "field", "words"), WORKLOAD_ERRORS)
def test_workloads_that_are_refused(api_version: str, name: str, change: Object, field: str, words: str) -> None:
    template = {"metadata": {"labels": {"app": "web"}}, "spec": {"containers": [{"name": "main", "image": "a"}]}}
    spec = {"template": template, **change}
    if name != "Job":
        spec.setdefault("selector", {"matchLabels": {"app": "web"}})
    found = complaints(created({"apiVersion": api_version, "kind": name, "metadata": {"name": "w"}, "spec": spec}))
    assert words in found.get(field, ""), found


@pytest.mark.parametrize(
    ("text", "canonical"),
    [
        ("1000m", "1"),
        ("0.5", "500m"),
        (0.1, "100m"),
        (2, "2"),
        ("1024Mi", "1Gi"),
        ("1500Mi", "1500Mi"),
        ("0.5Gi", "512Mi"),
        ("1000", "1k"),
        ("1e3", "1e3"),
        ("0", "0"),
        ("-1500m", "-1500m"),
    ],
)
def test_canonical_quantities(text: Any, canonical: str) -> None:
    assert quantity.canonical(text) == canonical


@settings(deadline=None)
@given(st.from_regex(r"-?[0-9]{1,9}(\.[0-9]{1,3})?(m|k|M|G|Ki|Mi|Gi|e3)?", fullmatch=True))
def test_a_canonical_quantity_is_the_same_amount_and_stays(text: str) -> None:
    once = quantity.canonical(text)
    assert quantity.canonical(once) == once
    if "i" not in text or quantity.parse(text) == quantity.parse(text).to_integral_value():
        assert quantity.parse(once) == quantity.parse(text)


@given(st.text(max_size=70))
def test_keys_and_values_of_labels_are_judged_without_stumbling(text: str) -> None:
    """What is accepted is short, and accepted again."""
    if validation.key_error(text) is None:
        assert 0 < len(text.rpartition("/")[2]) <= 63
        assert validation.key_error(text) is None
    if validation.label_value_error(text) is None:
        assert len(text) <= 63
        assert text == text.strip()


def policy(**spec: Any) -> Object:
    rule = {"apiGroups": [""], "apiVersions": ["v1"], "operations": ["CREATE"], "resources": ["pods"]}
    return {
        "apiVersion": "admissionregistration.k8s.io/v1",
        "kind": "ValidatingAdmissionPolicy",
        "metadata": {"name": "p.example.com"},
        "spec": {"matchConstraints": {"resourceRules": [rule]}, **spec},
    }


def test_an_admission_policy_is_compiled_when_it_is_written() -> None:
    variables = [{"name": "gpus", "expression": "size(object.spec.containers)"}]
    good = created(policy(variables=variables, validations=[{"expression": "variables.gpus <= 8"}]))
    assert complaints(good) == {}
    validations = [{"expression": "object.spec.x +"}, {"expression": "'text'"}, {"expression": "variables.none > 1"}]
    found = complaints(created(policy(validations=validations)))
    assert set(found) == {f"spec.validations[{index}].expression" for index in range(3)}
    assert all("compilation failed" in message for message in found.values())
    assert "spec.matchConstraints" in complaints(created({**policy(), "spec": {"validations": validations[1:2]}}))


def test_a_mutating_policy_says_how_it_mutates() -> None:
    mutation = {"patchType": "JSONPatch"}
    spec = policy(mutations=[mutation])["spec"]
    obj = {
        "apiVersion": "admissionregistration.k8s.io/v1beta1",
        "kind": "MutatingAdmissionPolicy",
        "metadata": {"name": "m.example.com"},
        "spec": spec,
    }
    assert list(complaints(created(obj))) == ["spec.mutations[0].jsonPatch.expression"]
    mutation["jsonPatch"] = {"expression": '[JSONPatch{op: "add", path: "/metadata/labels/a", value: "b"}]'}
    assert complaints(created(obj)) == {}


def test_field_selectors_know_what_absent_values_mean() -> None:
    node = created({"apiVersion": "v1", "kind": "Node", "metadata": {"name": "n"}})
    assert kind("v1", "Node").selectable_fields(node)["spec.unschedulable"] == "false"
    job = {"metadata": {"name": "j"}, "status": {"succeeded": 2}}
    assert kind("batch/v1", "Job").selectable_fields(job)["status.successful"] == "2"


def test_containers_of_a_stateful_set_may_mount_what_its_claim_templates_make() -> None:
    def stateful_set(mount: str) -> Object:
        container = {"name": "main", "image": "x", "volumeMounts": [{"name": mount, "mountPath": "/data"}]}
        claim = {"metadata": {"name": "data"}, "spec": {"accessModes": ["ReadWriteOnce"]}}
        return {
            "apiVersion": "apps/v1",
            "kind": "StatefulSet",
            "metadata": {"name": "db"},
            "spec": {
                "serviceName": "db",
                "selector": {"matchLabels": {"app": "db"}},
                "template": {"metadata": {"labels": {"app": "db"}}, "spec": {"containers": [container]}},
                "volumeClaimTemplates": [claim],
            },
        }

    assert complaints(created(stateful_set("data"))) == {}
    assert list(complaints(created(stateful_set("other")))) == ["spec.template.spec.containers[0].volumeMounts[0].name"]
