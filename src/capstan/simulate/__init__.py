"""The engine on a virtual clock, without a cluster: scenario files that say what must be decided, and snapshots."""

from capstan.simulate.compare import run
from capstan.simulate.replay import Replay, read
from capstan.simulate.scenario import InvalidScenario, Scenario, load

__all__ = ["InvalidScenario", "Replay", "Scenario", "load", "read", "run"]
