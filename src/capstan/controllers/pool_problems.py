"""Tells the owners of device pools that contradict themselves: an Event on each ResourceSlice at fault.

Nothing is allocated from such a pool until its driver publishes it anew; the rest of the cluster goes on.
"""

from __future__ import annotations

import asyncio

from capstan import kube
from capstan.allocation import Inventory, Problem
from capstan.api.resource import ResourceSlice

EVERY_SECONDS = 2.0


class PoolProblems:
    """Runs beside the scheduler, on its inventory; `slices` is the scheduler's own cache."""

    def __init__(self, events: kube.EventRecorder, inventory: Inventory, slices: kube.Cache[ResourceSlice]) -> None:
        self._events = events
        self._inventory = inventory
        self._slices = slices
        self._told: set[Problem] = set()

    async def run(self) -> None:
        """Look for new problems until cancelled."""
        while True:
            await asyncio.sleep(EVERY_SECONDS)
            found = set(self._inventory.problems())
            for problem in sorted(found - self._told, key=lambda problem: (problem.driver, problem.pool)):
                for name in problem.slices:
                    at_fault = self._slices.get(name)
                    if at_fault is not None:
                        message = f"pool {problem.pool} of {problem.driver} is ignored: {problem.reason}"
                        self._events.emit(at_fault, "Warning", "InvalidPool", message)
            self._told = found
