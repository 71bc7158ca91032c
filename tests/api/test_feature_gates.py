"""Feature gates: which are on, and what an API server drops without them."""

from __future__ import annotations

import copy
import re
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from capstan.allocation import Features
from capstan.api import openapi
from capstan.api.feature_gates import GATES, FeatureGates, GatedFields, InvalidFeatureGates, changed, parse

KEYS = st.sampled_from(
    ["devices", "consumesCounters", "counters", "valueFrom", "sharedCounters", "attributes", "ints", "taints", "x"]
)
PREFIX = "io.k8s.api.resource.v1"


def test_gates_are_switched_one_by_one_on_top_of_the_defaults() -> None:
    assert parse("") == FeatureGates()
    gates = parse("DRAAdminAccess=false, DRADerivedAttributes=true")
    assert changed(gates) == ["DRAAdminAccess", "DRADerivedAttributes"]
    assert parse(str(gates)) == gates


def test_what_needs_a_gate_goes_off_with_it() -> None:
    assert "DRADeviceTaintRules" not in parse("DRADeviceTaints=false")
    with pytest.raises(InvalidFeatureGates, match="DRASharedConsumableCapacity=true needs DRAConsumableCapacity=true"):
        parse("DRAConsumableCapacity=false,DRASharedConsumableCapacity=true")


@pytest.mark.parametrize("text", ["DRAMagic=true", "DRAAdminAccess", "DRAAdminAccess=yes", "DRAAdminAccess=true=false"])
def test_an_unknown_gate_or_value_is_named_with_those_that_exist(text: str) -> None:
    with pytest.raises(InvalidFeatureGates, match=f"^'{text}' is not NAME=true or NAME=false with one of: Dynamic"):
        parse(text)


def test_a_locked_gate_stays_on() -> None:
    with pytest.raises(InvalidFeatureGates, match="feature is locked to true"):
        parse("DynamicResourceAllocation=false")


def test_the_allocator_has_the_same_defaults() -> None:
    assert Features.under(FeatureGates()) == Features()
    everything = Features.under(FeatureGates(frozenset(GATES)))
    nothing = Features.under(FeatureGates(frozenset()))
    for field in Features.__struct_fields__:
        assert (getattr(everything, field), getattr(nothing, field)) == (True, False), field


def gated(kind: str) -> GatedFields:
    definitions = openapi.definitions()
    return GatedFields(definitions[f"{PREFIX}.{kind}"], definitions)


def test_every_gate_that_a_schema_names_exists() -> None:
    named = {gate for kind in ("DeviceClass", "ResourceClaim", "ResourceSlice") for gate in gated(kind).paths}
    named |= {resource.gate for resource in openapi.builtin_resources()} - {""}
    assert named <= set(GATES)
    fieldless = {"DynamicResourceAllocation", "DRAFractionalCapacityRange"}
    assert set(GATES) - named == fieldless, "only these govern no field and no kind"


def test_templates_and_older_versions_lose_the_same_fields() -> None:
    definitions = openapi.definitions()
    claim, template = gated("ResourceClaim").paths, gated("ResourceClaimTemplate").paths
    wanted = {gate: [("spec", *path) for path in paths if path[0] == "spec"] for gate, paths in claim.items()}
    assert template == {gate: paths for gate, paths in wanted.items() if paths}
    for version in ("v1beta1", "v1beta2"):
        for kind in ("ResourceClaim", "ResourceSlice", "DeviceClass"):
            older = GatedFields(definitions[f"io.k8s.api.resource.{version}.{kind}"], definitions).paths
            flat = {
                gate: [tuple(step for step in path if step not in ("basic", "exactly")) for path in paths]
                for gate, paths in older.items()
            }
            newer = {
                gate: [tuple(step for step in path if step != "exactly") for path in paths]
                for gate, paths in gated(kind).paths.items()
            }
            assert {g: set(p) for g, p in flat.items()} == {g: set(p) for g, p in newer.items()}, (version, kind)


def counters(*, drawn: bool) -> dict[str, Any]:
    counter: dict[str, Any] = {"valueFrom": {"capacityName": "bandwidth"}} if drawn else {"value": "1"}
    return {"spec": {"devices": [{"name": "a", "consumesCounters": [{"counterSet": "s", "counters": {"c": counter}}]}]}}


def test_fields_of_features_that_are_off_are_dropped_unless_the_object_uses_them_already() -> None:
    dropped = gated("ResourceSlice").without(FeatureGates())
    new, plain = counters(drawn=True), counters(drawn=False)
    dropped.drop(new)
    assert new["spec"]["devices"][0]["consumesCounters"][0]["counters"] == {"c": {}}
    dropped.drop(plain)
    assert plain == counters(drawn=False)
    kept = counters(drawn=True)
    dropped.drop(kept, old=counters(drawn=True))
    assert kept == counters(drawn=True)
    dropped.drop(kept, old=plain)
    assert kept == new
    everything = counters(drawn=True)
    gated("ResourceSlice").without(FeatureGates(frozenset())).drop(everything)
    assert everything == {"spec": {"devices": [{"name": "a"}]}}


@given(st.sets(st.sampled_from(sorted(GATES))))
def test_what_is_written_is_read_again(on: set[str]) -> None:
    gates = FeatureGates(frozenset(on | {"DynamicResourceAllocation"}))
    complete = all(set(GATES[name].needs) <= gates.on for name in gates.on)
    try:
        assert parse(",".join(f"{name}={str(name in gates).lower()}" for name in GATES)) == gates
    except InvalidFeatureGates:
        assert not complete
    else:
        assert complete


@given(st.text(max_size=60))
def test_any_other_text_is_an_error(text: str) -> None:
    try:
        assert parse(text).on <= set(GATES)
    except InvalidFeatureGates as error:
        assert str(error)


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=3),
    lambda below: st.lists(below, max_size=3) | st.dictionaries(KEYS, below, max_size=4),
    max_leaves=30,
)


@given(JSON, JSON)
def test_whatever_is_sent_nothing_else_is_dropped(spec: Any, old: Any) -> None:
    """Dropping twice is dropping once, and what is left has nothing of the features that are off."""
    dropped = gated("ResourceSlice").without(FeatureGates(frozenset()))
    obj = {"spec": copy.deepcopy(spec)}
    dropped.drop(obj, {"spec": old})
    again = copy.deepcopy(obj)
    dropped.drop(again, {"spec": old})
    assert again == obj
    dropped.drop(again)
    left = copy.deepcopy(again)
    dropped.drop(left)
    assert left == again


def test_objects_of_an_unexpected_shape_are_left_alone() -> None:
    dropped = gated("ResourceSlice").without(FeatureGates(frozenset()))
    for odd in ({}, {"spec": None}, {"spec": {"devices": {"a": 1}}}, {"spec": {"devices": [None, 1]}}):
        before = repr(odd)
        dropped.drop(odd)
        assert repr(odd) == before


def test_the_page_about_gates_lists_all_with_their_defaults() -> None:
    page = (Path(__file__).parents[2] / "docs" / "feature-gates.md").read_text()
    listed = dict(re.findall(r"^\| `(\w+)` \| (locked on|on|off)", page, re.MULTILINE))
    wanted = {name: "locked on" if gate.locked else "on" if gate.default else "off" for name, gate in GATES.items()}
    assert listed == wanted
