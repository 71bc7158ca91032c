"""Scenario files: strict reading, readable differences, interchangeable tasks, the command."""

from __future__ import annotations

from pathlib import Path

import pytest
from click.testing import CliRunner

from capstan.cli.scenario import scenario as command
from capstan.simulate import InvalidScenario, load, run

TWO_JOBS = """
name: the older job gets the only GPU
nodes:
  n0: {cpu: 8, memory: 8G, gpus: 1}
queues:
  - {name: top, gpu: {quota: -1}}
  - {name: a, parent: top, gpu: {quota: 1, limit: -1, weight: 1}}
jobs:
  - {name: first, queue: a, request: {cpu: 1, gpus: 1}, tasks: [{}]}
  - {name: second, queue: a, request: {cpu: 1, gpus: 1}, tasks: [{}]}
expect:
  jobs:
    first: {status: Binding, node: n0, gpus: 1}
    second: {status: Pending}
  errors: {second-0: insufficient GPUs}
"""


def test_a_scenario_passes() -> None:
    (only,) = load(TWO_JOBS)
    assert run(only) == []


def test_a_difference_names_the_task_and_both_outcomes() -> None:
    (only,) = load(TWO_JOBS.replace("second: {status: Pending}", "second: {status: Running}"))
    assert run(only) == ["task second-0: Pending, expected Running"]


def test_rounds_settle_and_have_to_stay_stable() -> None:
    text = TWO_JOBS.replace("expect:", "rounds: 2\nstableRounds: 3\nexpect:").replace("Binding", "Running")
    (only,) = load(text)
    assert run(only) == []


DRAWN = """
name: two of three share the bandwidth of the port
settings: {featureGates: "DRASharedConsumableCapacity=true"}
rounds: 2
stableRounds: 2
nodes:
  n0: {cpu: 8, memory: 8G}
queues:
  - {name: top}
  - {name: a, parent: top}
jobs:
  - {name: first, queue: a, request: {cpu: 1}, tasks: [{claims: [six]}]}
  - {name: second, queue: a, request: {cpu: 1}, tasks: [{claims: [five]}]}
  - {name: third, queue: a, request: {cpu: 1}, tasks: [{claims: [four]}]}
dra:
  deviceClasses: [{metadata: {name: vf}, spec: {}}]
  resourceSlices:
    - metadata: {name: port}
      spec:
        driver: net.example.com
        nodeName: n0
        pool: {name: port, generation: 1, resourceSliceCount: 1}
        sharedCounters: [{name: port, counters: {bandwidth: {value: 10G}}}]
        devices:
          - {name: vf-0, consumesCounters: [{counterSet: port, counters: &drawn {bandwidth: {valueFrom: {capacityName: bandwidth}}}}]}
          - {name: vf-1, consumesCounters: [{counterSet: port, counters: *drawn}]}
          - {name: vf-2, consumesCounters: [{counterSet: port, counters: *drawn}]}
  resourceClaims:
    - {metadata: {name: six, namespace: default}, spec: {devices: {requests: [{name: r, exactly: {deviceClassName: vf, capacity: {requests: {bandwidth: 6G}}}}]}}}
    - {metadata: {name: five, namespace: default}, spec: {devices: {requests: [{name: r, exactly: {deviceClassName: vf, capacity: {requests: {bandwidth: 5G}}}}]}}}
    - {metadata: {name: four, namespace: default}, spec: {devices: {requests: [{name: r, exactly: {deviceClassName: vf, capacity: {requests: {bandwidth: 4G}}}}]}}}
expect:
  jobs:
    first: {status: Running}
    second: {status: Pending}
    third: {status: Running}
  errors: {second-0: the shared counters}
"""  # noqa: E501  # claims on one line each


def test_a_scenario_has_the_feature_gates_it_asks_for() -> None:
    (only,) = load(DRAWN)
    assert run(only) == []
    (without,) = load(DRAWN.replace("Capacity=true", "Capacity=false"))
    assert run(without) != []


@pytest.mark.parametrize(
    ("old", "new", "words"),
    [
        ("gpus: 1}", "gpu: 1}", "unknown field `gpu`"),
        ("second-0:", "third-0:", "unknown task third-0"),
        ("expect:", "expect:\n  nodes: {n7: {idleGPUs: 1}}", "unknown node n7"),
        ("tasks: [{}]", "tasks: [{state: Running}]", "needs a node"),
        ("tasks: [{}]", "tasks: [{state: Flying}]", "Flying"),
        ("name: the", "- name: the", "line"),
        ("expect:", "settings: {staleGrace: soon}\nexpect:", "settings: 'soon'"),
        ("expect:", "settings: {defragment: {schedule: at night, duration: 1h}}\nexpect:", "settings: schedule"),
        ("expect:", "settings: {featureGates: DRAMagic=true}\nexpect:", "settings: 'DRAMagic=true' is not"),
        ("expect:", "roundLength: long\nexpect:", "roundLength: 'long'"),
        ("name: first,", "name: first, lasts: long,", "job first: lasts: 'long'"),
    ],
)
def test_mistakes_in_the_file_are_named(old: str, new: str, words: str) -> None:
    try:
        (found,) = load(TWO_JOBS.replace(old, new, 1))
    except InvalidScenario as unreadable:
        found = unreadable
    assert isinstance(found, InvalidScenario)
    assert words in str(found)


