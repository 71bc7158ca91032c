"""OpenAPI documents: complete references, what kubectl looks up, stable hashes."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import msgspec
import pytest

from capstan.api import openapi as notation
from capstan.local import openapi
from capstan.local.types import builtin_types

from .types_samples import kind, kinds


def _references(value: Any) -> Iterator[str]:
    if isinstance(value, dict):
        if isinstance(target := value.get("$ref"), str):
            yield target
        for child in value.values():
            yield from _references(child)
    elif isinstance(value, list):
        for child in value:
            yield from _references(child)


def _documents() -> Iterator[tuple[str, Any]]:
    for path, served in openapi.paths_v3(kinds().values()).items():
        yield path, msgspec.json.decode(openapi.document_v3(served))


def test_every_reference_leads_somewhere_and_nothing_private_is_published() -> None:
    for path, document in _documents():
        names = {f"#/components/schemas/{name}" for name in document["components"]["schemas"]}
        assert set(_references(document)) <= names, path
        assert "x-capstan" not in msgspec.json.encode(document).decode()


def test_the_index_names_every_group_version_with_its_hash() -> None:
    served = builtin_types()
    index = openapi.index_v3(served)["paths"]
    assert {"api/v1", "apis/apps/v1", "apis/resource.k8s.io/v1"} <= set(index)
    document = openapi.document_v3(openapi.paths_v3(served)["apis/apps/v1"])
    assert index["apis/apps/v1"]["serverRelativeURL"] == f"/openapi/v3/apis/apps/v1?hash={openapi.etag(document)}"


def test_writes_take_field_validation() -> None:
    """Without this parameter kubectl validates on its own side."""
    document = msgspec.json.decode(openapi.document_v3([kind("apps/v1", "Deployment")]))
    path = document["paths"]["/apis/apps/v1/namespaces/{namespace}/deployments/{name}"]
    for method in ("put", "patch"):
        names = {parameter["name"] for parameter in path[method]["parameters"]}
        assert {"dryRun", "fieldManager", "fieldValidation"} <= names
        gvk = {"group": "apps", "version": "v1", "kind": "Deployment"}
        assert path[method]["x-kubernetes-group-version-kind"] == gvk


def test_custom_resources_take_no_strategic_patches() -> None:
    for item, taken in ((kind("v1", "Pod"), True), (kind("scheduling.run.ai/v2", "Queue"), False)):
        paths = msgspec.json.decode(openapi.document_v3([item]))["paths"]
        bodies = [entry["patch"]["requestBody"]["content"] for entry in paths.values() if "patch" in entry]
        assert bodies
        assert all(("application/strategic-merge-patch+json" in body) is taken for body in bodies)


def test_a_custom_resource_is_explained_by_its_own_schema() -> None:
    item = kind("scheduling.run.ai/v2", "Queue")
    schemas = msgspec.json.decode(openapi.document_v3([item]))["components"]["schemas"]
    schema = schemas["ai.run.scheduling.v2.Queue"]
    gvk = {"group": "scheduling.run.ai", "version": "v2", "kind": "Queue"}
    assert schema["x-kubernetes-group-version-kind"] == [gvk]
    assert "quota" in schema["properties"]["spec"]["properties"]["resources"]["properties"]["gpu"]["properties"]
    assert schema["properties"]["metadata"]["$ref"].endswith("ObjectMeta")


def test_the_same_types_are_published_once() -> None:
    served = [kind("apps/v1", "Deployment")]
    assert openapi.document_v3(served) is openapi.document_v3(list(served))


def test_version_2_is_json_only() -> None:
    protobuf = "application/com.github.proto-openapi.spec.v2@v1.0+protobuf"
    body, content_type = openapi.respond("/openapi/v2", protobuf, [])
    assert (body[:5], content_type) == (b"\n\x032.0", protobuf.replace("@", "."))
    assert openapi.respond("/openapi/v2", "application/xml", []) is None
    answer = openapi.respond("/openapi/v2", "application/json", builtin_types())
    assert answer is not None
    document = msgspec.json.decode(answer[0])
    names = {f"#/definitions/{name}" for name in document["definitions"]}
    assert set(_references(document)) <= names
    assert document["paths"]["/api/v1/nodes/{name}"]["get"]["responses"]["200"]["schema"] == {
        "$ref": "#/definitions/io.k8s.api.core.v1.Node"
    }


def test_merge_schemas_know_list_keys() -> None:
    containers = kind("v1", "Pod").merge_schema.child("spec").child("containers")
    assert (containers.list_type, containers.list_keys, containers.patch_key) == ("map", ("name",), "name")


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("A\n", "package"),
        ("package a b\n$$\n", "cannot understand"),
        ("", "empty"),
    ],
)
def test_a_broken_schema_file_is_refused(text: str, words: str) -> None:
    with pytest.raises(notation.SchemaNotation, match=words):
        notation.parse_file(text, "broken.txt")


def test_every_built_in_kind_has_a_list_and_a_description() -> None:
    definitions = notation.definitions()
    for resource in notation.builtin_resources():
        assert f"{resource.schema}List" in definitions
        assert definitions[resource.schema].get("description"), resource.schema


def test_fields_that_are_called_like_keywords_survive() -> None:
    definition = [kind("apiextensions.k8s.io/v1", "CustomResourceDefinition")]
    name = "io.k8s.apiextensions-apiserver.pkg.apis.apiextensions.v1.JSONSchemaProps"
    third = msgspec.json.decode(openapi.document_v3(definition))["components"]["schemas"][name]["properties"]
    second = openapi.document_v2(definition)["definitions"][name]["properties"]
    assert set(third) == set(second) >= {"oneOf", "not", "nullable", "format", "default", "$ref"}


def test_quantities_are_explained_by_name() -> None:
    schemas = msgspec.json.decode(openapi.document_v3([kind("v1", "Pod")]))["components"]["schemas"]
    limits = schemas["io.k8s.api.core.v1.ResourceRequirements"]["properties"]["limits"]
    reference = "#/components/schemas/io.k8s.apimachinery.pkg.api.resource.Quantity"
    assert limits["additionalProperties"] == {"$ref": reference}
