"""What the API server refuses of `resource.k8s.io`, in upstream's words (dra.md, section 1.3)."""

from __future__ import annotations

import copy
from typing import Any

import pytest
from tests.local.types_samples import Object, placed

from capstan.api import feature_gates
from capstan.local.types import ResourceType, builtin_types

V1 = "resource.k8s.io/v1"
ALL = feature_gates.FeatureGates(frozenset(feature_gates.GATES))


def without(*gates: str) -> feature_gates.FeatureGates:
    return feature_gates.FeatureGates(ALL.on - set(gates))


def kind(name: str, gates: feature_gates.FeatureGates = ALL) -> ResourceType:
    return {(item.api_version, item.kind): item for item in builtin_types(gates)}[V1, name]


def created(obj: Object, gates: feature_gates.FeatureGates = ALL) -> Object:
    item = kind(obj["kind"], gates)
    return item.prepare_create(placed(copy.deepcopy(obj), item))


def complaints(obj: Object, old: Object | None = None, gates: feature_gates.FeatureGates = ALL) -> dict[str, str]:
    return {cause.field: cause.message for cause in kind(obj["kind"], gates).validate(obj, old)}


def refused(obj: Object, field: str, words: str) -> None:
    found = complaints(created(obj))
    assert words in found.get(field, ""), found


# -- claims ------------------------------------------------------------------------------------------------------------


def claim(*requests: Object, **devices: Any) -> Object:
    spec = {"devices": {"requests": list(requests), **devices}}
    return {"apiVersion": V1, "kind": "ResourceClaim", "metadata": {"name": "c"}, "spec": spec}


def exactly(**more: Any) -> Object:
    return {"name": "gpu", "exactly": {"deviceClassName": "g", **more}}


GPU = exactly()
SUB = {"name": "a", "deviceClassName": "b"}
AT = "spec.devices.requests[0]"
NAMED = "must be the name of a request in the claim or the name of a request and a subrequest separated by '/'"
MATCH = [{"matchAttribute": "a.b/c"}]


def config(**opaque: Any) -> Object:
    return {"opaque": {"driver": "d.example.com", "parameters": {}, **opaque}}


def derived(name: str = "a.b/c", expression: str = "1") -> Object:
    return exactly(derivedAttributes=[{"name": name, "expression": expression}])


