"""`capstan allocate` as people use it: manifests of several API versions, with all that drivers publish."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from capstan.cli.allocate import allocate

OLD = """
# Kubernetes 1.34: counters beside the devices, everything in older versions, lists in a list.
apiVersion: v1
kind: List
items:
- apiVersion: resource.k8s.io/v1beta2
  kind: DeviceClass
  metadata: {name: gpu}
  spec: {extendedResourceName: example.com/gpu, selectors: [{cel: {expression: "device.driver == 'gpu.example.com'"}}]}
- apiVersion: resource.k8s.io/v1beta1
  kind: ResourceSliceList
  items:
  - metadata: {name: s1}
    spec:
      driver: gpu.example.com
      nodeName: n1
      pool: {name: n1, generation: 3, resourceSliceCount: 1}
      sharedCounters: [{name: gpu-0, counters: {memory: {value: 40Gi}, slots: {value: "7"}}}]
      devices:
      - name: whole
        basic:
          attributes: {model: {string: a100}, profile: {string: full}}
          capacity: {memory: {value: 40Gi}}
          consumesCounters: [{counterSet: gpu-0, counters: {memory: {value: 40Gi}, slots: {value: "7"}}}]
      - name: half-0
        basic:
          attributes: {model: {string: a100}, profile: {string: half}}
          consumesCounters: [{counterSet: gpu-0, counters: {memory: {value: 20Gi}, slots: {value: "3"}}}]
      - name: half-1
        basic:
          attributes: {model: {string: a100}, profile: {string: half}}
          consumesCounters: [{counterSet: gpu-0, counters: {memory: {value: 20Gi}, slots: {value: "3"}}}]
          taints: [{key: example.com/flaky, effect: NoSchedule}]
- apiVersion: resource.k8s.io/v1alpha3
  kind: DeviceTaintRule
  metadata: {name: old}
  spec: {deviceSelector: {driver: gpu.example.com, device: whole}, taint: {key: x, effect: NoSchedule}}
"""
HALVES = """
apiVersion: resource.k8s.io/v1beta1
kind: ResourceClaim
metadata: {name: c}
spec:
  devices:
    requests:
    - name: r
      deviceClassName: gpu
      count: 2
      selectors: [{cel: {expression: "device.attributes['gpu.example.com'].profile == 'half'"}}]
      tolerations: [{key: example.com/flaky, operator: Exists}]
    constraints: [{matchAttribute: gpu.example.com/model}]
"""
WHOLE = """
apiVersion: resource.k8s.io/v1beta2
kind: ResourceClaim
metadata: {name: c}
spec:
  devices:
    requests:
    - name: r
      exactly:
        deviceClassName: gpu
        selectors: [{cel: {expression: "device.attributes['gpu.example.com'].profile == 'full'"}}]
"""
EITHER = """
apiVersion: resource.k8s.io/v1beta1
kind: ResourceClaim
metadata: {name: c}
spec:
  devices:
    requests:
    - name: r
      firstAvailable:
      - name: big
        deviceClassName: gpu
        selectors: [{cel: {expression: "'memory' in device.capacity['gpu.example.com']"}}]
      - {name: small, deviceClassName: gpu}
"""
HELD = """
apiVersion: resource.k8s.io/v1beta1
kind: ResourceClaim
metadata: {name: held}
spec: {devices: {requests: [{name: r, deviceClassName: gpu}]}}
status: {allocation: {devices: {results: [{request: r, driver: gpu.example.com, pool: n1, device: half-0}]}}}
"""
POD = """
apiVersion: v1
kind: Pod
metadata: {name: p}
spec: {containers: [{name: c, resources: {limits: {RESOURCE: 1}}}]}
"""

NEW = """
apiVersion: resource.k8s.io/v1
kind: DeviceClass
metadata: {name: any}
spec: {}
---
apiVersion: resource.k8s.io/v1
kind: ResourceSlice
metadata: {name: nic}
spec:
  driver: nic.example.com
  nodeName: n1
  pool: {name: nics, generation: 1, resourceSliceCount: 1}
  devices:
  - {name: nic0, attributes: {resource.kubernetes.io/numaNode: {ints: [0, 1]}}}
  - {name: nic1, attributes: {resource.kubernetes.io/numaNode: {ints: [1, 2]}}}
