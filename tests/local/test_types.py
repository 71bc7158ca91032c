"""Built-in types: defaults as users see them, status and generation, what may not change, what cannot be decoded."""

from __future__ import annotations

import copy
from typing import Any

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from capstan.local.types import Undecodable, builtin_types

from .types_samples import Object, complaints, created, input_manifests, kind, kinds, placed, pod


def test_a_minimal_pod_gets_the_defaults_users_know() -> None:
    made = created(pod())
    assert made["spec"] == {
        "containers": [
            {
                "name": "main",
                "image": "busybox:1.36",
                "imagePullPolicy": "IfNotPresent",
                "resources": {},
                "terminationMessagePath": "/dev/termination-log",
                "terminationMessagePolicy": "File",
            }
        ],
        "restartPolicy": "Always",
        "terminationGracePeriodSeconds": 30,
        "dnsPolicy": "ClusterFirst",
        "schedulerName": "default-scheduler",
        "securityContext": {},
        "enableServiceLinks": True,
    }
    assert made["status"] == {"phase": "Pending", "qosClass": "BestEffort"}
    assert made["metadata"]["generation"] == 1
    assert complaints(made) == {}


@pytest.mark.parametrize(
    ("image", "policy"),
    [
        ("busybox", "Always"),
        ("busybox:latest", "Always"),
        ("registry:5000/busybox", "Always"),
        ("busybox:1.36", "IfNotPresent"),
        ("busybox@sha256:00", "IfNotPresent"),
    ],
)
def test_the_pull_policy_follows_the_tag(image: str, policy: str) -> None:
    made = created(pod(containers=[{"name": "main", "image": image}]))
    assert made["spec"]["containers"][0]["imagePullPolicy"] == policy


def test_requests_come_from_limits_and_quantities_are_canonical() -> None:
    resources = {"limits": {"cpu": 0.5, "memory": "1024Mi", "nvidia.com/gpu": 1}, "requests": {"memory": "1e3"}}
    made = created(pod(containers=[{"name": "main", "image": "a", "resources": resources}]))
    assert made["spec"]["containers"][0]["resources"] == {
        "limits": {"cpu": "500m", "memory": "1Gi", "nvidia.com/gpu": "1"},
        "requests": {"memory": "1e3", "cpu": "500m", "nvidia.com/gpu": "1"},
    }


@pytest.mark.parametrize(
    ("resources", "expected"),
    [
        ({}, "BestEffort"),
        ({"limits": {"nvidia.com/gpu": "1"}}, "BestEffort"),
        ({"requests": {"cpu": "1"}}, "Burstable"),
        ({"limits": {"cpu": "1"}}, "Burstable"),
        ({"limits": {"cpu": "1", "memory": "1Gi"}}, "Guaranteed"),
    ],
)
def test_the_quality_of_service_class(resources: dict[str, Any], expected: str) -> None:
    made = created(pod(containers=[{"name": "main", "image": "a", "resources": resources}]))
    assert made["status"]["qosClass"] == expected


def test_probe_defaults_replace_zero_but_other_zeros_stay() -> None:
    probe = {"httpGet": {"port": 80}, "periodSeconds": 0}
    container = {"name": "main", "image": "a", "livenessProbe": probe, "ports": [{"containerPort": 80}]}
    made = created(pod(containers=[container], terminationGracePeriodSeconds=0))
    assert made["spec"]["containers"][0]["livenessProbe"] == {
        "httpGet": {"port": 80, "path": "/", "scheme": "HTTP"},
        "periodSeconds": 10,
        "timeoutSeconds": 1,
        "successThreshold": 1,
        "failureThreshold": 3,
    }
    assert made["spec"]["containers"][0]["ports"] == [{"containerPort": 80, "protocol": "TCP"}]
    assert made["spec"]["terminationGracePeriodSeconds"] == 0


def test_nulls_and_unknown_fields_are_dropped() -> None:
    obj = pod(nodeName=None, containerz=[1])
    obj["metadata"]["creationTimestamp"] = None
    obj["spec"]["containers"][0]["imagee"] = "x"
    item = kind("v1", "Pod")
    assert item.unknown_fields(obj) == ["spec.containers[0].imagee", "spec.containerz"]
    made = created(obj)
    assert item.unknown_fields(made) == []
    assert "nodeName" not in made["spec"]
    assert "creationTimestamp" not in made["metadata"]