CLAIM_ERRORS: list[tuple[Object, str, str]] = [
    (claim({"name": "gpu"}), AT, "Required value: exactly one of `exactly` or `firstAvailable` is required"),
    (claim({**GPU, "firstAvailable": [SUB]}), AT, "is required, but multiple fields are set"),
    (claim(GPU, GPU), "spec.devices.requests[1]", 'Duplicate value: "gpu"'),
    (claim({"name": "gpu", "firstAvailable": [SUB, SUB]}), f"{AT}.firstAvailable[1]", 'Duplicate value: "a"'),
    (
        claim({"name": "gpu", "firstAvailable": [{**SUB, "name": f"a{n}"} for n in range(9)]}),
        f"{AT}.firstAvailable",
        "Too many: 9",
    ),
    (claim({"name": "gpu", "exactly": {}}), f"{AT}.exactly.deviceClassName", "Required value"),
    (claim({"name": "G", "exactly": GPU["exactly"]}), f"{AT}.name", "RFC 1123 label"),
    (claim(exactly(count=-1)), f"{AT}.exactly.count", "must be greater than zero"),
    (
        claim(exactly(allocationMode="All", count=2)),
        f"{AT}.exactly.count",
        "must not be specified when allocationMode is 'All'",
    ),
    (claim(exactly(allocationMode="Some")), f"{AT}.exactly.allocationMode", "Unsupported value"),
    (claim(*[{**GPU, "name": f"r{n}"} for n in range(33)]), "spec.devices.requests", "Too many: 33"),
    (claim(exactly(selectors=[{}])), f"{AT}.exactly.selectors[0].cel", "Required value"),
    (claim(exactly(selectors=[{"cel": {"expression": "true"}}] * 33)), f"{AT}.exactly.selectors", "Too many: 33"),
    (
        claim(exactly(selectors=[{"cel": {"expression": "device.typo"}}])),
        f"{AT}.exactly.selectors[0].cel.expression",
        "undefined field 'typo'",
    ),
    (
        claim(exactly(selectors=[{"cel": {"expression": "t" * 10241}}])),
        f"{AT}.exactly.selectors[0].cel.expression",
        "Too long",
    ),
    (claim(exactly(tolerations=[{"key": "-"}])), f"{AT}.exactly.tolerations[0].key", "name part"),
    (claim(exactly(tolerations=[{"key": "k", "value": "-"}])), f"{AT}.exactly.tolerations[0].value", "a valid label"),
    (
        claim(exactly(tolerations=[{"operator": "Exists", "value": "v"}])),
        f"{AT}.exactly.tolerations[0].value",
        "must be empty for operator `Exists`",
    ),
    (claim(exactly(tolerations=[{"effect": "Never"}])), f"{AT}.exactly.tolerations[0].effect", "Unsupported value"),
    (claim(exactly(tolerations=[{}] * 17)), f"{AT}.exactly.tolerations", "Too many: 17"),
    (claim(exactly(capacity={"requests": {"a/b/c": "1"}})), f"{AT}.exactly.capacity.requests", "more than one slash"),
    (
        claim(exactly(capacity={"requests": {"m": "-1"}})),
        f"{AT}.exactly.capacity.requests[m]",
        "greater than or equal to 0",
    ),
    (
        claim(derived()),
        f"{AT}.exactly.derivedAttributes[0].name",
        "must be referenced by at least one matchAttribute or distinctAttribute",
    ),
    (
        claim(derived(), exactly() | {"name": "b"}, constraints=[{**MATCH[0], "requests": ["b"]}]),
        f"{AT}.exactly.derivedAttributes[0].name",
        "must be referenced",
    ),
    (
        claim(derived("c"), constraints=[{"matchAttribute": "c"}]),
        f"{AT}.exactly.derivedAttributes[0].name",
        "a domain and a name separated by a slash",
    ),
    (
        claim(derived(expression="device.typo"), constraints=MATCH),
        f"{AT}.exactly.derivedAttributes[0].expression",
        "undefined field",
    ),
    (claim(GPU, constraints=[{"requests": ["gpu"]}]), "spec.devices.constraints[0]", "exactly one of"),
    (
        claim(GPU, constraints=[{"matchAttribute": "a.b/c", "distinctAttribute": "a.b/c"}]),
        "spec.devices.constraints[0]",
        "multiple fields are set",
    ),
    (claim(GPU, constraints=[{**MATCH[0], "requests": ["other"]}]), "spec.devices.constraints[0].requests[0]", NAMED),
    (claim(GPU, constraints=[{**MATCH[0], "requests": ["gpu/a/b"]}]), "spec.devices.constraints[0].requests[0]", NAMED),
    (
        claim(GPU, constraints=[{**MATCH[0], "requests": ["gpu", "gpu"]}]),
        "spec.devices.constraints[0].requests[1]",
        "Duplicate value",
    ),
    (
        claim(GPU, constraints=[{"matchAttribute": "c"}]),
        "spec.devices.constraints[0].matchAttribute",
        "a domain and a name separated by a slash",
    ),
    (
        claim(GPU, constraints=[{"distinctAttribute": "a.b/"}]),
        "spec.devices.constraints[0].distinctAttribute",
        "the name must not be empty",
    ),
    (
        claim(GPU, constraints=[{"matchAttribute": "/c"}]),
        "spec.devices.constraints[0].matchAttribute",
        "the domain must not be empty",
    ),
    (
        claim(GPU, constraints=[{"matchAttribute": "a.b/" + "c" * 33}]),
        "spec.devices.constraints[0].matchAttribute",
        "may not be more than 32 bytes",
    ),
    (claim(GPU, constraints=MATCH * 33), "spec.devices.constraints", "Too many: 33"),
    (claim(GPU, config=[{"requests": ["gpu"]}]), "spec.devices.config[0].opaque", "Required value"),
    (claim(GPU, config=[{**config(), "requests": ["x"]}]), "spec.devices.config[0].requests[0]", NAMED),
    (claim(GPU, config=[config(driver="x y")]), "spec.devices.config[0].opaque.driver", "RFC 1123 subdomain"),
    (
        claim(GPU, config=[config(driver="d" * 64)]),
        "spec.devices.config[0].opaque.driver",
        "may not be more than 63 bytes",
    ),
    (
        claim(GPU, config=[config(parameters={"a": "x" * 10240})]),
        "spec.devices.config[0].opaque.parameters",
        "may not be more than 10240 bytes",
    ),
    (claim(GPU, config=[config()] * 33), "spec.devices.config", "Too many: 33"),
]


@pytest.mark.parametrize(("obj", "field", "words"), CLAIM_ERRORS, ids=[str(at) for at in range(len(CLAIM_ERRORS))])
def test_claims_that_are_refused(obj: Object, field: str, words: str) -> None:
    refused(obj, field, words)


def test_constraints_may_name_alternatives() -> None:
    alternatives = [{"name": "big", "deviceClassName": "a"}, {"name": "small", "deviceClassName": "b"}]
    constraint = {"requests": ["gpu/small"], "matchAttribute": "example.com/numa"}
    made = created(claim({"name": "gpu", "firstAvailable": alternatives}, constraints=[constraint]))
    assert complaints(made) == {}
    assert made["spec"]["devices"]["requests"][0]["firstAvailable"][0]["count"] == 1


@pytest.mark.parametrize("requests", [[], ["gpu"], ["gpu/a"]])
def test_a_derived_attribute_is_used_by_a_constraint_on_its_request(requests: list[str]) -> None:
    attribute = {"derivedAttributes": [{"name": "a.b/c", "expression": "1"}]}
    made = created(
        claim(
            {"name": "gpu", "firstAvailable": [{**SUB, **attribute}]}, constraints=[{**MATCH[0], "requests": requests}]
        )
    )
    assert complaints(made) == {}


def test_a_driver_may_be_named_in_capital_letters() -> None:
    assert complaints(created(claim(GPU, config=[config(driver="D.Example.com")]))) == {}


