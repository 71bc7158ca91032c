"""The compiler: layers and facts in, an ordered list of frozen manifests and their digest out.

A pure function: the same layers, facts and override always give the same bytes, so a digest says what a cluster runs.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import msgspec

from capstan.api.platform import ADDON_LABEL
from capstan.blueprints import expressions, facts, paths, versions
from capstan.blueprints.components import COMPONENTS, InvalidValues
from capstan.blueprints.documents import Layer, Library, Manifest, identity, misshapen
from capstan.blueprints.errors import BlueprintError, Problem
from capstan.blueprints.order import Cycle, addon_order, manifest_order
from capstan.blueprints.resolve import (
    Override,
    Reporter,
    Resolved,
    Tree,
    conditions,
    resolve,
    select_variant,
    substitute,
    variant_names,
)

_canonical = msgspec.json.Encoder(order="sorted")


class Item(msgspec.Struct, frozen=True):
    """One manifest as it is to be applied."""

    addon: str
    identity: str
    manifest: Manifest


class Compiled(msgspec.Struct, frozen=True):
    """`items` are in the order of application; `digest` is of their content and order."""

    blueprint: str
    version: str
    variant: str
    digest: str
    items: list[Item]
    resolved: Resolved


def digest(value: Any) -> str:
    """`sha256:<hex>` of canonical JSON: sorted keys, no spaces."""
    return "sha256:" + hashlib.sha256(_canonical.encode(value)).hexdigest()


def compile(layers: Sequence[Layer], cluster_facts: facts.Facts, override: Override | None = None) -> Compiled:
    """What a cluster with these facts runs. Raises BlueprintError with everything that is wrong."""
    problems: list[Problem] = []
    compiled = _compile(layers, select_variant(layers, cluster_facts), cluster_facts, override, problems)
    if problems:
        raise BlueprintError(problems)
    return compiled


def lint(library: Library, overrides: Iterable[Override] = ()) -> list[Problem]:
    """Everything that is wrong with the blueprints, each with all of its variants, whatever cluster they meet."""
    problems = list(library.problems)
    for name in library.names:
        layers, wrong = library.chain(name)
        if wrong:
            problems += wrong
            continue
        problems += _ambiguous(layers)
        if not library.version(name):
            continue  # a part of others; it is compiled with them
        for variant in ("", *variant_names(layers)):
            for override in (None, *overrides):
                _compile(layers, variant, None, override, problems)
    return list(dict.fromkeys(problems))


def published(library: Library, name: str) -> dict[str, Any]:
    """The BlueprintVersion object of a blueprint. Raises BlueprintError unless lint finds nothing."""
    problems = lint(library)
    if problems:
        raise BlueprintError(problems)
    layers = library.layers(name)
    version = library.version(name)
    if not version:
        message = "cannot be published without a version"
        raise BlueprintError([Problem(library.file(name), f"Blueprint {name}", "spec.version", message)])
    frozen = msgspec.to_builtins(layers)
    return {
        "apiVersion": "platform.capstan.dev/v1alpha1",
        "kind": "BlueprintVersion",
        "metadata": {"name": f"{name}-{version}"},
        "spec": {"blueprint": name, "version": version, "digest": digest(frozen), "layers": frozen},
    }


def layers_of(version: Mapping[str, Any]) -> list[Layer]:
    """The layers in the spec of a BlueprintVersion. Raises BlueprintError when they do not match their digest."""
    where = f"BlueprintVersion {version.get('blueprint')}-{version.get('version')}"
    stated, actual = version.get("digest"), digest(version.get("layers"))
    if stated != actual:
        hint = "it was changed after it was published; publish it again under a new version"
        raise BlueprintError([Problem("", where, "spec.digest", f"is {stated}, but the layers have {actual}", hint)])
    try:
        return msgspec.convert(version.get("layers"), list[Layer])
    except msgspec.ValidationError as error:
        raise BlueprintError([Problem("", where, "spec.layers", str(error))]) from None


def _compile(
    layers: Sequence[Layer],
    variant: str,
    cluster_facts: facts.Facts | None,
    override: Override | None,
    problems: list[Problem],
) -> Compiled:
    top = layers[-1]
    where = (top.file, f"Blueprint {top.name}")
    resolved = resolve(layers, variant, override, problems)
    known: dict[str, Any] = {} if cluster_facts is None else {"facts": cluster_facts}
    values = substitute(resolved.tree["values"], known, Reporter(problems, where, ("values",)))
    scope = {**known, "values": values}
    bodies: dict[str, Tree] = {
        name: body for name, body in resolved.tree["addons"].items() if body.get("enabled", True) is not False
    }
    depends_on = _dependencies(bodies, resolved, where, problems)
    items: list[tuple[str, str, Manifest]] = []
    owners: dict[str, str] = {}
    for name in depends_on:
        for manifest in _render(name, bodies[name], scope, Reporter(problems, where, ("addons", name))):
            key = identity(manifest)
            if key in owners:
                message = f"{key} is also in the add-on {owners[key]}"
                problems.append(Problem(*where, paths.render(("addons", name)), message, "remove one of the two"))
                continue
            owners[key] = name
            items.append((name, key, _labelled(manifest, name)))
    for name, key, manifest in items:
        for path, message in expressions.problems(manifest):
            place = f"{paths.render(('addons', name))}: {key}"
            problems.append(Problem(*where, f"{place}: {path}", message, "correct the expression"))
    try:
        order = manifest_order(items, depends_on)
    except Cycle as cycle:
        message = f"these objects wait for each other: {cycle}"
        problems.append(Problem(*where, "addons", message, "remove a dependsOn that goes against it"))
        order = list(range(len(items)))
    ordered = [Item(*items[position]) for position in order]
    content = [[item.addon, item.manifest] for item in ordered]
    return Compiled(top.name, top.version, variant, digest(content), ordered, resolved)


def _dependencies(
    bodies: Mapping[str, Tree], resolved: Resolved, where: tuple[str, str], problems: list[Problem]
) -> dict[str, list[str]]:
    """dependsOn of every enabled add-on, dependencies first."""
    stated: dict[str, list[str]] = {}
    for name, body in bodies.items():
        stated[name] = []
        for other in body.get("dependsOn") or ():
            if other in bodies:
                stated[name].append(other)
                continue
            disabled = other in resolved.tree["addons"]
            message = f"depends on {other!r}, which is {'disabled' if disabled else 'not an add-on'}"
            hint = f"enable {other} or drop the dependency" if disabled else f"add-ons are: {', '.join(bodies)}"
            problems.append(Problem(*where, paths.render(("addons", name, "dependsOn")), message, hint))
    try:
        return {name: stated[name] for name in addon_order(stated)}
    except Cycle as cycle:
        message = f"add-ons depend on each other: {cycle}"
        problems.append(Problem(*where, "addons", message, "remove one dependsOn of the cycle"))
        return {name: [] for name in stated}


def _render(name: str, body: Tree, scope: Mapping[str, Any], report: Reporter) -> list[Manifest]:
    values = substitute(body.get("values") or {}, scope, report, ("values",))
    manifests: list[Manifest] = []
    builtin = body.get("builtin")
    if builtin is not None:
        component = COMPONENTS.get(builtin)
        if component is None:
            report(("builtin",), f"unknown component {builtin!r}", f"Capstan has: {', '.join(COMPONENTS)}")
        else:
            try:
                manifests += component.render(values)
            except InvalidValues as error:
                place = ("values", *(paths.parse(error.path) or ()))
                report(place, error.message, error.hint)
    elif "manifests" not in body:
        report((), "has no content", "state builtin, manifests or files, or set enabled: false")
    for key, template in (body.get("manifests") or {}).items():
        manifest = substitute(template, {**scope, "addon": values}, report, ("manifests", key))
        if (wrong := misshapen(manifest)) is not None:
            report(("manifests", key, *wrong[0].split(".")), wrong[1])
        else:
            manifests.append(manifest)
    return manifests


def _labelled(manifest: Manifest, addon: str) -> Manifest:
    metadata = manifest["metadata"]
    return {**manifest, "metadata": {**metadata, "labels": {**(metadata.get("labels") or {}), ADDON_LABEL: addon}}}


def _ambiguous(layers: Sequence[Layer]) -> list[Problem]:
    """Variants that state exactly the same terms tie on every cluster that they match."""
    found: list[Problem] = []
    seen: dict[bytes, str] = {}
    for name, (layer, when) in conditions(layers).items():
        terms = _canonical.encode(facts.terms(when))
        if terms in seen:
            message = f"the variants {seen[terms]} and {name} match the same clusters"
            found.append(
                Problem(layer.file, f"Blueprint {layer.name}", "spec.variants", message, "tell them apart in `when`")
            )
        seen.setdefault(terms, name)
        for fact, wanted in facts.terms(when).items():
            if fact == "kubernetes.version" and not all(
                versions.is_range(str(each)) for each in (wanted if isinstance(wanted, list) else [wanted])
            ):
                path = f"spec.variants[{name}].when.{fact}"
                message = f"{wanted!r} is not a version range"
                found.append(Problem(layer.file, f"Blueprint {layer.name}", path, message, "write for example >=1.34"))
    return found
