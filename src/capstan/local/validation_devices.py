"""`resource.k8s.io`: device classes, claims, templates, slices, taint rules.

Rules: k8s.io/kubernetes pkg/apis/resource/validation, with the limits of KEP-4381, 4815, 4816, 5055 and 5075. The
schema has checked types, enumerations, required fields and list lengths.
"""

from __future__ import annotations

import re
import time
from itertools import pairwise
from typing import Any

import msgspec

from capstan import cel
from capstan.api import clock, quantity
from capstan.local.structural_errors import duplicate, forbidden, format_error, invalid, not_found, required, too_many
from capstan.local.validation import Causes, Object, immutable, key_error
from capstan.local.validation_pods import node_selector

_DOMAIN_LENGTH = 63
_ID_LENGTH = 32
_ATTRIBUTES_AND_CAPACITIES = 32
_ATTRIBUTE_VALUES = 48
_RICH_DEVICES = 64
_DEVICES = 128
_PARAMETERS = 10 * 1024
_COUNTERS_PER_DEVICE = 32
_CONSUMPTIONS = 2
_IDENTIFIER = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")
_SEMVER = re.compile(
    r"(0|[1-9]\d*)\.(0|[1-9]\d*)\.(0|[1-9]\d*)"
    r"(-(0|[1-9]\d*|\d*[A-Za-z-][0-9A-Za-z-]*)(\.(0|[1-9]\d*|\d*[A-Za-z-][0-9A-Za-z-]*))*)?(\+[0-9A-Za-z-]+(\.[0-9A-Za-z-]+)*)?"
)
_VALUES = ("int", "bool", "string", "version", "ints", "bools", "strings", "versions")


def default_claim(obj: Object) -> None:
    """One device unless something else is asked for."""
    default_claim_spec(obj["spec"])


def default_template(obj: Object) -> None:
    default_claim_spec(obj["spec"]["spec"])


def default_claim_spec(spec: Object) -> None:
    for request in (spec.get("devices") or {}).get("requests") or ():
        exactly = request.get("exactly")
        if exactly is None and request.get("deviceClassName"):
            exactly = request  # v1beta1
            exactly.setdefault("allocationMode", "ExactCount")
        for one in (exactly, *(request.get("firstAvailable") or ())):
            if one is not None and one.get("allocationMode") == "ExactCount" and not one.get("count"):
                one["count"] = 1
            for toleration in (one or {}).get("tolerations") or ():
                toleration.setdefault("operator", "Equal")


def default_slice(obj: Object) -> None:
    """A taint counts from when it was first seen, unless it says so itself; `basic` is where v1beta1 keeps it."""
    for device in obj["spec"].get("devices") or ():
        for taint in (device.get("basic") or device).get("taints") or ():
            _stamp(taint)


def default_taint_rule(obj: Object) -> None:
    if (taint := obj["spec"].get("taint")) is not None:
        _stamp(taint)


def _stamp(taint: Object) -> None:
    if not taint.get("timeAdded"):
        taint["timeAdded"] = clock.render(time.time())


def validate_claim(new: Object, old: Object | None) -> Causes:
    causes: Causes = []
    if old is None:
        claim_spec(new["spec"], "spec", causes)
    else:
        immutable(new["spec"], old["spec"], "spec", causes)
    return causes


def validate_template(new: Object, old: Object | None) -> Causes:
    causes: Causes = []
    if old is None:
        claim_spec(new["spec"]["spec"], "spec.spec", causes)
    else:
        immutable(new["spec"], old["spec"], "spec", causes)
    return causes


def claim_spec(spec: Object, path: str, causes: Causes) -> None:
    devices = spec.get("devices") or {}
    names = _requests(devices.get("requests") or (), f"{path}.devices.requests", causes)
    for index, constraint in enumerate(devices.get("constraints") or ()):
        below = f"{path}.devices.constraints[{index}]"
        _request_names(constraint.get("requests") or (), names, f"{below}.requests", causes)
        given = [key for key in ("matchAttribute", "distinctAttribute") if constraint.get(key) is not None]
        if len(given) != 1:
            detail = "exactly one of `matchAttribute` and `distinctAttribute` is required"
            causes.append(required(below, detail) if not given else invalid(below, given, detail))
        for key in given:
            _qualified(constraint[key], f"{below}.{key}", causes, full=True)
    for index, config in enumerate(devices.get("config") or ()):
        below = f"{path}.devices.config[{index}]"
        _request_names(config.get("requests") or (), names, f"{below}.requests", causes)
        _config(config, below, causes)