@pytest.mark.parametrize(
    ("spec", "field", "words"),
    [
        ({"extendedResourceName": "gpu"}, "extendedResourceName", "must be a valid extended resource name"),
        (
            {"extendedResourceName": "a.kubernetes.io/gpu"},
            "extendedResourceName",
            "must be a valid extended resource name",
        ),
        ({"extendedResourceName": "requests.a/gpu"}, "extendedResourceName", "must be a valid extended resource name"),
        ({"selectors": [{"cel": {"expression": "1"}}]}, "selectors[0].cel.expression", "bool"),
        ({"selectors": [{"cel": {"expression": "true"}}] * 33}, "selectors", "Too many: 33"),
        ({"config": [{}]}, "config[0].opaque", "Required value"),
    ],
)
def test_classes_that_are_refused(spec: Object, field: str, words: str) -> None:
    refused({"apiVersion": V1, "kind": "DeviceClass", "metadata": {"name": "c"}, "spec": spec}, f"spec.{field}", words)


def test_what_did_not_change_in_a_class_is_not_judged_again() -> None:
    old = created({"apiVersion": V1, "kind": "DeviceClass", "metadata": {"name": "c"}, "spec": {}})
    old["spec"]["selectors"] = [{"cel": {"expression": "device.gone"}}]
    new = copy.deepcopy(old)
    new["spec"]["extendedResourceName"] = "example.com/gpu"
    assert complaints(new, old) == {}
    new["spec"]["selectors"] *= 2
    assert list(complaints(new, old)) == ["spec.selectors[0].cel.expression", "spec.selectors[1].cel.expression"]


def test_templates_are_judged_as_the_claims_made_of_them() -> None:
    spec = {"metadata": {"labels": {"-": "x"}}, "spec": claim({"name": "gpu"})["spec"]}
    made = created({"apiVersion": V1, "kind": "ResourceClaimTemplate", "metadata": {"name": "t"}, "spec": spec})
    assert list(complaints(made)) == ["spec.metadata.labels", "spec.spec.devices.requests[0]"]


# -- status ------------------------------------------------------------------------------------------------------------

RESULT = {"request": "gpu", "driver": "gpu.nvidia.com", "pool": "n1", "device": "gpu-0"}
CONSUMER = {"resource": "pods", "name": "p", "uid": "u"}
STATUS = {key: RESULT[key] for key in ("driver", "pool", "device")}
SHARE = "11111111-1111-1111-1111-111111111111"
CONDITION = {
    "type": "Ready",
    "status": "True",
    "reason": "Up",
    "message": "",
    "lastTransitionTime": "2026-01-01T00:00:00Z",
}
RESULTS = "status.allocation.devices.results[0]"


def granted(*results: Object, **status: Any) -> Object:
    return {"allocation": {"devices": {"results": list(results or (RESULT,))}}, **status}


def configured(entry: Object) -> Object:
    return {"allocation": {"devices": {"results": [RESULT], "config": [{"source": "FromClaim", **config(), **entry}]}}}


STATUS_ERRORS: list[tuple[Object, str, str]] = [
    ({"reservedFor": [CONSUMER]}, "status.reservedFor", "may not be specified when `allocated` is not set"),
    (granted(reservedFor=[CONSUMER, CONSUMER]), "status.reservedFor[1]", "Duplicate value"),
    (granted(reservedFor=[{**CONSUMER, "uid": f"u{n}"} for n in range(257)]), "status.reservedFor", "Too many: 257"),
    (granted(*[RESULT] * 33), "status.allocation.devices.results", "Too many: 33"),
    (granted({**RESULT, "request": "cpu"}), f"{RESULTS}.request", NAMED),
    (granted({**RESULT, "driver": "-"}), f"{RESULTS}.driver", "RFC 1123 subdomain"),
    (granted({**RESULT, "pool": "a//b"}), f"{RESULTS}.pool", "RFC 1123 subdomain"),
    (granted({**RESULT, "device": "A"}), f"{RESULTS}.device", "RFC 1123 label"),
    (granted({**RESULT, "shareID": "x"}), f"{RESULTS}.shareID", "error validating uid"),
    (
        granted({**RESULT, "shareID": "ABCDEF01-1111-1111-1111-111111111111"}),
        f"{RESULTS}.shareID",
        "RFC 4122 normalized form",
    ),
    (
        granted({**RESULT, "bindingConditions": ["a"]}),
        f"{RESULTS}.bindingFailureConditions",
        "are required to use bindingConditions",
    ),
    (
        granted({**RESULT, "skipNodeOperations": ["NodePrepareResources"]}),
        f"{RESULTS}.skipNodeOperations",
        "unless NodeUnprepareResources",
    ),
    (
        granted({**RESULT, "consumedCounters": [{"counterSet": f"s{n}", "counters": {"c": "1"}} for n in range(3)]}),
        f"{RESULTS}.consumedCounters",
        "Too many: 3",
    ),
    (
        granted({**RESULT, "consumedCounters": [{"counterSet": "s", "counters": {"C": "1"}}]}),
        f"{RESULTS}.consumedCounters[0].counters",
        "RFC 1123 label",
    ),
    (
        granted({**RESULT, "consumedCounters": [{"counterSet": "s", "counters": {"c": "-1"}}]}),
        f"{RESULTS}.consumedCounters[0].counters[c]",
        "greater than or equal to 0",
    ),
    (
        granted({**RESULT, "consumedCounters": [{"counterSet": "s", "counters": {"c": "1"}}] * 2}),
        f"{RESULTS}.consumedCounters[1]",
        "Duplicate value",
    ),
    (configured({"requests": ["x"]}), "status.allocation.devices.config[0].requests[0]", NAMED),
    (configured({"source": "FromPod"}), "status.allocation.devices.config[0].source", "Unsupported value"),
    (granted(devices=[{**STATUS, "device": "gpu-1"}]), "status.devices[0]", "must be an allocated device in the claim"),
    (granted(devices=[STATUS, STATUS]), "status.devices[1]", "Duplicate value"),
    (granted(devices=[{**STATUS, "shareID": SHARE}]), "status.devices[0]", "must be an allocated device in the claim"),
    (
        granted(devices=[{**STATUS, "data": {"a": "x" * 10240}}]),
        "status.devices[0].data",
        "may not be more than 10240 bytes",
    ),
    (
        granted(devices=[{**STATUS, "networkData": {"ips": ["10.0.0.1"]}}]),
        "status.devices[0].networkData.ips[0]",
        "CIDR form",
    ),
    (
        granted(devices=[{**STATUS, "networkData": {"ips": ["2001:DB8::1/64"]}}]),
        "status.devices[0].networkData.ips[0]",
        "canonical form",
    ),
    (
        granted(devices=[{**STATUS, "networkData": {"ips": [f"10.0.0.{n}/8" for n in range(17)]}}]),
        "status.devices[0].networkData.ips",
        "Too many: 17",
    ),
    (
        granted(devices=[{**STATUS, "networkData": {"interfaceName": "e" * 257}}]),
        "status.devices[0].networkData.interfaceName",
        "Too long",
    ),
    (
        granted(devices=[{**STATUS, "conditions": [{**CONDITION, "reason": ""}]}]),
        "status.devices[0].conditions[0].reason",
        "Required value",
    ),
    (
        granted(devices=[{**STATUS, "conditions": [CONDITION, CONDITION]}]),
        "status.devices[0].conditions[1].type",
        "Duplicate value",
    ),
    (
        granted(devices=[{**STATUS, "conditions": [{**CONDITION, "type": f"t{n}"} for n in range(9)]}]),
        "status.devices[0].conditions",
        "Too many: 9",
    ),
]


