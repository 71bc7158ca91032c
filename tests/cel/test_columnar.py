"""The columnar front gives each device the verdict that the selector gives it alone."""

from __future__ import annotations

from decimal import Decimal
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from capstan import cel
from capstan.cel.columnar import Fleet

DOMAIN = "gpu.example"
SELECTORS = [
    "device.attributes['gpu.example'].kind == 'a'",
    "device.attributes['gpu.example'].?index.orValue(0) > 1",
    "'kind' in device.attributes['gpu.example'] && device.capacity['gpu.example'].memory.compareTo(quantity('2')) >= 0",
    "cel.bind(a, device.attributes['gpu.example'], a.kind == 'b' || a.index == 1)",
    "device.attributes['gpu.example'].all(name, value, value != 3)",
    "device.driver == 'gpu.example' && !device.allowMultipleAllocations",
    "has(device.attributes['gpu.example'].index) && device.attributes['gpu.example'].index == 1",
]
devices = st.builds(
    lambda attributes, memory, shared: cel.device.bind(DOMAIN, attributes, {"memory": Decimal(memory)}, shared),
    st.dictionaries(
        st.sampled_from(["kind", "index", "other.example/kind"]), st.sampled_from(["a", "b", 0, 1, 2, 3, True, ["a"]])
    ),
    st.integers(1, 3),
    st.booleans(),
)


def alone(selector: cel.device.DeviceSelectorProgram, device: Any) -> bool | None:
    try:
        return selector.matches_bound(device)
    except cel.EvaluationError:
        return None


@settings(deadline=None, max_examples=200)
@given(st.lists(devices, max_size=12), st.sampled_from(SELECTORS))
def test_a_fleet_agrees_with_its_devices(fleet: list[Any], expression: str) -> None:
    selector = cel.device.compile_selector(expression)
    selection = Fleet(fleet).select(selector)
    together = [
        None if failed else bool(selected)
        for selected, failed in zip(selection.selected, selection.failed, strict=True)
    ]
    assert together == [alone(selector, device) for device in fleet]
    assert bool(selection.errors) == any(verdict is None for verdict in together)


@pytest.mark.parametrize(
    ("expression", "reads"),
    [
        ("device.attributes['d'].a == 1 && device.attributes['d']['b'] == 2", ({"d/a", "d/b"}, set())),
        ("device.attributes['d'].?a.orValue(1) == 1 && has(device.attributes['e'].b)", ({"d/a", "e/b"}, set())),
        ("'a' in device.attributes['d'] && device.capacity['d'].m.sign() > 0", ({"d/a"}, {"d/m"})),
        ("cel.bind(x, device.attributes['d'], x.a == 1 && x.b == 2)", ({"d/a", "d/b"}, set())),
        ("device.driver == 'x' && device.allowMultipleAllocations", (set(), set())),
        ("['a'].exists(x, device.attributes['d'].a == x)", ({"d/a"}, set())),
        ("device.attributes['d'].all(k, k != 'a')", None),
        ("device.attributes[device.driver].a == 1", None),
        ("'d' in device.attributes", None),
        ("size(device.attributes['d']) == 1", None),
        ("cel.bind(x, device, x.driver == 'a')", None),
    ],
)
def test_a_selector_knows_what_it_reads(expression: str, reads: tuple[set[str], set[str]] | None) -> None:
    assert cel.device.compile_selector(expression).reads == reads
