"""What those who wait are told, and what is shown of them."""

from __future__ import annotations

import sys
from pathlib import Path

import msgspec
import pytest

from capstan.allocation import Inventory
from capstan.api.core import Pod
from capstan.api.resource import DeviceClass
from capstan.api.scheduling import PodGroup, Topology
from capstan.scheduling import Policy, World, cycle, resources_of, standings

sys.path.insert(0, str(Path(__file__).parent))
from clusters import START, gang, node, pod, queue, world

POLICY = Policy()


def verdict(made: World) -> tuple[str, str]:
    (only,) = cycle(made, POLICY, START).verdicts
    return only.reason, only.message


# -- contradictory PodGroups

TWO = [{"name": "x", "minMember": 1}, {"name": "y", "minMember": 1}]


@pytest.mark.parametrize(
    ("group", "words"),
    [
        (
            gang("g", "a", subgroups=TWO, minimum_subgroups=1, minMember=2),
            "the pod group has minMember and minSubGroup, which exclude each other; keep one",
        ),
        (
            gang("g", "a", subgroups=[*TWO, {"name": "z", "minMember": 1, "minSubGroup": 1}]),
            "subgroup z has minMember and minSubGroup, which exclude each other; keep one",
        ),
        (
            gang("g", "a", subgroups=[*TWO, {"name": "z", "minSubGroup": 2}]),
            "subgroup z needs 2 subgroups and has none; give it minMember",
        ),
    ],
)
@pytest.mark.parametrize("subgroup", ["x", ""])
def test_a_gang_with_two_kinds_of_minimum_says_so_to_all_of_its_pods(
    group: PodGroup, words: str, subgroup: str
) -> None:
    made = world(node("n0"), queue("a"), group, pod("p", "g", subgroup=subgroup))
    assert verdict(made) == ("InvalidPodGroup", words)


def test_a_pod_in_no_subgroup_of_its_gang_is_told_which_there_are() -> None:
    made = world(node("n0"), queue("a"), gang("g", "a", subgroups=TWO), pod("p", "g", subgroup="z"))
    assert verdict(made) == (
        "InvalidRequest",
        "1 pod is in no subgroup: pod p says kai.scheduler/subgroup-name=z; the subgroups with pods are x, y",
    )
    made.upsert(pod("q", "g"))
    assert verdict(made)[1].startswith("2 pods are in no subgroup: pod p says")


def test_the_rest_of_the_gang_starts_without_the_pods_that_are_in_no_subgroup() -> None:
    made = world(node("n0"), queue("a"), gang("g", "a", subgroups=TWO), pod("stray", "g"))
    made.upsert(pod("x-0", "g", subgroup="x"))
    made.upsert(pod("y-0", "g", subgroup="y"))
    plan = cycle(made, POLICY, START)
    assert [bind.pod for bind in plan.binds] == ["x-0", "y-0"]
    assert [(v.reason, v.pods) for v in plan.verdicts] == [("InvalidRequest", ("stray",))]
    assert "has no label kai.scheduler/subgroup-name" in plan.verdicts[0].message
    made.delete("Pod", "default", "stray")
    assert cycle(made, POLICY, START + 1).verdicts == []


# -- the bound that decides


def test_what_exceeds_the_largest_node_is_said_with_both_numbers_and_nothing_else() -> None:
    made = world(node("n0"), node("n1", gpus=2), queue("a"), gang("g", "a"), pod("g-0", "g", gpus=5))
    made.upsert(gang("other", "a", rank=1))
    made.upsert(pod("other-0", "other", gpus=1, on="n0"))
    assert verdict(made) == (
        "PodSchedulingErrors",
        "a pod needs 5 GPUs, the largest node has 4 GPUs (2 nodes: has less than 5 GPUs)",
    )


def test_nobody_is_evicted_for_what_no_node_could_take() -> None:
    made = world(node("n0"), queue("a"), gang("g", "a", priority="build", minimum=2))
    made.upsert(gang("train", "a", rank=1))
    made.upsert(pod("train-0", "train", gpus=4, on="n0"))
    made.upsert(pod("g-0", "g", gpus=4))
    made.upsert(pod("g-1", "g", gpus=5))
    plan = cycle(made, POLICY, START)
    assert plan.evictions == []
    assert plan.verdicts[0].message.startswith("needs 2 pods at once, a pod needs 5 GPUs, the largest node has 4 GPUs")


