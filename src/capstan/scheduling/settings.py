"""What a SchedulingShard of KAI means here: a Policy, an account of usage, and a list of what is wrong in it.

A value that makes no sense is named in `problems` and replaced by the default; everything else holds.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Literal

from capstan.api import clock
from capstan.api.cron import InvalidSchedule, Schedule
from capstan.api.kai import SchedulingShard, UsageParams
from capstan.scheduling.installation import Installation
from capstan.scheduling.policy import ACTIONS, KAI_ACTIONS, DefragmentWindow, Placement, Policy
from capstan.scheduling.texts import LONGEST, Problem, Reader
from capstan.scheduling.usage import STALENESS, WEEK, Cron, Sliding, Tumbling, Window

PERIOD = 1.0
FETCH_INTERVAL = 60.0
_PRIORITIES = {"allocate": 500, "consolidate": 400, "reclaim": 300, "preempt": 200, "evict-stale": 100}
"""KAI's, of the actions that it has, unless the shard sets others."""
PLUGINS = {
    "predicates", "proportion", "priority", "nodeavailability", "resourcetype", "podaffinity", "elastic", "kubeflow",
    "ray", "subgrouporder", "taskorder", "nominatednode", "dynamicresources", "minruntime", "topology", "snapshot",
    "sg-nodelocalgreedy", "sg-multinodegang", "gpupack", "gpuspread", "nodeplacement", "gpusharingorder", "numa",
    "reflectjoborder", "backfill", "defragmentation",
}  # fmt: skip
"""Those of KAI, and two of ours that carry what KAI has no fields for."""
_SWITCHES = {"gpupack", "gpuspread", "numa", "reflectjoborder", "snapshot", "backfill", "defragmentation"}
UNNEEDED_FLAGS = {
    "namespace", "metrics-namespace", "resource-reservation-app-label", "scheduler-conf",
    "leader-elect", "listen-address", "enable-profiler", "profiler-port", "pyroscope-address",
    "pyroscope-mutex-profiler-rate", "pyroscope-block-profiler-rate", "v", "verbosity", "qps", "burst",
    "update-pod-eviction-condition", "schedule-csi-storage", "use-scheduling-signatures", "full-hierarchy-fairness",
    "num-of-status-recording-workers", "plugin-server-port", "log-json", "cpu-worker-node-label-key",
    "gpu-worker-node-label-key", "mig-worker-node-label-key", "feature-gates",
}  # fmt: skip
"""Flags of KAI's scheduler that are accepted and change nothing; docs/shards.md gives the reasons."""
_ELSEWHERE = {"schedule-period", "scheduler-name", "partition-label-value", "nodepool-label-key", "queue-label-key"}
"""Flags that are read where the fields are that they override."""
_LABEL_VALUE = re.compile(r"([A-Za-z0-9]([A-Za-z0-9_.-]{0,61}[A-Za-z0-9])?)?")


@dataclass(frozen=True, slots=True)
class Accounting:
    """How usage is counted (`Usage`), and how often fair shares learn of it, in seconds."""

    window: Window = field(default_factory=Sliding)
    half_life: float = 0.0
    staleness: float = STALENESS
    refresh: float = FETCH_INTERVAL


@dataclass(frozen=True, slots=True)
class Settings:
    """What a shard's scheduler works by."""

    policy: Policy
    accounting: Accounting | None = None
    """None: past usage does not count."""
    period: float = PERIOD
    """Seconds after which a cycle runs although nothing changed."""
    problems: tuple[Problem, ...] = ()


def shard_settings(shard: SchedulingShard, config: Installation, base: Policy) -> Settings:
    """What the scheduler of a shard works by. `base`: what the cluster sets apart from KAI's objects."""
    read = Reader()
    spec = shard.spec
    name = spec.args.get("scheduler-name") or config.scheduler_name
    pool = spec.args.get("partition-label-value") or spec.partition_label_value
    if not _LABEL_VALUE.fullmatch(pool):
        read.refuse("spec.partitionLabelValue", f"{pool!r} cannot be the value of a label; no node can have it")
    policy = replace(
        base,
        scheduler_names=base.scheduler_names - {base.grouped_scheduler} | {name},
        grouped_scheduler=name,
        gpu_sharing=config.gpu_sharing,
        node_pool=pool,
        node_pool_label=spec.args.get("nodepool-label-key") or config.node_pool_label,
        queue_label=spec.args.get("queue-label-key") or config.queue_label,
        **_min_runtimes(shard, read),
        **_shares(shard, read),
        **_placement(shard, read),
        **_backfill(shard, base, read),
        **_defragmentation(shard, base, read),
        **_flags(spec.args, base, read),
    )
    policy = replace(policy, actions=_actions(shard, policy, read), queue_depth=_depths(shard, read))
    _check_plugins(shard, read)
    _check_budgets(shard, read)
    period = read.duration("spec.args[schedule-period]", spec.args.get("schedule-period", ""), PERIOD, lowest=0.001)
    return Settings(policy, _accounting(shard, read), period, tuple(read.problems))


