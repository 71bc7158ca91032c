"""A shard sees the nodes and gangs of its pool; everything else is other people's."""

from __future__ import annotations

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.scheduling.clusters import START, gang, node, pod, queue

from capstan.api.core import Node, Pod
from capstan.api.scheduling import PodGroup
from capstan.scheduling import Policy, World, cycle

KEY = "kai.scheduler/node-pool"
DEFAULT, RED = Policy(node_pool=""), Policy(node_pool="red")
AT = START + 1


def pooled(entry: Node | Pod | PodGroup, pool: str | None):
    labels = {key: value for key, value in entry.metadata.labels.items() if key != KEY}
    if pool is not None:
        labels[KEY] = pool
    return msgspec.structs.replace(entry, metadata=msgspec.structs.replace(entry.metadata, labels=labels))


def shard(policy: Policy, *objects) -> World:
    world = World(policy=policy)
    for entry in objects:
        world.upsert(entry)
    return world


def starts(world: World) -> dict[str, str]:
    return {bind.pod: bind.node for bind in cycle(world, world.policy, AT).binds}


CLUSTER = (
    node("n0", gpus=4),
    pooled(node("r0", gpus=2), "red"),
    queue("q", quota=0),
    gang("plain", "q"),
    pooled(gang("red", "q"), "red"),
    pod("p", "plain", gpus=1),
    pod("r", "red", gpus=1),
)


def test_each_shard_starts_its_own_gangs_on_its_own_nodes():
    assert starts(shard(DEFAULT, *CLUSTER)) == {"p": "n0"}
    assert starts(shard(RED, *CLUSTER)) == {"r": "r0"}
    assert starts(shard(Policy(node_pool="blue"), *CLUSTER)) == {}


def test_without_shards_everything_is_one_pool():
    assert set(starts(shard(Policy(), *CLUSTER))) == {"p", "r"}


def test_a_label_with_an_empty_value_is_a_label():
    assert starts(shard(DEFAULT, node("n0", gpus=1), queue("q"), pooled(gang("g", "q"), ""), pod("p", "g"))) == {}


def test_fair_shares_are_those_of_the_shard():
    world = shard(RED, *CLUSTER)
    world.refresh(AT)
    world.share_out(RED)
    assert world.total[2] == 2_000_000
    assert world.queues["q"].requested[2] == 1_000_000


def test_other_shards_say_nothing_about_a_gang():
    crowd = gang("big", "q", minimum=50)
    pods = [pod(f"b{i}", "big", gpus=1) for i in range(50)]
    assert [v.group for v in cycle(shard(DEFAULT, *CLUSTER, crowd, *pods), DEFAULT, AT).verdicts] == ["big"]
    assert cycle(shard(RED, *CLUSTER, crowd, *pods), RED, AT).verdicts == []


@pytest.mark.parametrize("label", [None, "red"])
def test_only_the_shard_that_a_pod_names_says_that_its_group_is_missing(label):
    lost = pooled(pod("lost", "nothing"), label)
    said = {name: cycle(shard(p, *CLUSTER, lost), p, AT).verdicts for name, p in (("", DEFAULT), ("red", RED))}
    assert [v.group for v in said[label or ""]] == ["nothing"]
    assert said["red" if label is None else ""] == []


def test_a_pod_of_another_pool_keeps_what_it_holds_on_a_node_of_ours():
    straggler = pod("straggler", "red", gpus=3, on="n0")
    wants = [gang("two", "q"), pod("t", "two", gpus=2)]
    world = shard(DEFAULT, *CLUSTER[:5], straggler, *wants)
    assert starts(world) == {}
    assert world.queues["q"].allocated == [0, 0, 0]
    assert world.foreign[2] == 3_000_000


