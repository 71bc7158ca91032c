"""JSON merge patch, JSON patch and strategic merge patch by their rules."""

from __future__ import annotations

import copy
from typing import Any

import pytest

from capstan import fields
from capstan.fields import Schema, json_patch, merge_patch, strategic_merge_patch


@pytest.mark.parametrize(
    ("document", "patch", "result"),
    [
        # The appendix of RFC 7386.
        ({"a": "b"}, {"a": "c"}, {"a": "c"}),
        ({"a": "b"}, {"b": "c"}, {"a": "b", "b": "c"}),
        ({"a": "b"}, {"a": None}, {}),
        ({"a": "b", "b": "c"}, {"a": None}, {"b": "c"}),
        ({"a": ["b"]}, {"a": "c"}, {"a": "c"}),
        ({"a": "c"}, {"a": ["b"]}, {"a": ["b"]}),
        ({"a": {"b": "c"}}, {"a": {"b": "d", "c": None}}, {"a": {"b": "d"}}),
        ({"a": [{"b": "c"}]}, {"a": [1]}, {"a": [1]}),
        (["a", "b"], ["c", "d"], ["c", "d"]),
        ({"a": "b"}, ["c"], ["c"]),
        ({"a": "foo"}, None, None),
        ({"e": None}, {"a": 1}, {"e": None, "a": 1}),
        ([1, 2], {"a": "b", "c": None}, {"a": "b"}),
        ({}, {"a": {"bb": {"ccc": None}}}, {"a": {"bb": {}}}),
    ],
)
def test_merge_patch(document: Any, patch: Any, result: Any) -> None:
    before = copy.deepcopy(document)
    assert merge_patch(document, patch) == result
    assert document == before


@pytest.mark.parametrize(
    ("operations", "result"),
    [
        ([{"op": "add", "path": "/b", "value": 2}], {"a": [1, 2, 3], "m": {"x/y": 1, "~": 2}, "b": 2}),
        ([{"op": "add", "path": "/a/1", "value": 9}], {"a": [1, 9, 2, 3], "m": {"x/y": 1, "~": 2}}),
        ([{"op": "add", "path": "/a/-", "value": 9}], {"a": [1, 2, 3, 9], "m": {"x/y": 1, "~": 2}}),
        ([{"op": "add", "path": "/a", "value": 9}], {"a": 9, "m": {"x/y": 1, "~": 2}}),
        ([{"op": "remove", "path": "/a/0"}], {"a": [2, 3], "m": {"x/y": 1, "~": 2}}),
        ([{"op": "remove", "path": "/m/x~1y"}], {"a": [1, 2, 3], "m": {"~": 2}}),
        ([{"op": "replace", "path": "/m/~0", "value": None}], {"a": [1, 2, 3], "m": {"x/y": 1, "~": None}}),
        ([{"op": "move", "from": "/a/2", "path": "/a/0"}], {"a": [3, 1, 2], "m": {"x/y": 1, "~": 2}}),
        ([{"op": "copy", "from": "/m", "path": "/a"}], {"a": {"x/y": 1, "~": 2}, "m": {"x/y": 1, "~": 2}}),
        ([{"op": "replace", "path": "", "value": 1}], 1),
        ([{"op": "test", "path": "/a", "value": [1, 2, 3.0]}, {"op": "remove", "path": "/m"}], {"a": [1, 2, 3]}),
    ],
)
def test_json_patch(operations: list[dict[str, Any]], result: Any) -> None:
    document = {"a": [1, 2, 3], "m": {"x/y": 1, "~": 2}}
    assert json_patch(document, operations) == result
    assert document == {"a": [1, 2, 3], "m": {"x/y": 1, "~": 2}}


@pytest.mark.parametrize(
    ("operation", "message"),
    [
        ({"op": "remove", "path": "/x/y"}, "operation 0 (remove '/x/y'): /x does not exist"),
        ({"op": "replace", "path": "/a/7", "value": 1}, "index 7 is outside of the list of 3"),
        ({"op": "add", "path": "/a/01", "value": 1}, "'01' is not a list index"),
        ({"op": "add", "path": "/a/0/b", "value": 1}, "/a/0 is neither an object nor a list"),
        ({"op": "test", "path": "/a/0", "value": True}, "the value is 1, not True"),
        ({"op": "move", "from": "/m", "path": "/m/in"}, "cannot move a value into itself"),
    ],
)
def test_json_patch_that_does_not_fit_names_the_place(operation: dict[str, Any], message: str) -> None:
    with pytest.raises(fields.PatchFailed) as caught:
        json_patch({"a": [1, 2, 3], "m": {}}, [operation])
    assert message in str(caught.value)


@pytest.mark.parametrize(
    "operations",
    [
        {},
        ["x"],
        [{"op": "add", "path": "/a"}],
        [{"op": "shout", "path": "/a"}],
        [{"op": "add", "path": "a", "value": 1}],
    ],
)
def test_malformed_json_patch(operations: Any) -> None:
    with pytest.raises(fields.InvalidPatch):
        json_patch({}, operations)