@pytest.mark.parametrize(
    ("obj", "place"),
    [
        (pod(containers="none"), "Pod.spec.containers of type array"),
        (pod(priority="high"), "Pod.spec.priority of type integer"),
        (pod(containers=[{"name": "a", "image": 5}]), "Pod.spec.containers[0].image of type string"),
        ({**pod(), "metadata": []}, "Pod.metadata of type object"),
        ({**pod(), "spec": "x"}, "Pod.spec of type object"),
    ],
)
def test_a_wrong_json_type_cannot_be_decoded(obj: dict[str, Any], place: str) -> None:
    with pytest.raises(Undecodable) as refusal:
        kind("v1", "Pod").prepare_create(obj)
    assert place in str(refusal.value)


def test_a_job_selects_its_pods_by_its_uid() -> None:
    template = {"spec": {"restartPolicy": "Never", "containers": [{"name": "main", "image": "a"}]}}
    made = created(
        {"apiVersion": "batch/v1", "kind": "Job", "metadata": {"name": "train"}, "spec": {"template": template}}
    )
    uid = made["metadata"]["uid"]
    assert made["spec"]["selector"] == {"matchLabels": {"batch.kubernetes.io/controller-uid": uid}}
    assert made["spec"]["template"]["metadata"]["labels"] == {
        "batch.kubernetes.io/controller-uid": uid,
        "batch.kubernetes.io/job-name": "train",
        "controller-uid": uid,
        "job-name": "train",
    }
    assert (made["spec"]["completions"], made["spec"]["parallelism"], made["spec"]["backoffLimit"]) == (1, 1, 6)
    assert complaints(made) == {}


def _deployment() -> dict[str, Any]:
    template = {"metadata": {"labels": {"app": "web"}}, "spec": {"containers": [{"name": "main", "image": "a"}]}}
    return created(
        {
            "apiVersion": "apps/v1",
            "kind": "Deployment",
            "metadata": {"name": "web"},
            "spec": {"selector": {"matchLabels": {"app": "web"}}, "template": template},
        }
    )


def test_deployment_defaults() -> None:
    spec = _deployment()["spec"]
    assert (spec["replicas"], spec["revisionHistoryLimit"], spec["progressDeadlineSeconds"]) == (1, 10, 600)
    rolling = {"maxUnavailable": "25%", "maxSurge": "25%"}
    assert spec["strategy"] == {"type": "RollingUpdate", "rollingUpdate": rolling}


def test_an_update_keeps_the_status_and_counts_changes_of_the_spec() -> None:
    old = _deployment()
    old["status"] = {"replicas": 1}
    item = kind("apps/v1", "Deployment")
    relabelled = copy.deepcopy(old)
    relabelled["metadata"]["labels"] = {"a": "b"}
    relabelled["status"] = {"replicas": 9}
    made = item.prepare_update(relabelled, old)
    assert (made["status"], made["metadata"]["generation"]) == ({"replicas": 1}, 1)
    scaled = copy.deepcopy(old)
    scaled["spec"]["replicas"] = 3
    assert item.prepare_update(scaled, old)["metadata"]["generation"] == 2


def test_a_status_update_changes_nothing_but_the_status() -> None:
    old = _deployment()
    new = copy.deepcopy(old)
    new["spec"]["replicas"] = 7
    new["metadata"]["labels"] = {"a": "b"}
    new["status"] = {"replicas": 1}
    made = kind("apps/v1", "Deployment").prepare_status_update(new, old)
    assert made == {**old, "status": {"replicas": 1}}


@pytest.mark.parametrize(
    ("status", "prepared", "wrong"),
    [
        ({"capacity": {"cpu": 4}}, {"capacity": {"cpu": "4"}, "allocatable": {"cpu": "4"}}, []),
        ({"phase": "Running", "unknown": 1}, {"phase": "Running"}, []),
        ({"conditions": [{"type": "Ready"}]}, {"conditions": [{"type": "Ready"}]}, ["status.conditions[0].status"]),
    ],
)
def test_a_status_is_judged_alike_whatever_else_the_writer_sends(
    status: dict[str, Any], prepared: dict[str, Any], wrong: list[str]
) -> None:
    item = kind("v1", "Node")
    old = created({"apiVersion": "v1", "kind": "Node", "metadata": {"name": "n"}})
    alone = {**old, "status": status}
    beside = {**old, "status": copy.deepcopy(status), "spec": {"unschedulable": True}}
    for new in (alone, beside):
        made = item.prepare_status_update(new, old)
        assert made == {**old, "status": prepared}
        assert [cause.field for cause in item.validate_status(made, old)] == wrong


