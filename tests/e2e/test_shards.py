"""Two node pools, past use in fair shares, and leases, as a user with kubectl sees them."""

import json
import time

import pytest
from tests.e2e.conftest import ROOT

pytestmark = pytest.mark.kubectl
EXAMPLE = ROOT / "examples" / "scheduling" / "shards.yaml"
NODE = "{.spec.nodeName}"


def bound(platform, pod):
    return platform.kubectl("get", "pod", pod, "-o", f"jsonpath={NODE}")


def test_the_example_of_shards_runs_and_goes_on_after_a_kill(pair):
    pair.start()
    pair.kubectl("label", "node", "l4x4-1", "kai.scheduler/node-pool=serving")
    pair.kubectl("apply", "-f", str(EXAMPLE))
    assert pair.until(lambda: bound(pair, "model"), "the pod of the pool is bound") == "l4x4-1"
    assert pair.until(lambda: bound(pair, "trainer"), "the pod of no pool is bound") == "l4x4-0"
    rows = pair.kubectl("get", "schedulingshards").splitlines()
    assert rows[0].split()[:2] == ["NAME", "NODE"]
    assert [row.split()[0] for row in rows[1:]] == ["default", "serving"]
    assert "serving" in rows[2] and "spread" in rows[2] and "True" in rows[2]
    assert "its scheduler runs" in pair.kubectl("describe", "schedulingshard", "serving")
    assert pair.kubectl("get", "--raw", "/shards/serving/metrics").startswith("# HELP")

    leases = {item["metadata"]["name"]: item["spec"]["holderIdentity"] for item in pair.items("leases", "-n", SYSTEM)}
    assert set(leases) == {f"capstan-{name}" for name in SINGLE}
    pair.kill()
    pair.start()
    began = time.monotonic()
    pair.kubectl("run", "after", "--image=busybox", "-l", "kai.scheduler/queue=default-queue", "--overrides", KAI)
    pair.until(lambda: bound(pair, "after"), "the scheduler of the next process works")
    assert time.monotonic() - began < 10, "it did not wait for the lease of the one that was killed to run out"


SYSTEM = "capstan-system"
SINGLE = ("scheduler", "grouper", "workload-controllers", "blueprint-agent", "pool-status")
KAI = '{"spec": {"schedulerName": "kai-scheduler"}}'


def test_past_use_is_shown_by_status_and_explain(pair):
    pair.start()
    pair.kubectl("apply", "-f", str(EXAMPLE))
    pair.until(lambda: bound(pair, "trainer"), "the pod runs")
    saved = ("get", "configmap", "capstan-usage-default", "-n", SYSTEM, "-o", "name")
    time.sleep(3)  # the pod is seen within one, and holds its GPU for the rest
    pair.stop()  # saves
    pair.start()
    assert "capstan-usage-default" in pair.kubectl(*saved)
    queues = {q["name"]: q for q in json.loads(pair.capstan("status", "-o", "json").stdout)["queues"]}
    (usage,) = queues["default-queue"]["usage"]
    assert usage["shard"] == "default" and 0 < usage["parts"]["gpu"] <= 1
    assert "USED OF LATE" in pair.capstan("status").stdout
    many = {"limits": {"nvidia.com/gpu": "50"}}
    spec = {"schedulerName": "kai-scheduler", "containers": [{"name": "m", "image": "x", "resources": many}]}
    labels = {"kai.scheduler/queue": "default-queue"}
    pod = {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "large", "labels": labels}, "spec": spec}
    pair.kubectl("apply", "-f", "-", stdin=json.dumps(pod))
    group = pair.until(
        lambda: pair.get("pod", "large")["metadata"].get("annotations", {}).get("pod-group-name"), "it is grouped"
    )
    told = pair.until(
        lambda: "queue default-queue used" in pair.capstan("explain", group).stdout and pair.capstan("explain", group),
        "explain says what the queue used",
    )
    assert "in the last 7 d, older use counting half every 1 d" in " ".join(told.stdout.split())
