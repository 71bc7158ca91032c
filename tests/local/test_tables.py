"""`kubectl get`: columns and cells of each kind as a golden table, ages, JSONPath columns, partial metadata."""

from __future__ import annotations

from typing import Any

import pytest

from capstan.api import clock
from capstan.local import tables
from capstan.local.tables_jsonpath import InvalidJsonPath, JsonPath

from .types_samples import kind

NOW = clock.parse("2026-11-23T12:00:00Z")
META = {"name": "x", "namespace": "default", "creationTimestamp": "2026-11-23T11:55:00Z"}


def show(api_version: str, name: str, **body: Any) -> str:
    """The table of one object, as kubectl lays it out; wide columns stand after a bar."""
    meta = {**META, **body.pop("metadata", {})}
    obj = {"apiVersion": api_version, "kind": name, "metadata": meta, **body}
    table = tables.table(kind(api_version, name), [obj], now=NOW, include="None")
    columns, cells = table["columnDefinitions"], table["rows"][0]["cells"]
    assert len(columns) == len(cells)
    plain = [(column["name"], cell) for column, cell in zip(columns, cells, strict=True) if not column["priority"]]
    wide = [(column["name"], cell) for column, cell in zip(columns, cells, strict=True) if column["priority"]]
    text = " ".join(f"{column}={cell}" for column, cell in plain)
    return text + (" | " + " ".join(f"{column}={cell}" for column, cell in wide) if wide else "")


RUNNING = {"name": "main", "ready": True, "restartCount": 0, "image": "a", "imageID": "", "state": {"running": {}}}
TEMPLATE = {"spec": {"containers": [{"name": "main", "image": "busybox"}]}}
SELECTOR = {"matchLabels": {"app": "web"}}

POD = "Nominated Node=<none> Readiness Gates=<none>"

