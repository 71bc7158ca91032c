"""What `capstan allocate` reads: slices, classes and who holds what from one file, claims and pods from another."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import click
import msgspec

from capstan import allocation
from capstan.api import manifests
from capstan.api.base import ObjectMeta
from capstan.api.core import Node, Pod
from capstan.api.resource import DeviceClass, DeviceTaintRule, ResourceClaim, ResourceClaimTemplate, ResourceSlice

C = TypeVar("C", ResourceClaim, ResourceClaimTemplate)


class Unreadable(click.ClickException):
    """What was given cannot be understood; no allocation was tried."""

    exit_code = 2


_NAMESPACED = frozenset(("ResourceClaim", "ResourceClaimTemplate", "Pod"))
_KINDS: Mapping[str, type] = {
    "ResourceSlice": ResourceSlice,
    "DeviceClass": DeviceClass,
    "DeviceTaintRule": DeviceTaintRule,
    "ResourceClaim": ResourceClaim,
    "ResourceClaimTemplate": ResourceClaimTemplate,
    "Node": Node,
    "Pod": Pod,
}
_FLAT = (
    "deviceClassName",
    "selectors",
    "allocationMode",
    "count",
    "adminAccess",
    "tolerations",
    "capacity",
    "derivedAttributes",
)


@dataclass
class Group:
    """Claims that are allocated together, because one pod needs them."""

    name: str
    claims: list[ResourceClaim] = field(default_factory=list)


@dataclass
class Inputs:
    inventory: allocation.Inventory
    nodes: dict[str, allocation.NodeView] = field(default_factory=dict)
    """Every node that is described or that slices name, in order of their names."""
    groups: list[Group] = field(default_factory=list)


def read(claims: Path, slices: Path, features: allocation.Features) -> Inputs:
    """`-` is standard input; one file may be both. Raises Unreadable naming the file, the object and the field that
    cannot be read."""
    inputs = Inputs(allocation.Inventory(features))
    asked = _objects(claims)
    offered = [] if slices.resolve() == claims.resolve() else _objects(slices)
    names: set[str] = set()
    for item in _once(offered, asked):
        if isinstance(item, Node):
            inputs.nodes[item.metadata.name] = allocation.NodeView(item.metadata.name, item.metadata.labels)
        if isinstance(item, ResourceSlice):
            places = [item.spec.node_name, *(device.node_name for device in item.spec.devices)]
            names.update(name for name in places if name)
        if isinstance(item, (ResourceSlice, DeviceClass, DeviceTaintRule, Node)):
            inputs.inventory.upsert(item)
        if isinstance(item, ResourceClaim) and (item.status.allocation is not None):
            inputs.inventory.upsert(item)
    for name in names - inputs.nodes.keys():
        inputs.nodes[name] = allocation.NodeView(name)
    inputs.nodes = dict(sorted(inputs.nodes.items()))
    inputs.groups = _groups(asked, inputs.inventory)
    if asked and not inputs.groups:
        raise Unreadable(f"{claims}: no claim to allocate; give ResourceClaims, or pods with their templates")
    return inputs


def _once(offered: list[Any], asked: list[Any]) -> list[Any]:
    """All objects. A slice that is in both files counts once; one file may hold slices of the same name, or of none,
    which no cluster has at once: each counts."""
    known: dict[str, list[ResourceSlice]] = {}
    for item in offered:
        if isinstance(item, ResourceSlice):
            known.setdefault(item.metadata.name, []).append(item)
    more = [i for i in asked if not (isinstance(i, ResourceSlice) and i in known.get(i.metadata.name, ()))]
    seen: dict[str, int] = {}
    for entry in (item for item in (*offered, *more) if isinstance(item, ResourceSlice)):
        name = entry.metadata.name
        seen[name] = times = seen.get(name, 0) + 1
        if times > 1:
            entry.metadata.name = f"{name}#{times}"
    return [*offered, *more]


def _objects(path: Path) -> list[Any]:
    try:
        if str(path) == "-":
            documents = manifests.load_manifests(sys.stdin.buffer.read(), "standard input")
        else:
            documents = manifests.load_manifests(path.read_bytes(), str(path))
    except manifests.InvalidManifest as error:
        raise Unreadable(str(error)) from error
    return [
        item for number, document in enumerate(documents, 1) for item in _convert(document, f"{path}: object {number}")
    ]


def _convert(document: dict[str, Any], where: str) -> Iterable[Any]:
    kind = str(document["kind"])
    if kind.removesuffix("List") in _KINDS and isinstance(document.get("items"), list):
        for item in document["items"]:
            yield _decode(dict(item), kind.removesuffix("List"), where, str(document["apiVersion"]))
    elif kind in _KINDS:
        yield _decode(document, kind, where, str(document["apiVersion"]))


def _decode(document: dict[str, Any], kind: str, where: str, api_version: str) -> Any:
    if api_version == "resource.k8s.io/v1beta1":
        document = _upgraded(document, kind)
    document = _without_nulls(document)
    try:
        item: Any = msgspec.convert(document, _KINDS[kind], strict=False)
        if kind in _NAMESPACED and not item.metadata.namespace:
            item.metadata.namespace = "default"
        return item
    except msgspec.ValidationError as error:
        name = (document.get("metadata") or {}).get("name", "")
        raise Unreadable(f"{where} ({kind} {name}): {error}") from error


def _without_nulls(value: Any) -> Any:
    """A null is a field that is not set; what drivers are told (`parameters`) is theirs."""
    if isinstance(value, dict):
        return {k: v if k == "parameters" else _without_nulls(v) for k, v in value.items() if v is not None}
    return [_without_nulls(each) for each in value] if isinstance(value, list) else value


def _upgraded(document: dict[str, Any], kind: str) -> dict[str, Any]:
    """v1beta1 writes exact requests flat and devices below `basic`."""
    spec = dict(document.get("spec") or {})
    if kind == "ResourceSlice":
        spec["devices"] = [{"name": d.get("name"), **(d.get("basic") or {})} for d in spec.get("devices") or []]
    elif kind == "ResourceClaimTemplate":
        spec["spec"] = _exact(spec.get("spec") or {})
    elif kind == "ResourceClaim":
        spec = _exact(spec)
    return {**document, "spec": spec}


def _exact(spec: dict[str, Any]) -> dict[str, Any]:
    devices = dict(spec.get("devices") or {})
    devices["requests"] = [
        r
        if "exactly" in r or "firstAvailable" in r
        else {"name": r.get("name"), "exactly": {k: v for k, v in r.items() if k in _FLAT}}
        for r in devices.get("requests") or []
    ]
    return {**spec, "devices": devices}


def _groups(asked: list[Any], inventory: allocation.Inventory) -> list[Group]:
    """One group per pod; claims and templates that no pod uses form one group together."""
    claims = _by_key(item for item in asked if isinstance(item, ResourceClaim))
    templates = _by_key(item for item in asked if isinstance(item, ResourceClaimTemplate))
    used: set[tuple[str, str]] = set()
    groups = []
    for pod in (item for item in asked if isinstance(item, Pod)):
        group = Group(f"{pod.metadata.namespace}/{pod.metadata.name}")
        for entry in pod.spec.resource_claims:
            key = (pod.metadata.namespace, entry.resource_claim_name or entry.resource_claim_template_name or "")
            used.add(key)
            if entry.resource_claim_name and key in claims:
                group.claims.append(claims[key])
            elif entry.resource_claim_template_name and key in templates:
                group.claims.append(_from_template(templates[key], f"{pod.metadata.name}-{entry.name}"))
            else:
                raise Unreadable(f"pod {group.name}: its claim {entry.name} refers to {key[1]!r}, which is not given")
        try:
            implied = allocation.claim_for_pod(pod, inventory)
        except allocation.InvalidPodRequest as error:
            raise Unreadable(f"pod {group.name}: {error}") from error
        if implied is not None:
            group.claims.append(implied)
        groups.append(group)
    loose = [claim for key, claim in claims.items() if key not in used]
    loose += [
        _from_template(template, template.metadata.name) for key, template in templates.items() if key not in used
    ]
    if loose:
        groups.append(Group("claims", loose))
    return groups


def _by_key(items: Iterable[C]) -> dict[tuple[str, str], C]:
    found: dict[tuple[str, str], C] = {}
    for item in items:
        if item.key in found:
            raise Unreadable(f"{item.kind or 'object'} {'/'.join(item.key)} is given twice")
        found[item.key] = item
    return found


def _from_template(template: ResourceClaimTemplate, name: str) -> ResourceClaim:
    return ResourceClaim(metadata=ObjectMeta(name=name, namespace=template.metadata.namespace), spec=template.spec.spec)
