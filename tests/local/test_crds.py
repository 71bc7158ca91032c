"""Custom resources: structural schemas, pruning, defaulting, validation, CEL rules, and refused definitions."""

from __future__ import annotations

import copy
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from capstan.api import crds
from capstan.local.crds import CustomType
from capstan.local.structural import Structural
from capstan.local.types import Undecodable, from_crd

from .types_samples import complaints, input_manifests, kind

Object = dict[str, Any]


def definition(schema: Object, **version: Any) -> Object:
    return {
        "apiVersion": "apiextensions.k8s.io/v1",
        "kind": "CustomResourceDefinition",
        "metadata": {"name": "widgets.example.com"},
        "spec": {
            "group": "example.com",
            "scope": "Namespaced",
            "names": {"plural": "widgets", "kind": "Widget"},
            "versions": [
                {"name": "v1", "served": True, "storage": True, "schema": {"openAPIV3Schema": schema}, **version}
            ],
        },
    }


def served(spec: Object, **version: Any) -> CustomType:
    crd = kind("apiextensions.k8s.io/v1", "CustomResourceDefinition").prepare_create(
        definition({"type": "object", "properties": {"spec": spec, "status": {"type": "object"}}}, **version)
    )
    assert complaints(crd) == {}
    item = from_crd(crd)[0]
    assert isinstance(item, CustomType)
    return item


def widget(spec: Any, **more: Any) -> Object:
    meta = {"name": "w", "namespace": "default"}
    return {"apiVersion": "example.com/v1", "kind": "Widget", "metadata": meta, "spec": spec, **more}


def causes(item: CustomType, obj: Object, old: Object | None = None) -> list[str]:
    return [f"{cause.field}: {cause.message}" for cause in item.validate(obj, old)]


def test_unknown_fields_are_named_and_pruned() -> None:
    item = served({"type": "object", "properties": {"a": {"type": "string"}, "m": _MAP, "l": _LIST}})
    obj = widget({"a": "x", "b": 1, "m": {"k": {"n": 1, "o": 2}}, "l": [{"n": 1}, {"p": 1}]}, extra=1)
    obj["metadata"]["color"] = "red"
    assert item.unknown_fields(obj) == ["metadata.color", "spec.b", "spec.m.k.o", "spec.l[1].p", "extra"]
    made = item.prepare_create(obj)
    assert made["spec"] == {"a": "x", "m": {"k": {"n": 1}}, "l": [{"n": 1}, {}]}
    assert "extra" not in made
    assert "color" not in made["metadata"]


_ITEM = {"type": "object", "properties": {"n": {"type": "integer"}}}
_MAP = {"type": "object", "additionalProperties": _ITEM}
_LIST = {"type": "array", "items": _ITEM}


def test_preserved_and_embedded_objects_keep_what_the_schema_does_not_know() -> None:
    item = served(
        {
            "type": "object",
            "properties": {
                "free": {
                    "type": "object",
                    "x-kubernetes-preserve-unknown-fields": True,
                    "properties": {"known": {"type": "object", "properties": {"a": {"type": "string"}}}},
                },
                "template": {
                    "type": "object",
                    "x-kubernetes-embedded-resource": True,
                    "properties": {"spec": {"type": "object"}},
                },
            },
        }
    )
    spec = {
        "free": {"any": {"thing": 1}, "known": {"a": "x", "b": "y"}},
        "template": {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "x"}, "spec": {}, "more": 1},
    }
    obj = widget(spec)
    assert item.unknown_fields(obj) == ["spec.free.known.b", "spec.template.more"]
    made = item.prepare_create(obj)
    assert made["spec"]["free"] == {"any": {"thing": 1}, "known": {"a": "x"}}
    assert set(made["spec"]["template"]) == {"apiVersion", "kind", "metadata", "spec"}


