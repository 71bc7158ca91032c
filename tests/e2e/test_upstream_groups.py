"""Kubernetes' own gangs: pods that name a PodGroup (1.36) or a group of a Workload (1.35) start together."""

import json

import pytest

pytestmark = pytest.mark.kubectl
GROUPS = """
apiVersion: scheduling.k8s.io/v1alpha2
kind: PodGroup
metadata: {name: trainer}
spec: {schedulingPolicy: {gang: {minCount: 2}}}
---
apiVersion: scheduling.k8s.io/v1alpha1
kind: Workload
metadata: {name: trainer}
spec:
  podGroups:
    - {name: workers, policy: {gang: {minCount: 2}}}
    - {name: loggers, policy: {basic: {}}}
"""


def pod(name, **spec):
    return json.dumps(
        {
            "apiVersion": "v1",
            "kind": "Pod",
            "metadata": {"name": name, "labels": {"kai.scheduler/queue": "default-queue"}},
            "spec": {
                "schedulerName": "kai-scheduler",
                "terminationGracePeriodSeconds": 0,
                "containers": [{"name": "main", "image": "busybox", "command": ["sleep", "3600"]}],
                **spec,
            },
        }
    )


@pytest.fixture
def namespace(dgx):
    dgx.kubectl("create", "namespace", "upstream")
    dgx.kubectl("apply", "-n", "upstream", "-f", "-", stdin=GROUPS)
    yield dgx
    dgx.gone("upstream")


@pytest.mark.parametrize(
    "membership",
    [
        {"schedulingGroup": {"podGroupName": "trainer"}},
        {"workloadRef": {"name": "trainer", "podGroup": "workers"}},
    ],
    ids=["PodGroup", "Workload"],
)
def test_pods_of_an_upstream_group_start_together(namespace, membership):
    namespace.kubectl("create", "-n", "upstream", "-f", "-", stdin=pod("first", **membership))
    namespace.until(
        lambda: "needs 2 pods, 1 exist" in namespace.capstan("explain", "first", "-n", "upstream", check=False).stdout,
        "the first is told what it waits for",
    )
    assert namespace.phases("upstream") == {"first": "Pending"}
    namespace.kubectl("create", "-n", "upstream", "-f", "-", stdin=pod("second", **membership))
    namespace.until(
        lambda: namespace.phases("upstream") == {"first": "Running", "second": "Running"}, "both start together"
    )


def test_pods_of_a_group_with_the_basic_policy_start_alone(namespace):
    alone = pod("alone", workloadRef={"name": "trainer", "podGroup": "loggers"})
    namespace.kubectl("create", "-n", "upstream", "-f", "-", stdin=alone)
    namespace.until(lambda: namespace.phases("upstream") == {"alone": "Running"}, "it starts")


def test_podgroups_without_a_group_are_those_of_kai(namespace):
    names = namespace.kubectl("get", "podgroups", "-n", "upstream", "-o", "name")
    assert "podgroup.scheduling.k8s.io" not in names
    assert "trainer" in namespace.kubectl("get", "podgroups.scheduling.k8s.io", "-n", "upstream", "-o", "name")
    assert "workload.scheduling.k8s.io/trainer" in namespace.kubectl("get", "workloads", "-n", "upstream", "-o", "name")
