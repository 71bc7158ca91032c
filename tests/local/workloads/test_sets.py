"""StatefulSets, DaemonSets and disruption budgets."""

from __future__ import annotations

from typing import Any

import pytest

from capstan import kube
from capstan.api.resources import PODS

pytestmark = pytest.mark.anyio

SELECTOR = {"matchLabels": {"app": "web"}}


def running(house: Any) -> list[str]:
    return sorted(p.metadata.name for p in house.pods.objects.values() if house.is_ready(p))


async def stateful(house: Any, template: Any, replicas: int = 3, **spec: Any) -> None:
    content = {"replicas": replicas, "serviceName": "web", "selector": SELECTOR, "template": template(), **spec}
    await house.create("StatefulSet", "web", spec=content)


async def test_stateful_pods_start_in_order_each_after_the_one_before(house: Any, template: Any) -> None:
    house.running = False
    await stateful(house, template)
    await house.until(lambda: house.created == ["web-0"])
    await house.bind("web-0")
    await house.set_phase("web-0", "Running")
    await house.until(lambda: house.created == ["web-0", "web-1"])
    pod = await house.get("Pod", "web-1")
    assert pod["spec"]["hostname"] == "web-1" and pod["spec"]["subdomain"] == "web"
    assert pod["metadata"]["labels"]["statefulset.kubernetes.io/pod-name"] == "web-1"
    assert pod["metadata"]["labels"]["apps.kubernetes.io/pod-index"] == "1"


async def test_parallel_pods_start_together(house: Any, template: Any) -> None:
    house.running = False
    await stateful(house, template, podManagementPolicy="Parallel")
    await house.until(lambda: sorted(house.created) == ["web-0", "web-1", "web-2"])


async def test_scaling_down_takes_the_highest_first(house: Any, template: Any) -> None:
    await stateful(house, template)
    await house.status("StatefulSet", "web", readyReplicas=3)
    await house.patch("StatefulSet", "web", {"spec": {"replicas": 1}})
    await house.status("StatefulSet", "web", replicas=1)
    await house.until(lambda: house.deleted == ["web-2", "web-1"])


async def test_an_update_goes_from_the_highest_down_to_the_partition(house: Any, template: Any) -> None:
    await stateful(house, template, updateStrategy={"type": "RollingUpdate", "rollingUpdate": {"partition": 1}})
    before = await house.status("StatefulSet", "web", readyReplicas=3, updatedReplicas=3)
    await house.patch("StatefulSet", "web", {"spec": {"template": template("app:2")}})
    after = await house.status("StatefulSet", "web", readyReplicas=3, updatedReplicas=2)
    await house.until(lambda: house.deleted == ["web-2", "web-1"])
    assert before["status"]["currentRevision"] == after["status"]["currentRevision"]
    assert after["status"]["updateRevision"] != after["status"]["currentRevision"]
    await house.delete("Pod", "web-0")
    await house.until(lambda: len(house.deleted) == 3)
    await house.status("StatefulSet", "web", readyReplicas=3)
    assert (await house.get("Pod", "web-0"))["spec"]["containers"][0]["image"] == "app:1"
    await house.patch("StatefulSet", "web", {"spec": {"updateStrategy": {"rollingUpdate": {"partition": 0}}}})
    done = await house.status("StatefulSet", "web", readyReplicas=3, updatedReplicas=3)
    assert done["status"]["currentRevision"] == done["status"]["updateRevision"]


async def test_volume_claims_are_made_and_outlive_the_pods(house: Any, template: Any) -> None:
    claim = {
        "metadata": {"name": "data"},
        "spec": {"accessModes": ["ReadWriteOnce"], "resources": {"requests": {"storage": "1Gi"}}},
    }
    await stateful(house, template, 1, volumeClaimTemplates=[claim])
    await house.status("StatefulSet", "web", readyReplicas=1)
    volumes = (await house.get("Pod", "web-0"))["spec"]["volumes"]
    assert {"name": "data", "persistentVolumeClaim": {"claimName": "data-web-0"}} in volumes
    await house.patch("StatefulSet", "web", {"spec": {"replicas": 0}})
    await house.until(lambda: house.deleted)
    assert await house.names("PersistentVolumeClaim") == ["data-web-0"]
    assert (await house.get("PersistentVolumeClaim", "data-web-0"))["status"]["phase"] == "Pending"


