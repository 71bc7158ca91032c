"""`capstan allocate` on files as kubectl writes them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from capstan.cli.allocate import allocate

CLUSTER = """
apiVersion: resource.k8s.io/v1
kind: DeviceClass
metadata: {name: gpu}
spec: {extendedResourceName: example.com/gpu}
---
apiVersion: v1
kind: List
items:
- apiVersion: resource.k8s.io/v1
  kind: ResourceSlice
  metadata: {name: s1}
  spec:
    driver: gpu.example.com
    nodeName: n1
    pool: {name: n1, generation: 1, resourceSliceCount: 1}
    devices: [{name: small, capacity: {memory: {value: 10Gi}}}]
- apiVersion: resource.k8s.io/v1beta1
  kind: ResourceSlice
  metadata: {name: s2}
  spec:
    driver: gpu.example.com
    nodeName: n2
    pool: {name: n2, generation: 1, resourceSliceCount: 1}
    devices: [{name: large, basic: {capacity: {memory: {value: 80Gi}}}}]
"""
CLAIM = """
apiVersion: resource.k8s.io/v1
kind: ResourceClaim
metadata: {name: c, namespace: ns}
spec: {devices: {requests: [{name: r, exactly: {deviceClassName: gpu, capacity: {requests: {memory: 40Gi}}}}]}}
"""
POD = """
apiVersion: resource.k8s.io/v1beta1
kind: ResourceClaimTemplate
metadata: {name: one, namespace: ns}
spec: {spec: {devices: {requests: [{name: r, deviceClassName: gpu}]}}}
---
apiVersion: v1
kind: Pod
metadata: {name: p, namespace: ns, uid: u}
spec:
  containers: [{name: main, resources: {limits: {example.com/gpu: 1}}}]
  resourceClaims: [{name: a, resourceClaimTemplateName: one}]
"""


def run(tmp_path: Path, claims: str, *options: str, cluster: str = CLUSTER) -> Any:
    (tmp_path / "claims.yaml").write_text(claims)
    (tmp_path / "cluster.yaml").write_text(cluster)
    paths = ["--claims", str(tmp_path / "claims.yaml"), "--slices", str(tmp_path / "cluster.yaml")]
    return CliRunner().invoke(allocate, [*paths, *options], catch_exceptions=False)


@pytest.mark.parametrize("policy", ["best-fit", "kubernetes"])
def test_a_claim_is_allocated_where_it_fits(tmp_path: Path, policy: str) -> None:
    result = run(tmp_path, CLAIM, "--policy", policy, "--explain", "-o", "json")
    assert result.exit_code == 0
    answer = json.loads(result.output)
    [held] = answer["allocations"]
    assert (held["namespace"], held["name"], held["node"]) == ("ns", "c", "n2")
    assert held["allocation"]["devices"]["results"] == [
        {"request": "r", "driver": "gpu.example.com", "pool": "n2", "device": "large"}
    ]
    assert "n2/large out of 1" in answer["explanation"][0]


def test_a_refusal_says_why_on_each_node_and_exits_with_1(tmp_path: Path) -> None:
    result = run(tmp_path, CLAIM, "--node", "n1")
    assert result.exit_code == 1
    assert "on the node n1 1 match, 1 without the capacity asked for" in result.output
    refused = json.loads(run(tmp_path, CLAIM.replace("gpu,", "tpu,"), "-o", "json").output)["refusals"]
    assert [(r["node"], r["reason"], r["error"]) for r in refused] == [
        ("n1", "UnknownDeviceClass", True),
        ("n2", "UnknownDeviceClass", True),
    ]


def test_the_claims_of_a_pod_are_allocated_together(tmp_path: Path) -> None:
    alone = run(tmp_path, POD)
    assert alone.exit_code == 1
    two = CLUSTER.replace("{name: small,", "{name: other}, {name: small,")
    answer = json.loads(run(tmp_path, POD, "-o", "json", cluster=two).output)
    assert [held["node"] for held in answer["allocations"]] == ["n1", "n1"]
    assert {held["name"].split("-")[1] for held in answer["allocations"]} == {"a", "extended"}


@pytest.mark.parametrize(
    ("claims", "options", "message"),
    [
        ("{}", (), "apiVersion"),
        (CLAIM.replace("requests: [", "requests: [7, "), (), "spec.devices.requests"),
        (CLUSTER, (), "no claim to allocate"),
        (CLAIM, ("--feature-gates", "DRAMagic=true"), "DRAMagic"),
        (POD.replace("ClaimTemplateName: one", "ClaimTemplateName: two"), (), "'two', which is not given"),
        (CLAIM + "---" + CLAIM, (), "ResourceClaim ns/c is given twice"),
    ],
)
def test_bad_input_is_named(tmp_path: Path, claims: str, options: tuple[str, ...], message: str) -> None:
    result = run(tmp_path, claims, *options)
    assert result.exit_code == 2
    assert message in result.output


@pytest.mark.parametrize(
    ("claims", "options", "outcome", "status"),
    [
        (CLAIM, (), "allocated", 0),
        (CLAIM, ("--node", "n1"), "refused", 1),
        (CLAIM, ("--node", "elsewhere"), "refused", 1),
        (CLAIM.replace("gpu,", "tpu,"), (), "error", 2),
        (CLAIM, ("--feature-gates", "DRAConsumableCapacity=false"), "error", 2),
        ("apiVersion: v1\nkind: List\nitems: []\n", (), "allocated", 0),
        ("", (), "allocated", 0),
    ],
)
def test_outcome_and_exit_status_tell_not_here_from_wrong(
    tmp_path: Path, claims: str, options: tuple[str, ...], outcome: str, status: int
) -> None:
    result = run(tmp_path, claims, *options, "-o", "json")
    assert result.exit_code == status
    if result.output.startswith("{"):
        answer = json.loads(result.output)
        assert answer["outcome"] == outcome
        assert bool(answer["refusals"]) == (outcome != "allocated")
    else:
        assert outcome == "error"


def test_devices_of_allocated_claims_are_taken(tmp_path: Path) -> None:
    held = CLAIM.replace("name: c,", "name: held,") + (
        "status: {allocation: {devices: {results: [{request: r, driver: gpu.example.com, pool: n2, device: large}]}}}\n"
    )
    answer = json.loads(run(tmp_path, CLAIM, "-o", "json", cluster=CLUSTER + "---" + held).output)
    assert answer["outcome"] == "refused"
    assert "1 in use" in answer["refusals"][-1]["message"]


def test_shares_that_are_held_leave_the_rest(tmp_path: Path) -> None:
    shared = CLUSTER.replace("{name: large, basic: {", "{name: large, basic: {allowMultipleAllocations: true, ")
    held = CLAIM.replace("name: c,", "name: held,") + (
        "status: {allocation: {devices: {results: [{request: r, driver: gpu.example.com, pool: n2, device: large,"
        " shareID: 11111111-1111-1111-1111-111111111111, consumedCapacity: {memory: 30Gi}}]}}}\n"
    )
    answer = json.loads(run(tmp_path, CLAIM, "-o", "json", cluster=shared + "---" + held).output)
    (result,) = answer["allocations"][0]["allocation"]["devices"]["results"]
    assert result["consumedCapacity"] == {"memory": "40Gi"}
    assert result["shareID"]
    assert run(tmp_path, CLAIM.replace("40Gi", "51Gi"), cluster=shared + "---" + held).exit_code == 1


def test_nulls_are_fields_that_are_not_set_and_claims_without_namespace_are_in_the_default_one(tmp_path: Path) -> None:
    claim = CLAIM.replace("{name: c, namespace: ns}", "{name: c, creationTimestamp: null}")
    claim = claim.replace("deviceClassName: gpu,", "deviceClassName: gpu, adminAccess: null, selectors: null,")
    answer = json.loads(run(tmp_path, claim + "status: null\n", "-o", "json").output)
    assert (answer["allocations"][0]["namespace"], answer["outcome"]) == ("default", "allocated")


def test_slices_of_one_name_all_count(tmp_path: Path) -> None:
    cluster = CLUSTER.replace("name: s2", "name: s1")
    assert run(tmp_path, CLAIM, cluster=cluster).exit_code == 0
    old = cluster.replace("generation: 1", "generation: 0", 1)
    assert run(tmp_path, CLAIM.replace("40Gi", "5Gi"), "--node", "n1", cluster=old).exit_code == 0


@pytest.mark.parametrize("gate", ["true", "false"])
def test_counters_drawn_on_request_are_written_down(tmp_path: Path, gate: str) -> None:
    cluster = (
        CLUSTER
        + """