def test_the_selector_of_a_deployment_cannot_change() -> None:
    old = _deployment()
    new = copy.deepcopy(old)
    new["spec"]["selector"]["matchLabels"]["app"] = "other"
    new["spec"]["template"]["metadata"]["labels"]["app"] = "other"
    assert list(complaints(new, old)) == ["spec.selector"]


def test_the_spec_of_a_pod_is_nearly_frozen() -> None:
    old = created(pod())
    allowed = copy.deepcopy(old)
    allowed["spec"]["containers"][0]["image"] = "busybox:1.37"
    allowed["spec"]["tolerations"] = [{"key": "gpu", "operator": "Exists"}]
    assert complaints(allowed, old) == {}
    refused = copy.deepcopy(old)
    refused["spec"]["schedulerName"] = "kai-scheduler"
    assert complaints(refused, old)["spec"].startswith("Forbidden: pod updates may not change fields other than")


def test_a_gated_pod_may_get_a_node_selector() -> None:
    old = created(pod(schedulingGates=[{"name": "example.com/wait"}]))
    new = copy.deepcopy(old)
    new["spec"]["nodeSelector"] = {"gpu": "a100"}
    del new["spec"]["schedulingGates"]
    assert complaints(new, old) == {}
    back = copy.deepcopy(new)
    back["spec"]["schedulingGates"] = [{"name": "example.com/again"}]
    assert "spec.schedulingGates" in complaints(back, new)


def test_secrets_take_string_data() -> None:
    made = created({"apiVersion": "v1", "kind": "Secret", "metadata": {"name": "s"}, "stringData": {"user": "admin"}})
    assert made["data"] == {"user": "YWRtaW4="}
    assert "stringData" not in made
    assert made["type"] == "Opaque"


def test_absent_numbers_of_a_status_count_as_zero() -> None:
    budget = created({"apiVersion": "policy/v1", "kind": "PodDisruptionBudget", "metadata": {"name": "b"}, "spec": {}})
    new = copy.deepcopy(budget)
    new["status"] = {"disruptionsAllowed": 2}
    item = kind("policy/v1", "PodDisruptionBudget")
    made = item.prepare_status_update(new, budget)
    assert made["status"] == {"disruptionsAllowed": 2, "currentHealthy": 0, "desiredHealthy": 0, "expectedPods": 0}
    assert item.validate_status(made, budget) == []


def test_pods_are_selectable_by_node_and_phase() -> None:
    fields = kind("v1", "Pod").selectable_fields(created(pod(nodeName="n1")))
    assert fields["metadata.name"] == "web"
    assert fields["spec.nodeName"] == "n1"
    assert fields["status.phase"] == "Pending"
    assert fields["status.podIP"] == ""


def test_a_flat_v1beta1_claim_is_stored_as_v1_and_shown_flat() -> None:
    claim = created(
        {
            "apiVersion": "resource.k8s.io/v1beta1",
            "kind": "ResourceClaim",
            "metadata": {"name": "gpu"},
            "spec": {"devices": {"requests": [{"name": "gpu", "deviceClassName": "gpu.nvidia.com"}]}},
        }
    )
    assert complaints(claim) == {}
    item = kind("resource.k8s.io/v1beta1", "ResourceClaim")
    assert item.storage == kind("resource.k8s.io/v1", "ResourceClaim").storage
    stored = item.to_storage(copy.deepcopy(claim))
    assert stored["apiVersion"] == "resource.k8s.io/v1"
    assert stored["spec"]["devices"]["requests"] == [
        {"name": "gpu", "exactly": {"deviceClassName": "gpu.nvidia.com", "allocationMode": "ExactCount", "count": 1}}
    ]
    assert kind("resource.k8s.io/v1", "ResourceClaim").validate(stored) == []
    assert item.from_storage(stored) == claim


def test_a_v1beta1_slice_loses_nothing_in_storage() -> None:
    device = {
        "name": "gpu-0",
        "basic": {"attributes": {"model": {"string": "A100"}}, "capacity": {"memory": {"value": "40Gi"}}},
    }
    made = created(
        {
            "apiVersion": "resource.k8s.io/v1beta1",
            "kind": "ResourceSlice",
            "metadata": {"name": "n1"},
            "spec": {
                "driver": "gpu.nvidia.com",
                "nodeName": "n1",
                "pool": {"name": "n1", "generation": 1, "resourceSliceCount": 1},
                "devices": [device],
            },
        }
    )
    item = kind("resource.k8s.io/v1beta1", "ResourceSlice")
    stored = item.to_storage(copy.deepcopy(made))
    assert stored["spec"]["devices"][0] == {"name": "gpu-0", **device["basic"]}
    assert item.from_storage(stored) == made


