"""The CustomResourceDefinitions that the platform installs: KAI Scheduler's kinds and its own.

KAI's are written in the notation of `capstan.api.openapi`, because they contain Kubernetes types; ours are plain
manifests.
"""

from __future__ import annotations

import copy
from functools import cache
from importlib import resources
from typing import Any

from capstan.api import manifests
from capstan.api.openapi_custom import CustomResource, custom_resources

Definition = dict[str, Any]


def load() -> list[Definition]:
    """Every definition as a plain object, by name; the caller may change them."""
    return copy.deepcopy(_loaded())


@cache
def _loaded() -> list[Definition]:
    found: list[Definition] = []
    for entry in resources.files(__name__).iterdir():
        if entry.name.endswith(".yaml"):
            found += manifests.load_all(entry.read_text("utf-8"), entry.name)
        elif entry.name.endswith(".txt"):
            found += [_definition(each) for each in custom_resources(entry.read_text("utf-8"), entry.name)]
    return sorted(found, key=lambda definition: str(definition["metadata"]["name"]))


def _definition(custom: CustomResource) -> Definition:
    resource = custom.resource
    version: Definition = {
        "name": resource.version,
        "served": True,
        "storage": True,
        "schema": {"openAPIV3Schema": custom.schema},
    }
    if "status" in resource.subresources:
        version["subresources"] = {"status": {}}
    if custom.columns:
        version["additionalPrinterColumns"] = custom.columns
    names: Definition = {
        "kind": resource.kind,
        "listKind": f"{resource.kind}List",
        "plural": resource.plural,
        "singular": resource.singular,
    }
    if resource.short_names:
        names["shortNames"] = list(resource.short_names)
    return {
        "apiVersion": "apiextensions.k8s.io/v1",
        "kind": "CustomResourceDefinition",
        "metadata": {"name": f"{resource.plural}.{resource.group}"},
        "spec": {
            "group": resource.group,
            "names": names,
            "scope": "Namespaced" if resource.namespaced else "Cluster",
            "versions": [version],
        },
    }
