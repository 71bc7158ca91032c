"""Jobs: every pod counted once, ends with the right condition."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from capstan.api.batch import Job
from capstan.api.core import Pod
from capstan.local.workloads.indexes import parse_indexes, render_indexes
from capstan.local.workloads.jobs import FINALIZER, Tally

pytestmark = pytest.mark.anyio


async def start(house: Any, template: Any, **spec: Any) -> None:
    house.job_template = template(restartPolicy=spec.pop("restartPolicy", "Never"), labels={"work": "w"})
    await house.create("Job", "work", spec={"template": house.job_template, **spec})


def pods(house: Any, phase: str) -> list[str]:
    return sorted(
        p.metadata.name
        for p in house.pods.objects.values()
        if p.status.phase == phase and p.metadata.deletion_timestamp is None
    )


async def finish(house: Any, count: int, phase: str) -> None:
    await house.until(lambda: len(pods(house, "Running")) >= count)
    for name in pods(house, "Running")[:count]:
        await house.set_phase(name, phase)


async def conditions(house: Any) -> dict[str, tuple[str, str]]:
    found = (await house.get("Job", "work"))["status"].get("conditions", [])
    return {c["type"]: (c["status"], c["reason"]) for c in found}


async def ended(house: Any, kind: str) -> dict[str, Any]:
    async def there() -> bool:
        return kind in await conditions(house)

    await house.until(there)
    return (await house.get("Job", "work"))["status"]


async def test_completions_are_reached_with_bounded_parallelism(house: Any, template: Any) -> None:
    await start(house, template, completions=5, parallelism=2)
    for done in range(5):
        await finish(house, 1, "Succeeded")
        await house.until(lambda done=done: len(pods(house, "Succeeded")) == done + 1)
    status = await ended(house, "Complete")
    assert (status["succeeded"], status.get("failed", 0), status.get("active", 0)) == (5, 0, 0)
    assert "completionTime" in status and not status.get("uncountedTerminatedPods")
    assert await conditions(house) == {
        "SuccessCriteriaMet": ("True", "CompletionsReached"),
        "Complete": ("True", "CompletionsReached"),
    }
    await house.until(lambda: len(house.created) == 5)
    assert house.most_pods <= 2
    assert all(not pod.metadata.finalizers for pod in house.pods.objects.values())


async def test_a_work_queue_job_ends_when_one_succeeded_and_all_are_done(house: Any, template: Any) -> None:
    await start(house, template, parallelism=3, completions=None)
    await finish(house, 3, "Succeeded")
    status = await ended(house, "Complete")
    await house.until(lambda: len(house.created) == 3)
    assert status["succeeded"] == 3


async def test_failures_are_replaced_after_a_pause_until_the_limit(house: Any, template: Any) -> None:
    await start(house, template, backoffLimit=1)
    await finish(house, 1, "Failed")
    await house.status("Job", "work", failed=1, active=0)
    await house.until(lambda: len(house.created) == 1)
    house.skip(11)
    await house.patch("Job", "work", {"metadata": {"labels": {"poke": "1"}}})
    await finish(house, 1, "Failed")
    status = await ended(house, "Failed")
    assert (status["failed"], len(house.created)) == (2, 2)
    assert (await conditions(house))["Failed"] == ("True", "BackoffLimitExceeded")
    assert (await conditions(house))["FailureTarget"] == ("True", "BackoffLimitExceeded")


async def test_indexed_jobs_number_their_pods(house: Any, template: Any) -> None:
    await start(house, template, completions=4, parallelism=4, completionMode="Indexed")
    await house.until(lambda: len(pods(house, "Running")) == 4)
    by_index = {}
    for name in pods(house, "Running"):
        pod = await house.get("Pod", name)
        index = pod["metadata"]["labels"]["batch.kubernetes.io/job-completion-index"]
        by_index[index] = name
        assert pod["spec"]["hostname"] == f"work-{index}"
        assert [e["name"] for e in pod["spec"]["containers"][0]["env"]] == ["JOB_COMPLETION_INDEX"]
    assert sorted(by_index) == ["0", "1", "2", "3"]
    for index in "013":
        await house.set_phase(by_index[index], "Succeeded")
    found = await house.status("Job", "work", succeeded=3)
    assert found["status"]["completedIndexes"] == "0,1,3"
    await house.set_phase(by_index["2"], "Succeeded")
    assert (await ended(house, "Complete"))["completedIndexes"] == "0-3"


async def test_a_failed_index_is_run_again(house: Any, template: Any) -> None:
    await start(house, template, completions=2, parallelism=2, completionMode="Indexed")
    await house.until(lambda: len(pods(house, "Running")) == 2)
    broken = next(p for p in house.pods.objects.values() if p.metadata.name.startswith("work-1-"))
    await house.set_phase(broken.metadata.name, "Failed")
    await house.status("Job", "work", failed=1)
    house.skip(11)
    await house.patch("Job", "work", {"metadata": {"labels": {"poke": "1"}}})
    await house.until(lambda: len(house.created) == 3)
    assert house.created[2].startswith("work-1-")


async def test_suspending_stops_the_pods_and_counts_no_failure(house: Any, template: Any) -> None:
    await start(house, template, parallelism=2, completions=2)
    await house.until(lambda: len(pods(house, "Running")) == 2)
    await house.patch("Job", "work", {"spec": {"suspend": True}})
    await house.until(lambda: not house.pods.objects)
    found = await house.status("Job", "work", active=0, failed=0)
    assert "startTime" not in found["status"]
    assert (await conditions(house))["Suspended"] == ("True", "JobSuspended")
    await house.patch("Job", "work", {"spec": {"suspend": False}})
    await finish(house, 2, "Succeeded")
    await ended(house, "Complete")
    assert (await conditions(house))["Suspended"] == ("False", "JobResumed")


async def test_a_deadline_ends_the_job(house: Any, template: Any) -> None:
    await start(house, template, activeDeadlineSeconds=100)
    await house.until(lambda: pods(house, "Running"))
    house.skip(101)
    await house.patch("Job", "work", {"metadata": {"labels": {"poke": "1"}}})
    await ended(house, "Failed")
    assert (await conditions(house))["Failed"] == ("True", "DeadlineExceeded")
    await house.until(lambda: not house.pods.objects)


async def test_a_pod_deleted_by_hand_is_a_failure_and_its_finalizer_goes(house: Any, template: Any) -> None:
    await start(house, template)
    await house.until(lambda: pods(house, "Running"))
    await house.delete("Pod", house.created[0])
    await house.until(lambda: house.deleted)
    await house.status("Job", "work", failed=1)


async def test_a_finished_job_expires(house: Any, template: Any) -> None:
    await start(house, template, ttlSecondsAfterFinished=30)
    await finish(house, 1, "Succeeded")
    await ended(house, "Complete")
    house.skip(31)
    await house.patch("Job", "work", {"metadata": {"labels": {"poke": "1"}}})

    async def gone() -> bool:
        return not await house.names("Job") and not house.pods.objects

    await house.until(gone)


async def test_deleting_a_job_deletes_its_pods_despite_their_finalizers(house: Any, template: Any) -> None:
    await start(house, template, parallelism=3, completions=3)
    await house.until(lambda: len(pods(house, "Running")) == 3)
    await house.delete("Job", "work", propagation="Background")
    await house.until(lambda: not house.pods.objects)


async def test_restarts_count_against_the_limit_with_on_failure(house: Any, template: Any) -> None:
    await start(house, template, backoffLimit=2, restartPolicy="OnFailure")
    await house.until(lambda: pods(house, "Running"))
    await house.set_phase(house.created[0], "Running", restarts=2)
    await ended(house, "Failed")
    assert (await conditions(house))["Failed"] == ("True", "BackoffLimitExceeded")


@given(st.sets(st.integers(0, 60)))
def test_indexes_read_back_as_written(indexes: set[int]) -> None:
    assert parse_indexes(render_indexes(indexes)) == indexes


def test_indexes_look_as_upstream_writes_them() -> None:
    assert render_indexes([7, 0, 1, 2, 4, 5]) == "0-2,4,5,7"


def failure_rule(action: str, code: int) -> dict[str, Any]:
    return {"rules": [{"action": action, "onExitCodes": {"operator": "In", "values": [code]}}]}


async def test_a_failure_policy_ends_the_job_at_once(house: Any, template: Any) -> None:
    await start(house, template, backoffLimit=6, podFailurePolicy=failure_rule("FailJob", 1))
    await finish(house, 1, "Failed")
    await ended(house, "Failed")
    assert (await conditions(house))["Failed"] == ("True", "PodFailurePolicy")


async def test_a_failure_that_was_counted_in_the_middle_of_a_pass_still_ends_the_job() -> None:
    rule = failure_rule("FailJob", 1)
    status = {"uncountedTerminatedPods": {"failed": ["u"]}}
    job = msgspec.convert({"metadata": {"name": "work"}, "spec": {"podFailurePolicy": rule}, "status": status}, Job)
    container = {"name": "main", "state": {"terminated": {"exitCode": 1}}}
    pod = msgspec.convert(
        {
            "metadata": {"name": "p", "namespace": "default", "uid": "u", "finalizers": [FINALIZER]},
            "status": {"phase": "Failed", "containerStatuses": [container]},
        },
        Pod,
    )
    tally = Tally(job, [pod])
    assert tally.fatal.endswith("failed with exit code 1 matching FailJob rule at index 0")
    assert tally.failed == 1


def test_no_failure_rule_speaks_of_a_pod_that_succeeded() -> None:
    rule = {"rules": [{"action": "FailJob", "onPodConditions": [{"type": "DisruptionTarget", "status": "True"}]}]}
    status = {"uncountedTerminatedPods": {"succeeded": ["u"]}}
    job = msgspec.convert({"spec": {"podFailurePolicy": rule}, "status": status}, Job)
    disrupted = {"phase": "Succeeded", "conditions": [{"type": "DisruptionTarget", "status": "True"}]}
    pod = msgspec.convert({"metadata": {"uid": "u", "finalizers": [FINALIZER]}, "status": disrupted}, Pod)
    assert not Tally(job, [pod]).fatal


async def test_ignored_failures_do_not_count(house: Any, template: Any) -> None:
    await start(house, template, backoffLimit=0, podFailurePolicy=failure_rule("Ignore", 1))
    await finish(house, 1, "Failed")
    house.skip(11)
    await house.patch("Job", "work", {"metadata": {"labels": {"poke": "1"}}})
    await house.until(lambda: len(house.created) == 2)
    await finish(house, 1, "Succeeded")
    assert (await ended(house, "Complete")).get("failed", 0) == 0


async def test_enough_indexes_are_enough(house: Any, template: Any) -> None:
    policy = {"rules": [{"succeededIndexes": "0-1", "succeededCount": 1}]}
    await start(house, template, completions=3, parallelism=3, completionMode="Indexed", successPolicy=policy)
    await house.until(lambda: len(pods(house, "Running")) == 3)
    leader = next(p for p in house.pods.objects.values() if p.metadata.name.startswith("work-0-"))
    await house.set_phase(leader.metadata.name, "Succeeded")
    await ended(house, "Complete")
    assert (await conditions(house))["Complete"] == ("True", "SuccessPolicy")


async def test_an_index_fails_for_itself(house: Any, template: Any) -> None:
    indexed = {"completions": 2, "parallelism": 2, "completionMode": "Indexed"}
    await start(house, template, backoffLimitPerIndex=1, **indexed)
    await house.until(lambda: len(pods(house, "Running")) == 2)
    for attempt in range(2):
        broken = [p for p in house.pods.objects.values() if p.metadata.name.startswith("work-1-")]
        running = next(p for p in broken if p.status.phase == "Running")
        assert running.metadata.annotations["batch.kubernetes.io/job-index-failure-count"] == str(attempt)
        await house.set_phase(running.metadata.name, "Failed")
        await house.status("Job", "work", failed=attempt + 1)
        house.skip(30)
        await house.patch("Job", "work", {"metadata": {"labels": {"poke": str(attempt)}}})
        if attempt == 0:
            await house.until(lambda: len(pods(house, "Running")) == 2)
    await finish(house, 1, "Succeeded")
    status = await ended(house, "Failed")
    assert (status["completedIndexes"], status["failedIndexes"]) == ("0", "1")
    assert (await conditions(house))["Failed"] == ("True", "FailedIndexes")


async def test_a_job_of_another_controller_is_left_alone(house: Any, template: Any) -> None:
    await start(house, template, managedBy="example.com/queueing")
    await house.create(
        "ReplicaSet", "other", spec={"replicas": 1, "selector": {"matchLabels": {"app": "web"}}, "template": template()}
    )
    await house.until(lambda: house.created)
    assert all(name.startswith("other-") for name in house.created)
