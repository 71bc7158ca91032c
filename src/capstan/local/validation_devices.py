"""`resource.k8s.io`: what the rules of claims and of slices have in common.

Rules: k8s.io/kubernetes pkg/apis/resource/validation, with the limits of KEP-4381, 4815, 5007, 5055 and 5075. The
schema has checked types, enumerations, required fields and list lengths. Where upstream accepts a negative amount, it
is refused here: nothing can be done with one.
"""

from __future__ import annotations

import re
import uuid
from collections.abc import Iterable, Sequence
from functools import lru_cache
from typing import Any

import msgspec

from capstan import cel
from capstan.api import quantity
from capstan.api.feature_gates import FeatureGates
from capstan.local.structural_errors import duplicate, format_error, invalid, required, too_long
from capstan.local.validation import Causes, Object, key_error, label_value_error

_DRIVER_LENGTH = 63
_IDENTIFIER_LENGTH = 32
_POOL_LENGTH = 253
_DATA = 10 * 1024
_IDENTIFIER = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")
_IDENTIFIER_RULE = (
    "a valid C identifier must start with alphabetic character or '_', followed by a string of alphanumeric characters "
    "or '_' (e.g. 'my_name',  or 'MY_NAME',  or 'MyName', regex used for validation is '[A-Za-z_][A-Za-z0-9_]*')"
)
_UID = re.compile(r"[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}")
_UID_RULE = (
    "uid must be in RFC 4122 normalized form, `xxxxxxxx-xxxx-xxxx-xxxx-xxxxxxxxxxxx` with lowercase hexadecimal "
    "characters"
)


def name(value: str, path: str, causes: Causes, rule: str = "k8s-short-name") -> None:
    """A name that must not be empty; devices, requests and counters have DNS labels."""
    if not value:
        causes.append(required(path))
    elif wrong := _format_error(rule, value):
        causes.append(invalid(path, value, wrong))


_format_error = lru_cache(4096)(format_error)
"""Devices, drivers and pools come again and again."""


def driver_name(value: str, path: str, causes: Causes) -> None:
    """A DNS subdomain in letters of either case."""
    if len(value) > _DRIVER_LENGTH:
        causes.append(too_long(path, _DRIVER_LENGTH))
    name(value.lower(), path, causes, "k8s-long-name")


def pool_name(value: str, path: str, causes: Causes) -> None:
    """DNS subdomains separated by slashes."""
    if not value:
        causes.append(required(path))
        return
    if len(value) > _POOL_LENGTH:
        causes.append(too_long(path, _POOL_LENGTH))
    for part in value.split("/"):
        if wrong := _format_error("k8s-long-name", part):
            causes.append(invalid(path, part, wrong))


def qualified_name(value: str, path: str, causes: Causes) -> None:
    """`domain/identifier`, or `identifier` alone, which then belongs to the driver's domain."""
    domain, slash, identifier = value.partition("/")
    if not slash:
        _identifier(value, path, causes)
        return
    if "/" in identifier:
        causes.append(invalid(path, value, "must not contain more than one slash"))
        return
    if domain:
        driver_name(domain, path, causes)
    else:
        causes.append(invalid(path, "", "the domain must not be empty"))
    if identifier:
        _identifier(identifier, path, causes)
    else:
        causes.append(invalid(path, "", "the name must not be empty"))


def fully_qualified_name(value: str, path: str, causes: Causes) -> None:
    """`domain/identifier`"""
    qualified_name(value, path, causes)
    if "/" not in value:
        detail = "a fully qualified name must be a domain and a name separated by a slash"
        causes.append(invalid(path, value, detail))


def _identifier(value: str, path: str, causes: Causes) -> None:
    if len(value) > _IDENTIFIER_LENGTH:
        causes.append(too_long(path, _IDENTIFIER_LENGTH))
    if not _IDENTIFIER.fullmatch(value):
        causes.append(invalid(path, value, _IDENTIFIER_RULE))


def label_key(value: str, path: str, causes: Causes) -> None:
    if wrong := key_error(value):
        causes.append(invalid(path, value, wrong))


def label_value(value: str, path: str, causes: Causes) -> None:
    if wrong := label_value_error(value):
        causes.append(invalid(path, value, wrong))


