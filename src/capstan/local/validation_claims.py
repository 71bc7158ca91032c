"""`resource.k8s.io`: device classes, claims with their status, and claim templates (KEP-4381, 4816, 4817, 6080)."""

from __future__ import annotations

import ipaddress
from collections.abc import Mapping, Sequence
from typing import Any

from capstan import cel
from capstan.api.feature_gates import FeatureGates
from capstan.local import validation_devices as rules
from capstan.local.structural_errors import duplicate, forbidden, invalid, required
from capstan.local.validation import Causes, Object, annotation_values, immutable, key_error, labels
from capstan.local.validation_conditions import conditions
from capstan.local.validation_pods import node_selector

_NATIVE = "kubernetes.io/"
_QUOTA_PREFIX = "requests."


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


def validate_claim(new: Object, old: Object | None, gates: FeatureGates) -> Causes:
    causes: Causes = []
    if old is None:
        claim_spec(new["spec"], "spec", gates, causes)
    else:
        immutable(new["spec"], old["spec"], "spec", causes)
    return causes


def validate_template(new: Object, old: Object | None, gates: FeatureGates) -> Causes:
    causes: Causes = []
    if old is None:
        metadata = new["spec"].get("metadata") or {}
        labels(metadata.get("labels") or {}, "spec.metadata.labels", causes)
        annotation_values(metadata.get("annotations") or {}, "spec.metadata.annotations", causes)
        claim_spec(new["spec"]["spec"], "spec.spec", gates, causes)
    else:
        immutable(new["spec"], old["spec"], "spec", causes)
    return causes


def validate_class(new: Object, old: Object | None, gates: FeatureGates) -> Causes:
    """What did not change was valid when it was stored."""
    causes: Causes = []
    spec, before = new["spec"], old["spec"] if old is not None else {}
    if spec.get("selectors") != before.get("selectors"):
        rules.selectors(spec.get("selectors") or (), "spec.selectors", gates, causes)
    if spec.get("config") != before.get("config"):
        for index, config in enumerate(spec.get("config") or ()):
            rules.opaque_config(config, f"spec.config[{index}]", causes)
    resource = spec.get("extendedResourceName")
    if resource is not None and not _is_extended_resource(resource):
        causes.append(invalid("spec.extendedResourceName", resource, "must be a valid extended resource name"))
    return causes


def _is_extended_resource(resource: str) -> bool:
    """A qualified name outside of Kubernetes' own domains that a quota can name, too."""
    if "/" not in resource or _NATIVE in resource or resource.startswith(_QUOTA_PREFIX):
        return False
    return key_error(_QUOTA_PREFIX + resource) is None


# -- what a claim asks for ---------------------------------------------------------------------------------------------


class _Names:
    """The requests of a claim by the names that constraints, configs and results use: `request`, `request/sub`."""

    def __init__(self, devices: Object) -> None:
        self._known: set[str] = set()
        for request in devices.get("requests") or ():
            self._known.add(request["name"])
            self._known.update(f"{request['name']}/{sub['name']}" for sub in request.get("firstAvailable") or ())

    def check(self, used: str, path: str, causes: Causes) -> None:
        if used not in self._known:
            detail = "must be the name of a request in the claim or the name of a request and a subrequest"
            causes.append(invalid(path, used, f"{detail} separated by '/'"))

    def check_all(self, used: Sequence[str], path: str, causes: Causes) -> None:
        rules.each_once(used, path, causes)
        for index, name in enumerate(used):
            self.check(name, f"{path}[{index}]", causes)


def claim_spec(spec: Object, path: str, gates: FeatureGates, causes: Causes) -> None:
    devices = spec.get("devices") or {}
    names, constraints = _Names(devices), devices.get("constraints") or ()
    requests = devices.get("requests") or ()
    rules.each_once((request["name"] for request in requests), f"{path}.devices.requests", causes)
    for index, request in enumerate(requests):
        _request(request, f"{path}.devices.requests[{index}]", constraints, gates, causes)
    for index, constraint in enumerate(constraints):
        _constraint(constraint, f"{path}.devices.constraints[{index}]", names, causes)
    for index, config in enumerate(devices.get("config") or ()):
        below = f"{path}.devices.config[{index}]"
        names.check_all(config.get("requests") or (), f"{below}.requests", causes)
        rules.opaque_config(config, below, causes)


