"""Field sets are sets: the algebra against frozensets of paths, and the fieldsV1 form."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from capstan.fields import FieldSet, InvalidFieldSet, Path, readable, render

STEPS = st.sampled_from(["f:a", "f:b", "f:c", 'k:{"name":"x"}', 'v:"1"', "i:0"])
PATHS = st.lists(STEPS, min_size=1, max_size=4).map(tuple)
MODELS = st.frozensets(PATHS, max_size=12)


@given(MODELS, MODELS)
@settings(deadline=None)
def test_operators_agree_with_sets_of_paths(left: frozenset[Path], right: frozenset[Path]) -> None:
    a, b = FieldSet.of(left), FieldSet.of(right)
    assert set(a) == left
    assert a | b == FieldSet.of(left | right)
    assert a & b == FieldSet.of(left & right)
    assert a - b == FieldSet.of(left - right)
    assert all((path in a) == (path in left) for path in left | right)
    assert bool(a) == bool(left)
    assert len(a) == len(left)


@given(MODELS, MODELS)
@settings(deadline=None)
def test_subtrees_are_removed_with_their_root(left: frozenset[Path], right: frozenset[Path]) -> None:
    rest = {path for path in left if not any(path[:depth] in right for depth in range(1, len(path) + 1))}
    assert FieldSet.of(left).without_subtrees(FieldSet.of(right)) == FieldSet.of(rest)


@given(MODELS, MODELS)
@settings(deadline=None)
def test_operators_leave_their_arguments_alone(left: frozenset[Path], right: frozenset[Path]) -> None:
    a, b = FieldSet.of(left), FieldSet.of(right)
    assert (a | b, a & b, a - b, a.without_subtrees(b)) is not None
    assert (set(a), set(b)) == (left, right)


@given(MODELS)
@settings(deadline=None)
def test_fields_v1_round_trip(model: frozenset[Path]) -> None:
    wire = msgspec.json.encode(FieldSet.of(model).to_v1())
    assert FieldSet.from_v1(msgspec.json.decode(wire)) == FieldSet.of(model)


@given(MODELS)
@settings(deadline=None)
def test_leaves_have_nothing_below_them(model: frozenset[Path]) -> None:
    expected = {path for path in model if not any(len(o) > len(path) and o[: len(path)] == path for o in model)}
    assert set(FieldSet.of(model).leaves()) == expected


def test_foreign_spelling_becomes_canonical() -> None:
    document = {'k:{ "protocol":"TCP", "containerPort":80 }': {".": {}}, 'v: "a"': {}}
    assert FieldSet.from_v1(document).to_v1() == {'k:{"containerPort":80,"protocol":"TCP"}': {}, 'v:"a"': {}}


@pytest.mark.parametrize("document", [{"name": {}}, {"f:a": 1}, {"k:[]": {}}, {"i:x": {}}, {'i:"x"': {}}, []])
def test_what_is_not_fields_v1_is_refused(document: Any) -> None:
    with pytest.raises(InvalidFieldSet):
        FieldSet.from_v1(document)


@pytest.mark.parametrize(
    ("path", "api_server", "people"),
    [
        (("f:spec", "f:replicas"), ".spec.replicas", "spec.replicas"),
        (
            ("f:spec", "f:containers", 'k:{"name":"app"}', "f:image"),
            '.spec.containers[name="app"].image',
            "spec.containers[name=app].image",
        ),
        (
            ("f:ports", 'k:{"containerPort":80,"protocol":"TCP"}'),
            '.ports[containerPort=80,protocol="TCP"]',
            "ports[containerPort=80,protocol=TCP]",
        ),
        (("f:finalizers", 'v:"a/b"'), '.finalizers[="a/b"]', "finalizers[=a/b]"),
        (("f:args", "i:2"), ".args[2]", "args[2]"),
        (
            ("f:metadata", "f:labels", "f:kai.scheduler/queue"),
            ".metadata.labels.kai.scheduler/queue",
            "metadata.labels[kai.scheduler/queue]",
        ),
    ],
)
def test_paths_are_printed_for_the_api_and_for_people(path: Path, api_server: str, people: str) -> None:
    assert (render(path), readable(path)) == (api_server, people)
