"""Server-side apply and update tracking, rule by rule (KEP-555)."""

from __future__ import annotations

from typing import Any

import pytest

from capstan import fields

LABELS = {"type": "object", "additionalProperties": {"type": "string"}}
DEPLOYMENT = fields.Schema.from_openapi(
    {
        "type": "object",
        "properties": {
            "apiVersion": {"type": "string"},
            "kind": {"type": "string"},
            "metadata": {"$ref": "#/components/schemas/ObjectMeta"},
            "spec": {"allOf": [{"$ref": "Spec"}], "default": {}},
            "status": {"type": "object", "properties": {"replicas": {"type": "integer"}}},
        },
    },
    {
        "ObjectMeta": {
            "type": "object",
            "properties": {
                "name": {"type": "string"},
                "labels": LABELS,
                "annotations": LABELS,
                "finalizers": {"type": "array", "items": {"type": "string"}, "x-kubernetes-list-type": "set"},
            },
        },
        "Spec": {
            "type": "object",
            "properties": {
                "replicas": {"type": "integer"},
                "selector": {**LABELS, "x-kubernetes-map-type": "atomic"},
                "containers": {
                    "type": "array",
                    "items": {"$ref": "Container"},
                    "x-kubernetes-list-type": "map",
                    "x-kubernetes-list-map-keys": ["name"],
                },
            },
        },
        "Container": {
            "type": "object",
            "properties": {
                "name": {"type": "string"},
                "image": {"type": "string"},
                "args": {"type": "array", "items": {"type": "string"}},
                "ports": {
                    "type": "array",
                    "x-kubernetes-list-type": "map",
                    "x-kubernetes-list-map-keys": ["containerPort", "protocol"],
                    "items": {
                        "type": "object",
                        "properties": {
                            "containerPort": {"type": "integer"},
                            "protocol": {"type": "string", "default": "TCP"},
                            "name": {"type": "string"},
                        },
                    },
                },
            },
        },
    },
)

T0, T1, T2 = "2026-11-23T10:00:00Z", "2026-11-23T10:00:01Z", "2026-11-23T10:00:02Z"


def deployment(spec: dict[str, Any] | None = None, **metadata: Any) -> dict[str, Any]:
    body: dict[str, Any] = {"apiVersion": "apps/v1", "kind": "Deployment", "metadata": {"name": "web", **metadata}}
    return body if spec is None else {**body, "spec": spec}


def apply(
    live: dict[str, Any] | None, body: dict[str, Any], manager: str = "alice", *, force: bool = False, now: str = T0
) -> dict[str, Any]:
    return fields.apply(live, body, manager, schema=DEPLOYMENT, force=force, now=now, api_version="apps/v1")


def update(
    old: dict[str, Any] | None, new: dict[str, Any], manager: str = "editor", *, now: str = T1, **more: Any
) -> dict[str, Any]:
    return fields.track_update(old, new, manager, schema=DEPLOYMENT, now=now, api_version="apps/v1", **more)


def owners_of(obj: dict[str, Any]) -> dict[str, list[str]]:
    """The managed fields as `manager/operation: [paths]`."""
    return {
        f"{entry['manager']}/{entry['operation']}": sorted(map(fields.render, fields.FieldSet(entry["fieldsV1"])))
        for entry in obj["metadata"].get("managedFields", [])
    }


def content(obj: dict[str, Any]) -> dict[str, Any]:
    return {**obj, "metadata": {key: value for key, value in obj["metadata"].items() if key != "managedFields"}}


def test_apply_creates_and_owns_leaves_items_and_keys_but_not_structs() -> None:
    created = apply(
        None, deployment({"replicas": 2, "containers": [{"name": "app", "image": "a:1"}]}, labels={"x": "1"})
    )
    assert owners_of(created) == {
        "alice/Apply": [
            ".metadata.labels.x",
            '.spec.containers[name="app"]',
            '.spec.containers[name="app"].image',
            '.spec.containers[name="app"].name',
            ".spec.replicas",
        ]
    }
    assert created["metadata"]["managedFields"] == [
        {
            "manager": "alice",
            "operation": "Apply",
            "apiVersion": "apps/v1",
            "time": T0,
            "fieldsType": "FieldsV1",
            "fieldsV1": {
                "f:metadata": {"f:labels": {"f:x": {}}},
                "f:spec": {
                    "f:containers": {'k:{"name":"app"}': {".": {}, "f:image": {}, "f:name": {}}},
                    "f:replicas": {},
                },
            },
        }
    ]