@pytest.mark.parametrize(("status", "field", "words"), STATUS_ERRORS, ids=[str(at) for at in range(len(STATUS_ERRORS))])
def test_statuses_that_are_refused(status: Object, field: str, words: str) -> None:
    old = created(claim(GPU))
    new = {**copy.deepcopy(old), "status": status}
    found = {cause.field: cause.message for cause in kind("ResourceClaim").validate_status(new, old)}
    assert words in found.get(field, ""), found


def test_a_claim_cannot_change_but_its_status_can() -> None:
    old = created(claim(GPU))
    item = kind("ResourceClaim")
    new = copy.deepcopy(old)
    new["spec"]["devices"]["requests"][0]["exactly"]["count"] = 2
    assert list(complaints(new, old)) == ["spec"]
    held = {
        **copy.deepcopy(old),
        "status": granted(reservedFor=[CONSUMER], devices=[{**STATUS, "conditions": [CONDITION]}]),
    }
    assert item.validate_status(held, old) == []
    moved = copy.deepcopy(held)
    moved["status"] = granted({**RESULT, "device": "gpu-1"})
    assert [cause.field for cause in item.validate_status(moved, held)] == ["status.allocation"]


def test_nobody_new_may_use_a_claim_that_is_being_deleted() -> None:
    old = {**created(claim(GPU)), "status": granted(reservedFor=[CONSUMER])}
    old["metadata"]["deletionTimestamp"] = "2026-01-01T00:00:00Z"
    left = {**copy.deepcopy(old), "status": granted()}
    assert kind("ResourceClaim").validate_status(left, old) == []
    joined = {**copy.deepcopy(old), "status": granted(reservedFor=[CONSUMER, {**CONSUMER, "uid": "v"}])}
    (cause,) = kind("ResourceClaim").validate_status(joined, old)
    assert "new entries may not be added while" in cause.message


# -- slices ------------------------------------------------------------------------------------------------------------


def resource_slice(*devices: Object, **spec: Any) -> Object:
    pool = {"name": "n1", "generation": 1, "resourceSliceCount": 1}
    made = {"driver": "gpu.nvidia.com", "nodeName": "n1", "pool": pool, "devices": list(devices), **spec}
    return {"apiVersion": V1, "kind": "ResourceSlice", "metadata": {"name": "s"}, "spec": made}


def device(**more: Any) -> Object:
    return resource_slice({"name": "a", **more})


def counters(**counter: Any) -> Object:
    return resource_slice(
        devices=None, sharedCounters=[{"name": "gpu-0", "counters": {"memory": {"value": "40Gi", **counter}}}]
    )


def consumes(counter: Object, **more: Any) -> Object:
    return device(consumesCounters=[{"counterSet": "gpu-0", "counters": {"memory": counter}, **more}])


def placed_by_device(**more: Any) -> Object:
    return resource_slice({"name": "a", **more}, nodeName=None, perDeviceNodeSelection=True)


def taken(**entry: Any) -> Object:
    return device(capacity={"m": {"value": "1"}}, nodeAllocatableResources={"cpu": entry})


