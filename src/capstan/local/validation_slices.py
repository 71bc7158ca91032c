"""`resource.k8s.io`: slices and taint rules (KEP-4381, 4815, 5055, 5075, 5517, 5941, 5963)."""

from __future__ import annotations

import re
import time
from collections.abc import Mapping, Sequence
from decimal import Decimal
from itertools import pairwise
from math import ceil
from typing import Any

from capstan.api import clock, quantity
from capstan.api.feature_gates import FeatureGates
from capstan.local import validation_devices as rules
from capstan.local.structural_errors import duplicate, forbidden, invalid, not_found, required, too_long, too_many
from capstan.local.validation import Causes, Object, immutable
from capstan.local.validation_conditions import conditions
from capstan.local.validation_pods import node_selector

_ATTRIBUTES_AND_CAPACITIES = 32
_ATTRIBUTE_VALUES = 48
_TEXT = 64
_DEVICES_WITH_MORE = 64
"""The limit for slices whose devices have taints, counters or lists."""
_SEMVER = re.compile(
    r"(0|[1-9]\d*)\.(0|[1-9]\d*)\.(0|[1-9]\d*)"
    r"(-(0|[1-9]\d*|\d*[A-Za-z-][0-9A-Za-z-]*)(\.(0|[1-9]\d*|\d*[A-Za-z-][0-9A-Za-z-]*))*)?(\+[0-9A-Za-z-]+(\.[0-9A-Za-z-]+)*)?"
)
_SCALARS = ("int", "bool", "string", "version")
_LISTS = ("ints", "bools", "strings", "versions")
_ALWAYS_VALID = frozenset(("int", "bool", "string"))
"""If it is the only value; the schema has looked at the length of strings."""
_NODE_RESOURCES = frozenset(("cpu", "memory", "ephemeral-storage"))
_HUGE_PAGES = "hugepages-"
_LARGEST = 2**63 - 1


def default_slice(obj: Object) -> None:
    """A taint counts from when it was first seen, unless it says so itself; `basic` is where v1beta1 keeps it."""
    for device in obj["spec"].get("devices") or ():
        for taint in (device.get("basic") or device).get("taints") or ():
            _stamp(taint)


def default_taint_rule(obj: Object) -> None:
    if (taint := obj["spec"].get("taint")) is not None:
        _stamp(taint)


def update_taint_rule(new: Object, old: Object) -> None:
    """A new effect counts from now, unless the update says from when."""
    taint, before = new["spec"].get("taint") or {}, old["spec"].get("taint") or {}
    if taint.get("effect") != before.get("effect") and taint.get("timeAdded") == before.get("timeAdded"):
        taint["timeAdded"] = _now()


def _stamp(taint: Object) -> None:
    if not taint.get("timeAdded"):
        taint["timeAdded"] = _now()


def _now() -> str:
    return clock.render(time.time())


def validate_slice(new: Object, old: Object | None, gates: FeatureGates) -> Causes:
    causes: Causes = []
    spec, before = new["spec"], old["spec"] if old is not None else None
    if before is not None:
        immutable(spec["pool"].get("name"), before["pool"].get("name"), "spec.pool.name", causes)
        immutable(spec.get("driver"), before.get("driver"), "spec.driver", causes)
        immutable(spec.get("nodeName"), before.get("nodeName"), "spec.nodeName", causes)
        if spec == before:
            return causes
    rules.driver_name(spec["driver"], "spec.driver", causes)
    rules.pool_name(spec["pool"]["name"], "spec.pool.name", causes)
    where = ("nodeName", "nodeSelector", "allNodes", "perDeviceNodeSelection")
    words = ", ".join(f"`{field}`" for field in where)
    _one_place(spec, where, "spec", f"exactly one of {words} is required", ", but multiple fields are set", causes)
    if spec.get("nodeSelector") is not None:
        terms = spec["nodeSelector"].get("nodeSelectorTerms") or []
        if len(terms) != 1:
            path = "spec.nodeSelector.nodeSelectorTerms"
            causes.append(invalid(path, terms, "must have exactly one node selector term"))
    if spec.get("devices") and spec.get("sharedCounters"):
        causes.append(invalid("spec", "", "only one of `sharedCounters` or `devices` is allowed"))
    _counter_sets(spec.get("sharedCounters") or (), gates, causes)
    _devices(spec, before or {}, gates, causes)
    if "partitionTypeAttribute" in spec:
        _partition_types(spec, causes)
    rules.skipped_operations(spec.get("skipNodeOperations") or (), "spec.skipNodeOperations", causes)
    return causes


