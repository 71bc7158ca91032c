"""Plans and drift: only stated fields count, each difference is named with its path and its author."""

from __future__ import annotations

import copy
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from capstan import blueprints, fields
from capstan.blueprints import versions
from capstan.blueprints.health import waiting_for

STRING = {"type": "string"}
DEPLOYMENT = fields.Schema.from_openapi(
    {
        "type": "object",
        "properties": {
            "metadata": {
                "type": "object",
                "properties": {"labels": {"type": "object", "additionalProperties": STRING}},
            },
            "spec": {
                "type": "object",
                "properties": {
                    "replicas": {"type": "integer"},
                    "selector": {"type": "object", "x-kubernetes-map-type": "atomic"},
                    "containers": {
                        "type": "array",
                        "x-kubernetes-list-type": "map",
                        "x-kubernetes-list-map-keys": ["name"],
                        "items": {
                            "type": "object",
                            "properties": {
                                "name": STRING,
                                "image": STRING,
                                "args": {"type": "array", "items": STRING},
                                "limits": {"type": "object", "additionalProperties": STRING},
                                "ports": {
                                    "type": "array",
                                    "x-kubernetes-list-type": "map",
                                    "x-kubernetes-list-map-keys": ["containerPort", "protocol"],
                                    "items": {
                                        "type": "object",
                                        "properties": {"containerPort": {}, "protocol": {"default": "TCP"}},
                                    },
                                },
                            },
                        },
                    },
                },
            },
        },
    }
)

SPEC: dict[str, Any] = {
    "replicas": 2,
    "selector": {"app": "web"},
    "containers": [
        {"name": "web", "image": "web:1", "limits": {"cpu": "0.5"}, "ports": [{"containerPort": 80}]},
        {"name": "log", "image": "log:1", "args": ["-v"]},
    ],
}


def manifest(spec: dict[str, Any] = SPEC, name: str = "web") -> dict[str, Any]:
    metadata = {"name": name, "namespace": "ns", "labels": {"platform.capstan.dev/addon": "app"}}
    return {"apiVersion": "apps/v1", "kind": "Deployment", "metadata": metadata, "spec": copy.deepcopy(spec)}


def item(body: dict[str, Any]) -> blueprints.Item:
    return blueprints.Item("app", blueprints.identity(body), body)


def applied(body: dict[str, Any], live: dict[str, Any] | None = None) -> dict[str, Any]:
    """The object after our apply, with what an API server adds."""
    result = fields.apply(
        live, body, blueprints.MANAGER, schema=DEPLOYMENT, force=True, now="2026-01-01T00:00:00Z", api_version="apps/v1"
    )
    result = copy.deepcopy(result)
    result["metadata"] |= {"uid": "u", "resourceVersion": "7"}
    result["spec"].setdefault("progressDeadlineSeconds", 600)
    for container in result["spec"].get("containers", ()):
        container.setdefault("imagePullPolicy", "Always")
        for port in container.get("ports", ()):
            port.setdefault("protocol", "TCP")
    return result


def edited(live: dict[str, Any], manager: str = "kubectl-edit", **spec: Any) -> dict[str, Any]:
    new = copy.deepcopy(live)
    new["spec"] |= copy.deepcopy(spec)
    new["spec"] = {key: value for key, value in new["spec"].items() if value is not None}
    return fields.track_update(live, new, manager, schema=DEPLOYMENT, now="2026-01-02T00:00:00Z", api_version="apps/v1")


def plan(desired: list[dict[str, Any]], live: list[dict[str, Any]]) -> blueprints.Plan:
    return blueprints.plan(map(item, desired), {blueprints.identity(each): each for each in live}, live)


def drift(live: dict[str, Any] | None, body: dict[str, Any] | None = None) -> list[str]:
    wanted = item(body or manifest())
    found = {} if live is None else {wanted.identity: live}
    return [str(finding) for finding in blueprints.drift([wanted], found)]


def test_what_is_missing_is_created_and_what_is_as_stated_is_left_alone() -> None:
    result = plan([manifest(), manifest(name="new")], [applied(manifest())])
    assert [(change.action, change.identity) for change in result.changes] == [
        ("unchanged", "Deployment.apps/ns/web"),
        ("create", "Deployment.apps/ns/new"),
    ]
    assert not result.is_empty


