"""The verbs of the API server, one at a time, and the exact Status of what is refused."""

from __future__ import annotations

from typing import Any

import pytest

from capstan.local import User

MAPS = "/api/v1/namespaces/default/configmaps"
PODS = "/api/v1/namespaces/default/pods"
DEPLOYMENTS = "/apis/apps/v1/namespaces/default/deployments"


def config_map(name: str = "a", **data: str) -> dict[str, Any]:
    return {"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": name}, "data": data or {"x": "1"}}


def pod(name: str = "p", **spec: Any) -> dict[str, Any]:
    return {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"name": name},
        "spec": {"containers": [{"name": "c", "image": "i"}], **spec},
    }


def deployment(name: str = "web", replicas: int = 1) -> dict[str, Any]:
    return {
        "apiVersion": "apps/v1",
        "kind": "Deployment",
        "metadata": {"name": name},
        "spec": {
            "replicas": replicas,
            "selector": {"matchLabels": {"app": name}},
            "template": {
                "metadata": {"labels": {"app": name}},
                "spec": {"containers": [{"name": "c", "image": "i"}]},
            },
        },
    }


# create


def test_create_fills_in_what_only_the_server_knows(api) -> None:
    created = api.create(MAPS, config_map())
    metadata = created["metadata"]
    assert metadata["namespace"] == "default"
    assert len(metadata["uid"]) == 36
    assert metadata["creationTimestamp"] == "2023-11-14T22:13:20Z"
    assert metadata["resourceVersion"] == str(api.server.store.revision)
    assert api.get(f"{MAPS}/a") == created


def test_the_creator_cannot_set_the_servers_metadata(api) -> None:
    body = config_map()
    body["metadata"] |= {"uid": "mine", "creationTimestamp": None, "deletionTimestamp": "2020-01-01T00:00:00Z"}
    metadata = api.create(MAPS, body)["metadata"]
    assert metadata["uid"] != "mine"
    assert "deletionTimestamp" not in metadata


def test_create_of_an_existing_name(api) -> None:
    api.create(MAPS, config_map())
    answer = api.call("POST", MAPS, config_map())
    assert answer.status == (409, "AlreadyExists", 'configmaps "a" already exists')
    assert answer.body["details"] == {"name": "a", "kind": "configmaps"}


def test_generate_name(api) -> None:
    body = {"metadata": {"generateName": "job-"}}
    names = {api.create(MAPS, body)["metadata"]["name"] for _ in range(20)}
    assert len(names) == 20
    assert all(name.startswith("job-") and len(name) == 9 for name in names)


@pytest.mark.parametrize(
    ("body", "status"),
    [
        (
            config_map() | {"kind": "Secret"},
            "the kind in the data (Secret) does not match the expected kind (ConfigMap)",
        ),
        (
            config_map() | {"apiVersion": "v2"},
            "the API version in the data (v2) does not match the expected API version (v1)",
        ),
        (
            {"metadata": {"name": "a", "namespace": "other"}},
            "the namespace of the provided object does not match the namespace sent on the request (other, default)",
        ),
        (
            {"metadata": {"name": "a", "resourceVersion": "7"}},
            "resourceVersion should not be set on objects to be created",
        ),
        ({"metadata": []}, "metadata: must be an object"),
        ([1], "the request body must be an object with apiVersion and kind, found list"),
        ("{", "the request body is not JSON: Input data was truncated"),
        (b"\xff{}", "the request body is not JSON: JSON is malformed: invalid character (byte 0)"),
        ("", "the request has no body; send the object as JSON or YAML"),
    ],
)
def test_bodies_that_are_not_the_object(api, body: object, status: str) -> None:
    assert api.call("POST", MAPS, body).status == (400, "BadRequest", status)


def test_a_name_is_required_and_checked(api) -> None:
    answer = api.call("POST", MAPS, {"metadata": {}})
    assert answer.status[:2] == (422, "Invalid")
    assert answer.causes == [("metadata.name", "FieldValueRequired")]
    answer = api.call("POST", MAPS, config_map("Not_A_Name"))
    assert answer.status[:2] == (422, "Invalid")
    assert answer.causes == [("metadata.name", "FieldValueInvalid")]
    assert answer.body["details"]["kind"] == "ConfigMap"
    answer = api.call("POST", MAPS, {"metadata": {"name": "a", "labels": {"a b": "c"}}})
    assert answer.causes == [("metadata.labels", "FieldValueInvalid")]


