"""Single rules of the engine, one small cluster each."""

from __future__ import annotations

import json
import math
import sys
from decimal import Decimal
from pathlib import Path

import msgspec
import pytest

from capstan.api import clock
from capstan.api.core import Namespace, Node, Pod
from capstan.api.scheduling import Queue, RuntimeClass, Topology
from capstan.scheduling import Policy, World, cycle, explain
from capstan.scheduling.fair_share import Claimant, divide
from capstan.scheduling.shapes import InvalidShare, effective_requests, gpu_share, mig_slices

sys.path.insert(0, str(Path(__file__).parent))
from clusters import START, gang, node, pod, queue, world

POLICY = Policy()


def places(made: World, policy: Policy = POLICY, now: float = START) -> dict[str, str]:
    return {bind.pod: bind.node for bind in cycle(made, policy, now).binds}


def verdict(made: World, policy: Policy = POLICY) -> tuple[str, str]:
    (only,) = cycle(made, policy, START).verdicts
    return only.reason, only.message


# -- fair shares


def shares(total: int, *claimants: Claimant) -> list[int]:
    divide(total, claimants)
    return [claimant.fair for claimant in claimants]


def claimant(name: str, quota: int, request: int, weight: float = 1, **rest: int) -> Claimant:
    return Claimant(name, rest.get("priority", 100), ord(name), quota, rest.get("limit", -1), weight, request)


def test_deserved_comes_before_over_quota() -> None:
    assert shares(10, claimant("a", 6, 10), claimant("b", 2, 10)) == [7, 3]


def test_over_quota_follows_weights_within_a_priority() -> None:
    assert shares(12, claimant("a", 0, 100, weight=3), claimant("b", 0, 100, weight=1)) == [9, 3]
    assert shares(12, claimant("a", 0, 100, priority=200), claimant("b", 0, 100, weight=9)) == [12, 0]


def test_what_a_queue_cannot_use_goes_to_the_others() -> None:
    assert shares(12, claimant("a", 0, 2), claimant("b", 0, 100), claimant("c", 0, 100, limit=3)) == [2, 7, 3]


def test_a_weight_of_zero_gets_no_over_quota() -> None:
    assert shares(12, claimant("a", 2, 100, weight=0), claimant("b", 2, 5)) == [2, 5]


def test_no_level_hands_out_more_than_it_has() -> None:
    given = shares(10, claimant("a", 8, 8), claimant("b", 8, 8), claimant("c", 4, 4))
    assert given == [4, 4, 2]
    assert shares(10, claimant("a", -1, 30), claimant("b", -1, 10)) == [5, 5]


# -- shapes


def test_init_containers_raise_the_request_and_sidecars_add_to_it() -> None:
    body = {
        "metadata": {"name": "p"},
        "spec": {
            "initContainers": [
                {"name": "big", "resources": {"requests": {"cpu": "4"}}},
                {"name": "side", "restartPolicy": "Always", "resources": {"requests": {"cpu": "1"}}},
            ],
            "containers": [{"name": "main", "resources": {"requests": {"cpu": "2"}}}],
            "overhead": {"cpu": "100m"},
        },
    }
    assert effective_requests(msgspec.convert(body, Pod))["cpu"] == Decimal("4.1")


@pytest.mark.parametrize(
    "notes",
    [
        {"gpu-fraction": "1.5"},
        {"gpu-fraction": "0"},
        {"gpu-fraction": "nan"},
        {"gpu-memory": "-3"},
        {"gpu-fraction": "0.5", "gpu-memory": "10"},
        {"gpu-fraction-num-devices": "2"},
    ],
)
def test_contradictory_shares_are_refused(notes: dict[str, str]) -> None:
    with pytest.raises(InvalidShare):
        gpu_share(notes, 0)  # type: ignore[arg-type]


def test_mig_counts_its_compute_slices() -> None:
    assert mig_slices("nvidia.com/mig-2g.10gb") == 2
    assert mig_slices("nvidia.com/gpu") == 0


# -- gates and verdicts


def test_a_gang_starts_as_a_whole_or_not_at_all() -> None:
    made = world(node("n0", gpus=3), queue("top"), queue("a", "top"), gang("g", "a", minimum=4))
    for i in range(4):
        made.upsert(pod(f"g-{i}", "g", gpus=1))
    reason, message = verdict(made)
    assert reason == "PodSchedulingErrors"
    assert "needs 4 pods at once, room was found for 3" in message
    assert "1 nodes: insufficient GPUs" in message or "has room" in message or "fits all of it together" in message
    made.upsert(node("n1", gpus=1))
    assert len(places(made)) == 4


