"""The grouping rules of KAI, read from plain manifests."""

import pytest

from capstan.grouping import InvalidWorkload, group


def manifest(api_version, kind, name, *, labels=None, annotations=None, spec=None, uid=None):
    return {
        "apiVersion": api_version,
        "kind": kind,
        "metadata": {
            "name": name,
            "namespace": "team",
            "uid": uid or f"uid-{name}",
            "labels": labels or {},
            "annotations": annotations or {},
        },
        "spec": spec or {},
    }


def pod(**kwargs):
    return manifest("v1", "Pod", "p", **kwargs)


def test_a_bare_pod_is_a_gang_of_one_named_after_itself():
    grouping = group(pod(labels={"kai.scheduler/queue": "research"}))
    assert grouping.pod_group["metadata"]["name"] == "pg-p-uid-p"
    assert grouping.pod_group["spec"] == {"queue": "research", "priorityClassName": "train", "minMember": 1}
    assert grouping.pod_annotations == {"pod-group-name": "pg-p-uid-p"}
    assert grouping.pod_group["metadata"]["ownerReferences"][0]["uid"] == "uid-p"


def test_a_job_is_one_gang_with_the_minimum_its_user_asks_for():
    job = manifest("batch/v1", "Job", "train", annotations={"kai.scheduler/batch-min-member": "2"})
    first, second = (group(pod(uid=uid), (job,)) for uid in ("a", "b"))
    assert first.pod_group == second.pod_group
    assert first.pod_group["spec"]["minMember"] == 2
    assert first.pod_group["metadata"]["name"] == "pg-train-uid-train"


@pytest.mark.parametrize("text", ["0", "-1", "two", "1.5", "", "99999999999"])
def test_a_minimum_that_is_no_number_names_the_object_and_the_field(text):
    job = manifest("batch/v1", "Job", "train", annotations={"kai.scheduler/batch-min-member": text or " "})
    with pytest.raises(
        InvalidWorkload, match=r"Job team/train: metadata.annotations\[kai.scheduler/batch-min-member\]"
    ):
        group(pod(), (job,))


def test_each_run_of_a_cron_job_is_its_own_gang():
    cron = manifest("batch/v1", "CronJob", "nightly")
    job = manifest("batch/v1", "Job", "nightly-1")
    assert group(pod(), (job, cron)).pod_group["metadata"]["name"] == "pg-nightly-1-uid-nightly-1"


def test_replicas_of_a_deployment_are_placed_one_by_one_unless_a_minimum_is_set():
    replica_set = manifest("apps/v1", "ReplicaSet", "web-1")
    deployment = manifest("apps/v1", "Deployment", "web")
    alone = group(pod(), (replica_set, deployment)).pod_group
    assert alone["metadata"]["name"] == "pg-p-uid-p"
    assert alone["spec"]["priorityClassName"] == "inference"
    ganged = manifest("apps/v1", "Deployment", "web", annotations={"kai.scheduler/batch-min-member": "3"})
    together = group(pod(), (replica_set, ganged)).pod_group
    assert together["metadata"]["name"] == "pg-web-1-uid-web-1"
    assert together["spec"]["minMember"] == 3


def test_who_groups_for_themselves_is_left_alone():
    job = manifest("batch/v1", "Job", "train", annotations={"kai.scheduler/skip-podgrouper": "true"})
    grouping = group(pod(annotations={"pod-group-name": "mine"}), (job,))
    assert grouping.pod_group is None
    assert grouping.pod_annotations == {}


def test_labels_of_the_owner_win_over_those_of_the_pod():
    job = manifest("batch/v1", "Job", "train", labels={"kai.scheduler/queue": "a", "priorityClassName": "build"})
    spec = group(pod(labels={"kai.scheduler/queue": "b"}, spec={"priorityClassName": "x"}), (job,)).pod_group["spec"]
    assert (spec["queue"], spec["priorityClassName"]) == ("a", "build")


def test_the_project_label_names_a_queue_per_node_pool():
    grouped = group(pod(labels={"project": "vision", "kai.scheduler/node-pool": "h100"})).pod_group
    assert grouped["spec"]["queue"] == "vision-h100"
    assert grouped["metadata"]["labels"] == {"kai.scheduler/node-pool": "h100"}


def test_topology_and_timing_annotations_reach_the_pod_group():
    job = manifest(
        "batch/v1",
        "Job",
        "train",
        annotations={
            "kai.scheduler/topology": "cluster",
            "kai.scheduler/topology-required-placement": "rack",
            "kai.scheduler/preemption-delay": "30s",
            "kai.scheduler/staleness-grace-period": "5m",
        },
    )
    spec = group(pod(), (job,)).pod_group["spec"]
    assert spec["topologyConstraint"] == {"topology": "cluster", "requiredTopologyLevel": "rack"}
    assert (spec["preemptionDelay"], spec["stalenessGracePeriod"]) == ("30s", "5m")


def test_run_times_stay_annotations_and_a_jobs_deadline_is_an_expectation():
    job = manifest("batch/v1", "Job", "train", annotations={"kai.scheduler/max-runtime": "2h"})
    job["spec"] = {"activeDeadlineSeconds": 5400}
    notes = group(pod(), (job,)).pod_group["metadata"]["annotations"]
    assert notes["kai.scheduler/max-runtime"] == "2h"
    assert notes["kai.scheduler/expected-runtime"] == "5400s"
    job["metadata"]["annotations"]["kai.scheduler/expected-runtime"] = "1h"
    assert group(pod(), (job,)).pod_group["metadata"]["annotations"]["kai.scheduler/expected-runtime"] == "1h"


def test_the_pods_of_a_spark_application_share_a_group():
    driver, executor = (pod(labels={"spark-app-selector": "spark-1"}, uid=uid) for uid in ("d", "e"))
    assert group(driver).pod_group["metadata"]["name"] == group(executor).pod_group["metadata"]["name"] == "pg-spark-1"


def test_an_unknown_kind_gets_a_group_whose_pods_may_start_alone():
    custom = manifest("example.com/v1", "Thing", "t")
    assert group(pod(), (custom,)).pod_group["spec"]["minMember"] == 1
