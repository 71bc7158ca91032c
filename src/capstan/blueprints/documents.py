"""From blueprint documents to layers: shape checks, references, the order of inheritance.

A blueprint extends at most one base and mixes in any number of others; all of them are blueprints. `Library.layers`
puts them in order of precedence, lowest first: the base's own layers, each mixin's, then the blueprint.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Literal, TypeVar

import msgspec

from capstan.api.platform import API_VERSION
from capstan.blueprints import facts, paths, versions
from capstan.blueprints.errors import BlueprintError, Problem

Manifest = dict[str, Any]
T = TypeVar("T")

_NAME = re.compile(r"[a-z0-9]([-a-z0-9.]*[a-z0-9])?")
_AT = re.compile(r"^(.*) - at `\$?(.*)`$")


class Source(msgspec.Struct, frozen=True):
    """One document of a file. `attachments` are the contents of the files that its add-ons name."""

    file: str
    document: dict[str, Any]
    attachments: dict[str, list[Manifest]] = {}


class VariantPart(msgspec.Struct, rename="camel", omit_defaults=True):
    """What one blueprint says about a variant. Without `when` it adds to the variant of the same name further down."""

    name: str
    when: dict[str, Any] | None = None
    values: dict[str, Any] = {}
    addons: dict[str, dict[str, Any]] = {}


class Layer(msgspec.Struct, rename="camel", omit_defaults=True):
    """One blueprint's contribution. `addons` maps names to bodies, whose manifests are keyed by `identity`."""

    name: str
    role: Literal["base", "mixin", "blueprint"] = "blueprint"
    file: str = ""
    version: str = ""
    values: dict[str, Any] = {}
    addons: dict[str, dict[str, Any]] = {}
    variants: list[VariantPart] = []
    locked: list[str] = []


class _Strict(msgspec.Struct, rename="camel", forbid_unknown_fields=True, omit_defaults=True):
    pass


class _Blueprint(_Strict):
    version: str | None = None
    description: str = ""
    extends: str | None = None
    mixins: list[str] = []
    values: dict[str, Any] = {}
    addons: list[dict[str, Any]] = []
    variants: list[dict[str, Any]] = []
    locked: list[str] = []


class _Addon(_Strict):
    name: str
    enabled: bool | None = None
    builtin: str | None = None
    depends_on: list[str] | None = None
    values: dict[str, Any] | None = None
    manifests: list[dict[str, Any]] | None = None
    files: list[str] | None = None


class _Variant(_Strict):
    name: str
    when: dict[str, Any] | None = None
    values: dict[str, Any] = {}
    addons: list[dict[str, Any]] = []


class _Override(_Strict):
    values: dict[str, Any] = {}
    addons: list[dict[str, Any]] = []


class _Draft(msgspec.Struct):
    layer: Layer
    extends: str
    mixins: list[str]


def identity(manifest: Mapping[str, Any]) -> str:
    """`Kind.group/namespace/name`, the key of a manifest within a blueprint; parts that are empty are left out."""
    group = manifest.get("apiVersion", "").rpartition("/")[0]
    metadata = manifest.get("metadata") or {}
    kind = f"{manifest.get('kind', '')}.{group}" if group else manifest.get("kind", "")
    return "/".join(part for part in (kind, metadata.get("namespace", ""), metadata.get("name", "")) if part)


def misshapen(manifest: Mapping[str, Any]) -> tuple[str, str] | None:
    """(path, what is wrong) when a manifest cannot be an object at all; its content is the API server's to judge."""
    for field in ("apiVersion", "kind"):
        if not isinstance(manifest.get(field), str) or not manifest[field]:
            return field, "missing"
    metadata = manifest.get("metadata")
    if not isinstance(metadata, Mapping) or not isinstance(metadata.get("name"), str) or not metadata["name"]:
        return "metadata.name", "missing; objects of a blueprint have fixed names"
    if not isinstance(metadata.get("namespace", ""), str):
        return "metadata.namespace", "expected text"
    for field in ("labels", "annotations"):
        if not isinstance(metadata.get(field) or {}, Mapping):
            return f"metadata.{field}", "expected an object"
    return None


def attachments(document: Mapping[str, Any]) -> list[str]:
    """The files that a document's add-ons name, relative to the document's own file."""
    spec = document.get("spec")
    groups = [spec, *_objects(spec, "variants")] if isinstance(spec, Mapping) else []
    addons = [addon for group in groups for addon in _objects(group, "addons")]
    return [
        file
        for addon in addons
        if isinstance(addon.get("files"), list)
        for file in addon["files"]
        if isinstance(file, str)
    ]