def test_defaults_apply_inside_objects_that_exist_and_replace_nulls_that_may_not_be() -> None:
    item = served(
        {
            "type": "object",
            "properties": {
                "size": {"type": "integer", "default": 3},
                "maybe": {"type": "string", "nullable": True, "default": "x"},
                "nested": {"type": "object", "properties": {"deep": {"type": "string", "default": "d"}}},
                "made": {
                    "type": "object",
                    "default": {},
                    "properties": {"inner": {"type": "array", "items": {"type": "string"}, "default": ["a"]}},
                },
            },
        }
    )
    assert item.prepare_create(widget({}))["spec"] == {"size": 3, "maybe": "x", "made": {"inner": ["a"]}}
    made = item.prepare_create(widget({"size": None, "maybe": None, "nested": {}}))
    assert made["spec"] == {"size": 3, "maybe": None, "nested": {"deep": "d"}, "made": {"inner": ["a"]}}
    assert causes(item, made) == []


def test_what_is_wrong_is_said_as_the_api_server_says_it() -> None:
    item = served(
        {
            "type": "object",
            "required": ["name"],
            "properties": {
                "name": {"type": "string", "maxLength": 3},
                "color": {"type": "string", "enum": ["red", "blue"]},
                "size": {"type": "integer", "minimum": 1},
                "tags": {"type": "array", "items": {"type": "string"}, "x-kubernetes-list-type": "set"},
                "ports": {
                    "type": "array",
                    "x-kubernetes-list-type": "map",
                    "x-kubernetes-list-map-keys": ["port"],
                    "items": {"type": "object", "required": ["port"], "properties": {"port": {"type": "integer"}}},
                },
                "amount": {"x-kubernetes-int-or-string": True, "pattern": "^[0-9]+%?$"},
            },
        }
    )
    spec = {
        "color": "green",
        "size": 0,
        "tags": ["a", "a"],
        "ports": [{"port": 1}, {"port": 1}],
        "amount": "many",
    }
    assert causes(item, widget(spec)) == [
        "spec.name: Required value",
        'spec.color: Unsupported value: "green": supported values: "red", "blue"',
        "spec.size: Invalid value: 0: spec.size in body should be greater than or equal to 1",
        "spec.amount: Invalid value: \"many\": spec.amount in body should match '^[0-9]+%?$'",
        'spec.tags[1]: Duplicate value: "a"',
        'spec.ports[1]: Duplicate value: {"port": 1}',
    ]
    assert causes(item, widget({"name": "a", "size": "big"})) == [
        'spec.size: Invalid value: "string": spec.size in body must be of type integer: "string"'
    ]
    assert causes(item, widget({"name": "long", "amount": 5})) == ["spec.name: Too long: may not be more than 3 bytes"]


def test_wrong_metadata_cannot_be_decoded() -> None:
    obj = widget({})
    obj["metadata"]["labels"] = "none"
    with pytest.raises(Undecodable, match=r"metadata\.labels"):
        served({"type": "object"}).prepare_create(obj)


def test_rules_in_cel() -> None:
    rules = [
        {"rule": "self.min <= self.max", "message": "min must not exceed max", "fieldPath": ".min"},
        {"rule": "self.max >= oldSelf.max", "messageExpression": "'max was ' + string(oldSelf.max)"},
    ]
    numbers = {"min": {"type": "integer"}, "max": {"type": "integer"}}
    item = served({"type": "object", "properties": numbers, "x-kubernetes-validations": rules})
    assert causes(item, widget({"min": 1, "max": 2})) == []
    assert causes(item, widget({"min": 3, "max": 2})) == ['spec.min: Invalid value: "object": min must not exceed max']
    assert causes(item, widget({"min": 1, "max": 1}), widget({"min": 1, "max": 5})) == [
        'spec: Invalid value: "object": max was 5'
    ]