def test_a_wrong_scenario_does_not_keep_its_neighbours_from_running(tmp_path: Path) -> None:
    both = tmp_path / "both.yaml"
    both.write_text(f"{TWO_JOBS}---\n{TWO_JOBS.replace('request:', 'requests:')}", encoding="utf-8")
    result = CliRunner().invoke(command, ["run", str(both)])
    assert (result.exit_code, result.output.splitlines()[-1]) == (1, "1 passed, 1 failed")
    assert "unknown field `requests`" in result.output


def test_a_job_whose_queue_does_not_exist_waits() -> None:
    text = TWO_JOBS.replace("queue: a", "queue: nobody", 1)
    text = text.replace("first: {status: Binding, node: n0, gpus: 1}", "first: {status: Pending}")
    text = text.replace("second: {status: Pending}", "second: {status: Binding}")
    (only,) = load(text.replace("second-0: insufficient GPUs", "first-0: queue nobody does not exist"))
    assert run(only) == []


def test_tasks_written_alike_are_interchangeable() -> None:
    text = """
name: one of two equal tasks starts
nodes: {n0: {cpu: 8, memory: 8G, gpus: 1}}
queues: [{name: a}]
jobs:
  - {name: j, queue: a, minMember: 1, request: {cpu: 1, gpus: 1}, tasks: [{}, {}]}
expect:
  tasks: {j-0: {status: Pending}, j-1: {status: Binding, node: n0}}
"""
    assert run(load(text)[0]) == []


def test_shared_devices_are_compared_by_identity_not_by_name() -> None:
    text = """
name: two halves on one device
nodes: {n0: {cpu: 8, memory: 8G, gpus: 2, gpuMemory: 100}}
queues: [{name: a}]
jobs:
  - {name: j, queue: a, request: {gpuFraction: 0.5}, tasks: [{}, {}]}
expect:
  tasks: {j-0: {gpuGroups: [x]}, j-1: {gpuGroups: [x]}}
"""
    assert run(load(text)[0]) == []
    found = run(load(text.replace("j-1: {gpuGroups: [x]}", "j-1: {gpuGroups: [y]}"))[0])
    assert found[1].startswith("task j-1: on devices ")
    assert found[1].endswith(" of n0, expected on those called ['y']")


def test_many_tasks_written_alike_are_all_interchangeable() -> None:
    text = """
name: 5 of 12 equal tasks start, 3 of them on one node
nodes: {n0: {cpu: 8, memory: 8G, gpus: 3}, n1: {cpu: 8, memory: 8G, gpus: 2}}
queues: [{name: a}]
jobs:
  - name: j
    queue: a
    minMember: 1
    request: {cpu: 1, gpus: 1}
    tasks: [{}, {}, {}, {}, {}, {}, {}, {}, {}, {}, {}, {}]
expect:
  tasks:
    j-0: {status: Pending}
    j-1: {status: Pending}
    j-8: {status: Binding, node: n1}
    j-9: {status: Binding, node: n1}
    j-10: {status: Binding, node: n0}
    j-11: {status: Binding, node: n0}
"""
    assert run(load(text)[0]) == []
    (difference,) = run(load(text.replace("j-9: {status: Binding, node: n1}", "j-9: {status: Running}"))[0])
    assert difference.startswith("task j-9: ")


def test_shared_devices_of_tasks_written_alike_are_assigned_together() -> None:
    text = """
name: two pairs
nodes: {n0: {cpu: 8, memory: 8G, gpus: 2, gpuMemory: 100}}
queues: [{name: a}]
jobs:
  - {name: j, queue: a, request: {gpuFraction: 0.5}, tasks: [{}, {}, {}, {}]}
expect:
  tasks: {j-0: {gpuGroups: [x]}, j-1: {gpuGroups: [y]}, j-2: {gpuGroups: [y]}, j-3: {gpuGroups: [x]}}
"""
    assert run(load(text)[0]) == []
    assert run(load(text.replace("j-2: {gpuGroups: [y]}", "j-2: {gpuGroups: [x]}"))[0]) != []


def test_the_command_counts_and_exits(tmp_path: Path) -> None:
    good, bad = tmp_path / "good.yaml", tmp_path / "bad.yaml"
    good.write_text(TWO_JOBS, encoding="utf-8")
    bad.write_text(TWO_JOBS.replace("first: {status: Binding", "first: {status: Gated"), encoding="utf-8")
    passed = CliRunner().invoke(command, ["run", str(good)])
    assert (passed.exit_code, passed.output.splitlines()[-1]) == (0, "1 passed, 0 failed")
    failed = CliRunner().invoke(command, ["run", str(good), str(bad)])
    assert (failed.exit_code, failed.output.splitlines()[-1]) == (1, "1 passed, 1 failed")
    assert "task first-0: Binding on n0, expected Gated" in failed.output


def test_the_scenario_in_the_guide_passes() -> None:
    guide = (Path(__file__).parents[2] / "docs" / "scheduling.md").read_text(encoding="utf-8")
    example = guide.partition("## Scenario files")[2].partition("```yaml\n")[2].partition("```")[0]
    assert run(load(example)[0]) == []
