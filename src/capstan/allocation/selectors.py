"""Which devices a request's CEL selectors select: evaluated once per distinct tuple of the values an expression reads.

An expression that fails on a device (it reads an attribute that the device does not have) neither selects nor rejects
it: the failure is kept, and the search decides what it means.
"""

from __future__ import annotations

from decimal import Decimal

from capstan import cel
from capstan.allocation.capacity import qualified
from capstan.allocation.model import AllocationError
from capstan.allocation.pools import Device, Match, Pool
from capstan.api import quantity
from capstan.api.resource import DeviceAttribute
from capstan.cel.device import DeviceSelectorProgram, compile_selector

Expressions = tuple[str, ...]
"""Selectors that must all hold: those of the class, then those of the request."""


class InvalidSelector(AllocationError):
    """the selector {expression} does not compile: {problem}"""

    def __init__(self, expression: str, problem: Exception) -> None:
        super().__init__(f"the selector {expression!r} does not compile: {problem}")


class SelectorFailed(AllocationError):
    """the selector {expression} failed on the device {device}: {problem}"""

    def __init__(self, expression: str, device: Device, problem: Exception) -> None:
        super().__init__(f"the selector {expression!r} failed on the device {device.id}: {problem}")


class Selectors:
    """Compiled selectors and what they answered. One per inventory; it only ever caches."""

    def __init__(self) -> None:
        self._programs: dict[str, DeviceSelectorProgram] = {}
        self._answers: dict[tuple[object, ...], bool] = {}

    def program(self, expression: str) -> DeviceSelectorProgram:
        """Raises InvalidSelector with the position of the mistake."""
        program = self._programs.get(expression)
        if program is None:
            try:
                program = compile_selector(expression)
            except cel.CompileError as error:
                raise InvalidSelector(expression, error) from error
            self._programs[expression] = program
        return program

    def matches(self, pool: Pool, expressions: Expressions) -> list[Match]:
        """The selected devices of an assembled pool in order, with those on which a selector failed."""
        found = pool.matched.get(expressions)
        if found is None:
            programs = [(expression, self.program(expression)) for expression in expressions]
            found = []
            for device in pool.devices.values():
                selected, error = self._select(device, programs)
                if selected or error is not None:
                    found.append((device, error))
            pool.matched[expressions] = found
        return found

    def _select(
        self, device: Device, programs: list[tuple[str, DeviceSelectorProgram]]
    ) -> tuple[bool, AllocationError | None]:
        for expression, program in programs:
            try:
                if not self._answer(device, expression, program):
                    return False, None
            except cel.EvaluationError as error:
                return False, SelectorFailed(expression, device, error)
        return True, None

    def _answer(self, device: Device, expression: str, program: DeviceSelectorProgram) -> bool:
        reads = program.reads
        if reads is None:
            return _evaluate(device, program)
        driver, spec = device.id.driver, device.spec
        attributes, capacities = reads
        seen: list[object] = [expression, driver, device.multiple]
        for name in attributes:
            attribute = device.attribute(name)
            seen.append(None if attribute is None else _key(attribute))
        if capacities:
            amounts = {qualified(name, driver): value.value for name, value in spec.capacity.items()}
            seen.extend(amounts.get(name) for name in capacities)
        key = tuple(seen)
        answer = self._answers.get(key)
        if answer is None:
            answer = self._answers[key] = _evaluate(device, program)
        return answer


def _evaluate(device: Device, program: DeviceSelectorProgram) -> bool:
    attributes = {name: _value(attribute) for name, attribute in device.spec.attributes.items()}
    capacity: dict[str, Decimal] = {name: quantity.parse(c.value) for name, c in device.spec.capacity.items()}
    return program.matches(device.id.driver, attributes, capacity, device.multiple)


def _key(attribute: DeviceAttribute) -> object:
    for kind, value in (
        ("string", attribute.string),
        ("int", attribute.int_),
        ("bool", attribute.bool_),
        ("version", attribute.version),
    ):
        if value is not None:
            return (kind, value)
    for kind, several in (
        ("ints", attribute.ints),
        ("bools", attribute.bools),
        ("strings", attribute.strings),
        ("versions", attribute.versions),
    ):
        if several is not None:
            return (kind, tuple(several))
    return ()


def _value(attribute: DeviceAttribute) -> object:
    if attribute.string is not None:
        return attribute.string
    if attribute.int_ is not None:
        return attribute.int_
    if attribute.bool_ is not None:
        return attribute.bool_
    if attribute.version is not None:
        return cel.Semver.parse(attribute.version)
    for several in (attribute.ints, attribute.bools, attribute.strings):
        if several is not None:
            return list(several)
    return [cel.Semver.parse(version) for version in attribute.versions or ()]
