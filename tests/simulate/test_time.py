"""Scenario files about time: run times, reservations, requeues."""

from __future__ import annotations

import pytest

from capstan.simulate import Scenario, load, run

BACKFILL = """
name: a large job is not overtaken by long ones, and starts when it was told
nodes: {n0: {cpu: 8, memory: 8G, gpus: 4}}
queues: [{name: a}]
roundLength: 60s
rounds: 11
jobs:
- {name: now, queue: a, request: {cpu: 1, gpus: 2}, tasks: [{state: Running, node: n0}], runningFor: 0s,
   expectedRuntime: 10m, lasts: 10m}
- {name: large, queue: a, request: {cpu: 1, gpus: 4}, tasks: [{}]}
- {name: short, queue: a, request: {cpu: 1, gpus: 1}, tasks: [{}], expectedRuntime: 5m, lasts: 5m}
- {name: long, queue: a, request: {cpu: 1, gpus: 1}, tasks: [{}], expectedRuntime: 1h, lasts: 1h}
expect:
  jobs: {now: {status: Succeeded}, large: {status: Running}, short: {status: Succeeded}, long: {status: Pending}}
  errors: {long-0: no node has room}
"""
HELD = """
name: who would delay a reservation waits
nodes: {n0: {cpu: 8, memory: 8G, gpus: 4}}
queues: [{name: a}]
jobs:
- {name: now, queue: a, request: {cpu: 1, gpus: 2}, tasks: [{state: Running, node: n0}], runningFor: 0s,
   maxRuntime: 10m}
- {name: large, queue: a, request: {cpu: 1, gpus: 4}, tasks: [{}]}
- {name: long, queue: a, request: {cpu: 1, gpus: 1}, tasks: [{}], expectedRuntime: 1h}
expect:
  jobs: {large: {status: Pending}, long: {status: Pending}}
  errors: {large-0: reserved 4 GPUs on 1 node, long-0: would delay the reservation of default/large}
"""
REQUEUE = """
name: a job that ran too long makes way and waits
nodes: {n0: {cpu: 8, memory: 8G, gpus: 4}}
queues: [{name: a, maxRuntime: 1h, requeueDelay: 10m}]
rounds: 2
stableRounds: 3
roundLength: 60s
jobs:
- {name: old, queue: a, request: {cpu: 1, gpus: 4}, tasks: [{state: Running, node: n0}], runningFor: 1h}
expect:
  jobs: {old: {status: Pending}}
  errors: {old-0: waits until}
"""


@pytest.mark.parametrize("text", [BACKFILL, HELD, REQUEUE])
def test_scenarios_about_time(text: str) -> None:
    (scenario,) = load(text)
    assert isinstance(scenario, Scenario)
    assert run(scenario) == []
