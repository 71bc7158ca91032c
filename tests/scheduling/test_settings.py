"""What KAI's settings objects say holds; what makes no sense in them is named by its field and the rest holds."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.scheduling.clusters import START, gang, node, pod, queue, world

from capstan.api import clock
from capstan.api.kai import Config, SchedulingShard
from capstan.api.scheduling import SCHEDULER_NAME
from capstan.scheduling import (
    Accounting,
    Installation,
    Policy,
    Settings,
    Usage,
    World,
    cycle,
    installation,
    shard_settings,
)
from capstan.scheduling.policy import ACTIONS
from capstan.scheduling.settings import PLUGINS, UNNEEDED_FLAGS
from capstan.scheduling.usage import Cron, Sliding, Tumbling, sample

MADE = "2026-03-02T00:00:00Z"
BASE = Policy(scheduler_names=frozenset({SCHEDULER_NAME, "default-scheduler"}))


def settings_of(config: Installation | None = None, **spec: Any) -> Settings:
    shard = msgspec.convert({"metadata": {"name": "s", "creationTimestamp": MADE}, "spec": spec}, SchedulingShard)
    return shard_settings(shard, config or Installation(), BASE)


def config_of(**spec: Any) -> Installation:
    return installation(msgspec.convert({"metadata": {"name": "kai-config"}, "spec": spec}, Config))


def plugin(name: str, **arguments: str) -> dict[str, Any]:
    return {"plugins": {name: {"arguments": arguments}}}


def usage(**params: str) -> dict[str, Any]:
    return {"usageDBConfig": {"clientType": "prometheus", "usageParams": params}}


def test_a_shard_that_says_nothing_is_kais_default():
    made = settings_of()
    assert made.problems == () and made.accounting is None and made.period == 1.0
    changed = {name for name in Policy.__slots__ if getattr(made.policy, name) != getattr(BASE, name)}
    assert changed == {"node_pool"} and made.policy.node_pool == ""


@pytest.mark.parametrize(
    ("spec", "name", "value"),
    [
        ({"partitionLabelValue": "red"}, "node_pool", "red"),
        ({"placementStrategy": {"gpu": "spread"}}, "gpu_placement", "spread"),
        ({"placementStrategy": {"cpu": "spread"}}, "cpu_placement", "spread"),
        (plugin("nodeplacement", cpu="spread"), "cpu_placement", "spread"),
        ({"plugins": {"gpuspread": {"enabled": True}}}, "shared_gpu_placement", "spread"),
        ({"kValue": 0.5}, "k_value", 0.5),
        (plugin("proportion", kValue="2") | {"kValue": 0.5}, "k_value", 2.0),
        (plugin("proportion", relcaimerSaturationMultiplier="1.5"), "saturation_multiplier", 1.5),
        (plugin("proportion", reclaimerUtilizationMultiplier="1.5"), "saturation_multiplier", 1.5),
        ({"minRuntime": {"preemptMinRuntime": "5m"}}, "preempt_min_runtime", 300.0),
        ({"minRuntime": {"reclaimMinRuntime": "1h"}}, "reclaim_min_runtime", 3600.0),
        (plugin("minruntime", defaultReclaimMinRuntime="1d"), "reclaim_min_runtime", 86_400.0),
        (plugin("minruntime", reclaimResolveMethod="queue"), "reclaim_min_runtime_method", "queue"),
        (plugin("backfill", reservations="2"), "reservations", 2),
        ({"plugins": {"backfill": {"enabled": False}}}, "reservations", 0),
        (plugin("backfill", reserveAfter="10m"), "reserve_after", 600.0),
        (plugin("backfill", learnRuntimes="true"), "learn_runtimes", True),
        (plugin("backfill", starvingAfter="24h"), "starving_after", 86_400.0),
        ({"args": {"max-consolidation-preemptees": "-1"}}, "max_consolidation_victims", -1),
        ({"args": {"default-staleness-grace-period": "-1s"}}, "stale_grace", -1.0),
        ({"args": {"stuck-in-releasing-threshold": "5m"}}, "stuck_after", 300.0),
        ({"args": {"allow-consolidating-reclaim": "false"}}, "reclaim_may_consolidate", False),
        ({"args": {"detailed-fit-errors": "true"}}, "detailed_fit_errors", True),
        ({"args": {"scheduler-name": "mine"}}, "scheduler_names", frozenset({"mine", "default-scheduler"})),
        ({"args": {"nodepool-label-key": "pool"}}, "node_pool_label", "pool"),
        ({"queueDepthPerAction": {"consolidation": 3, "reclaim": -1}}, "queue_depth", {"consolidate": 3}),
        ({"actions": {"consolidation": {"priority": 600}}}, "actions", ("consolidate", "allocate", *ACTIONS[2:])),
        ({"actions": {"reclaim": {"enabled": False}}}, "actions", tuple(a for a in ACTIONS if a != "reclaim")),
    ],
)  # fmt: skip
def test_each_field_sets_its_part_of_the_policy(spec, name, value):
    made = settings_of(**spec)
    assert made.problems == ()
    assert getattr(made.policy, name) == value


def test_the_period_is_that_of_the_flag():
    assert settings_of(args={"schedule-period": "250ms"}).period == 0.25


@pytest.mark.parametrize(
    ("params", "accounting"),
    [
        ({}, Accounting(Sliding(7 * 86_400.0), 0.0, 300.0, 60.0)),
        ({"windowSize": "1w2d", "halfLifePeriod": "24h"}, Accounting(Sliding(9 * 86_400.0), 86_400.0, 300.0, 60.0)),
        ({"windowType": "tumbling", "windowSize": "1d"}, Accounting(Tumbling(86_400.0, clock.parse(MADE)))),
        (
            {"windowType": "tumbling", "tumblingWindowStartTime": "2026-01-01T06:00:00Z"},
            Accounting(Tumbling(7 * 86_400.0, clock.parse("2026-01-01T06:00:00Z"))),
        ),
        ({"windowType": "cron", "cronString": "0 0 * * 1"}, Accounting(Cron("0 0 * * 1"))),
        ({"fetchInterval": "10m", "stalenessPeriod": "1m"}, Accounting(Sliding(), 0.0, 600.0, 600.0)),
    ],
)
def test_usage_parameters_set_window_and_decay(params, accounting):
    made = settings_of(**usage(**params))
    assert (made.accounting, made.problems) == (accounting, ())


@pytest.mark.parametrize(
    ("spec", "field"),
    [
        ({"partitionLabelValue": "not a label"}, "spec.partitionLabelValue"),
        ({"placementStrategy": {"gpu": "scatter"}}, "spec.placementStrategy.gpu"),
        ({"kValue": -1}, "spec.kValue"),
        ({"minRuntime": {"preemptMinRuntime": "soon"}}, "spec.minRuntime.preemptMinRuntime"),
        ({"minRuntime": {"reclaimMinRuntime": "-1h"}}, "spec.minRuntime.reclaimMinRuntime"),
        ({"args": {"max-consolidation-preemptees": "many"}}, "spec.args[max-consolidation-preemptees]"),
        ({"args": {"schedule-period": "0s"}}, "spec.args[schedule-period]"),
        ({"args": {"allow-consolidating-reclaim": "maybe"}}, "spec.args[allow-consolidating-reclaim]"),
        ({"args": {"no-such-flag": "1"}}, "spec.args[no-such-flag]"),
        ({"args": {"restrict-node-scheduling": "true"}}, "spec.args[restrict-node-scheduling]"),
        ({"queueDepthPerAction": {"allocate": 0}}, "spec.queueDepthPerAction[allocate]"),
        ({"queueDepthPerAction": {"dance": 1}}, "spec.queueDepthPerAction[dance]"),
        ({"actions": {"dance": {"enabled": True}}}, "spec.actions[dance]"),
        ({"plugins": {"mine": {"enabled": True}}}, "spec.plugins[mine]"),
        ({"plugins": {"topology": {"enabled": False}}}, "spec.plugins[topology].enabled"),
        (plugin("proportion", kValue="nan"), "spec.plugins[proportion].arguments[kValue]"),
        (plugin("proportion", other="1"), "spec.plugins[proportion].arguments[other]"),
        (
            plugin("proportion", relcaimerSaturationMultiplier="0.5"),
            "spec.plugins[proportion].arguments[relcaimerSaturationMultiplier]",
        ),
        (
            plugin("minruntime", reclaimResolveMethod="root"),
            "spec.plugins[minruntime].arguments[reclaimResolveMethod]",
        ),
        ({"scenarioSearchBudgets": {"maxJobSearchDuration": "x"}}, "spec.scenarioSearchBudgets.maxJobSearchDuration"),
        (usage(windowType="rolling"), "spec.usageDBConfig.usageParams.windowType"),
        (usage(windowSize="big"), "spec.usageDBConfig.usageParams.windowSize"),
        (usage(windowType="cron", cronString="* *"), "spec.usageDBConfig.usageParams.cronString"),
        (usage(windowType="cron", cronString="0 0 30 2 *"), "spec.usageDBConfig.usageParams.cronString"),
        (
            usage(tumblingWindowStartTime="noon", windowType="tumbling"),
            "spec.usageDBConfig.usageParams.tumblingWindowStartTime",
        ),
        (
            {"placementStrategy": {"gpu": "spread"}, "actions": {"consolidation": {"enabled": True}}},
            "spec.actions[consolidation].enabled",
        ),
    ],
)  # fmt: skip
def test_what_makes_no_sense_is_named_and_the_rest_holds(spec, field):
    made = settings_of(**({"minRuntime": {"preemptMinRuntime": "7s"}} | spec))
    assert [problem.field for problem in made.problems] == [field]
    assert len(made.problems[0].message) > 10
    if "minRuntime" not in spec and "minruntime" not in str(spec):
        assert made.policy.preempt_min_runtime == 7.0


def test_spreading_switches_consolidation_off():
    made = world(node("n0", gpus=4), node("n1", gpus=4), queue("q"))
    for i, on in enumerate(("n0", "n1")):
        made.upsert(gang(f"g{i}", "q", rank=i))
        made.upsert(pod(f"p{i}", f"g{i}", gpus=1, on=on))
    made.upsert(gang("big", "q", rank=5))
    made.upsert(pod("big", "big", gpus=4))
    spread = settings_of(placementStrategy={"gpu": "spread"}).policy
    assert cycle(made, spread, START).evictions == []
    assert len(cycle(made, settings_of().policy, START).evictions) == 1


def test_detailed_fit_errors_name_the_nodes():
    made = world(node("n0", gpus=1), node("n1", gpus=0), queue("q"), gang("g", "q"), pod("p", "g", gpus=2))
    (brief,) = cycle(made, settings_of().policy, START).verdicts
    (long,) = cycle(made, settings_of(args={"detailed-fit-errors": "true"}).policy, START).verdicts
    assert "n0:" not in brief.message
    assert "n0: has less than" in long.message and "n1:" in long.message


def test_the_documentation_gives_a_reason_for_every_flag_that_changes_nothing():
    page = (Path(__file__).resolve().parents[2] / "docs" / "shards.md").read_text()
    listed = page.partition("## Accepted and not needed")[2]
    assert {flag for flag in UNNEEDED_FLAGS if f"`{flag}`" not in listed} == set()


# -- the Config ----------------------------------------------------------------------------------------------------


def test_the_config_names_scheduler_and_labels_for_every_shard():
    config = config_of(**{"global": {"schedulerName": "mine", "queueLabelKey": "queue", "nodePoolLabelKey": "pool"}})
    policy = settings_of(config).policy
    assert policy.scheduler_names == {"mine", "default-scheduler"} and policy.grouped_scheduler == "mine"
    assert (policy.queue_label, policy.node_pool_label) == ("queue", "pool")


def test_gpu_sharing_that_is_switched_off_refuses_shares():
    policy = settings_of(config_of(admission={"gpuSharing": False})).policy
    made = World(policy=policy)
    for entry in (node("n0", gpus=1), queue("q"), gang("g", "q"), pod("p", "g", fraction="0.5")):
        made.upsert(entry)
    (said,) = cycle(made, policy, START).verdicts
    assert said.reason == "InvalidRequest" and "gpuSharing" in said.message


def test_metric_labels_are_pairs():
    good = config_of(queueController={"queueLabelToMetricLabel": "team=team, cost/center=cost"})
    assert good.metric_labels == (("team", "team"), ("cost/center", "cost")) and good.problems == ()


@pytest.mark.parametrize(
    ("field", "text", "kept"),
    [
        ("queueLabelToDefaultMetricValue", "team=none,oops", (("team", "none"),)),
        ("queueLabelToMetricLabel", "a=b-c,team=team", (("team", "team"),)),
        ("queueLabelToMetricLabel", "a=x,b=x", (("a", "x"),)),
        ("queueLabelToMetricLabel", "a=queue_name,b=x", (("b", "x"),)),
        ("metricsNamespace", "9lives", "kai"),
    ],
)
def test_what_prometheus_would_not_take_is_named(field, text, kept):
    said = config_of(queueController={field: text})
    assert [problem.field for problem in said.problems] == [f"spec.queueController.{field}"]
    assert kept in (said.metric_labels, said.metric_defaults, said.metrics_namespace)


# -- anything ------------------------------------------------------------------------------------------------------

texts = st.sampled_from(["", "0", "-1", "5", "1h", "1w", "nan", "inf", "true", "9" * 400 + "y", "lca", "* * * * *"]) | (
    st.text(max_size=8)
)
flags = st.sampled_from([*UNNEEDED_FLAGS, "schedule-period", "max-consolidation-preemptees", "scheduler-name", "x"])
specs = st.fixed_dictionaries(
    {},
    optional={
        "args": st.dictionaries(flags, texts, max_size=4),
        "partitionLabelValue": texts,
        "placementStrategy": st.fixed_dictionaries({}, optional={"gpu": texts, "cpu": texts}),
        "kValue": st.floats(),
        "minRuntime": st.fixed_dictionaries({}, optional={"preemptMinRuntime": texts, "reclaimMinRuntime": texts}),
        "queueDepthPerAction": st.dictionaries(st.sampled_from(["allocate", "preempt", "x"]), st.integers(-3, 3)),
        "actions": st.dictionaries(
            st.sampled_from(["allocate", "consolidation", "requeue", "x"]),
            st.fixed_dictionaries({}, optional={"enabled": st.booleans(), "priority": st.integers(-5, 900)}),
        ),
        "plugins": st.dictionaries(
            st.sampled_from(sorted(PLUGINS)),
            st.fixed_dictionaries(
                {},
                optional={
                    "enabled": st.booleans(),
                    "arguments": st.dictionaries(st.sampled_from(["kValue", "cpu", "gpu", "x"]), texts),
                },
            ),
        ),
        "usageDBConfig": st.fixed_dictionaries(
            {
                "usageParams": st.fixed_dictionaries(
                    {"windowType": st.sampled_from(["sliding", "tumbling", "cron", "x"])},
                    optional=dict.fromkeys(
                        ("windowSize", "halfLifePeriod", "cronString", "stalenessPeriod", "fetchInterval"), texts
                    ),
                )
            }
        ),
    },
)


@given(specs)
def test_whatever_a_shard_says_its_scheduler_runs(spec):
    made = settings_of(**spec)
    assert all(problem.field.startswith("spec.") and problem.message for problem in made.problems)
    cluster = world(node("n0", gpus=2), queue("q"), gang("g", "q"), pod("p", "g", gpus=1))
    cycle(cluster, made.policy, START)
    if made.accounting is not None:
        counted = Usage(made.accounting.window, half_life=made.accounting.half_life)
        for second in (0, 1, 100):
            counted.observe(START + second, *sample(cluster))
        cluster.usage = counted.shares()
        cycle(cluster, made.policy, START + 1)


def test_a_defragmentation_window_is_a_schedule_and_a_duration() -> None:
    spec = plugin("defragmentation", schedule="0 2 * * *", timeZone="Europe/Berlin", duration="3h", maxVictims="8")
    made = settings_of(**spec)
    assert made.problems == ()
    (window,) = made.policy.defragment_windows
    assert (window.schedule, window.seconds, window.zone) == ("0 2 * * *", 10_800.0, "Europe/Berlin")
    assert made.policy.defragment_max_victims == 8
    wrong = settings_of(**plugin("defragmentation", schedule="at night"))
    assert wrong.policy.defragment_windows == ()
    assert [problem.field for problem in wrong.problems] == ["spec.plugins[defragmentation].arguments[schedule]"]