def test_transition_rules_follow_the_keys_of_lists() -> None:
    entry = {
        "type": "object",
        "required": ["name"],
        "properties": {"name": {"type": "string"}, "value": {"type": "integer"}},
        "x-kubernetes-validations": [{"rule": "self.value == oldSelf.value", "message": "value is fixed"}],
    }
    keyed = {
        "type": "array",
        "items": entry,
        "maxItems": 10,
        "x-kubernetes-list-type": "map",
        "x-kubernetes-list-map-keys": ["name"],
    }
    item = served({"type": "object", "properties": {"list": keyed}})
    old = widget({"list": [{"name": "a", "value": 1}, {"name": "b", "value": 2}]})
    assert causes(item, widget({"list": [{"name": "b", "value": 2}, {"name": "c", "value": 9}]}), old) == []
    assert causes(item, widget({"list": [{"name": "c", "value": 9}, {"name": "b", "value": 3}]}), old) == [
        'spec.list[1]: Invalid value: "object": value is fixed'
    ]


def test_status_and_scale_subresources() -> None:
    item = served(
        {"type": "object", "properties": {"replicas": {"type": "integer"}}},
        subresources={
            "status": {},
            "scale": {"specReplicasPath": ".spec.replicas", "statusReplicasPath": ".status.replicas"},
        },
    )
    assert item.subresources == ("status", "scale")
    assert item.scale == (("spec", "replicas"), ("status", "replicas"), ())
    made = item.prepare_create(widget({"replicas": 1}, status={"replicas": 9}))
    assert "status" not in made
    changed = item.prepare_status_update(widget({"replicas": 5}, status={}), made)
    assert (changed["spec"], changed["status"]) == ({"replicas": 1}, {})
    assert item.prepare_update(widget({"replicas": 2}), made)["metadata"]["generation"] == 2


def test_versions_share_their_objects() -> None:
    crd = definition({"type": "object"})
    second = {**crd["spec"]["versions"][0], "name": "v2", "storage": False}
    crd["spec"]["versions"].append(second)
    old, new = from_crd(kind("apiextensions.k8s.io/v1", "CustomResourceDefinition").prepare_create(crd))
    assert old.storage == new.storage
    assert new.to_storage({"apiVersion": "example.com/v2"})["apiVersion"] == "example.com/v1"
    assert new.from_storage({"apiVersion": "example.com/v1"})["apiVersion"] == "example.com/v2"


def test_selectable_fields_of_custom_resources() -> None:
    color = {"type": "object", "properties": {"color": {"type": "string"}}}
    item = served(color, selectableFields=[{"jsonPath": ".spec.color"}])
    assert item.selectable_fields(widget({"color": "red"}))["spec.color"] == "red"


@pytest.mark.parametrize(
    ("schema", "field", "words"),
    [
        ({"type": "array", "items": {"type": "string"}}, "type", "must be object at the root"),
        ({"properties": {"a": {}}, "type": "object"}, "properties[a].type", "must not be empty"),
        ({"properties": {"a": {"type": "text"}}, "type": "object"}, "properties[a].type", "Unsupported value"),
        ({"properties": {"a": {"type": "array"}}, "type": "object"}, "properties[a].items", "must be specified"),
        (
            {"type": "object", "properties": {"a": {"$ref": "#/x", "type": "string"}}},
            "properties[a].$ref",
            "not allowed",
        ),
        (
            {"type": "object", "properties": {"a": {"type": "string", "pattern": "("}}},
            "properties[a].pattern",
            "regular",
        ),
        (
            {"type": "object", "properties": {"a": {"type": "string"}}, "additionalProperties": {"type": "string"}},
            "additionalProperties",
            "mutual exclusive",
        ),
        (
            {"type": "object", "properties": {"a": {"type": "integer", "default": "x"}}},
            "properties[a].default",
            "must be of type integer",
        ),
        (
            {"type": "object", "anyOf": [{"properties": {"a": {"type": "string"}}}]},
            "anyOf[0].properties[a].type",
            "must be undefined to be structural",
        ),
        (
            {
                "type": "object",
                "properties": {"a": {"type": "string", "x-kubernetes-validations": [{"rule": "self + 1"}]}},
            },
            "properties[a].x-kubernetes-validations[0].rule",
            "compilation failed",
        ),
        (
            {
                "type": "object",
                "properties": {
                    "a": {
                        "type": "array",
                        "items": {"type": "object", "properties": {"k": {"type": "string"}}},
                        "x-kubernetes-list-type": "map",
                        "x-kubernetes-list-map-keys": ["k"],
                    }
                },
            },
            "properties[a].items.properties[k].default",
            "must have a default or be a required property",
        ),
    ],
)
def test_a_schema_that_is_not_structural_is_refused(schema: Object, field: str, words: str) -> None:
    crd = kind("apiextensions.k8s.io/v1", "CustomResourceDefinition").prepare_create(definition(schema))
    found = complaints(crd)
    path = f"spec.versions[0].schema.openAPIV3Schema.{field}"
    assert words in found[path], found


