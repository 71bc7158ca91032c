"""Drift: what the blueprint applied and what is no longer so, field by field, with the manager who changed it.

Whoever changes a field becomes its owner. So a field that a manifest states and that our apply still owns has not been
changed by anybody, whatever defaulting or admission made of it; and every other stated field is drift. Fields that the
manifest does not state are never looked at. Only for objects that were applied before.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, Literal

import msgspec

from capstan import fields
from capstan.blueprints.changes import differs, find, stated_paths
from capstan.blueprints.compile import Item
from capstan.blueprints.plan import MANAGER
from capstan.fields import ABSENT, Path

Manifest = dict[str, Any]

_IDENTITY = (("f:metadata", "f:name"), ("f:metadata", "f:namespace"))


class Finding(msgspec.Struct, frozen=True):
    """`path` is empty when the whole object is gone; `expected` and `found` are None where there is no value."""

    kind: Literal["changed", "removed", "taken", "deleted"]
    addon: str
    identity: str
    path: str
    manager: str
    """Who owns the field now; for a removed field who wrote the object last; empty when nothing tells."""
    expected: Any = None
    found: Any = None

    @property
    def key(self) -> tuple[str, str]:
        return (self.identity, self.path)

    def __str__(self) -> str:
        by = f" by {self.manager}" if self.manager else ""
        match self.kind:
            case "deleted":
                return f"{self.identity} was deleted{by}"
            case "removed":
                return f"{self.identity} {self.path}: removed{by}, expected {_text(self.expected)}"
            case "taken":
                return f"{self.identity} {self.path}: has the right value but now belongs to {self.manager or 'nobody'}"
        return f"{self.identity} {self.path}: {_text(self.found)}{by}, expected {_text(self.expected)}"


def drift(applied: Iterable[Item], live: Mapping[str, Manifest], manager: str = MANAGER) -> list[Finding]:
    """The drift of objects that `manager` applied as `applied` states them."""
    findings: list[Finding] = []
    for item in applied:
        found = live.get(item.identity)
        if found is None:
            findings.append(Finding("deleted", item.addon, item.identity, "", ""))
        else:
            findings += _of(item, found, manager)
    return findings


def _of(item: Item, live: Manifest, manager: str) -> list[Finding]:
    findings: dict[str, Finding] = {}
    mine = fields.owned(live, manager, operation=fields.APPLY)
    for path in stated_paths(item.manifest, live):
        if path in mine or path in _IDENTITY:
            continue
        path = _outermost_absent(live, path)
        place = fields.readable(path)
        expected, found = find(item.manifest, path), find(live, path)
        if found is ABSENT:
            finding = Finding("removed", item.addon, item.identity, place, _last_writer(live, manager), expected)
        else:
            kind: Literal["changed", "taken"] = "changed" if differs(expected, found, path) else "taken"
            finding = Finding(kind, item.addon, item.identity, place, _owner(live, path, manager), expected, found)
        findings.setdefault(place, finding)
    return list(findings.values())


def _outermost_absent(live: Manifest, path: Path) -> Path:
    """Where an absent field is missing from: a list item that was deleted is one finding, not one for each field."""
    for depth in range(1, len(path)):
        if find(live, path[:depth]) is ABSENT:
            return path[:depth]
    return path


def _owner(live: Manifest, path: Path, manager: str) -> str:
    """The other manager that owns the field or, if nobody owns just that, the nearest thing around it; the
    latest wins.
    """
    for depth in range(len(path), 0, -1):
        entries = [
            (entry.time, name)
            for (name, operation, _, _), entry in fields.managers(live).items()
            if (name, operation) != (manager, fields.APPLY) and path[:depth] in entry.fields
        ]
        if entries:
            return max(entries)[1]
    return ""


def _last_writer(live: Manifest, manager: str) -> str:
    entries = [
        (entry.time, name)
        for (name, operation, _, subresource), entry in fields.managers(live).items()
        if (name, operation) != (manager, fields.APPLY) and not subresource
    ]
    return max(entries)[1] if entries else ""


def _text(value: Any) -> str:
    return value if isinstance(value, str) else msgspec.json.encode(value).decode()