def test_without_any_node_that_is_all_there_is_to_say() -> None:
    parts = (queue("a"), gang("g", "a"), pod("g-0", "g", gpus=1))
    assert verdict(world(*parts)) == ("PodSchedulingErrors", "there are no nodes")
    made = World(policy=Policy(node_pool="red"))
    for part in (queue("a"), node("n0")):
        made.upsert(part)
    parts[1].metadata.labels["kai.scheduler/node-pool"] = "red"
    for part in parts[1:]:
        made.upsert(part)
    (told,) = cycle(made, made.policy, START).verdicts
    assert told.message == "there are no nodes in the node pool red"


def test_a_cluster_without_gpus_has_no_share_of_them_to_speak_of() -> None:
    made = world(node("n0", gpus=0), queue("a", quota=0), gang("g", "a"), pod("g-0", "g", gpus=1))
    assert verdict(made)[1] == "a pod needs 1 GPU, the largest node has 0 GPUs (1 node: has less than 1 GPU)"


def test_a_single_pod_is_no_plural() -> None:
    made = world(node("n0"), queue("a"), gang("g", "a", subgroups=TWO), pod("x-0", "g", subgroup="x"))
    assert verdict(made) == ("NotReady", "subgroup y needs 1 pod, 0 exist")


# -- topologies


def racks(topology: str, **counts: int) -> World:
    """Nodes of one GPU each, so many a rack."""
    made = world(queue("a"))
    levels = {"levels": [{"nodeLabel": "example.com/zone"}, {"nodeLabel": "example.com/rack", "alias": "rack"}]}
    made.upsert(msgspec.convert({"metadata": {"name": topology}, "spec": levels}, Topology))
    for rack, number in counts.items():
        for i in range(number):
            labels = {"example.com/zone": "z", "example.com/rack": rack}
            made.upsert(node(f"{rack}-{i}", gpus=1, labels=labels if rack != "none" else {}))
    return made


def in_a_rack(made: World, minimum: int) -> tuple[str, str]:
    constraint = {"topology": "t", "requiredTopologyLevel": "rack"}
    made.upsert(gang("g", "a", minimum=minimum, topologyConstraint=constraint))
    for i in range(minimum):
        made.upsert(pod(f"g-{i}", "g", gpus=1))
    return verdict(made)


def test_a_gang_that_fits_into_no_domain_is_told_what_the_roomiest_takes() -> None:
    reason, message = in_a_rack(racks("t", x=2, y=3), 4)
    assert reason == "PodSchedulingErrors"
    assert message.startswith("needs 4 pods at once in one rack of topology t; the roomiest of 2 has room for 3")


def test_nodes_without_the_labels_are_no_part_of_a_topology() -> None:
    _, message = in_a_rack(racks("t", none=5), 2)
    assert message.startswith("no node has all labels of the topology t (example.com/zone, example.com/rack)")


def test_pods_that_run_decide_the_domain_of_the_others() -> None:
    made = racks("t", x=1, y=3)
    constraint = {"topology": "t", "requiredTopologyLevel": "rack"}
    made.upsert(gang("g", "a", minimum=2, topologyConstraint=constraint))
    made.upsert(pod("g-0", "g", gpus=1, on="x-0"))
    made.upsert(pod("g-1", "g", gpus=1))
    _, message = verdict(made)
    assert message.startswith("needs 1 pod in one rack of topology t, where 1 pod of it already is; it has room for 0")


def test_a_level_without_a_topology_is_refused_instead_of_constraining_nothing() -> None:
    made = world(node("n0"), queue("a"), gang("g", "a", topologyConstraint={"requiredTopologyLevel": "rack"}))
    made.upsert(pod("g-0", "g"))
    assert verdict(made) == ("InvalidTopology", "the level rack needs the topology it belongs to")


# -- resources that nothing offers


