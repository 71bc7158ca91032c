"""NVIDIA's demo manifests, unmodified, mean what their authors meant."""

from collections import Counter

import pytest

pytestmark = pytest.mark.kubectl


@pytest.fixture
def applied(dgx, inputs):
    """Apply a file of ../shared/inputs/dra and delete its namespace afterwards."""
    namespaces = []

    def apply(name, namespace):
        namespaces.append(namespace)
        dgx.kubectl("apply", "-f", str(inputs / "dra" / name))
        return dgx

    yield apply
    for namespace in namespaces:
        dgx.gone(namespace)


def all_running(cluster, namespace, count):
    return cluster.until(
        lambda: Counter(cluster.phases(namespace).values()) == {"Running": count}, f"{count} pods run in {namespace}"
    )


def test_gpu_test1_two_pods_get_two_gpus(applied):
    cluster = applied("gpu-test1.yaml", "gpu-test1")
    all_running(cluster, "gpu-test1", 2)
    held = cluster.devices("gpu-test1")
    assert len({device for devices in held.values() for device in devices}) == 2
    logs = [cluster.kubectl("logs", "-n", "gpu-test1", pod) for pod in ("pod1", "pod2")]
    assert all(log.startswith("GPU 0: NVIDIA") for log in logs)
    assert logs[0] != logs[1]


def test_gpu_test2_two_containers_share_one_claim(applied):
    cluster = applied("gpu-test2.yaml", "gpu-test2")
    all_running(cluster, "gpu-test2", 1)
    containers = [c["name"] for c in cluster.items("pods", "-n", "gpu-test2")[0]["spec"]["containers"]]
    logs = {cluster.kubectl("logs", "-n", "gpu-test2", "pod", "-c", name) for name in containers}
    assert len(containers) == 2
    assert len(logs) == 1
    assert logs.pop().startswith("GPU 0: ")


def test_gpu_test3_two_pods_share_a_claim_that_is_freed_after_both(applied):
    cluster = applied("gpu-test3.yaml", "gpu-test3")
    all_running(cluster, "gpu-test3", 2)
    (claim,) = cluster.items("resourceclaims", "-n", "gpu-test3")
    assert {user["name"] for user in claim["status"]["reservedFor"]} == {"pod1", "pod2"}
    assert len(claim["status"]["allocation"]["devices"]["results"]) == 1
    cluster.kubectl("delete", "pods", "--all", "-n", "gpu-test3", "--grace-period=1")
    cluster.until(
        lambda: "allocation" not in cluster.items("resourceclaims", "-n", "gpu-test3")[0].get("status", {}),
        "the shared claim is deallocated after its last user",
    )


def test_gpu_test4_four_pods_hold_four_slices_of_one_parent_each(applied):
    cluster = applied("gpu-test4.yaml", "gpu-test4")
    all_running(cluster, "gpu-test4", 4)
    slices = {
        (s["spec"]["pool"]["name"], d["name"]): d
        for s in cluster.items("resourceslices")
        for d in s["spec"].get("devices", [])
    }
    taken = []
    for devices in cluster.devices("gpu-test4").values():
        described = [slices[device]["attributes"] for device in devices]
        assert sorted(d["profile"]["string"] for d in described) == ["1g.5gb", "1g.5gb", "2g.10gb", "3g.20gb"]
        assert len({d["parentUUID"]["string"] for d in described}) == 1
        taken += [(device[0], slices[device]) for device in devices]
    used = Counter(
        (pool, use["counterSet"], counter)
        for pool, device in taken
        for use in device["consumesCounters"]
        for counter in use["counters"]
        if counter.startswith("memory-slice-")
    )
    assert max(used.values()) == 1, "no memory slice is held twice"
    pod = cluster.items("pods", "-n", "gpu-test4")[0]["metadata"]["name"]
    assert "MIG 3g.20gb" in cluster.kubectl("logs", "-n", "gpu-test4", pod, "-c", "ctr3")


def test_gpu_test6_selects_by_product_and_index_and_applies_time_slicing(applied):
    cluster = applied("gpu-test6.yaml", "gpu-test6")
    all_running(cluster, "gpu-test6", 4)
    slices = {
        (s["spec"]["pool"]["name"], d["name"]): d["attributes"]
        for s in cluster.items("resourceslices")
        for d in s["spec"].get("devices", [])
    }
    devices = [device for held in cluster.devices("gpu-test6").values() for device in held]
    assert len(set(devices)) == 4
    assert {slices[device]["index"]["int"] for device in devices} <= {0, 2, 4, 6}
    assert all("A100" in slices[device]["productName"]["string"] for device in devices)


def test_gpu_test7_speaks_v1beta1_and_gets_a_gpu_for_each_container(applied):
    cluster = applied("gpu-test7.yaml", "gpu-test7")
    all_running(cluster, "gpu-test7", 1)
    assert len(set(cluster.devices("gpu-test7")["gpu-pod"])) == 2
    logs = {cluster.kubectl("logs", "-n", "gpu-test7", "gpu-pod", "-c", name) for name in ("ctr0", "ctr1")}
    assert len(logs) == 2
    (template,) = cluster.items("resourceclaimtemplates.v1.resource.k8s.io", "-n", "gpu-test7")
    assert template["spec"]["spec"]["devices"]["requests"][0]["exactly"]["deviceClassName"] == "gpu.nvidia.com"


def test_gpu_test8_two_gpus_in_one_container(applied):
    cluster = applied("gpu-test8.yaml", "gpu-test8")
    all_running(cluster, "gpu-test8", 1)
    pod = cluster.items("pods", "-n", "gpu-test8")[0]["metadata"]["name"]
    assert cluster.kubectl("logs", "-n", "gpu-test8", pod).count("GPU ") == 2


def test_gpu_full_makes_a_claim_for_the_extended_resource(applied):
    cluster = applied("extended-resources/gpu-full.yaml", "extended-resource-gpu-full")
    namespace = "extended-resource-gpu-full"
    pod = cluster.until(
        lambda: next((p for p in cluster.items("pods", "-n", namespace) if p["status"]["phase"] == "Succeeded"), None),
        "the sample ran to its end",
    )
    made = pod["status"]["extendedResourceClaimStatus"]
    assert made["requestMappings"] == [
        {
            "containerName": "cuda-container",
            "requestName": "container-0-request-0",
            "resourceName": "nvidia.com/gpu",
        }
    ]
    assert made["resourceClaimName"].startswith("gpu-full-pod-extended-resources-")


def test_imex_test1_names_a_class_that_does_not_exist(dgx, inputs):
    dgx.kubectl("apply", "-f", str(inputs / "dra" / "imex-test1.yaml"))
    namespaces = {p["metadata"]["namespace"] for p in dgx.items("pods", "-A") if "imex" in p["metadata"]["namespace"]}
    try:
        waiting = dgx.until(
            lambda: [
                c["message"]
                for p in dgx.items("pods", "-A")
                if p["metadata"]["namespace"] in namespaces
                for c in p["status"].get("conditions", [])
                if c["type"] == "PodScheduled" and c["status"] == "False" and "imex.nvidia.com" in c.get("message", "")
            ],
            "the refusal names the missing class",
        )
        assert waiting
    finally:
        for namespace in namespaces:
            dgx.gone(namespace)