def _one_place(holder: Object, fields: Sequence[str], path: str, one_of: str, several: str, causes: Causes) -> None:
    """Exactly one of the fields says where devices are; those that say nothing must be left out."""
    given = []
    for field in fields:
        value, below = holder.get(field), f"{path}.{field}"
        if value is None:
            continue
        if value == "":
            causes.append(invalid(below, value, "must be either unset or set to a non-empty string"))
        elif value is False:
            causes.append(invalid(below, value, "must be either unset or set to true"))
        else:
            given.append(f"`{field}`")
            if field == "nodeName":
                rules.name(value, below, causes, "k8s-long-name")
            elif field == "nodeSelector":
                node_selector(value, below, causes)
    if not given:
        causes.append(required(path, one_of))
    elif len(given) > 1:
        causes.append(invalid(path, f"{{{', '.join(given)}}}", one_of + several))


def _devices(spec: Object, before: Object, gates: FeatureGates, causes: Causes) -> None:
    devices = spec.get("devices") or ()
    if len(devices) > _DEVICES_WITH_MORE and any(
        device.get("taints") or device.get("consumesCounters") or _has_lists(device) for device in devices
    ):
        causes.append(too_many("spec.devices", len(devices), _DEVICES_WITH_MORE))
        return
    rules.each_once((device["name"] for device in devices), "spec.devices", causes)
    known = {device["name"]: device for device in before.get("devices") or ()}
    per_device = bool(spec.get("perDeviceNodeSelection"))
    same_places = per_device == bool(before.get("perDeviceNodeSelection"))
    for index, device in enumerate(devices):
        if not (same_places and known.get(device["name"]) == device):
            _device(device, f"spec.devices[{index}]", gates, causes, per_device=per_device)


def _has_lists(device: Object) -> bool:
    return any(key in _LISTS for value in (device.get("attributes") or {}).values() for key in value)


def _device(device: Object, path: str, gates: FeatureGates, causes: Causes, *, per_device: bool) -> None:
    attributes, capacity = device.get("attributes") or {}, device.get("capacity") or {}
    if (found := len(attributes) + len(capacity)) > _ATTRIBUTES_AND_CAPACITIES:
        limit = f"must not exceed {_ATTRIBUTES_AND_CAPACITIES}"
        causes.append(invalid(path, found, f"the total number of attributes and capacities {limit}"))
    values = sum(map(_size, attributes.values()))
    if values > _ATTRIBUTE_VALUES:
        detail = f"the total number of attribute values must not exceed {_ATTRIBUTE_VALUES}"
        causes.append(invalid(path, values, detail))
    for name, value in attributes.items():
        rules.qualified_name(name, f"{path}.attributes", causes)
        _attribute(value, f"{path}.attributes[{name}]", gates, causes)
    for name, entry in capacity.items():
        below = f"{path}.capacity[{name}]"
        rules.qualified_name(name, f"{path}.capacity", causes)
        rules.amount(entry["value"], f"{below}.value", causes)
        if entry.get("requestPolicy") is not None:
            if device.get("allowMultipleAllocations"):
                _request_policy(entry["requestPolicy"], entry["value"], f"{below}.requestPolicy", gates, causes)
            else:
                causes.append(forbidden(f"{below}.requestPolicy", "allowMultipleAllocations must be true"))
    for index, taint in enumerate(device.get("taints") or ()):
        rules.taint(taint, f"{path}.taints[{index}]", causes)
    _consumptions(device.get("consumesCounters") or (), f"{path}.consumesCounters", gates, causes)
    rules.binding_conditions(device, path, causes)
    _node_resources(device.get("nodeAllocatableResources") or {}, capacity, f"{path}.nodeAllocatableResources", causes)
    where = ("nodeName", "nodeSelector", "allNodes")
    only = "`perDeviceNodeSelection` is set to true in the ResourceSlice spec"
    if per_device:
        one_of = f"exactly one of `nodeName`, `nodeSelector`, or `allNodes` is required when {only}"
        _one_place(device, where, path, one_of, "", causes)
    elif any(device.get(field) is not None for field in where):
        detail = f"`nodeName`, `nodeSelector` and `allNodes` can only be set if {only}"
        causes.append(invalid(path, None, detail))


