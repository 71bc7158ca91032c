"""Features of Kubernetes in the API server: what it keeps, what it drops, and which kinds it serves."""

from __future__ import annotations

import copy
import json
from typing import Any

import pytest
from tests.local.types_samples import placed

from capstan.api.feature_gates import GATES, FeatureGates, GatedFields, parse
from capstan.local.types import ResourceType, builtin_types

GROUP = "/apis/resource.k8s.io"
ON = parse("DRASharedConsumableCapacity=true")
DRIVER = "net.example.com"
DRAWN = {"bandwidth": {"valueFrom": {"capacityName": "bandwidth"}}}
POLICY = {"default": "1G", "validRange": {"min": "1M", "max": "100G", "step": "1M"}}


def builtin_kind(name: str, gates: FeatureGates) -> ResourceType:
    return next(item for item in builtin_types(gates) if item.kind == name and item.api_version == "resource.k8s.io/v1")


def slice_of(name: str, **spec: Any) -> dict[str, Any]:
    pool = {"name": "n1", "generation": 1, "resourceSliceCount": 2}
    return {"metadata": {"name": name}, "spec": {"driver": DRIVER, "nodeName": "n1", "pool": pool, **spec}}


COUNTERS = slice_of(
    "counters", sharedCounters=[{"name": "p", "counters": {"bandwidth": {"value": "100G", "requestPolicy": POLICY}}}]
)
DEVICES = slice_of("devices", devices=[{"name": "vf", "consumesCounters": [{"counterSet": "p", "counters": DRAWN}]}])
CLAIM = {
    "metadata": {"name": "c", "namespace": "default"},
    "spec": {"devices": {"requests": [{"name": "r", "exactly": {"deviceClassName": "g"}}]}},
}
TAKEN = [{"counterSet": "p", "counters": {"bandwidth": "10G"}}]
STATUS = {
    "status": {
        "allocation": {
            "devices": {
                "results": [{"request": "r", "driver": DRIVER, "pool": "n1", "device": "vf", "consumedCounters": TAKEN}]
            }
        }
    }
}


@pytest.mark.parametrize("on", [True, False])
def test_counters_drawn_on_request_are_kept_only_with_their_gate(fresh_api: Any, on: bool) -> None:
    with fresh_api(parse(f"DRASharedConsumableCapacity={str(on).lower()}")) as api:
        made = api.create(f"{GROUP}/v1/resourceslices", COUNTERS)
        (counter,) = made["spec"]["sharedCounters"][0]["counters"].values()
        assert counter == {"value": "100G", **({"requestPolicy": POLICY} if on else {})}
        made = api.create(f"{GROUP}/v1/resourceslices", DEVICES)
        assert made["spec"]["devices"][0]["consumesCounters"][0]["counters"] == (DRAWN if on else {"bandwidth": {}})
        api.create(f"{GROUP}/v1/namespaces/default/resourceclaims", CLAIM)
        path = f"{GROUP}/v1/namespaces/default/resourceclaims/c"
        assert api.patch(f"{path}/status", STATUS).code == 200
        (result,) = api.get(path)["status"]["allocation"]["devices"]["results"]
        assert result.get("consumedCounters") == (TAKEN if on else None)


@pytest.mark.parametrize("version", ["v1", "v1beta1", "v1beta2"])
def test_counters_drawn_on_request_make_the_round_trip_through_every_version(fresh_api: Any, version: str) -> None:
    devices = copy.deepcopy(DEVICES)
    if version == "v1beta1":
        (device,) = devices["spec"]["devices"]
        devices["spec"]["devices"] = [{"name": "vf", "basic": {"consumesCounters": device["consumesCounters"]}}]
    with fresh_api(ON) as api:
        for sent in (COUNTERS, devices):
            path = f"{GROUP}/{version}/resourceslices"
            api.create(path, sent)
            name = sent["metadata"]["name"]
            read = api.get(f"{path}/{name}")
            assert read["spec"] == sent["spec"]
            assert api.call("PUT", f"{path}/{name}", read).body["spec"] == sent["spec"]
        stored = api.get(f"{GROUP}/v1/resourceslices/devices")
        assert stored["spec"]["devices"] == DEVICES["spec"]["devices"]


