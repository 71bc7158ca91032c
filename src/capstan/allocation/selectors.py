"""Which devices a request's CEL selectors select: evaluated once per distinct tuple of the values an expression reads.

An expression that fails on a device (it reads an attribute that the device does not have, or does not compile) neither
selects nor rejects it: the failure is kept, and whoever asked decides what it means.
"""

from __future__ import annotations

from collections.abc import Hashable
from decimal import Decimal

from capstan import cel
from capstan.allocation.model import SelectorError
from capstan.allocation.pools import AttributeValue, Device, Errors, Pool, scalar
from capstan.api import quantity
from capstan.api.resource import DeviceAttribute
from capstan.cel.device import DeviceSelectorProgram, compile_derived_attribute, compile_selector

Expressions = tuple[str, ...]
"""Selectors that must all hold: those of the class, then those of the request."""


_POOL_CACHE = 64
_EXPRESSIONS = 1_000
_ANSWERS = 10_000


class InvalidSelector(SelectorError):
    """the selector {expression} does not compile: {problem}"""

    reason = "InvalidSelector"

    def __init__(self, expression: str, problem: Exception) -> None:
        super().__init__(f"the selector {expression!r} does not compile: {problem}")


class SelectorFailed(SelectorError):
    """the selector {expression} failed on the device {device}: {problem}"""

    reason = "SelectorFailed"

    def __init__(self, expression: str, device: Device, problem: Exception) -> None:
        super().__init__(f"the selector {expression!r} failed on the device {device.id}: {problem}")


class Selectors:
    """What selectors answered. One per inventory; it only ever caches."""

    def __init__(self, *, list_attributes: bool = True) -> None:
        self._list_attributes = list_attributes
        self._answers: dict[tuple[str, str], dict[Hashable, bool]] = {}
        """By expression and driver, then by the values that the expression reads."""

    def matches(self, pool: Pool, expressions: Expressions) -> tuple[list[Device], Errors]:
        """The devices of a pool that are selected or on which a selector failed, in order, and the failures."""
        found = pool.matched.get(expressions)
        if found is None:
            errors: Errors = {}
            devices = list(pool.devices.values()) if pool.usable else []
            for expression in expressions:
                devices = self._filter(devices, expression, pool.driver, errors)
            if len(pool.matched) >= _POOL_CACHE:
                pool.matched.clear()
            found = pool.matched[expressions] = (devices, errors)
        return found

    def _filter(self, devices: list[Device], expression: str, driver: str, errors: Errors) -> list[Device]:
        try:
            program = compile_selector(expression, list_attributes=self._list_attributes)
        except cel.CompileError as error:
            problem = InvalidSelector(expression, error)
            errors.update((device, problem) for device in devices if device not in errors)
            return devices
        if program.reads is None:
            return [d for d in devices if d in errors or _evaluate(d, expression, program, errors)]
        answers = self._answers.get((expression, driver))
        if answers is None or len(answers) >= _ANSWERS:
            if len(self._answers) >= _EXPRESSIONS:
                self._answers.clear()
            answers = self._answers[expression, driver] = {}
        names = [(name.removeprefix(f"{driver}/"), name) for name in program.reads[0]]
        capacities = [(name.removeprefix(f"{driver}/"), name) for name in program.reads[1]]
        selected = []
        for device in devices:
            spec = device.spec
            attributes = spec.attributes
            key: Hashable = spec.allow_multiple_allocations
            for short, full in names:
                attribute = attributes.get(short) or attributes.get(full)
                if attribute is None or (value := attribute.string) is None:
                    key = (key, _key(attribute))
                else:
                    key = (key, value)
            for short, full in capacities:
                capacity = spec.capacity.get(short) or spec.capacity.get(full)
                key = (key, None if capacity is None else (capacity.value,))
            answer = answers.get(key)
            if answer is None:
                answer = _evaluate(device, expression, program, errors)
                if device not in errors:
                    answers[key] = answer
            if answer or device in errors:
                selected.append(device)
        return selected


def derived(device: Device, expression: str) -> frozenset[AttributeValue]:
    """The values of a derived attribute (KEP-6080). Raises InvalidSelector, and SelectorFailed for this device."""
    try:
        program = compile_derived_attribute(expression)
    except cel.CompileError as error:
        raise InvalidSelector(expression, error) from error
    try:
        result = program.value(*_bindings(device))
    except cel.EvaluationError as error:
        raise SelectorFailed(expression, device, error) from error
    return frozenset(map(_attribute_value, result if isinstance(result, list) else [result]))


def _attribute_value(value: object) -> AttributeValue:
    if isinstance(value, cel.Semver):
        return ("version", value.text)
    return ({bool: "bool", int: "int"}.get(type(value), "string"), value)


def _bindings(device: Device) -> tuple[str, dict[str, object], dict[str, Decimal], bool]:
    capacity = {name: quantity.parse(entry.value) for name, entry in device.spec.capacity.items()}
    attributes = {name: _value(attribute) for name, attribute in device.spec.attributes.items()}
    return device.driver, attributes, capacity, device.multiple


def _evaluate(device: Device, expression: str, program: DeviceSelectorProgram, errors: Errors) -> bool:
    """Whether the device is selected; a failure goes into `errors`."""
    try:
        return program.matches(*_bindings(device))
    except cel.EvaluationError as error:
        errors[device] = SelectorFailed(expression, device, error)
        return True


def _key(attribute: DeviceAttribute | None) -> Hashable:
    """What tells values apart for an expression; strings stand for themselves, all else is a tuple."""
    if attribute is None:
        return None
    lists = (attribute.ints, attribute.bools, attribute.strings, attribute.versions)
    return scalar(attribute) or tuple(None if several is None else tuple(several) for several in lists)


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