def test_applying_the_same_again_changes_nothing_at_all() -> None:
    created = apply(None, deployment({"replicas": 2}))
    assert apply(created, deployment({"replicas": 2}), now=T2) is created


def test_another_managers_field_is_a_conflict_with_the_message_of_kube_apiserver() -> None:
    live = update(apply(None, deployment({"replicas": 2})), deployment({"replicas": 5}), "kubectl-edit")
    with pytest.raises(fields.Conflicts) as caught:
        apply(live, deployment({"replicas": 2}))
    assert str(caught.value) == (
        'Apply failed with 1 conflict: conflict with "kubectl-edit" using apps/v1: .spec.replicas'
    )
    assert [(each.manager, each.field) for each in caught.value] == [("kubectl-edit", ".spec.replicas")]


def test_many_conflicts_are_grouped_by_manager() -> None:
    live = apply(None, deployment({"replicas": 2, "containers": [{"name": "app", "image": "a:1"}]}), "alice")
    live = update(live, {**live, "metadata": {**live["metadata"], "labels": {"x": "1"}}}, "kubectl-label")
    with pytest.raises(fields.Conflicts) as caught:
        wanted = deployment({"replicas": 3, "containers": [{"name": "app", "image": "a:2"}]}, labels={"x": "2"})
        apply(live, wanted, "bob")
    assert str(caught.value).splitlines() == [
        'Apply failed with 3 conflicts: conflicts with "alice":',
        '- .spec.containers[name="app"].image',
        "- .spec.replicas",
        'conflicts with "kubectl-label" using apps/v1:',
        "- .metadata.labels.x",
    ]


def test_force_takes_the_field_from_its_owner() -> None:
    live = apply(apply(None, deployment({"replicas": 2})), deployment({"replicas": 3}), "bob", force=True, now=T1)
    assert live["spec"]["replicas"] == 3
    assert owners_of(live) == {"bob/Apply": [".spec.replicas"]}


def test_equal_values_are_shared_without_conflict() -> None:
    live = apply(apply(None, deployment({"replicas": 2})), deployment({"replicas": 2}), "bob")
    assert owners_of(live) == {"alice/Apply": [".spec.replicas"], "bob/Apply": [".spec.replicas"]}


def test_a_field_no_longer_applied_disappears() -> None:
    live = apply(None, deployment({"replicas": 2}, labels={"x": "1", "y": "2"}))
    live = apply(live, deployment(labels={"x": "1"}), now=T1)
    assert content(live) == deployment(labels={"x": "1"})
    assert owners_of(live) == {"alice/Apply": [".metadata.labels.x"]}


def test_a_field_no_longer_applied_stays_while_somebody_else_owns_it() -> None:
    live = apply(None, deployment({"replicas": 2}))
    live = apply(live, deployment({"replicas": 2}), "bob")
    live = apply(live, deployment(), now=T1)
    assert live["spec"] == {"replicas": 2}
    assert owners_of(live) == {"bob/Apply": [".spec.replicas"]}


def test_what_an_updater_set_stays_when_the_applier_lets_go() -> None:
    live = update(apply(None, deployment({"replicas": 2})), deployment({"replicas": 5}), "autoscaler")
    assert owners_of(live) == {"autoscaler/Update": [".spec.replicas"]}
    assert content(apply(live, deployment())) == deployment({"replicas": 5})


def test_unowned_children_of_a_removed_struct_stay() -> None:
    live = apply(None, deployment({"replicas": 2}))
    live = update(live, {**live, "spec": {"replicas": 2, "selector": {"a": "b"}}}, "editor")
    assert apply(live, deployment())["spec"] == {"selector": {"a": "b"}}


def test_a_removed_list_item_leaves_the_items_of_others() -> None:
    live = apply(None, deployment({"containers": [{"name": "app", "image": "a:1"}, {"name": "old", "image": "o:1"}]}))
    live = apply(live, deployment({"containers": [{"name": "sidecar", "image": "s:1"}]}), "injector")
    live = apply(live, deployment({"containers": [{"name": "app", "image": "a:2"}]}))
    assert [item["name"] for item in live["spec"]["containers"]] == ["app", "sidecar"]


def test_items_follow_the_applied_order_and_others_stay_behind_their_predecessor() -> None:
    live = update(None, deployment({"containers": [{"name": name} for name in "xabyc"]}))
    merged = apply(live, deployment({"containers": [{"name": name} for name in "cba"]}))
    assert [item["name"] for item in merged["spec"]["containers"]] == ["x", "c", "b", "y", "a"]