DEVICE = "spec.devices[0]"
COUNTER_SET = {"name": "gpu-0", "counters": {"memory": {"value": "40Gi"}}}
TAINT = {"key": "k", "effect": "NoSchedule"}
PLACE = (
    "exactly one of `nodeName`, `nodeSelector`, or `allNodes` is required when `perDeviceNodeSelection` is set to true"
)
TERM = {"matchExpressions": [{"key": "a", "operator": "Exists"}]}
PARTITION = [{"counterSet": "gpu-0", "counters": {"memory": {"value": "1"}}}]

SLICE_ERRORS: list[tuple[Object, str, str]] = [
    (resource_slice(driver="x y"), "spec.driver", "RFC 1123 subdomain"),
    (resource_slice(driver="d" * 64), "spec.driver", "may not be more than 63 bytes"),
    (
        resource_slice(pool={"name": "a//b", "generation": 1, "resourceSliceCount": 1}),
        "spec.pool.name",
        "RFC 1123 subdomain",
    ),
    (
        resource_slice(pool={"name": "n1", "generation": 1, "resourceSliceCount": 0}),
        "spec.pool.resourceSliceCount",
        "1",
    ),
    (resource_slice(pool={"name": "n1", "generation": -1, "resourceSliceCount": 1}), "spec.pool.generation", "0"),
    (resource_slice(allNodes=True), "spec", "multiple fields are set"),
    (
        resource_slice(nodeName=None),
        "spec",
        "exactly one of `nodeName`, `nodeSelector`, `allNodes`, `perDeviceNodeSelection` is required",
    ),
    (resource_slice(nodeName="N 1"), "spec.nodeName", "RFC 1123 subdomain"),
    (resource_slice(allNodes=False), "spec.allNodes", "must be either unset or set to true"),
    (
        resource_slice(perDeviceNodeSelection=False),
        "spec.perDeviceNodeSelection",
        "must be either unset or set to true",
    ),
    (
        resource_slice(nodeName=None, nodeSelector={"nodeSelectorTerms": [TERM, TERM]}),
        "spec.nodeSelector.nodeSelectorTerms",
        "must have exactly one node selector term",
    ),
    (resource_slice({"name": "a"}, {"name": "a"}), "spec.devices[1]", 'Duplicate value: "a"'),
    (resource_slice(*[{"name": f"d{n}"} for n in range(129)]), "spec.devices", "Too many: 129"),
    (
        resource_slice(*[{"name": f"d{n}", "taints": [TAINT]} for n in range(65)]),
        "spec.devices",
        "Too many: 65: must have at most 64",
    ),
    (
        resource_slice(*[{"name": f"d{n}", "consumesCounters": PARTITION} for n in range(65)]),
        "spec.devices",
        "at most 64",
    ),
    (
        resource_slice(*[{"name": f"d{n}", "attributes": {"a": {"ints": [1]}}} for n in range(65)]),
        "spec.devices",
        "at most 64",
    ),
    (
        resource_slice({"name": "a"}, sharedCounters=[COUNTER_SET]),
        "spec",
        "only one of `sharedCounters` or `devices` is allowed",
    ),
    (
        resource_slice(devices=None, sharedCounters=[{**COUNTER_SET, "name": f"s{n}"} for n in range(9)]),
        "spec.sharedCounters",
        "Too many: 9",
    ),
    (
        resource_slice(devices=None, sharedCounters=[COUNTER_SET, COUNTER_SET]),
        "spec.sharedCounters[1]",
        "Duplicate value",
    ),
    (
        resource_slice(devices=None, sharedCounters=[{"name": "s", "counters": {}}]),
        "spec.sharedCounters[0].counters",
        "Required value",
    ),
    (
        resource_slice(
            devices=None, sharedCounters=[{"name": "s", "counters": {f"c{n}": {"value": "1"} for n in range(33)}}]
        ),
        "spec.sharedCounters[0].counters",
        "Too many: 33",
    ),
    (
        resource_slice(devices=None, sharedCounters=[{"name": "s", "counters": {"C": {"value": "1"}}}]),
        "spec.sharedCounters[0].counters",
        "RFC 1123 label",
    ),
    (counters(value="-1"), "spec.sharedCounters[0].counters[memory].value", "greater than or equal to 0"),
    (
        counters(requestPolicy={"validValues": ["1"]}),
        "spec.sharedCounters[0].counters[memory].requestPolicy.default",
        "required when validValues is defined",
    ),
    (
        counters(requestPolicy={"default": "1Gi", "validRange": {"min": "1Gi", "max": "41Gi"}}),
        "spec.sharedCounters[0].counters[memory].requestPolicy.validRange.max",
        "max is larger than capacity value: 40Gi",
    ),
    (
        consumes({"value": "1", "valueFrom": {"capacityName": "m"}}),
        f"{DEVICE}.consumesCounters[0].counters[memory]",
        "exactly one of `value` or `valueFrom` is required, but multiple",
    ),
    (
        consumes({}),
        f"{DEVICE}.consumesCounters[0].counters[memory]",
        "Required value: exactly one of `value` or `valueFrom` is required",
    ),
    (
        consumes({"valueFrom": {}}),
        f"{DEVICE}.consumesCounters[0].counters[memory].valueFrom.capacityName",
        "Required value",
    ),
    (
        consumes({"valueFrom": {"capacityName": "a/b/c"}}),
        f"{DEVICE}.consumesCounters[0].counters[memory].valueFrom.capacityName",
        "more than one slash",
    ),
    (
        consumes({"value": "1"}, compatibilityGroups=["a", "b", "c"]),
        f"{DEVICE}.consumesCounters[0].compatibilityGroups",
        "Too many: 3",
    ),
    (
        consumes({"value": "1"}, compatibilityGroups=["a", "a"]),
        f"{DEVICE}.consumesCounters[0].compatibilityGroups[1]",
        "Duplicate value",
    ),
    (device(consumesCounters=PARTITION * 2), f"{DEVICE}.consumesCounters[1]", 'Duplicate value: "gpu-0"'),
    (
        device(consumesCounters=[{**PARTITION[0], "counterSet": f"s{n}"} for n in range(3)]),
        f"{DEVICE}.consumesCounters",
        "Too many: 3",
    ),
    (device(name="A"), f"{DEVICE}.name", "RFC 1123 label"),
    (device(attributes={"x-y": {"int": 1}}), f"{DEVICE}.attributes", "C identifier"),
    (
        device(attributes={"x": {"int": 1, "bool": True}}),
        f"{DEVICE}.attributes[x]",
        "exactly one value must be specified",
    ),
    (device(attributes={"x": {}}), f"{DEVICE}.attributes[x]", 'Invalid value: "": exactly one value must be specified'),
    (device(attributes={"x": {"ints": []}}), f"{DEVICE}.attributes[x].ints", "must not be empty if specified"),
    (device(attributes={"x": {"string": "s" * 65}}), f"{DEVICE}.attributes[x].string", "may not be more than 64 bytes"),
    (
        device(attributes={"x": {"strings": ["s" * 65]}}),
        f"{DEVICE}.attributes[x].strings[0]",
        "may not be more than 64 bytes",
    ),
    (
        device(attributes={"x": {"version": "1.0"}}),
        f"{DEVICE}.attributes[x].version",
        "must be a string compatible with semver.org spec 2.0.0",
    ),
    (device(attributes={"x": {"versions": ["1.0.0", "1.0"]}}), f"{DEVICE}.attributes[x].versions[1]", "semver"),
    (
        device(attributes={f"a{n}": {"int": 1} for n in range(33)}),
        DEVICE,
        "the total number of attributes and capacities must not exceed 32",
    ),
    (
        device(attributes={f"l{n}": {"ints": list(range(25))} for n in range(2)}),
        DEVICE,
        "the total number of attribute values must not exceed 48",
    ),
    (device(taints=[{**TAINT, "key": "-"}]), f"{DEVICE}.taints[0].key", "name part"),
    (device(taints=[{**TAINT, "value": "-"}]), f"{DEVICE}.taints[0].value", "a valid label"),
    (device(taints=[{**TAINT, "effect": "PreferNoSchedule"}]), f"{DEVICE}.taints[0].effect", "Unsupported value"),
    (device(taints=[TAINT] * 17), f"{DEVICE}.taints", "Too many: 17"),
    (
        device(allNodes=True),
        DEVICE,
        "can only be set if `perDeviceNodeSelection` is set to true in the ResourceSlice spec",
    ),
    (placed_by_device(), DEVICE, PLACE),
    (placed_by_device(nodeName="n", allNodes=True), DEVICE, PLACE),
    (placed_by_device(allNodes=False), f"{DEVICE}.allNodes", "must be either unset or set to true"),
    (
        device(bindingConditions=["a"]),
        f"{DEVICE}.bindingFailureConditions",
        "bindingFailureConditions are required to use bindingConditions",
    ),
    (
        device(bindingFailureConditions=["a"]),
        f"{DEVICE}.bindingConditions",
        "bindingConditions are required to use bindingFailureConditions",
    ),
    (
        device(bindingConditions=["a"], bindingFailureConditions=["a"]),
        f"{DEVICE}.bindingFailureConditions[0]",
        "must not overlap with bindingConditions",
    ),
    (
        device(bindingConditions=["a", "a"], bindingFailureConditions=["b"]),
        f"{DEVICE}.bindingConditions[1]",
        "Duplicate value",
    ),
    (device(bindingConditions=["-"], bindingFailureConditions=["b"]), f"{DEVICE}.bindingConditions[0]", "name part"),
    (
        device(bindingConditions=list("abcde"), bindingFailureConditions=["f"]),
        f"{DEVICE}.bindingConditions",
        "Too many: 5",
    ),
    (
        device(capacity={"m": {"value": "1", "requestPolicy": {"default": "1"}}}),
        f"{DEVICE}.capacity[m].requestPolicy",
        "Forbidden: allowMultipleAllocations must be true",
    ),
    (device(capacity={"m": {"value": "-1"}}), f"{DEVICE}.capacity[m].value", "greater than or equal to 0"),
    (device(capacity={"a/b/c": {"value": "1"}}), f"{DEVICE}.capacity", "must not contain more than one slash"),
    (
        device(nodeAllocatableResources={"gpu": {"mapping": {"deviceMultiplier": "1"}}}),
        f"{DEVICE}.nodeAllocatableResources[gpu]",
        "must be a node allocatable resource name",
    ),
    (taken(), f"{DEVICE}.nodeAllocatableResources[cpu]", "at least one of mapping or overhead must be set"),
    (
        taken(mapping={"capacityKey": "x", "capacityMultiplier": "1"}),
        f"{DEVICE}.nodeAllocatableResources[cpu].mapping.capacityKey",
        "Not found",
    ),
    (
        taken(mapping={"capacityKey": "m"}),
        f"{DEVICE}.nodeAllocatableResources[cpu].mapping.capacityMultiplier",
        "is required when capacityKey is set",
    ),
    (
        taken(mapping={"capacityMultiplier": "1"}),
        f"{DEVICE}.nodeAllocatableResources[cpu].mapping.capacityKey",
        "is required when capacityMultiplier is set",
    ),
    (
        taken(mapping={"deviceMultiplier": "0"}),
        f"{DEVICE}.nodeAllocatableResources[cpu].mapping.deviceMultiplier",
        "must be positive",
    ),
    (
        taken(overhead={}),
        f"{DEVICE}.nodeAllocatableResources[cpu].overhead",
        "at least one of perPod or perContainer must be set",
    ),
    (
        taken(overhead={"perPod": "-1"}),
        f"{DEVICE}.nodeAllocatableResources[cpu].overhead.perPod",
        "must be non-negative",
    ),
    (
        resource_slice({"name": "a"}, partitionTypeAttribute="a.b/c"),
        "spec.partitionTypeAttribute",
        "may only be set on a slice which declares devices that consume counters",
    ),
    (
        resource_slice({"name": "a", "consumesCounters": PARTITION}, partitionTypeAttribute="c"),
        "spec.partitionTypeAttribute",
        "a domain and a name separated by a slash",
    ),
    (
        resource_slice({"name": "a", "consumesCounters": PARTITION}, partitionTypeAttribute="a.b/c"),
        f"{DEVICE}.attributes[a.b/c]",
        "Required value: device consumes counters",
    ),
    (
        resource_slice(
            {"name": "a", "consumesCounters": PARTITION, "attributes": {"c": {"int": 1}}},
            partitionTypeAttribute="gpu.nvidia.com/c",
        ),
        f"{DEVICE}.attributes[gpu.nvidia.com/c]",
        "must be a string value",
    ),
    (
        resource_slice(skipNodeOperations=["NodePrepareResources"]),
        "spec.skipNodeOperations",
        "cannot be skipped unless NodeUnprepareResources is also skipped",
    ),
    (resource_slice(skipNodeOperations=["Sleep"]), "spec.skipNodeOperations[0]", "Unsupported value"),
    (resource_slice(skipNodeOperations=["*", "*"]), "spec.skipNodeOperations[1]", "Duplicate value"),
]