def _size(attribute: Object) -> int:
    """How many values an attribute has."""
    return max(1, sum(len(one) for one in attribute.values() if isinstance(one, list)))


def _attribute(value: Object, path: str, gates: FeatureGates, causes: Causes) -> None:
    if len(value) == 1 and not value.keys().isdisjoint(_ALWAYS_VALID):
        return
    given = [key for key in (*_SCALARS, *_LISTS) if key in value]
    dropped = not given and "DRAListTypeAttributes" not in gates
    if len(given) != 1 and not dropped:
        causes.append(invalid(path, value if given else "", "exactly one value must be specified"))
    for key in given:
        if value[key] == []:
            causes.append(invalid(f"{path}.{key}", [], "must not be empty if specified"))
    texts = [
        (f"{key}[{index}]", text) for key in ("strings", "versions") for index, text in enumerate(value.get(key) or ())
    ]
    causes += [too_long(f"{path}.{where}", _TEXT) for where, text in texts if len(text) > _TEXT]
    versions = [("version", value["version"])] if "version" in value else []
    versions += [(f"versions[{index}]", version) for index, version in enumerate(value.get("versions") or ())]
    for where, version in versions:
        if not _SEMVER.fullmatch(version):
            detail = "must be a string compatible with semver.org spec 2.0.0"
            causes.append(invalid(f"{path}.{where}", version, detail))


def _partition_types(spec: Object, causes: Causes) -> None:
    """Every partition of the slice has its type as a string attribute (KEP-4815, KEP-5677)."""
    name, path = spec["partitionTypeAttribute"], "spec.partitionTypeAttribute"
    partitions = [
        (index, device) for index, device in enumerate(spec.get("devices") or ()) if device.get("consumesCounters")
    ]
    if not partitions:
        detail = "may only be set on a slice which declares devices that consume counters"
        causes.append(invalid(path, name, detail))
    malformed: Causes = []
    rules.fully_qualified_name(name, path, malformed)
    causes += malformed
    for index, device in partitions if not malformed else ():
        attributes, below = device.get("attributes") or {}, f"spec.devices[{index}].attributes[{name}]"
        found = attributes.get(name, attributes.get(name.removeprefix(f"{spec['driver']}/")))
        if found is None:
            detail = "device consumes counters and `partitionTypeAttribute` names this attribute, so it must be set"
            causes.append(required(below, detail))
        elif "string" not in found:
            detail = "must be a string value because `partitionTypeAttribute` names this attribute"
            causes.append(invalid(below, found, detail))


# -- counters ----------------------------------------------------------------------------------------------------------


def _counter_sets(sets: Sequence[Object], gates: FeatureGates, causes: Causes) -> None:
    rules.each_once((counter_set["name"] for counter_set in sets), "spec.sharedCounters", causes)
    for index, counter_set in enumerate(sets):
        path = f"spec.sharedCounters[{index}].counters"
        _counter_names(counter_set["counters"], path, causes)
        for name, counter in counter_set["counters"].items():
            rules.amount(counter["value"], f"{path}[{name}].value", causes)
            if counter.get("requestPolicy") is not None:
                below = f"{path}[{name}].requestPolicy"
                _request_policy(counter["requestPolicy"], counter["value"], below, gates, causes)


def _counter_names(counters: Mapping[str, Any], path: str, causes: Causes) -> None:
    if not counters:
        causes.append(required(path))
    for name in counters:
        rules.name(name, path, causes)


def _consumptions(consumptions: Sequence[Object], path: str, gates: FeatureGates, causes: Causes) -> None:
    rules.each_once((consumption["counterSet"] for consumption in consumptions), path, causes)
    for index, consumption in enumerate(consumptions):
        below = f"{path}[{index}]"
        _counter_names(consumption["counters"], f"{below}.counters", causes)
        for name, counter in consumption["counters"].items():
            _consumed(counter, f"{below}.counters[{name}]", gates, causes)
        groups = consumption.get("compatibilityGroups") or ()
        rules.each_once(groups, f"{below}.compatibilityGroups", causes)
        for place, group in enumerate(groups):
            rules.name(group, f"{below}.compatibilityGroups[{place}]", causes)


