"""Where tasks are: the one function that changes it, and the journal that undoes it.

Every move adjusts all sums that depend on it (node columns, shared devices, gang lists, queue charges) by the
difference, in integers, so that undoing the moves in reverse order restores the ledger exactly. Nothing else may
write those sums.
"""

from __future__ import annotations

from bisect import bisect_left, insort
from collections.abc import Sequence
from operator import add, itemgetter, sub
from typing import Any, TypeVar

from capstan.scheduling.amounts import GPU_COLUMN, NOTHING, Amounts
from capstan.scheduling.model import (
    ACTIVE,
    HOLDS_LATER,
    HOLDS_NOW,
    Gang,
    Node,
    Queue,
    SharedDevice,
    Status,
    Task,
    Zones,
)

Entry = tuple[Task, Status, Node | None, tuple[str, ...], tuple[Node, tuple[str, ...]] | None, Amounts, Zones]
T = TypeVar("T", Task, Gang)
_first = itemgetter(0)
_PENDING = Status.PENDING


class Ledger:
    """All sums over tasks. `position` and `undo` bracket speculation; `settle` forgets how to go back."""

    def __init__(self) -> None:
        self.moves: list[Entry] = []
        self.touched: list[Node] = []
        """Nodes in the order of their changes; placement indexes read on from where they stopped."""
        self.changed: dict[Gang, None] = {}
        """Gangs that may have come to run below their minimum, or back to it, since somebody last looked."""
        self.nothing = NOTHING
        """The amounts that are 0 everywhere."""
        self.foreign: list[int] = list(NOTHING)
        """Held by pods that this engine does not own."""

    def position(self) -> int:
        return len(self.moves)

    def undo(self, position: int) -> None:
        """Take back every move since `position`, newest first."""
        moves = self.moves
        while len(moves) > position:
            task, status, node, devices, leaving, charge, zones = moves.pop()
            self._apply(task, status, node, devices, leaving, charge, zones)

    def settle(self) -> None:
        self.moves.clear()

    def move(
        self,
        task: Task,
        status: Status,
        node: Node | None,
        devices: tuple[str, ...] = (),
        *,
        leaving: tuple[Node, tuple[str, ...]] | None = None,
        charge: Amounts | None = None,
        zones: Zones = (),
    ) -> None:
        """Put a task into a status and place. `charge` is given when the place changes what it costs its queue."""
        self.moves.append((task, task.status, task.node, task.devices, task.leaving, task.charge, task.zones))
        self._apply(task, status, node, devices, leaving, task.charge if charge is None else charge, zones)

    def rename(self, task: Task, status: Status) -> None:
        """Change the status to one that counts in the same sums (placed in this cycle to in flight); not undone."""
        task.status = status

    def _apply(
        self,
        task: Task,
        status: Status,
        node: Node | None,
        devices: tuple[str, ...],
        leaving: tuple[Node, tuple[str, ...]] | None,
        charge: Amounts,
        zones: Zones,
    ) -> None:
        before = task.status
        self.hold(task, -1)
        if task.gang is not None:
            self._count(task, before, status, charge)
        else:
            if HOLDS_NOW[before] and task.node is not None:
                self.foreign[:] = map(sub, self.foreign, task.charge)
            if HOLDS_NOW[status] and node is not None:
                self.foreign[:] = map(add, self.foreign, charge)
        task.status, task.node, task.devices = status, node, devices
        task.leaving, task.charge, task.zones = leaving, charge, zones
        self.hold(task, 1)
        if task.gang is not None and task.gang.semi:
            self._count_core(task.gang)

    def _count_core(self, gang: Gang) -> None:
        """Charge what the core of a semi-preemptible gang is now to the quotas, in place of what it was."""
        level = gang.queue
        if level is None:
            return
        charge = self.core_charge(gang)
        change = tuple(map(sub, charge, gang.core_charge))
        gang.core_charge = charge
        while level is not None and any(change):
            _add(level.fixed, change)
            level = level.parent

    def core_charge(self, gang: Gang) -> Amounts:
        return tuple(map(sum, zip(self.nothing, *(task.charge for task in gang.core()), strict=True)))

    def hold(self, task: Task, sign: int) -> None:
        """Add (1) or take away (-1) what a task occupies on its node and on the node it is leaving."""
        node = task.node
        if node is not None:
            now, later = HOLDS_NOW[task.status], HOLDS_LATER[task.status]
            if now or later:
                self._occupy(node, task, task.devices, now, later, sign)
                if task.zones and later:
                    _align(node, task.zones, sign)
        if task.leaving is not None:
            self._occupy(task.leaving[0], task, task.leaving[1], True, False, sign)

    def _occupy(self, node: Node, task: Task, devices: tuple[str, ...], now: bool, later: bool, sign: int) -> None:
        if now and later:
            idle, after = node.idle, node.later
            for column, amount in task.shape.requests:
                amount *= sign
                idle[column] -= amount
                after[column] -= amount
        else:
            columns = node.idle if now else node.later
            for column, amount in task.shape.requests:
                columns[column] -= amount * sign
        share = task.shape.share
        if devices:
            assert share is not None, "only shares hold named devices"
            portion = share.on(node.gpu_memory)
            for name in devices:
                _use(node, name, portion, now, later, sign)
        elif share is not None:
            lent = share.on(node.gpu_memory) * share.devices * sign
            node.lent_now += lent if now else 0
            node.lent_later += lent if later else 0
        if sign > 0:
            node.tasks[task.uid] = task
        else:
            node.tasks.pop(task.uid, None)
        node.version += 1
        self.touched.append(node)

    def _count(self, task: Task, before: Status, after: Status, charge: Amounts) -> None:
        gang, group = task.gang, task.group
        assert gang is not None
        was_active, is_active = ACTIVE[before], ACTIVE[after]
        if group is not None and before != after:
            self._list(gang, task, before, after, was_active, is_active)
        queue = gang.queue
        if queue is None:
            return
        old, nothing = task.charge, self.nothing
        gone = old if was_active else nothing
        come = charge if is_active else nothing
        asked = old if was_active or before == _PENDING else nothing
        asks = charge if is_active or after == _PENDING else nothing
        if gone != come:
            change = come if gone is nothing else tuple(map(sub, come, gone))
            if queue.users is not None:
                _add(queue.users.setdefault(task.user, list(nothing)), change)
            level: Queue | None = queue
            while level is not None:
                _add(level.allocated, change)
                if not gang.preemptible and not gang.semi:
                    _add(level.fixed, change)
                level = level.parent
        if asked != asks:
            change = tuple(map(sub, asks, asked))
            level = queue
            while level is not None:
                _add(level.requested, change)
                level = level.parent

    def _list(self, gang: Gang, task: Task, before: Status, after: Status, was: bool, is_: bool) -> None:
        group, queue = task.group, gang.queue
        assert group is not None
        if before == _PENDING:
            _drop(group.pending, task)
            gang.pending -= 1
            if not gang.pending and queue is not None:
                _drop(queue.pending, gang)
        elif after == _PENDING:
            _insert(group.pending, task)
            gang.pending += 1
            if gang.pending == 1 and queue is not None:
                _insert(queue.pending, gang)
        if was and not is_:
            self.changed[gang] = None
            _drop(group.active, task)
            gang.active -= 1
            if not gang.active and queue is not None:
                _drop(queue.active, gang)
        elif is_ and not was:
            _insert(group.active, task)
            gang.active += 1
            if gang.active == 1 and queue is not None:
                _insert(queue.active, gang)
            root = gang.root
            if root.children or gang.active < root.minimum or gang.stale_since is not None:
                self.changed[gang] = None
        if before == Status.GATED:
            group.gated -= 1
        elif after == Status.GATED:
            group.gated += 1
        if before == Status.SUCCEEDED:
            group.succeeded -= 1
        elif after == Status.SUCCEEDED:
            group.succeeded += 1


