"""Every feature gate that `capstan allocate` takes changes what it answers."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import yaml
from click.testing import CliRunner

from capstan.api.feature_gates import GATES
from capstan.cli.allocate import allocate

DRIVER = "gpu.example.com"
CLASS = {"apiVersion": "resource.k8s.io/v1", "kind": "DeviceClass", "metadata": {"name": "gpu"}, "spec": {}}


def devices(*given: dict[str, Any], **spec: Any) -> dict[str, Any]:
    pool = {"name": "n1", "generation": 1, "resourceSliceCount": 1}
    made = {"driver": DRIVER, "nodeName": "n1", "pool": pool, "devices": list(given), **spec}
    return {"apiVersion": "resource.k8s.io/v1", "kind": "ResourceSlice", "metadata": {"name": "s"}, "spec": made}


def claim(*requests: dict[str, Any], **more: Any) -> dict[str, Any]:
    spec = {"devices": {"requests": list(requests), **more}}
    return {"apiVersion": "resource.k8s.io/v1", "kind": "ResourceClaim", "metadata": {"name": "c"}, "spec": spec}


def asking(**more: Any) -> dict[str, Any]:
    return {"name": "r", "exactly": {"deviceClassName": "gpu", **more}}


def policed(policy: dict[str, Any]) -> dict[str, Any]:
    return {"name": "a", "allowMultipleAllocations": True, "capacity": {"m": {"value": "10", "requestPolicy": policy}}}


def partition(name: str, counter: dict[str, Any], **more: Any) -> dict[str, Any]:
    return {"name": name, "consumesCounters": [{"counterSet": "set", "counters": {"slots": counter}, **more}]}


def typed(name: str, slots: str) -> dict[str, Any]:
    return partition(name, {"value": slots}) | {"attributes": {"profile": {"string": "half"}}}


SLOTS = {"sharedCounters": [{"name": "set", "counters": {"slots": {"value": "2"}}}]}
PLAIN = devices({"name": "a"})
RULE = {
    "apiVersion": "resource.k8s.io/v1",
    "kind": "DeviceTaintRule",
    "metadata": {"name": "r"},
    "spec": {"deviceSelector": {}, "taint": {"key": "broken", "effect": "NoSchedule"}},
}
POD = {
    "apiVersion": "v1",
    "kind": "Pod",
    "metadata": {"name": "p", "uid": "u"},
    "spec": {"containers": [{"name": "main", "resources": {"limits": {"deviceclass.resource.kubernetes.io/gpu": 1}}}]},
}
BINDING = devices({"name": "a", "bindingConditions": ["ready"], "bindingFailureConditions": ["broken"]})
MATCH = [{"matchAttribute": f"{DRIVER}/x"}]
DERIVED = claim(asking(derivedAttributes=[{"name": f"{DRIVER}/x", "expression": "1"}]), constraints=MATCH)
NODE_CPU = {"cpu": {"mapping": {"deviceMultiplier": "4"}}}
REFUSED, ERROR = {"outcome": "refused"}, {"outcome": "error"}

CASES: dict[str, tuple[list[Any], Any, dict[str, Any], dict[str, Any]]] = {
    "DRAAdminAccess": ([PLAIN], claim(asking(adminAccess=True)), {"device": "a", "adminAccess": True}, ERROR),
    "DRAConsumableCapacity": (
        [devices({"name": "a", "capacity": {"m": {"value": "10"}}})],
        claim(asking(capacity={"requests": {"m": "1"}})),
        {"device": "a"},
        ERROR,
    ),
    "DRADerivedAttributes": ([PLAIN], DERIVED, {"device": "a"}, ERROR),
    "DRADeviceBindingConditions": (
        [BINDING],
        claim(asking()),
        {"device": "a", "bindingConditions": ["ready"], "bindingFailureConditions": ["broken"]},
        REFUSED,
    ),
    "DRADeviceCompatibilityGroups": (
        [devices(partition("a", {"value": "1"}, compatibilityGroups=["mig"]), **SLOTS)],
        claim(asking()),
        {"device": "a"},
        REFUSED,
    ),
    "DRADeviceTaintRules": ([PLAIN, RULE], claim(asking()), REFUSED, {"device": "a"}),
    "DRADeviceTaints": (
        [devices({"name": "a", "taints": [{"key": "broken", "effect": "NoSchedule"}]})],
        claim(asking()),
        REFUSED,
        {"device": "a"},
    ),
    "DRAExtendedResource": (
        [PLAIN],
        POD,
        {"device": "a", "request": "container-0-request-0"},
        {"outcome": "allocated"},
    ),
    "DRAFractionalCapacityRange": (
        [devices(policed({"default": "1", "validRange": {"min": "0", "step": "500m"}}))],
        claim(asking(capacity={"requests": {"m": "1200m"}})),
        {"device": "a", "consumedCapacity": {"m": "1500m"}},
        {"device": "a", "consumedCapacity": {"m": "2"}},
    ),
    "DRAListTypeAttributes": (
        [devices({"name": "a", "attributes": {"x": {"ints": [1, 2]}}})],
        claim(asking(), constraints=MATCH),
        {"device": "a"},
        REFUSED,
    ),
    "DRANodeAllocatableResources": (
        [devices({"name": "a", "nodeAllocatableResources": NODE_CPU})],
        claim(asking()),
        {"device": "a", "nodeResources": {"cpu": "4"}},
        {"device": "a"},
    ),
    "DRAOptionalNodeOperations": (
        [devices({"name": "a"}, skipNodeOperations=["*"])],
        claim(asking()),
        {"device": "a", "skipNodeOperations": ["*"]},
        {"device": "a"},
    ),
    "DRAPartitionableDevices": (
        [devices(partition("a", {"value": "1"}), **SLOTS)],
        claim(asking()),
        {"device": "a"},
        REFUSED,
    ),
    "DRAPartitionableDevicesType": (
        [devices(typed("a", "1"), typed("b", "2"), partitionTypeAttribute=f"{DRIVER}/profile", **SLOTS)],
        claim(asking()),
        {"outcome": "error", "problem": "partitions of the type half consume different counters"},
        {"device": "a"},
    ),
    "DRAPrioritizedList": (
        [PLAIN],
        claim({"name": "r", "firstAvailable": [{"name": "s", "deviceClassName": "gpu"}]}),
        {"device": "a", "request": "r/s"},
        ERROR,
    ),
    "DRAResourceClaimDeviceStatus": (
        [BINDING],
        claim(asking()),
        {"device": "a", "bindingConditions": ["ready"], "bindingFailureConditions": ["broken"]},
        REFUSED,
    ),
    "DRASharedConsumableCapacity": (
        [devices(partition("a", {"valueFrom": {"capacityName": "slots"}}), **SLOTS)],
        claim(asking(capacity={"requests": {"slots": "1"}})),
        {"device": "a", "consumedCounters": [{"counterSet": "set", "counters": {"slots": "1"}}]},
        REFUSED,
    ),
}
"""gate -> what is there, what is asked for, the answer with the gate, and the one without it"""


def ask(tmp_path: Path, offered: list[Any], asked: Any, gates: str) -> Any:
    (tmp_path / "cluster.yaml").write_text(yaml.safe_dump_all([CLASS, *offered]))
    (tmp_path / "claims.yaml").write_text(yaml.safe_dump(asked))
    paths = ["--claims", str(tmp_path / "claims.yaml"), "--slices", str(tmp_path / "cluster.yaml")]
    return CliRunner().invoke(allocate, [*paths, "--feature-gates", gates, "-o", "json"], catch_exceptions=False)


def summary(answer: dict[str, Any]) -> dict[str, Any]:
    """The device that was allocated, or the outcome where none was."""
    if not answer["allocations"]:
        problems = [each["reason"] for each in answer["problems"]]
        return {"outcome": answer["outcome"]} | ({"problem": problems[0]} if problems else {})
    (held,) = answer["allocations"]
    (result,) = held["allocation"]["devices"]["results"]
    usual = {"driver": DRIVER, "pool": "n1", "request": "r"}
    found = {key: value for key, value in result.items() if usual.get(key) != value and key != "shareID"}
    return found | ({"nodeResources": held["nodeResources"]} if "nodeResources" in held else {})


@pytest.mark.parametrize("gate", CASES)
def test_a_gate_changes_the_answer(tmp_path: Path, gate: str) -> None:
    offered, asked, with_gate, without_gate = CASES[gate]
    assert summary(json.loads(ask(tmp_path, offered, asked, f"{gate}=true").output)) == with_gate
    assert summary(json.loads(ask(tmp_path, offered, asked, f"{gate}=false").output)) == without_gate
    default = with_gate if GATES[gate].default else without_gate
    assert summary(json.loads(ask(tmp_path, offered, asked, "").output)) == default


@pytest.mark.parametrize(
    ("gates", "words"),
    [
        ("DynamicResourceAllocation=false", "feature is locked to true"),
        ("DRAResourcePoolStatus=false,DRAPartitionableDevicesType=true", "needs DRAResourcePoolStatus=true"),
    ],
)
def test_the_gates_that_decide_only_about_others_say_so(tmp_path: Path, gates: str, words: str) -> None:
    answer = ask(tmp_path, [PLAIN], claim(asking()), gates)
    assert (answer.exit_code, words in answer.output) == (2, True)


def test_no_gate_is_left_out() -> None:
    assert set(GATES) - set(CASES) == {"DynamicResourceAllocation", "DRAResourcePoolStatus"}