POD = Schema.from_openapi(
    {
        "type": "object",
        "properties": {
            "containers": {
                "type": "array",
                "x-kubernetes-patch-merge-key": "name",
                "x-kubernetes-patch-strategy": "merge",
                "items": {
                    "type": "object",
                    "properties": {
                        "ports": {
                            "type": "array",
                            "items": {"type": "object"},
                            "x-kubernetes-patch-merge-key": "containerPort",
                            "x-kubernetes-patch-strategy": "merge",
                        }
                    },
                },
            },
            "finalizers": {"type": "array", "items": {"type": "string"}, "x-kubernetes-patch-strategy": "merge"},
            "tolerations": {"type": "array", "items": {"type": "object"}},
            "strategy": {"type": "object", "x-kubernetes-patch-strategy": "retainKeys"},
            "selector": {"type": "object", "x-kubernetes-patch-strategy": "replace"},
        },
    }
)
LIVE = {
    "containers": [{"name": "a", "image": "a:1"}, {"name": "b", "image": "b:1", "ports": [{"containerPort": 80}]}],
    "finalizers": ["x", "y", "z"],
    "tolerations": [{"key": "t"}],
    "strategy": {"type": "Rolling", "rolling": {"max": 1}},
    "selector": {"app": "a"},
    "labels": {"l": "1"},
}


@pytest.mark.parametrize(
    ("patch", "changed"),
    [
        pytest.param(
            {"containers": [{"name": "b", "image": "b:2"}]},
            {"containers": [LIVE["containers"][0], {**LIVE["containers"][1], "image": "b:2"}]},
            id="items merge by key",
        ),
        pytest.param(
            {"containers": [{"name": "new", "image": "n", "x": None}]},
            {"containers": [{"name": "new", "image": "n"}, *LIVE["containers"]]},
            id="a new item comes first, without nulls",
        ),
        pytest.param(
            {"containers": [{"name": "b", "ports": [{"containerPort": 81}]}]},
            {
                "containers": [
                    LIVE["containers"][0],
                    {"name": "b", "image": "b:1", "ports": [{"containerPort": 81}, {"containerPort": 80}]},
                ]
            },
            id="lists inside of items merge too",
        ),
        pytest.param(
            {"containers": [{"name": "a", "$patch": "delete"}]},
            {"containers": [LIVE["containers"][1]]},
            id="an item is deleted by directive",
        ),
        pytest.param(
            {"containers": [{"$patch": "replace"}, {"name": "c"}]}, {"containers": [{"name": "c"}]}, id="list replaced"
        ),
        pytest.param(
            {"$setElementOrder/containers": [{"name": "b"}, {"name": "a"}]},
            {"containers": LIVE["containers"][::-1]},
            id="only reordered",
        ),
        pytest.param(
            {"$setElementOrder/containers": [{"name": "a"}, {"name": "c"}], "containers": [{"name": "c"}]},
            {"containers": [LIVE["containers"][0], {"name": "c"}, LIVE["containers"][1]]},
            id="ordered with a new item",
        ),
        pytest.param({"finalizers": ["w"]}, {"finalizers": ["w", "x", "y", "z"]}, id="sets of scalars unite"),
        pytest.param(
            {"$deleteFromPrimitiveList/finalizers": ["x", "z"]}, {"finalizers": ["y"]}, id="scalars are deleted"
        ),
        pytest.param({"tolerations": [{"key": "u"}]}, {"tolerations": [{"key": "u"}]}, id="other lists are replaced"),
        pytest.param(
            {"strategy": {"$retainKeys": ["type"], "type": "Recreate"}}, {"strategy": {"type": "Recreate"}}, id="retain"
        ),
        pytest.param({"selector": {"b": "c"}}, {"selector": {"b": "c"}}, id="a map with strategy replace"),
        pytest.param({"labels": {"$patch": "replace", "m": "2"}}, {"labels": {"m": "2"}}, id="a map replaced"),
        pytest.param({"labels": {"$patch": "delete"}}, {"labels": {}}, id="a map emptied"),
        pytest.param({"labels": {"m": "2"}}, {"labels": {"l": "1", "m": "2"}}, id="maps merge"),
    ],
)
def test_strategic_merge_patch(patch: dict[str, Any], changed: dict[str, Any]) -> None:
    before = copy.deepcopy(LIVE)
    assert strategic_merge_patch(LIVE, patch, POD) == {**LIVE, **changed}
    assert before == LIVE


def test_strategic_null_deletes() -> None:
    assert strategic_merge_patch({"a": 1, "b": 2}, {"a": None, "c": None}, POD) == {"b": 2}


@pytest.mark.parametrize(
    ("patch", "message"),
    [
        ({"containers": [{"image": "x"}]}, ".containers: a list item does not contain the merge key 'name'"),
        ({"containers": ["x"]}, ".containers: the list is merged by 'name', so every item must be an object"),
        ({"labels": {"$patch": "explode"}}, ".labels: unknown directive $patch: 'explode'"),
        (
            {"strategy": {"$retainKeys": ["type"], "rolling": {}}},
            ".strategy.rolling is patched but is not in $retainKeys",
        ),
        (
            {"$setElementOrder/containers": [], "containers": [{"name": "a"}]},
            "is patched but is not in $setElementOrder",
        ),
        ({"$deleteFromPrimitiveList/finalizers": "x"}, ".$deleteFromPrimitiveList/finalizers must be a list"),
    ],
)
def test_malformed_strategic_patches_name_the_field(patch: dict[str, Any], message: str) -> None:
    with pytest.raises(fields.InvalidPatch) as caught:
        strategic_merge_patch(LIVE, patch, POD)
    assert message in str(caught.value)