# -- the parts of a shard ------------------------------------------------------------------------------------------


def _arguments(shard: SchedulingShard, plugin: str) -> Mapping[str, str]:
    found = shard.spec.plugins.get(plugin)
    return found.arguments if found is not None else {}


def _min_runtimes(shard: SchedulingShard, read: Reader) -> dict[str, Any]:
    given, arguments = shard.spec.min_runtime, _arguments(shard, "minruntime")
    where = "spec.plugins[minruntime].arguments"

    def runtime(argument: str, field: str, text: str) -> float:
        if argument in arguments:
            return read.duration(f"{where}[{argument}]", arguments[argument], 0.0)
        return read.duration(f"spec.minRuntime.{field}", text, 0.0)

    method: Literal["lca", "queue"] = "lca"
    wanted = arguments.get("reclaimResolveMethod") or "lca"
    if wanted == "queue":
        method = "queue"
    elif wanted != "lca":
        read.refuse(f"{where}[reclaimResolveMethod]", f"{wanted!r} is neither lca nor queue; lca is used")
    return {
        "preempt_min_runtime": runtime("defaultPreemptMinRuntime", "preemptMinRuntime", given.preempt_min_runtime),
        "reclaim_min_runtime": runtime("defaultReclaimMinRuntime", "reclaimMinRuntime", given.reclaim_min_runtime),
        "reclaim_min_runtime_method": method,
    }


_MULTIPLIERS = ("relcaimerSaturationMultiplier", "reclaimerSaturationMultiplier", "reclaimerUtilizationMultiplier")
"""KAI reads the first, misspelt as it is; its documentation tells users to write the last."""


def _shares(shard: SchedulingShard, read: Reader) -> dict[str, Any]:
    arguments = _arguments(shard, "proportion")
    where = "spec.plugins[proportion].arguments"
    found: dict[str, Any] = {}
    given = next((name for name in _MULTIPLIERS if name in arguments), None)
    if given is not None:
        found["saturation_multiplier"] = read.number(f"{where}[{given}]", arguments[given], 1.0, lowest=1.0)
    if "kValue" in arguments:
        found["k_value"] = read.number(f"{where}[kValue]", arguments["kValue"], 0.0, lowest=0.0)
    elif shard.spec.k_value is not None:
        found["k_value"] = read.number("spec.kValue", str(shard.spec.k_value), 0.0, lowest=0.0)
    for name in sorted(arguments.keys() - {"kValue", *_MULTIPLIERS}):
        read.pass_over(f"{where}[{name}]")
    return found


def _placement(shard: SchedulingShard, read: Reader) -> dict[str, Any]:
    given, arguments = shard.spec.placement_strategy, _arguments(shard, "nodeplacement")
    where = "spec.plugins[nodeplacement].arguments"
    found: dict[str, Any] = {}
    for kind, text in (("gpu", given.gpu), ("cpu", given.cpu)):
        found[f"{kind}_placement"] = read.placement(f"spec.placementStrategy.{kind}", text, "binpack")
        if kind in arguments:
            text = arguments[kind]
            found[f"{kind}_placement"] = read.placement(f"{where}[{kind}]", text, found[f"{kind}_placement"])
    switched: tuple[tuple[str, Placement], ...] = (("gpupack", "binpack"), ("gpuspread", "spread"))
    for plugin, placement in switched:
        config = shard.spec.plugins.get(plugin)
        if config is not None and config.enabled:
            found["shared_gpu_placement"] = placement
    return found