def test_a_port_is_found_by_its_number_with_the_default_protocol() -> None:
    live = apply(None, deployment({"containers": [{"name": "app", "ports": [{"containerPort": 80, "name": "http"}]}]}))
    (path,) = [path for path in fields.owned(live, "alice") if path[-1].startswith('k:{"containerPort"')]
    assert path[-1] == 'k:{"containerPort":80,"protocol":"TCP"}'
    again = {"containers": [{"name": "app", "ports": [{"containerPort": 80, "protocol": "TCP", "name": "web"}]}]}
    (container,) = apply(live, deployment(again))["spec"]["containers"]
    assert container["ports"] == [{"containerPort": 80, "protocol": "TCP", "name": "web"}]


def test_atomic_values_change_hands_as_a_whole() -> None:
    live = apply(None, deployment({"selector": {"a": "1"}, "containers": [{"name": "app", "args": ["x"]}]}))
    with pytest.raises(fields.Conflicts, match=r"\.spec\.selector$"):
        apply(live, deployment({"selector": {"b": "2"}}), "bob")
    taken = apply(live, deployment({"selector": {"b": "2"}}), "bob", force=True)
    assert taken["spec"]["selector"] == {"b": "2"}


def test_a_set_keeps_the_values_of_every_manager() -> None:
    live = apply(apply(None, deployment(finalizers=["a"])), deployment(finalizers=["b"]), "bob")
    assert live["metadata"]["finalizers"] == ["a", "b"]
    assert apply(live, deployment())["metadata"]["finalizers"] == ["b"]


@pytest.mark.parametrize(
    ("containers", "message"),
    [
        ([{"name": "app"}, {"name": "app"}], '.spec.containers: duplicate entries for key [name="app"]'),
        ([{"image": "a:1"}], ".spec.containers: a list item leaves out name"),
        (["app"], ".spec.containers: the list item 'app' must be an object with the keys name"),
    ],
)
def test_an_applied_list_must_identify_its_items(containers: list[Any], message: str) -> None:
    with pytest.raises(fields.InvalidApply) as caught:
        apply(None, deployment({"containers": containers}))
    assert str(caught.value).startswith(message)


def test_managed_fields_cannot_be_applied() -> None:
    with pytest.raises(fields.InvalidApply, match="managedFields must be nil"):
        apply(None, deployment(managedFields=[{"manager": "x"}]))


def test_a_null_leaves_a_map_alone_and_empties_a_leaf() -> None:
    live = update(None, deployment({"replicas": 2, "selector": {"a": "1"}}, labels={"x": "1"}))
    merged = apply(live, deployment({"replicas": None}, labels=None), force=True)
    assert content(merged) == deployment({"selector": {"a": "1"}}, labels={"x": "1"})


# Updates


def test_a_create_belongs_to_its_writer_down_to_every_field() -> None:
    created = update(
        None, deployment({"replicas": 2, "containers": [{"name": "app", "args": ["a"]}]}, labels={"x": "1"})
    )
    assert created["metadata"]["managedFields"] == [
        {
            "manager": "editor",
            "operation": "Update",
            "apiVersion": "apps/v1",
            "time": T1,
            "fieldsType": "FieldsV1",
            "fieldsV1": {
                "f:metadata": {"f:labels": {".": {}, "f:x": {}}},
                "f:spec": {
                    "f:containers": {".": {}, 'k:{"name":"app"}': {".": {}, "f:args": {}, "f:name": {}}},
                    "f:replicas": {},
                },
            },
        }
    ]


def test_an_update_takes_what_it_changed_and_nothing_else() -> None:
    live = apply(None, deployment({"replicas": 2, "containers": [{"name": "app", "image": "a:1"}]}))
    changed = update(live, {**live, "spec": {**live["spec"], "replicas": 3}})
    assert owners_of(changed)["editor/Update"] == [".spec.replicas"]
    assert ".spec.replicas" not in owners_of(changed)["alice/Apply"]


def test_a_removed_field_leaves_everybody() -> None:
    live = apply(apply(None, deployment({"replicas": 2}, labels={"x": "1"})), deployment({"replicas": 2}), "bob")
    changed = update(live, {**live, "spec": {}})
    assert owners_of(changed) == {"alice/Apply": [".metadata.labels.x"]}


