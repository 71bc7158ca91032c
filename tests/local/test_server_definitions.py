"""CustomResourceDefinitions: routes that open and close, several versions of one object, clean-up, discovery."""

from __future__ import annotations

from typing import Any

DEFINITIONS = "/apis/apiextensions.k8s.io/v1/customresourcedefinitions"
CRONS = "/apis/example.com/v1/namespaces/default/crons"


def definition(*versions: str, plural: str = "crons", kind: str = "Cron", **names: Any) -> dict[str, Any]:
    schema = {
        "type": "object",
        "properties": {
            "spec": {
                "type": "object",
                "required": ["every"],
                "properties": {"every": {"type": "integer", "minimum": 1}, "image": {"type": "string", "default": "i"}},
            },
            "status": {"type": "object", "properties": {"last": {"type": "string"}, "replicas": {"type": "integer"}}},
        },
    }
    return {
        "metadata": {"name": f"{plural}.example.com"},
        "spec": {
            "group": "example.com",
            "scope": "Namespaced",
            "names": {"plural": plural, "kind": kind, **names},
            "versions": [
                {
                    "name": version,
                    "served": True,
                    "storage": index == 0,
                    "schema": {"openAPIV3Schema": schema},
                    "subresources": {
                        "status": {},
                        "scale": {"specReplicasPath": ".spec.every", "statusReplicasPath": ".status.replicas"},
                    },
                }
                for index, version in enumerate(versions or ("v1",))
            ],
        },
    }


def cron(name: str = "a", every: int = 5, version: str = "v1") -> dict[str, Any]:
    return {
        "apiVersion": f"example.com/{version}",
        "kind": "Cron",
        "metadata": {"name": name},
        "spec": {"every": every},
    }


def conditions(body: dict[str, Any]) -> dict[str, str]:
    return {each["type"]: each["status"] for each in body["status"]["conditions"]}


def settle(api, rounds: int = 50) -> None:
    """Let the clean-up loop run."""
    import asyncio

    for _ in range(rounds):
        api.run(asyncio.sleep(0.005))


def test_a_definition_is_served_when_its_writer_hears_of_success(api) -> None:
    assert api.call("GET", CRONS).code == 404
    created = api.create(DEFINITIONS, definition())
    assert conditions(created) == {"NamesAccepted": "True", "Established": "True"}
    assert created["status"]["storedVersions"] == ["v1"]
    assert created["status"]["acceptedNames"]["kind"] == "Cron"
    stored = api.create(CRONS, cron())
    assert stored["spec"] == {"every": 5, "image": "i"}
    assert stored["metadata"]["generation"] == 1
    assert api.get(CRONS)["kind"] == "CronList"


def test_instances_are_validated_and_pruned(api) -> None:
    api.create(DEFINITIONS, definition())
    answer = api.call("POST", CRONS, cron(every=0))
    assert answer.status[:2] == (422, "Invalid")
    assert answer.causes[0][0] == "spec.every"
    answer = api.call("POST", CRONS, cron() | {"extra": 1})
    assert (answer.code, answer.warnings) == (201, ['unknown field "extra"'])
    assert "extra" not in answer.body
    answer = api.patch(f"{CRONS}/a", {"spec": {"every": 6}}, "strategic-merge-patch+json")
    assert answer.status[:2] == (415, "UnsupportedMediaType")
    assert "application/merge-patch+json" in answer.body["message"]


def test_status_and_scale_of_instances(api) -> None:
    api.create(DEFINITIONS, definition())
    api.create(CRONS, cron() | {"status": {"last": "never"}})
    assert "status" not in api.get(f"{CRONS}/a")
    patched = api.patch(f"{CRONS}/a/status", {"status": {"last": "now", "replicas": 3}, "spec": {"every": 99}}).body
    assert (patched["status"]["last"], patched["spec"]["every"]) == ("now", 5)
    scale = api.get(f"{CRONS}/a/scale")
    assert (scale["spec"]["replicas"], scale["status"]["replicas"]) == (5, 3)
    assert api.patch(f"{CRONS}/a/scale", {"spec": {"replicas": 8}}).code == 200
    assert api.get(f"{CRONS}/a")["spec"]["every"] == 8