---
apiVersion: resource.k8s.io/v1
kind: ResourceSlice
metadata: {name: gpu-counters}
spec:
  driver: gpu.example.com
  nodeName: n1
  pool: {name: gpus, generation: 1, resourceSliceCount: 2}
  sharedCounters: [{name: g, counters: {mode: {value: 4}}}]
---
apiVersion: resource.k8s.io/v1
kind: ResourceSlice
metadata: {name: gpu-devices}
spec:
  driver: gpu.example.com
  nodeName: n1
  pool: {name: gpus, generation: 1, resourceSliceCount: 2}
  devices:
  - name: mig0
    attributes: {resource.kubernetes.io/numaNode: {int: 2}}
    consumesCounters: [{counterSet: g, counters: {mode: {value: 1}}, compatibilityGroups: [mig]}]
  - name: vgpu0
    attributes: {resource.kubernetes.io/numaNode: {int: 0}}
    consumesCounters: [{counterSet: g, counters: {mode: {value: 1}}, compatibilityGroups: [vgpu]}]
  - name: mps0
    attributes: {resource.kubernetes.io/numaNode: {int: 1}}
    consumesCounters: [{counterSet: g, counters: {mode: {value: 1}}, compatibilityGroups: [mps, mig]}]
---
apiVersion: resource.k8s.io/v1beta2
kind: DeviceTaintRule
metadata: {name: informs}
spec: {deviceSelector: {}, taint: {key: look, effect: None}}
---
apiVersion: resource.k8s.io/v1
kind: DeviceTaintRule
metadata: {name: selects-nothing}
spec: {taint: {key: look, effect: NoExecute}}
"""
DRAIN = """
---
apiVersion: resource.k8s.io/v1
kind: DeviceTaintRule
metadata: {name: drain}
spec: {deviceSelector: {pool: gpus, device: mps0}, taint: {key: drain, value: now, effect: NoExecute}}
"""


def gpus(count: int, **more: Any) -> str:
    selector = {"cel": {"expression": "device.driver == 'gpu.example.com'"}}
    request = {"name": "r", "exactly": {"deviceClassName": "any", "count": count, "selectors": [selector], **more}}
    spec = {"devices": {"requests": [request]}}
    claim = {"apiVersion": "resource.k8s.io/v1", "kind": "ResourceClaim", "metadata": {"name": "c"}, "spec": spec}
    return json.dumps(claim)


ALIGNED = """
apiVersion: resource.k8s.io/v1
kind: ResourceClaim
metadata: {name: c}
spec:
  devices:
    requests:
    - name: gpu
      exactly: {deviceClassName: any, selectors: [{cel: {expression: "device.driver == 'gpu.example.com'"}}]}
    - name: nic
      exactly:
        deviceClassName: any
        selectors:
        - cel:
            expression: >-
              device.driver == 'nic.example.com' &&
              device.attributes['resource.kubernetes.io'].numaNode.includes(2)
    constraints: [{matchAttribute: resource.kubernetes.io/numaNode}]
"""
DERIVED = """
apiVersion: resource.k8s.io/v1beta1
kind: ResourceClaimTemplate
metadata: {name: t}
spec:
  spec:
    devices:
      requests:
      - name: gpu
        deviceClassName: any
        selectors: [{cel: {expression: "device.driver == 'gpu.example.com'"}}]
        derivedAttributes: [{name: a.b/numa, expression: "device.attributes['resource.kubernetes.io'].numaNode + 0"}]
      - name: nic
        deviceClassName: any
        selectors: [{cel: {expression: "device.driver == 'nic.example.com'"}}]
        derivedAttributes: [{name: a.b/numa, expression: "device.attributes['resource.kubernetes.io'].numaNode[0]"}]
      constraints: [{matchAttribute: a.b/numa}]
