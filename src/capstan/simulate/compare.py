"""What a scenario expects against what happened: readable differences, with interchangeable tasks and device names."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import permutations

import msgspec

from capstan.api import quantity
from capstan.scheduling import Plan
from capstan.scheduling.amounts import GPU, GPU_COLUMN
from capstan.scheduling.model import Status, Task
from capstan.simulate.scenario import JobSetup, Outcome, Scenario, task_names
from capstan.simulate.stage import Stage

_NAMES = {status: status.name.capitalize() for status in Status} | {
    Status.STUCK: "StuckInReleasing",
    Status.ALLOCATED: "Binding",
}
_ALIASES = {"Allocated": "Binding"}
"""What is placed is about to be bound; KAI has two words for that."""
_MOST_STEPS = 100_000
_CLOSE = 0.011
"""Fractions are rounded in tables."""


def run(scenario: Scenario) -> list[str]:
    """Play a scenario; returns the differences from its expectations, empty when it passes."""
    stage = Stage(scenario)
    if scenario.rounds <= 1 and not scenario.stable_rounds:
        plan = stage.step()
        return [*_bounds(scenario, plan, 1), *differences(stage, plan)]
    found: list[str] = []
    for number in range(1, scenario.rounds + 1):
        plan = stage.step()
        found = _bounds(scenario, plan, number)
        if found:
            return found
        stage.settle(plan)
        found = differences(stage, plan)
        if not found:
            break
    if found:
        return [f"after round {number}: {text}" for text in found]
    for extra in range(number + 1, number + 1 + scenario.stable_rounds):
        plan = stage.step()
        stage.settle(plan)
        found = [
            *_bounds(scenario, plan, extra),
            *(f"not stable, round {extra}: {d}" for d in differences(stage, plan)),
        ]
        if found:
            return found
    return []


def _bounds(scenario: Scenario, plan: Plan, number: int) -> list[str]:
    most = scenario.expect.at_most
    counted = (
        ("binds", len(plan.binds), most.binds),
        ("evictions", len(plan.evictions), most.evictions),
        ("pipelined", len(plan.promises), most.pipelined),
    )
    return [
        f"round {number}: {have} {what}, at most {bound} expected"
        for what, have, bound in counted
        if bound is not None and have > bound
    ]


def differences(stage: Stage, plan: Plan) -> list[str]:
    expect = stage.scenario.expect
    found = []
    for name, outcome in expect.jobs.items():
        found += _job(stage, name, outcome)
    found += _tasks(stage, expect.tasks)
    for name, node_outcome in expect.nodes.items():
        node = stage.world.nodes[name]
        idle, later = node.idle[GPU_COLUMN], node.later[GPU_COLUMN]
        if node_outcome.idle_gpus is not None and idle != node_outcome.idle_gpus:
            found.append(f"node {name}: {idle} idle GPUs, expected {node_outcome.idle_gpus:g}")
        releasing = max(0, later - idle)
        if node_outcome.releasing_gpus is not None and releasing != node_outcome.releasing_gpus:
            found.append(f"node {name}: {releasing} releasing GPUs, expected {node_outcome.releasing_gpus:g}")
        for zone in node.zones:
            for resource, wanted in node_outcome.numa_free.get(zone.name, {}).items():
                amount = quantity.milli(wanted) if resource == "cpu" else quantity.whole(wanted)
                free = zone.capacity.get(resource, 0) - zone.used.get(resource, 0)
                if free != amount:
                    found.append(f"node {name}, {zone.name}: {free} of {resource} free, expected {amount}")
    for name, text in expect.errors.items():
        said = [v.message for v in plan.verdicts if name in v.pods]
        if not any(text in message for message in said):
            found.append(f"task {name}: the explanation {said} does not contain {text!r}")
    return found


def _gpus(task: Task) -> float:
    return task.charge[2] / GPU if task.node is not None else 0.0


def _job(stage: Stage, name: str, outcome: Outcome) -> list[str]:
    job = next(job for job in stage.scenario.jobs if job.name == name)
    found, gpus = [], 0.0
    for task_name in task_names(job):
        task = stage.task(task_name)
        if task is None:
            found.append(f"task {task_name} is gone")
            continue
        gpus += _gpus(task)
        found += _task(task_name, task, msgspec.structs.replace(outcome, gpus=None))
    if outcome.gpus is not None and abs(gpus - outcome.gpus) > _CLOSE:
        found.append(f"job {name}: holds {gpus:g} GPUs, expected {outcome.gpus:g}")
    return found


def _task(name: str, task: Task | None, outcome: Outcome) -> list[str]:
    """Differences of one task, but for the names of shared devices."""
    if task is None:
        return [f"task {name} is gone"]
    found = []
    status = _NAMES[task.status]
    node = task.node.name if task.node is not None else None
    if outcome.status is not None and status != _ALIASES.get(outcome.status, outcome.status):
        place = f" on {node}" if node else ""
        found.append(f"task {name}: {status}{place}, expected {outcome.status}")
    elif outcome.node is not None and node != outcome.node:
        found.append(f"task {name}: {status} on {node}, expected on {outcome.node}")
    if outcome.gpus is not None and abs(_gpus(task) - outcome.gpus) > _CLOSE:
        found.append(f"task {name}: holds {_gpus(task):g} GPUs, expected {outcome.gpus:g}")
    zones = sorted({zone for zone, _, _ in task.zones})
    if outcome.numa_zones is not None and zones != sorted(outcome.numa_zones):
        found.append(f"task {name}: NUMA zones {zones}, expected {outcome.numa_zones}")
    return found


def _tasks(stage: Stage, expected: Mapping[str, Outcome]) -> list[str]:
    """Tasks written alike are interchangeable: some assignment of the expected results to them has to hold."""
    choices = {
        name: alike for job in stage.scenario.jobs for alike in _alike(job) for name in alike if name in expected
    }
    fitting = {
        name: [actual for actual in alike if not _task(name, stage.task(actual), expected[name])]
        for name, alike in choices.items()
    }
    assigned = _matching(fitting)
    for name in expected.keys() - assigned.keys():
        assigned[name] = next(actual for actual in choices[name] if actual not in assigned.values())
    found = [text for name in expected for text in _task(name, stage.task(assigned[name]), expected[name])]
    if found or not any(outcome.gpu_groups for outcome in expected.values()):
        return found
    return [] if _Devices(stage, expected, fitting).agree() else _devices(stage, expected, assigned)


def _matching(fitting: Mapping[str, Sequence[str]]) -> dict[str, str]:
    """A largest assignment of names to different tasks that fit them (augmenting paths)."""
    taken: dict[str, str] = {}

    def give(name: str, seen: set[str]) -> bool:
        for actual in fitting[name]:
            if actual not in seen:
                seen.add(actual)
                if actual not in taken or give(taken[actual], seen):
                    taken[actual] = name
                    return True
        return False

    for name in fitting:
        give(name, set())
    return {name: actual for actual, name in taken.items()}


class _Devices:
    """Device ids are labels: equal ids on one node have to be one device, different ids different ones.

    Looks for an assignment of names to tasks, and of ids to devices, under which that holds.
    """

    def __init__(self, stage: Stage, expected: Mapping[str, Outcome], fitting: Mapping[str, Sequence[str]]) -> None:
        self.stage, self.expected, self.fitting = stage, expected, fitting
        self.open = sorted(fitting, key=lambda name: (expected[name].gpu_groups is None, len(fitting[name])))
        self.used: set[str] = set()
        self.names: dict[tuple[str, str], str] = {}
        self.taken: dict[tuple[str, str], str] = {}
        self.steps = 0

    def agree(self, at: int = 0) -> bool:
        """Whether the names from `at` on can be given to tasks so that the devices agree with what was given before."""
        if at == len(self.open):
            return True
        name = self.open[at]
        groups = self.expected[name].gpu_groups
        tried = set()
        for actual in self.fitting[name]:
            task = self.stage.task(actual)
            assert task is not None, "a task that is gone fits nothing"
            if actual in self.used or _profile(task) in tried or self.steps > _MOST_STEPS:
                continue
            tried.add(_profile(task))
            self.used.add(actual)
            for devices in permutations(task.devices) if groups is not None else [()]:
                self.steps += 1
                before = dict(self.names), dict(self.taken)
                if (groups is None or self._call(task, groups, devices)) and self.agree(at + 1):
                    return True
                self.names, self.taken = before
            self.used.discard(actual)
        return False

    def _call(self, task: Task, groups: Sequence[str], devices: Sequence[str]) -> bool:
        node = task.node.name if task.node is not None else ""
        return len(groups) == len(devices) and all(
            self.names.setdefault((node, wanted), actual) == actual
            and self.taken.setdefault((node, actual), wanted) == wanted
            for wanted, actual in zip(groups, devices, strict=True)
        )


def _devices(stage: Stage, expected: Mapping[str, Outcome], assigned: Mapping[str, str]) -> list[str]:
    """Where the tasks are, when no naming of the devices suits all of them."""
    found = []
    for name, outcome in expected.items():
        task = stage.task(assigned[name])
        if outcome.gpu_groups is not None and task is not None:
            node = task.node.name if task.node is not None else "no node"
            found.append(
                f"task {name}: on devices {list(task.devices)} of {node}, expected on those called {outcome.gpu_groups}"
            )
    return found


def _profile(task: Task) -> object:
    return (task.status, task.node and task.node.name, task.charge, task.devices, task.zones)


def _alike(job: JobSetup) -> list[list[str]]:
    groups: dict[bytes, list[str]] = {}
    for name, task in zip(task_names(job), job.tasks, strict=True):
        key = msgspec.json.encode(msgspec.structs.replace(task, name=""), order="deterministic")
        groups.setdefault(key, []).append(name)
    return list(groups.values())
