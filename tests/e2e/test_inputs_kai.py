"""KAI's example manifests, unmodified, mean what their authors meant."""

import json
from collections import Counter

import pytest

pytestmark = pytest.mark.kubectl

CRDS = ("queues", "podgroups", "bindrequests", "topologies", "schedulingshards", "configs")


@pytest.fixture
def applied(dgx, inputs):
    """Apply files of ../shared/inputs/kai into the default namespace and take them back afterwards."""
    files = []

    def apply(*names):
        for name in names:
            files.append(name)
            dgx.kubectl("apply", "-f", str(inputs / "kai" / name))
        return dgx

    yield apply
    for name in reversed(files):
        if "queue" not in name:
            dgx.kubectl("delete", "--ignore-not-found", "--wait=false", "-f", str(inputs / "kai" / name))
    dgx.kubectl("delete", "pods", "--all", "-n", "default", "--grace-period=1", "--wait=false")
    dgx.until(lambda: not dgx.items("pods", "-n", "default"), "the pods of the example are gone")


def test_the_crds_are_served_with_their_schemas(fresh, inputs):
    """On a platform of its own: KAI's Queue takes the place of ours, which has more fields."""
    fresh.start()
    for file in sorted((inputs / "kai" / "crds").glob("*.yaml")):
        fresh.kubectl("apply", "--server-side", "--force-conflicts", "-f", str(file))
    listed = fresh.kubectl("api-resources", "-o", "name")
    for name in CRDS:
        assert any(line.startswith(f"{name}.") for line in listed.splitlines()), name
    explained = fresh.kubectl("explain", "queues.spec.resources.gpu")
    assert "overQuotaWeight" in explained
    wrong = {
        "apiVersion": "scheduling.run.ai/v2",
        "kind": "Queue",
        "metadata": {"name": "wrong"},
        "spec": {"resources": {"gpu": {"quota": "many"}}},
    }
    refused = fresh.try_kubectl("apply", "-f", "-", stdin=json.dumps(wrong))
    assert refused.returncode != 0
    assert "spec.resources.gpu.quota" in refused.stderr


def test_default_queues(applied):
    cluster = applied("default-queues.yaml")
    assert cluster.get("queue", "default-queue")["spec"]["parentQueue"] == "default-parent-queue"


def test_gpu_pod_runs_on_a_gpu(applied):
    cluster = applied("default-queues.yaml", "gpu-pod.yaml")
    cluster.until(lambda: cluster.phases("default").get("gpu-pod") == "Running", "gpu-pod runs")
    assert len(cluster.devices("default")["gpu-pod"]) == 1
    pod = cluster.get("pod", "gpu-pod", "-n", "default")
    group = cluster.get("podgroup", pod["metadata"]["annotations"]["pod-group-name"], "-n", "default")
    assert group["spec"]["queue"] == "default-queue"


def test_cpu_only_pod_runs_without_a_claim(applied):
    cluster = applied("default-queues.yaml", "cpu-only-pod.yaml")
    cluster.until(lambda: cluster.phases("default").get("cpu-only-pod") == "Running", "cpu-only-pod runs")
    assert "cpu-only-pod" not in cluster.devices("default")


def test_batch_job_is_one_gang(applied):
    cluster = applied("default-queues.yaml", "batch-job.yaml")
    pods = cluster.until(
        lambda: [p for p in cluster.items("pods", "-n", "default") if p["status"]["phase"] != "Pending"],
        "the job's pods start",
    )
    assert len({p["metadata"]["annotations"]["pod-group-name"] for p in pods}) == 1


def test_batch_job_min_member_starts_with_two_of_six(applied):
    cluster = applied("default-queues.yaml", "batch-job-min-member.yaml")
    cluster.until(lambda: Counter(cluster.phases("default").values()) == {"Running": 6}, "all six fit and run")
    (group,) = {p["metadata"]["annotations"]["pod-group-name"] for p in cluster.items("pods", "-n", "default")}
    assert cluster.get("podgroup", group, "-n", "default")["spec"]["minMember"] == 2


