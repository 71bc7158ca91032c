"""Volumes: which nodes a pod's claims allow, and what is bound or made for claims that wait for a consumer."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import msgspec
import pytest

from capstan.api.core import PersistentVolume, PersistentVolumeClaim
from capstan.api.storage import StorageClass
from capstan.scheduling import Bind, Policy, World, cycle

sys.path.insert(0, str(Path(__file__).parent))
from clusters import START, gang, node, pod, queue, world

MADE = {"metadata": {"name": "fast"}, "provisioner": "csi.example", "volumeBindingMode": "WaitForFirstConsumer"}
LOCAL = {**MADE, "metadata": {"name": "local"}, "provisioner": "kubernetes.io/no-provisioner"}


def storage_class(body: dict[str, Any], **more: Any) -> StorageClass:
    return msgspec.convert({**body, **more}, StorageClass)


def claim(name: str, storage: str = "fast", size: str = "10Gi", **more: Any) -> PersistentVolumeClaim:
    meta = {"name": name, "namespace": "default", "uid": f"c-{name}", "annotations": more.pop("annotations", {})}
    spec = {
        "storageClassName": storage,
        "accessModes": ["ReadWriteOnce"],
        "resources": {"requests": {"storage": size}},
        **more,
    }
    return msgspec.convert({"metadata": meta, "spec": spec}, PersistentVolumeClaim)


def volume(name: str, on: str = "", size: str = "10Gi", labels: dict[str, str] | None = None, **more: Any) -> Any:
    spec: dict[str, Any] = {
        "storageClassName": "local",
        "accessModes": ["ReadWriteOnce"],
        "capacity": {"storage": size},
        **more,
    }
    if on:
        wanted = {"key": "kubernetes.io/hostname", "operator": "In", "values": [on]}
        spec["nodeAffinity"] = {"required": {"nodeSelectorTerms": [{"matchExpressions": [wanted]}]}}
    return msgspec.convert({"metadata": {"name": name, "labels": labels or {}}, "spec": spec}, PersistentVolume)


def user(name: str, *claims: str) -> Any:
    volumes = [{"name": c, "persistentVolumeClaim": {"claimName": c}} for c in claims]
    return pod(name, "g", volumes=volumes)


def cluster(*objects: Any, minimum: int = 1) -> World:
    return world(
        node("n0", labels={"topology.kubernetes.io/zone": "a"}),
        node("n1", labels={"topology.kubernetes.io/zone": "b"}),
        queue("top"),
        queue("q", "top"),
        gang("g", "q", minimum=minimum),
        *objects,
    )


def binds(made: World) -> list[Bind]:
    return cycle(made, Policy(), START).binds


def refusal(made: World) -> str:
    plan = cycle(made, Policy(), START)
    assert not plan.binds
    return " ".join(plan.verdicts[0].nodes)


def test_a_claim_that_waits_for_its_consumer_has_its_volume_made_on_the_chosen_node() -> None:
    [bind] = binds(cluster(storage_class(MADE), claim("data"), user("p", "data")))
    assert bind.volumes == ((("default", "data"), ""),)


def test_allowed_topologies_choose_the_nodes() -> None:
    terms = [{"matchLabelExpressions": [{"key": "topology.kubernetes.io/zone", "values": ["b"]}]}]
    [bind] = binds(cluster(storage_class(MADE, allowedTopologies=terms), claim("data"), user("p", "data")))
    assert bind.node == "n1"


def test_a_node_that_was_selected_before_is_kept() -> None:
    notes = {"volume.kubernetes.io/selected-node": "n1"}
    [bind] = binds(cluster(storage_class(MADE), claim("data", annotations=notes), user("p", "data")))
    assert bind.node == "n1"


def test_the_smallest_free_volume_that_suits_is_taken() -> None:
    volumes = [volume("small", "n1", "5Gi"), volume("large", "n1", "90Gi"), volume("right", "n1", "12Gi")]
    taken = volume("taken", "n0", "11Gi", claimRef={"namespace": "default", "name": "other"})
    [bind] = binds(cluster(storage_class(LOCAL), *volumes, taken, claim("data", "local"), user("p", "data")))
    assert (bind.node, bind.volumes) == ("n1", ((("default", "data"), "right"),))


def test_two_pods_of_one_gang_never_take_one_volume() -> None:
    made = cluster(
        storage_class(LOCAL),
        volume("one", "n1"),
        volume("two", "n0"),
        *(claim(f"data-{i}", "local") for i in range(2)),
        *(user(f"p{i}", f"data-{i}") for i in range(2)),
        minimum=2,
    )
    assert sorted(bind.volumes[0][1] for bind in binds(made)) == ["one", "two"]


def test_a_gang_whose_volumes_do_not_suffice_does_not_start_in_part() -> None:
    claims = [claim(f"data-{i}", "local") for i in range(2)]
    users = [user(f"p{i}", f"data-{i}") for i in range(2)]
    assert "no free volume" in refusal(cluster(storage_class(LOCAL), volume("one", "n1"), *claims, *users, minimum=2))


def test_a_bound_volume_ties_the_pod_to_its_zone() -> None:
    bound = volume("v", labels={"topology.kubernetes.io/zone": "b__c"})
    [bind] = binds(cluster(bound, claim("data", volumeName="v"), user("p", "data")))
    assert (bind.node, bind.volumes) == ("n1", ())


def test_a_read_write_once_pod_claim_serves_one_pod() -> None:
    shared = claim("data", accessModes=["ReadWriteOncePod"], volumeName="v")
    made = cluster(volume("v"), shared, user("p0", "data"), user("p1", "data"))
    assert len(binds(made)) == 1


@pytest.mark.parametrize(
    ("objects", "words"),
    [
        ([], "persistent volume claim data does not exist"),
        ([claim("data", "none")], "its storage class none does not exist"),
        ([storage_class({**MADE, "volumeBindingMode": "Immediate"}), claim("data")], "is not bound yet"),
        ([storage_class(LOCAL), claim("data", "local"), volume("v", "n0", "1Gi")], "no free volume of class local"),
    ],
)
def test_the_verdict_says_what_is_wrong_with_a_claim(objects: list[Any], words: str) -> None:
    assert words in refusal(cluster(*objects, user("p", "data")))


def test_a_volume_that_was_promised_is_free_again_when_the_bind_fails() -> None:
    made = cluster(storage_class(LOCAL), volume("v", "n1"), claim("data", "local"), user("p", "data"))
    [bind] = binds(made)
    made.forget(bind.uid)
    assert binds(made) == [bind]


def test_a_claim_that_cannot_be_had_says_nothing_about_other_claims() -> None:
    """Both pods are alike but for their claims; victims are found for the one whose volume can be reached."""
    made = cluster(
        storage_class(LOCAL),
        volume("v1", "n1"),
        claim("nowhere", "local", volumeName="far"),
        volume("far", "n9"),
        claim("here", "local", volumeName="v1"),
        queue("rich", "top", quota=8),
        gang("first", "rich", rank=1),
        gang("second", "rich", rank=2),
        gang("old", "q"),
        pod("old-0", "old", gpus=4, on="n0"),
        pod("old-1", "old", gpus=4, on="n1"),
    )
    made.upsert(queue("q", "top", quota=0))
    for name, wanted in (("first", "nowhere"), ("second", "here")):
        body = [{"name": "v", "persistentVolumeClaim": {"claimName": wanted}}]
        made.upsert(pod(name, name, gpus=4, volumes=body))
    plan = cycle(made, Policy(), START)
    assert [(eviction.pod, eviction.node) for eviction in plan.evictions] == [("old-1", "n1")]
    assert [promise.pod for promise in plan.promises] == ["second"]
