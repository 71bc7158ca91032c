"""What the scheduler tells Prometheus: under KAI Scheduler's names what KAI measures too, under `capstan_` the rest.

The engine returns numbers (`scheduling.Measures`) and says when a part of its work ends; here they become series.
Gauges over queues, gangs and the World are read when somebody asks, so that nothing outlives what it describes.
"""

from __future__ import annotations

import time
from collections import Counter as Tally
from collections.abc import Callable, Iterable, Iterator, Mapping

from prometheus_client import (
    CollectorRegistry,
    Counter,
    Gauge,
    GCCollector,
    Histogram,
    ProcessCollector,
    disable_created_metrics,
)
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric, UnknownMetricFamily
from prometheus_client.exposition import choose_encoder
from prometheus_client.registry import Collector

from capstan import scheduling
from capstan.api.scheduling import Queue
from capstan.controllers.queue_metrics import QueueMetrics
from capstan.scheduling.policy import KAI_ACTIONS

disable_created_metrics()  # type: ignore[no-untyped-call]  # a time for each series, which Prometheus learns from the series itself
_MILLISECONDS = tuple(5.0 * 2**i for i in range(10))
_SEARCH_SECONDS = tuple(0.001 * 2**i for i in range(16))
_CYCLE_SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0)
_WRITE_SECONDS = (0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0)
_WAIT_SECONDS = (1.0, 5.0, 15.0, 60.0, 300.0, 900.0, 3600.0, 4 * 3600.0, 12 * 3600.0, 86400.0, 7 * 86400.0)
_KAI_ACTIONS = {ours: theirs for theirs, ours in KAI_ACTIONS.items()}
_SEARCHING = ("consolidate", "reclaim", "preempt")
_GENERATOR = "victims"
"""KAI has several generators of scenarios; here one stream of victims serves every action."""
_MOST_EVICTED = 10_000
"""Gangs with evicted pods, before those that are gone are looked for between scrapes."""
_OPENING, _CLOSING = ("refresh", "proportion"), ("plan", "adopt")


def kai_action(action: str) -> str:
    """An action's name in KAI's metrics."""
    return _KAI_ACTIONS.get(action, action)


class Stopwatch:
    """Times a cycle: its `lap` is what `scheduling.cycle` calls."""

    def __init__(self, clock: Callable[[], float] = time.perf_counter) -> None:
        self._clock = clock
        self.began = self._phase_began = self._last = clock()
        self.phases: dict[str, float] = {}
        """Phase or action -> seconds."""
        self.searches: list[tuple[str, str, float]] = []
        """(action, result, seconds)"""

    def lap(self, phase: str, result: str) -> None:
        now = self._clock()
        if result:
            self.searches.append((phase, result, now - self._last))
        else:
            self.phases[phase] = now - self._phase_began
            self._phase_began = now
        self._last = now

    @property
    def seconds(self) -> float:
        """From the start to the last lap."""
        return self._last - self.began


class _Total(Collector):
    """A number that only grows under a name of KAI's; the library's own counters all end in `_total`."""

    def __init__(self, registry: CollectorRegistry, name: str, help_: str, label: str = "") -> None:
        self._name, self._help, self._labels = name, help_, [label] if label else []
        self._values: Tally[str] = Tally()
        if not label:
            self.add("", 0)
        registry.register(self)

    def add(self, label: str, amount: int) -> None:
        self._values[label] += amount

    def collect(self) -> Iterator[Metric]:
        family = UnknownMetricFamily(self._name, self._help, labels=self._labels)
        for label, value in self._values.items():
            family.add_metric([label] if self._labels else [], float(value))
        yield family