def test_an_update_lists_each_field_with_live_and_desired_value() -> None:
    wanted = copy.deepcopy(SPEC)
    wanted["replicas"] = 3
    wanted["containers"][0]["image"] = "web:2"
    wanted["containers"][1] = {"name": "log", "image": "log:1"}
    wanted["containers"].append({"name": "new", "image": "new:1"})
    (change,) = plan([manifest(wanted)], [applied(manifest())]).changes
    assert change.action == "update"
    assert [str(each) for each in change.fields] == [
        "~ spec.replicas: 2 -> 3",
        "~ spec.containers[name=web].image: web:1 -> web:2",
        '+ spec.containers[name=new]: {"name":"new","image":"new:1"}',
        '- spec.containers[name=log].args: ["-v"]',
    ]


def test_defaults_and_foreign_fields_are_neither_change_nor_drift() -> None:
    live = applied(manifest())
    foreign = copy.deepcopy(live)
    foreign["metadata"]["annotations"] = {"other": "x"}
    foreign["spec"]["containers"].append({"name": "injected", "image": "i"})
    assert plan([manifest()], [edited(live, "mesh", **foreign["spec"])]).is_empty
    assert drift(edited(live, "mesh", **foreign["spec"])) == []


def test_a_quantity_in_another_spelling_is_the_same() -> None:
    live = applied(manifest())
    live["spec"]["containers"][0]["limits"]["cpu"] = "500m"
    assert plan([manifest()], [live]).is_empty


def test_what_is_known_to_be_settled_is_not_compared() -> None:
    live = edited(applied(manifest()), replicas=9)
    name = blueprints.identity(live)
    result = blueprints.plan([item(manifest())], {name: live}, [live], settled={name})
    assert [change.action for change in result.changes] == ["unchanged"]