def _drop(ordered: list[tuple[Any, T]], item: T) -> None:
    """Most of what goes is first (it starts) or last (it gives way)."""
    if ordered[0][1] is item:
        del ordered[0]
    elif ordered[-1][1] is item:
        del ordered[-1]
    else:
        del ordered[bisect_left(ordered, item.order, key=_first)]


def _insert(ordered: list[tuple[Any, T]], item: T) -> None:
    entry = (item.order, item)
    if not ordered or ordered[-1][0] < entry[0]:
        ordered.append(entry)
    else:
        insort(ordered, entry, key=_first)


def _add(sums: list[int], change: Sequence[int]) -> None:
    sums[:] = map(add, sums, change)


def _use(node: Node, name: str, portion: int, now: bool, later: bool, sign: int) -> None:
    """A shared device costs its node one whole device, in either view, for as long as it has a user in that view."""
    device = node.devices.get(name)
    if device is None:
        device = node.devices[name] = SharedDevice()
    if now:
        device.used_now += portion * sign
        device.users_now += sign
        if device.users_now == (1 if sign > 0 else 0):
            node.idle[GPU_COLUMN] -= sign
    if later:
        device.used_later += portion * sign
        device.users_later += sign
        if device.users_later == (1 if sign > 0 else 0):
            node.later[GPU_COLUMN] -= sign
    if not device.users_now and not device.users_later:
        del node.devices[name]


def _align(node: Node, zones: Zones, sign: int) -> None:
    by_name = {zone.name: zone for zone in node.zones}
    for name, resource, amount in zones:
        zone = by_name.get(name)
        if zone is not None:
            zone.used[resource] = zone.used.get(resource, 0) + amount * sign