def share_id(value: str, path: str, causes: Causes) -> None:
    """A UUID as its canonical text."""
    if _UID.fullmatch(value):
        return
    try:
        uuid.UUID(value)
    except ValueError as wrong:
        causes.append(invalid(path, value, f"error validating uid: {wrong}"))
    else:
        causes.append(invalid(path, value, _UID_RULE))


def amount(value: Any, path: str, causes: Causes) -> None:
    try:
        if quantity.parse(value) < 0:
            causes.append(invalid(path, value, "must be greater than or equal to 0"))
    except quantity.InvalidQuantity as wrong:
        causes.append(invalid(path, value, str(wrong)))


def each_once(values: Iterable[Any], path: str, causes: Causes) -> None:
    """No value twice in a list."""
    seen: set[Any] = set()
    for index, value in enumerate(values):
        if value in seen:
            causes.append(duplicate(f"{path}[{index}]", value))
        seen.add(value)


def selectors(given: Sequence[Object], path: str, gates: FeatureGates, causes: Causes) -> None:
    for index, selector in enumerate(given):
        if (expression := selector.get("cel")) is None:
            causes.append(required(f"{path}[{index}].cel"))
            continue
        source = expression["expression"]
        try:
            cel.device.compile_selector(source, list_attributes="DRAListTypeAttributes" in gates)
        except cel.CompileError as wrong:
            causes.append(invalid(f"{path}[{index}].cel.expression", source, f"compilation failed: {wrong}"))


def opaque_config(config: Object, path: str, causes: Causes) -> None:
    if (opaque := config.get("opaque")) is None:
        causes.append(required(f"{path}.opaque"))
        return
    driver_name(opaque["driver"], f"{path}.opaque.driver", causes)
    data(opaque["parameters"], f"{path}.opaque.parameters", causes)


def data(value: Any, path: str, causes: Causes) -> None:
    """What a driver is told, or tells: a JSON object of a limited size."""
    if len(msgspec.json.encode(value)) > _DATA:
        causes.append(too_long(path, _DATA))


def taint(given: Object, path: str, causes: Causes) -> None:
    label_key(given["key"], f"{path}.key", causes)
    label_value(given.get("value", ""), f"{path}.value", causes)


def tolerations(given: Iterable[Object], path: str, causes: Causes) -> None:
    for index, toleration in enumerate(given):
        below = f"{path}[{index}]"
        if key := toleration.get("key"):
            label_key(key, f"{below}.key", causes)
        value = toleration.get("value", "")
        if toleration.get("operator") == "Exists":
            if value:
                causes.append(invalid(f"{below}.value", value, "must be empty for operator `Exists`"))
        else:
            label_value(value, f"{below}.value", causes)


def binding_conditions(holder: Object, path: str, causes: Causes) -> None:
    """What must hold before a pod is bound, and what gives the device up (KEP-5007): both or none, and disjoint."""
    conditions, failures = holder.get("bindingConditions") or [], holder.get("bindingFailureConditions") or []
    for field, given in (("bindingConditions", conditions), ("bindingFailureConditions", failures)):
        for index, condition in enumerate(given):
            label_key(condition, f"{path}.{field}[{index}]", causes)
        each_once(given, f"{path}.{field}", causes)
    for index, condition in enumerate(failures):
        if condition in conditions:
            detail = "bindingFailureConditions must not overlap with bindingConditions"
            causes.append(invalid(f"{path}.bindingFailureConditions[{index}]", condition, detail))
    if failures and not conditions:
        detail = "bindingConditions are required to use bindingFailureConditions"
        causes.append(invalid(f"{path}.bindingConditions", conditions, detail))
    if conditions and not failures:
        detail = "bindingFailureConditions are required to use bindingConditions"
        causes.append(invalid(f"{path}.bindingFailureConditions", failures, detail))


def skipped_operations(given: Sequence[str], path: str, causes: Causes) -> None:
    """Who is not prepared need not be unprepared, but not the other way round (KEP-5945)."""
    each_once(given, path, causes)
    if "NodePrepareResources" in given and not {"NodeUnprepareResources", "*"}.intersection(given):
        detail = "NodePrepareResources cannot be skipped unless NodeUnprepareResources is also skipped"
        causes.append(invalid(path, list(given), detail))
