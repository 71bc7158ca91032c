"""From layers to one tree of values and add-ons, and the answer to "which layer set this?".

Precedence, lowest first: base, mixins in order, the blueprint, the variant, the cluster's override, locked values
again. A layer is merged like a JSON merge patch: maps merge, null deletes, everything else replaces.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import msgspec

from capstan import fields
from capstan.blueprints import facts as cluster_facts
from capstan.blueprints import paths
from capstan.blueprints.documents import Layer, override_layer
from capstan.blueprints.errors import BlueprintError, Problem
from capstan.blueprints.paths import MISSING, Path

PRECEDENCE = ("base", "mixin", "blueprint", "variant", "override", "locked")

Tree = dict[str, Any]
_REFERENCE = re.compile(r"\$\{((?:values|facts|addon)(?:\.[^.{}\s\[\]]+|\[[^\]{}]*\])+)\}")


class Override(NamedTuple):
    """The last layer: what a Cluster object says about itself."""

    cluster: str
    body: Mapping[str, Any]
    file: str = ""


class Applied(msgspec.Struct, frozen=True):
    """A layer as it was merged."""

    role: str
    name: str
    file: str
    content: Tree

    @property
    def label(self) -> str:
        return f"{self.role} {self.name}" + (f" ({self.file})" if self.file else "")


class Setting(msgspec.Struct, frozen=True):
    """One layer's word on a path; the last one that is not overruled is the effective value."""

    layer: str
    role: str
    file: str
    path: str
    value: Any
    effective: bool


class Resolved(msgspec.Struct, frozen=True):
    """`tree` has `values` and `addons`, with references still in place."""

    variant: str
    tree: Tree
    applied: list[Applied]


def variant_names(layers: Sequence[Layer]) -> list[str]:
    """The variants of all layers, in order of first mention."""
    return list(dict.fromkeys(part.name for layer in layers for part in layer.variants))


def conditions(layers: Sequence[Layer]) -> dict[str, tuple[Layer, Mapping[str, Any]]]:
    """variant -> (the layer that has the last word on when it applies, its terms)."""
    found: dict[str, tuple[Layer, Mapping[str, Any]]] = {}
    for layer in layers:
        for part in layer.variants:
            if part.when is not None or part.name not in found:
                found[part.name] = (layer, part.when or {})
    return found


def select_variant(layers: Sequence[Layer], facts: cluster_facts.Facts) -> str:
    """The matching variant with the most facts; empty when none matches. Raises BlueprintError for a tie."""
    matching = {
        name: (cluster_facts.specificity(when), layer)
        for name, (layer, when) in conditions(layers).items()
        if cluster_facts.matches(when, facts)
    }
    if not matching:
        return ""
    most = max(count for count, _ in matching.values())
    best = [name for name, (count, _) in matching.items() if count == most]
    if len(best) > 1:
        layer = matching[best[0]][1]
        message = f"the variants {' and '.join(best)} both match this cluster with {most} facts"
        hint = "add a fact to the one that shall win, or make them exclude each other"
        raise BlueprintError([Problem(layer.file, f"Blueprint {layer.name}", "spec.variants", message, hint)])
    return best[0]


def resolve(layers: Sequence[Layer], variant: str, override: Override | None, problems: list[Problem]) -> Resolved:
    """Merge the layers. Problems are appended; locked values win whatever is reported."""
    stack = [Applied(layer.role, layer.name, layer.file, _content(layer.values, layer.addons)) for layer in layers]
    locks_of = [layer.locked for layer in layers]
    stack += [
        Applied("variant", part.name, layer.file, _content(part.values, part.addons))
        for layer in layers
        for part in layer.variants
        if part.name == variant
    ]
    if override is not None and override.body:
        values, addons = override_layer(override.body, override.cluster, override.file, problems)
        stack.append(Applied("override", override.cluster, override.file, _content(values, addons)))
    tree: Tree = {"values": {}, "addons": {}}
    locks: dict[Path, tuple[Applied, Any]] = {}
    for position, applied in enumerate(stack):
        for path, (owner, value) in locks.items():
            _check_lock(path, owner, value, applied, tree, problems)
        tree = fields.merge_patch(tree, applied.content)
        for text in locks_of[position] if position < len(locks_of) else ():
            path = paths.parse(text) or ()
            value = paths.get(tree, path)
            if value is MISSING:
                where = (applied.file, f"Blueprint {applied.name}", "spec.locked")
                problems.append(Problem(*where, f"{text} is locked but not set", "set it in this blueprint or below"))
            else:
                locks.setdefault(path, (applied, value))
    for path, (owner, value) in locks.items():
        tree = paths.put(tree, path, value)
        stack.append(Applied("locked", owner.name, owner.file, paths.put({}, path, value)))
    return Resolved(variant, tree, stack)