@pytest.mark.parametrize(("obj", "field", "words"), SLICE_ERRORS, ids=[str(at) for at in range(len(SLICE_ERRORS))])
def test_slices_that_are_refused(obj: Object, field: str, words: str) -> None:
    refused(obj, field, words)


POLICY_ERRORS: list[tuple[Object, str, str]] = [
    ({"default": "11"}, "default", "default is larger than capacity value: 10"),
    ({"default": "-1"}, "default", "greater than or equal to 0"),
    ({"default": "1", "validValues": ["1"], "validRange": {"min": "1"}}, "", "exactly one policy can be specified"),
    ({"validRange": {"min": "1"}}, "default", "required when validRange is defined"),
    ({"default": "1", "validValues": ["2", "1"]}, "validValues[1]", "values must be sorted in ascending order"),
    ({"default": "1", "validValues": ["1", "1000m"]}, "validValues[1]", "Duplicate value"),
    (
        {"default": "3", "validValues": ["1", "2"]},
        "validValues",
        "default value is not valid according to the requestPolicy",
    ),
    ({"default": "1", "validValues": ["1", "11"]}, "validValues[1]", "option is larger than capacity value: 10"),
    ({"default": "1", "validValues": [str(n) for n in range(11)]}, "validValues", "Too many: 11"),
    ({"default": "1", "validRange": {"max": "2"}}, "validRange.min", ""),
    ({"default": "11", "validRange": {"min": "11"}}, "validRange.min", "min is larger than capacity value: 10"),
    (
        {"default": "2", "validRange": {"min": "2", "max": "11"}},
        "validRange.max",
        "max is larger than capacity value: 10",
    ),
    ({"default": "5", "validRange": {"min": "5", "max": "4"}}, "validRange.max", "min is larger than max: 4"),
    ({"default": "9", "validRange": {"min": "1", "max": "8"}}, "validRange.default", "default is more than max: 8"),
    ({"default": "1", "validRange": {"min": "2"}}, "validRange.default", "default is less than min: 2"),
    ({"default": "1", "validRange": {"min": "1", "step": "0"}}, "validRange.step", "must be greater than zero"),
    (
        {"default": "1", "validRange": {"min": "1", "step": "10"}},
        "validRange.step",
        "one step 11 is larger than capacity value: 10",
    ),
    (
        {"default": "2", "validRange": {"min": "1", "max": "9", "step": "2"}},
        "validRange.step",
        "value is not a multiple of a given step (2) from (1)",
    ),
    (
        {"default": "1", "validRange": {"min": "1", "max": "4", "step": "2"}},
        "validRange.step",
        "value is not a multiple of a given step",
    ),
    (
        {"default": "1500m", "validRange": {"min": "1", "step": "1"}},
        "validRange.step",
        "value is not a multiple of a given step",
    ),
]