def _request(request: Object, path: str, constraints: Sequence[Object], gates: FeatureGates, causes: Causes) -> None:
    exactly, alternatives = request.get("exactly"), request.get("firstAvailable")
    one_of = "exactly one of `exactly` or `firstAvailable` is required"
    if exactly is not None and alternatives:
        causes.append(invalid(path, None, f"{one_of}, but multiple fields are set"))
    elif exactly is not None:
        _asked(exactly, f"{path}.exactly", request["name"], constraints, gates, causes)
    elif alternatives:
        below = f"{path}.firstAvailable"
        rules.each_once((alternative["name"] for alternative in alternatives), below, causes)
        for index, alternative in enumerate(alternatives):
            full = f"{request['name']}/{alternative['name']}"
            _asked(alternative, f"{below}[{index}]", full, constraints, gates, causes)
    else:
        causes.append(required(path, one_of))


def _asked(
    asked: Object, path: str, name: str, constraints: Sequence[Object], gates: FeatureGates, causes: Causes
) -> None:
    """An exact request, or one alternative."""
    count = asked.get("count", 0)
    if asked.get("allocationMode") == "All":
        if count:
            causes.append(invalid(f"{path}.count", count, "must not be specified when allocationMode is 'All'"))
    elif count <= 0:
        causes.append(invalid(f"{path}.count", count, "must be greater than zero"))
    rules.selectors(asked.get("selectors") or (), f"{path}.selectors", gates, causes)
    rules.tolerations(asked.get("tolerations") or (), f"{path}.tolerations", causes)
    _derived(asked.get("derivedAttributes") or (), f"{path}.derivedAttributes", name, constraints, causes)
    for capacity, wanted in ((asked.get("capacity") or {}).get("requests") or {}).items():
        below = f"{path}.capacity.requests"
        rules.qualified_name(capacity, below, causes)
        rules.amount(wanted, f"{below}[{capacity}]", causes)


def _derived(attributes: Sequence[Object], path: str, name: str, constraints: Sequence[Object], causes: Causes) -> None:
    rules.each_once((attribute["name"] for attribute in attributes), path, causes)
    for index, attribute in enumerate(attributes):
        below = f"{path}[{index}]"
        rules.fully_qualified_name(attribute["name"], f"{below}.name", causes)
        if not any(_uses(constraint, attribute["name"], name) for constraint in constraints):
            detail = "must be referenced by at least one matchAttribute or distinctAttribute constraint"
            causes.append(invalid(f"{below}.name", attribute["name"], f"{detail} targeting this request"))
        try:
            cel.device.compile_derived_attribute(attribute["expression"])
        except cel.CompileError as wrong:
            detail = f"compilation failed: {wrong}"
            causes.append(invalid(f"{below}.expression", attribute["expression"], detail))


def _uses(constraint: Object, attribute: str, name: str) -> bool:
    """Whether a constraint is about this attribute of the request `name`, or of the one it is an alternative of."""
    if attribute not in (constraint.get("matchAttribute"), constraint.get("distinctAttribute")):
        return False
    requests = constraint.get("requests") or ()
    return not requests or name in requests or name.partition("/")[0] in requests


def _constraint(constraint: Object, path: str, names: _Names, causes: Causes) -> None:
    names.check_all(constraint.get("requests") or (), f"{path}.requests", causes)
    given = [key for key in ("matchAttribute", "distinctAttribute") if constraint.get(key) is not None]
    if len(given) != 1:
        one_of = 'exactly one of "matchAttribute" or "distinctAttribute" is required'
        more = f"{one_of}, but multiple fields are set"
        causes.append(invalid(path, given, more) if given else required(path, one_of))
    for key in given:
        rules.fully_qualified_name(constraint[key], f"{path}.{key}", causes)


# -- what a claim was given --------------------------------------------------------------------------------------------


def validate_claim_status(new: Object, old: Object) -> Causes:
    """An allocation does not change while it stands; whoever uses the claim keeps it from being deallocated."""
    causes: Causes = []
    after, before = new.get("status") or {}, old.get("status") or {}
    allocation, earlier = after.get("allocation"), before.get("allocation")
    _users(after.get("reservedFor") or [], before.get("reservedFor") or [], new, causes)
    if earlier is not None and allocation is not None:
        immutable(allocation, earlier, "status.allocation", causes)
    elif allocation is not None:
        if new["metadata"].get("deletionTimestamp"):
            causes.append(forbidden("status.allocation", "a claim that is being deleted cannot be allocated"))
        _allocation(allocation, _Names(new["spec"].get("devices") or {}), causes)
    if after.get("devices") != before.get("devices"):
        _device_statuses(after.get("devices") or (), allocation or {}, causes)
    return causes