def explain(resolved: Resolved, path: Path, seen: frozenset[Path] = frozenset()) -> list[Setting]:
    """Every layer that set the path, in order of precedence, and then what its value refers to.

    `seen` are paths that are explained already: a value may name itself by mistake.
    """
    said: list[tuple[Applied, Any]] = []
    for applied in resolved.applied:
        value = _stated(applied.content, path)
        if value is not MISSING:
            said.append((applied, value))
    settings = [
        Setting(applied.label, applied.role, applied.file, paths.render(path), value, number == len(said))
        for number, (applied, value) in enumerate(said, 1)
    ]
    seen = seen | {path}
    final = paths.get(resolved.tree, path)
    for reference in _REFERENCE.findall(final) if isinstance(final, str) else ():
        target = paths.parse(reference) or ()
        if target[0] == "addon":
            target = (*path[:2], "values", *target[1:])
        if target not in seen:
            settings += explain(resolved, target, seen)
    return settings


def substitute(value: Any, scope: Mapping[str, Any], report: Reporter, path: Path = ()) -> Any:
    """`value` with its references replaced: `${values.x}`, `${facts.x}`, `${addon.x}`; `$${` is a literal `${`.

    A text that is one reference takes the value as it is, a reference inside of text is printed into it. `scope` lacks
    `facts` when they are not known yet; such references stay.
    """
    if isinstance(value, dict):
        return {key: substitute(child, scope, report, (*path, key)) for key, child in value.items()}
    if isinstance(value, list):
        return [substitute(child, scope, report, (*path, str(number))) for number, child in enumerate(value)]
    if not isinstance(value, str) or "${" not in value:
        return value
    whole = _REFERENCE.fullmatch(value)
    if whole is not None:
        return _target(whole[1], value, scope, report, path)

    def printed(found: re.Match[str]) -> str:
        if found.start() and value[found.start() - 1] == "$":
            return found[0][1:]
        target = _target(found[1], found[0], scope, report, path)
        return target if isinstance(target, str) else msgspec.json.encode(target).decode()

    return _REFERENCE.sub(printed, value)


class Reporter:
    """Takes problems found at a path of one add-on."""

    def __init__(self, problems: list[Problem], where: tuple[str, str], prefix: Path) -> None:
        self._problems, self._where, self._prefix = problems, where, prefix

    def __call__(self, path: Path, message: str, hint: str = "") -> None:
        self._problems.append(Problem(*self._where, paths.render((*self._prefix, *path)), message, hint))


def _target(reference: str, text: str, scope: Mapping[str, Any], report: Reporter, path: Path) -> Any:
    root, *rest = paths.parse(reference) or ("",)
    if root == "facts":
        name = ".".join(rest)
        if "facts" not in scope:
            return text
        fact = cluster_facts.lookup(scope["facts"], name)
        if fact is None:
            report(path, f"${{{reference}}} is not a fact of this cluster", "set it as a label of the Cluster object")
        return fact
    value = paths.get(scope.get(root, {}), tuple(rest))
    if value is MISSING:
        where = "values of the blueprint" if root == "values" else "values of the add-on"
        report(path, f"${{{reference}}} has no value", f"set {'.'.join(rest)} in the {where}")
        return None
    return value


def _content(values: Mapping[str, Any], addons: Mapping[str, Any]) -> Tree:
    return {"values": dict(values), "addons": dict(addons)}


def _stated(content: Tree, path: Path) -> Any:
    """What a layer says about a path: its value, or the null or plain value that replaces a map on the way."""
    value: Any = content
    for part in path:
        if not isinstance(value, Mapping):
            return value
        if part not in value:
            return MISSING
        value = value[part]
    return value


def _check_lock(path: Path, owner: Applied, value: Any, applied: Applied, tree: Tree, problems: list[Problem]) -> None:
    for leaf, wanted in _touching(applied.content, path):
        if paths.get(tree, leaf) == wanted:
            continue
        kind = "Cluster" if applied.role == "override" else "Variant" if applied.role == "variant" else "Blueprint"
        problems.append(
            Problem(
                applied.file,
                f"{kind} {applied.name}",
                paths.render(leaf),
                f"overrides {paths.render(path)}, which {owner.label} locks to {msgspec.json.encode(value).decode()}",
                f"remove it here, or unlock it in {owner.file or owner.name}",
            )
        )


def _touching(content: Tree, path: Path) -> Iterator[tuple[Path, Any]]:
    for leaf, wanted in paths.leaves(content):
        below = leaf[: len(path)] == path
        above = path[: len(leaf)] == leaf and wanted != {}
        if below or above:
            yield leaf, wanted
