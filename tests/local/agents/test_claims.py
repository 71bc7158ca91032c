"""Resource claims are prepared and given back as the kubelet does it, whatever the plugin does."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from capstan.api.resources import PODS, RESOURCE_CLAIMS, RESOURCE_SLICES

pytestmark = pytest.mark.anyio

DRIVER = "test.example.com"
SHOW = ("sh", "-c", "nvidia-smi -L; trap 'exit 0' TERM; sleep 9999 & wait")


async def run(house: Any, name: str, *claims: str, use: bool = True, **spec: Any) -> dict[str, Any]:
    uses = [{"name": c, "resourceClaimName": c} for c in claims]
    resources = {"resources": {"claims": [{"name": c} for c in claims]}} if use else {}
    found: dict[str, Any] = await house.run(name, *SHOW, container=resources, resourceClaims=uses, **spec)
    return found


async def test_a_plugin_is_registered_and_told_so(house: Any) -> None:
    await house.until(lambda: house.plugin.registered)
    assert house.plugin.registered == [(True, "")]


@pytest.mark.parametrize(
    ("change", "error"),
    [({"type": "CSIPlugin"}, "is not DRAPlugin"), ({"supported_versions": ["v9.DRAPlugin"]}, "none of v1.DRAPlugin")],
)
async def test_a_plugin_of_another_kind_is_refused_and_told_why(house: Any, change: dict[str, Any], error: str) -> None:
    await house.until(lambda: house.plugin.registered)
    await house.plugin.stop()
    house.plugin.info |= change
    house.plugin.registered.clear()
    await house.plugin.start()
    await house.until(lambda: house.plugin.registered)
    accepted, message = house.plugin.registered[0]
    assert not accepted and error in message


async def test_devices_get_into_the_container_that_asks_for_them(house: Any) -> None:
    await house.claim("one")
    pod = await run(house, "p", "one")
    await house.reach("p", "Running")
    assert await house.logs("p") == ["GPU 0: Test GPU (UUID: GPU-one)"]
    record = house.fleet.agents["node-0"].container_record(pod["metadata"]["uid"], "main")
    assert record["process"]["env"] == ["COMMON=1", "CLAIM=one"]
    assert record["linux"]["devices"] == [{"path": "/dev/test0"}]


async def test_a_container_that_does_not_ask_sees_nothing(house: Any) -> None:
    await house.claim("one")
    await run(house, "p", "one", use=False)
    await house.reach("p", "Running")
    assert await house.logs("p") == ["nvidia-smi: not found"]
    assert house.plugin.calls == [("prepare", "one")]


async def test_claims_of_a_pod_go_to_the_plugin_together_and_come_back(house: Any) -> None:
    await house.claim("one")
    await house.claim("two")
    await run(house, "p", "one", "two")
    await house.reach("p", "Running")
    assert sorted(house.plugin.calls) == [("prepare", "one"), ("prepare", "two")]
    assert len(house.checkpoint()) == 2
    await house.client.delete(PODS, "p", "default")
    await house.gone("p")
    assert not house.plugin.prepared and house.checkpoint() == []


@pytest.mark.parametrize(("skipped", "calls"), [(["*"], []), (["NodeUnprepareResources"], [("prepare", "one")])])
async def test_a_plugin_is_not_called_for_what_its_devices_do_not_need(house: Any, skipped: Any, calls: Any) -> None:
    await house.claim("one", skipNodeOperations=skipped)
    await run(house, "p", "one")
    await house.reach("p", "Running")
    await house.client.delete(PODS, "p", "default")
    await house.gone("p")
    assert house.plugin.calls == calls and house.checkpoint() == []


async def test_a_shared_claim_is_prepared_once_and_given_back_with_its_last_pod(house: Any) -> None:
    await house.claim("one")
    for name in ("p", "q"):
        await run(house, name, "one")
    for name in ("p", "q"):
        await house.reach(name, "Running")
    assert house.plugin.calls == [("prepare", "one")]
    await house.client.delete(PODS, "p", "default")
    await house.gone("p")
    assert house.plugin.prepared
    await house.client.delete(PODS, "q", "default")
    await house.gone("q")
    assert house.plugin.calls == [("prepare", "one"), ("unprepare", "one")]


async def test_a_finished_pod_gives_its_claims_back_while_it_still_exists(house: Any) -> None:
    await house.claim("one")
    uses = [{"name": "one", "resourceClaimName": "one"}]
    await house.run("p", "true", resourceClaims=uses)
    await house.reach("p", "Succeeded")
    assert house.plugin.calls == [("prepare", "one"), ("unprepare", "one")]


async def test_a_refusal_is_an_event_and_is_tried_again(house: Any) -> None:
    house.plugin.error = "the device is on fire"
    await house.claim("one")
    await run(house, "p", "one")

    async def told() -> bool:
        return any(
            "the device is on fire" in message for message in await house.events("FailedPrepareDynamicResources")
        )

    await house.until(told)
    pod = await house.pod("p")
    assert pod["status"]["phase"] == "Pending"
    assert pod["status"]["containerStatuses"][0]["state"]["waiting"]["reason"] == "ContainerCreating"
    house.plugin.error = ""
    await house.reach("p", "Running")


async def test_a_claim_left_out_of_the_answer_is_an_error(house: Any) -> None:
    house.plugin.skip = True
    await house.claim("one")
    await run(house, "p", "one")

    async def told() -> bool:
        return any("skipped claim default/one" in m for m in await house.events("FailedPrepareDynamicResources"))

    await house.until(told)
    house.plugin.skip = False
    await house.reach("p", "Running")


async def test_a_call_that_hangs_is_given_up_and_repeated(house: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("capstan.local.agents.plugins.CALL_SECONDS", 0.1)
    house.plugin.gate.clear()
    await house.claim("one")
    await run(house, "p", "one")

    async def told() -> bool:
        return any("DEADLINE_EXCEEDED" in m for m in await house.events("FailedPrepareDynamicResources"))

    await house.until(told)
    house.plugin.gate.set()
    await house.reach("p", "Running")


async def test_a_pod_waits_for_a_plugin_that_comes_later(house: Any) -> None:
    await house.plugin.stop()
    await house.claim("one")
    await run(house, "p", "one")

    async def told() -> bool:
        return any(
            "not found in the list" in m or "UNAVAILABLE" in m
            for m in await house.events("FailedPrepareDynamicResources")
        )

    await house.until(told)
    await house.plugin.start()
    await house.reach("p", "Running")


async def test_a_pod_that_the_claim_is_not_reserved_for_does_not_start(house: Any) -> None:
    await house.claim("one")
    await run(house, "p", "one", bind=False)
    patch = {"status": {"reservedFor": None}}
    await house.client.patch(RESOURCE_CLAIMS, "one", "default", patch=patch, subresource="status")
    await house.bind("p")

    async def told() -> bool:
        return any("not reserved" in message for message in await house.events("FailedPrepareDynamicResources"))

    await house.until(told)
    assert house.plugin.calls == []


async def test_a_failed_unprepare_keeps_the_pod_terminating(house: Any) -> None:
    await house.claim("one")
    await run(house, "p", "one")
    await house.reach("p", "Running")
    house.plugin.error = "still busy"
    await house.client.delete(PODS, "p", "default")

    async def told() -> bool:
        return any("still busy" in message for message in await house.events("FailedUnprepareDynamicResources"))

    await house.until(told)
    assert (await house.pod("p"))["metadata"]["deletionTimestamp"]
    house.plugin.error = ""
    house.skip(6)
    await house.gone("p")


async def test_a_namesake_of_a_force_deleted_pods_claim_waits_for_the_old_one(house: Any) -> None:
    await house.claim("one")
    await run(house, "p", "one")
    await house.reach("p", "Running")
    house.plugin.error = "still busy"
    await house.client.delete(PODS, "p", "default", grace_period=0)
    await house.client.delete(RESOURCE_CLAIMS, "one", "default")
    await house.claim("one")
    await run(house, "q", "one")

    async def told() -> bool:
        return any("different UID" in message for message in await house.events("FailedPrepareDynamicResources"))

    await house.until(told)
    house.plugin.error = ""
    await house.reach("q", "Running")
    assert house.plugin.calls[-2:] == [("unprepare", "one"), ("prepare", "one")]


async def test_claims_of_pods_that_vanished_while_the_agent_was_away_are_given_back(house: Any) -> None:
    await house.claim("one")
    await run(house, "p", "one")
    await house.reach("p", "Running")
    await house.stop_agents()
    await house.client.delete(PODS, "p", "default", grace_period=0)
    await house.start_agents()
    await house.until(lambda: not house.plugin.prepared)
    await house.until(lambda: house.checkpoint() == [])


async def test_a_kill_during_the_call_leaves_a_checkpoint_by_which_the_claim_is_given_back(house: Any) -> None:
    await house.claim("one")
    house.plugin.gate.clear()
    await run(house, "p", "one")
    await asyncio.wait_for(house.plugin.entered.wait(), 10)
    await house.stop_agents()
    house.plugin.gate.set()
    assert [claim["name"] for claim in house.checkpoint()] == ["one"]
    await house.client.delete(PODS, "p", "default", grace_period=0)
    await house.start_agents()
    await house.until(lambda: ("unprepare", "one") in house.plugin.calls and house.checkpoint() == [])


async def test_what_a_lost_driver_offered_is_withdrawn_after_a_while(house: Any) -> None:
    await house.until(lambda: house.plugin.registered)
    for name, driver in (("lost", DRIVER), ("other", "other.example.com")):
        pool = {"name": "node-0", "resourceSliceCount": 1}
        spec = {"driver": driver, "nodeName": "node-0", "pool": pool, "devices": [{"name": "dev"}]}
        await house.client.create(RESOURCE_SLICES, {"metadata": {"name": name}, "spec": spec})
    await house.plugin.stop()
    await house.until(lambda: house.fleet.agents["node-0"].plugins.lost)
    house.skip(31)

    async def withdrawn() -> bool:
        return [s.metadata.name for s in (await house.client.list(RESOURCE_SLICES)).items] == ["other"]

    await house.until(withdrawn)


async def test_extended_resources_reach_the_mapped_container_only(house: Any) -> None:
    await house.claim("made")
    pod = await house.run("p", *SHOW, bind=False)
    claim = await house.client.get(RESOURCE_CLAIMS, "made", "default")
    owner = {"apiVersion": "v1", "kind": "Pod", "name": "p", "uid": pod["metadata"]["uid"], "controller": True}
    metadata = {"ownerReferences": [owner]}
    await house.client.patch(RESOURCE_CLAIMS, "made", "default", patch={"metadata": metadata})
    await house.reserve("made", pod)
    mapping = {"containerName": "main", "resourceName": "nvidia.com/gpu", "requestName": "gpu"}
    extended = {"resourceClaimName": claim.metadata.name, "requestMappings": [mapping]}
    patch = {"status": {"extendedResourceClaimStatus": extended}}
    await house.client.patch(PODS, "p", "default", patch=patch, subresource="status")
    await house.bind("p")
    await house.reach("p", "Running")
    assert await house.logs("p") == ["GPU 0: Test GPU (UUID: GPU-made)"]
