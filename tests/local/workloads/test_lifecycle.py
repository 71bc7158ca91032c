"""Owners and dependents, namespaces, resource claims around pods, nodes that go."""

from __future__ import annotations

from typing import Any

import pytest

from capstan.api.resources import LEASES, NODES, PODS, RESOURCE_CLAIMS, unstructured

pytestmark = pytest.mark.anyio

NAMESPACE = unstructured("", "v1", "namespaces", "Namespace", namespaced=False)
ACCOUNTS = unstructured("", "v1", "serviceaccounts", "ServiceAccount", namespaced=True)
EVENTS = unstructured("", "v1", "events", "Event", namespaced=True)
RAW_CLAIMS = unstructured("resource.k8s.io", "v1", "resourceclaims", "ResourceClaim", namespaced=True)
REQUESTS = [{"name": "gpu", "exactly": {"deviceClassName": "gpu.nvidia.com"}}]
TEMPLATE = {
    "metadata": {"labels": {"made": "by-template"}},
    "spec": {"devices": {"requests": REQUESTS}},
}


def owned_by(owner: dict[str, Any], **more: Any) -> dict[str, Any]:
    reference = {"apiVersion": owner["apiVersion"], "kind": owner["kind"]}
    reference |= {"name": owner["metadata"]["name"], "uid": owner["metadata"]["uid"], **more}
    return {"ownerReferences": [reference]}


async def absent(house: Any, kind: str, *names: str) -> None:
    async def gone() -> bool:
        return not set(names) & set(await house.names(kind))

    await house.until(gone)


async def config_map(house: Any, name: str, **metadata: Any) -> dict[str, Any]:
    created: dict[str, Any] = await house.create("ConfigMap", name, metadata=metadata)
    return created | {"apiVersion": "v1", "kind": "ConfigMap"}


async def test_dependents_go_after_their_owner_down_the_chain(house: Any) -> None:
    a = await config_map(house, "a")
    b = await config_map(house, "b", **owned_by(a))
    await config_map(house, "c", **owned_by(b))
    await config_map(house, "free")
    await house.delete("ConfigMap", "a", propagation="Background")
    await absent(house, "ConfigMap", "a", "b", "c")
    assert "free" in await house.names("ConfigMap")


async def test_an_object_of_an_absent_owner_is_collected_and_one_with_a_living_owner_is_not(house: Any) -> None:
    a, b = await config_map(house, "a"), await config_map(house, "b")
    ghost = {**a, "metadata": {"name": "ghost", "uid": "11111111-2222-3333-4444-555555555555"}}
    namesake = {**a, "metadata": {"name": "a", "uid": "99999999-2222-3333-4444-555555555555"}}
    await config_map(house, "lost", **owned_by(ghost))
    await config_map(house, "deceived", **owned_by(namesake))
    both = owned_by(a)["ownerReferences"] + owned_by(b)["ownerReferences"]
    await config_map(house, "shared", ownerReferences=both)
    await absent(house, "ConfigMap", "lost", "deceived")
    await house.delete("ConfigMap", "a", propagation="Background")

    async def trimmed() -> bool:
        references = (await house.get("ConfigMap", "shared"))["metadata"]["ownerReferences"]
        return [r["name"] for r in references] == ["b"]

    await house.until(trimmed)


async def test_foreground_deletion_waits_for_blocking_dependents(house: Any) -> None:
    a = await config_map(house, "a")
    await config_map(house, "held", finalizers=["test.dev/hold"], **owned_by(a, blockOwnerDeletion=True))
    await house.delete("ConfigMap", "a", propagation="Foreground")

    async def held() -> bool:
        return "deletionTimestamp" in (await house.get("ConfigMap", "held"))["metadata"]

    await house.until(held)
    assert (await house.get("ConfigMap", "a"))["metadata"]["finalizers"] == ["foregroundDeletion"]
    await house.patch("ConfigMap", "held", {"metadata": {"finalizers": None}})
    await absent(house, "ConfigMap", "a", "held")