def test_wrong_types_are_refused_before_anything_is_stored(api) -> None:
    before = api.server.store.revision
    answer = api.call("POST", MAPS, {"metadata": {"name": "a"}, "data": {"x": 1}})
    assert answer.status[:2] == (400, "BadRequest")
    assert "data" in answer.body["message"]
    answer = api.call("POST", MAPS, {"metadata": {"name": 5}})
    assert answer.status == (400, "BadRequest", "metadata.name: must be text, found 5")
    assert api.server.store.revision == before


def test_bodies_above_three_mebibytes_are_refused(api) -> None:
    answer = api.call("POST", MAPS, config_map(x="y" * (3 << 20)))
    assert answer.status == (413, "RequestEntityTooLarge", "Request entity too large: limit is 3145728")


def test_deep_nesting_is_a_client_error(api) -> None:
    for depth in (200, 20_000):
        body = '{"metadata":{"name":"a"},"data":' + '{"a":' * depth + "1" + "}" * depth + "}"
        assert api.call("POST", MAPS, body).code in (400, 422)


def test_yaml_bodies(api) -> None:
    yaml = {"content-type": "application/yaml"}
    created = api.create(MAPS, "metadata:\n  name: a\ndata:\n  time: '12:30'\n", headers=yaml)
    assert created["data"] == {"time": "12:30"}
    answer = api.call("POST", MAPS, "a: [", headers=yaml)
    assert answer.status[:2] == (400, "BadRequest")
    assert "line 2" in answer.body["message"]
    answer = api.call("POST", MAPS, "a: 1\n---\nb: 2\n", headers=yaml)
    assert answer.body["message"] == "the request body holds 2 YAML documents; send exactly one"


def test_unknown_media_types(api) -> None:
    answer = api.call("POST", MAPS, config_map(), headers={"content-type": "text/plain"})
    assert answer.status[:2] == (415, "UnsupportedMediaType")
    answer = api.call("GET", MAPS, headers={"accept": "application/vnd.kubernetes.protobuf"})
    assert answer.status[:2] == (406, "NotAcceptable")


def test_unknown_fields_warn_are_refused_or_are_dropped(api) -> None:
    body = config_map() | {"dta": {}}
    answer = api.call("POST", MAPS, body)
    assert (answer.code, answer.warnings) == (201, ['unknown field "dta"'])
    assert "dta" not in answer.body
    strict = api.call("POST", f"{MAPS}?fieldValidation=Strict", config_map("b") | {"dta": {}})
    assert strict.status == (
        400,
        "BadRequest",
        'ConfigMap in version "v1" cannot be handled as a ConfigMap: strict decoding error: unknown field "dta"',
    )
    ignored = api.call("POST", f"{MAPS}?fieldValidation=Ignore", config_map("b") | {"dta": {}})
    assert (ignored.code, ignored.warnings) == (201, [])
    assert api.call("POST", f"{MAPS}?fieldValidation=Never", config_map("c")).code == 400


def test_dry_run_decides_everything_and_stores_nothing(api) -> None:
    before = api.server.store.revision
    answer = api.call("POST", f"{PODS}?dryRun=All", pod())
    assert answer.code == 201
    assert answer.body["spec"]["restartPolicy"] == "Always"
    assert "resourceVersion" not in answer.body["metadata"]
    assert api.call("POST", f"{PODS}?dryRun=All", pod("UPPER")).code == 422
    assert api.call("POST", f"{PODS}?dryRun=Some", pod()).status[:2] == (400, "BadRequest")
    assert api.server.store.revision == before
    api.create(MAPS, config_map())
    assert api.call("DELETE", f"{MAPS}/a?dryRun=All").code == 200
    assert api.patch(f"{MAPS}/a?dryRun=All", {"data": {"x": "2"}}).body["data"] == {"x": "2"}
    assert api.get(f"{MAPS}/a")["data"] == {"x": "1"}


# get


def test_get_of_what_is_not_there(api) -> None:
    answer = api.call("GET", f"{MAPS}/nope")
    assert answer.status == (404, "NotFound", 'configmaps "nope" not found')
    answer = api.call("GET", f"{DEPLOYMENTS}/nope")
    assert answer.status == (404, "NotFound", 'deployments.apps "nope" not found')
    assert answer.body["details"] == {"name": "nope", "group": "apps", "kind": "deployments"}


@pytest.mark.parametrize(
    "path",
    [
        "/api/v1/namespaces/default/unicorns",
        "/apis/nope/v1/things",
        "/api/v2/pods",
        "/nope",
        "/apis/apps/v9/deployments",
    ],
)
def test_unknown_paths(api, path: str) -> None:
    assert api.call("GET", path).status == (404, "NotFound", "the server could not find the requested resource")