def test_a_gang_of_another_pool_is_no_victim_and_never_stale():
    stale = pooled(gang("half", "q", minimum=2), "red")
    world = shard(DEFAULT, *CLUSTER[:3], stale, pod("h", "half", gpus=4, on="n0"))
    world.upsert(gang("urgent", "q", priority="inference"))
    world.upsert(pod("u", "urgent", gpus=4))
    assert cycle(world, DEFAULT, AT).evictions == []
    assert cycle(world, DEFAULT, AT + 1000).evictions == []


def test_a_gang_that_is_given_to_another_pool_changes_hands():
    worlds = {"": shard(DEFAULT, *CLUSTER), "red": shard(RED, *CLUSTER)}
    for pool in ("red", "", "red"):
        moved = pooled(gang("plain", "q", minimum=1), pool or None)
        found = {}
        for name, world in worlds.items():
            world.upsert(moved)
            found[name] = "p" in {task.name for entry in world.gangs.values() for task in entry.tasks.values()}
        assert found == {"": pool == "", "red": pool == "red"}
    assert starts(worlds["red"]) == {"r": "r0", "p": "r0"}


def test_a_node_that_is_given_to_another_pool_leaves_with_its_pods():
    world = shard(DEFAULT, *CLUSTER[:5], pod("p", "plain", gpus=1, on="n0"))
    world.upsert(pooled(node("n0", gpus=4), "red"))
    assert world.nodes == {} and world.total == [0, 0, 0]
    assert world.queues["q"].allocated[2] == 1_000_000  # it still runs, for the same queue
    world.upsert(node("n0", gpus=4))
    assert world.nodes["n0"].idle[3] == 3


def test_queue_depth_limits_what_an_action_looks_at_in_a_queue():
    world = shard(Policy(), node("n0", gpus=8), queue("q"), queue("other"))
    for i in range(4):
        world.upsert(gang(f"g{i}", "q", rank=i))
        world.upsert(pod(f"p{i}", f"g{i}", gpus=1, rank=i))
    world.upsert(gang("o", "other"))
    world.upsert(pod("po", "o", gpus=1))
    plan = cycle(world, Policy(actions=("allocate",), queue_depth={"allocate": 2}), AT)
    assert {bind.pod for bind in plan.binds} == {"p0", "p1", "po"}
    assert {v.group: v.message for v in plan.verdicts}["g2"].startswith("waits behind 2 others of queue q")


POOLS = st.sampled_from([None, "red", "blue"])
CHANGES = st.lists(
    st.tuples(st.sampled_from(["node", "group", "pod", "no group", "no node", "no pod"]), st.integers(0, 3), POOLS),
    max_size=25,
)


@given(CHANGES)
def test_a_shard_that_saw_every_change_equals_one_that_sees_the_outcome(changes):
    world = shard(RED, queue("q"))
    present: dict[tuple[str, str], Node | Pod | PodGroup] = {}
    for kind, i, pool in changes:
        made = {
            "node": pooled(node(f"n{i}", gpus=2), pool),
            "group": pooled(gang(f"g{i}", "q"), pool),
            "pod": pooled(pod(f"p{i}", f"g{i}", gpus=1, on=f"n{i}" if i % 2 else ""), pool),
        }.get(kind)
        if made is not None:
            world.upsert(made)
            present[type(made).__name__, made.metadata.name] = made
        else:
            name = {"no group": "PodGroup", "no node": "Node", "no pod": "Pod"}[kind]
            gone = present.pop((name, f"{name.lower()[0] if name != 'PodGroup' else 'g'}{i}"), None)
            if gone is not None:
                world.delete(name, gone.metadata.namespace, gone.metadata.name)
    fresh = shard(RED, queue("q"), *present.values())
    for each in (world, fresh):
        each.begin(AT)
    assert seen(world) == seen(fresh)


def seen(world: World) -> object:
    return (
        {name: (n.idle, n.later, sorted(n.tasks)) for name, n in world.nodes.items()},
        {key: (sorted(g.tasks), g.active, g.pending, g.error) for key, g in world.gangs.items()},
        {name: (q.allocated, q.requested) for name, q in world.queues.items()},
        world.total,
        world.foreign,
    )
