"""The loop of every controller: changed keys go into a queue, one worker at a time reconciles a key, failures retry."""

from __future__ import annotations

import asyncio
import logging
from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Hashable, Sequence
from typing import Any, ClassVar, Generic, TypeVar

from capstan.api.rbac import PolicyRule
from capstan.kube import errors
from capstan.kube.cache import Cache

K = TypeVar("K", bound=Hashable)

_log = logging.getLogger(__name__)


class WorkQueue(Generic[K]):
    """A set of keys to work on, in order of arrival.

    A key waits at most once; a key that is added while a worker has it is handed out again after `done`. Two workers
    never hold the same key.
    """

    def __init__(self, *, first_pause: float = 0.01, longest_pause: float = 60.0) -> None:
        self._first_pause, self._longest_pause = first_pause, longest_pause
        self._order: deque[K] = deque()
        self._waiting: set[K] = set()
        self._working: set[K] = set()
        self._failures: dict[K, int] = {}
        self._timers: dict[K, asyncio.TimerHandle] = {}
        self._ready = asyncio.Semaphore(0)

    def __len__(self) -> int:
        return len(self._waiting)

    @property
    def idle(self) -> bool:
        """Nothing waits, nothing is worked on and nothing comes back later."""
        return not (self._waiting or self._working or self._timers)

    def add(self, key: K) -> None:
        if key in self._waiting:
            return
        self._waiting.add(key)
        if key not in self._working:
            self._enqueue(key)

    def add_after(self, key: K, seconds: float) -> None:
        """Adds the key later; of several wishes the earliest counts."""
        loop = asyncio.get_running_loop()
        if seconds <= 0:
            self.add(key)
            return
        pending = self._timers.get(key)
        if pending is not None:
            if pending.when() <= loop.time() + seconds:
                return
            pending.cancel()
        self._timers[key] = loop.call_later(seconds, self._due, key)

    def retry(self, key: K) -> float:
        """Adds the key after a pause that doubles with each failure in a row; returns the pause in seconds."""
        failures = self._failures[key] = self._failures.get(key, 0) + 1
        pause = min(self._first_pause * 2.0 ** min(failures - 1, 30), self._longest_pause)
        self.add_after(key, pause)
        return pause

    def forget(self, key: K) -> None:
        """The key succeeded: its next failure starts at the first pause again."""
        self._failures.pop(key, None)

    async def get(self) -> K:
        """The next key; the caller must say `done` with it."""
        await self._ready.acquire()
        key = self._order.popleft()
        self._waiting.discard(key)
        self._working.add(key)
        return key

    def done(self, key: K) -> None:
        self._working.discard(key)
        if key in self._waiting:
            self._enqueue(key)

    def _enqueue(self, key: K) -> None:
        self._order.append(key)
        self._ready.release()

    def _due(self, key: K) -> None:
        del self._timers[key]
        self.add(key)

    def close(self) -> None:
        for timer in self._timers.values():
            timer.cancel()
        self._timers.clear()


class Controller(ABC, Generic[K]):
    """Reconciles keys. A subclass registers cache handlers that call `self.queue.add(key)`.

    `caches` are those that must be synced before the first reconcile; whoever made them runs them.
    """

    RULES: ClassVar[list[PolicyRule]] = []
    WORKERS: ClassVar[int] = 4

    def __init__(self, caches: Sequence[Cache[Any]] = ()) -> None:
        self.queue: WorkQueue[K] = WorkQueue()
        self.caches = caches
        self.failures = 0
        """Failed reconciles since start, conflicts not counted."""

    @abstractmethod
    async def reconcile(self, key: K) -> float | None:
        """Makes the world fit for one key, from what the caches say. Returns seconds until it wants the key again.

        Must be safe to repeat. An exception is logged with the key, counted, and the key is retried with backoff.
        """

    async def run(self) -> None:
        """Works until cancelled."""
        for cache in self.caches:
            await cache.synced()
        try:
            async with asyncio.TaskGroup() as group:
                for _ in range(self.WORKERS):
                    group.create_task(self._work())
        finally:
            self.queue.close()

    async def _work(self) -> None:
        while True:
            key = await self.queue.get()
            try:
                again = await self.reconcile(key)
            except errors.Conflict as error:
                # Our cache was behind; the newer state is on its way and decides.
                _log.debug("%s %s: %s", type(self).__name__, key, error)
                self.queue.retry(key)
            except Exception as error:
                self.failures += 1
                pause = self.queue.retry(key)
                trace = None if isinstance(error, errors.ApiError) else error
                _log.warning("%s %s: %s; again in %.2f s", type(self).__name__, key, error, pause, exc_info=trace)
            else:
                self.queue.forget(key)
                if again is not None:
                    self.queue.add_after(key, again)
            finally:
                self.queue.done(key)