def _objects(parent: Mapping[str, Any], field: str) -> list[Mapping[str, Any]]:
    """The objects in a list that has not been checked yet."""
    items = parent.get(field)
    return [item for item in items if isinstance(item, Mapping)] if isinstance(items, list) else []


class Library:
    """All blueprints that are at hand, by name. `problems` collects what is wrong with the documents themselves."""

    def __init__(self, sources: Iterable[Source] = ()) -> None:
        self.problems: list[Problem] = []
        self._drafts: dict[str, _Draft] = {}
        for source in sources:
            self.add(source)

    @property
    def names(self) -> list[str]:
        return list(self._drafts)

    def file(self, name: str) -> str:
        return self._drafts[name].layer.file

    def version(self, name: str) -> str:
        return self._drafts[name].layer.version

    def add(self, source: Source) -> None:
        document = source.document
        if document.get("apiVersion") != API_VERSION or document.get("kind") != "Blueprint":
            found = f"{document.get('apiVersion')} {document.get('kind')}"
            self._report(source.file, "", "", f"expected a {API_VERSION} Blueprint, found {found}")
            return
        metadata = document.get("metadata")
        name = metadata.get("name") if isinstance(metadata, Mapping) else None
        if not isinstance(name, str) or not _NAME.fullmatch(name):
            self._report(source.file, "Blueprint", "metadata.name", f"{name!r} is not a lower-case DNS name")
            return
        where = f"Blueprint {name}"
        if name in self._drafts:
            self._report(
                source.file, where, "metadata.name", f"also defined in {self.file(name)}", "rename one of them"
            )
            return
        reader = _Reader(source, where, self.problems)
        spec = reader.convert(document.get("spec") or {}, _Blueprint, "spec")
        if spec is None:
            return
        if spec.version is not None and versions.parse(spec.version) is None:
            hint = "write major.minor.patch, for example 1.4.0"
            reader.report("spec.version", f"{spec.version!r} is not a semantic version", hint)
        for number, text in enumerate(spec.locked):
            path = paths.parse(text)
            if path is None or path[0] not in ("values", "addons"):
                hint = "write values.<name> or addons.<add-on>.values.<name>"
                reader.report(f"spec.locked[{number}]", f"{text!r} is not a path", hint)
        layer = Layer(
            name=name,
            file=source.file,
            version=spec.version or "",
            values=spec.values,
            addons=reader.addons(spec.addons, "spec.addons"),
            variants=reader.variants(spec.variants),
            locked=[text for text in spec.locked if paths.parse(text)],
        )
        self._drafts[name] = _Draft(layer, spec.extends or "", spec.mixins)

    def layers(self, name: str) -> list[Layer]:
        """The layers of a blueprint, lowest precedence first, each once. Raises BlueprintError if any is not sound."""
        if name not in self._drafts:
            known = ", ".join(sorted(self._drafts)) or "none"
            message = f"unknown blueprint; the files define: {known}"
            raise BlueprintError([*self.problems, Problem("", f"Blueprint {name}", "", message)])
        layers, problems = self.chain(name)
        involved = {f"Blueprint {layer.name}" for layer in layers}
        problems = [problem for problem in self.problems if problem.object in involved] + problems
        if problems:
            raise BlueprintError(problems)
        return layers

    def chain(self, name: str) -> tuple[list[Layer], list[Problem]]:
        """The layers of a known blueprint as far as they can be found, and what is wrong with its references."""
        problems: list[Problem] = []
        found: dict[str, Layer] = {}
        self._collect(name, "blueprint", (), found, problems)
        return list(found.values()), problems

    def _collect(
        self, name: str, role: str, trail: tuple[str, ...], found: dict[str, Layer], problems: list[Problem]
    ) -> None:
        draft = self._drafts[name]
        if name in trail:
            cycle = " -> ".join((*trail[trail.index(name) :], name))
            hint = "remove one of these extends or mixins"
            problems.append(
                Problem(draft.layer.file, f"Blueprint {name}", "spec.extends", f"layers form a cycle: {cycle}", hint)
            )
            return
        parts = [(draft.extends, "base", "spec.extends")] if draft.extends else []
        parts += [(mixin, "mixin", f"spec.mixins[{number}]") for number, mixin in enumerate(draft.mixins)]
        for reference, below, path in parts:
            parent, _, wanted = reference.partition("@")
            where = (draft.layer.file, f"Blueprint {name}", path)
            if parent not in self._drafts:
                known = ", ".join(sorted(self._drafts.keys() - {name})) or "none"
                hint = f"known are: {known}; add the file that defines it"
                problems.append(Problem(*where, f"unknown blueprint {parent!r}", hint))
                continue
            if wanted and not versions.within(self.version(parent) or "none", wanted):
                hint = "widen the range or take another version of the base"
                actual = self.version(parent) or "no version"
                problems.append(Problem(*where, f"{parent} has {actual}, which is not in {wanted!r}", hint))
            self._collect(parent, below if role == "blueprint" else role, (*trail, name), found, problems)
        if name not in found:
            found[name] = msgspec.structs.replace(draft.layer, role=role)

    def _report(self, file: str, where: str, path: str, message: str, hint: str = "") -> None:
        self.problems.append(Problem(file, where, path, message, hint))