def _consumed(counter: Object, path: str, gates: FeatureGates, causes: Causes) -> None:
    """A fixed amount or, with KEP-5941, what the claim asks for. Without it, a counter without a value costs nothing:
    that is what remains when `valueFrom` was dropped."""
    fixed, asked = counter.get("value"), counter.get("valueFrom")
    one_of = "exactly one of `value` or `valueFrom` is required"
    if fixed is not None and asked is not None:
        causes.append(invalid(path, counter, f"{one_of}, but multiple fields are set"))
    elif fixed is None and asked is None and "DRASharedConsumableCapacity" in gates:
        causes.append(required(path, one_of))
    if fixed is not None:
        rules.amount(fixed, f"{path}.value", causes)
    if asked is not None:
        rules.qualified_name(asked["capacityName"], f"{path}.valueFrom.capacityName", causes)


# -- what may be asked of a capacity or counter ------------------------------------------------------------------------


def _request_policy(policy: Object, most: Any, path: str, gates: FeatureGates, causes: Causes) -> None:
    values, between = policy.get("validValues") or (), policy.get("validRange")
    if values and between is not None:
        detail = 'exactly one policy can be specified, cannot specify "validValues" and "validRange" at the same time'
        causes.append(forbidden(path, detail))
        return
    unreadable: Causes = []
    named = {"default": policy.get("default"), **{f"validValues[{i}]": value for i, value in enumerate(values)}}
    named |= {f"validRange.{key}": (between or {}).get(key) for key in ("min", "max", "step")}
    for field, value in named.items():
        if value is not None:
            rules.amount(value, f"{path}.{field}", unreadable)
    rules.amount(most, path, unreadable)
    causes += [cause for cause in unreadable if cause.field != path]  # the amount itself is reported where it stands
    if unreadable:
        return
    field = "validValues" if values else "validRange"
    if not values and between is None:
        if policy.get("default") is not None and quantity.parse(policy["default"]) > quantity.parse(most):
            detail = f"default is larger than capacity value: {most}"
            causes.append(invalid(f"{path}.default", str(policy["default"]), detail))
        return
    if policy.get("default") is None:
        causes.append(required(f"{path}.default", f"required when {field} is defined"))
    elif values:
        _valid_values(policy["default"], most, values, f"{path}.{field}", gates, causes)
    elif between is not None:
        _valid_range(policy["default"], most, between, f"{path}.{field}", gates, causes)


def _valid_values(
    default: Any, most: Any, values: Sequence[Any], path: str, gates: FeatureGates, causes: Causes
) -> None:
    parsed, whole = [quantity.parse(value) for value in values], quantity.parse(most)
    for index, (left, right) in enumerate(pairwise(parsed), 1):
        if left > right:
            causes.append(invalid(f"{path}[{index}]", str(values[index]), "values must be sorted in ascending order"))
    seen: set[Decimal] = set()
    for index, value in enumerate(parsed):
        if value > whole:
            detail = f"option is larger than capacity value: {most}"
            causes.append(invalid(f"{path}[{index}]", str(values[index]), detail))
        counted = _counted(value, gates)
        if counted in seen:
            causes.append(duplicate(f"{path}[{index}]", str(values[index])))
        seen.add(counted)
    if quantity.parse(default) not in parsed:
        detail = "default value is not valid according to the requestPolicy"
        causes.append(invalid(path, str(default), detail))


def _valid_range(default: Any, most: Any, between: Object, path: str, gates: FeatureGates, causes: Causes) -> None:
    if between.get("min") is None:
        causes.append(required(f"{path}.min", "required when validRange is defined"))
        return
    start, whole, usual = quantity.parse(between["min"]), quantity.parse(most), quantity.parse(default)
    if start > whole:
        causes.append(invalid(f"{path}.min", str(between["min"]), f"min is larger than capacity value: {most}"))
    if usual < start:
        causes.append(invalid(f"{path}.default", str(default), f"default is less than min: {between['min']}"))
    if between.get("max") is not None:
        end = quantity.parse(between["max"])
        if start > end:
            detail = f"min is larger than max: {between['max']}"
            causes.append(invalid(f"{path}.max", str(between["min"]), detail))
        if end > whole:
            detail = f"max is larger than capacity value: {most}"
            causes.append(invalid(f"{path}.max", str(between["max"]), detail))
        if usual > end:
            causes.append(invalid(f"{path}.default", str(default), f"default is more than max: {between['max']}"))
    if between.get("step") is not None:
        _steps(default, most, between, path, gates, causes)