class SchedulerMetrics:
    """The series of one scheduler, in a registry of its own.

    `queues` gives the Queue objects as they are at that moment; `installation` how metrics are called.
    """

    def __init__(
        self,
        world: scheduling.World,
        queues: Callable[[], Iterable[Queue]],
        installation: scheduling.Installation | None = None,
    ) -> None:
        self._installation = installation or scheduling.Installation()
        self.registry = CollectorRegistry(auto_describe=False)
        self._world = world
        ProcessCollector(registry=self.registry)
        GCCollector(registry=self.registry)
        self._kai()
        self._own()
        self._evicted: Tally[tuple[str, str, str, str, str]] = Tally()
        """(PodGroup, namespace, uid, node pool, action)"""
        self.registry.register(QueueMetrics(world, queues, self._installation))
        self.registry.register(_Reading(self._now))
        self._verdicts: list[scheduling.Verdict] = []
        self._measures = scheduling.Measures()

    def _kai(self) -> None:
        registry, space = self.registry, self._installation.metrics_namespace

        def gauge(name: str, help_: str, *labels: str) -> Gauge:
            return Gauge(name, help_, labels, namespace=space, registry=registry)

        def histogram(name: str, help_: str, *labels: str, buckets: tuple[float, ...] = _MILLISECONDS) -> Histogram:
            return Histogram(name, help_, labels, namespace=space, registry=registry, buckets=buckets)

        def total(name: str, help_: str, label: str = "") -> _Total:
            return _Total(registry, f"{space}_{name}", help_, label)

        self._e2e = gauge("e2e_scheduling_latency_milliseconds", "The last cycle, all of it.")
        self._open = gauge("open_session_latency_milliseconds", "The last cycle's work before its first action.")
        self._close = gauge("close_session_latency_milliseconds", "The last cycle's work after its last action.")
        self._plugin = gauge(
            "plugin_scheduling_latency_milliseconds",
            "The last cycle's phases around the actions: refresh, proportion (fair shares), plan, adopt.",
            "plugin",
            "OnSession",
        )
        self._action = gauge("action_scheduling_latency_milliseconds", "Each action in the last cycle.", "action")
        self._task_wait = histogram(
            "task_scheduling_latency_milliseconds", "From the creation of a pod to the decision where it runs."
        )
        self._task_bind = histogram(
            "task_bind_latency_milliseconds", "From that decision to the binding written, its claims included."
        )
        self._placed = total("podgroups_scheduled_by_action", "Gangs of which an action placed pods.", "action")
        self._tried = total("podgroups_acted_on_by_action", "Gangs that an action tried to place.", "action")
        self._simulated = total("scenarios_simulation_by_action", "Sets of victims simulated.", "action")
        self._filtered = total("scenarios_filtered_by_action", "Sets of victims refused by a bound.", "action")
        self._preemptions = total("total_preemption_attempts", "Gangs for which preemption found victims.")
        self._evictions = {
            action: total(f"total_{name}_evictions", f"Pods evicted by the action {name}.")
            for action, name in (("preempt", "preemption"), ("reclaim", "reclaim"), ("consolidate", "consolidation"))
        }
        self._search_jobs = Counter(
            "scenario_search_jobs",
            "Gangs for which victims were looked for, by the outcome.",
            ["action", "result", "reduced_budget"],
            namespace=space,
            registry=registry,
        )
        budget = "scenario_search_{}_budget_configured_seconds"
        actions = gauge(budget.format("action"), "0: the search for victims has no time limit.", "action")
        exhausted = Counter(
            "scenario_search_action_budget_exhausted",
            "Never: the search for victims has no time limit.",
            ["action"],
            namespace=space,
            registry=registry,
        )
        for action in _SEARCHING:
            actions.labels(kai_action(action))
            exhausted.labels(kai_action(action))
        gauge(budget.format("job"), "0: the search for victims has no time limit.")
        gauge(budget.format("generator"), "0: the search for victims has no time limit.", "generator").labels(
            _GENERATOR
        )
        self._search_seconds = histogram(
            "scenario_search_duration_seconds",
            "The search for victims of one gang.",
            "action",
            "generator",
            "result",
            buckets=_SEARCH_SECONDS,
        )
        self._scenarios = Counter(
            "scenario_search_scenarios",
            "Sets of victims: simulated, or refused (validator_rejected) by the simulation's outcome.",
            ["action", "generator", "state"],
            namespace=space,
            registry=registry,
        )

    def _own(self) -> None:
        registry = self.registry
        self._cycles = Histogram(
            "capstan_cycle_seconds", "Deciding, per cycle.", registry=registry, buckets=_CYCLE_SECONDS
        )
        self._waits = Histogram(
            "capstan_queue_wait_seconds",
            "From the creation of a gang to the decision that its minimum starts.",
            ["queue_name"],
            registry=registry,
            buckets=_WAIT_SECONDS,
        )
        self._told = Counter(
            "capstan_verdicts", "Verdicts told to users because they are news.", ["reason"], registry=registry
        )
        self._timers: dict[tuple[str, str], Histogram] = {}
        self._writes = Histogram(
            "capstan_api_write_seconds",
            "Writes to the API server until it has answered.",
            ["verb", "resource"],
            registry=registry,
            buckets=_WRITE_SECONDS,
        )
        self._failures = Counter(
            "capstan_api_write_failures",
            "Writes that the API server refused (by HTTP status) or did not answer (0).",
            ["verb", "resource", "code"],
            registry=registry,
        )

    async def page(self, accept: str) -> tuple[bytes, str]:
        """All series as Prometheus reads them, and the content type; `accept` is the HTTP header."""
        encode, content_type = choose_encoder(accept)
        return encode(self.registry), content_type

    # -- what happens --------------------------------------------------------------------------------------------------

    def cycle(self, plan: scheduling.Plan, watch: Stopwatch, now: float) -> None:
        """A cycle has ended at POSIX time `now`."""
        phases = watch.phases
        self._cycles.observe(watch.seconds)
        self._e2e.set(watch.seconds * 1000)
        for session, gauge, names in (
            ("OnSessionOpen", self._open, _OPENING),
            ("OnSessionClose", self._close, _CLOSING),
        ):
            gauge.set(sum(phases.get(name, 0.0) for name in names) * 1000)
            for name in names:
                self._plugin.labels(name, session).set(phases.get(name, 0.0) * 1000)
        for name, seconds in phases.items():
            if name not in _OPENING and name not in _CLOSING:
                self._action.labels(kai_action(name)).set(seconds * 1000)
        for action, result, seconds in watch.searches:
            self._search_seconds.labels(kai_action(action), _GENERATOR, result).observe(seconds)
        for action, work in plan.measures.work.items():
            self._count(action, work)
        for bind in plan.binds:
            created = self._world.tasks[bind.uid].order[2]
            self._task_wait.observe(max(0.0, now - created) * 1000)
        for queue, seconds in plan.measures.waits:
            self._waits.labels(queue).observe(seconds)
        self._verdicts, self._measures = plan.verdicts, plan.measures

    def _count(self, action: str, work: scheduling.Work) -> None:
        name = kai_action(action)
        self._tried.add(name, work.tried)
        self._placed.add(name, work.placed)
        if action not in _SEARCHING:
            return
        self._simulated.add(name, work.simulated)
        self._filtered.add(name, work.filtered)
        self._scenarios.labels(name, _GENERATOR, "simulated").inc(work.simulated)
        self._scenarios.labels(name, _GENERATOR, "validator_rejected").inc(work.rejected)
        if action == "preempt":
            self._preemptions.add("", work.placed)
        for result, gangs in work.searches.items():
            self._search_jobs.labels(name, result, "false").inc(gangs)

    def bound(self, seconds: float) -> None:
        """A pod's binding was written, so long after it was decided."""
        self._task_bind.observe(seconds * 1000)

    def evicted(self, eviction: scheduling.Eviction) -> None:
        """The API server took an eviction."""
        total = self._evictions.get(eviction.action)
        if total is not None:
            total.add("", 1)
        gang = self._world.gangs.get((eviction.namespace, eviction.group))
        if gang is not None and not gang.implicit:
            labels = (
                gang.name,
                gang.namespace,
                gang.uid,
                self._world.policy.node_pool or "default",
                kai_action(eviction.action),
            )
            if labels not in self._evicted and len(self._evicted) >= _MOST_EVICTED:
                self._forget_gangs()  # nobody scrapes
            self._evicted[labels] += 1

    def told(self, reason: str) -> None:
        """A verdict was news."""
        self._told.labels(reason).inc()

    def written(self, verb: str, resource: str, code: int, seconds: float) -> None:
        """A write was answered (`code` 0: it was not)."""
        timer = self._timers.get((verb, resource))
        if timer is None:
            timer = self._timers[verb, resource] = self._writes.labels(verb, resource)
        timer.observe(seconds)
        if not 200 <= code < 300:
            self._failures.labels(verb, resource, str(code)).inc()

    # -- what is now ---------------------------------------------------------------------------------------------------

    def _now(self) -> Iterator[Metric]:
        yield self._evicted_pods()
        self._forget_queues()
        pending, waiting = Tally[str](), Tally[str]()
        for verdict in self._verdicts:
            pending[verdict.reason] += 1
            waiting[verdict.reason] += len(verdict.pods)
        yield _gauges("capstan_pending_podgroups", "Gangs that wait, by the reason.", "reason", pending)
        yield _gauges("capstan_pending_pods", "Pods that wait, by the reason of their gang.", "reason", waiting)
        measures = self._measures
        entries = {"moves": measures.moves, "claims": measures.grants, "devices": measures.devices}
        yield _gauges("capstan_journal_entries", "The last cycle's undo journals at their end.", "journal", entries)
        world = self._world
        sizes = {
            "nodes": len(world.nodes),
            "pods": len(world.tasks),
            "podgroups": len(world.gangs),
            "queues": len(world.queues),
            "claims": len(world.claims),
        }
        yield _gauges("capstan_world_objects", "What the scheduler knows, by kind.", "kind", sizes)
        flights = {"binds": len(world.binds), "evictions": len(world.evictions)}
        yield _gauges("capstan_in_flight", "Decided, and not yet seen in the cluster.", "decision", flights)

    def _evicted_pods(self) -> Metric:
        name = f"{self._installation.metrics_namespace}_pod_group_evicted_pods"
        labels = ["podgroup", "namespace", "uid", "nodepool", "action"]
        family = CounterMetricFamily(name, "Pods evicted, by their gang.", labels=labels)
        self._forget_gangs()
        for key, pods in self._evicted.items():
            family.add_metric(key, pods)
        return family

    def _forget_gangs(self) -> None:
        for key in list(self._evicted):
            gang = self._world.gangs.get((key[1], key[0]))
            if gang is None or gang.uid != key[2]:
                del self._evicted[key]

    def _forget_queues(self) -> None:
        for sample in {sample.labels["queue_name"] for family in self._waits.collect() for sample in family.samples}:
            if sample and sample not in self._world.queues:
                self._waits.remove(sample)


class _Reading(Collector):
    def __init__(self, read: Callable[[], Iterable[Metric]]) -> None:
        self._read = read

    def collect(self) -> Iterable[Metric]:
        return self._read()


def _gauges(name: str, help_: str, label: str, values: Mapping[str, float]) -> Metric:
    family = GaugeMetricFamily(name, help_, labels=[label])
    for key, value in values.items():
        family.add_metric([key], value)
    return family
