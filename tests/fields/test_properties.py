"""What must hold for every object: apply is idempotent and reversible, ownership matches the object, patches invert
diffs.
"""

from __future__ import annotations

import copy
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st

from capstan import fields
from capstan.fields import Schema

STRING = {"type": "string"}
THING = {
    "type": "object",
    "properties": {
        "a": STRING,
        "b": {"type": "object", "properties": {"c": STRING, "d": STRING}},
        "map": {"type": "object", "additionalProperties": STRING},
        "atom": {"type": "object", "additionalProperties": STRING, "x-kubernetes-map-type": "atomic"},
        "args": {"type": "array", "items": STRING},
        "set": {"type": "array", "items": STRING, "x-kubernetes-list-type": "set"},
        "items": {
            "type": "array",
            "items": {"$ref": "Item"},
            "x-kubernetes-list-type": "map",
            "x-kubernetes-list-map-keys": ["name"],
            "x-kubernetes-patch-merge-key": "name",
            "x-kubernetes-patch-strategy": "merge",
        },
    },
}
DEFINITIONS = {"Item": {"type": "object", "properties": {"name": STRING, "v": STRING, "below": THING}}}
SCHEMA = Schema.from_openapi(
    {"type": "object", "properties": {"metadata": {"type": "object"}, "spec": THING}}, DEFINITIONS
)

TEXT = st.sampled_from(["1", "2", "3"])
NAMES = st.sampled_from(["x", "y", "z"])
MAPS = st.dictionaries(NAMES, TEXT, min_size=1, max_size=3)


def things(depth: int) -> st.SearchStrategy[dict[str, Any]]:
    item = {"v": TEXT} if depth == 0 else {"v": TEXT, "below": things(depth - 1)}
    items = st.dictionaries(NAMES, st.fixed_dictionaries({}, optional=item), min_size=1, max_size=3).map(
        lambda by_name: [{"name": name, **content} for name, content in by_name.items()]
    )
    return st.fixed_dictionaries(
        {},
        optional={
            "a": TEXT,
            "b": st.fixed_dictionaries({}, optional={"c": TEXT, "d": TEXT}).filter(bool),
            "map": MAPS,
            "atom": MAPS,
            "args": st.lists(TEXT, min_size=1, max_size=2),
            "set": st.lists(TEXT, min_size=1, max_size=3, unique=True),
            "items": items,
        },
    ).filter(bool)


OBJECTS = things(1).map(lambda thing: {"metadata": {"name": "n"}, "spec": thing})


def apply(live: dict[str, Any] | None, body: dict[str, Any], manager: str) -> dict[str, Any]:
    return fields.apply(live, body, manager, schema=SCHEMA, force=True, now="t", api_version="v1")


def update(old: dict[str, Any] | None, new: dict[str, Any], manager: str) -> dict[str, Any]:
    return fields.track_update(old, new, manager, schema=SCHEMA, now="t", api_version="v1")


def content(obj: dict[str, Any]) -> dict[str, Any]:
    return {**obj, "metadata": {"name": "n"}}


def sorted_lists(value: Any) -> Any:
    """Order inside of granular lists is not what these rules are about."""
    if isinstance(value, dict):
        return {key: sorted_lists(child) for key, child in value.items()}
    return sorted(map(sorted_lists, value), key=repr) if isinstance(value, list) else value


@given(OBJECTS, OBJECTS)
@settings(deadline=None)
def test_apply_is_idempotent(live: dict[str, Any], body: dict[str, Any]) -> None:
    once = apply(update(None, live, "u"), body, "m")
    assert apply(once, body, "m") is once


@given(OBJECTS, OBJECTS)
@settings(deadline=None)
def test_what_was_applied_is_there(live: dict[str, Any], body: dict[str, Any]) -> None:
    merged = apply(update(None, live, "u"), body, "m")
    claimed = fields.field_set(body, SCHEMA)
    for path in claimed.leaves():
        assert fields.lookup(merged, path, SCHEMA) == fields.lookup(body, path, SCHEMA)
    assert fields.owned(merged, "m") == claimed - fields.FieldSet.of([("f:metadata", "f:name")])


@given(OBJECTS, OBJECTS)
@settings(deadline=None)
def test_applying_and_then_applying_nothing_restores_what_others_wrote(
    live: dict[str, Any], body: dict[str, Any]
) -> None:
    """With disjoint owners: where both set a leaf, force moves it and it goes with its last owner."""
    start = update(None, live, "u")
    contested = fields.field_set(live, SCHEMA) & fields.field_set(body, SCHEMA)
    taken = {path for path in contested if fields.lookup(live, path, SCHEMA) != fields.lookup(body, path, SCHEMA)}
    back = apply(apply(start, body, "m"), {"metadata": {"name": "n"}}, "m")
    remaining = set(fields.field_set(content(back), SCHEMA).leaves())
    assert remaining >= set(fields.field_set(live, SCHEMA).leaves()) - taken
    assert remaining <= set(fields.field_set(live, SCHEMA))
    if not taken:
        assert sorted_lists(content(back)) == sorted_lists(live)


@given(OBJECTS, OBJECTS, OBJECTS)
@settings(deadline=None)
def test_owned_fields_exist(first: dict[str, Any], second: dict[str, Any], third: dict[str, Any]) -> None:
    obj = update(apply(update(None, first, "u"), second, "m"), third, "v")
    for entry in fields.managers(obj).values():
        for path in entry.fields:
            assert fields.lookup(obj, path, SCHEMA) is not fields.ABSENT


@given(OBJECTS, OBJECTS)
@settings(deadline=None)
def test_an_update_owns_exactly_what_it_changed(old: dict[str, Any], new: dict[str, Any]) -> None:
    obj = update(update(None, old, "u"), new, "v")
    comparison = fields.compare(old, new, SCHEMA)
    assert fields.owned(obj, "v") == comparison.changed
    assert not fields.owned(obj, "u") & comparison.changed


