"""What a scenario expects against what happened: readable differences, with interchangeable tasks and device names."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from itertools import islice, permutations, product

import msgspec

from capstan.api import quantity
from capstan.scheduling import Plan
from capstan.scheduling.model import GPU, GPU_COLUMN, Status, Task
from capstan.simulate.scenario import JobSetup, Outcome, Scenario, load, task_names
from capstan.simulate.stage import Stage

_NAMES = {status: status.name.capitalize() for status in Status} | {Status.STUCK: "StuckInReleasing"}
_MOST_ASSIGNMENTS = 20_000
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


def run_text(text: str) -> Iterator[tuple[Scenario, list[str]]]:
    """Every scenario of a file with its differences. Raises InvalidScenario before the first runs."""
    for scenario in load(text):
        yield scenario, run(scenario)


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
    if outcome.status is not None and status != outcome.status:
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
    names, choices = [], []
    for job in stage.scenario.jobs:
        for alike in _alike(job):
            if any(name in expected for name in alike):
                names.append(alike)
                choices.append(list(islice(permutations(alike), 720)))
    best: list[str] | None = None
    fixed: list[tuple[list[str], list[tuple[str, ...]]]] = []
    for alike, orders in zip(names, choices, strict=True):
        # Orders that already fail without looking at devices cannot become right.
        scored = [(len(_assigned(stage, expected, alike, order)), order) for order in orders]
        least = min(score for score, _ in scored)
        fixed.append((alike, [order for score, order in scored if score == least]))
    for combination in islice(product(*(orders for _, orders in fixed)), _MOST_ASSIGNMENTS):
        found: list[str] = []
        placed: list[tuple[Task, Sequence[str]]] = []
        for (alike, _), order in zip(fixed, combination, strict=True):
            found += _assigned(stage, expected, alike, order)
            for name, actual in zip(alike, order, strict=True):
                outcome, task = expected.get(name), stage.task(actual)
                if outcome is not None and outcome.gpu_groups is not None and task is not None:
                    placed.append((task, outcome.gpu_groups))
        found += _devices(placed)
        if not found:
            return []
        if best is None or len(found) < len(best):
            best = found
    return best or []


def _assigned(stage: Stage, expected: Mapping[str, Outcome], alike: Sequence[str], order: Sequence[str]) -> list[str]:
    return [
        text
        for name, actual in zip(alike, order, strict=True)
        if name in expected
        for text in _task(name, stage.task(actual), expected[name])
    ]


def _devices(placed: Sequence[tuple[Task, Sequence[str]]]) -> list[str]:
    """Device ids are labels: equal ids on one node have to be one device, different ids different ones."""
    names: dict[tuple[str, str], str] = {}
    taken: dict[tuple[str, str], str] = {}
    found = []
    for task, groups in placed:
        node = task.node.name if task.node is not None else ""
        if len(task.devices) != len(groups):
            found.append(f"task {task.name}: {len(task.devices)} shared devices, expected {len(groups)}")
            continue
        for wanted, actual in zip(sorted(groups), sorted(task.devices), strict=True):
            if names.setdefault((node, wanted), actual) != actual or taken.setdefault((node, actual), wanted) != wanted:
                found.append(f"task {task.name}: on device {actual} of {node}, expected on the device called {wanted}")
    return found


def _alike(job: JobSetup) -> list[list[str]]:
    groups: dict[bytes, list[str]] = {}
    for name, task in zip(task_names(job), job.tasks, strict=True):
        key = msgspec.json.encode(msgspec.structs.replace(task, name=""), order="deterministic")
        groups.setdefault(key, []).append(name)
    return list(groups.values())