@pytest.mark.parametrize(
    ("method", "path"),
    [
        ("POST", f"{MAPS}/a"),
        ("PUT", MAPS),
        ("PATCH", MAPS),
        ("TRACE", MAPS),
        ("POST", "/version"),
        ("DELETE", "/api/v1/pods"),
    ],
)
def test_methods_that_a_resource_does_not_have(api, method: str, path: str) -> None:
    assert api.call(method, path, config_map()).status[:2] == (405, "MethodNotAllowed")


@pytest.mark.parametrize("verb", ["exec", "attach", "portforward"])
def test_what_is_not_implemented_says_so(api, verb: str) -> None:
    api.create(PODS, pod())
    answer = api.call("POST", f"{PODS}/p/{verb}")
    assert answer.status == (501, "NotImplemented", f"pods/{verb} is not implemented by the embedded control plane")


def test_a_revision_from_the_future(api) -> None:
    answer = api.call("GET", f"{MAPS}?resourceVersion=999999")
    assert answer.status[:2] == (504, "Timeout")
    assert answer.causes == [("", "ResourceVersionTooLarge")]


# update


def test_update_replaces_and_counts_the_generation_of_the_spec(api) -> None:
    created = api.create(DEPLOYMENTS, deployment())
    assert created["metadata"]["generation"] == 1
    created["metadata"]["labels"] = {"a": "b"}
    labelled = api.call("PUT", f"{DEPLOYMENTS}/web", created).body
    assert labelled["metadata"]["generation"] == 1
    labelled["spec"]["replicas"] = 3
    scaled = api.call("PUT", f"{DEPLOYMENTS}/web", labelled).body
    assert scaled["metadata"]["generation"] == 2
    assert scaled["metadata"]["uid"] == created["metadata"]["uid"]


def test_update_with_a_stale_revision(api) -> None:
    created = api.create(MAPS, config_map())
    api.patch(f"{MAPS}/a", {"data": {"x": "2"}})
    answer = api.call("PUT", f"{MAPS}/a", created)
    assert answer.status == (
        409,
        "Conflict",
        'Operation cannot be fulfilled on configmaps "a": the object has been modified; '
        "please apply your changes to the latest version and try again",
    )


def test_update_without_a_revision_is_unconditional(api) -> None:
    api.create(MAPS, config_map())
    assert api.call("PUT", f"{MAPS}/a", config_map(y="2")).body["data"] == {"y": "2"}


def test_update_of_another_object(api) -> None:
    created = api.create(MAPS, config_map())
    answer = api.call("PUT", f"{MAPS}/b", created)
    assert answer.status == (400, "BadRequest", "the name of the object (a) does not match the name on the URL (b)")
    created["metadata"] |= {"uid": "somebody-else", "resourceVersion": ""}
    answer = api.call("PUT", f"{MAPS}/a", created)
    assert answer.status[:2] == (409, "Conflict")
    assert "Precondition failed: UID in precondition: somebody-else" in answer.body["message"]
    assert api.call("PUT", f"{MAPS}/c", config_map("c")).status == (404, "NotFound", 'configmaps "c" not found')


def test_an_update_that_changes_nothing_is_not_written(api) -> None:
    created = api.create(DEPLOYMENTS, deployment())
    before = api.server.store.revision
    assert api.call("PUT", f"{DEPLOYMENTS}/web", created).body == created
    assert api.patch(f"{DEPLOYMENTS}/web", {"spec": {"replicas": 1}}).body == created
    assert api.server.store.revision == before


def test_status_changes_only_through_its_subresource(api) -> None:
    created = api.create(DEPLOYMENTS, deployment() | {"status": {"replicas": 9}})
    assert not created.get("status", {}).get("replicas")
    created["status"] = {"replicas": 7}
    assert not api.call("PUT", f"{DEPLOYMENTS}/web", created).body.get("status", {}).get("replicas")
    body = api.get(f"{DEPLOYMENTS}/web") | {"status": {"replicas": 2}}
    body["spec"]["replicas"] = 50
    updated = api.call("PUT", f"{DEPLOYMENTS}/web/status", body)
    assert updated.code == 200, updated
    assert updated.body["status"]["replicas"] == 2
    assert updated.body["spec"]["replicas"] == 1
    assert updated.body["metadata"]["generation"] == 1
    patched = api.patch(f"{DEPLOYMENTS}/web/status", {"status": {"readyReplicas": 1}})
    assert patched.body["status"] == {"replicas": 2, "readyReplicas": 1}
    assert api.get(f"{DEPLOYMENTS}/web/status")["status"] == {"replicas": 2, "readyReplicas": 1}