"""
TOLERATED = {"key": "drain", "value": "now", "effect": "NoExecute", "tolerationSeconds": 5}
GROUPS = "DRADeviceCompatibilityGroups=true"


def ask(tmp_path: Path, cluster: str, claims: str, gates: str = "") -> Any:
    (tmp_path / "cluster.yaml").write_text(cluster)
    (tmp_path / "claims.yaml").write_text(claims)
    paths = ["--claims", str(tmp_path / "claims.yaml"), "--slices", str(tmp_path / "cluster.yaml")]
    options = ["--feature-gates", gates, "--policy", "kubernetes", "-o", "json"]
    return json.loads(CliRunner().invoke(allocate, [*paths, *options], catch_exceptions=False).output)


def devices(answer: dict[str, Any]) -> list[str]:
    return [result["device"] for held in answer["allocations"] for result in held["allocation"]["devices"]["results"]]


@pytest.mark.parametrize(
    ("cluster", "claims", "gates", "wanted"),
    [
        (OLD, HALVES, "", ["half-0", "half-1"]),
        (OLD, WHOLE, "DRADeviceTaintRules=false", ["whole"]),
        (OLD, EITHER, "", ["half-0"]),
        (OLD, EITHER, "DRADeviceTaintRules=false", ["whole"]),
        (OLD, POD.replace("RESOURCE", "example.com/gpu"), "", ["half-0"]),
        (OLD, POD.replace("RESOURCE", "deviceclass.resource.kubernetes.io/gpu"), "", ["half-0"]),
        (OLD, POD.replace("RESOURCE", "example.com/other"), "", []),
        (NEW, ALIGNED, GROUPS, ["mig0", "nic1"]),
        (NEW, gpus(2), GROUPS, ["mig0", "mps0"]),
        (NEW, DERIVED, f"{GROUPS},DRADerivedAttributes=true", ["vgpu0", "nic0"]),
        (NEW + DRAIN, gpus(2, tolerations=[TOLERATED]), GROUPS, ["mig0", "mps0"]),
    ],
)
def test_devices_are_found(tmp_path: Path, cluster: str, claims: str, gates: str, wanted: list[str]) -> None:
    answer = ask(tmp_path, cluster, claims, gates)
    assert (answer["outcome"], devices(answer)) == ("allocated", wanted)


@pytest.mark.parametrize(
    ("cluster", "claims", "gates", "words"),
    [
        (OLD, HALVES.replace("      tolerations:", "#"), "", "2 match, 1 tainted"),
        (OLD, WHOLE, "", "1 match, 1 tainted"),
        (OLD + "---" + HELD, HALVES, "", "2 match, 1 in use"),
        (OLD + "---" + HELD, WHOLE, "DRADeviceTaintRules=false", "under the shared counters"),
        (NEW, ALIGNED, "", "3 with counters that need the feature DRADeviceCompatibilityGroups"),
        (
            NEW,
            gpus(1),
            "DRAPartitionableDevices=false",
            "3 with counters that need the feature DRAPartitionableDevices",
        ),
        (NEW, gpus(3), GROUPS, "under the shared counters and the compatibility groups"),
        (NEW, ALIGNED, f"{GROUPS},DRAListTypeAttributes=false", "undeclared reference to 'includes'"),
        (NEW, DERIVED, GROUPS, "the feature DRADerivedAttributes is off"),
        (NEW + DRAIN, gpus(2), GROUPS, "under the shared counters"),
        (NEW + DRAIN, gpus(3), GROUPS, "3 match, 1 tainted"),
    ],
)
def test_refusals_say_what_is_in_the_way(tmp_path: Path, cluster: str, claims: str, gates: str, words: str) -> None:
    answer = ask(tmp_path, cluster, claims, gates)
    assert devices(answer) == []
    assert words in answer["refusals"][0]["message"]
