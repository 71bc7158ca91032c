"""What the scheduler tells Prometheus, read from a scrape as Prometheus reads it."""

import re
from pathlib import Path

import pytest
from prometheus_client.parser import text_string_to_metric_families

from capstan import scheduling
from capstan.api import resources
from capstan.controllers.metrics import SchedulerMetrics, Stopwatch
from capstan.controllers.scheduler import Scheduler
from capstan.scheduling import World

pytestmark = pytest.mark.anyio


async def scrape(scheduler):
    """(name, labels) -> value of every sample."""
    body, content_type = await scheduler.metrics.page("text/plain")
    assert content_type.startswith("text/plain")
    return {
        (sample.name, tuple(sorted(sample.labels.items()))): sample.value
        for family in text_string_to_metric_families(body.decode())
        for sample in family.samples
    }


def value(samples, name, **labels):
    return samples.get((name, tuple(sorted(labels.items()))))


@pytest.fixture
async def scheduler(house):
    made = Scheduler(await house.grant("scheduler", Scheduler.RULES))
    house.start(made)
    return made


def queue_labels(name, display=""):
    return {"queue_name": name, "queue_metadata_name": name, "queue_display_name": display}


async def test_a_pod_that_starts_is_counted_and_timed(house, scheduler):
    await house.node("n1", gpus=2)
    await house.lone("p", gpus=1)
    await house.until(lambda: house.bound("p"), "p is bound")

    async def counted():
        return value(await scrape(scheduler), "kai_task_bind_latency_milliseconds_count")

    await house.until(counted, "the bind is counted")
    seen = await scrape(scheduler)
    assert value(seen, "kai_podgroups_scheduled_by_action", action="allocate") == 1
    assert value(seen, "kai_podgroups_acted_on_by_action", action="allocate") == 1
    assert value(seen, "kai_task_scheduling_latency_milliseconds_count") == 1
    assert value(seen, "capstan_queue_wait_seconds_count", queue_name="default-queue") == 1
    assert value(seen, "capstan_cycle_seconds_count") >= 1
    assert value(seen, "capstan_api_write_seconds_count", verb="create", resource="pods/binding") == 1
    assert value(seen, "kai_queue_allocated_gpus", **queue_labels("default-queue")) == 1
    assert value(seen, "kai_queue_fair_share_gpu", **queue_labels("default-queue")) == 1
    assert value(seen, "kai_action_scheduling_latency_milliseconds", action="consolidation") >= 0
    assert value(seen, "kai_plugin_scheduling_latency_milliseconds", plugin="proportion", OnSession="OnSessionOpen") > 0
    phases = sum(v for (name, _), v in seen.items() if name == "kai_action_scheduling_latency_milliseconds")
    edges = value(seen, "kai_open_session_latency_milliseconds") + value(seen, "kai_close_session_latency_milliseconds")
    assert phases + edges == pytest.approx(value(seen, "kai_e2e_scheduling_latency_milliseconds"))


async def test_preemption_is_counted_on_the_gang_that_lost_until_it_is_gone(house, scheduler):
    await house.node("n1", gpus=1)
    await house.lone("victim", gpus=1)
    await house.until(lambda: house.bound("victim"), "the first pod is bound")
    await house.lone("winner", gpus=1, priorityClassName="build")

    async def evicted():
        seen = await scrape(scheduler)
        return [labels for name, labels in seen if name == "kai_pod_group_evicted_pods_total"]

    (labels,) = await house.until(evicted, "the eviction is counted")
    group = await house.client.get(resources.POD_GROUPS, "pg-victim", "default")
    assert dict(labels) == {
        "podgroup": "pg-victim",
        "namespace": "default",
        "uid": group.metadata.uid,
        "nodepool": "default",
        "action": "preempt",
    }
    seen = await scrape(scheduler)
    assert value(seen, "kai_total_preemption_evictions") == 1
    assert value(seen, "kai_total_preemption_attempts") == 1
    assert value(seen, "kai_total_reclaim_evictions") == 0
    assert value(seen, "kai_scenarios_simulation_by_action", action="preempt") >= 1
    solved = {"action": "preempt", "result": "solved", "reduced_budget": "false"}
    assert value(seen, "kai_scenario_search_jobs_total", **solved) == 1
    await house.client.delete(resources.PODS, "victim", "default")
    await house.client.delete(resources.POD_GROUPS, "pg-victim", "default")

    async def gone():
        return not await evicted()

    await house.until(gone, "its series is dropped")