def _users(users: list[Object], earlier: list[Object], claim: Object, causes: Causes) -> None:
    path = "status.reservedFor"
    rules.each_once((user["uid"] for user in users), path, causes)
    if users and (claim.get("status") or {}).get("allocation") is None:
        causes.append(forbidden(path, "may not be specified when `allocated` is not set"))
    elif claim["metadata"].get("deletionTimestamp") and any(user not in earlier for user in users):
        detail = "new entries may not be added while `deallocationRequested` or `deletionTimestamp` are set"
        causes.append(forbidden(path, detail))


def _allocation(allocation: Object, names: _Names, causes: Causes) -> None:
    devices = allocation.get("devices") or {}
    for index, result in enumerate(devices.get("results") or ()):
        _result(result, f"status.allocation.devices.results[{index}]", names, causes)
    for index, config in enumerate(devices.get("config") or ()):
        path = f"status.allocation.devices.config[{index}]"
        names.check_all(config.get("requests") or (), f"{path}.requests", causes)
        rules.opaque_config(config, path, causes)
    if selector := allocation.get("nodeSelector"):
        node_selector(selector, "status.allocation.nodeSelector", causes)


def _result(result: Object, path: str, names: _Names, causes: Causes) -> None:
    names.check(result["request"], f"{path}.request", causes)
    _device_id(result, path, causes)
    rules.binding_conditions(result, path, causes)
    rules.tolerations(result.get("tolerations") or (), f"{path}.tolerations", causes)
    rules.skipped_operations(result.get("skipNodeOperations") or (), f"{path}.skipNodeOperations", causes)
    _amounts(result.get("consumedCapacity") or {}, f"{path}.consumedCapacity", causes)
    consumed = result.get("consumedCounters") or ()
    rules.each_once((one["counterSet"] for one in consumed), f"{path}.consumedCounters", causes)
    for index, one in enumerate(consumed):
        below = f"{path}.consumedCounters[{index}].counters"
        for counter in one["counters"]:
            rules.name(counter, below, causes)
        _amounts(one["counters"], below, causes)


def _amounts(amounts: Mapping[str, Any], path: str, causes: Causes) -> None:
    for name, amount in amounts.items():
        rules.amount(amount, f"{path}[{name}]", causes)


def _device_id(holder: Object, path: str, causes: Causes) -> None:
    rules.driver_name(holder["driver"], f"{path}.driver", causes)
    rules.pool_name(holder["pool"], f"{path}.pool", causes)
    rules.name(holder["device"], f"{path}.device", causes)
    if (share := holder.get("shareID")) is not None:
        rules.share_id(share, f"{path}.shareID", causes)


def _device_statuses(statuses: Sequence[Object], allocation: Object, causes: Causes) -> None:
    """What drivers say about the devices (KEP-4817): only about allocated ones, about each once."""
    allocated = {_key(result) for result in (allocation.get("devices") or {}).get("results") or ()}
    seen: set[tuple[Any, ...]] = set()
    for index, device in enumerate(statuses):
        path, key = f"status.devices[{index}]", _key(device)
        named = "/".join(filter(None, key))
        _device_id(device, path, causes)
        if key not in allocated:
            causes.append(invalid(path, named, "must be an allocated device in the claim"))
        if key in seen:
            causes.append(duplicate(path, named))
        seen.add(key)
        conditions(device.get("conditions") or (), f"{path}.conditions", causes)
        if device.get("data") is not None:
            rules.data(device["data"], f"{path}.data", causes)
        addresses = (device.get("networkData") or {}).get("ips") or ()
        rules.each_once(addresses, f"{path}.networkData.ips", causes)
        for place, address in enumerate(addresses):
            _interface_address(address, f"{path}.networkData.ips[{place}]", causes)


def _key(device: Object) -> tuple[Any, ...]:
    return (device["driver"], device["pool"], device["device"], device.get("shareID"))


def _interface_address(address: str, path: str, causes: Causes) -> None:
    try:
        found = ipaddress.ip_interface(address)
    except ValueError:
        found = None
    if found is None or "/" not in address:
        detail = "must be a valid address in CIDR form, (e.g. 10.9.8.7/24 or 2001:db8::1/64)"
        causes.append(invalid(path, address, detail))
    elif str(found) != address:
        causes.append(invalid(path, address, f'must be in canonical form ("{found}")'))
