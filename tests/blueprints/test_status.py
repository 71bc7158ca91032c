"""What the agent reports: conditions, add-ons and the history of drift, from one pass to the next."""

from __future__ import annotations

from typing import Any

import pytest

from capstan import blueprints
from capstan.api.platform import ClusterStatus
from capstan.controllers.blueprint_status import REMEMBERED_REPAIRS, Outcome, status


def compiled() -> blueprints.Compiled:
    map_ = {"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "c", "namespace": "n"}}
    addons = {
        "a": {"manifests": {"ConfigMap/n/c": map_}},
        "b": {"builtin": "namespaces", "values": {"namespaces": {"n": {}}}},
    }
    return blueprints.compile([blueprints.Layer(name="top", version="1.0.0", addons=addons)], {})


MAP, NAMESPACE = "ConfigMap/n/c", "Namespace/n"
FINDING = blueprints.Finding("changed", "a", MAP, "data.x", "kubectl-edit", "1", "2")


def after(before: ClusterStatus | None = None, now: str = "t1", **outcome: Any) -> ClusterStatus:
    return status(before or ClusterStatus(), Outcome(compiled=compiled(), **outcome), 3, now)


def states(reported: ClusterStatus) -> dict[str, str]:
    return {condition.type: f"{condition.status} {condition.reason}" for condition in reported.conditions}


def test_all_is_well() -> None:
    reported = after()
    assert states(reported) == {
        "Degraded": "False AsExpected",
        "Drifted": "False AsApplied",
        "Paused": "False Active",
        "Progressing": "False AsExpected",
        "Ready": "True Applied",
    }
    assert (reported.blueprint, reported.version, reported.objects) == ("top", "1.0.0", 2)
    assert reported.digest == compiled().digest
    assert [(row.name, row.phase, row.ready, row.objects) for row in reported.addons] == [
        ("b", "Ready", 1, 1),
        ("a", "Ready", 1, 1),
    ]


@pytest.mark.parametrize(
    ("outcome", "ready", "degraded", "phase"),
    [
        ({"failures": {MAP: "forbidden"}}, "False ApplyFailed", "True ApplyFailed", "Failed"),
        ({"unserved": {MAP: "its kind is not served yet"}}, "False Waiting", "False AsExpected", "Progressing"),
    ],
)
def test_what_was_not_applied_leaves_the_digest_of_what_was(
    outcome: dict[str, Any], ready: str, degraded: str, phase: str
) -> None:
    reported = after(**outcome)
    assert states(reported)["Ready"] == ready
    assert states(reported)["Degraded"] == degraded
    assert {row.name: row.phase for row in reported.addons} == {"a": phase, "b": "Ready"}
    assert reported.digest == ""


def test_waiting_for_readiness_is_progress() -> None:
    reported = after(waiting={NAMESPACE: "not active"})
    assert states(reported)["Progressing"] == "True Waiting"
    assert reported.digest == compiled().digest


def test_an_unusable_blueprint_keeps_the_report_of_what_runs() -> None:
    before = after()
    reported = status(before, Outcome(problem=("InvalidBlueprint", "bad")), 4, "t2")
    assert states(reported)["Ready"] == "False InvalidBlueprint"
    assert (reported.digest, reported.addons, reported.observed_generation) == (before.digest, before.addons, 4)


def test_repaired_drift_becomes_history() -> None:
    reported = after(findings=[FINDING], repaired={MAP})
    (entry,) = reported.drift
    assert (entry.object, entry.path, entry.manager, entry.first_seen, entry.repaired) == (
        MAP,
        "data.x",
        "kubectl-edit",
        "t1",
        "t1",
    )
    assert states(reported)["Drifted"] == "False AsApplied"


def test_lasting_drift_keeps_the_time_it_was_first_seen_until_somebody_repairs_it() -> None:
    seen = after(findings=[FINDING])
    still = after(seen, now="t2", findings=[FINDING])
    assert still.drift == seen.drift
    assert states(still)["Drifted"] == "True FieldsDiffer"
    gone = after(still, now="t3")
    assert [(entry.first_seen, entry.repaired) for entry in gone.drift] == [("t1", "t3")]
    assert states(gone)["Drifted"] == "False AsApplied"


def test_only_the_latest_repairs_are_remembered() -> None:
    reported = ClusterStatus()
    for number in range(REMEMBERED_REPAIRS + 5):
        reported = after(reported, now=f"t{number:02}", findings=[FINDING], repaired={MAP})
    assert [entry.repaired for entry in reported.drift] == [f"t{number:02}" for number in range(24, 4, -1)]


def test_a_condition_keeps_its_time_while_its_status_stays() -> None:
    first = after(now="t1")
    second = after(first, now="t2", failures={MAP: "no"})
    since = {condition.type: condition.last_transition_time for condition in second.conditions}
    assert since == {"Degraded": "t2Z", "Drifted": "t1Z", "Paused": "t1Z", "Progressing": "t1Z", "Ready": "t2Z"}
    assert after(first, now="t9") == first


def test_a_paused_cluster_says_so_and_keeps_the_rest() -> None:
    reported = status(after(), Outcome(paused=True), 3, "t2")
    assert states(reported)["Paused"] == "True Paused"
    assert states(reported)["Ready"] == "True Applied"
