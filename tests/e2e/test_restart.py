"""`kill -9` of the whole platform: nothing acknowledged is lost, no device is held twice, and work goes on."""

import asyncio
from collections import Counter

import pytest

from capstan import kube
from capstan.api import resources

pytestmark = pytest.mark.kubectl


async def write_until_killed(platform, seconds):
    """Create ConfigMaps from four writers; kill the platform in the middle; returns the acknowledged names."""
    acknowledged = []
    client = kube.Client(kube.from_kubeconfig(platform.kubeconfig))

    async def write(writer):
        number = 0
        while True:
            name = f"w{writer}-{number}"
            try:
                await client.create(
                    resources.CONFIG_MAPS, {"metadata": {"name": name}, "data": {"n": str(number)}}, "default"
                )
            except kube.ApiError:
                return
            acknowledged.append(name)
            number += 1

    writers = [asyncio.create_task(write(writer)) for writer in range(4)]
    await asyncio.sleep(seconds)
    platform.kill()
    await asyncio.gather(*writers)
    await client.close()
    return acknowledged


def test_acknowledged_writes_survive_a_kill_in_the_middle_of_writes(fresh):
    fresh.start()
    acknowledged = asyncio.run(write_until_killed(fresh, 1.5))
    assert len(acknowledged) > 50
    fresh.start()
    found = {item["metadata"]["name"] for item in fresh.items("configmaps", "-n", "default")}
    assert set(acknowledged) <= found
    assert fresh.stop() == 0


CLAIMANT = """
apiVersion: v1
kind: Pod
metadata: {{name: claimant-{number}, namespace: default, labels: {{app: claimant}}}}
spec:
  terminationGracePeriodSeconds: 0
  containers:
    - name: main
      image: ubuntu:22.04
      command: [bash, -c, "nvidia-smi -L; sleep infinity"]
      resources: {{claims: [{{name: gpu}}]}}
  resourceClaims: [{{name: gpu, resourceClaimTemplateName: one-gpu}}]
---
"""
TEMPLATE = """
apiVersion: resource.k8s.io/v1
kind: ResourceClaimTemplate
metadata: {name: one-gpu, namespace: default}
spec: {spec: {devices: {requests: [{name: gpu, exactly: {deviceClassName: gpu.nvidia.com}}]}}}
---
"""


def held(platform):
    return Counter(
        (result["pool"], result["device"])
        for claim in platform.items("resourceclaims", "-n", "default")
        for result in claim.get("status", {}).get("allocation", {}).get("devices", {}).get("results", [])
    )


@pytest.mark.parametrize("delay", [0.1, 0.4, 0.9])
def test_no_device_is_held_twice_after_a_kill_in_the_middle_of_prepares(fresh, delay):
    fresh.start()
    pods = "".join(CLAIMANT.format(number=number) for number in range(8))
    fresh.kubectl("apply", "-f", "-", stdin=TEMPLATE + pods)
    asyncio.run(asyncio.sleep(delay))
    fresh.kill()
    fresh.start()
    fresh.until(lambda: Counter(fresh.phases("default").values()) == {"Running": 8}, "all eight pods run in the end")
    devices = held(fresh)
    assert len(devices) == 8
    assert max(devices.values()) == 1
    seen = [line for n in range(8) for line in fresh.kubectl("logs", f"claimant-{n}").splitlines() if "GPU 0" in line]
    assert len(set(seen)) == 8, "each pod sees a GPU of its own"
    fresh.kubectl("delete", "pods", "--all", "-n", "default")
    fresh.until(lambda: not held(fresh), "every device is given back")


def test_a_second_platform_on_the_same_directory_is_refused(fresh):
    fresh.start()
    again = fresh.capstan("up", "--data-dir", str(fresh.data_dir), "--port", "0", check=False)
    assert again.returncode != 0
    assert "--data-dir" in again.stderr


def test_a_stop_is_clean_and_a_restart_resumes(fresh):
    fresh.start()
    kubeconfig = fresh.kubeconfig.read_text()
    fresh.kubectl("create", "configmap", "kept", "--from-literal=a=1")
    assert fresh.stop() == 0
    fresh.start()
    assert fresh.get("configmap", "kept")["data"] == {"a": "1"}
    assert fresh.kubeconfig.stat().st_mode & 0o777 == 0o600
    token = [line for line in kubeconfig.splitlines() if "token:" in line]
    assert token == [line for line in fresh.kubeconfig.read_text().splitlines() if "token:" in line]