# patch


def test_json_patch(api) -> None:
    api.create(MAPS, config_map(x="1", y="2"))
    operations = [
        {"op": "test", "path": "/data/x", "value": "1"},
        {"op": "remove", "path": "/data/y"},
        {"op": "add", "path": "/metadata/labels", "value": {"a": "b"}},
    ]
    patched = api.patch(f"{MAPS}/a", operations, "json-patch+json")
    assert patched.body["data"] == {"x": "1"}
    assert patched.body["metadata"]["labels"] == {"a": "b"}
    failed = api.patch(f"{MAPS}/a", [{"op": "test", "path": "/data/x", "value": "9"}], "json-patch+json")
    assert failed.status[:2] == (422, "Invalid")
    malformed = api.patch(f"{MAPS}/a", [{"op": "fly", "path": "/data"}], "json-patch+json")
    assert malformed.status[:2] == (400, "BadRequest")
    assert api.patch(f"{MAPS}/a", {"data": {}}, "json-patch+json").status[:2] == (400, "BadRequest")


def test_merge_patch(api) -> None:
    api.create(MAPS, config_map(x="1", y="2"))
    assert api.patch(f"{MAPS}/a", {"data": {"x": None, "z": "3"}}).body["data"] == {"y": "2", "z": "3"}
    assert api.patch(f"{MAPS}/a", [1]).status[:2] == (400, "BadRequest")


def test_strategic_merge_patch_merges_lists_by_key(api) -> None:
    api.create(DEPLOYMENTS, deployment())
    containers = {"containers": [{"name": "d", "image": "j"}]}
    patch = {"spec": {"template": {"spec": containers}}}
    patched = api.patch(f"{DEPLOYMENTS}/web", patch, "strategic-merge-patch+json")
    names = {each["name"]: each["image"] for each in patched.body["spec"]["template"]["spec"]["containers"]}
    assert names == {"c": "i", "d": "j"}
    merged = api.patch(f"{DEPLOYMENTS}/web", patch)
    assert [each["name"] for each in merged.body["spec"]["template"]["spec"]["containers"]] == ["d"]


def test_a_patch_may_ask_for_a_revision(api) -> None:
    created = api.create(MAPS, config_map())
    revision = created["metadata"]["resourceVersion"]
    ask = {"metadata": {"resourceVersion": revision}, "data": {"x": "2"}}
    assert api.patch(f"{MAPS}/a", ask).code == 200
    assert api.patch(f"{MAPS}/a", ask).status[:2] == (409, "Conflict")


def test_patches_cannot_rename_and_are_validated(api) -> None:
    api.create(MAPS, config_map())
    assert api.patch(f"{MAPS}/a", {"metadata": {"name": "b"}}).status[:2] == (400, "BadRequest")
    assert api.patch(f"{MAPS}/a", {"metadata": {"labels": {"a b": ""}}}).status[:2] == (422, "Invalid")
    assert api.patch(f"{MAPS}/nope", {}).status[:2] == (404, "NotFound")
    assert api.patch(f"{MAPS}/a", {}, "fancy-patch+json").status[:2] == (415, "UnsupportedMediaType")


# apply


def test_apply_creates_and_then_owns(api) -> None:
    first = api.apply(f"{MAPS}/a", config_map(x="1", y="2"), "one")
    assert first.code == 201
    entry = first.body["metadata"]["managedFields"][0]
    assert (entry["manager"], entry["operation"]) == ("one", "Apply")
    assert entry["fieldsV1"]["f:data"] == {"f:x": {}, "f:y": {}}
    second = api.apply(f"{MAPS}/a", config_map(x="1"), "one")
    assert (second.code, second.body["data"]) == (200, {"x": "1"})
    before = api.server.store.revision
    assert api.apply(f"{MAPS}/a", config_map(x="1"), "one").body == second.body
    assert api.server.store.revision == before


def test_apply_conflicts_name_the_field_and_its_owner(api) -> None:
    api.apply(f"{MAPS}/a", config_map(x="1"), "one")
    answer = api.apply(f"{MAPS}/a", config_map(x="2"), "two")
    assert answer.status == (409, "Conflict", 'Apply failed with 1 conflict: conflict with "one": .data.x')
    assert answer.body["details"]["causes"] == [
        {"reason": "FieldManagerConflict", "message": 'conflict with "one"', "field": ".data.x"}
    ]
    forced = api.apply(f"{MAPS}/a", config_map(x="2"), "two", "&force=true")
    assert forced.body["data"] == {"x": "2"}


