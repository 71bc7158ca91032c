"""DRA device selectors: from attributes as slices publish them to the `device` variable and a verdict.

Rules of the variable (dynamic-resource-allocation, cel/compile.go): an unqualified name belongs to the driver's
domain, an unknown domain reads as an empty map, an unknown name in a domain is an error.
"""

from __future__ import annotations

from collections.abc import Mapping
from decimal import Decimal
from functools import lru_cache
from typing import Any, NamedTuple

from capstan.cel.environments import device_selector
from capstan.cel.errors import EvaluationError
from capstan.cel.program import Program, compile
from capstan.cel.values import DefaultMap, type_name


class DeviceBinding(NamedTuple):
    """One device, ready for any number of selectors."""

    variables: dict[str, dict[str, Any]]


def bind(
    driver: str, attributes: Mapping[str, Any], capacity: Mapping[str, Decimal], allow_multiple: bool = False
) -> DeviceBinding:
    """A device as selectors see it. Keys are `name` or `domain/name`; values int, bool, str, Semver, Decimal, or
    lists.
    """
    device = {
        "driver": driver,
        "attributes": _by_domain(driver, attributes),
        "capacity": _by_domain(driver, capacity),
        "allowMultipleAllocations": allow_multiple,
    }
    return DeviceBinding({"device": device})


def _by_domain(driver: str, named: Mapping[str, Any]) -> DefaultMap:
    domains = DefaultMap()
    for key, value in named.items():
        domain, _, name = key.rpartition("/")
        domains.setdefault(domain or driver, {})[name] = value
    return domains


class DeviceSelectorProgram:
    """A compiled selector."""

    def __init__(self, program: Program) -> None:
        self.program = program

    @property
    def expression(self) -> str:
        return self.program.expression

    def matches(
        self, driver: str, attributes: Mapping[str, Any], capacity: Mapping[str, Decimal], allow_multiple: bool = False
    ) -> bool:
        """Whether the device is selected. Raises EvaluationError, for example for an attribute the device lacks."""
        return self.matches_bound(bind(driver, attributes, capacity, allow_multiple))

    def matches_bound(self, device: DeviceBinding) -> bool:
        """As `matches`, for a device bound once and asked about often."""
        result = self.program.evaluate(device.variables)
        if result is True or result is False:
            return result
        raise EvaluationError(f"the expression evaluated to {type_name(result)}, a selector must give a bool")


@lru_cache(maxsize=1024)
def compile_selector(expression: str, version: tuple[int, int] = (1, 36)) -> DeviceSelectorProgram:
    """Compile a selector for a Kubernetes version. Raises CompileError with line and column of what is wrong."""
    return DeviceSelectorProgram(compile(expression, device_selector(version)))
