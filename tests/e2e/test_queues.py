"""Queues by GPU product on a running platform: refused when malformed, counted by device, explained in numbers."""

import json

import pytest

pytestmark = pytest.mark.kubectl

L4 = "NVIDIA-L4"


def queue(name, resources, more=""):
    return f"""
apiVersion: scheduling.run.ai/v2
kind: Queue
metadata: {{name: {name}}}
spec: {{resources: {{cpu: {{quota: -1}}, memory: {{quota: -1}}, {resources}}}{more}}}
---
"""


def pod(name, gpus, spec=""):
    return f"""
apiVersion: v1
kind: Pod
metadata: {{name: {name}, namespace: products, labels: {{kai.scheduler/queue: products}}}}
spec:
  schedulerName: kai-scheduler
  terminationGracePeriodSeconds: 0
  containers:
    - {{name: main, image: ubuntu, command: [sleep, infinity], resources: {{limits: {{nvidia.com/gpu: {gpus}}}}}}}
  {spec}
---
"""


@pytest.mark.parametrize(
    ("resources", "more", "words"),
    [
        ("gpuTypes: {NVIDIA L4: {quota: 1}}", "", ("spec.resources.gpuTypes", "dashes for spaces")),
        ("gpuTypes: {NVIDIA-L4: {limit: -4}}", "", ("spec.resources.gpuTypes[NVIDIA-L4].limit", "-1 for unlimited")),
        ("gpu: {quota: -1, lendingLimit: 2}", "", ("spec.resources.gpu", "give a quota")),
        ("gpu: {lendingLimit: 2}", "", ("spec.resources.gpu", "give a quota")),
        ("gpu: {quota: 1}", ", userFairness: Lottery", ("spec.userFairness", "DominantShare")),
    ],
)
def test_wrong_bounds_are_refused_by_field(dgx, resources, more, words):
    done = dgx.try_kubectl("apply", "-f", "-", stdin=queue("refused", resources, more))
    assert done.returncode != 0
    for word in words:
        assert word in done.stderr


def test_a_limit_on_a_product_holds_and_is_explained(dgx):
    bounds = f"gpu: {{quota: 8}}, gpuTypes: {{{L4}: {{quota: 1, limit: 2}}, NVIDIA-Nobody: {{quota: 1}}}}"
    dgx.kubectl("create", "namespace", "products")
    try:
        dgx.kubectl("apply", "-f", "-", stdin=queue("products", bounds))
        only_l4 = f"nodeSelector: {{nvidia.com/gpu.product: {L4}}}"
        dgx.kubectl("apply", "-f", "-", stdin=pod("fits", 1, only_l4))
        dgx.until(lambda: dgx.phases("products").get("fits") == "Running", "the first pod runs")
        dgx.kubectl("apply", "-f", "-", stdin=pod("waits", 2, only_l4) + pod("elsewhere", 2))
        dgx.until(lambda: dgx.phases("products").get("elsewhere") == "Running", "other products are open to it")
        (pool, _), _ = dgx.devices("products")["elsewhere"]
        assert "a100" in pool
        told = f"needs 2 {L4} GPUs, 1 left of the limit 2 of queue products"
        dgx.until(lambda: told in dgx.capstan("explain", "pod/waits", "-n", "products").stdout, told)

        def held():
            found = json.loads(dgx.capstan("status", "-o", "json").stdout)["queues"]
            return next(entry for entry in found if entry["name"] == "products")

        expected = {"quota": 1, "allocated": 1, "requested": 3}
        dgx.until(lambda: held()["gpuTypes"][L4] == expected, "status counts the product")
        assert "no node has GPUs of the product NVIDIA-Nobody" in held()["warning"]
    finally:
        dgx.kubectl("delete", "queue", "products", "--ignore-not-found")
        dgx.gone("products")