@pytest.mark.parametrize(
    ("change", "field"),
    [
        (lambda crd: crd["metadata"].update(name="other.example.com"), "metadata.name"),
        (lambda crd: crd["spec"].update(group="example"), "spec.group"),
        (lambda crd: crd["spec"].update(group="x.k8s.io"), "metadata.annotations[api-approved.kubernetes.io]"),
        (lambda crd: crd["spec"]["names"].update(plural="Widgets"), "spec.names.plural"),
        (lambda crd: crd["spec"].update(scope="Everywhere"), "spec.scope"),
        (lambda crd: crd["spec"]["versions"][0].update(storage=False), "spec.versions"),
        (lambda crd: crd["spec"]["versions"][0].pop("schema"), "spec.versions[0].schema.openAPIV3Schema"),
        (
            lambda crd: crd["spec"]["versions"][0].update(
                additionalPrinterColumns=[{"name": "A", "type": "string", "jsonPath": "spec"}]
            ),
            "spec.versions[0].additionalPrinterColumns[0].jsonPath",
        ),
        (
            lambda crd: crd["spec"]["versions"][0].update(selectableFields=[{"jsonPath": ".spec.nothing"}]),
            "spec.versions[0].selectableFields[0].jsonPath",
        ),
    ],
)
def test_a_malformed_definition_names_the_field(change: Any, field: str) -> None:
    crd = definition({"type": "object"})
    change(crd)
    assert field in complaints(kind("apiextensions.k8s.io/v1", "CustomResourceDefinition").prepare_create(crd))


_SCHEMA_KEYS = (
    *("type", "properties", "items", "additionalProperties", "default", "enum", "pattern", "required", "anyOf", "not"),
    *("nullable", "a", "b", "rule", "maximum", "maxLength", "x-kubernetes-validations", "x-kubernetes-list-type"),
    *("x-kubernetes-list-map-keys", "x-kubernetes-int-or-string", "x-kubernetes-preserve-unknown-fields"),
)
_SCHEMA_JSON = st.recursive(
    st.sampled_from([None, True, False, 0, 1, -1, "object", "string", "array", "[", "self.x == 1", "x"]),
    lambda inner: st.lists(inner, max_size=2) | st.dictionaries(st.sampled_from(_SCHEMA_KEYS), inner, max_size=4),
    max_leaves=16,
)


@settings(deadline=None, max_examples=150)
@given(st.dictionaries(st.sampled_from(["properties", "items", "default", "anyOf", "required"]), _SCHEMA_JSON))
def test_a_malformed_schema_never_makes_the_server_stumble(schema: Object) -> None:
    """It is undecodable, or refused with causes, or it works."""
    item = kind("apiextensions.k8s.io/v1", "CustomResourceDefinition")
    try:
        crd = item.prepare_create(definition({"type": "object", **schema}))
    except Undecodable:
        return
    if item.validate(crd):
        return
    custom = from_crd(crd)[0]
    made = custom.prepare_create(widget({"a": 1}))
    custom.validate(made)