def _steps(default: Any, most: Any, between: Object, path: str, gates: FeatureGates, causes: Causes) -> None:
    """The default and the largest amount are whole numbers of steps above the least."""
    step, start = quantity.parse(between["step"]), quantity.parse(between["min"])
    if step <= 0:
        causes.append(invalid(f"{path}.step", str(between["step"]), "must be greater than zero"))
        return
    if start + step > quantity.parse(most):
        first = quantity.canonical(quantity.render(start + step))
        detail = f"one step {first} is larger than capacity value: {most}"
        causes.append(invalid(f"{path}.step", str(between["step"]), detail))
    checked = [given for given in (default, between.get("max")) if given is not None]
    for given in (*checked, between["min"], between["step"]):
        if quantity.parse(given) > _LARGEST:
            causes.append(invalid(f"{path}.step", str(given), f"must not be larger than {_LARGEST}"))
            return
    for given in checked:
        over = _counted(quantity.parse(given), gates) - _counted(start, gates)
        if over % _counted(step, gates):
            detail = f"value is not a multiple of a given step ({between['step']}) from ({between['min']})"
            causes.append(invalid(f"{path}.step", str(given), detail))


def _counted(amount: Decimal, gates: FeatureGates) -> Decimal:
    """An amount as steps are counted: without DRAFractionalCapacityRange, in whole numbers, rounded up."""
    return amount if "DRAFractionalCapacityRange" in gates else Decimal(ceil(amount))


# -- what devices take of their node -----------------------------------------------------------------------------------


def _node_resources(resources: Mapping[str, Object], capacity: Object, path: str, causes: Causes) -> None:
    """KEP-5517."""
    for name, entry in resources.items():
        below = f"{path}[{name}]"
        if name not in _NODE_RESOURCES and not name.startswith(_HUGE_PAGES):
            causes.append(invalid(below, name, "must be a node allocatable resource name"))
        mapping, overhead = entry.get("mapping"), entry.get("overhead")
        if mapping is None and overhead is None:
            causes.append(required(below, "at least one of mapping or overhead must be set"))
        if mapping is not None:
            _mapping(mapping, capacity, f"{below}.mapping", causes)
        if overhead is not None:
            if not overhead:
                causes.append(invalid(f"{below}.overhead", "", "at least one of perPod or perContainer must be set"))
            for field, amount in overhead.items():
                if quantity.parse(amount) < 0:
                    causes.append(invalid(f"{below}.overhead.{field}", str(amount), "must be non-negative"))


def _mapping(mapping: Object, capacity: Object, path: str, causes: Causes) -> None:
    key, multiplier = mapping.get("capacityKey"), mapping.get("capacityMultiplier")
    if key is not None and key not in capacity:
        causes.append(not_found(f"{path}.capacityKey", key))
    if key is not None and multiplier is None:
        detail = "capacityMultiplier is required when capacityKey is set"
        causes.append(required(f"{path}.capacityMultiplier", detail))
    if multiplier is not None and key is None:
        causes.append(required(f"{path}.capacityKey", "capacityKey is required when capacityMultiplier is set"))
    if (key is None) == (mapping.get("deviceMultiplier") is None):
        causes.append(invalid(path, mapping, "exactly one of `capacityKey` or `deviceMultiplier` is required"))
    for field in ("capacityMultiplier", "deviceMultiplier"):
        if mapping.get(field) is not None and quantity.parse(mapping[field]) <= 0:
            causes.append(invalid(f"{path}.{field}", str(mapping[field]), "must be positive"))


# -- taint rules -------------------------------------------------------------------------------------------------------


def validate_taint_rule(new: Object, _old: Object | None) -> Causes:
    causes: Causes = []
    selector = new["spec"].get("deviceSelector") or {}
    for field, check in (("driver", rules.driver_name), ("pool", rules.pool_name), ("device", rules.name)):
        if selector.get(field) is not None:
            check(selector[field], f"spec.deviceSelector.{field}", causes)
    rules.taint(new["spec"]["taint"], "spec.taint", causes)
    return causes


def validate_taint_rule_status(new: Object, _old: Object) -> Causes:
    causes: Causes = []
    conditions((new.get("status") or {}).get("conditions") or (), "status.conditions", causes)
    return causes