GOLDEN: list[tuple[str, str, dict[str, Any], str]] = [
    (
        "v1",
        "Pod",
        {
            "spec": {"containers": [{"name": "main"}], "nodeName": "n1"},
            "status": {"phase": "Running", "podIP": "10.0.0.7", "containerStatuses": [RUNNING]},
        },
        f"Name=x Ready=1/1 Status=Running Restarts=0 Age=5m | IP=10.0.0.7 Node=n1 {POD}",
    ),
    (
        "v1",
        "Pod",
        {"spec": {"containers": [{"name": "a"}], "schedulingGates": [{"name": "g"}]}, "status": {"phase": "Pending"}},
        f"Name=x Ready=0/1 Status=SchedulingGated Restarts=0 Age=5m | IP=<none> Node=<none> {POD}",
    ),
    (
        "v1",
        "Pod",
        {
            "spec": {"containers": [{"name": "main"}]},
            "status": {
                "phase": "Running",
                "containerStatuses": [
                    {
                        **RUNNING,
                        "ready": False,
                        "restartCount": 3,
                        "state": {"waiting": {"reason": "CrashLoopBackOff"}},
                        "lastState": {"terminated": {"exitCode": 1, "finishedAt": "2026-11-23T11:59:00Z"}},
                    }
                ],
            },
        },
        f"Name=x Ready=0/1 Status=CrashLoopBackOff Restarts=3 (60s ago) Age=5m | IP=<none> Node=<none> {POD}",
    ),
    (
        "v1",
        "Pod",
        {
            "spec": {"containers": [{"name": "main"}]},
            "status": {
                "phase": "Succeeded",
                "containerStatuses": [
                    {**RUNNING, "ready": False, "state": {"terminated": {"exitCode": 0, "reason": "Completed"}}}
                ],
            },
        },
        f"Name=x Ready=0/1 Status=Completed Restarts=0 Age=5m | IP=<none> Node=<none> {POD}",
    ),
    (
        "v1",
        "Pod",
        {
            "metadata": {"deletionTimestamp": "2026-11-23T12:00:00Z"},
            "spec": {"containers": [{"name": "main"}], "initContainers": [{"name": "first"}]},
            "status": {"phase": "Pending", "initContainerStatuses": [{**RUNNING, "name": "first", "ready": False}]},
        },
        f"Name=x Ready=0/1 Status=Terminating Restarts=0 Age=5m | IP=<none> Node=<none> {POD}",
    ),
    (
        "v1",
        "Node",
        {
            "metadata": {"labels": {"node-role.kubernetes.io/gpu-worker": ""}},
            "spec": {"unschedulable": True},
            "status": {
                "conditions": [{"type": "Ready", "status": "True"}],
                "addresses": [{"type": "InternalIP", "address": "10.0.0.1"}],
                "nodeInfo": {"kubeletVersion": "v1.36.0", "osImage": "Debian", "kernelVersion": "6.12"},
            },
        },
        "Name=x Status=Ready,SchedulingDisabled Roles=gpu-worker Age=5m Version=v1.36.0 | Internal-IP=10.0.0.1 "
        "External-IP=<none> OS-Image=Debian Kernel-Version=6.12 Container-Runtime=<unknown>",
    ),
    (
        "apps/v1",
        "Deployment",
        {
            "spec": {"replicas": 3, "template": TEMPLATE, "selector": SELECTOR},
            "status": {"readyReplicas": 1, "updatedReplicas": 2, "availableReplicas": 1},
        },
        "Name=x Ready=1/3 Up-to-date=2 Available=1 Age=5m | Containers=main Images=busybox Selector=app=web",
    ),
    (
        "apps/v1",
        "ReplicaSet",
        {"spec": {"replicas": 3, "template": TEMPLATE, "selector": SELECTOR}, "status": {"replicas": 2}},
        "Name=x Desired=3 Current=2 Ready=0 Age=5m | Containers=main Images=busybox Selector=app=web",
    ),
    (
        "apps/v1",
        "StatefulSet",
        {"spec": {"replicas": 2, "template": TEMPLATE}, "status": {"readyReplicas": 2}},
        "Name=x Ready=2/2 Age=5m | Containers=main Images=busybox",
    ),
    (
        "apps/v1",
        "DaemonSet",
        {
            "spec": {"template": TEMPLATE, "selector": SELECTOR},
            "status": {"desiredNumberScheduled": 4, "currentNumberScheduled": 4, "numberReady": 3},
        },
        "Name=x Desired=4 Current=4 Ready=3 Up-to-date=0 Available=0 Node Selector=<none> Age=5m | Containers=main "
        "Images=busybox Selector=app=web",
    ),
    (
        "batch/v1",
        "Job",
        {
            "spec": {"completions": 2, "parallelism": 2, "template": TEMPLATE, "selector": SELECTOR},
            "status": {
                "succeeded": 2,
                "startTime": "2026-11-23T11:55:00Z",
                "completionTime": "2026-11-23T11:56:10Z",
                "conditions": [{"type": "Complete", "status": "True"}],
            },
        },
        "Name=x Status=Complete Completions=2/2 Duration=70s Age=5m | Containers=main Images=busybox Selector=app=web",
    ),
    (
        "v1",
        "Event",
        {
            "involvedObject": {"kind": "Pod", "name": "web"},
            "type": "Warning",
            "reason": "FailedScheduling",
            "message": "no room\n",
            "lastTimestamp": "2026-11-23T11:59:30Z",
            "firstTimestamp": "2026-11-23T11:50:00Z",
            "count": 4,
            "source": {"component": "scheduler"},
        },
        "Last Seen=30s Type=Warning Reason=FailedScheduling Object=pod/web Message=no room | Subobject= "
        "Source=scheduler First Seen=10m Count=4 Name=x",
    ),
    ("v1", "Namespace", {"status": {"phase": "Active"}}, "Name=x Status=Active Age=5m"),
    ("v1", "ConfigMap", {"data": {"a": "b"}, "binaryData": {"c": ""}}, "Name=x Data=2 Age=5m"),
    ("v1", "Secret", {"type": "Opaque", "data": {"a": ""}}, "Name=x Type=Opaque Data=1 Age=5m"),
    ("v1", "ServiceAccount", {}, "Name=x Secrets=0 Age=5m"),
    (
        "v1",
        "Service",
        {"spec": {"type": "NodePort", "clusterIP": "10.0.0.9", "ports": [{"port": 80, "nodePort": 30080}]}},
        "Name=x Type=NodePort Cluster-IP=10.0.0.9 External-IP=<none> Port(s)=80:30080/TCP Age=5m | Selector=<none>",
    ),
    (
        "policy/v1",
        "PodDisruptionBudget",
        {"spec": {"minAvailable": "50%"}, "status": {"disruptionsAllowed": 1}},
        "Name=x Min Available=50% Max Unavailable=N/A Allowed Disruptions=1 Age=5m",
    ),
    ("coordination.k8s.io/v1", "Lease", {"spec": {"holderIdentity": "me"}}, "Name=x Holder=me Age=5m"),
    (
        "scheduling.k8s.io/v1",
        "PriorityClass",
        {"value": 100, "preemptionPolicy": "Never"},
        "Name=x Value=100 Global-Default=False Age=5m PreemptionPolicy=Never",
    ),
    ("node.k8s.io/v1", "RuntimeClass", {"handler": "kata-qemu"}, "Name=x Handler=kata-qemu Age=5m"),
    ("resource.k8s.io/v1", "DeviceClass", {}, "Name=x Age=5m"),
    ("resource.k8s.io/v1", "ResourceClaim", {}, "Name=x State=pending Age=5m"),
    (
        "resource.k8s.io/v1",
        "ResourceClaim",
        {"status": {"allocation": {}, "reservedFor": [{"name": "p"}]}},
        "Name=x State=allocated,reserved Age=5m",
    ),
    (
        "resource.k8s.io/v1",
        "ResourceSlice",
        {"spec": {"driver": "gpu.nvidia.com", "nodeName": "n1", "pool": {"name": "n1"}}},
        "Name=x Node=n1 Driver=gpu.nvidia.com Pool=n1 Age=5m",
    ),
    (
        "rbac.authorization.k8s.io/v1",
        "ClusterRoleBinding",
        {
            "roleRef": {"kind": "ClusterRole", "name": "view"},
            "subjects": [{"kind": "ServiceAccount", "namespace": "a", "name": "b"}, {"kind": "User", "name": "u"}],
        },
        "Name=x Role=ClusterRole/view Age=5m | Users=u Groups= ServiceAccounts=a/b",
    ),
    (
        "apiextensions.k8s.io/v1",
        "CustomResourceDefinition",
        {},
        "Name=x Created At=2026-11-23T11:55:00Z",
    ),
    (
        "scheduling.run.ai/v2",
        "Queue",
        {"spec": {"priority": 100, "parentQueue": "root"}, "status": {"childQueues": ["a", "b"]}},
        'Name=x Priority=100 Parent=root Children=["a","b"] DisplayName=None',
    ),
    ("networking.k8s.io/v1", "NetworkPolicy", {"spec": {"podSelector": {}}}, "Name=x Pod-Selector=<none> Age=5m"),
]


