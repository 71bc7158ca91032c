"""Older shapes of built-in kinds, turned into the shape that is stored and back.

`resource.k8s.io/v1beta1` writes requests flat (v1: below `exactly`) and devices with a `basic` level (v1: without);
`events.k8s.io/v1` names the fields of a core event differently, `scheduling.k8s.io/v1alpha1` those of a Workload.
Everything works in place; a field that only one shape has does not exist in the other, so nothing is lost.
"""

from __future__ import annotations

from collections.abc import Callable

from capstan.local.types_base import Object

Convert = Callable[[Object], Object]

_EXACT = (
    "deviceClassName",
    "selectors",
    "allocationMode",
    "count",
    "adminAccess",
    "derivedAttributes",
    "tolerations",
    "capacity",
)

_EVENT_NAMES = (
    ("regarding", "involvedObject"),
    ("note", "message"),
    ("reportingController", "reportingComponent"),
    ("deprecatedSource", "source"),
    ("deprecatedFirstTimestamp", "firstTimestamp"),
    ("deprecatedLastTimestamp", "lastTimestamp"),
    ("deprecatedCount", "count"),
)


def _spec(holder: Object) -> Object:
    spec = holder.get("spec")
    return spec if isinstance(spec, dict) else {}


def _requests(spec: Object) -> list[Object]:
    return (spec.get("devices") or {}).get("requests") or []


def _nest(spec: Object) -> None:
    """Flat requests become exact ones."""
    requests = _requests(spec)
    for index, request in enumerate(requests):
        if "exactly" not in request and request.get("firstAvailable") is None:
            kept = {key: value for key, value in request.items() if key not in _EXACT}
            kept["exactly"] = {key: request[key] for key in _EXACT if key in request}
            requests[index] = kept


def _flatten(spec: Object) -> None:
    """Exact requests become flat ones."""
    for request in _requests(spec):
        request.update(request.pop("exactly", None) or {})


def _versioned(api_version: str, kind: str, change: Callable[[Object], None]) -> Convert:
    def convert(obj: Object) -> Object:
        if obj.get("apiVersion") != api_version:
            obj["apiVersion"] = api_version
            obj["kind"] = kind
            change(obj)
        return obj

    return convert


def _claim_to(obj: Object) -> None:
    _nest(_spec(obj))


def _claim_from(obj: Object) -> None:
    _flatten(_spec(obj))


def _template_to(obj: Object) -> None:
    _nest(_spec(_spec(obj)))


def _template_from(obj: Object) -> None:
    _flatten(_spec(_spec(obj)))


def _slice_to(obj: Object) -> None:
    """A device without `basic` stays one without attributes."""
    spec = _spec(obj)
    if devices := spec.get("devices"):
        spec["devices"] = [{"name": device.get("name"), **(device.get("basic") or {})} for device in devices]


def _slice_from(obj: Object) -> None:
    spec = _spec(obj)
    if devices := spec.get("devices"):
        spec["devices"] = [
            {"name": device.get("name"), "basic": {key: value for key, value in device.items() if key != "name"}}
            for device in devices
        ]


def _rename(obj: Object, pairs: list[tuple[str, str]]) -> None:
    for old, new in pairs:
        if old in obj:
            obj[new] = obj.pop(old)


def _event_to(obj: Object) -> None:
    _rename(obj, list(_EVENT_NAMES))
    obj.setdefault("involvedObject", {})


def _event_from(obj: Object) -> None:
    _rename(obj, [(new, old) for old, new in _EVENT_NAMES])


def _workload_to(obj: Object) -> None:
    spec = _spec(obj)
    for group in spec.get("podGroups") or []:
        _rename(group, [("policy", "schedulingPolicy")])
    _rename(spec, [("podGroups", "podGroupTemplates")])


def _workload_from(obj: Object) -> None:
    spec = _spec(obj)
    for group in spec.get("podGroupTemplates") or []:
        _rename(group, [("schedulingPolicy", "policy")])
    _rename(spec, [("podGroupTemplates", "podGroups")])


_DEVICES = "resource.k8s.io"
_V1BETA1 = f"{_DEVICES}/v1beta1"
_WORKLOADS = "scheduling.k8s.io/v1alpha1"

STORAGE_VERSIONS = {
    _V1BETA1: f"{_DEVICES}/v1",
    f"{_DEVICES}/v1beta2": f"{_DEVICES}/v1",
    f"{_DEVICES}/v1alpha3 DeviceTaintRule": f"{_DEVICES}/v1",
    "events.k8s.io/v1": "v1",
    _WORKLOADS: "scheduling.k8s.io/v1alpha2",
}
"""apiVersion, or apiVersion and kind → the apiVersion its objects are stored with, where they differ."""


def storage_version(api_version: str, kind: str) -> str:
    return STORAGE_VERSIONS.get(f"{api_version} {kind}", STORAGE_VERSIONS.get(api_version, ""))


def _pair(
    api_version: str, kind: str, to: Callable[[Object], None], back: Callable[[Object], None]
) -> tuple[Convert, Convert]:
    return (
        _versioned(STORAGE_VERSIONS[api_version], kind, to),
        _versioned(api_version, kind, back),
    )


CONVERSIONS: dict[tuple[str, str], tuple[Convert, Convert]] = {
    (_V1BETA1, "ResourceClaim"): _pair(_V1BETA1, "ResourceClaim", _claim_to, _claim_from),
    (_V1BETA1, "ResourceClaimTemplate"): _pair(_V1BETA1, "ResourceClaimTemplate", _template_to, _template_from),
    (_V1BETA1, "ResourceSlice"): _pair(_V1BETA1, "ResourceSlice", _slice_to, _slice_from),
    (_WORKLOADS, "Workload"): _pair(_WORKLOADS, "Workload", _workload_to, _workload_from),
    ("events.k8s.io/v1", "Event"): _pair("events.k8s.io/v1", "Event", _event_to, _event_from),
}
"""(apiVersion, kind) → (to the stored shape, from the stored shape)"""
