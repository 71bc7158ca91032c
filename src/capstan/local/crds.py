"""CustomResourceDefinitions become served types: schema, pruning, defaults, rules, columns, subresources of each
version.

Rules: apiextensions.k8s.io/v1; structural schemas (KEP-1152), pruning (KEP-709), defaulting (KEP-575), validation rules
in CEL (KEP-2876), selectable fields (KEP-4358). Versions of one definition share their stored objects; without a
conversion webhook only apiVersion differs between them.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import cached_property
from typing import Any

from capstan.api import openapi
from capstan.api.base import StatusCause
from capstan.api.openapi import REF, JsonSchema
from capstan.local import tables, validation
from capstan.local.crds_rules import Rules
from capstan.local.tables import Printer
from capstan.local.types_base import Object, ResourceType, SelectableField, Undecodable

_METADATA = {"$ref": f"{REF}io.k8s.apimachinery.pkg.apis.meta.v1.ObjectMeta"}
_OPEN: JsonSchema = {"type": "object", "x-kubernetes-preserve-unknown-fields": True}

ScalePaths = tuple[tuple[str, ...], tuple[str, ...], tuple[str, ...]]


class CustomType(ResourceType):
    """One version of a custom resource."""

    strategic_merge = False

    def __init__(self, definition: Object, version: Object) -> None:
        spec, names = definition["spec"], definition["spec"]["names"]
        self.declared_schema: JsonSchema = (version.get("schema") or {}).get("openAPIV3Schema") or _OPEN
        subresources = version.get("subresources") or {}
        self.has_status = "status" in subresources
        group, name = spec["group"], version["name"]
        stored = next(each["name"] for each in spec["versions"] if each.get("storage"))
        super().__init__(
            group=group,
            version=name,
            plural=names["plural"],
            kind=names["kind"],
            namespaced=spec["scope"] == "Namespaced",
            schema=_served_schema(self.declared_schema, group, name, names["kind"]),
            schema_name=".".join([*reversed(group.split(".")), name, names["kind"]]),
            definitions=openapi.definitions(),
            singular=names.get("singular") or names["kind"].lower(),
            list_kind=names.get("listKind") or f"{names['kind']}List",
            short_names=tuple(names.get("shortNames") or ()),
            categories=tuple(names.get("categories") or ()),
            subresources=tuple(each for each in ("status", "scale") if each in subresources),
            selectable=tuple(_selectable(field["jsonPath"]) for field in version.get("selectableFields") or ()),
            storage_version=f"{group}/{stored}",
        )
        self.scale: ScalePaths | None = _scale_paths(subresources.get("scale"))
        """Where the replicas, their observed number and the label selector stand; the last may be empty."""
        self._printer = tables.custom(version.get("additionalPrinterColumns") or [])

    @cached_property
    def _rules(self) -> Rules:
        return Rules(self.declared_schema)

    @property
    def printer(self) -> Printer:
        return self._printer

    def _decode(self, obj: Object) -> None:
        structural = self.structural
        if not structural.valid(obj):
            if isinstance(obj.get("metadata"), dict):
                obj["metadata"] = {key: value for key, value in obj["metadata"].items() if value is not None}
            for path, expected, found in structural.type_errors(obj):
                if path == "metadata" or path.startswith("metadata."):
                    raise Undecodable(
                        f"{self.kind} in version {self.version!r} cannot be handled as a {self.kind}: json: cannot "
                        f"unmarshal {found} into Go struct field ObjectMeta.{path} of type {expected}"
                    )
            structural.prune(obj)
        structural.default(obj)

    def prepare_create(self, obj: Object) -> Object:
        obj.setdefault("metadata", {})
        self._decode(obj)
        if self.has_status:
            obj.pop("status", None)
        obj["metadata"]["generation"] = 1
        return obj

    def prepare_update(self, new: Object, old: Object) -> Object:
        new.setdefault("metadata", {})
        self._decode(new)
        if self.has_status:
            if "status" in old:
                new["status"] = old["status"]
            else:
                new.pop("status", None)
        apart = {"apiVersion", "kind", "metadata", *(("status",) if self.has_status else ())}
        changed = any(new.get(key) != old.get(key) for key in {*new, *old} - apart)
        new["metadata"]["generation"] = old["metadata"].get("generation", 1) + changed
        return new

    def prepare_status_update(self, new: Object, old: Object) -> Object:
        new.setdefault("metadata", {})
        self._decode(new)
        meta = dict(old["metadata"])
        for key in ("managedFields", "resourceVersion"):
            if key in new["metadata"]:
                meta[key] = new["metadata"][key]
        kept: Object = {key: value for key, value in old.items() if key != "status"}
        kept["metadata"] = meta
        if "status" in new:
            kept["status"] = new["status"]
        return kept

    def validate(self, new: Object, old: Object | None = None) -> list[StatusCause]:
        causes = validation.metadata(new, namespaced=self.namespaced, name_rule="k8s-long-name")
        if old is not None:
            causes += validation.metadata_update(new, old)
        return causes + self._content(new, old)

    def validate_status(self, new: Object, old: Object) -> list[StatusCause]:
        return validation.metadata_update(new, old) + self._content(new, old)

    def _content(self, new: Object, old: Object | None) -> list[StatusCause]:
        """Schema first; rules only over an object that keeps the schema, since they rely on its types."""
        structural = self.structural
        causes = [] if structural.valid(new) else structural.errors(new)
        causes += structural.duplicates(new)
        return causes or self._rules.check(new, old)


def types_of(crd: Object) -> Iterator[CustomType]:
    """The served versions of a valid definition, in its order."""
    for version in crd["spec"]["versions"]:
        if version.get("served"):
            yield CustomType(crd, version)


def _served_schema(declared: JsonSchema, group: str, version: str, kind: str) -> JsonSchema:
    """The declared schema with the metadata every object has."""
    properties: dict[str, Any] = {
        "apiVersion": {"type": "string", "description": "Group and version of this object."},
        "kind": {"type": "string", "description": "The kind of this object."},
        "metadata": {**_METADATA},
        **{key: value for key, value in (declared.get("properties") or {}).items() if key not in _TOP},
    }
    return {
        **declared,
        "properties": properties,
        "x-kubernetes-group-version-kind": [{"group": group, "version": version, "kind": kind}],
    }


_TOP = ("apiVersion", "kind", "metadata")


def _steps(path: str) -> tuple[str, ...]:
    """A simple JSON path (`.spec.replicas`) as steps."""
    return tuple(step for step in path.split(".") if step)


def _selectable(path: str) -> SelectableField:
    return SelectableField(path.removeprefix("."), _steps(path))


def _scale_paths(scale: Object | None) -> ScalePaths | None:
    if not scale:
        return None
    selector = scale.get("labelSelectorPath") or ""
    return _steps(scale["specReplicasPath"]), _steps(scale["statusReplicasPath"]), _steps(selector)
