"""Objects that the type tests share."""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import Any

import pytest

from capstan.api import crds, manifests
from capstan.local.types import ResourceType, builtin_types, from_crd

Object = dict[str, Any]

INPUTS = Path(__file__).parents[2].parent / "shared" / "inputs"


@cache
def kinds() -> dict[tuple[str, str], ResourceType]:
    """(apiVersion, kind) → type, for everything built in and everything the platform installs."""
    definition = {(item.api_version, item.kind): item for item in builtin_types()}
    custom = definition["apiextensions.k8s.io/v1", "CustomResourceDefinition"]
    for crd in crds.load():
        for item in from_crd(custom.prepare_create(crd)):
            definition[item.api_version, item.kind] = item
    return definition


def kind(api_version: str, name: str) -> ResourceType:
    return kinds()[api_version, name]


def input_manifests(part: str) -> list[tuple[str, Object]]:
    """(file, object) of the upstream manifests below a folder of the shared inputs; skips the test without them."""
    if not INPUTS.is_dir():
        pytest.skip("the upstream manifests in ../shared/inputs are not here")
    return [
        (path.name, manifest)
        for path in sorted((INPUTS / part).rglob("*.yaml"))
        for manifest in manifests.load_manifests(path.read_text("utf-8"), path.name)
    ]


def placed(obj: Object, item: ResourceType) -> Object:
    """The object with what the server adds before it asks the type."""
    meta = obj.setdefault("metadata", {})
    meta.setdefault("uid", "0b5a7c1e-0000-0000-0000-000000000000")
    if "generateName" in meta:
        meta.setdefault("name", meta["generateName"] + "x7k2p")
    if item.namespaced:
        meta.setdefault("namespace", "default")
    return obj


def pod(**spec: Any) -> Object:
    return {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"name": "web", "namespace": "default"},
        "spec": {"containers": [{"name": "main", "image": "busybox:1.36"}], **spec},
    }


def created(obj: Object) -> Object:
    item = kind(obj["apiVersion"], obj["kind"])
    return item.prepare_create(placed(obj, item))


def complaints(obj: Object, old: Object | None = None) -> dict[str, str]:
    """field → message of what validation says about a prepared object."""
    return {cause.field: cause.message for cause in kind(obj["apiVersion"], obj["kind"]).validate(obj, old)}