def test_an_update_takes_fields_over_from_appliers(api) -> None:
    api.apply(f"{MAPS}/a", config_map(x="1"), "one")
    api.patch(f"{MAPS}/a?fieldManager=editor", {"data": {"x": "5"}})
    answer = api.apply(f"{MAPS}/a", config_map(x="1"), "one")
    assert answer.causes == [(".data.x", "FieldManagerConflict")]
    assert answer.body["details"]["causes"][0]["message"] == 'conflict with "editor" using v1'


def test_apply_says_what_it_needs(api) -> None:
    answer = api.patch(f"{MAPS}/a", config_map(), "apply-patch+yaml")
    assert answer.status[:2] == (422, "Invalid")
    assert answer.causes == [("fieldManager", "FieldValueRequired")]
    body = config_map()
    body["metadata"]["managedFields"] = [{"manager": "x"}]
    answer = api.apply(f"{MAPS}/a", body)
    assert answer.status[:2] == (400, "BadRequest")
    assert "managedFields" in answer.body["message"]
    assert api.apply(f"{MAPS}/b", config_map("a")).status[:2] == (400, "BadRequest")
    assert api.apply(f"{DEPLOYMENTS}/nope/status", deployment("nope")).status[:2] == (404, "NotFound")


def test_what_people_make_is_owned_by_their_manager_and_admission_owns_nothing(api) -> None:
    created = api.create(f"{PODS}?fieldManager=hand", pod())
    (entry,) = created["metadata"]["managedFields"]
    assert (entry["manager"], entry["operation"]) == ("hand", "Update")
    assert created["spec"]["serviceAccountName"] == "default"
    assert "f:serviceAccountName" not in entry["fieldsV1"]["f:spec"]
    assert "f:status" not in entry["fieldsV1"]


def test_apply_to_an_untracked_object_starts_its_tracking(api) -> None:
    api.create(PODS, pod(), user=User("system:serviceaccount:kube-system:maker", ("system:masters",)))
    assert "managedFields" not in api.get(f"{PODS}/p")["metadata"]
    body = {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "p", "labels": {"a": "b"}}}
    managers = {entry["manager"] for entry in api.apply(f"{PODS}/p", body, "one").body["metadata"]["managedFields"]}
    assert managers == {"before-first-apply", "one"}


# delete


def test_delete_answers_with_what_is_gone(api) -> None:
    created = api.create(MAPS, config_map())
    answer = api.call("DELETE", f"{MAPS}/a")
    assert answer.code == 200
    assert answer.body["status"] == "Success"
    assert answer.body["details"] == {"name": "a", "kind": "configmaps", "uid": created["metadata"]["uid"]}
    assert api.call("DELETE", f"{MAPS}/a").status == (404, "NotFound", 'configmaps "a" not found')


def test_delete_preconditions(api) -> None:
    created = api.create(MAPS, config_map())
    answer = api.call("DELETE", f"{MAPS}/a", {"preconditions": {"uid": "other"}})
    assert answer.status[:2] == (409, "Conflict")
    answer = api.call("DELETE", f"{MAPS}/a", {"preconditions": {"resourceVersion": "1"}})
    assert answer.status[:2] == (409, "Conflict")
    assert api.call("DELETE", f"{MAPS}/a", {"preconditions": {"uid": created["metadata"]["uid"]}}).code == 200


def test_bad_delete_options(api) -> None:
    api.create(MAPS, config_map())
    answer = api.call("DELETE", f"{MAPS}/a", {"propagationPolicy": "Sideways"})
    assert answer.causes == [("propagationPolicy", "FieldValueNotSupported")]
    answer = api.call("DELETE", f"{MAPS}/a", {"propagationPolicy": "Orphan", "orphanDependents": True})
    assert answer.causes == [("propagationPolicy", "FieldValueInvalid")]
    assert api.call("DELETE", f"{MAPS}/a", {"gracePeriodSeconds": "soon"}).status[:2] == (400, "BadRequest")
    assert api.names(MAPS) == ["a"]