def _backfill(shard: SchedulingShard, base: Policy, read: Reader) -> dict[str, Any]:
    where, found = "spec.plugins[backfill].arguments", dict[str, Any]()
    for name, text in sorted(_arguments(shard, "backfill").items()):
        field = f"{where}[{name}]"
        match name:
            case "reservations":
                found["reservations"] = read.integer(field, text, base.reservations, lowest=0)
            case "reserveAfter":
                found["reserve_after"] = read.duration(field, text, base.reserve_after)
            case "learnRuntimes":
                found["learn_runtimes"] = read.boolean(field, text, base.learn_runtimes)
            case "runtimeQuantile":
                found["runtime_quantile"] = min(1.0, read.number(field, text, base.runtime_quantile, lowest=0.0))
            case "starvingAfter":
                found["starving_after"] = read.duration(field, text, base.starving_after or LONGEST)
            case "assumedRuntime":
                found["assumed_runtime"] = read.duration(field, text, base.assumed_runtime, lowest=1.0)
            case _:
                read.pass_over(field)
    if shard.spec.plugins.get("backfill") is not None and shard.spec.plugins["backfill"].enabled is False:
        found["reservations"] = 0
    return found


def _defragmentation(shard: SchedulingShard, base: Policy, read: Reader) -> dict[str, Any]:
    where, arguments = "spec.plugins[defragmentation].arguments", _arguments(shard, "defragmentation")
    plugin = shard.spec.plugins.get("defragmentation")
    if plugin is None or plugin.enabled is False:
        return {"defragment_windows": ()} if plugin is not None else {}
    for name in sorted(arguments.keys() - {"schedule", "duration", "timeZone", "maxVictims", "cooldown"}):
        read.pass_over(f"{where}[{name}]")
    found: dict[str, Any] = {
        "defragment_max_victims": read.integer(
            f"{where}[maxVictims]", arguments.get("maxVictims", "16"), base.defragment_max_victims, lowest=0
        ),
        "defragment_cooldown": read.duration(
            f"{where}[cooldown]", arguments.get("cooldown", ""), base.defragment_cooldown
        ),
    }
    seconds = read.duration(f"{where}[duration]", arguments.get("duration", ""), 3600.0, lowest=1.0)
    window = DefragmentWindow(arguments.get("schedule", ""), seconds, arguments.get("timeZone", ""))
    try:
        window.open_at(0.0)
        found["defragment_windows"] = (window,)
    except InvalidSchedule as invalid:
        read.refuse(f"{where}[schedule]", f"{invalid}; there is no window")
    return found


def _flags(args: Mapping[str, str], base: Policy, read: Reader) -> dict[str, Any]:
    """The scheduler's flags that set part of the policy."""
    found: dict[str, Any] = {}
    for name, text in sorted(args.items()):
        field = f"spec.args[{name}]"
        match name:
            case "max-consolidation-preemptees":
                victims = read.integer(field, text, base.max_consolidation_victims, lowest=-1)
                found["max_consolidation_victims"] = victims
            case "allow-consolidating-reclaim":
                found["reclaim_may_consolidate"] = read.boolean(field, text, base.reclaim_may_consolidate)
            case "detailed-fit-errors":
                found["detailed_fit_errors"] = read.boolean(field, text, base.detailed_fit_errors)
            case "default-staleness-grace-period":
                found["stale_grace"] = read.duration(field, text, base.stale_grace, lowest=-math.inf)
            case "stuck-in-releasing-threshold":
                found["stuck_after"] = read.duration(field, text, base.stuck_after)
            case "restrict-node-scheduling":
                if read.boolean(field, text, False):
                    read.refuse(field, "worker labels restrict nothing; keep pods off nodes with taints")
            case _ if name not in _ELSEWHERE and name not in UNNEEDED_FLAGS:
                read.pass_over(field, "is no flag of the scheduler; it changes nothing")
    return found


def _actions(shard: SchedulingShard, policy: Policy, read: Reader) -> tuple[str, ...]:
    """Higher priority first. Actions that KAI does not have follow the one they follow by default."""
    priorities: dict[str, int] = {}
    latest = 0
    for name in ACTIONS:
        latest = priorities[name] = _PRIORITIES.get(name, latest)
    disabled = set(ACTIONS) - set(policy.actions)
    for kai, config in sorted(shard.spec.actions.items()):
        name = KAI_ACTIONS.get(kai, kai)
        if name not in priorities:
            read.refuse(f"spec.actions[{kai}]", f"is no action; the actions are {', '.join(_names())}")
            continue
        if config.priority is not None:
            priorities[name] = config.priority
        if config.enabled is False:
            disabled.add(name)
        if config.enabled and name == "consolidate" and "spread" in (policy.gpu_placement, policy.cpu_placement):
            read.refuse(f"spec.actions[{kai}].enabled", "nothing is moved together while pods are spread")
    ordered = sorted(ACTIONS, key=lambda name: (-priorities[name], ACTIONS.index(name)))
    return tuple(name for name in ordered if name not in disabled)


