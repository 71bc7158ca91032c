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


DEFRAGMENT = """
name: in a window, two half empty nodes become a full and an empty one, and stay so
nodes: {n0: {cpu: 8, memory: 8G, gpus: 2}, n1: {cpu: 8, memory: 8G, gpus: 2}}
queues: [{name: a}]
settings: {defragment: {schedule: "* * * * *", duration: 60s, cooldown: 1h}}
rounds: 3
stableRounds: 5
jobs:
- {name: x, queue: a, request: {cpu: 1, gpus: 1}, tasks: [{state: Running, node: n0}], runningFor: 2h}
- {name: y, queue: a, request: {cpu: 1, gpus: 1}, tasks: [{state: Running, node: n1}], runningFor: 2h}
expect:
  jobs: {x: {status: Running, node: n1}, y: {status: Running, node: n1}}
  nodes: {n0: {idleGPUs: 2}}
"""
SEMI = """
name: a queue takes back its quota from the surplus of a semi-preemptible job, and not from its core
nodes: {n0: {cpu: 8, memory: 8G, gpus: 4}}
queues: [{name: a, gpu: {quota: 2}}, {name: b, gpu: {quota: 2}}]
rounds: 2
stableRounds: 3
jobs:
- {name: elastic, queue: a, preemptible: semi, minMember: 2, request: {cpu: 1, gpus: 1},
   tasks: [&run {state: Running, node: n0}, *run, *run, *run]}
- {name: theirs, queue: b, request: {cpu: 1, gpus: 1}, minMember: 1, tasks: [{}, {}, {}]}
expect:
  tasks:
    elastic-0: {status: Running}
    elastic-1: {status: Running}
    elastic-2: {status: Pending}
    elastic-3: {status: Pending}
"""


@pytest.mark.parametrize("text", [DEFRAGMENT, SEMI, BACKFILL, HELD, REQUEUE])
def test_scenarios_about_time(text: str) -> None:
    (scenario,) = load(text)
    assert isinstance(scenario, Scenario)
    assert run(scenario) == []