_VALUES = st.recursive(
    st.none() | st.booleans() | st.integers(-3, 12) | st.sampled_from(["", "red", "ab", "10%", "2026-01-01T00:00:00Z"]),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            st.sampled_from(["size", "color", "when", "amount", "list", "free", "map", "z"]), inner, max_size=5
        )
    ),
    max_leaves=15,
)
_RICH: Object = {
    "type": "object",
    "required": ["size"],
    "properties": {
        "size": {"type": "integer", "minimum": 0, "maximum": 10, "default": 2},
        "color": {"type": "string", "enum": ["red", "blue"], "nullable": True},
        "when": {"type": "string", "format": "date-time"},
        "amount": {
            "x-kubernetes-int-or-string": True,
            "anyOf": [{"type": "integer"}, {"type": "string"}],
            "pattern": "%$",
        },
        "list": {"type": "array", "maxItems": 2, "items": {"type": "object", "properties": {"z": {"type": "boolean"}}}},
        "free": {"type": "object", "x-kubernetes-preserve-unknown-fields": True, "maxProperties": 2},
        "map": {"type": "object", "additionalProperties": {"type": "string", "minLength": 1}},
        "z": {"not": {"enum": ["ab"]}, "type": "string"},
    },
}


@settings(deadline=None, max_examples=250)
@given(_VALUES)
def test_the_fast_schema_and_the_slow_walk_agree(value: Any) -> None:
    """`valid` says yes exactly when nothing is unknown and nothing is wrong."""
    structural = Structural(_RICH, {})
    assert structural.valid(value) == (structural.unknown(value) == [] and structural.errors(value) == [])


@settings(deadline=None, max_examples=150)
@given(_VALUES)
def test_pruning_and_defaulting_settle_at_once(value: Any) -> None:
    structural = Structural(_RICH, {})
    structural.prune(value)
    structural.default(value)
    assert structural.unknown(value) == []
    once = copy.deepcopy(value)
    structural.prune(value)
    structural.default(value)
    assert value == once


def _paths(schema: Object, prefix: str = "") -> set[str]:
    found: set[str] = set()
    for name, child in schema.get("properties", {}).items():
        found |= {f"{prefix}.{name}"} | _paths(child, f"{prefix}.{name}")
    for key in ("items", "additionalProperties"):
        if isinstance(schema.get(key), dict):
            found |= _paths(schema[key], f"{prefix}[]")
    return found


def test_the_shipped_kai_definitions_have_every_field_of_upstreams() -> None:
    ours = {crd["metadata"]["name"]: crd for crd in crds.load()}
    upstream = [manifest for _, manifest in input_manifests("kai/crds")]
    assert len(upstream) == 6
    for theirs in upstream:
        mine = ours[theirs["metadata"]["name"]]
        assert mine["spec"]["names"].items() >= theirs["spec"]["names"].items()
        assert mine["spec"]["scope"] == theirs["spec"]["scope"]
        for left, right in zip(theirs["spec"]["versions"], mine["spec"]["versions"], strict=True):
            assert left["name"] == right["name"]
            missing = _paths(left["schema"]["openAPIV3Schema"]) - _paths(right["schema"]["openAPIV3Schema"])
            assert not missing, theirs["metadata"]["name"]


def test_shipped_and_upstream_definitions_are_valid() -> None:
    item = kind("apiextensions.k8s.io/v1", "CustomResourceDefinition")
    for crd in [*crds.load(), *(manifest for _, manifest in input_manifests("kai/crds"))]:
        assert item.unknown_fields(crd) == []
        assert complaints(item.prepare_create(crd)) == {}


def test_a_topology_cannot_change_its_levels() -> None:
    item = kind("kai.scheduler/v1alpha1", "Topology")

    def topology(*labels: str) -> Object:
        levels = [{"nodeLabel": label} for label in labels]
        meta = {"name": "t"}
        return {
            "apiVersion": "kai.scheduler/v1alpha1",
            "kind": "Topology",
            "metadata": meta,
            "spec": {"levels": levels},
        }

    assert item.validate(topology("zone", "kubernetes.io/hostname")) == []
    assert [cause.field for cause in item.validate(topology("kubernetes.io/hostname", "zone"))] == ["spec.levels"]
    assert [cause.field for cause in item.validate(topology("a", "b"), topology("a", "c"))] == ["spec.levels"]