def test_a_queue_is_as_good_as_its_parent_is_now() -> None:
    made = world(node("n0"), queue("a", "top"), queue("b"), gang("g", "a"), pod("p", "g"))
    made.upsert(gang("other", "b"))
    made.upsert(pod("other", "other"))
    assert places(made) == {"other": "n0"}, "the rest goes on"
    made.upsert(queue("top"))
    assert places(made) == {"p": "n0"}
    made.delete("Queue", "", "top")
    made.upsert(gang("late", "a"))
    made.upsert(pod("late", "late"))
    assert places(made) == {}
    assert made.queue_status()["a"].error == "its parent queue top does not exist"


def test_the_limit_of_an_ancestor_holds() -> None:
    made = world(node("n0"), queue("top", limit=1), queue("a", "top"), gang("g", "a"), pod("p", "g", gpus=2))
    assert verdict(made) == ("OverLimit", "needs 2 GPUs, 1 left of the limit 1 of queue top")


def test_non_preemptible_gangs_stay_within_the_quota() -> None:
    made = world(
        node("n0"), queue("top"), queue("a", "top", quota=1), gang("g", "a", priority="build"), pod("p", "g", gpus=2)
    )
    reason, message = verdict(made)
    assert reason == "NonPreemptibleOverQuota"
    assert "1 left of the quota 1 of queue a for jobs" in message


def test_the_message_of_a_hopeless_reclaim_has_both_numbers() -> None:
    made = world(node("n0", gpus=4), queue("top"), queue("a", "top", quota=2), queue("b", "top", quota=2))
    for i in range(4):
        made.upsert(gang(f"b{i}", "b", rank=i))
        made.upsert(pod(f"b{i}-0", f"b{i}", gpus=1, on="n0", rank=i))
    made.upsert(gang("g", "a", minimum=2, rank=9))
    for i in range(2):
        made.upsert(pod(f"g-{i}", "g", gpus=2, rank=9))
    _, message = verdict(made)
    assert "needs 4 GPUs" in message


# -- bad input stays with its object


@pytest.mark.parametrize(
    ("queues", "words"),
    [
        ([queue("a", "nobody")], "its parent queue nobody does not exist"),
        ([queue("a", "b"), queue("b", "a")], "its chain of parents is a circle: a, b, a"),
        ([queue("a", quota=-5)], "gpu.quota is -5"),
        ([queue("a", limit=math.nan)], "gpu.limit is nan"),
        ([], "queue a does not exist"),
    ],
)
def test_a_broken_queue_stops_only_its_own_gangs(queues: list[Queue], words: str) -> None:
    made = world(node("n0"), *queues, queue("fine"), gang("bad", "a"), gang("good", "fine"))
    made.upsert(pod("bad-0", "bad", gpus=1))
    made.upsert(pod("good-0", "good", gpus=1))
    plan = cycle(made, POLICY, START)
    assert [bind.pod for bind in plan.binds] == ["good-0"]
    assert plan.verdicts[0].reason == "QueueDoesNotExist"
    assert words in plan.verdicts[0].message


def test_a_wrong_share_stops_only_its_own_gang() -> None:
    made = world(node("n0"), queue("a"), gang("bad", "a"), gang("good", "a"))
    made.upsert(pod("bad-0", "bad", fraction="1.5"))
    made.upsert(pod("good-0", "good", fraction="0.5"))
    plan = cycle(made, POLICY, START)
    assert [bind.pod for bind in plan.binds] == ["good-0"]
    assert "gpu-fraction is '1.5'" in plan.verdicts[0].message


def test_contradictory_subgroups_are_named() -> None:
    made = world(node("n0"), queue("a"))
    made.upsert(gang("g", "a", subgroups=[{"name": "x", "parent": "y"}, {"name": "y", "parent": "x"}]))
    made.upsert(pod("g-0", "g", subgroup="x"))
    reason, message = verdict(made)
    assert reason == "InvalidPodGroup"
    assert "below itself" in message


def test_a_pod_of_an_unknown_pod_group_says_so() -> None:
    made = world(node("n0"), queue("a"), pod("p", "nobody"))
    assert verdict(made) == ("InvalidPodGroup", "its PodGroup default/nobody does not exist")


