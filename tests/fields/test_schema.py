"""What a type says about merging, read from its OpenAPI schema."""

from __future__ import annotations

import pytest

from capstan.fields import InvalidApply, Schema, compare, field_set


def test_references_resolve_by_name_or_pointer_and_what_stands_beside_them_wins() -> None:
    definitions = {"Labels": {"type": "object", "additionalProperties": {"type": "string"}}}
    for reference in ("Labels", "#/components/schemas/Labels"):
        schema = Schema.from_openapi(
            {
                "properties": {
                    "a": {"allOf": [{"$ref": reference}], "x-kubernetes-map-type": "atomic"},
                    "b": {"$ref": reference},
                }
            },
            definitions,
        )
        assert schema.child("a").atomic
        assert not schema.child("b").atomic


def test_a_type_may_contain_itself() -> None:
    schema = Schema.from_openapi({"$ref": "Node"}, {"Node": {"properties": {"next": {"$ref": "Node"}, "v": {}}}})
    assert schema.child("next").child("next").child("next").declares("v")


def test_what_is_not_declared_is_deduced() -> None:
    schema = Schema.from_openapi({"properties": {"known": {"type": "object"}}})
    value = {"known": {"x": [1]}, "unknown": {"deep": {"y": 1}, "list": [{"name": "a"}]}}
    assert sorted(field_set(value, schema)) == [
        ("f:known", "f:x"),
        ("f:unknown",),
        ("f:unknown", "f:deep"),
        ("f:unknown", "f:deep", "f:y"),
        ("f:unknown", "f:list"),
    ]
    assert not Schema.untyped().declares("anything")


def test_older_types_tell_lists_by_their_patch_strategy() -> None:
    items = {"type": "object", "properties": {"name": {}}}
    merging = {"type": "array", "items": items, "x-kubernetes-patch-strategy": "merge"}
    schema = Schema.from_openapi(
        {
            "properties": {
                "keyed": {**merging, "x-kubernetes-patch-merge-key": "name"},
                "set": merging,
                "plain": {"items": items},
            }
        }
    )
    keyed, as_set, plain = (schema.child(name) for name in ("keyed", "set", "plain"))
    assert (keyed.list_type, keyed.list_keys) == ("map", ("name",))
    assert as_set.list_type == "set"
    assert plain.list_type == "atomic"


@pytest.mark.parametrize(
    ("item", "step"),
    [
        ({"port": 80}, 'k:{"port":80,"protocol":"TCP"}'),
        ({"port": 80, "protocol": "UDP", "x": 1}, 'k:{"port":80,"protocol":"UDP"}'),
        ({"port": None}, 'k:{"protocol":"TCP"}'),
    ],
)
def test_items_are_named_by_their_keys_with_defaults(item: dict[str, object], step: str) -> None:
    schema = Schema.from_openapi(
        {
            "type": "array",
            "x-kubernetes-list-type": "map",
            "x-kubernetes-list-map-keys": ["protocol", "port"],
            "items": {"properties": {"port": {}, "protocol": {"default": "TCP"}}},
        }
    )
    assert schema.step(item) == step


@pytest.mark.parametrize("name", ["plain", "with-dash", 'quote"', "back\\slash", "ünïcode", "a/b", ""])
def test_the_short_way_to_a_step_spells_like_the_long_one(name: str) -> None:
    from capstan.fields.paths import key_step

    document = {"x-kubernetes-list-type": "map", "x-kubernetes-list-map-keys": ["name"], "items": {}}
    assert Schema.from_openapi(document).step({"name": name}) == key_step({"name": name})


def test_an_item_without_any_key_cannot_be_told_apart() -> None:
    document = {"x-kubernetes-list-type": "map", "x-kubernetes-list-map-keys": ["name"], "items": {}}
    with pytest.raises(InvalidApply, match="leaves out name"):
        Schema.from_openapi(document).step({"image": "x"})


def test_a_struct_that_is_always_there_is_no_added_field() -> None:
    struct = {"type": "object", "properties": {"x": {}}}
    schema = Schema.from_openapi({"properties": {"by_value": {**struct, "default": {}}, "pointer": struct}})
    added = compare({}, {"by_value": {"x": 1}, "pointer": {"x": 1}}, schema).added
    assert sorted(added) == [("f:by_value", "f:x"), ("f:pointer",), ("f:pointer", "f:x")]
