"""What holds for every cluster, whatever is in it."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import msgspec
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from capstan.api.scheduling import Queue
from capstan.scheduling import Plan, Policy, World, cycle
from capstan.scheduling.amounts import GPU, GPU_COLUMN, UNLIMITED
from capstan.scheduling.canonical import dump
from capstan.scheduling.model import ACTIVE, HOLDS_LATER, HOLDS_NOW, Group, Status, Task

sys.path.insert(0, str(Path(__file__).parent))
from clusters import PRODUCT, START, Cluster, clusters, queue

ROUNDS = 4
EXAMPLES = int(os.environ.get("PROPERTY_EXAMPLES", "60"))
several = settings(deadline=None, max_examples=EXAMPLES, suppress_health_check=list(HealthCheck))


def check_nothing_is_overcommitted(world: World) -> None:
    for node in world.nodes.values():
        for column, capacity in enumerate(node.capacity):
            held_now = held_later = 0
            for task in node.tasks.values():
                amount = dict(task.shape.requests).get(column, 0)
                now = (task.node is node and HOLDS_NOW[task.status]) or (
                    task.leaving is not None and task.leaving[0] is node
                )
                held_now += amount if now else 0
                held_later += amount if task.node is node and HOLDS_LATER[task.status] else 0
            if column == GPU_COLUMN:
                held_now += sum(1 for device in node.devices.values() if device.users_now)
                held_later += sum(1 for device in node.devices.values() if device.users_later)
            assert 0 <= node.idle[column] == capacity - held_now
            assert 0 <= node.later[column] == capacity - held_later
        for device in node.devices.values():
            assert device.used_now <= GPU
            assert device.used_later <= GPU


def check_queues(world: World) -> None:
    for made in world.queues.values():
        for i in range(len(made.resources)):
            assert made.limit[i] == UNLIMITED or made.allocated[i] <= made.limit[i]
            assert made.quota[i] == UNLIMITED or made.fixed[i] <= made.quota[i]


def complete(group: Group, running: set[str]) -> bool:
    if group.children:
        return sum(complete(child, running) for child in group.children) >= group.minimum
    return sum(task.uid in running for _, task in group.active) >= group.minimum


def check_gangs(world: World, plan: Plan) -> None:
    """A gang of which anything is bound has its minimum on nodes, bound now or before: nothing is promised only."""
    for key in {world.tasks[bind.uid].gang.key for bind in plan.binds}:  # type: ignore[union-attr]
        gang = world.gangs[key]
        placed = {
            task.uid for task in gang.tasks.values() if task.status in (Status.BINDING, Status.BOUND, Status.RUNNING)
        }
        assert complete(gang.root, placed)


def check_evictions(world: World, plan: Plan) -> None:
    """Whoever is evicted for a gang made room for one that is placed in the same plan."""
    placed = {(p.namespace, p.group) for p in plan.promises} | {(b.namespace, b.group) for b in plan.binds}
    for eviction in plan.evictions:
        if eviction.action != "evict-stale":
            namespace, _, name = eviction.for_group.partition("/")
            assert (namespace, name) in placed
        else:
            assert world.tasks[eviction.uid].status == Status.RELEASING


def snapshot(task: Task) -> tuple[Status, bool]:
    return task.status, ACTIVE[task.status]


@several
@given(clusters() | clusters(products=True))
def test_no_node_device_queue_or_gang_rule_is_ever_broken(cluster: Cluster) -> None:
    world = cluster.build()
    for number in range(ROUNDS):
        plan = cycle(world, Policy(), START + number)
        check_nothing_is_overcommitted(world)
        check_queues(world)
        check_gangs(world, plan)
        check_evictions(world, plan)
        cluster.carry_out(world, plan)
        check_nothing_is_overcommitted(world)


@several
@given(clusters() | clusters(products=True))
def test_equal_worlds_get_equal_plans(cluster: Cluster) -> None:
    assert cycle(cluster.build(), Policy(), START) == cycle(cluster.build(), Policy(), START)


@several
@given(clusters() | clusters(products=True), st.booleans())
def test_an_incremental_world_equals_a_rebuilt_one(cluster: Cluster, backwards: bool) -> None:
    world = cluster.build()
    for number in range(ROUNDS):
        cluster.carry_out(world, cycle(world, Policy(), START + number))
    world.begin(START + ROUNDS)
    rebuilt = World()
    objects = list(cluster.objects.values())
    for entry in reversed(objects) if backwards else objects:
        rebuilt.upsert(entry)
    rebuilt.begin(START + ROUNDS)
    assert dump(world) == dump(rebuilt)


@several
@given(clusters(products=True), st.lists(st.sampled_from(["H100", "A100", ""]), min_size=4, max_size=4), st.booleans())
def test_products_may_change_while_pods_run_and_wait(cluster: Cluster, products: list[str], forget: bool) -> None:
    world = cluster.build()
    cluster.carry_out(world, cycle(world, Policy(), START))
    names = sorted(name for kind, name in cluster.objects if kind == "Node")
    for name, product in zip(names, products, strict=False):
        known = cluster.objects["Node", name]
        labels = {**known.metadata.labels, PRODUCT: product}
        meta = msgspec.structs.replace(known.metadata, labels=labels)
        cluster.put(msgspec.structs.replace(known, metadata=meta))
        world.upsert(cluster.objects["Node", name])
    if forget:
        for entry in [entry for entry in cluster.objects.values() if isinstance(entry, Queue)]:
            cluster.put(queue(entry.metadata.name, entry.spec.parent_queue))
            world.upsert(cluster.objects["Queue", entry.metadata.name])
    rebuilt = cluster.build()
    for made in (world, rebuilt):
        made.begin(START + 1)
    assert dump(world) == dump(rebuilt)


@several
@given(clusters() | clusters(products=True))
def test_a_settled_cluster_stays_as_it_is(cluster: Cluster) -> None:
    world = cluster.build()
    for number in range(12):
        plan = cycle(world, Policy(), START + number)
        cluster.carry_out(world, plan)
        if not plan.binds and not plan.evictions:
            break
    else:
        raise AssertionError("the cluster does not come to rest")
    before = dump(world)
    again = cycle(world, Policy(), START + 20)
    assert (again.binds, again.evictions) == ([], [])
    assert again.verdicts == plan.verdicts
    world.begin(START + 20)
    assert before["nodes"] == dump(world)["nodes"]


@several
@given(clusters() | clusters(products=True))
def test_a_cycle_that_is_rolled_back_leaves_no_trace(cluster: Cluster) -> None:
    from capstan.scheduling.allocate import allocate
    from capstan.scheduling.evict import consolidate, evict_stale, preempt, reclaim
    from capstan.scheduling.session import Session

    world = cluster.build()
    cluster.carry_out(world, cycle(world, Policy(), START))
    world.begin(START + 1)
    world.share_out(Policy())
    before, mark = dump(world), world.mark()
    session = Session(world, Policy(), START + 1)
    for action in (allocate, consolidate, reclaim, preempt, evict_stale):
        action(session)
    world.rollback(mark)
    assert dump(world) == before
