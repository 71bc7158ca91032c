"""Fairness among the users of one queue (`userFairness: DominantShare`): how much of the queue each of them has.

A user is who the label `user` of the PodGroup names, or else that of its pods; jobs without it are those of one user
without a name.
"""

from __future__ import annotations

from collections.abc import Sequence

from capstan.scheduling.model import Gang, Queue
from capstan.scheduling.queues import dominant_share


def user_of(gang: Gang) -> str:
    """Whose job it is: as the PodGroup says, or the first of its pods."""
    if gang.user or not gang.tasks:
        return gang.user
    return min(gang.tasks.values(), key=lambda task: task.order).user


class UserShares:
    """The dominant share of every user of a queue: the largest part of the queue's share, over all resources."""

    def __init__(self, queue: Queue, total: Sequence[int]) -> None:
        self._queue, self._total = queue, total
        self._known: dict[str, tuple[tuple[int, ...], float]] = {}

    def of(self, user: str) -> float:
        held = tuple((self._queue.users or {}).get(user, ()))
        known = self._known.get(user)
        if known is None or known[0] != held:
            known = self._known[user] = (held, dominant_share(self._queue, held, self._total))
        return known[1]