@pytest.mark.parametrize(
    ("api_version", "name", "body", "expected"), GOLDEN, ids=[f"{row[1]}-{at}" for at, row in enumerate(GOLDEN)]
)
def test_the_table_of_a_kind(api_version: str, name: str, body: dict[str, Any], expected: str) -> None:
    assert show(api_version, name, **body) == expected


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (-5, "<invalid>"),
        (0, "0s"),
        (119, "119s"),
        (120, "2m"),
        (599, "9m59s"),
        (600, "10m"),
        (179 * 60, "179m"),
        (180 * 60, "3h"),
        (7 * 3600 + 1800, "7h30m"),
        (47 * 3600, "47h"),
        (50 * 3600, "2d2h"),
        (8 * 86400, "8d"),
        (729 * 86400, "729d"),
        (800 * 86400, "2y70d"),
        (3000 * 86400, "8y"),
    ],
)
def test_ages(seconds: int, text: str) -> None:
    assert tables.human_duration(seconds) == text


def test_rows_carry_what_the_client_asked_for() -> None:
    item = kind("v1", "ConfigMap")
    obj = {"apiVersion": "v1", "kind": "ConfigMap", "metadata": META, "data": {"a": "b"}}
    by_default = tables.table(item, [obj], now=NOW, metadata={"resourceVersion": "7"})
    assert by_default["metadata"] == {"resourceVersion": "7"}
    assert by_default["rows"][0]["object"] == {
        "kind": "PartialObjectMetadata",
        "apiVersion": "meta.k8s.io/v1",
        "metadata": META,
    }
    assert tables.table(item, [obj], now=NOW, include="Object")["rows"][0]["object"] is obj
    assert "object" not in tables.table(item, [obj], now=NOW, include="None")["rows"][0]


def test_custom_columns_show_values_of_their_type_only() -> None:
    printer = tables.custom(
        [
            {"name": "Ready", "type": "string", "jsonPath": '.status.conditions[?(@.type=="Ready")].status'},
            {"name": "Size", "type": "integer", "jsonPath": ".spec.size"},
            {"name": "Since", "type": "date", "jsonPath": ".status.since"},
            {"name": "Label", "type": "string", "jsonPath": ".metadata.labels.example\\.com/x", "priority": 1},
        ]
    )
    obj = {
        "metadata": {"name": "w", "labels": {"example.com/x": "y"}},
        "spec": {"size": "big"},
        "status": {"conditions": [{"type": "Ready", "status": "True"}], "since": "2026-11-23T11:00:00Z"},
    }
    assert printer.cells(obj, NOW) == ["w", "True", None, "60m", "y"]
    assert [column.priority for column in printer.columns] == [0, 0, 0, 0, 1]


@pytest.mark.parametrize(
    ("path", "found"),
    [
        (".a.b", [1]),
        (".list[0].n", [1]),
        (".list[-1].n", [3]),
        (".list[*].n", [1, 2, 3]),
        (".list[1:].n", [2, 3]),
        (".list[?(@.n>1)].n", [2, 3]),
        (".list[?(@.m)].n", [2]),
        ("['a'].b", [1]),
        ("..n", [1, 2, 3]),
        (".nothing.here", []),
        (".a[0]", []),
    ],
)
def test_json_paths(path: str, found: list[Any]) -> None:
    assert JsonPath(path).find({"a": {"b": 1}, "list": [{"n": 1}, {"n": 2, "m": 1}, {"n": 3}]}) == found


@pytest.mark.parametrize("path", ["", "a", ".a[", ".a[?(x)]", ".a..", ".a[b]"])
def test_json_paths_that_do_not_parse(path: str) -> None:
    with pytest.raises(InvalidJsonPath):
        JsonPath(path)