def _requests(requests: Any, path: str, causes: Causes) -> set[str]:
    """The names constraints and configs may use: `request` and `request/alternative`."""
    names: set[str] = set()
    for index, request in enumerate(requests):
        below, name = f"{path}[{index}]", request["name"]
        if name in names:
            causes.append(duplicate(f"{below}.name", name))
        names.add(name)
        exactly, alternatives = request.get("exactly"), request.get("firstAvailable")
        if (exactly is None) == (not alternatives):
            detail = "exactly one of `exactly` or `firstAvailable` is required"
            causes.append(required(below, detail) if exactly is None else invalid(below, None, detail))
            continue
        if exactly is not None:
            _exact(exactly, f"{below}.exactly", causes)
        for place, alternative in enumerate(alternatives or ()):
            full = f"{name}/{alternative['name']}"
            if full in names:
                causes.append(duplicate(f"{below}.firstAvailable[{place}].name", alternative["name"]))
            names.add(full)
            _exact(alternative, f"{below}.firstAvailable[{place}]", causes)
    return names


def _exact(request: Object, path: str, causes: Causes) -> None:
    count = request.get("count", 0)
    if request.get("allocationMode") == "All":
        if count:
            causes.append(invalid(f"{path}.count", count, "must not be specified when allocationMode is 'All'"))
    elif count <= 0:
        causes.append(invalid(f"{path}.count", count, "must be greater than zero"))
    _selectors(request.get("selectors") or (), f"{path}.selectors", causes)
    for index, toleration in enumerate(request.get("tolerations") or ()):
        _toleration(toleration, f"{path}.tolerations[{index}]", causes)
    for name, amount in ((request.get("capacity") or {}).get("requests") or {}).items():
        below = f"{path}.capacity.requests"
        _qualified(name, below, causes)
        _amount(amount, f"{below}[{name}]", causes)


def _request_names(used: Any, names: set[str], path: str, causes: Causes) -> None:
    seen: set[str] = set()
    for index, name in enumerate(used):
        if name in seen:
            causes.append(duplicate(f"{path}[{index}]", name))
        seen.add(name)
        if name not in names:
            causes.append(not_found(f"{path}[{index}]", name))


def _selectors(selectors: Any, path: str, causes: Causes) -> None:
    for index, selector in enumerate(selectors):
        if (expression := selector.get("cel")) is None:
            causes.append(required(f"{path}[{index}].cel"))
            continue
        source = expression["expression"]
        try:
            cel.device.compile_selector(source)
        except cel.CompileError as wrong:
            causes.append(invalid(f"{path}[{index}].cel.expression", source, f"compilation failed: {wrong}"))


def _config(config: Object, path: str, causes: Causes) -> None:
    if (opaque := config.get("opaque")) is None:
        causes.append(required(f"{path}.opaque"))
    elif len(msgspec.json.encode(opaque.get("parameters"))) > _PARAMETERS:
        causes.append(invalid(f"{path}.opaque.parameters", "…", f"must be at most {_PARAMETERS} bytes long"))


def _toleration(toleration: Object, path: str, causes: Causes) -> None:
    key, operator = toleration.get("key", ""), toleration.get("operator", "Equal")
    if key and (wrong := key_error(key)):
        causes.append(invalid(f"{path}.key", key, wrong))
    if operator == "Exists" and toleration.get("value"):
        causes.append(invalid(f"{path}.value", toleration["value"], "must be empty for operator `Exists`"))
    if operator == "Equal" and not key:
        causes.append(required(f"{path}.key", "must be set for operator `Equal`"))
    if toleration.get("tolerationSeconds") is not None and toleration.get("effect") not in (None, "NoExecute"):
        causes.append(
            invalid(f"{path}.effect", toleration["effect"], "must be 'NoExecute' when `tolerationSeconds` is set")
        )


def _qualified(name: str, path: str, causes: Causes, *, full: bool = False) -> None:
    """`domain/identifier`, or `identifier` alone, which then belongs to the driver's domain."""
    domain, slash, identifier = name.rpartition("/")
    if slash or full:
        if not domain:
            causes.append(invalid(path, name, "must include a domain"))
        elif (wrong := format_error("k8s-long-name", domain)) or len(domain) > _DOMAIN_LENGTH:
            causes.append(invalid(path, name, wrong or f"the domain must be at most {_DOMAIN_LENGTH} characters long"))
    if len(identifier) > _ID_LENGTH or not _IDENTIFIER.fullmatch(identifier):
        detail = f"a valid C identifier of at most {_ID_LENGTH} characters is required after the domain"
        causes.append(invalid(path, name, detail))


