"""The engine on a virtual clock: scenario files that state what a cycle must decide, run without a cluster."""

from capstan.simulate.compare import run
from capstan.simulate.scenario import InvalidScenario, Scenario, load

__all__ = ["InvalidScenario", "Scenario", "load", "run"]
