"""DRA device selectors: from attributes as slices publish them to the `device` variable and a verdict.

Rules of the variable (dynamic-resource-allocation, cel/compile.go): an unqualified name belongs to the driver's
domain, an unknown domain reads as an empty map, an unknown name in a domain is an error.
"""

from __future__ import annotations

from collections.abc import Mapping
from decimal import Decimal
from functools import cached_property, lru_cache
from typing import Any, NamedTuple

from capstan.cel.environments import derived_attribute, device_selector
from capstan.cel.errors import EvaluationError
from capstan.cel.kubernetes import Semver
from capstan.cel.program import Program, compile
from capstan.cel.syntax import Bind, Call, Has, Ident, Index, Literal, Loop, Node, Select, children
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

    @cached_property
    def reads(self) -> tuple[frozenset[str], frozenset[str]] | None:
        """The names `domain/name` of the attributes and of the capacities that the verdict can depend on.

        Beside them there are only the driver and `allowMultipleAllocations`. None when the names cannot be told, as in
        a loop over a whole domain.
        """
        reads = _Reads()
        try:
            reads.visit(self.program.tree, {})
        except _AnyName:
            return None
        return frozenset(reads.names["attributes"]), frozenset(reads.names["capacity"])

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


class DerivedAttributeProgram:
    """A compiled expression of a derived attribute (KEP-6080)."""

    def __init__(self, program: Program) -> None:
        self.program = program

    def value(
        self, driver: str, attributes: Mapping[str, Any], capacity: Mapping[str, Decimal], allow_multiple: bool = False
    ) -> object:
        """An int, bool, str or Semver, or a list of one of these. Raises EvaluationError, also for any other value."""
        result = self.program.evaluate(bind(driver, attributes, capacity, allow_multiple).variables)
        kinds = {type(value) for value in result} if isinstance(result, list) else {type(result)}
        if len(kinds) == 1 and kinds <= {int, bool, str, Semver}:
            return result
        what = "an empty or mixed list" if isinstance(result, list) else type_name(result)
        raise EvaluationError(f"the expression evaluated to {what}, an attribute is an int, bool, string or version")


class _AnyName(Exception):
    """The expression uses a whole map."""


class _Reads:
    """Collects the constant paths `device.attributes["domain"].name`."""

    def __init__(self) -> None:
        self.names: dict[str, set[str]] = {"attributes": set(), "capacity": set()}

    def visit(self, node: Node, aliases: dict[str, tuple[str, str]]) -> None:
        """Raises _AnyName at the first use that is no constant path; `aliases` are names bound to one domain's map."""
        match node:
            case Select(operand=operand, field=name) | Has(operand=operand, field=name):
                if self.found(operand, name, aliases):
                    return
                if _is_device(operand) and name in ("driver", "allowMultipleAllocations"):
                    return
            case Index(operand=operand, index=Literal(value=str(name))):
                if self.found(operand, name, aliases):
                    return
            case Call(function="@in", args=[Literal(value=str(name)), container]):
                if self.found(container, name, aliases):
                    return
            case Bind(kind="bind"):
                if domain := self.domain(node.value, aliases):
                    self.visit(node.body, {**aliases, node.name: domain})
                    return
            case Ident(name=name):
                if name == "device" or name in aliases:
                    raise _AnyName
        bound = node.variables if isinstance(node, Loop) else [node.name] if isinstance(node, Bind) else []
        inner = {name: domain for name, domain in aliases.items() if name not in bound}
        for position, child in enumerate(children(node)):
            self.visit(child, inner if position else aliases)

    def found(self, operand: Node, name: str, aliases: dict[str, tuple[str, str]]) -> bool:
        domain = self.domain(operand, aliases)
        if domain is not None:
            self.names[domain[0]].add(f"{domain[1]}/{name}")
        return domain is not None

    def domain(self, node: Node, aliases: dict[str, tuple[str, str]]) -> tuple[str, str] | None:
        """(attributes or capacity, domain) when the node is the map of one domain."""
        match node:
            case Ident(name=name):
                return aliases.get(name)
            case Index(operand=Select(operand=device, field=kind), index=Literal(value=str(name))):
                pass
            case Select(operand=Select(operand=device, field=kind), field=name):
                pass
            case _:
                return None
        return (kind, name) if _is_device(device) and kind in self.names else None


def _is_device(node: Node) -> bool:
    return isinstance(node, Ident) and node.name == "device"


@lru_cache(maxsize=1024)
def compile_selector(
    expression: str, version: tuple[int, int] = (1, 36), *, list_attributes: bool = True
) -> DeviceSelectorProgram:
    """Compile a selector for a Kubernetes version. Raises CompileError with line and column of what is wrong."""
    return DeviceSelectorProgram(compile(expression, device_selector(version, list_attributes=list_attributes)))


@lru_cache(maxsize=1024)
def compile_derived_attribute(expression: str, version: tuple[int, int] = (1, 37)) -> DerivedAttributeProgram:
    """Compile the expression of a derived attribute. Raises CompileError with line and column of what is wrong."""
    return DerivedAttributeProgram(compile(expression, derived_attribute(version)))
