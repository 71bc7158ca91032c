"""How long gangs run, as far as anybody knows: what is declared, what was learned, and when what runs now will end.

Declared are `kai.scheduler/max-runtime` and `kai.scheduler/expected-runtime` on the PodGroup (the first also on
queues) and the pods' `activeDeadlineSeconds`; the shortest counts. Learned are the run times of finished gangs of the
same namespace, queue and shape. An expectation that was exceeded is doubled until it lies ahead again.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Iterable, Mapping

from capstan.api import clock
from capstan.scheduling.gangs import smallest_start
from capstan.scheduling.model import Gang, Status, Task

RunKey = tuple[str, str, int, int]
"""Namespace, queue, shape number of the first pod, number of pods: gangs that are expected to take equally long."""
FEWEST_RUNS = 3
"""So many runs have to be known before anything is concluded from them."""
_MOST_RUNS = 20
"""Older runs are forgotten."""
_MOST_KEYS = 10_000


class History:
    """Run times in seconds of gangs that finished, by what they were. Lives with the World and is learned anew."""

    def __init__(self) -> None:
        self._runs: dict[RunKey, deque[float]] = {}

    def note(self, key: RunKey, seconds: float) -> None:
        """Take in a run; the kinds of gangs that were seen longest ago are forgotten first."""
        runs = self._runs.pop(key, None) or deque(maxlen=_MOST_RUNS)
        runs.append(seconds)
        self._runs[key] = runs
        if len(self._runs) > _MOST_KEYS:
            del self._runs[next(iter(self._runs))]

    def guess(self, key: RunKey, quantile: float) -> float | None:
        """The run time that `quantile` of the known runs did not exceed; None while too few are known."""
        runs = self._runs.get(key, ())
        if len(runs) < FEWEST_RUNS:
            return None
        return sorted(runs)[min(len(runs) - 1, math.ceil(quantile * len(runs)) - 1)]


def run_key(gang: Gang) -> RunKey | None:
    first = min(gang.tasks.values(), key=lambda task: task.order, default=None)
    return None if first is None else (gang.namespace, gang.queue_name, first.shape.number, len(gang.tasks))


def max_runtime(gang: Gang) -> float | None:
    """Seconds a gang may run: its own value, or the first of its queues from the leaf to the root."""
    return _first(gang, gang.max_runtime, "max_runtime")


def requeue_delay(gang: Gang) -> float:
    """Seconds a gang that ran too long has to wait for its next run."""
    return _first(gang, gang.requeue_delay, "requeue_delay") or 0.0


def _first(gang: Gang, own: float | None, field: str) -> float | None:
    queue = gang.queue
    while own is None and queue is not None:
        own = getattr(queue, field)
        queue = queue.parent
    return own


def declared(gang: Gang) -> float | None:
    """The shortest run time in seconds that somebody has set for the gang."""
    known = [seconds for seconds in (max_runtime(gang), gang.expected_runtime) if seconds is not None]
    deadlines = [task.deadline for task in gang.tasks.values()]
    if deadlines and all(deadlines):
        known.append(max(deadlines))
    return min(known, default=None)


def requeued(gang: Gang, now: float) -> str:
    """Why a gang that ran too long may not start yet; empty when it may.

    Nobody waits longer than the delay, however the clock was set since.
    """
    if gang.requeue_not_before is None:
        return ""
    gang.requeue_not_before = min(gang.requeue_not_before, now + requeue_delay(gang))
    if now >= gang.requeue_not_before:
        return ""
    return f"ran longer than its max runtime and waits until {clock.render(gang.requeue_not_before)}"


def started(gang: Gang) -> float | None:
    """When what runs of the gang started: its last full start, else its first pod's; None while nothing runs."""
    if gang.last_start is not None:
        return gang.last_start
    return min((task.started for task in gang.tasks.values() if task.started), default=None)


class Ends:
    """When what holds a node will have ended, as seen at `now`; infinite where nobody knows.

    `declared` holds the gangs of which a run time is declared, with it. `history` and `quantile` add what was learned,
    `assumed` seconds stand in for everything else.
    """

    def __init__(
        self,
        declared: Mapping[Gang, float],
        now: float,
        *,
        history: History | None = None,
        quantile: float = 1.0,
        assumed: float | None = None,
    ) -> None:
        self.now = now
        self._declared, self._history, self._quantile, self._assumed = declared, history, quantile, assumed
        self._known: dict[Gang, float] = {}
        self._timeline: list[tuple[float, list[Gang]]] | None = None

    def of(self, task: Task) -> float:
        if task.gang is not None:
            return self.of_gang(task.gang)
        return ahead(task.started, task.deadline, self.now) if task.started and task.deadline else math.inf

    def of_gang(self, gang: Gang) -> float:
        """A gang of which nothing runs yet is taken to start now. Does not change while a cycle speculates."""
        end = self._known.get(gang)
        if end is None:
            end = self._known[gang] = self._end(gang)
        return end

    def set(self, gang: Gang, end: float) -> None:
        self._known[gang] = end

    def restart(self, gang: Gang, start: float) -> None:
        """Take the gang to run from `start` on instead of from when it did."""
        self._known[gang] = start + self.runtime(gang)

    def timeline(self, gangs: Iterable[Gang]) -> list[tuple[float, list[Gang]]]:
        """The ends of those that run, soonest first, with the gangs that end then. Made once, for the first asked."""
        if self._timeline is None:
            at: dict[float, list[Gang]] = {}
            for gang in gangs:
                if gang.active and (end := self.of_gang(gang)) != math.inf:
                    at.setdefault(end, []).append(gang)
            self._timeline = sorted(at.items(), key=lambda pair: pair[0])
        return self._timeline

    def runtime(self, gang: Gang) -> float:
        """Seconds that a run of the gang takes; infinite when nobody knows."""
        seconds = self._declared.get(gang)
        if seconds is None and self._history is not None and (key := run_key(gang)) is not None:
            seconds = self._history.guess(key, self._quantile)
        return math.inf if seconds is None else seconds

    def _end(self, gang: Gang) -> float:
        seconds = self.runtime(gang)
        running = sum(task.phase in (Status.BOUND, Status.RUNNING) for task in gang.tasks.values())
        if running < smallest_start(gang.root):
            return self.now + seconds  # it starts, or starts again, as a whole
        if seconds == math.inf and self._assumed is not None:
            seconds = self._assumed
        since = started(gang)
        return math.inf if since is None else ahead(since, seconds, self.now)


def ahead(since: float, seconds: float, now: float) -> float:
    """The expected end of a run; one that was exceeded is doubled until it lies ahead of `now`."""
    seconds = max(seconds, 1.0)
    while since + seconds <= now:
        seconds *= 2
    return since + seconds