def policed(policy: Object) -> Object:
    return device(allowMultipleAllocations=True, capacity={"m": {"value": "10", "requestPolicy": policy}})


@pytest.mark.parametrize(("policy", "field", "words"), POLICY_ERRORS, ids=[str(at) for at in range(len(POLICY_ERRORS))])
def test_request_policies_that_are_refused(policy: Object, field: str, words: str) -> None:
    refused(policed(policy), f"{DEVICE}.capacity[m].requestPolicy{'.' * bool(field)}{field}", words)


@pytest.mark.parametrize(
    "policy",
    [
        {"default": "4", "validValues": ["2", "4", "10"]},
        {"default": "1", "validRange": {"min": "1", "step": "9"}},
        {"default": "1500m", "validRange": {"min": "500m", "max": "2500m", "step": "500m"}},
        {"default": "3", "validRange": {"min": "1", "max": "9", "step": "2"}},
        {},
    ],
)
def test_request_policies_that_are_taken(policy: Object) -> None:
    assert complaints(created(policed(policy))) == {}


def test_without_fractions_steps_are_counted_in_whole_numbers() -> None:
    fraction = policed({"default": "1", "validRange": {"min": "0", "step": "500m"}})
    off = without("DRAFractionalCapacityRange")
    assert complaints(created(fraction)) == {}
    assert complaints(created(fraction, off), gates=off) == {}, "a step of 500m counts as 1"
    odd = policed({"default": "1500m", "validRange": {"min": "1", "step": "1"}})
    assert complaints(created(odd, off), gates=off) == {}, "1500m counts as 2"
    assert complaints(created(odd)) != {}