def _amount(value: Any, path: str, causes: Causes) -> None:
    try:
        if quantity.parse(value) < 0:
            causes.append(invalid(path, value, "must be greater than or equal to 0"))
    except quantity.InvalidQuantity as wrong:
        causes.append(invalid(path, value, str(wrong)))


def validate_class(new: Object, _old: Object | None) -> Causes:
    causes: Causes = []
    spec = new["spec"]
    _selectors(spec.get("selectors") or (), "spec.selectors", causes)
    for index, config in enumerate(spec.get("config") or ()):
        _config(config, f"spec.config[{index}]", causes)
    extended = spec.get("extendedResourceName")
    if extended is not None:
        domain = extended.partition("/")[0]
        if "/" not in extended or (wrong := key_error(extended)) or domain.endswith("kubernetes.io"):
            detail = "must be an extended resource name such as example.com/gpu"
            causes.append(
                invalid("spec.extendedResourceName", extended, wrong if "/" in extended and wrong else detail)
            )
    return causes


def validate_slice(new: Object, old: Object | None) -> Causes:
    causes: Causes = []
    spec = new["spec"]
    if old is not None:
        before = old["spec"]
        immutable(spec.get("driver"), before.get("driver"), "spec.driver", causes)
        immutable(spec["pool"].get("name"), before["pool"].get("name"), "spec.pool.name", causes)
        immutable(spec.get("nodeName"), before.get("nodeName"), "spec.nodeName", causes)
        if spec == before:
            return causes
    for part in spec["pool"]["name"].split("/"):
        if wrong := format_error("k8s-long-name", part) or ("" if part else "must not be empty"):
            causes.append(invalid("spec.pool.name", spec["pool"]["name"], wrong))
    _where(spec, "spec", ("nodeName", "nodeSelector", "allNodes", "perDeviceNodeSelection"), causes)
    if selector := spec.get("nodeSelector"):
        if len(selector.get("nodeSelectorTerms") or ()) != 1:
            causes.append(
                invalid(
                    "spec.nodeSelector.nodeSelectorTerms", len(selector), "must have exactly one node selector term"
                )
            )
        node_selector(selector, "spec.nodeSelector", causes)
    devices, counters = spec.get("devices") or (), spec.get("sharedCounters") or ()
    if devices and counters:
        causes.append(forbidden("spec", "only one of `sharedCounters` and `devices` may be set in one ResourceSlice"))
    rich = any(device.get("taints") or device.get("consumesCounters") or _has_lists(device) for device in devices)
    limit = _RICH_DEVICES if rich else _DEVICES
    if len(devices) > limit:
        causes.append(too_many("spec.devices", len(devices), limit))
    _counter_sets(counters, causes)
    names: set[str] = set()
    for index, device in enumerate(devices):
        path = f"spec.devices[{index}]"
        if device["name"] in names:
            causes.append(duplicate(f"{path}.name", device["name"]))
        names.add(device["name"])
        _device(device, path, causes, placed=bool(spec.get("perDeviceNodeSelection")))
    return causes


def _has_lists(device: Object) -> bool:
    return any(key.endswith("s") for value in (device.get("attributes") or {}).values() for key in value)


def _where(holder: Object, path: str, choices: tuple[str, ...], causes: Causes) -> None:
    given = [key for key in choices if holder.get(key)]
    if len(given) != 1:
        words = ", ".join(f"`{key}`" for key in choices)
        detail = f"exactly one of {words} is required"
        causes.append(required(path, detail) if not given else invalid(path, given, detail))


def _counter_sets(sets: Any, causes: Causes) -> None:
    names: set[str] = set()
    for index, counter_set in enumerate(sets):
        path = f"spec.sharedCounters[{index}]"
        if counter_set["name"] in names:
            causes.append(duplicate(f"{path}.name", counter_set["name"]))
        names.add(counter_set["name"])
        _counters(counter_set["counters"], f"{path}.counters", causes)


def _counters(counters: Object, path: str, causes: Causes) -> None:
    for name, counter in counters.items():
        if wrong := format_error("k8s-short-name", name):
            causes.append(invalid(path, name, wrong))
        _amount(counter["value"], f"{path}[{name}].value", causes)


