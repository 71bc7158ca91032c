"""Which pods of a gang are placed or evicted next."""

from __future__ import annotations

from collections.abc import Callable, Iterable

from capstan.scheduling.amounts import Amounts
from capstan.scheduling.model import Gang, Group, Task


def _members(group: Group, have: Callable[[Group], int]) -> tuple[int, int]:
    """(satisfied members, members needed) of a group."""
    if group.children:
        return sum(_done(child, have) for child in group.children), group.minimum
    return have(group), group.minimum


def _done(group: Group, have: Callable[[Group], int]) -> bool:
    count, needed = _members(group, have)
    return count >= needed


def rank(group: Group, have: Callable[[Group], int]) -> tuple[bool, bool, float, str]:
    count, needed = _members(group, have)
    done = count >= needed
    return (done, done and not needed, (count / (needed or 1)) if done else 0.0, group.name)


def active(leaf: Group) -> int:
    return len(leaf.active)


def tasks_to_place(group: Group) -> list[Task]:
    if not group.children:
        missing = group.minimum - len(group.active)
        return [] if missing > len(group.pending) else [task for _, task in group.pending[: max(missing, 1)]]
    ordered = sorted(group.children, key=lambda child: rank(child, active))
    done, needed = _members(group, active)
    if done < needed:
        unit: list[Task] = []
        wanted = needed - done
        for child in ordered:
            if wanted and not _done(child, active) and (more := tasks_to_place(child)):
                unit, wanted = unit + more, wanted - 1
        return unit if not wanted else []
    return next((more for child in ordered if (more := tasks_to_place(child))), [])


Left = dict[int, list[Task]]
"""The tasks that a leaf (by id) still has."""


def _everything(group: Group, left: Left) -> list[Task]:
    return [task for leaf in group.leaves() for task in reversed(left[id(leaf)])]


def surplus(group: Group, left: Left) -> list[Task]:
    """A surplus pod deep in the tree, else a surplus subgroup; empty when there is none."""

    def have(leaf: Group) -> int:
        return len(left[id(leaf)])

    if not group.children:
        return left[id(group)][-1:] if have(group) > group.minimum else []
    done, needed = _members(group, have)
    if not done:
        return []
    ordered = sorted(group.children, key=lambda child: rank(child, have), reverse=True)
    for child in ordered:
        if unit := surplus(child, left):
            return unit
    if needed < done:
        return next((unit for child in ordered if (unit := _everything(child, left))), [])
    return []


def tasks_to_evict(root: Group, left: Left) -> list[Task]:
    """One unit: surplus, else everything."""
    return surplus(root, left) or _everything(root, left)


def demand(tasks: Iterable[Task]) -> Amounts:
    a = b = c = 0
    for task in tasks:
        a, b, c = a + task.charge[0], b + task.charge[1], c + task.charge[2]
    return (a, b, c)


def active_of(gang: Gang) -> Left:
    return {id(leaf): [task for _, task in leaf.active] for leaf in gang.root.leaves()}


def phase(root: Group, left: Left) -> int:
    """0 below the minimum, 1 exactly at it, 2 above."""
    if not _done(root, lambda leaf: len(left[id(leaf)])):
        return 0
    return 2 if surplus(root, left) else 1