def test_lists_are_not_known_to_selectors_without_their_gate() -> None:
    asked = claim(exactly(selectors=[{"cel": {"expression": "device.attributes['d'].x.includes('a')"}}]))
    off = without("DRAListTypeAttributes")
    assert complaints(created(asked)) == {}
    assert "includes" in complaints(created(asked, off), gates=off)[f"{AT}.exactly.selectors[0].cel.expression"]


def test_a_device_that_did_not_change_is_not_judged_again() -> None:
    old = created(resource_slice({"name": "a"}, {"name": "b"}))
    old["spec"]["devices"][0]["attributes"] = {"no-longer-valid": {"int": 1}}
    new = copy.deepcopy(old)
    new["spec"]["devices"][1]["attributes"] = {"neither-this": {"int": 1}}
    assert list(complaints(new, old)) == ["spec.devices[1].attributes"]


def test_driver_pool_and_node_of_a_slice_stay() -> None:
    old = created(resource_slice())
    new = copy.deepcopy(old)
    new["spec"] |= {"driver": "other.example.com", "nodeName": "n2", "pool": {**old["spec"]["pool"], "name": "p2"}}
    assert {field: text.rpartition(": ")[2] for field, text in complaints(new, old).items()} == dict.fromkeys(
        ("spec.pool.name", "spec.driver", "spec.nodeName"), "field is immutable"
    )


def test_a_taint_without_a_time_gets_one() -> None:
    made = created(device(taints=[{"key": "k", "effect": "NoExecute"}]))
    assert made["spec"]["devices"][0]["taints"][0]["timeAdded"].endswith("Z")
    assert complaints(made) == {}


# -- taint rules -------------------------------------------------------------------------------------------------------


def taint_rule(**spec: Any) -> Object:
    made = {"taint": TAINT, "deviceSelector": {}, **spec}
    return {"apiVersion": V1, "kind": "DeviceTaintRule", "metadata": {"name": "r"}, "spec": made}


@pytest.mark.parametrize(
    ("spec", "field", "words"),
    [
        ({"taint": {**TAINT, "key": "-"}}, "taint.key", "name part"),
        ({"taint": {**TAINT, "value": "-"}}, "taint.value", "a valid label"),
        ({"taint": {"key": "k"}}, "taint.effect", "Required value"),
        ({"deviceSelector": {"driver": "x y"}}, "deviceSelector.driver", "RFC 1123 subdomain"),
        ({"deviceSelector": {"pool": "a//b"}}, "deviceSelector.pool", "RFC 1123 subdomain"),
        ({"deviceSelector": {"device": "A"}}, "deviceSelector.device", "RFC 1123 label"),
    ],
)
def test_taint_rules_that_are_refused(spec: Object, field: str, words: str) -> None:
    refused(taint_rule(**spec), f"spec.{field}", words)


def test_a_new_effect_counts_from_now_unless_the_update_says_from_when() -> None:
    item, then = kind("DeviceTaintRule"), "2020-01-01T00:00:00Z"
    old = created(taint_rule(taint={**TAINT, "timeAdded": then}))
    same = item.prepare_update(
        copy.deepcopy(old) | {"spec": taint_rule(taint={**TAINT, "value": "v", "timeAdded": then})["spec"]}, old
    )
    assert same["spec"]["taint"]["timeAdded"] == then
    changed = item.prepare_update(
        copy.deepcopy(old) | {"spec": taint_rule(taint={**TAINT, "effect": "NoExecute", "timeAdded": then})["spec"]},
        old,
    )
    assert changed["spec"]["taint"]["timeAdded"] > then
    dated = {**TAINT, "effect": "NoExecute", "timeAdded": "2021-01-01T00:00:00Z"}
    assert (
        item.prepare_update(copy.deepcopy(old) | {"spec": taint_rule(taint=dated)["spec"]}, old)["spec"]["taint"]
        == dated
    )