def _device(device: Object, path: str, causes: Causes, *, placed: bool) -> None:
    attributes, capacity = device.get("attributes") or {}, device.get("capacity") or {}
    if len(attributes) + len(capacity) > _ATTRIBUTES_AND_CAPACITIES:
        detail = f"the total number of attributes and capacities must not exceed {_ATTRIBUTES_AND_CAPACITIES}"
        causes.append(invalid(path, len(attributes) + len(capacity), detail))
    values = sum(len(one) if isinstance(one, list) else 1 for value in attributes.values() for one in value.values())
    if values > _ATTRIBUTE_VALUES:
        detail = f"the total number of attribute values must not exceed {_ATTRIBUTE_VALUES}"
        causes.append(invalid(f"{path}.attributes", values, detail))
    for name, value in attributes.items():
        _qualified(name, f"{path}.attributes", causes)
        _attribute(value, f"{path}.attributes[{name}]", causes)
    for name, entry in capacity.items():
        _qualified(name, f"{path}.capacity", causes)
        _amount(entry["value"], f"{path}.capacity[{name}].value", causes)
        if policy := entry.get("requestPolicy"):
            if not device.get("allowMultipleAllocations"):
                detail = "allowMultipleAllocations must be true"
                causes.append(invalid(f"{path}.capacity[{name}].requestPolicy", policy, detail))
            _request_policy(policy, entry["value"], f"{path}.capacity[{name}].requestPolicy", causes)
    consumptions = device.get("consumesCounters") or ()
    if len(consumptions) > _CONSUMPTIONS:
        causes.append(too_many(f"{path}.consumesCounters", len(consumptions), _CONSUMPTIONS))
    sets: set[str] = set()
    for index, consumption in enumerate(consumptions):
        below = f"{path}.consumesCounters[{index}]"
        if consumption["counterSet"] in sets:
            causes.append(duplicate(f"{below}.counterSet", consumption["counterSet"]))
        sets.add(consumption["counterSet"])
        _counters(consumption["counters"], f"{below}.counters", causes)
    for index, taint in enumerate(device.get("taints") or ()):
        if wrong := key_error(taint["key"]):
            causes.append(invalid(f"{path}.taints[{index}].key", taint["key"], wrong))
    if placed:
        _where(device, path, ("nodeName", "nodeSelector", "allNodes"), causes)
    else:
        for key in ("nodeName", "nodeSelector", "allNodes"):
            if device.get(key):
                causes.append(
                    invalid(f"{path}.{key}", device[key], "`perDeviceNodeSelection` must be true to set this")
                )
    if bool(device.get("bindingConditions")) != bool(device.get("bindingFailureConditions")):
        detail = "bindingConditions and bindingFailureConditions must be set together"
        causes.append(invalid(path, device.get("bindingConditions") or [], detail))


def _attribute(value: Object, path: str, causes: Causes) -> None:
    given = [key for key in _VALUES if key in value]
    if len(given) != 1:
        detail = "exactly one value must be specified"
        causes.append(required(path, detail) if not given else invalid(path, value, detail))
    for version in [value["version"]] if "version" in value else value.get("versions") or ():
        if not _SEMVER.fullmatch(version):
            causes.append(invalid(f"{path}.version", version, "must be a string compatible with semver.org spec 2.0.0"))


def _request_policy(policy: Object, capacity: Any, path: str, causes: Causes) -> None:
    found = len(causes)
    values, between = policy.get("validValues"), policy.get("validRange")
    if values and between:
        causes.append(forbidden(f"{path}.validRange", "only one of `validValues` and `validRange` may be set"))
    if (values or between) and policy.get("default") is None:
        causes.append(required(f"{path}.default", "required when `validValues` or `validRange` is set"))
    if policy.get("default") is not None:
        _amount(policy["default"], f"{path}.default", causes)
    for index, value in enumerate(values or ()):
        _amount(value, f"{path}.validValues[{index}]", causes)
    for key, value in (between or {}).items():
        _amount(value, f"{path}.validRange.{key}", causes)
    if between and between.get("min") is None:
        causes.append(required(f"{path}.validRange.min"))
    if len(causes) == found:
        _policy_values(policy, capacity, path, causes)