def test_one_object_in_several_versions(api) -> None:
    api.create(DEFINITIONS, definition("v1", "v2"))
    beta = "/apis/example.com/v2/namespaces/default/crons"
    watch = api.watch(beta)
    api.create(CRONS, cron())
    assert api.get(f"{beta}/a")["apiVersion"] == "example.com/v2"
    assert api.get(beta)["items"][0]["apiVersion"] == "example.com/v2"
    assert watch.next(1)[0][1]["apiVersion"] == "example.com/v2"
    watch.close()
    updated = api.patch(f"{beta}/a", {"spec": {"every": 9}}).body
    assert updated["apiVersion"] == "example.com/v2"
    assert api.get(f"{CRONS}/a")["apiVersion"] == "example.com/v1"
    assert api.get(f"{CRONS}/a")["spec"]["every"] == 9


def test_discovery_follows(api) -> None:
    api.create(DEFINITIONS, definition(shortNames=["cr"]))
    resources = api.get("/apis/example.com/v1")["resources"]
    assert {each["name"] for each in resources} == {"crons", "crons/status", "crons/scale"}
    assert "apis/example.com/v1" in api.get("/openapi/v3")["paths"]
    api.call("DELETE", f"{DEFINITIONS}/crons.example.com")
    settle(api)
    assert api.call("GET", "/apis/example.com/v1").code == 404
    assert "apis/example.com/v1" not in api.get("/openapi/v3")["paths"]


def test_a_name_that_is_taken_is_not_served(api) -> None:
    api.create(DEFINITIONS, definition())
    second = api.create(DEFINITIONS, definition(plural="crontabs"))
    assert conditions(second) == {"NamesAccepted": "False", "Established": "False"}
    assert "already in use" in second["status"]["conditions"][0]["message"]
    assert api.call("GET", "/apis/example.com/v1/crontabs").code == 404


def test_an_update_changes_what_is_served(api) -> None:
    api.create(DEFINITIONS, definition())
    api.create(CRONS, cron())
    body = api.get(f"{DEFINITIONS}/crons.example.com")
    properties = body["spec"]["versions"][0]["schema"]["openAPIV3Schema"]["properties"]["spec"]["properties"]
    properties["color"] = {"type": "string", "default": "red"}
    assert api.call("PUT", f"{DEFINITIONS}/crons.example.com", body).code == 200
    assert api.patch(f"{CRONS}/a", {"spec": {"every": 7}}).body["spec"] == {"every": 7, "image": "i", "color": "red"}


def test_deleting_a_definition_deletes_its_instances_first(api) -> None:
    api.create(DEFINITIONS, definition())
    api.create(CRONS, cron())
    held = cron("held")
    held["metadata"]["finalizers"] = ["example.com/x"]
    api.create(CRONS, held)
    watch = api.watch(CRONS)
    watch.next(2)
    assert api.call("DELETE", f"{DEFINITIONS}/crons.example.com").code == 200
    settle(api)
    assert api.names(CRONS) == ["held"]
    answer = api.call("POST", CRONS, cron("new"))
    assert answer.status[:2] == (405, "MethodNotAllowed")
    assert "custom resource definition is terminating" in answer.body["message"]
    api.patch(f"{CRONS}/held", {"metadata": {"finalizers": None}})
    settle(api)
    assert api.call("GET", f"{DEFINITIONS}/crons.example.com").code == 404
    assert api.call("GET", CRONS).code == 404
    kinds = [kind for kind, _ in watch.next(3)]
    assert kinds == ["DELETED", "MODIFIED", "DELETED"]
    assert watch.ended()


def test_malformed_definitions_are_refused(api) -> None:
    for spec in (None, [], {}, {"group": 1}, {"group": "example.com", "names": {}, "versions": []}, {"versions": [3]}):
        answer = api.call("POST", DEFINITIONS, {"metadata": {"name": "crons.example.com"}, "spec": spec})
        assert answer.code in (400, 422), answer
    body = definition()
    body["metadata"]["name"] = "other.example.com"
    assert api.call("POST", DEFINITIONS, body).causes[0][0] == "metadata.name"
