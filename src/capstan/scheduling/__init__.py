"""Which pods start where, who must make room, and why: a pure function from a World to a Plan."""

from capstan.scheduling.cycle import UnknownAction, cycle
from capstan.scheduling.installation import Installation, installation
from capstan.scheduling.measures import Lap, Measures, Work
from capstan.scheduling.plan import Bind, Eviction, ImpliedClaim, Plan, Promise, Stamp, Verdict
from capstan.scheduling.policy import DefragmentWindow, Policy
from capstan.scheduling.queues import QueueStatus
from capstan.scheduling.report import Explanation, explain, resources_of, standings
from capstan.scheduling.settings import Accounting, Settings, shard_settings
from capstan.scheduling.snapshot import InvalidSnapshot, Snapshot
from capstan.scheduling.texts import Problem
from capstan.scheduling.usage import CorruptUsage, Usage
from capstan.scheduling.world import World

__all__ = [
    "Accounting",
    "Bind",
    "CorruptUsage",
    "DefragmentWindow",
    "Eviction",
    "Explanation",
    "ImpliedClaim",
    "Installation",
    "InvalidSnapshot",
    "Lap",
    "Measures",
    "Plan",
    "Policy",
    "Problem",
    "Promise",
    "QueueStatus",
    "Settings",
    "Snapshot",
    "Stamp",
    "UnknownAction",
    "Usage",
    "Verdict",
    "Work",
    "World",
    "cycle",
    "explain",
    "installation",
    "resources_of",
    "shard_settings",
    "standings",
]