@given(OBJECTS, OBJECTS)
@settings(deadline=None)
def test_comparison_is_antisymmetric_and_empty_for_equals(old: dict[str, Any], new: dict[str, Any]) -> None:
    there, back = fields.compare(old, new, SCHEMA), fields.compare(new, old, SCHEMA)
    assert (there.added, there.modified, there.removed) == (back.removed, back.modified, back.added)
    assert not fields.compare(old, copy.deepcopy(old), SCHEMA)


@given(OBJECTS, OBJECTS)
@settings(deadline=None)
def test_patches_between_two_objects_lead_from_one_to_the_other(old: dict[str, Any], new: dict[str, Any]) -> None:
    assert fields.merge_patch(old, fields.create_merge_patch(old, new)) == new
    assert fields.merge_patch(old, fields.three_way_merge_patch(old, new, old)) == new
    assert bool(fields.create_merge_patch(old, new)) == (old != new)


@given(OBJECTS, OBJECTS)
@settings(deadline=None)
def test_differences_are_exactly_where_objects_differ(old: dict[str, Any], new: dict[str, Any]) -> None:
    differences = fields.diff(old, new, SCHEMA)
    for difference in differences:
        assert fields.lookup(old, difference.path, SCHEMA) == difference.old
        assert fields.lookup(new, difference.path, SCHEMA) == difference.new
        assert difference.old != difference.new
    assert bool(differences) == (sorted_granular(old) != sorted_granular(new))


@given(st.lists(st.tuples(st.sampled_from(["aaa", "b", "zzz", *map(str, range(12))]), st.integers(0, 2)), max_size=40))
@settings(deadline=None)
def test_many_updaters_are_folded_without_losing_a_field(writes: list[tuple[str, int]]) -> None:
    """Also when clocks are coarse: many writes within one second."""
    obj = update(None, {"metadata": {"name": "n"}, "spec": {"a": "1"}}, "creator")
    for number, (manager, time) in enumerate(writes):
        new = copy.deepcopy(obj)
        new["spec"].setdefault("map", {})[f"k{number}"] = "v"
        obj = fields.track_update(obj, new, manager, schema=SCHEMA, now=f"2026-01-0{time + 1}", api_version="v1")
        entries = fields.managers(obj)
        assert len(entries) <= 10
        union = fields.FieldSet()
        for entry in entries.values():
            union |= entry.fields
        assert {path for path in union if path[:2] == ("f:spec", "f:map") and len(path) == 3} == {
            ("f:spec", "f:map", f"f:k{each}") for each in range(number + 1)
        }


def test_order_inside_of_keyed_lists_is_no_difference_of_any_field() -> None:
    old = {"spec": {"items": [{"name": "x"}, {"name": "y"}]}}
    new = {"spec": {"items": [{"name": "y"}, {"name": "x"}]}}
    assert not fields.compare(old, new, SCHEMA)


def test_empty_and_null_differ() -> None:
    assert list(fields.compare({"spec": {"map": {}}}, {"spec": {"map": None}}, SCHEMA).modified) == [
        ("f:spec", "f:map")
    ]


def sorted_granular(obj: dict[str, Any]) -> dict[str, Any]:
    def canonical(value: Any, schema: Schema) -> Any:
        if isinstance(value, dict):
            return {key: canonical(child, schema.child(key)) for key, child in value.items()}
        if isinstance(value, list) and schema.granular_list:
            return sorted((canonical(item, schema.item) for item in value), key=repr)
        return value

    result: dict[str, Any] = canonical(obj, SCHEMA)
    return result


@given(OBJECTS, OBJECTS, OBJECTS)
@settings(deadline=None)
def test_a_three_way_patch_leaves_foreign_fields(
    last: dict[str, Any], new: dict[str, Any], live: dict[str, Any]
) -> None:
    result = fields.merge_patch(live, fields.three_way_merge_patch(last, new, live))
    for name in live["spec"].keys() - last["spec"].keys() - new["spec"].keys():
        assert result["spec"][name] == live["spec"][name]
    for name in last["spec"].keys() - new["spec"].keys():
        assert name not in result["spec"]
    assert not fields.three_way_merge_patch(new, new, result)


FIELD = st.sampled_from(
    ["a", "b", "map", "atom", "args", "set", "items", "name", "v", "below", "$patch", "$retainKeys"]
)
JSON = st.recursive(
    st.one_of(st.none(), st.booleans(), st.integers(0, 2), TEXT, st.sampled_from(["delete", "replace"])),
    lambda below: st.one_of(st.lists(below, max_size=3), st.dictionaries(FIELD, below, max_size=3)),
    max_leaves=10,
)
ANY_OBJECT = JSON.map(lambda spec: {"metadata": {"name": "n"}, "spec": spec})


@given(ANY_OBJECT, ANY_OBJECT, ANY_OBJECT)
@settings(deadline=None, max_examples=300)
def test_objects_of_any_shape_are_tracked_and_refused_only_with_errors_of_this_room(
    first: dict[str, Any], second: dict[str, Any], third: dict[str, Any]
) -> None:
    before = copy.deepcopy((first, second, third))
    obj = update(update(None, first, "u"), second, "v")
    assert content(obj) == second
    fields.diff(first, first, SCHEMA)
    for act in (
        lambda: apply(obj, third, "m"),
        lambda: fields.strategic_merge_patch(obj, third, SCHEMA),
        lambda: fields.diff(first, second, SCHEMA),
    ):
        try:
            act()
        except fields.FieldsError as error:
            assert str(error)
    fields.merge_patch(obj, third)
    assert (first, second, third) == before