def test_a_pod_that_is_a_gang_of_its_own_waits_silently_for_the_grouper() -> None:
    made = world(node("n0"), queue("a"), pod("p", "pg-p-p-p"), pod("gone", "pg-gone-p-gone"))
    made.delete("Pod", "default", "gone")
    assert cycle(made, POLICY, START).verdicts == []
    made.upsert(gang("pg-gone-p-gone", "a"))
    made.upsert(gang("pg-p-p-p", "a"))
    assert places(made) == {"p": "n0"}


def test_a_gang_without_a_queue_says_so() -> None:
    made = world(node("n0"), gang("g", ""), pod("p", "g"))
    assert verdict(made) == ("QueueDoesNotExist", "no queue is given")


def test_an_unknown_resource_is_named() -> None:
    container = {"name": "main", "resources": {"requests": {"example.com/tpu": 1}}}
    made = world(node("n0"), queue("a"), gang("g", "a"), pod("p", "g", containers=[container]))
    _, message = verdict(made)
    assert message == "no node offers example.com/tpu (1 node: offers no example.com/tpu)"


# -- nodes


def test_taints_selectors_and_cordons_keep_pods_away() -> None:
    made = world(queue("a"), gang("g", "a"))
    tainted = {"metadata": {"name": "n1"}, "spec": {"taints": [{"key": "k", "effect": "NoSchedule"}]}}
    cordoned = {"metadata": {"name": "n2"}, "spec": {"unschedulable": True}}
    for body in (tainted, cordoned):
        body["status"] = {
            "allocatable": {"cpu": 8, "memory": "8Gi", "pods": 10},
            "conditions": [{"type": "Ready", "status": "True"}],
        }
        made.upsert(msgspec.convert(body, Node))
    made.upsert(node("n3", labels={"zone": "x"}))
    made.upsert(pod("g-0", "g", nodeSelector={"zone": "y"}))
    (only,) = cycle(made, POLICY, START).verdicts
    assert only.nodes == {"node is cordoned": 1, "node selector does not match": 1, "untolerated taint k": 1}


def test_a_runtime_class_brings_its_nodes_and_overhead() -> None:
    body = {
        "metadata": {"name": "kata"},
        "overhead": {"podFixed": {"cpu": "2"}},
        "scheduling": {"nodeSelector": {"kata": "yes"}},
    }
    made = world(node("n0"), node("n1", cpu=2, labels={"kata": "yes"}), queue("a"), gang("g", "a"))
    made.upsert(pod("g-0", "g", runtimeClassName="kata"))
    made.upsert(msgspec.convert(body, RuntimeClass))
    assert places(made) == {}
    made.upsert(node("n2", cpu=3, labels={"kata": "yes"}))
    assert places(made) == {"g-0": "n2"}