def test_both_kinds_of_events_are_one_object() -> None:
    new, core = kind("events.k8s.io/v1", "Event"), kind("v1", "Event")
    event = created(
        {
            "apiVersion": "events.k8s.io/v1",
            "kind": "Event",
            "metadata": {"name": "e"},
            "regarding": {"kind": "Pod", "name": "web"},
            "note": "started",
        }
    )
    stored = new.to_storage(copy.deepcopy(event))
    assert new.storage == core.storage
    assert (stored["apiVersion"], stored["involvedObject"]["name"], stored["message"]) == ("v1", "web", "started")
    assert core.validate(stored) == []
    assert new.from_storage(stored) == event


def test_every_upstream_manifest_is_valid_and_has_no_unknown_field() -> None:
    seen = 0
    for part in ("kai", "dra"):
        for name, manifest in input_manifests(part):
            item = kinds().get((manifest["apiVersion"], manifest["kind"]))
            if item is None or manifest["kind"] == "CustomResourceDefinition":
                continue
            seen += 1
            assert item.unknown_fields(manifest) == [], name
            made = item.prepare_create(placed(manifest, item))
            assert item.validate(made) == [], name
            assert item.prepare_create(copy.deepcopy(made)) == made, f"{name}: defaulting twice changes the object"
            assert item.from_storage(item.to_storage(copy.deepcopy(made))) == made, name
    assert seen > 60


_JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-5, 5) | st.sampled_from(["", "x", "1", "Always", "nvidia.com/gpu"]),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            st.sampled_from(
                ["name", "spec", "containers", "metadata", "limits", "resources", "template", "selector", "x"]
            ),
            inner,
            max_size=4,
        )
    ),
    max_leaves=20,
)


@settings(deadline=None, max_examples=150)
@given(
    st.sampled_from(builtin_types()),
    st.dictionaries(st.sampled_from(["spec", "status", "metadata", "data", "rules"]), _JSON),
)
def test_no_body_makes_a_type_stumble(item: Any, body: dict[str, Any]) -> None:
    """Anything is either refused as undecodable or ends in causes; a second round of defaults changes nothing."""
    obj = {"apiVersion": item.api_version, "kind": item.kind, **body}
    item.unknown_fields(obj)
    try:
        made = item.prepare_create(obj)
    except Undecodable:
        return
    causes = item.validate(made)
    assert all(cause.reason and cause.message for cause in causes)
    assert item.prepare_create(copy.deepcopy(made)) == made
    assert item.unknown_fields(made) == []
    assert msgspec.json.decode(msgspec.json.encode(made)) == made
    item.selectable_fields(made)


def upstream_workload(**policy: Any) -> Object:
    return {
        "apiVersion": "scheduling.k8s.io/v1alpha1",
        "kind": "Workload",
        "metadata": {"name": "trainer"},
        "spec": {"podGroups": [{"name": "workers", "policy": policy}]},
    }


def test_a_workload_of_kubernetes_1_35_is_stored_as_that_of_1_36_and_shown_as_written() -> None:
    obj = created(upstream_workload(gang={"minCount": 4}))
    item = kind("scheduling.k8s.io/v1alpha1", "Workload")
    stored = item.to_storage(copy.deepcopy(obj))
    assert stored["apiVersion"] == "scheduling.k8s.io/v1alpha2"
    assert stored["spec"] == {"podGroupTemplates": [{"name": "workers", "schedulingPolicy": {"gang": {"minCount": 4}}}]}
    assert kind("scheduling.k8s.io/v1alpha2", "Workload").validate(stored) == []
    assert item.from_storage(stored) == obj


def test_upstream_groups_have_one_policy_and_keep_it() -> None:
    one = "exactly one of `basic` and `gang` must be set"
    for policy in ({}, {"basic": {}, "gang": {"minCount": 2}}):
        said = complaints(created(upstream_workload(**policy)))
        assert one in said["spec.podGroupTemplates[0].schedulingPolicy"]
    none = complaints(created(upstream_workload(gang={"minCount": 0})))
    assert "spec.podGroups[0].policy.gang.minCount" in none
    group = {
        "apiVersion": "scheduling.k8s.io/v1alpha2",
        "kind": "PodGroup",
        "metadata": {"name": "trainer"},
        "spec": {"schedulingPolicy": {"gang": {"minCount": 2}}},
    }
    old = created(copy.deepcopy(group))
    group["spec"] = {"schedulingPolicy": {"gang": {"minCount": 3}}}
    assert "spec" in complaints(created(group), old)
