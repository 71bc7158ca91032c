"""Pods with volumes: where the volume is, and with a volume that is made where they go."""

import json

import pytest

pytestmark = pytest.mark.kubectl
STORAGE = """
apiVersion: storage.k8s.io/v1
kind: StorageClass
metadata: {name: local}
provisioner: kubernetes.io/no-provisioner
volumeBindingMode: WaitForFirstConsumer
---
apiVersion: storage.k8s.io/v1
kind: StorageClass
metadata: {name: csi}
provisioner: csi.example.com
volumeBindingMode: WaitForFirstConsumer
---
apiVersion: v1
kind: PersistentVolume
metadata: {name: in-zone-b}
spec:
  storageClassName: local
  capacity: {storage: 10Gi}
  accessModes: [ReadWriteOnce]
  local: {path: /data}
  nodeAffinity:
    required:
      nodeSelectorTerms:
        - matchExpressions: [{key: topology.kubernetes.io/zone, operator: In, values: [b]}]
"""


def claim(name, storage_class, mode="ReadWriteOnce"):
    spec = {"storageClassName": storage_class, "accessModes": [mode], "resources": {"requests": {"storage": "5Gi"}}}
    return {"apiVersion": "v1", "kind": "PersistentVolumeClaim", "metadata": {"name": name}, "spec": spec}


def pod(name, claim_name):
    container = {"name": "main", "image": "busybox", "command": ["sleep", "3600"]}
    return {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"name": name, "labels": {"kai.scheduler/queue": "default-queue"}},
        "spec": {
            "schedulerName": "kai-scheduler",
            "terminationGracePeriodSeconds": 0,
            "containers": [container],
            "volumes": [{"name": "data", "persistentVolumeClaim": {"claimName": claim_name}}],
        },
    }


def test_pods_go_where_their_volumes_are_and_get_those_that_are_made(pair):
    pair.start()
    for node, zone in (("l4x4-0", "a"), ("l4x4-1", "b")):
        pair.until(lambda node=node: pair.try_kubectl("get", "node", node).returncode == 0, f"{node} is there")
        pair.kubectl("label", "node", node, f"topology.kubernetes.io/zone={zone}")
    pair.kubectl("apply", "-f", "-", stdin=STORAGE)
    claims = [claim("zonal", "local"), claim("second", "local"), claim("made", "csi", "ReadWriteOncePod")]
    pods = [pod("zonal", "zonal"), pod("writer", "made")]
    pair.kubectl("create", "-f", "-", stdin=json.dumps({"apiVersion": "v1", "kind": "List", "items": claims + pods}))
    pair.until(lambda: pair.phases("default") == {"zonal": "Running", "writer": "Running"}, "both run")
    assert pair.get("pod", "zonal", "-n", "default")["spec"]["nodeName"] == "l4x4-1"
    assert pair.get("pvc", "zonal", "-n", "default")["spec"]["volumeName"] == "in-zone-b"
    made = pair.get("pvc", "made", "-n", "default")
    assert made["status"]["phase"] == "Bound"
    assert pair.get("pv", made["spec"]["volumeName"])["spec"]["csi"]["driver"] == "csi.example.com"

    late = [pod("homeless", "second"), pod("reader", "made")]
    pair.kubectl("create", "-f", "-", stdin=json.dumps({"apiVersion": "v1", "kind": "List", "items": late}))

    def told(name):
        return pair.capstan("explain", name, check=False).stdout

    pair.until(lambda: "no free volume of class local suits claim second" in told("homeless"), "homeless is told")
    pair.until(lambda: "claim made is ReadWriteOncePod and pod writer uses it" in told("reader"), "reader is told")
    pair.kubectl("delete", "pod", "writer", "-n", "default")
    pair.until(lambda: pair.phases("default").get("reader") == "Running", "the reader follows the writer")
