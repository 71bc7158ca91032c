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
    ],
)
def test_bad_input_is_named(tmp_path: Path, claims: str, options: tuple[str, ...], message: str) -> None:
    result = run(tmp_path, claims, *options)
    assert result.exit_code != 0
    assert message in result.output