def _names() -> Iterator[str]:
    kai = {ours: theirs for theirs, ours in KAI_ACTIONS.items()}
    return (kai.get(name, name) for name in ACTIONS)


def _depths(shard: SchedulingShard, read: Reader) -> dict[str, int]:
    found = {}
    for kai, depth in sorted(shard.spec.queue_depth_per_action.items()):
        name = KAI_ACTIONS.get(kai, kai)
        if name not in ACTIONS:
            read.refuse(f"spec.queueDepthPerAction[{kai}]", f"is no action; the actions are {', '.join(_names())}")
        elif depth > 0:
            found[name] = depth
        elif depth != -1:
            message = f"{depth} is neither a number of jobs nor -1 for all; all are looked at"
            read.refuse(f"spec.queueDepthPerAction[{kai}]", message)
    return found


def _check_plugins(shard: SchedulingShard, read: Reader) -> None:
    for name, config in sorted(shard.spec.plugins.items()):
        field = f"spec.plugins[{name}]"
        if name not in PLUGINS:
            read.pass_over(field, "is no plugin of KAI's, and Capstan loads no others")
        elif config.enabled is False and name not in _SWITCHES:
            read.refuse(f"{field}.enabled", "its rule cannot be switched off; it holds")


def _check_budgets(shard: SchedulingShard, read: Reader) -> None:
    """Search is bounded in steps, not in time, so budgets are only read to find what is no duration."""
    budgets = shard.spec.scenario_search_budgets
    where = "spec.scenarioSearchBudgets"
    texts = {f"{where}.maxActionSearchDuration[{k}]": v for k, v in budgets.max_action_search_duration.items()}
    texts |= {f"{where}.maxGeneratorSearchDuration[{k}]": v for k, v in budgets.max_generator_search_duration.items()}
    texts |= {f"{where}.maxJobSearchDuration": budgets.max_job_search_duration}
    texts |= {f"{where}.minJobSearchDuration": budgets.min_job_search_duration}
    for path, text in sorted(texts.items()):
        read.duration(path, text, 0.0)


# -- usage ---------------------------------------------------------------------------------------------------------


def _accounting(shard: SchedulingShard, read: Reader) -> Accounting | None:
    config = shard.spec.usage_db_config
    if config is None:
        return None
    params, where = config.usage_params, "spec.usageDBConfig.usageParams"
    refresh = read.duration(f"{where}.fetchInterval", params.fetch_interval, FETCH_INTERVAL, lowest=1.0)
    return Accounting(
        window=_window(shard, params, where, read),
        half_life=read.duration(f"{where}.halfLifePeriod", params.half_life_period, 0.0),
        staleness=max(refresh, read.duration(f"{where}.stalenessPeriod", params.staleness_period, STALENESS)),
        refresh=refresh,
    )


def _window(shard: SchedulingShard, params: UsageParams, where: str, read: Reader) -> Window:
    size = read.duration(f"{where}.windowSize", params.window_size, WEEK, lowest=1.0)
    match params.window_type:
        case "" | "sliding":
            return Sliding(size)
        case "tumbling":
            # KAI's default is the time of reading, which would begin a new window with every restart.
            return Tumbling(size, _start(shard, params, where, read))
        case "cron":
            try:
                if Schedule(params.cron_string).latest(clock.parse(shard.metadata.creation_timestamp)) is not None:
                    return Cron(params.cron_string)
                read.refuse(f"{where}.cronString", f"{params.cron_string!r} never comes; the last {size:g}s count")
            except InvalidSchedule as invalid:
                read.refuse(f"{where}.cronString", f"{invalid}; the last {size:g}s count")
        case other:
            message = f"{other!r} is none of sliding, tumbling and cron; the last {size:g}s count"
            read.refuse(f"{where}.windowType", message)
    return Sliding(size)


def _start(shard: SchedulingShard, params: UsageParams, where: str, read: Reader) -> float:
    created = clock.parse(shard.metadata.creation_timestamp)
    if not params.tumbling_window_start_time:
        return created
    try:
        return clock.parse(params.tumbling_window_start_time)
    except ValueError as malformed:
        read.refuse(f"{where}.tumblingWindowStartTime", f"{malformed}; windows begin when the shard was made")
        return created