def spec_causes(kind: str, version: str, spec: Object) -> list[str]:
    """What is said against an object of one of KAI's kinds with that spec."""
    (item,) = (from_crd(crd)[0] for crd in crds.load() if crd["spec"]["names"]["kind"] == kind)
    assert isinstance(item, CustomType)
    meta = {"name": "q"} | ({"namespace": "default"} if item.namespaced else {})
    obj = {"apiVersion": f"scheduling.run.ai/{version}", "kind": kind, "metadata": meta, "spec": spec}
    return causes(item, item.prepare_create(obj))


def queue_causes(resources: Object) -> list[str]:
    return spec_causes("Queue", "v2", {"resources": resources})


@pytest.mark.parametrize(
    ("resources", "field", "words"),
    [
        ({"gpu": {"quota": -2}}, "spec.resources.gpu.quota", "write a number of at least 0, or -1"),
        ({"cpu": {"limit": -0.5}}, "spec.resources.cpu.limit", "write a number of at least 0, or -1"),
        ({"memory": {"overQuotaWeight": -1}}, "spec.resources.memory.overQuotaWeight", "greater than or equal to 0"),
        ({"gpu": {"quota": 4, "lendingLimit": -3}}, "spec.resources.gpu.lendingLimit", "write a number of at least 0"),
        ({"gpu": {"quota": -1, "lendingLimit": 3}}, "spec.resources.gpu", "give a quota, or leave it out"),
        ({"gpu": {"lendingLimit": 3}}, "spec.resources.gpu", "give a quota, or leave it out"),
        ({"gpuTypes": {"H100": {"lendingLimit": 3}}}, "spec.resources.gpuTypes", "give a quota, or leave it out"),
        ({"gpuTypes": {"H100": {"limit": -7}}}, "spec.resources.gpuTypes[H100].limit", "write a number of at least 0"),
        ({"gpuTypes": {"H100": {"quota": -1, "lendingLimit": 0}}}, "spec.resources.gpuTypes", "give a quota"),
        ({"gpuTypes": {"NVIDIA H100": {"quota": 1}}}, "spec.resources.gpuTypes", "name products as the node label"),
    ],
)
def test_wrong_bounds_of_queues_are_refused_by_name(resources: Object, field: str, words: str) -> None:
    (only,) = queue_causes(resources)
    assert only.startswith(f"{field}: ")
    assert words in only


def test_right_bounds_of_queues_pass() -> None:
    full = {"quota": 4, "limit": -1, "overQuotaWeight": 0.5, "lendingLimit": -1}
    product = {"NVIDIA-H100-80GB-HBM3": {"quota": 4.5, "lendingLimit": 1}}
    assert queue_causes({"gpu": full, "cpu": {"quota": -1}, "memory": {}, "gpuTypes": product}) == []


@pytest.mark.parametrize(
    ("spec", "field"),
    [
        ({"minMember": 2, "minSubGroup": 1}, "spec"),
        ({"minSubGroup": 1, "subGroups": [{"name": "a", "minMember": 1, "minSubGroup": 1}]}, "spec.subGroups"),
    ],
)
def test_a_pod_group_with_two_kinds_of_minimum_is_refused(spec: Object, field: str) -> None:
    (only,) = spec_causes("PodGroup", "v2alpha2", spec)
    assert only.startswith(f"{field}: ")
    assert "keep one of them" in only


def test_a_pod_group_may_count_pods_or_subgroups() -> None:
    for spec in ({"minMember": 2}, {"minSubGroup": 1, "subGroups": [{"name": "a", "minMember": 1}]}, {}):
        assert spec_causes("PodGroup", "v2alpha2", spec) == []