async def node(house: Any, name: str, taints: list[dict[str, str]] | None = None, **labels: str) -> None:
    await house.add_node(name, metadata={"labels": labels}, spec={"taints": taints or []})


async def test_a_daemon_runs_on_every_node_that_takes_it(house: Any, template: Any) -> None:
    await node(house, "n1", disk="ssd")
    await node(house, "n2", disk="ssd", taints=[{"key": "gpu", "effect": "NoSchedule", "value": "x"}])
    await node(house, "n3")
    spec = {"selector": SELECTOR, "template": template(nodeSelector={"disk": "ssd"})}
    await house.create("DaemonSet", "agent", spec=spec)
    await house.status("DaemonSet", "agent", desiredNumberScheduled=1, numberReady=1, numberAvailable=1)
    await node(house, "n4", disk="ssd")
    await house.status("DaemonSet", "agent", desiredNumberScheduled=2, numberReady=2, updatedNumberScheduled=2)
    assert sorted(p.spec.node_name for p in house.pods.objects.values()) == ["n1", "n4"]
    await house.patch("Node", "n4", {"metadata": {"labels": {"disk": None}}})
    await house.status("DaemonSet", "agent", desiredNumberScheduled=1, numberReady=1, numberMisscheduled=0)


async def test_a_daemon_is_replaced_one_node_at_a_time(house: Any, template: Any) -> None:
    for name in ("n2", "n3"):
        await node(house, name)
    await house.create("DaemonSet", "agent", spec={"selector": SELECTOR, "template": template()})
    await house.status("DaemonSet", "agent", numberReady=3)
    house.fewest_ready = 10**9
    await house.patch("DaemonSet", "agent", {"spec": {"template": template("app:2")}})
    await house.status("DaemonSet", "agent", updatedNumberScheduled=3, numberAvailable=3, observedGeneration=2)
    await house.until(lambda: len(house.created) == 6)
    assert house.fewest_ready == 2


async def budget(house: Any, template: Any, replicas: int, **bounds: Any) -> None:
    await house.create("PodDisruptionBudget", "web", spec={"selector": SELECTOR, **bounds})
    await house.create("ReplicaSet", "web", spec={"replicas": replicas, "selector": SELECTOR, "template": template()})


@pytest.mark.parametrize(
    ("bounds", "allowed", "healthy"),
    [({"minAvailable": 3}, 1, 3), ({"maxUnavailable": "50%"}, 2, 2), ({"minAvailable": "30%"}, 2, 2)],
)
async def test_a_budget_counts_what_may_go(
    house: Any, template: Any, bounds: dict[str, Any], allowed: int, healthy: int
) -> None:
    await budget(house, template, 4, **bounds)
    found = await house.status("PodDisruptionBudget", "web", disruptionsAllowed=allowed, currentHealthy=4)
    assert (found["status"]["desiredHealthy"], found["status"]["expectedPods"]) == (healthy, 4)


async def test_evictions_spend_the_budget(house: Any, template: Any) -> None:
    await budget(house, template, 2, minAvailable=2)
    await house.status("PodDisruptionBudget", "web", currentHealthy=2, expectedPods=2)
    name = running(house)[0]
    body = {"apiVersion": "policy/v1", "kind": "Eviction", "metadata": {"name": name, "namespace": "default"}}
    with pytest.raises(kube.TooManyRequests):
        await house.client.post(PODS, name, "default", "eviction", body)
    await house.patch("PodDisruptionBudget", "web", {"spec": {"minAvailable": 1}})
    await house.status("PodDisruptionBudget", "web", disruptionsAllowed=1)
    await house.client.post(PODS, name, "default", "eviction", body)
    await house.until(lambda: name in house.deleted)
    await house.status("PodDisruptionBudget", "web", disruptionsAllowed=1, currentHealthy=2)
