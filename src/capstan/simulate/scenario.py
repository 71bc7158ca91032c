"""Scenario files: a small cluster, what waits in it, and what one or more scheduling cycles must make of it.

`load` reads the files strictly: an unknown key is an error that names its place. `capstan.simulate.run` plays a
scenario. The format is documented in docs/scheduling.md.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Literal

import msgspec

from capstan.allocation import Features
from capstan.api import feature_gates, manifests
from capstan.scheduling import DefragmentWindow, Policy, durations
from capstan.scheduling.policy import ACTIONS

Amount = str | int | float
State = Literal[
    "Pending",
    "Gated",
    "Allocated",
    "Pipelined",
    "Binding",
    "Bound",
    "Running",
    "Releasing",
    "Succeeded",
    "Failed",
    "StuckInReleasing",
]
PLACED: frozenset[str] = frozenset({"Allocated", "Binding", "Bound", "Running", "Releasing", "StuckInReleasing"})

BINDING: frozenset[str] = frozenset({"Allocated", "Binding"})
"""Placed, and the cluster does not know yet."""


class Strict(msgspec.Struct, rename="camel", forbid_unknown_fields=True, omit_defaults=True, kw_only=True):
    """Base of everything in a scenario file."""


class PlacementSettings(Strict):
    gpu: Literal["binpack", "spread"] = "binpack"
    cpu: Literal["binpack", "spread"] = "binpack"
    shared_gpu: Literal["binpack", "spread"] | None = msgspec.field(default=None, name="sharedGpu")


class Defragment(Strict):
    schedule: str
    duration: str
    zone: str = ""
    max_victims: int = 16
    cooldown: str = "1h"


class Settings(Strict):
    placement: PlacementSettings = msgspec.field(default_factory=PlacementSettings)
    max_consolidation_victims: int = 16
    reclaim_may_consolidate: bool = True
    stale_grace: str = "60s"
    reservations: int = 8
    reserve_after: str = "0s"
    starving_after: str | None = None
    assumed_runtime: str = "1h"
    defragment: Defragment | None = None
    feature_gates: str = ""


class Mig(Strict):
    strategy: Literal["none", "single", "mixed"] = "mixed"
    instances: dict[str, int] = {}


class Numa(Strict):
    policy: Literal["none", "best-effort", "restricted", "single-numa-node"] = "none"
    scope: Literal["container", "pod"] = "container"
    zones: list[dict[str, Amount]] = []


class NodeSetup(Strict):
    cpu: Amount = 0
    memory: Amount = 0
    pods: int = 110
    gpus: int = 0
    gpu_memory: int = 0
    mig: Mig | None = None
    labels: dict[str, str] = {}
    taints: list[dict[str, str]] = []
    numa: Numa | None = None


class TopologySetup(Strict):
    name: str
    levels: list[str]


class Bound(Strict):
    quota: float = -1
    limit: float = -1
    weight: float = 1
    lending_limit: float = -1


class QueueSetup(Strict):
    name: str
    parent: str | None = None
    priority: int = 100
    gpu: Bound = msgspec.field(default_factory=Bound)
    cpu: Bound = msgspec.field(default_factory=Bound)
    memory: Bound = msgspec.field(default_factory=Bound)
    gpu_types: dict[str, Bound] = {}
    preempt_min_runtime: str | None = None
    reclaim_min_runtime: str | None = None
    max_runtime: str | None = None
    requeue_delay: str | None = None
    user_fairness: Literal["None", "DominantShare"] = "None"


class Constraint(Strict):
    name: str
    required: str = ""
    preferred: str = ""


class Request(Strict):
    cpu: Amount = 0
    memory: Amount = 0
    gpus: int = 0
    gpu_fraction: float | None = None
    gpu_memory: int | None = None
    gpu_devices: int | None = None
    mig: dict[str, int] = {}
    best_effort: bool = False


class SubGroupSetup(Strict):
    name: str
    parent: str | None = None
    min_member: int | None = None
    min_sub_group: int | None = None
    topology: Constraint | None = None


class TaskSetup(Strict):
    state: State = "Pending"
    name: str = ""
    node: str | None = None
    gpu_groups: list[str] = []
    subgroup: str = ""
    priority: int | None = None
    node_affinity: list[str] = []
    pod_affinity: dict[str, Any] | None = None
    pod_anti_affinity: dict[str, Any] | None = None
    numa: dict[str, dict[str, Amount]] = {}
    labels: dict[str, str] = {}
    request: Request | None = None
    claims: list[str] = []
    claim_templates: list[str] = []


class JobSetup(Strict):
    name: str
    queue: str
    tasks: list[TaskSetup]
    namespace: str = "default"
    priority: int = 50
    preemptible: bool | Literal["semi"] | None = None
    min_non_preemptible: int | None = None
    age: float | None = None
    running_for: str | None = None
    preemption_delay: str | None = None
    max_runtime: str | None = None
    expected_runtime: str | None = None
    requeue_delay: str | None = None
    lasts: str | None = None
    stale_since: str | None = None
    stale_grace: str | None = None
    qos: Literal["Guaranteed", "Burstable", "BestEffort"] = "Burstable"
    request: Request = msgspec.field(default_factory=Request)
    min_member: int | None = None
    topology: Constraint | None = None
    min_sub_group: int | None = None
    subgroups: list[SubGroupSetup] = []
    on_evict: Literal["recreate", "delete", "stay"] = "recreate"


class Dra(Strict):
    device_classes: list[dict[str, Any]] = []
    resource_slices: list[dict[str, Any]] = []
    resource_claims: list[dict[str, Any]] = []
    resource_claim_templates: list[dict[str, Any]] = []


class Outcome(Strict):
    status: str | None = None
    node: str | None = None
    gpus: float | None = None
    gpu_groups: list[str] | None = None
    numa_zones: list[str] | None = None


class NodeOutcome(Strict):
    idle_gpus: float | None = msgspec.field(default=None, name="idleGPUs")
    releasing_gpus: float | None = msgspec.field(default=None, name="releasingGPUs")
    numa_free: dict[str, dict[str, Amount]] = {}


class Bounds(Strict):
    binds: int | None = None
    evictions: int | None = None
    pipelined: int | None = None


class Expect(Strict):
    jobs: dict[str, Outcome] = {}
    tasks: dict[str, Outcome] = {}
    nodes: dict[str, NodeOutcome] = {}
    at_most: Bounds = msgspec.field(default_factory=Bounds)
    errors: dict[str, str] = {}


class Scenario(Strict):
    name: str
    nodes: dict[str, NodeSetup]
    queues: list[QueueSetup]
    jobs: list[JobSetup]
    expect: Expect
    source: str = ""
    actions: list[str] = msgspec.field(default_factory=lambda: list(ACTIONS))
    rounds: int = 1
    stable_rounds: int = 0
    round_length: str = "1s"
    settings: Settings = msgspec.field(default_factory=Settings)
    topologies: list[TopologySetup] = []
    dra: Dra | None = None

    def policy(self) -> Policy:
        """The engine settings that the scenario asks for. Raises ValueError for a malformed duration or gate."""
        settings, placement = self.settings, self.settings.placement
        return Policy(
            actions=tuple(self.actions),
            gpu_placement=placement.gpu,
            cpu_placement=placement.cpu,
            shared_gpu_placement=placement.shared_gpu,
            max_consolidation_victims=settings.max_consolidation_victims,
            reclaim_may_consolidate=settings.reclaim_may_consolidate,
            stale_grace=durations.seconds(settings.stale_grace),
            reservations=settings.reservations,
            reserve_after=durations.seconds(settings.reserve_after),
            starving_after=durations.seconds(settings.starving_after) if settings.starving_after else None,
            assumed_runtime=durations.seconds(settings.assumed_runtime),
            features=Features.under(feature_gates.parse(settings.feature_gates)),
            **_defragment(settings.defragment),
        )


def _defragment(wanted: Defragment | None) -> dict[str, Any]:
    if wanted is None:
        return {}
    return {
        "defragment_windows": (DefragmentWindow(wanted.schedule, durations.seconds(wanted.duration), wanted.zone),),
        "defragment_max_victims": wanted.max_victims,
        "defragment_cooldown": durations.seconds(wanted.cooldown),
    }


class InvalidScenario(ValueError):
    """A scenario file that cannot be understood; the message names the scenario and the field."""


def load(text: str) -> list[Scenario | InvalidScenario]:
    """All scenarios of a file: YAML or JSON, one mapping, a list, or several YAML documents.

    In the place of a scenario that is wrong in itself stands what is wrong with it. Raises InvalidScenario if the file
    as a whole cannot be read.
    """
    try:
        documents = manifests.load_all(text, "scenario file")
    except manifests.InvalidManifest as malformed:
        raise InvalidScenario(str(malformed)) from malformed
    return [
        _read(entry) for document in documents for entry in (document if isinstance(document, list) else [document])
    ]


def _read(entry: object) -> Scenario | InvalidScenario:
    name = entry.get("name", "?") if isinstance(entry, dict) else "?"
    try:
        scenario = msgspec.convert(entry, Scenario)
    except msgspec.ValidationError as wrong:
        return InvalidScenario(f"scenario {name!r}: {wrong}")
    problem = next(_problems(scenario), None)
    return scenario if problem is None else InvalidScenario(f"scenario {name!r}: {problem}")


def _problems(scenario: Scenario) -> Iterator[str]:
    """Names that point nowhere are mistakes of the file. (A job whose queue does not exist is behaviour to test.)"""
    tasks = {name for job in scenario.jobs for name in task_names(job)}
    for job in scenario.jobs:
        for name, task in zip(task_names(job), job.tasks, strict=True):
            if task.node is not None and task.node not in scenario.nodes:
                yield f"task {name} is on the unknown node {task.node}"
            if task.state in PLACED and task.node is None:
                yield f"task {name} is {task.state} and needs a node"
    jobs = {job.name for job in scenario.jobs}
    expect = scenario.expect
    yield from (f"expect names the unknown job {name}" for name in expect.jobs if name not in jobs)
    yield from (
        f"expect names the unknown task {name}" for name in [*expect.tasks, *expect.errors] if name not in tasks
    )
    yield from (f"expect names the unknown node {name}" for name in expect.nodes if name not in scenario.nodes)
    yield from (f"unknown action {name}" for name in scenario.actions if name not in ACTIONS)
    try:
        for window in scenario.policy().defragment_windows:
            window.open_at(0.0)
    except ValueError as wrong:  # InvalidSchedule is one
        yield f"settings: {wrong}"
    written = {"roundLength": scenario.round_length}
    for job in scenario.jobs:
        times = {"runningFor": job.running_for, "staleSince": job.stale_since, "lasts": job.lasts}
        written |= {f"job {job.name}: {field}": text for field, text in times.items() if text is not None}
    for field, text in written.items():
        try:
            durations.seconds(text)
        except ValueError as malformed:
            yield f"{field}: {malformed}"


def task_names(job: JobSetup) -> list[str]:
    return [task.name or f"{job.name}-{i}" for i, task in enumerate(job.tasks)]