def tpu(name: str, resource: str = "example.com/tpu", **rest: object) -> Pod:
    return pod(name, name, containers=[{"name": "main", "resources": {"requests": {resource: 1}}}], **rest)


def test_names_that_tenants_invent_make_no_node_wider() -> None:
    made = world(node("n0"), queue("a"))
    width = len(made.nodes["n0"].capacity)
    for i in range(100):
        made.upsert(gang(f"g{i}", "a", rank=i))
        made.upsert(tpu(f"g{i}", f"example.com/invented-{i}"))
    plan = cycle(made, POLICY, START)
    assert len(made.nodes["n0"].capacity) == len(made.shapes.columns) == width
    told = {said.group: said.message for said in plan.verdicts}
    assert told["g7"] == "no node offers example.com/invented-7 (1 node: offers no example.com/invented-7)"


def test_a_node_that_brings_the_resource_takes_the_pod() -> None:
    made = world(node("n0"), queue("a"), gang("g", "a"), tpu("g"))
    assert verdict(made)[1] == "no node offers example.com/tpu (1 node: offers no example.com/tpu)"
    made.upsert(node("n1", **{"example.com/tpu": 1}))
    assert [bind.node for bind in cycle(made, POLICY, START + 1).binds] == ["n1"]


def test_what_ran_before_its_node_was_known_counts_there() -> None:
    made = world(queue("a"), gang("old", "a"), tpu("old", on="n1"), gang("g", "a", rank=1), tpu("g"))
    made.upsert(node("n1", **{"example.com/tpu": 1}))
    assert verdict(made)[1] == "no node has room (1 node: insufficient example.com/tpu)"
    made.delete("Pod", "default", "old")
    assert [bind.pod for bind in cycle(made, POLICY, START + 1).binds] == ["g"]


def test_a_device_class_brings_its_resource() -> None:
    inventory = Inventory()
    made = World(inventory)
    for part in (node("n0"), queue("a"), gang("g", "a"), tpu("g")):
        made.upsert(part)
    assert verdict(made)[1].startswith("no node offers example.com/tpu")
    spec = {"extendedResourceName": "example.com/tpu"}
    made.upsert(msgspec.convert({"metadata": {"name": "tpu"}, "spec": spec}, DeviceClass))
    assert "the largest node has 0 example.com/tpu" in verdict(made)[1]


# -- what gangs hold


def test_of_a_semi_preemptible_gang_only_the_core_counts_as_not_preemptible() -> None:
    made = world(node("n0"), queue("a"), gang("g", "a", minimum=2, preemptibility="semi-preemptible"))
    for i in range(3):
        made.upsert(pod(f"g-{i}", "g", gpus=1, on="n0"))
    (found,) = made.gangs.values()
    assert resources_of(found)["allocated"]["nvidia.com/gpu"] == "3"
    assert resources_of(found)["allocatedNonPreemptible"]["nvidia.com/gpu"] == "2"


def test_a_core_that_changes_is_seen_without_a_change_of_counts() -> None:
    def grown(core: int) -> World:
        made = world(node("n0"), queue("a"))
        made.upsert(gang("g", "a", minimum=1, preemptibility="semi-preemptible", minNonPreemptible=core))
        made.upsert(pod("g-0", "g", gpus=1, on="n0"))
        made.upsert(pod("g-1", "g", gpus=2, on="n0"))
        return made

    assert standings(grown(1)) != standings(grown(2))


def test_the_surplus_of_a_semi_preemptible_gang_asks_for_nothing_that_is_not_preemptible() -> None:
    made = world(node("n0"), queue("a", quota=2, limit=2))
    made.upsert(gang("g", "a", minimum=2, preemptibility="semi-preemptible"))
    for i in range(3):
        made.upsert(pod(f"g-{i}", "g", gpus=1))
    (over,) = cycle(made, POLICY, START).verdicts
    assert over.reason == "OverLimit"
    details = over.details["queueDetails"]
    assert isinstance(details, dict)
    assert details["podGroupRequestedResources"]["nvidia.com/gpu"] == "1"
    assert details["podGroupRequestedNonPreemptibleResources"]["nvidia.com/gpu"] == "0"