def override_layer(
    body: Mapping[str, Any], cluster: str, file: str, problems: list[Problem]
) -> tuple[dict[str, Any], dict[str, dict[str, Any]]]:
    """The values and add-ons of a cluster's override."""
    reader = _Reader(Source(file, {}), f"Cluster {cluster}", problems)
    override = reader.convert(dict(body), _Override, "spec.override") or _Override()
    return override.values, reader.addons(override.addons, "spec.override.addons")


class _Reader:
    """Turns parts of one document into structs and reports what does not fit with its path."""

    def __init__(self, source: Source, where: str, problems: list[Problem]) -> None:
        self._source, self._where, self._problems = source, where, problems

    def report(self, path: str, message: str, hint: str = "") -> None:
        self._problems.append(Problem(self._source.file, self._where, path, message, hint))

    def convert(self, value: Any, struct: type[T], path: str) -> T | None:
        try:
            return msgspec.convert(value, struct)
        except msgspec.ValidationError as error:
            found = _AT.match(str(error))
            message, below = (found[1], found[2]) if found else (str(error), "")
            self.report(path + below, message[:1].lower() + message[1:])
            return None

    def addons(self, raw: Sequence[dict[str, Any]], path: str) -> dict[str, dict[str, Any]]:
        bodies: dict[str, dict[str, Any]] = {}
        for number, item in enumerate(raw):
            label = f"{path}[{item.get('name', number)}]"
            addon = self.convert(item, _Addon, label)
            if addon is None:
                continue
            if addon.name in bodies:
                self.report(label, "this add-on stands twice in one list", "merge the two entries")
                continue
            body: dict[str, Any] = {}
            if addon.enabled is not None:
                body["enabled"] = addon.enabled
            if addon.builtin is not None:
                body["builtin"] = addon.builtin
            if addon.depends_on is not None:
                body["dependsOn"] = addon.depends_on
            if addon.values is not None:
                body["values"] = addon.values
            manifests = list(addon.manifests or ())
            for file in addon.files or ():
                if file not in self._source.attachments:
                    self.report(f"{label}.files", f"{file} was not found", f"paths are relative to {self._source.file}")
                manifests += self._source.attachments.get(file, [])
            if addon.manifests is not None or addon.files is not None:
                body["manifests"] = self._manifests(manifests, f"{label}.manifests")
            bodies[addon.name] = body
        return bodies

    def variants(self, raw: Sequence[dict[str, Any]]) -> list[VariantPart]:
        parts = []
        for number, item in enumerate(raw):
            label = f"spec.variants[{item.get('name', number)}]"
            variant = self.convert(item, _Variant, label)
            if variant is None:
                continue
            for name in facts.terms(variant.when or {}):
                if name not in facts.NAMES and not name.startswith("labels."):
                    known = ", ".join(sorted(facts.NAMES))
                    self.report(f"{label}.when", f"unknown fact {name!r}", f"use one of {known}, or labels.<key>")
            parts.append(
                VariantPart(variant.name, variant.when, variant.values, self.addons(variant.addons, f"{label}.addons"))
            )
        return parts

    def _manifests(self, manifests: list[Manifest], path: str) -> dict[str, Manifest | None]:
        """By identity; None deletes what a lower layer has, written like in a strategic merge patch."""
        keyed: dict[str, Manifest | None] = {}
        for number, manifest in enumerate(manifests):
            label = f"{path}[{number}]"
            if (wrong := misshapen(manifest)) is not None:
                self.report(f"{label}.{wrong[0]}", wrong[1])
            elif (key := identity(manifest)) in keyed:
                self.report(label, f"{key} stands twice in this add-on", "merge the two")
            else:
                keyed[key] = None if manifest.get("$patch") == "delete" else manifest
        return keyed