async def test_orphans_stay_and_lose_their_reference(house: Any) -> None:
    a = await config_map(house, "a")
    await config_map(house, "left", **owned_by(a))
    await house.delete("ConfigMap", "a", propagation="Orphan")
    await absent(house, "ConfigMap", "a")
    assert "ownerReferences" not in (await house.get("ConfigMap", "left"))["metadata"]


async def test_a_namespace_starts_with_an_account_and_ends_with_its_content(house: Any, template: Any) -> None:
    await house.client.create(NAMESPACE, {"metadata": {"name": "team"}})

    async def account() -> bool:
        return "default" in [a["metadata"]["name"] for a in (await house.client.list(ACCOUNTS, "team")).items]

    await house.until(account)
    spec = {"replicas": 2, "selector": {"matchLabels": {"app": "web"}}, "template": template()}
    await house.create("ReplicaSet", "web", "team", spec=spec)
    await house.until(lambda: len(house.pods.objects) == 2)
    await house.create("ConfigMap", "held", "team", metadata={"finalizers": ["test.dev/hold"]})
    await house.client.delete(NAMESPACE, "team")

    async def explained() -> bool:
        found = await house.client.get(NAMESPACE, "team")
        conditions = {c["type"]: c["message"] for c in found["status"].get("conditions", [])}
        return conditions.get("NamespaceContentRemaining") == (
            "Some resources are remaining: configmaps has 1 resource instances"
        )

    await house.until(explained)
    assert (await house.client.get(NAMESPACE, "team"))["status"]["phase"] == "Terminating"
    await house.patch("ConfigMap", "held", {"metadata": {"finalizers": None}}, "team")

    async def gone() -> bool:
        return "team" not in [n["metadata"]["name"] for n in (await house.client.list(NAMESPACE)).items]

    await house.until(gone)
    assert not house.pods.objects


async def claiming_pod(house: Any, name: str = "p") -> dict[str, Any]:
    claims = [{"name": "gpu", "resourceClaimTemplateName": "one-gpu"}]
    containers = [{"name": "main", "image": "x", "resources": {"claims": [{"name": "gpu"}]}}]
    created: dict[str, Any] = await house.create(
        "Pod", name, spec={"resourceClaims": claims, "containers": containers, "restartPolicy": "Never"}
    )
    return created


async def generated(house: Any) -> dict[str, Any]:
    async def one() -> Any:
        items = (await house.client.list(RAW_CLAIMS, "default")).items
        return items[0] if items else None

    found: dict[str, Any] = await house.until(one)
    return found


async def allocate(house: Any, name: str, *pods: dict[str, Any]) -> None:
    result = {"request": "gpu", "driver": "gpu.nvidia.com", "pool": "n1", "device": "gpu-0"}
    reserved = [{"resource": "pods", "name": p["metadata"]["name"], "uid": p["metadata"]["uid"]} for p in pods]
    finalizers = ["resource.kubernetes.io/delete-protection"]
    await house.patch("ResourceClaim", name, {"metadata": {"finalizers": finalizers}})
    status = {"allocation": {"devices": {"results": [result]}}, "reservedFor": reserved}
    await house.client.patch(RESOURCE_CLAIMS, name, "default", patch={"status": status}, subresource="status")


async def test_a_claim_is_made_from_the_template_and_goes_with_the_finished_pod(house: Any) -> None:
    house.running = False
    pod = await claiming_pod(house)
    await house.create("ResourceClaimTemplate", "one-gpu", spec=TEMPLATE)
    claim = await generated(house)
    name = claim["metadata"]["name"]
    assert name.startswith("p-gpu-") and claim["metadata"]["labels"] == {"made": "by-template"}
    assert claim["metadata"]["annotations"] == {"resource.kubernetes.io/pod-claim-name": "gpu"}
    assert claim["metadata"]["ownerReferences"][0]["uid"] == pod["metadata"]["uid"]
    assert claim["spec"]["devices"]["requests"][0]["exactly"]["count"] == 1

    def told() -> bool:
        statuses = house.pods.get("p", "default").status.resource_claim_statuses
        return [(s.name, s.resource_claim_name) for s in statuses] == [("gpu", name)]

    await house.until(told)
    await allocate(house, name, pod)
    await house.bind("p")
    await house.set_phase("p", "Succeeded")
    await absent(house, "ResourceClaim", name)


