"""Device selectors: the variable `device` and its special rules (resource.k8s.io/v1)."""

from __future__ import annotations

from decimal import Decimal

import pytest

from capstan import cel

DRIVER = "gpu.nvidia.com"
ATTRIBUTES = {
    "type": "gpu",
    "productName": "NVIDIA A100-SXM4-40GB",
    "index": 2,
    "driverVersion": cel.Semver.parse("550.54.14"),
    "healthy": True,
    "features": ["nvlink", "mig"],
    "resource.kubernetes.io/pcieRoot": "pci0000:00",
}
CAPACITY = {"memory": Decimal(40 * 2**30)}


def matches(expression: str) -> bool:
    return cel.device.compile_selector(expression).matches(DRIVER, ATTRIBUTES, CAPACITY)


@pytest.mark.parametrize(
    "expression",
    [
        "device.driver == 'gpu.nvidia.com' && device.attributes['gpu.nvidia.com'].type == 'gpu'"
        " && device.capacity['gpu.nvidia.com'].memory.compareTo(quantity('40Gi')) >= 0",
        "device.attributes['gpu.nvidia.com'].productName.lowerAscii().matches('^.*a100.*$')",
        "device.attributes['gpu.nvidia.com'].driverVersion.isGreaterThan(semver('535.0.0'))",
        "device.attributes['gpu.nvidia.com'].?vendor.orValue('none') == 'none'",
        "cel.bind(a, device.attributes['gpu.nvidia.com'], a.type == 'gpu' && a.index > 1)",
        "device.attributes['gpu.nvidia.com'].features.exists(f, f == 'mig')",
        "device.attributes['gpu.nvidia.com'].type in ['gpu', 'mig']",
        "'resource.kubernetes.io' in device.attributes",
        "device.attributes['gpu.nvidia.com'].all(name, value, name != 'forbidden')",
        "device.attributes['gpu.nvidia.com'].healthy",
        "!device.allowMultipleAllocations",
    ],
)
def test_the_device_is_selected(expression: str) -> None:
    assert matches(expression) is True


def test_matches_are_remembered_by_the_value_they_are_of() -> None:
    selector = cel.device.compile_selector("device.attributes['d'].name.trim().matches('^a100$')")
    verdicts = [selector.matches("d", {"name": name}, {}) for name in ("a100 ", "A100", "a100 ", "A100")]
    assert verdicts == [True, False, True, False]
    for value in (1, True, ["a100"], cel.Semver.parse("1.0.0")):
        with pytest.raises(cel.EvaluationError, match="no such overload: trim"):
            selector.matches("d", {"name": value}, {})


def test_an_unknown_domain_is_an_empty_map_but_not_a_key() -> None:
    assert matches("!('type' in device.attributes['other.example'])")
    assert matches("!('other.example' in device.attributes)")


def test_an_unknown_attribute_of_a_known_domain_is_an_error() -> None:
    with pytest.raises(cel.EvaluationError, match="no such key: absent"):
        matches("device.attributes['gpu.nvidia.com'].absent == 1")


def test_an_error_is_absorbed_by_the_operand_that_decides() -> None:
    assert matches("device.attributes['gpu.nvidia.com'].absent == 1 || true")
    assert not matches("device.attributes['gpu.nvidia.com'].absent == 1 && false")


def test_a_misspelled_field_is_refused_with_its_place() -> None:
    with pytest.raises(cel.CompileError, match="undefined field 'typo'") as caught:
        cel.device.compile_selector("true &&\n  device.typo == 1")
    assert (caught.value.line, caught.value.column) == (2, 9)


@pytest.mark.parametrize("expression", ["device.driver", "1 + 1", "quantity('1Gi')"])
def test_a_selector_must_be_able_to_give_a_bool(expression: str) -> None:
    with pytest.raises(cel.CompileError, match="must evaluate to bool or the unknown type"):
        cel.device.compile_selector(expression)


def test_an_attribute_that_is_no_bool_is_no_verdict() -> None:
    with pytest.raises(cel.EvaluationError, match="must give a bool"):
        matches("device.attributes['gpu.nvidia.com'].type")
