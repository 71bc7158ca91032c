"""What applying a blueprint would do: a pure difference between its manifests and the live members of its set."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from typing import Any, Literal

import msgspec

from capstan.blueprints.applyset import is_protected
from capstan.blueprints.changes import abandoned, stated_differences
from capstan.blueprints.compile import Item
from capstan.blueprints.documents import identity
from capstan.fields import Difference

Manifest = dict[str, Any]
Action = Literal["create", "update", "unchanged", "prune", "protected"]

MANAGER = "capstan-blueprint"
"""The field manager of everything that a blueprint applies."""


class NothingLeft(Exception):
    """The blueprint has no manifests for this cluster although the cluster has members: pruning all is refused."""

    def __init__(self, members: int) -> None:
        super().__init__(
            f"the blueprint has nothing for this cluster, so all {members} objects that it owns would be deleted"
        )
        self.hint = "check variants and `enabled`; to remove a blueprint on purpose, delete its objects by their label"


class Change(msgspec.Struct, frozen=True):
    """What happens to one object. `fields` are live -> desired; empty for create and prune."""

    action: Action
    addon: str
    identity: str
    manifest: Manifest
    """What is applied; for prune and protected the live object."""
    fields: list[Difference] = []


class Plan(msgspec.Struct, frozen=True):
    """In the order of execution: applies first, then prunes in reverse."""

    changes: list[Change]

    def count(self, action: Action) -> int:
        return sum(change.action == action for change in self.changes)

    @property
    def is_empty(self) -> bool:
        return all(change.action in ("unchanged", "protected") for change in self.changes)


def plan(
    desired: Iterable[Item],
    live: Mapping[str, Manifest],
    members: Iterable[Manifest],
    manager: str = MANAGER,
    settled: Collection[str] = (),
) -> Plan:
    """The changes that bring a cluster to `desired`.

    `live` are the existing objects by identity, as far as `desired` names them; `members` are all live objects with
    the label of the set; `settled` are identities that need no comparison. Raises NothingLeft when everything would
    be pruned.
    """
    items, present = list(desired), list(members)
    if not items and present:
        raise NothingLeft(len(present))
    changes = []
    for item in items:
        found = live.get(item.identity)
        if found is None:
            changes.append(Change("create", item.addon, item.identity, item.manifest))
            continue
        if item.identity in settled:
            changes.append(Change("unchanged", item.addon, item.identity, item.manifest))
            continue
        differing = stated_differences(item.manifest, found) + abandoned(item.manifest, found, manager)
        action: Action = "update" if differing else "unchanged"
        changes.append(Change(action, item.addon, item.identity, item.manifest, differing))
    wanted = {item.identity for item in items}
    orphans = [member for member in present if identity(member) not in wanted]
    for orphan in sorted(orphans, key=_removal_order):
        labels = orphan["metadata"].get("labels") or {}
        orphan_addon = labels.get("platform.capstan.dev/addon", "")
        changes.append(Change("protected" if is_protected(orphan) else "prune", orphan_addon, identity(orphan), orphan))
    return Plan(changes)


def _removal_order(orphan: Manifest) -> tuple[int, str]:
    """Content before what holds it: namespaces and definitions go last."""
    return ({"CustomResourceDefinition": 1, "Namespace": 2}.get(orphan["kind"], 0), identity(orphan))
