"""Who owns which field: server-side apply and the tracking of ordinary writes (KEP-555).

`apply` and `track_update` take the stored object and what a writer wants, and return the object to store with its
`metadata.managedFields`. An entry belongs to (manager, operation, apiVersion, subresource); appliers have one entry
whatever version they apply. Conversion between versions is not modelled: an entry of another version is compared as
it is.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import msgspec

from capstan.fields.errors import FieldsError, InvalidApply, InvalidFieldSet
from capstan.fields.paths import Path, render
from capstan.fields.schema import Schema
from capstan.fields.sets import FieldSet, Tree
from capstan.fields.typed import Comparison, added_fields, compare, field_set, merge, remove, with_named_fields

Object = dict[str, Any]
Key = tuple[str, str, str, str]
"""(manager, operation, apiVersion, subresource); the version of an Apply key is empty."""

APPLY, UPDATE = "Apply", "Update"
MAX_UPDATERS = 10
ANCIENT = "ancient-changes"
BEFORE_FIRST_APPLY = "before-first-apply"
LAST_APPLIED = "kubectl.kubernetes.io/last-applied-configuration"

NOBODY_OWNS = FieldSet.of(
    [("f:apiVersion",), ("f:kind",), ("f:metadata",)]
    + [
        ("f:metadata", "f:" + name)
        for name in (
            "name",
            "namespace",
            "creationTimestamp",
            "selfLink",
            "uid",
            "generation",
            "managedFields",
            "resourceVersion",
        )
    ]
)
"""Identity and bookkeeping of the server, left out of every set."""


class Conflict(msgspec.Struct, frozen=True):
    """A field that an apply would change although another manager owns it."""

    path: Path
    manager: str
    operation: str
    api_version: str
    subresource: str = ""

    @property
    def owner(self) -> str:
        """The manager as kube-apiserver prints it: `"kubectl-edit" using apps/v1`."""
        text = f'"{self.manager}"'
        if self.subresource:
            text += f' with subresource "{self.subresource}"'
        if self.operation == UPDATE:
            text += f" using {self.api_version}"
        return text

    @property
    def field(self) -> str:
        return render(self.path)


class Conflicts(FieldsError):
    """An apply without force met fields of other managers; the API answers 409 with one cause per field."""

    def __init__(self, conflicts: list[Conflict]) -> None:
        self.conflicts = sorted(conflicts, key=lambda each: (each.owner, each.path))
        self.hint = "apply with force to take the fields over, or leave them out of the configuration"
        if len(conflicts) == 1:
            only = self.conflicts[0]
            message = f"Apply failed with 1 conflict: conflict with {only.owner}: {only.field}"
        else:
            lines: list[str] = []
            for conflict in self.conflicts:
                heading = f"conflicts with {conflict.owner}:"
                if heading not in lines:
                    lines.append(heading)
                lines.append(f"- {conflict.field}")
            message = f"Apply failed with {len(conflicts)} conflicts: " + "\n".join(lines)
        super().__init__(message)

    def __iter__(self) -> Iterator[Conflict]:
        return iter(self.conflicts)


class Entry(msgspec.Struct):
    """One element of `metadata.managedFields`, decoded."""

    fields: FieldSet
    api_version: str
    time: str = ""


Managers = dict[Key, Entry]


def managers(obj: Object) -> Managers:
    """The entries of a stored object by key, in their stored order."""
    return _decode(obj.get("metadata", {}).get("managedFields"))


def owned(obj: Object, manager: str, *, operation: str | None = None, subresource: str | None = None) -> FieldSet:
    """All fields that a manager owns, of one operation or subresource if given."""
    found = FieldSet()
    for (name, kind, _, below), entry in managers(obj).items():
        if name == manager and operation in (None, kind) and subresource in (None, below):
            found |= entry.fields
    return found


def owners(obj: Object, path: Path) -> list[Key]:
    """The entries that own exactly this field, appliers first as stored."""
    return [key for key, entry in managers(obj).items() if path in entry.fields]


def track_update(
    old: Object | None,
    new: Object,
    manager: str,
    *,
    schema: Schema,
    now: str,
    api_version: str,
    subresource: str = "",
    ignored: FieldSet | None = None,
) -> Object:
    """`new` with its managed fields after a create (`old` is None), update or patch by `manager`.

    Fields that changed go to the manager and leave everybody else; removed fields leave everybody. A write may carry
    managed fields of its own, which replace the stored ones, and `[{}]` clears them; an object whose entries were
    cleared is not tracked until the next apply. `ignored` are fields that this write cannot set (status on the main
    resource). `now` is RFC 3339. A write that changes nothing keeps the entries, times included, as they are. Raises
    InvalidFieldSet when the write carries malformed managed fields.
    """
    given = new.get("metadata", {}).get("managedFields")
    stored = old.get("metadata", {}).get("managedFields") if old is not None else None
    if given and given != stored:
        if given == [{}]:
            return _with_managed(new, [])
        raw: list[dict[str, Any]] | None = _canonical(given)
    elif stored or old is None:
        raw = stored
    else:
        return _with_managed(new, [])
    before = _decode(raw)
    try:
        comparison = (
            compare(old, new, schema)
            if old is not None
            else Comparison(added_fields(new, schema), FieldSet(), FieldSet())
        )
    except InvalidApply:
        # A list item that cannot be told apart is for validation to refuse, with a better message than ours.
        return _with_managed(new, [])
    changed, gone = _strip(comparison.changed, ignored), comparison.removed
    key = _key(manager, UPDATE, api_version, subresource)
    after = _disown(before, changed, gone, keep=key)
    mine = after[key].fields - gone if key in after else FieldSet()
    if changed:
        after[key] = Entry(mine | changed, api_version, now)
        after = _cap_updaters(after)
    elif mine:
        after[key] = Entry(mine, api_version, before[key].time)
    else:
        after.pop(key, None)
    return _with_managed(new, raw if after == before else _encode(after))


def apply(
    live: Object | None,
    applied: Object,
    manager: str,
    *,
    schema: Schema,
    force: bool,
    now: str,
    api_version: str,
    subresource: str = "",
    ignored: FieldSet | None = None,
) -> Object:
    """Server-side apply: the object to store, `live` itself when nothing changes.

    The applied configuration is the manager's whole intent: its fields are set and owned; fields it applied before and
    leaves out now are removed unless somebody else owns them too. `ignored` as in `track_update`; `now` is RFC 3339.
    Raises Conflicts (never with `force`) and InvalidApply.
    """
    if applied.get("metadata", {}).get("managedFields"):
        raise InvalidApply("metadata.managedFields must be nil in an applied configuration; remove it and apply again")
    base: Object = (
        live if live is not None else {name: applied[name] for name in ("apiVersion", "kind") if name in applied}
    )
    before = managers(base)
    if live is not None and not before:
        everything = _strip(added_fields(live, schema), None)
        before = {_key(BEFORE_FIRST_APPLY, UPDATE, api_version, ""): Entry(everything, api_version, now)}
    key = _key(manager, APPLY, api_version, subresource)
    last = before.get(key)
    claimed = _strip(field_set(applied, schema), ignored)
    merged = merge(base, applied, schema)
    if last is not None:
        merged = _without_abandoned(merged, last.fields, claimed, before, key, schema)
    comparison = compare(base, merged, schema)
    changed = _strip(comparison.changed, ignored)
    if not force and changed:
        _check_conflicts(before, changed, key, base, schema)
    after = _disown(before, changed, comparison.removed, keep=key)
    same_object = merged == base
    if not claimed:
        after.pop(key, None)
    elif not (same_object and last is not None and last.fields == claimed and last.api_version == api_version):
        after[key] = Entry(claimed, api_version, now)
    if same_object and live is not None and after == managers(live):
        return live
    return _with_managed(merged, _encode(after))


def _without_abandoned(
    merged: Object, last: FieldSet, claimed: FieldSet, before: Managers, key: Key, schema: Schema
) -> Object:
    """Remove what the manager applied last time, does not apply now, and nobody else owns."""
    held = claimed
    for other, entry in before.items():
        if other != key:
            held |= entry.fields
    abandoned = with_named_fields(last, schema) - with_named_fields(held, schema)
    return remove(merged, abandoned, schema) if abandoned else merged


def _check_conflicts(before: Managers, changed: FieldSet, key: Key, live: Object, schema: Schema) -> None:
    conflicts = [
        Conflict(path, manager, operation, version or entry.api_version, subresource)
        for (manager, operation, version, subresource), entry in before.items()
        if (manager, operation, version, subresource) != key
        for path in entry.fields & changed
    ]
    if conflicts and key[0] == "kubectl":
        # A user who changes from client-side to server-side apply must not conflict with their own earlier applies.
        allowed = _last_applied(live, schema)
        conflicts = [conflict for conflict in conflicts if conflict.path not in allowed]
    if conflicts:
        raise Conflicts(conflicts)


def _disown(before: Managers, changed: FieldSet, gone: FieldSet, keep: Key) -> Managers:
    """The entries after others took `changed` and `gone` was removed; entries left with nothing disappear."""
    taken = changed | gone
    after: Managers = {}
    for key, entry in before.items():
        rest = entry.fields if key == keep or not taken else entry.fields - taken
        if rest:
            after[key] = entry if rest is entry.fields else Entry(rest, entry.api_version, entry.time)
    return after


def _cap_updaters(after: Managers) -> Managers:
    """Fold the oldest updaters of a version into one `ancient-changes` entry when there are more than ten."""
    updaters = sorted((key for key in after if key[1] == UPDATE), key=lambda key: (after[key].time, key))
    excess = len(updaters) - MAX_UPDATERS
    if excess <= 0:
        return after
    after = dict(after)
    first: dict[str, Key] = {}
    for key in updaters:
        if excess == 0:
            break
        version = after[key].api_version
        bucket = _key(ANCIENT, UPDATE, version, "")
        if version not in first or key == bucket:
            first.setdefault(version, key)
            continue
        if bucket not in after:
            after[bucket] = after.pop(first[version])
        entry = after.pop(key)
        after[bucket] = Entry(after[bucket].fields | entry.fields, version, entry.time)
        excess -= 1
    return after


def _strip(fields: FieldSet, ignored: FieldSet | None) -> FieldSet:
    stripped = FieldSet(_without_identity(fields.tree))
    return stripped.without_subtrees(ignored) if ignored is not None else stripped


def _without_identity(tree: Tree) -> Tree:
    """`FieldSet - NOBODY_OWNS`, written for the one place that every write passes."""
    result = {step: below for step, below in tree.items() if step not in _IDENTITY}
    metadata = result.get("f:metadata")
    if metadata is not None:
        kept = {step: below for step, below in metadata.items() if step not in _META_IDENTITY and step != "."}
        if kept:
            result["f:metadata"] = kept
        else:
            del result["f:metadata"]
    return result


_IDENTITY = frozenset(path[0] for path in NOBODY_OWNS if len(path) == 1 and path[0] != "f:metadata")
_META_IDENTITY = frozenset(path[1] for path in NOBODY_OWNS if len(path) == 2)


def _last_applied(live: Object, schema: Schema) -> FieldSet:
    """The fields of the last client-side apply, which kubectl keeps in an annotation; empty when there is none."""
    text = live.get("metadata", {}).get("annotations", {}).get(LAST_APPLIED)
    if not text:
        return FieldSet()
    try:
        return field_set(msgspec.json.decode(text, type=dict[str, Any]), schema)
    except (msgspec.DecodeError, InvalidApply):
        # The annotation is the user's to break; then it grants nothing and the conflicts stand.
        return FieldSet()


def _key(manager: str, operation: str, api_version: str, subresource: str) -> Key:
    return (manager, operation, "" if operation == APPLY else api_version, subresource)


def _decode(raw_entries: list[dict[str, Any]] | None) -> Managers:
    entries: Managers = {}
    for raw in raw_entries or ():
        operation, version = raw.get("operation", UPDATE), raw.get("apiVersion", "")
        key = _key(raw.get("manager", ""), operation, version, raw.get("subresource", ""))
        fields = FieldSet(raw.get("fieldsV1") or {})
        if key in entries:
            fields |= entries[key].fields
        entries[key] = Entry(fields, version, raw.get("time") or "")
    return entries


def _canonical(given: Any) -> list[dict[str, Any]]:
    """Managed fields that a client sent, checked and with canonical steps."""
    if not isinstance(given, list) or not all(isinstance(raw, dict) for raw in given):
        raise InvalidFieldSet("metadata.managedFields must be a list of objects; send [{}] to clear it")
    entries = []
    for position, raw in enumerate(given):
        if raw.get("fieldsType", "FieldsV1") != "FieldsV1" or raw.get("operation") not in (APPLY, UPDATE):
            raise InvalidFieldSet(
                f"metadata.managedFields[{position}] must have the fieldsType FieldsV1 and the operation Apply or"
                f" Update, not {raw.get('fieldsType')!r} and {raw.get('operation')!r}"
            )
        texts = {name: raw.get(name, "") for name in ("manager", "apiVersion", "subresource", "time")}
        if wrong := [name for name, value in texts.items() if value is not None and not isinstance(value, str)]:
            raise InvalidFieldSet(f"metadata.managedFields[{position}].{wrong[0]} must be text")
        entries.append({**raw, "fieldsV1": FieldSet.from_v1(raw.get("fieldsV1", {})).tree})
    return entries


def _encode(entries: Managers) -> list[dict[str, Any]]:
    """Appliers first, then by time and name, as kube-apiserver stores them."""
    ordered = sorted(entries.items(), key=lambda item: (item[0][1], item[1].time, item[0]))
    result = []
    for (manager, operation, _, subresource), entry in ordered:
        raw: dict[str, Any] = {
            "manager": manager,
            "operation": operation,
            "apiVersion": entry.api_version,
            "fieldsType": "FieldsV1",
            "fieldsV1": entry.fields.tree,
        }
        if entry.time:
            raw["time"] = entry.time
        if subresource:
            raw["subresource"] = subresource
        result.append(raw)
    return result


def _with_managed(obj: Object, encoded: list[dict[str, Any]] | None) -> Object:
    metadata = dict(obj.get("metadata") or {})
    if encoded:
        metadata["managedFields"] = encoded
    else:
        metadata.pop("managedFields", None)
    return {**obj, "metadata": metadata}