@pytest.mark.parametrize(
    ("policy", "zones"),
    [("restricted", {"a": 2, "b": 6}), ("best-effort", {"b": 6, "a": 2}), ("single-numa-node", None), ("none", {})],
)
def test_numa_policies(policy: str, zones: dict[str, int] | None) -> None:
    report = {"policy": policy, "zones": {"a": {"cpu": "6"}, "b": {"cpu": "6"}}}
    body = {
        "metadata": {"name": "n0", "annotations": {"platform.capstan.dev/numa": json.dumps(report)}},
        "status": {
            "allocatable": {"cpu": 12, "memory": "64Gi", "pods": 10},
            "conditions": [{"type": "Ready", "status": "True"}],
        },
    }
    amounts = {"cpu": 8, "memory": "1Gi"}
    container = {"name": "main", "resources": {"requests": amounts, "limits": amounts}}
    made = world(msgspec.convert(body, Node), queue("a"), gang("g", "a"), gang("h", "a", rank=1))
    held = pod("h-0", "h", on="n0", cpu=4)
    held.metadata.annotations["platform.capstan.dev/numa"] = '{"a": {"cpu": "4"}}'
    made.upsert(held)
    made.upsert(pod("g-0", "g", containers=[container]))
    binds = cycle(made, POLICY, START).binds
    assert [{zone: amount // 1000 for zone, _, amount in bind.zones} for bind in binds] == (
        [zones] if zones is not None else []
    )


def test_a_pod_keeps_its_place_only_with_its_numa_zone() -> None:
    """Consolidation may put pods into other zones of their node, but then they have to end for that."""
    report = {"policy": "single-numa-node", "zones": {name: {"cpu": "4"} for name in "ab"}}
    body = {
        "metadata": {"name": "n0", "annotations": {"platform.capstan.dev/numa": json.dumps(report)}},
        "status": {
            "allocatable": {"cpu": 12, "memory": "64Gi", "pods": 10},
            "conditions": [{"type": "Ready", "status": "True"}],
        },
    }
    amounts = {"cpu": 3, "memory": "1Gi"}
    container = {"name": "main", "resources": {"requests": amounts, "limits": amounts}}
    made = world(msgspec.convert(body, Node), queue("a"))
    for name, zone in (("old-0", "a"), ("old-1", "b")):
        made.upsert(gang(name, "a", rank=1))
        held = pod(name, name, on="n0", containers=[container])
        held.metadata.annotations["platform.capstan.dev/numa"] = json.dumps({zone: {"cpu": "3"}})
        made.upsert(held)
    made.upsert(gang("next", "a"))  # it comes first, were all to be placed anew
    made.upsert(pod("next", "next", containers=[container]))
    plan = cycle(made, POLICY, START)
    assert (plan.binds, plan.promises, plan.evictions) == ([], [], [])
    assert [verdict.group for verdict in plan.verdicts] == ["next"]


def test_anti_affinity_spreads_a_gang_over_hosts() -> None:
    term = {"topologyKey": "kubernetes.io/hostname", "labelSelector": {}}
    affinity = {"podAntiAffinity": {"requiredDuringSchedulingIgnoredDuringExecution": [term]}}
    made = world(node("n0"), node("n1"), queue("a"), gang("g", "a", minimum=2))
    for i in range(2):
        made.upsert(pod(f"g-{i}", "g", affinity=affinity))
    assert sorted(places(made).values()) == ["n0", "n1"]


def test_a_namespace_selector_reaches_pods_of_namespaces_with_these_labels() -> None:
    term = {
        "labelSelector": {"matchLabels": {"app": "noisy"}},
        "namespaceSelector": {"matchLabels": {"loud": "yes"}},
        "topologyKey": "kubernetes.io/hostname",
    }
    apart = {"podAntiAffinity": {"requiredDuringSchedulingIgnoredDuringExecution": [term]}}

    def neighbour(name: str, namespace: str, on: str) -> Pod:
        meta = {"name": name, "namespace": namespace, "uid": name, "labels": {"app": "noisy"}}
        body = {"metadata": meta, "spec": {"nodeName": on, "schedulerName": "other"}, "status": {"phase": "Running"}}
        return msgspec.convert(body, Pod)

    made = world(
        node("n0"),
        node("n1"),
        queue("top"),
        queue("q", "top"),
        gang("g", "q"),
        neighbour("a", "disco", "n0"),
        neighbour("b", "library", "n1"),
        pod("p", "g", affinity=apart),
    )
    for name, loud in (("disco", "yes"), ("library", "no")):
        made.upsert(msgspec.convert({"metadata": {"name": name, "labels": {"loud": loud}}}, Namespace))
    assert places(made) == {"p": "n1"}


def test_terminating_pods_do_not_count_for_topology_spread() -> None:
    rule = {
        "maxSkew": 1,
        "topologyKey": "kubernetes.io/hostname",
        "whenUnsatisfiable": "DoNotSchedule",
        "labelSelector": {"matchLabels": {"kai.scheduler/subgroup-name": "a"}},
    }
    ending = pod("old", "g", subgroup="a", on="n0")
    meta = msgspec.structs.replace(ending.metadata, deletion_timestamp=clock.render(START))
    made = world(
        node("n0"),
        node("n1", cpu=0),
        queue("top"),
        queue("q", "top"),
        gang("g", "q", subgroups=[{"name": "a", "minMember": 1}]),
        msgspec.structs.replace(ending, metadata=meta),
        pod("new", "g", subgroup="a", topologySpreadConstraints=[rule]),
    )
    assert places(made) == {"new": "n0"}


def test_host_ports_are_not_shared() -> None:
    ports = [{"containerPort": 80, "hostPort": 80}]
    container = {"name": "main", "ports": ports, "resources": {"requests": {"cpu": 1}}}
    made = world(node("n0"), queue("a"), gang("g", "a"))
    for i in range(2):
        made.upsert(pod(f"g-{i}", "g", containers=[container]))
    assert len(places(made)) == 1


def test_a_pod_that_waits_for_its_node_is_counted_when_the_node_comes() -> None:
    made = world(queue("a"), gang("g", "a"), pod("g-0", "g", gpus=3, on="n0"))
    made.upsert(node("n0"))
    made.upsert(gang("h", "a"))
    made.upsert(pod("h-0", "h", gpus=2))
    assert places(made) == {}
    made.delete("Pod", "default", "g-0")
    assert places(made) == {"h-0": "n0"}


def test_a_node_that_disappears_takes_its_room_with_it() -> None:
    made = world(node("n0"), node("n1", gpus=1), queue("a"), gang("g", "a"), pod("g-0", "g", gpus=2))
    made.delete("Node", "", "n0")
    assert places(made) == {}


# -- pods of the default scheduler


def test_pods_without_group_and_queue_run_without_quota() -> None:
    policy = Policy(scheduler_names=frozenset({"kai-scheduler", "default-scheduler"}))
    made = World(policy=policy)
    made.upsert(node("n0"))
    made.upsert(queue("a", quota=0, limit=0))
    made.upsert(pod("lonely", "", gpus=4, schedulerName="default-scheduler"))
    made.upsert(pod("grouped-later", "", gpus=1))
    assert places(made, policy) == {"lonely": "n0"}


# -- times


def test_a_gang_below_its_minimum_is_ended_after_its_grace() -> None:
    made = world(node("n0"), queue("a"), gang("g", "a", minimum=2), pod("g-0", "g", gpus=1, on="n0"))
    (stamp,) = cycle(made, POLICY, START).stamps
    assert stamp.annotation == "kai.scheduler/stale-podgroup-timestamp"
    rest = "the rest of it ends in 60 s unless it is complete again"
    assert stamp.news == f"runs below its minimum: needs 2 pods, 1 runs; {rest}"
    assert cycle(made, POLICY, START + 59).evictions == []
    (eviction,) = cycle(made, POLICY, START + 61).evictions
    assert eviction.action == "evict-stale"
    assert cycle(made, POLICY, START + 62).evictions == []


def test_since_when_a_gang_is_below_its_minimum_stays_written_on_its_pod_group() -> None:
    group = gang("g", "a", minimum=2)
    made = world(node("n0"), queue("a"), group, pod("g-0", "g", gpus=1, on="n0"))
    (stamp,) = cycle(made, POLICY, START).stamps
    notes = {stamp.annotation: stamp.value or ""}
    stamped = msgspec.structs.replace(group, metadata=msgspec.structs.replace(group.metadata, annotations=notes))
    made.upsert(stamped)
    assert cycle(made, POLICY, START + 1).stamps == [], "what was written is true"
    made.upsert(pod("g-1", "g", gpus=1, on="n0"))
    assert [(s.annotation, s.value) for s in cycle(made, POLICY, START + 2).stamps] == [(stamp.annotation, None)]


def test_a_clock_that_jumps_back_harms_nothing() -> None:
    made = world(node("n0"), queue("a"), gang("g", "a", minimum=2), pod("g-0", "g", gpus=1, on="n0"))
    cycle(made, POLICY, START)
    assert cycle(made, POLICY, START - 10_000).evictions == []


def test_minimum_run_time_protects_from_preemption() -> None:
    protected = msgspec.structs.replace(queue("a"), spec=msgspec.structs.replace(queue("a").spec))
    protected.spec.preempt_min_runtime = "10m"
    made = world(node("n0", gpus=1), protected, gang("low", "a"), pod("low-0", "low", gpus=1))
    plan = cycle(made, POLICY, START)
    assert [stamp.annotation for stamp in plan.stamps] == ["kai.scheduler/last-start-timestamp"]
    made.upsert(gang("high", "a", priority="inference", rank=1))
    made.upsert(pod("high-0", "high", gpus=1, rank=1))
    assert cycle(made, POLICY, START + 60).evictions == []
    assert [e.pod for e in cycle(made, POLICY, START + 601).evictions] == ["low-0"]


# -- explain


def test_explain_tells_the_tree_and_every_node() -> None:
    made = world(node("n0", gpus=1), queue("top"), queue("a", "top"), gang("g", "a"), pod("g-0", "g", gpus=2))
    plan = cycle(made, POLICY, START)
    told = explain(made, "default", "g-0", tuple(plan.verdicts))
    assert told is not None
    assert told.queue_path == ("top", "a")
    assert told.nodes == {"n0": "has less than 2 GPUs"}
    assert told.verdict == plan.verdicts[0]
    assert explain(made, "default", "nobody") is None


@pytest.mark.parametrize(
    ("constraint", "words"),
    [
        ({"topology": "nowhere", "requiredTopologyLevel": "rack"}, "topology nowhere does not exist"),
        ({"topology": "t", "requiredTopologyLevel": "shelf"}, "no level shelf"),
        (
            {"topology": "t", "requiredTopologyLevel": "rack", "preferredTopologyLevel": "zone"},
            "lies above the required level",
        ),
    ],
)
def test_a_contradictory_topology_stops_only_its_own_gang(constraint: dict[str, str], words: str) -> None:
    levels = {"levels": [{"nodeLabel": "zone"}, {"nodeLabel": "rack"}]}
    made = world(
        node("n0", labels={"zone": "z", "rack": "r"}),
        queue("top"),
        queue("q", "top"),
        gang("wrong", "q", topologyConstraint=constraint),
        gang("right", "q", rank=1),
        pod("w", "wrong"),
        pod("r", "right"),
    )
    made.upsert(msgspec.convert({"metadata": {"name": "t"}, "spec": levels}, Topology))
    plan = cycle(made, POLICY, START)
    assert [bind.pod for bind in plan.binds] == ["r"]
    assert (plan.verdicts[0].reason, words in plan.verdicts[0].message) == ("InvalidTopology", True)


@pytest.mark.parametrize("level", ["rack", "example.com/rack"])
def test_a_level_of_a_topology_is_named_by_its_label_or_its_alias(level: str) -> None:
    levels = {"levels": [{"nodeLabel": "example.com/rack", "alias": "rack"}, {"nodeLabel": "kubernetes.io/hostname"}]}
    racks = {"n0": "a", "n1": "b", "n2": "b"}
    made = world(
        *(node(name, gpus=1, labels={"example.com/rack": rack}) for name, rack in racks.items()),
        queue("top"),
        queue("q", "top"),
        gang("g", "q", minimum=2, topologyConstraint={"topology": "t", "requiredTopologyLevel": level}),
        pod("p0", "g", gpus=1),
        pod("p1", "g", gpus=1),
    )
    made.upsert(msgspec.convert({"metadata": {"name": "t"}, "spec": levels}, Topology))
    assert set(places(made).values()) == {"n1", "n2"}


def test_a_gang_that_names_an_unknown_queue_says_so_and_starts_when_the_queue_comes() -> None:
    made = world(node("n0"), queue("top"), gang("g", "late"), pod("p", "g"))
    assert verdict(made) == ("QueueDoesNotExist", "queue late does not exist")
    made.upsert(queue("late", "top"))
    assert places(made) == {"p": "n0"}


def test_a_parent_that_vanishes_stops_what_is_below_it_until_it_returns() -> None:
    made = world(node("n0"), queue("top"), queue("q", "top"), gang("g", "q"), pod("p", "g"))
    made.delete("Queue", "", "top")
    assert "its parent queue top does not exist" in verdict(made)[1]
    made.upsert(queue("top"))
    assert places(made) == {"p": "n0"}


def test_a_node_that_disappears_between_decision_and_binding_gives_the_pod_another() -> None:
    made = world(node("n0"), node("n1"), queue("top"), queue("q", "top"), gang("g", "q"), pod("p", "g", gpus=1))
    [bind] = cycle(made, POLICY, START).binds
    made.delete("Node", "", bind.node)
    made.forget(bind.uid)  # what the controller does when the binding is refused
    [again] = cycle(made, POLICY, START + 1).binds
    assert {bind.node, again.node} == {"n0", "n1"}


def test_a_pod_belongs_to_the_group_that_it_names_now_and_to_no_other() -> None:
    made = world(
        node("n0"),
        queue("top"),
        queue("q", "top"),
        gang("one", "q", minimum=2),
        gang("two", "q"),
        pod("a", "one"),
        pod("b", "one"),
    )
    made.upsert(pod("b", "two"))
    plan = cycle(made, POLICY, START)
    assert [(bind.pod, bind.group) for bind in plan.binds] == [("b", "two")]
    assert [(v.group, v.reason) for v in plan.verdicts] == [("one", "NotReady")]
