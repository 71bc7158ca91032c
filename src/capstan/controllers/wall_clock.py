"""The wall clock, and whether somebody has set it: timers that were measured with it then move along."""

from __future__ import annotations

import time
from collections.abc import Callable

TOLERANCE_SECONDS = 5.0
"""The wall clock may run away from the steady one by so much between two readings before it counts as set."""


class WallClock:
    def __init__(self, now: Callable[[], float] = time.time, steady: Callable[[], float] = time.monotonic) -> None:
        self.now = now
        self._steady = steady
        self._read: tuple[float, float] | None = None

    def read(self) -> tuple[float, float]:
        """POSIX seconds, and by how many the clock was set forward since the last reading."""
        now, steady = self.now(), self._steady()
        jump = 0.0 if self._read is None else (now - self._read[0]) - (steady - self._read[1])
        self._read = (now, steady)
        return now, jump if abs(jump) > TOLERANCE_SECONDS else 0.0