def test_a_write_that_changes_nothing_keeps_the_entries_and_their_time() -> None:
    live = update(None, deployment({"replicas": 2}), now=T0)
    assert update(live, deployment({"replicas": 2}), now=T2) == live
    assert update(live, live, "somebody-else", now=T2) == live


def test_status_and_spec_of_one_manager_are_separate_entries() -> None:
    live = update(None, deployment({"replicas": 2}), "controller")
    live = update(live, {**live, "status": {"replicas": 2}}, "controller", now=T2, subresource="status")
    assert [
        (raw["subresource"], raw["fieldsV1"]) for raw in live["metadata"]["managedFields"] if "subresource" in raw
    ] == [("status", {"f:status": {".": {}, "f:replicas": {}}})]


def test_fields_that_a_write_cannot_set_are_not_owned_by_it() -> None:
    status = fields.FieldSet.of([("f:status",)])
    created = update(None, {**deployment({"replicas": 1}), "status": {"replicas": 1}}, ignored=status)
    assert owners_of(created) == {"editor/Update": [".spec.replicas"]}


def test_the_eleventh_updater_folds_the_oldest_into_ancient_changes() -> None:
    live = update(None, deployment({}, labels={"k0": ""}), "m0", now="2026-01-01T00:00:00Z")
    for number in range(1, 13):
        labels = {**live["metadata"]["labels"], f"k{number}": ""}
        metadata = {**live["metadata"], "labels": labels}
        live = update(live, {**live, "metadata": metadata}, f"m{number}", now=f"2026-01-{number + 1:02d}T00:00:00Z")
    owned = owners_of(live)
    assert len(owned) == 10
    assert [path for path in owned["ancient-changes/Update"] if path.startswith(".metadata.labels.")] == [
        ".metadata.labels.k0",
        ".metadata.labels.k1",
        ".metadata.labels.k2",
        ".metadata.labels.k3",
    ]


def test_managed_fields_are_cleared_by_one_empty_entry_and_come_back_with_the_next_apply() -> None:
    live = update(None, deployment({"replicas": 2}))
    cleared = update(live, deployment({"replicas": 2}, managedFields=[{}]))
    assert "managedFields" not in cleared["metadata"]
    untracked = update(cleared, deployment({"replicas": 3}))
    assert "managedFields" not in untracked["metadata"]
    with pytest.raises(fields.Conflicts, match=r'"before-first-apply" using apps/v1: \.spec\.replicas'):
        apply(untracked, deployment({"replicas": 4}))


def test_a_write_may_replace_the_managed_fields() -> None:
    live = update(None, deployment({"replicas": 2}))
    (entry,) = live["metadata"]["managedFields"]
    renamed = update(live, deployment({"replicas": 2}, managedFields=[{**entry, "manager": "new"}]))
    assert owners_of(renamed) == {"new/Update": [".spec.replicas"]}


@pytest.mark.parametrize(
    "entry",
    [
        {"manager": "x", "operation": "Sync"},
        {"manager": "x", "operation": "Update", "fieldsV1": {"spec": {}}},
        {"manager": "x", "operation": "Update", "fieldsV1": {"k:{": {}}},
        {"manager": "x", "operation": "Update", "fieldsV1": []},
        {"manager": 7, "operation": "Update", "fieldsV1": {}},
        {"manager": "x", "operation": "Update", "time": {}, "fieldsV1": {}},
    ],
)
def test_malformed_managed_fields_are_refused(entry: dict[str, Any]) -> None:
    with pytest.raises(fields.InvalidFieldSet):
        update(None, deployment(managedFields=[entry]))


@pytest.mark.parametrize("containers", [[{"image": "x"}], ["x"], [{"name": None}]])
def test_tracking_never_stands_in_for_validation(containers: list[Any]) -> None:
    assert "managedFields" not in update(None, deployment({"containers": containers}))["metadata"]
    live = update(None, deployment({"containers": [{"name": "a"}]}))
    assert "managedFields" not in update(live, deployment({"containers": containers}))["metadata"]


def test_kubectl_moves_from_client_side_to_server_side_apply_without_conflict() -> None:
    import json

    body = deployment({"replicas": 2})
    note = {"kubectl.kubernetes.io/last-applied-configuration": json.dumps(body)}
    live = update(None, deployment({"replicas": 2}, annotations=note), "kubectl-client-side-apply")
    assert apply(live, deployment({"replicas": 3}), "kubectl")["spec"]["replicas"] == 3
    with pytest.raises(fields.Conflicts):
        apply(live, deployment({"replicas": 3}), "somebody")