def test_external_podgroup_job_joins_the_group_its_user_made(applied):
    cluster = applied("default-queues.yaml", "external-podgroup-job.yaml")
    cluster.until(lambda: Counter(cluster.phases("default").values()) == {"Running": 2}, "both workers run")
    groups = [g["metadata"]["name"] for g in cluster.items("podgroups", "-n", "default")]
    assert groups == ["external-batch-job"]


@pytest.mark.parametrize(
    ("file", "container", "quota"),
    [
        ("gpu-sharing", "gpu-workload", "500m"),
        ("gpu-sharing-with-mps", "gpu-workload", "500m"),
        ("gpu-sharing-non-default-container", "gpu-workload", "500m"),
        ("gpu-memory", "gpu-workload", "90m"),  # 2000 of the 23034 MiB of an L4, in whole percents
    ],
)
def test_a_share_of_a_gpu_is_given_to_its_container_and_counted(applied, file, container, quota):
    cluster = applied("default-queues.yaml", f"{file}.yaml")
    (pod,) = cluster.until(
        lambda: [p for p in cluster.items("pods", "-n", "default") if p["spec"].get("nodeName")], "the pod has a node"
    )
    assert pod["spec"]["nodeName"].startswith("l4x4")
    (mapping,) = pod["status"]["extendedResourceClaimStatus"]["requestMappings"]
    assert mapping["containerName"] == container
    name = pod["metadata"]["name"]
    cluster.until(lambda: "NVIDIA L4" in cluster.kubectl("logs", name, "-c", container), "nvidia-smi sees the GPU")

    def allocated():
        return cluster.get("queue", "default-queue")["status"]["allocated"]["nvidia.com/gpu"]

    cluster.until(lambda: allocated() == quota, f"the queue is charged {quota}")
    cluster.kubectl("delete", "pod", name, "-n", "default", "--grace-period=0", "--force")
    cluster.until(
        lambda: allocated() == "0" and not cluster.items("resourceclaims", "-n", "default"), "all is given back"
    )


def test_multi_topology_jobs_stay_in_their_rack_and_zone(applied, inputs):
    cluster = applied("default-queues.yaml")
    labels = {"dgx-a100-0": ("r0", "z0"), "dgx-a100-1": ("r1", "z0"), "l4x4-0": ("r1", "z0")}
    for node, (rack, zone) in labels.items():
        both = (f"topology.test/rack-domain={rack}", f"topology.test/zone-domain={zone}")
        cluster.kubectl("label", "node", node, "--overwrite", *both)
    # As upstream, but for one GPU a pod: theirs are for a larger cluster.
    jobs = (inputs / "kai" / "multi-topology-jobs.yaml").read_text().replace('"4"', '"1"')
    cluster.kubectl("apply", "-f", "-", stdin=jobs)
    try:
        cluster.until(lambda: Counter(cluster.phases("default").values()) == {"Running": 6}, "both jobs run")
        racks = {
            labels[pod["spec"]["nodeName"]][0]
            for pod in cluster.items("pods", "-n", "default", "-l", "kai.scheduler/subgroup-name=rack-workers")
        }
        assert len(racks) == 1
    finally:
        cluster.kubectl("delete", "--wait=false", "-f", "-", stdin=jobs)


def test_build_priority_preempts_train_priority(one_gpu, inputs):
    for name in ("limited-queue.yaml", "train-priority-pod.yaml"):
        one_gpu.kubectl("apply", "-f", str(inputs / "kai" / name))
    one_gpu.until(lambda: one_gpu.phases("default").get("train-pod") == "Running", "train-pod runs first")
    one_gpu.kubectl("apply", "-f", str(inputs / "kai" / "build-priority-pod.yaml"))
    one_gpu.until(
        lambda: one_gpu.get("pod", "train-pod", "-n", "default")["metadata"].get("deletionTimestamp"),
        "train-pod is told to go",
    )
    one_gpu.kubectl("delete", "pod", "train-pod", "-n", "default", "--grace-period=1", "--wait=false")
    one_gpu.until(lambda: one_gpu.phases("default").get("build-pod") == "Running", "build-pod runs")
    assert one_gpu.phases("default").get("train-pod") != "Running"
    events = {e["reason"] for e in one_gpu.items("events", "-n", "default")}
    assert "Preempted" in events