---
apiVersion: resource.k8s.io/v1
kind: ResourceSlice
metadata: {name: port}
spec:
  driver: net.example.com
  nodeName: n3
  pool: {name: n3, generation: 1, resourceSliceCount: 1}
  sharedCounters: [{name: port, counters: {bandwidth: {value: 100G}}}]
  devices:
  - {name: vf, consumesCounters: [{counterSet: port, counters: {bandwidth: {valueFrom: {capacityName: bandwidth}}}}]}
"""
    )
    claim = CLAIM.replace("memory: 40Gi", "net.example.com/bandwidth: 10G")
    if gate == "false":
        claim = CLAIM.replace(", capacity: {requests: {memory: 40Gi}}", "")
    options = ("--node", "n3", "--feature-gates", f"DRASharedConsumableCapacity={gate}", "-o", "json")
    answer = json.loads(run(tmp_path, claim, *options, cluster=cluster).output)
    (result,) = answer["allocations"][0]["allocation"]["devices"]["results"]
    assert result["device"] == "vf"
    wanted = [{"counterSet": "port", "counters": {"bandwidth": "10G"}}] if gate == "true" else None
    assert result.get("consumedCounters") == wanted


def test_one_file_may_be_both_and_standard_input_is_a_file(tmp_path: Path) -> None:
    everything = tmp_path / "all.yaml"
    everything.write_text(CLUSTER + "---" + CLAIM)
    paths = ["--claims", str(everything), "--slices", str(everything)]
    assert CliRunner().invoke(allocate, paths).exit_code == 0
    given = CliRunner().invoke(allocate, ["--claims", "-", "--slices", "-"], input=everything.read_text())
    assert given.exit_code == 0, given.output


def test_slices_in_both_files_count_once(tmp_path: Path) -> None:
    assert run(tmp_path, CLUSTER + "---" + CLAIM).exit_code == 0


def test_a_node_that_nothing_describes_is_pointed_out(tmp_path: Path) -> None:
    result = run(tmp_path, CLAIM, "--node", "n3")
    assert result.exit_code == 1
    assert "the files describe no node n3" in result.stderr


def test_a_selector_that_fails_is_named_with_its_claim_and_request(tmp_path: Path) -> None:
    expression = "device.attributes['gpu.example.com'].typo == 1"
    claim = CLAIM.replace(
        "{name: r, exactly: {", f'{{name: r, exactly: {{selectors: [{{cel: {{expression: "{expression}"}}}}], '
    )
    for policy in ("best-fit", "kubernetes"):
        result = run(tmp_path, claim, "--node", "n2", "--policy", policy, "-o", "json")
        (refusal,) = json.loads(result.output)["refusals"]
        assert (refusal["reason"], refusal["claim"], refusal["request"]) == ("SelectorFailed", "ns/c", "r")
        assert refusal["message"].startswith("claim ns/c, request r: ")