async def test_a_shared_claim_is_deallocated_with_its_last_consumer(house: Any) -> None:
    house.running = False
    await house.create("ResourceClaim", "shared", spec={"devices": {"requests": REQUESTS}})
    containers = [{"name": "main", "image": "x"}]
    claims = [{"name": "gpu", "resourceClaimName": "shared"}]
    spec = {"resourceClaims": claims, "containers": containers, "restartPolicy": "Never"}
    pods = [await house.create("Pod", name, spec=spec) for name in ("p", "q")]
    await allocate(house, "shared", *pods)
    for name in ("p", "q"):
        await house.bind(name)
    await house.set_phase("p", "Failed")

    async def users() -> list[str]:
        claim = await house.get("ResourceClaim", "shared")
        return [r["name"] for r in (claim.get("status") or {}).get("reservedFor", [])]

    async def only_q() -> bool:
        return await users() == ["q"]

    await house.until(only_q)
    assert (await house.get("ResourceClaim", "shared"))["status"]["allocation"]
    await house.client.delete(PODS, "q", "default", grace_period=0)

    async def free() -> bool:
        claim = await house.get("ResourceClaim", "shared")
        return not (claim.get("status") or {}).get("allocation") and not claim["metadata"].get("finalizers")

    await house.until(free)


async def test_pods_of_a_node_that_is_gone_fail_and_are_deleted(house: Any, template: Any) -> None:
    spec = {"replicas": 1, "selector": {"matchLabels": {"app": "web"}}, "template": template()}
    await house.create("ReplicaSet", "web", spec=spec)
    await house.status("ReplicaSet", "web", readyReplicas=1)
    house.running = False
    await house.client.delete(NODES, "node-1")
    house.skip(10)
    lost = house.created[0]
    await house.until(lambda: lost in house.deleted)
    await house.until(lambda: len(house.created) == 2)


async def test_a_silent_node_becomes_unreachable_and_recovers(house: Any) -> None:
    lease = {"metadata": {"name": "n1", "namespace": "kube-node-lease"}, "spec": {"holderIdentity": "n1"}}
    await house.add_node("n1")
    ready = {"type": "Ready", "status": "True", "reason": "KubeletReady", "message": ""}
    await house.client.create(LEASES, lease)

    async def taints() -> set[str]:
        return {t["key"] for t in (await house.get("Node", "n1")).get("spec", {}).get("taints", [])}

    async def unreachable() -> bool:
        # Each look lets more time pass: the lease's own event may come late.
        house.skip(10_001)
        await house.patch("Node", "n1", {"metadata": {"labels": {"poke": str(house.now())[:10]}}})
        return "node.kubernetes.io/unreachable" in await taints()

    async def clean() -> bool:
        return not await taints()

    await house.until(clean)
    await house.until(unreachable)
    assert (await house.get("Node", "n1"))["status"]["conditions"][0]["status"] == "Unknown"
    await house.client.patch(
        LEASES, "n1", "kube-node-lease", patch={"spec": {"renewTime": "2026-01-01T00:00:00.000000Z"}}
    )
    await house.client.patch(NODES, "n1", patch={"status": {"conditions": [ready]}}, subresource="status")
    await house.until(clean)


async def test_a_missing_template_is_an_event_and_the_pod_waits(house: Any) -> None:
    await claiming_pod(house)

    async def told() -> bool:
        events = (await house.client.list(EVENTS, "default")).items
        return any(e["reason"] == "FailedResourceClaimCreation" and "'one-gpu'" in e["message"] for e in events)

    await house.until(told)
