"""Room that is promised to waiting gangs for a later time, and whether what starts now would delay one of them.

Conservative backfill, as batch systems know it (Mu'alem and Feitelson 2001): a gang that is reserved for never starts
later than its reservation says while run times hold, because whoever starts before it either ends before it or takes
room that it leaves. `capstan.scheduling.backfill` finds the times and nodes; this module only compares.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from capstan.scheduling.amounts import GPU_COLUMN, UNLIMITED, Amounts
from capstan.scheduling.model import HOLDS_LATER, Gang, Node, Task
from capstan.scheduling.queues import levelled
from capstan.scheduling.runtimes import Ends

Key = tuple[str, str]


@dataclass(frozen=True, slots=True)
class Reservation:
    """Room for one unit of a gang from `at` (POSIX seconds) on; `until` is infinite while its run time is unknown."""

    key: Key
    at: float
    until: float
    need: dict[str, dict[int, int]]
    """node -> column -> amount"""
    places: dict[str, str]
    """pod uid -> node"""
    demand: Amounts
    after: tuple[str, ...] = ()
    """The gangs whose ends it waits for."""
    assumed: bool = False
    """Ends that nobody knows were assumed."""


class Bars:
    """What one gang must not take. `hit` is the last reservation that kept it from a node."""

    def __init__(self, book: Book, start: float, others: Sequence[Reservation]) -> None:
        self._book, self._start, self._others = book, start, others
        self.hit: Reservation | None = None

    def __call__(self, task: Task, node: Node) -> bool:
        """Whether the task, started on the node at `start` and running as long as expected, would delay somebody."""
        for other in self._others:
            if node.name not in other.need:
                continue
            at = max(self._start, other.at)
            room = self._book.room(node, at, self._others, assumed=other.assumed)
            if any(room[column] < amount for column, amount in holds(task).items()):
                self.hit = other
                return True
        return False


class Book:
    """The reservations in force, in the order in which they were made."""

    def __init__(self, known: Ends, assumed: Ends, made: dict[Key, Reservation]) -> None:
        self.known, self.assumed, self.made = known, assumed, made
        self._free: dict[tuple[str, float, bool], tuple[Node, int, list[int]]] = {}

    def bars(self, gang: Gang, demand: Amounts, start: float, holders: dict[Key, Gang]) -> Bars | None:
        """What the gang has to leave alone when it runs from `start` on; None when it delays nobody wherever it runs.

        A gang that could take the room back by evicting the other one does not wait for it either (`overtakes`).
        """
        end = self.known.of_gang(gang)
        others = [
            other
            for key, other in self.made.items()
            if key != gang.key
            and other.at < end
            and other.until > start
            and not (key in holders and overtakes(gang, demand, holders[key], other.demand))
        ]
        return Bars(self, start, others) if others else None

    def keeps(self, made: Reservation, nodes: dict[str, Node]) -> bool:
        """Whether the reserved room will still be there at its time."""
        others = [other for other in self.made.values() if other is not made]
        for name, need in made.need.items():
            node = nodes.get(name)
            if node is None:
                return False
            room = self.room(node, made.at, others, assumed=made.assumed)
            if any(room[column] < amount for column, amount in need.items()):
                return False
        return True

    def room(self, node: Node, at: float, others: Sequence[Reservation], *, assumed: bool) -> list[int]:
        """What a node has left at a time, by column, after what still runs and what `others` have reserved."""
        room = list(self._free_at(node, at, assumed))
        for other in others:
            if other.at <= at < other.until:
                for column, amount in other.need.get(node.name, {}).items():
                    room[column] -= amount
        return room

    def _free_at(self, node: Node, at: float, assumed: bool) -> list[int]:
        found = self._free.get((node.name, at, assumed))
        if found is not None and found[0] is node and found[1] == node.version:
            return found[2]
        ends = self.assumed if assumed else self.known
        free = list(node.capacity)
        shared: set[str] = set()
        for task in node.tasks.values():
            if task.node is node and HOLDS_LATER[task.status] and ends.of(task) > at:
                for column, amount in holds(task).items():
                    free[column] -= amount
                shared.update(task.devices)
        free[GPU_COLUMN] -= len(shared)
        self._free[(node.name, at, assumed)] = (node, node.version, free)
        return free


def holds(task: Task) -> dict[int, int]:
    """What a task takes of a node, by column. Shares without a device of their own count as whole devices."""
    amounts = dict(task.shape.requests)
    share = task.shape.share
    if share is not None and not task.devices:
        amounts[GPU_COLUMN] = amounts.get(GPU_COLUMN, 0) + share.devices
    return amounts


def overtakes(gang: Gang, demand: Amounts, other: Gang, others: Amounts) -> bool:
    """Whether the gang could evict the other one if that ran already: by priority in its queue, by quota elsewhere."""
    if gang.queue is other.queue:
        return gang.priority > other.priority
    if gang.queue is None or other.queue is None:
        return False
    ours, theirs = levelled(gang.queue, other.queue)
    return _within(ours.allocated, demand, ours.quota) and not _within(theirs.allocated, others, theirs.quota)


def _within(allocated: list[int], demand: Amounts, quota: Amounts) -> bool:
    return all(q == UNLIMITED or not d or a + d <= q for a, d, q in zip(allocated, demand, quota, strict=False))
