"""How long a gang is safe from reclaim: by its own queue, or below the lowest common ancestor (KAI's minruntime)."""

from __future__ import annotations

import msgspec
import pytest
from tests.scheduling.clusters import START, gang, node, pod, queue

from capstan.api import clock
from capstan.scheduling import Policy, World, cycle
from capstan.scheduling.gangs import LAST_START

DEFAULT = 10.0


def evicted(runtimes: dict[str, str], reclaimer: str, policy: Policy, after: float) -> bool:
    """Whether a gang of the reclaiming queue gets the place of one that started so many seconds ago in d0q0."""
    world = World()
    world.upsert(node("n0", gpus=2))
    quotas = {"d0": 0 if reclaimer == "d1q0" else 2, "d1": 2, "d0q0": 0, "d0q1": 2, "d1q0": 2}
    for rank, (name, quota) in enumerate(quotas.items()):
        made = queue(name, name[:-2], quota=quota, rank=rank)
        spec = msgspec.structs.replace(made.spec, reclaim_min_runtime=runtimes.get(name))
        world.upsert(msgspec.structs.replace(made, spec=spec))
    victim = gang("victim", "d0q0")
    notes = {LAST_START: clock.render(START)}
    world.upsert(msgspec.structs.replace(victim, metadata=msgspec.structs.replace(victim.metadata, annotations=notes)))
    world.upsert(pod("v", "victim", gpus=2, on="n0"))
    world.upsert(gang("winner", reclaimer, rank=9))
    world.upsert(pod("w", "winner", gpus=2))
    return bool(cycle(world, policy, START + after).evictions)


ALL = {"d0": "20s", "d1": "50s", "d0q0": "30s", "d0q1": "50s", "d1q0": "50s"}


@pytest.mark.parametrize(
    ("runtimes", "reclaimer", "method", "seconds"),
    [
        (ALL, "d1q0", "lca", 20),  # the departments differ: the victim's department decides
        (ALL, "d0q1", "lca", 30),  # same department: the victim's queue, the first below it
        (ALL, "d1q0", "queue", 30),  # the victim's own queue, whoever reclaims
        (ALL, "d0q1", "queue", 30),
        ({"d0": "20s"}, "d0q1", "lca", 20),  # nothing below the ancestor: up from there
        ({"d0": "20s"}, "d1q0", "queue", 20),
        ({"d0q0": "30s"}, "d1q0", "lca", 10),  # a queue below is not asked: the default
        ({}, "d0q1", "queue", 10),
        ({"d0q0": "0s"}, "d0q1", "queue", 0),  # zero is a value
    ],
)
def test_the_minimum_run_time_that_protects_from_reclaim(runtimes, reclaimer, method, seconds):
    policy = Policy(reclaim_min_runtime=DEFAULT, reclaim_min_runtime_method=method)
    assert evicted(runtimes, reclaimer, policy, seconds)
    assert seconds == 0 or not evicted(runtimes, reclaimer, policy, seconds - 1)