def test_finalizers_hold_an_object_until_the_last_is_removed(api) -> None:
    body = config_map()
    body["metadata"]["finalizers"] = ["example.com/one", "example.com/two"]
    api.create(MAPS, body)
    answer = api.call("DELETE", f"{MAPS}/a")
    assert answer.body["metadata"]["deletionTimestamp"] == "2023-11-14T22:13:20Z"
    assert answer.body["metadata"]["deletionGracePeriodSeconds"] == 0
    again = api.call("DELETE", f"{MAPS}/a")
    assert again.body == answer.body
    added = api.patch(f"{MAPS}/a", {"metadata": {"finalizers": ["example.com/one", "example.com/three"]}})
    assert added.causes == [("metadata.finalizers", "FieldValueForbidden")]
    watch = api.watch(f"{MAPS}?resourceVersion={answer.body['metadata']['resourceVersion']}")
    api.patch(f"{MAPS}/a", {"metadata": {"finalizers": ["example.com/two"]}})
    api.patch(f"{MAPS}/a", {"metadata": {"finalizers": None}})
    assert watch.names(2) == [("MODIFIED", "a"), ("DELETED", "a")]
    assert api.call("GET", f"{MAPS}/a").code == 404
    watch.close()


@pytest.mark.parametrize(
    ("policy", "finalizers"), [("Foreground", ["foregroundDeletion"]), ("Orphan", ["orphan"]), ("Background", None)]
)
def test_propagation_policies_leave_their_finalizer_for_the_garbage_collector(api, policy, finalizers) -> None:
    api.create(DEPLOYMENTS, deployment())
    api.call("DELETE", f"{DEPLOYMENTS}/web", {"propagationPolicy": policy})
    answer = api.call("GET", f"{DEPLOYMENTS}/web")
    assert answer.body["metadata"].get("finalizers") == finalizers


def test_a_bound_pod_gets_its_grace_period_and_an_unbound_one_goes_at_once(api) -> None:
    api.create(PODS, pod("waiting"))
    assert api.call("DELETE", f"{PODS}/waiting").body["kind"] == "Status"
    api.create(PODS, pod("running", nodeName="n1"))
    marked = api.call("DELETE", f"{PODS}/running").body
    assert marked["metadata"]["deletionGracePeriodSeconds"] == 30
    assert marked["metadata"]["deletionTimestamp"] == "2023-11-14T22:13:50Z"
    shorter = api.call("DELETE", f"{PODS}/running", {"gracePeriodSeconds": 5}).body
    assert shorter["metadata"]["deletionGracePeriodSeconds"] == 5
    longer = api.call("DELETE", f"{PODS}/running", {"gracePeriodSeconds": 60}).body
    assert longer["metadata"]["deletionGracePeriodSeconds"] == 5
    assert api.call("DELETE", f"{PODS}/running", {"gracePeriodSeconds": 0}).body["status"] == "Success"
    assert api.names(PODS) == []


def test_delete_collection_respects_selectors(api) -> None:
    for name in "abc":
        body = config_map(name)
        body["metadata"]["labels"] = {"keep": str(name == "b").lower()}
        api.create(MAPS, body)
    answer = api.call("DELETE", f"{MAPS}?labelSelector=keep=false")
    assert answer.body["kind"] == "ConfigMapList"
    assert [item["metadata"]["name"] for item in answer.body["items"]] == ["a", "c"]
    assert api.names(MAPS) == ["b"]


# namespaces


def test_nothing_is_created_in_a_missing_or_terminating_namespace(api) -> None:
    answer = api.call("POST", "/api/v1/namespaces/nope/configmaps", config_map())
    assert answer.status == (404, "NotFound", 'namespaces "nope" not found')
    api.create("/api/v1/namespaces", {"metadata": {"name": "going"}})
    marked = api.call("DELETE", "/api/v1/namespaces/going").body
    assert marked["status"]["phase"] == "Terminating"
    answer = api.call("POST", "/api/v1/namespaces/going/configmaps", config_map())
    assert answer.status == (
        403,
        "Forbidden",
        'configmaps "a" is forbidden: unable to create new content in namespace going because it is being terminated',
    )
    assert answer.causes == [("metadata.namespace", "NamespaceTerminating")]


def test_a_terminating_namespace_goes_with_its_last_finalizer(api) -> None:
    api.create("/api/v1/namespaces", {"metadata": {"name": "going"}})
    api.call("DELETE", "/api/v1/namespaces/going")
    body = api.get("/api/v1/namespaces/going")
    body["spec"]["finalizers"] = []
    assert api.call("PUT", "/api/v1/namespaces/going/finalize", body).code == 200
    assert api.call("GET", "/api/v1/namespaces/going").code == 404
