"""The documents under `/api` and `/apis` that tell a client what is served: legacy lists and aggregated discovery.

Pure functions of the served types. Rules: KEP-3352 (aggregated discovery), metav1 APIGroupList and APIResourceList.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence

import msgspec

from capstan.local.types_base import Object, ResourceType

_JSON = "application/json"
_VERSION = re.compile(r"v(\d+)(?:(alpha|beta)(\d+))?")
_STAGES = {None: 2, "beta": 1, "alpha": 0}

_LAST = "scheduling.k8s.io"
"""Clients take a name without a group from the first that has it: `podgroups` are KAI's, as on clusters without
upstream's alpha kinds; upstream's are `podgroups.scheduling.k8s.io`."""

_WRITE_STATUS = ("get", "patch", "update")
# subresource → (group, version, kind, verbs); an empty kind is that of the resource
_SUBRESOURCES: dict[str, tuple[str, str, str, tuple[str, ...]]] = {
    "status": ("", "", "", _WRITE_STATUS),
    "scale": ("autoscaling", "v1", "Scale", _WRITE_STATUS),
    "binding": ("", "v1", "Binding", ("create",)),
    "eviction": ("policy", "v1", "Eviction", ("create",)),
    "ephemeralcontainers": ("", "", "", _WRITE_STATUS),
    "resize": ("", "", "", _WRITE_STATUS),
    "log": ("", "", "", ("get",)),
    "finalize": ("", "", "", ("update",)),
    "token": ("authentication.k8s.io", "v1", "TokenRequest", ("create",)),
    "approval": ("", "", "", _WRITE_STATUS),
}


def respond(path: str, accept: str, types: Sequence[ResourceType]) -> tuple[bytes, str] | None:
    """The body and content type for `/api`, `/apis` and what is below; None when nothing of that name is served.

    `accept` decides between the legacy lists and aggregated discovery (v2 or v2beta1), which exists for the two roots.
    """
    words = path.strip("/").split("/")
    if words in (["api"], ["apis"]):
        core = words == ["api"]
        if version := _aggregated_version(accept):
            kind = f"{_JSON};g=apidiscovery.k8s.io;v={version};as=APIGroupDiscoveryList"
            return msgspec.json.encode(aggregated(types, core=core, version=version)), kind
        return msgspec.json.encode(api_versions() if core else group_list(types)), _JSON
    document = None
    if words[0] == "api" and len(words) == 2:
        document = resource_list(types, "", words[1])
    elif words[0] == "apis" and len(words) == 2:
        document = group(types, words[1])
    elif words[0] == "apis" and len(words) == 3:
        document = resource_list(types, words[1], words[2])
    return None if document is None else (msgspec.json.encode(document), _JSON)


def _aggregated_version(accept: str) -> str:
    """The version of aggregated discovery the client likes best; empty when it takes plain JSON first."""
    for clause in accept.split(","):
        kind, *parameters = (part.strip() for part in clause.split(";"))
        wanted = dict(parameter.split("=", 1) for parameter in parameters if "=" in parameter)
        if kind != _JSON:
            continue
        if wanted.get("as") == "APIGroupDiscoveryList" and wanted.get("g") == "apidiscovery.k8s.io":
            if wanted.get("v") in ("v2", "v2beta1"):
                return wanted["v"]
        elif "as" not in wanted:
            return ""
    return ""


def version_key(version: str) -> tuple[int, int, int, int, str]:
    """Sort key, best first: GA before beta before alpha, higher before lower, unusual names last."""
    match = _VERSION.fullmatch(version)
    if match is None:
        return (1, 0, 0, 0, version)
    return (0, -_STAGES[match[2]], -int(match[1]), -int(match[3] or 0), version)


def _groups(types: Iterable[ResourceType]) -> dict[str, dict[str, list[ResourceType]]]:
    """group → version → types; groups in order of first appearance but for `_LAST`, versions best first."""
    found: dict[str, dict[str, list[ResourceType]]] = {}
    for item in types:
        found.setdefault(item.group, {}).setdefault(item.version, []).append(item)
    if _LAST in found:
        found[_LAST] = found.pop(_LAST)
    return {
        group: {version: versions[version] for version in sorted(versions, key=version_key)}
        for group, versions in found.items()
    }


def api_versions() -> Object:
    """`/api`: the versions of the core group."""
    return {"kind": "APIVersions", "versions": ["v1"], "serverAddressByClientCIDRs": []}


def group_list(types: Iterable[ResourceType]) -> Object:
    """`/apis`."""
    groups = [_group(name, list(versions)) for name, versions in _groups(types).items() if name]
    return {"kind": "APIGroupList", "apiVersion": "v1", "groups": groups}


def group(types: Iterable[ResourceType], name: str) -> Object | None:
    """`/apis/<group>`, or None when the group is not served."""
    versions = _groups(types).get(name) if name else None
    return None if versions is None else {"kind": "APIGroup", "apiVersion": "v1", **_group(name, list(versions))}


def _group(name: str, versions: list[str]) -> Object:
    named = [{"groupVersion": f"{name}/{version}", "version": version} for version in versions]
    return {"name": name, "versions": named, "preferredVersion": named[0]}


def resource_list(types: Iterable[ResourceType], group: str, version: str) -> Object | None:
    """`/api/v1` or `/apis/<group>/<version>`, or None when nothing of it is served."""
    served = [item for item in types if item.group == group and item.version == version]
    if not served:
        return None
    resources: list[Object] = []
    for item in served:
        entry: Object = {
            "name": item.plural,
            "singularName": item.singular,
            "namespaced": item.namespaced,
            "kind": item.kind,
            "verbs": sorted(item.verbs),
        }
        if item.short_names:
            entry["shortNames"] = list(item.short_names)
        if item.categories:
            entry["categories"] = list(item.categories)
        resources.append(entry)
        resources += [_legacy_subresource(item, name) for name in item.subresources]
    return {
        "kind": "APIResourceList",
        "apiVersion": "v1",
        "groupVersion": f"{group}/{version}" if group else version,
        "resources": resources,
    }


def _legacy_subresource(item: ResourceType, name: str) -> Object:
    sub_group, sub_version, kind, verbs = _SUBRESOURCES[name]
    entry: Object = {
        "name": f"{item.plural}/{name}",
        "singularName": "",
        "namespaced": item.namespaced,
        "kind": kind or item.kind,
        "verbs": list(verbs),
    }
    if kind and (sub_group, sub_version) != (item.group, item.version):
        entry["group"], entry["version"] = sub_group, sub_version
    return entry


def aggregated(types: Iterable[ResourceType], *, core: bool, version: str = "v2") -> Object:
    """`/api` (core) or `/apis` as APIGroupDiscoveryList of `apidiscovery.k8s.io/v2` or `v2beta1`."""
    items = [_discovered_group(name, versions) for name, versions in _groups(types).items() if (not name) == core]
    return {
        "kind": "APIGroupDiscoveryList",
        "apiVersion": f"apidiscovery.k8s.io/{version}",
        "metadata": {},
        "items": items,
    }


def _discovered_group(name: str, versions: dict[str, list[ResourceType]]) -> Object:
    return {
        "metadata": {"name": name, "creationTimestamp": None} if name else {"creationTimestamp": None},
        "versions": [
            {"version": version, "resources": _discovered_resources(served), "freshness": "Current"}
            for version, served in versions.items()
        ],
    }


def _kind(group: str, version: str, kind: str) -> Object:
    return {"group": group, "version": version, "kind": kind}


def _discovered_resources(served: Sequence[ResourceType]) -> list[Object]:
    resources: list[Object] = []
    for item in served:
        entry: Object = {
            "resource": item.plural,
            "responseKind": _kind(item.group, item.version, item.kind),
            "scope": "Namespaced" if item.namespaced else "Cluster",
            "singularResource": item.singular,
            "verbs": sorted(item.verbs),
        }
        if item.short_names:
            entry["shortNames"] = list(item.short_names)
        if item.categories:
            entry["categories"] = list(item.categories)
        if item.subresources:
            entry["subresources"] = [_discovered_subresource(item, name) for name in item.subresources]
        resources.append(entry)
    return resources


def _discovered_subresource(item: ResourceType, name: str) -> Object:
    group, version, kind, verbs = _SUBRESOURCES[name]
    answer = _kind(group, version, kind) if kind else _kind(item.group, item.version, item.kind)
    return {"subresource": name, "responseKind": answer, "verbs": list(verbs)}