async def test_what_waits_is_counted_by_reason(house, scheduler):
    await house.node("n1", gpus=1)
    await house.group("gang", 2)
    for name in "ab":
        await house.pod(name, gpus=1, group="gang")

    async def pending():
        return value(await scrape(scheduler), "capstan_pending_pods", reason="PodSchedulingErrors") == 2

    await house.until(pending, "two pods wait for room")

    async def told():
        return value(await scrape(scheduler), "capstan_verdicts_total", reason="PodSchedulingErrors") == 1

    await house.until(told, "it was told once")


async def test_a_queue_that_is_removed_takes_its_series_along(house, scheduler):
    spec = {"resources": {"gpu": {"quota": 2}, "cpu": {"quota": 500}, "memory": {"quota": -1}}, "displayName": "Short"}
    await house.client.create(resources.QUEUES, {"metadata": {"name": "short"}, "spec": spec})
    await house.node("n1")
    await house.lone("p", queue="short")
    await house.until(lambda: house.bound("p"), "p is bound")
    labels = queue_labels("short", "Short")

    async def listed():
        seen = await scrape(scheduler)
        return value(seen, "kai_queue_info", **labels) == 1 and seen

    seen = await house.until(listed, "the queue has series")
    assert value(seen, "kai_queue_deserved_gpus", **labels) == 2
    assert value(seen, "kai_queue_quota_cpu_cores", **labels) == 0.5
    assert value(seen, "kai_queue_quota_memory_bytes", **labels) == -1
    await house.client.delete(resources.PODS, "p", "default")
    await house.client.delete(resources.QUEUES, "short")

    async def silent():
        seen = await scrape(scheduler)
        return not any("short" in dict(labels).values() for _, labels in seen)

    await house.until(silent, "no series names the queue any more")


async def test_a_write_that_the_server_refuses_is_counted_with_its_status(house, scheduler):
    scheduler.metrics.written("create", "pods/binding", 409, 0.01)
    seen = await scrape(scheduler)
    failure = {"verb": "create", "resource": "pods/binding", "code": "409"}
    assert value(seen, "capstan_api_write_failures_total", **failure) == 1


async def test_labels_of_queues_become_labels_of_their_metrics(house):
    installation = scheduling.Installation(
        metrics_namespace="runai", metric_labels=(("team", "queue_team"),), metric_defaults=(("team", "nobody"),)
    )
    scheduler = Scheduler(await house.grant("scheduler", Scheduler.RULES), installation=installation)
    house.start(scheduler)
    meta = {"name": "named", "labels": {"team": "blue"}}
    await house.client.create(resources.QUEUES, {"metadata": meta, "spec": {"resources": {}}})

    async def named():
        return value(await scrape(scheduler), "runai_queue_info", **queue_labels("named"), queue_team="blue")

    await house.until(named, "the label is there")
    seen = await scrape(scheduler)
    assert value(seen, "runai_queue_info", **queue_labels("default-queue"), queue_team="nobody") == 1
    assert not any(name.startswith("kai_") for name, _ in seen)


def test_a_stopwatch_gives_every_phase_its_time_and_searches_theirs():
    times = iter([0.0, 1.0, 3.0, 6.0, 10.0])
    watch = Stopwatch(lambda: next(times))
    watch.lap("refresh", "")
    watch.lap("reclaim", "solved")
    watch.lap("reclaim", "")
    watch.lap("adopt", "")
    assert watch.phases == {"refresh": 1.0, "reclaim": 5.0, "adopt": 4.0}
    assert watch.searches == [("reclaim", "solved", 2.0)]
    assert watch.seconds == 10.0


async def test_the_documentation_lists_exactly_the_series_that_exist():
    page = Path(__file__).parents[2] / "docs" / "observability.md"
    documented = dict(re.findall(r"^\| `((?:kai|capstan)_\w+)` \| (\w+) \|", page.read_text(), re.MULTILINE))
    body, _ = await SchedulerMetrics(World(), list).page("")
    exported = {
        family.name + "_total" * (family.type == "counter"): family.type
        for family in text_string_to_metric_families(body.decode())
        if not family.name.startswith(("process_", "python_"))
    }
    assert documented == exported