def test_what_an_object_uses_already_it_keeps_when_the_feature_is_switched_off() -> None:
    on, off = (builtin_kind("ResourceSlice", gates) for gates in (ON, FeatureGates()))
    old = on.prepare_create(placed(copy.deepcopy(DEVICES), on))
    new = copy.deepcopy(old)
    new["spec"]["devices"].append({**DEVICES["spec"]["devices"][0], "name": "vf-2"})
    assert off.prepare_update(copy.deepcopy(new), old)["spec"] == new["spec"]
    plain = copy.deepcopy(old)
    plain["spec"]["devices"] = [{"name": "vf"}]
    dropped = off.prepare_update(copy.deepcopy(new), plain)
    assert [d["consumesCounters"][0]["counters"] for d in dropped["spec"]["devices"]] == [{"bandwidth": {}}] * 2
    assert off.validate(dropped, plain) == [], "what remains of a counter costs nothing"


def test_the_schema_shows_the_fields_and_hides_our_marks(api: Any) -> None:
    document = api.get("/openapi/v3/apis/resource.k8s.io/v1")
    schemas = document["components"]["schemas"]
    assert set(schemas["io.k8s.api.resource.v1.ConsumeCounter"]["properties"]) == {"value", "valueFrom"}
    assert set(schemas["io.k8s.api.resource.v1.SharedCounter"]["properties"]) == {"value", "requestPolicy"}
    assert "consumedCounters" in schemas["io.k8s.api.resource.v1.DeviceRequestAllocationResult"]["properties"]
    assert "x-capstan" not in json.dumps(document)


@pytest.mark.parametrize(
    ("gate", "version", "plural"),
    [
        ("DRADeviceTaintRules", "v1", "devicetaintrules"),
        ("DRAResourcePoolStatus", "v1alpha3", "resourcepoolstatusrequests"),
    ],
)
def test_a_kind_is_served_only_with_its_gate(fresh_api: Any, gate: str, version: str, plural: str) -> None:
    for on, code in ((True, 200), (False, 404)):
        with fresh_api(parse(f"{gate}={str(on).lower()}")) as api:
            assert api.call("GET", f"{GROUP}/{version}/{plural}").code == code
            served = [each["name"] for each in api.get(f"{GROUP}/{version}")["resources"]] if on else []
            assert (plural in served) == on


def _used(path: tuple[str, ...], leaf: Any) -> Any:
    step, rest = path[0], path[1:]
    below = _used(rest, leaf) if rest else leaf
    return [below] if step == "[]" else {("k" if step == "{}" else step): below}


@pytest.mark.parametrize("kind", ["DeviceClass", "ResourceClaim", "ResourceClaimTemplate", "ResourceSlice"])
def test_each_gate_drops_its_own_fields_and_no_others(kind: str) -> None:
    item = builtin_kind(kind, FeatureGates())
    gated = GatedFields(item.schema, item.definitions)
    for gate, paths in gated.paths.items():
        off = gated.without(FeatureGates(frozenset(GATES) - {gate}))
        for other, found in gated.paths.items():
            for path in found:
                obj = _used(path, "x")
                within = [p for p in paths if path[: len(p)] == p]
                off.drop(obj)
                kept = obj == _used(path, "x")
                assert kept == (not within), (gate, other, path)


def test_taint_rules_of_older_versions_are_those_of_the_newest(api: Any) -> None:
    rule = {"metadata": {"name": "r"}, "spec": {"deviceSelector": {}, "taint": {"key": "k", "effect": "NoSchedule"}}}
    made = api.create(f"{GROUP}/v1alpha3/devicetaintrules", rule)
    assert made["apiVersion"] == "resource.k8s.io/v1alpha3"
    read = api.get(f"{GROUP}/v1/devicetaintrules/r")
    assert (read["apiVersion"], read["spec"]) == ("resource.k8s.io/v1", made["spec"])
    assert api.names(f"{GROUP}/v1beta2/devicetaintrules") == ["r"]