def test_members_that_are_no_longer_wanted_are_pruned_content_first() -> None:
    namespace = {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": "ns"}}
    result = plan([manifest()], [applied(manifest()), namespace, applied(manifest(name="old"))])
    assert [(each.action, each.identity) for each in result.changes[1:]] == [
        ("prune", "Deployment.apps/ns/old"),
        ("prune", "Namespace/ns"),
    ]


def test_a_protected_member_stays() -> None:
    old = applied(manifest(name="old"))
    old["metadata"]["annotations"] = {"platform.capstan.dev/prune": "false"}
    result = plan([manifest()], [applied(manifest()), old])
    assert result.changes[1].action == "protected"
    assert result.is_empty


def test_pruning_everything_is_refused() -> None:
    with pytest.raises(blueprints.NothingLeft, match="all 1 objects"):
        plan([], [applied(manifest())])
    assert plan([], []).is_empty


def test_drift_names_field_value_and_manager() -> None:
    live = edited(applied(manifest()), replicas=9)
    assert drift(live) == ["Deployment.apps/ns/web spec.replicas: 9 by kubectl-edit, expected 2"]


def test_drift_inside_of_a_keyed_list() -> None:
    live = applied(manifest())
    containers = copy.deepcopy(live["spec"]["containers"])
    containers[0]["image"] = "evil:1"
    del containers[1]
    assert drift(edited(live, containers=containers)) == [
        "Deployment.apps/ns/web spec.containers[name=web].image: evil:1 by kubectl-edit, expected web:1",
        "Deployment.apps/ns/web spec.containers[name=log]: removed by kubectl-edit,"
        ' expected {"name":"log","image":"log:1","args":["-v"]}',
    ]


def test_a_removed_field_and_a_removed_label_are_drift() -> None:
    live = applied(manifest())
    live = edited(live, replicas=None)
    assert drift(live) == ["Deployment.apps/ns/web spec.replicas: removed, expected 2"]


def test_a_changed_atomic_map_is_drift_even_if_it_still_holds_our_keys() -> None:
    live = edited(applied(manifest()), selector={"app": "web", "more": "x"})
    assert drift(live) == [
        'Deployment.apps/ns/web spec.selector: {"app":"web","more":"x"} by kubectl-edit, expected {"app":"web"}'
    ]


def test_a_field_that_was_changed_and_changed_back_has_lost_its_owner() -> None:
    live = edited(edited(applied(manifest()), replicas=9), replicas=2)
    assert drift(live) == ["Deployment.apps/ns/web spec.replicas: has the right value but now belongs to kubectl-edit"]


def test_applying_again_ends_all_drift() -> None:
    live = edited(applied(manifest()), replicas=9, selector={"x": "y"})
    assert len(drift(live)) == 2
    assert drift(applied(manifest(), live)) == []


def test_a_deleted_object_is_drift() -> None:
    assert drift(None) == ["Deployment.apps/ns/web was deleted"]


def test_the_id_of_an_apply_set_is_the_one_of_the_kep() -> None:
    found = blueprints.cluster_set("local")
    assert found.startswith("applyset-")
    assert found.endswith("-v1")
    assert len(found) == len("applyset-") + 43 + len("-v1")
    parent = blueprints.parent_metadata(found, [manifest()], "x/v1")
    assert blueprints.group_kinds(parent) == [("apps", "Deployment")]
    assert parent["annotations"]["applyset.kubernetes.io/additional-namespaces"] == "ns"


NAMES = st.sampled_from(["a", "b", "c"])
CONTAINERS = st.dictionaries(
    NAMES, st.fixed_dictionaries({}, optional={"image": NAMES, "args": st.lists(NAMES, min_size=1)})
).map(lambda by_name: [{"name": name, **rest} for name, rest in by_name.items()])
SPECS = st.fixed_dictionaries(
    {},
    optional={
        "replicas": st.integers(0, 3),
        "selector": st.dictionaries(NAMES, NAMES, min_size=1),
        "containers": CONTAINERS.filter(bool),
    },
).filter(bool)


@given(SPECS, SPECS)
@settings(deadline=None)
def test_after_an_apply_there_is_neither_plan_nor_drift(first: dict[str, Any], second: dict[str, Any]) -> None:
    live = applied(manifest(second), applied(manifest(first)))
    assert plan([manifest(second)], [live]).is_empty
    assert drift(live, manifest(second)) == []


@given(SPECS, SPECS)
@settings(deadline=None)
def test_a_plan_is_empty_exactly_when_applying_changes_no_stated_field(
    first: dict[str, Any], second: dict[str, Any]
) -> None:
    live = applied(manifest(first))
    after = applied(manifest(second), live)
    changed = bool(fields.compare(live["spec"], after["spec"], DEPLOYMENT.child("spec")))
    assert plan([manifest(second)], [live]).is_empty is not changed


@given(SPECS, SPECS)
@settings(deadline=None)
def test_an_edit_of_a_stated_field_is_always_found(spec: dict[str, Any], edit: dict[str, Any]) -> None:
    live = applied(manifest(spec))
    after = edited(live, **edit)
    owned = fields.owned(live, blueprints.MANAGER)
    lost = owned - fields.owned(after, blueprints.MANAGER)
    assert bool(drift(after, manifest(spec))) == bool(lost)


@pytest.mark.parametrize(
    ("live", "message"),
    [
        ({"kind": "Deployment", "spec": {"replicas": 3}, "status": {"readyReplicas": 1}}, "1 of 3 replicas are ready"),
        ({"kind": "Deployment", "spec": {"replicas": 1}, "status": {"readyReplicas": 1}}, ""),
        ({"kind": "DaemonSet", "status": {"desiredNumberScheduled": 2}}, "0 of 2 pods are ready"),
        ({"kind": "CustomResourceDefinition", "status": {}}, "not established"),
        ({"kind": "Widget", "status": {"conditions": [{"type": "Ready", "status": "False"}]}}, "not ready"),
        ({"kind": "Queue"}, ""),
    ],
)
def test_readiness(live: dict[str, Any], message: str) -> None:
    assert waiting_for({"metadata": {"generation": 1}, **live}) == message


@pytest.mark.parametrize("text", ["1.0", "v1.0.0", "1.0.0.0", "01.0.0", "1.0.0-", "latest", ""])
def test_not_semantic_versions(text: str) -> None:
    assert versions.parse(text) is None


def test_semantic_versions_are_ordered() -> None:
    ordered = ["1.0.0-alpha", "1.0.0-alpha.1", "1.0.0-beta.2", "1.0.0-beta.11", "1.0.0-rc.1", "1.0.0", "1.0.1", "2.0.0"]
    parsed = [versions.parse(text) for text in ordered]
    assert None not in parsed
    assert sorted(each for each in parsed if each is not None) == parsed
    assert [str(each) for each in parsed] == ordered