def _policy_values(policy: Object, capacity: Any, path: str, causes: Causes) -> None:
    """How the amounts of a policy fit together, and into the capacity; each of them is known to be readable."""
    try:
        whole = quantity.parse(capacity)
    except quantity.InvalidQuantity:
        return  # reported where it stands
    default = None if policy.get("default") is None else quantity.parse(policy["default"])
    if default is not None and default > whole:
        causes.append(invalid(f"{path}.default", policy["default"], "must not exceed the capacity"))
    if given := policy.get("validValues"):
        values = list(map(quantity.parse, given))
        if any(left >= right for left, right in pairwise(values)):
            causes.append(invalid(f"{path}.validValues", given, "must be in ascending order, each value once"))
        if max(values) > whole:
            causes.append(invalid(f"{path}.validValues", given, "must not exceed the capacity"))
        if default not in values:
            causes.append(invalid(f"{path}.default", policy["default"], "must be one of `validValues`"))
    if between := policy.get("validRange"):
        least, step = quantity.parse(between["min"]), quantity.parse(between.get("step") or 0)
        most = whole if between.get("max") is None else quantity.parse(between["max"])
        if most > whole:
            causes.append(invalid(f"{path}.validRange.max", between["max"], "must not exceed the capacity"))
        if least > most:
            causes.append(invalid(f"{path}.validRange.min", between["min"], "must not exceed `max` or the capacity"))
        if "step" in between and step == 0:
            causes.append(invalid(f"{path}.validRange.step", between["step"], "must be greater than 0"))
        if least + step > whole:
            causes.append(
                invalid(f"{path}.validRange.step", between.get("step"), "`min` + `step` exceeds the capacity")
            )
        for name, value in (("default", default), ("validRange.max", most if "max" in between else None)):
            if value is not None and not least <= value <= most:
                causes.append(invalid(f"{path}.{name}", str(value), "must be between `min` and `max`"))
            elif value is not None and step and (value - least) % step:
                causes.append(invalid(f"{path}.{name}", str(value), "must be a whole number of steps above `min`"))


def validate_claim_status(new: Object, old: Object) -> Causes:
    """An allocation does not change while it stands; whoever uses the claim keeps it from being deallocated."""
    causes: Causes = []
    after, before = new.get("status") or {}, old.get("status") or {}
    names = {consumer["uid"] for consumer in after.get("reservedFor") or ()}
    if len(names) < len(after.get("reservedFor") or ()):
        causes.append(duplicate("status.reservedFor", sorted(names)))
    allocation, earlier = after.get("allocation"), before.get("allocation")
    if after.get("reservedFor") and allocation is None:
        causes.append(forbidden("status.reservedFor", "may not be specified when `allocated` is not set"))
    if earlier is not None and allocation is not None and allocation != earlier:
        causes.append(invalid("status.allocation", allocation, "field is immutable"))
    if new["metadata"].get("deletionTimestamp") and earlier is None and allocation is not None:
        causes.append(forbidden("status.allocation", "a claim that is being deleted cannot be allocated"))
    if allocation is not None and allocation != earlier:
        _allocation(allocation, new, causes)
    given = set(_device_keys((allocation or {}).get("devices", {}).get("results") or ()))
    for index, device in enumerate(after.get("devices") or ()):
        if next(iter(_device_keys([device]))) not in given:
            causes.append(invalid(f"status.devices[{index}]", device, "must be an allocated device in the claim"))
    return causes


def _device_keys(devices: Any) -> list[tuple[Any, ...]]:
    return [(device["driver"], device["pool"], device["device"], device.get("shareID")) for device in devices]


def _allocation(allocation: Object, claim: Object, causes: Causes) -> None:
    names: set[str] = set()
    for request in (claim["spec"].get("devices") or {}).get("requests") or ():
        names.add(request["name"])
        names.update(f"{request['name']}/{sub['name']}" for sub in request.get("firstAvailable") or ())
    path = "status.allocation.devices.results"
    for index, result in enumerate((allocation.get("devices") or {}).get("results") or ()):
        if result["request"] not in names:
            causes.append(not_found(f"{path}[{index}].request", result["request"]))
    if selector := allocation.get("nodeSelector"):
        node_selector(selector, "status.allocation.nodeSelector", causes)


def validate_taint_rule(new: Object, _old: Object | None) -> Causes:
    causes: Causes = []
    key = new["spec"]["taint"]["key"]
    if wrong := key_error(key):
        causes.append(invalid("spec.taint.key", key, wrong))
    return causes
