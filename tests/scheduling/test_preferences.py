"""What Kubernetes would rather have, and KAI does not score, breaks ties: soft taints and soft spread constraints."""

from __future__ import annotations

import sys
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from capstan.scheduling import Policy, World, cycle

sys.path.insert(0, str(Path(__file__).parent))
from clusters import START, gang, node, pod, queue, world

SOFT = [{"key": "old", "value": "yes", "effect": "PreferNoSchedule"}]
ZONE, HOST = "topology.kubernetes.io/zone", "kubernetes.io/hostname"


def spread(key: str = ZONE, **more: Any) -> dict[str, Any]:
    return {
        "topologyKey": key,
        "maxSkew": 1,
        "whenUnsatisfiable": "ScheduleAnyway",
        "labelSelector": {"matchLabels": {"app": "web"}},
        **more,
    }


def cluster(*nodes: Any) -> World:
    return world(*nodes, queue("top"), queue("q", "top"))


def add(made: World, name: str, labels: dict[str, str] | None = None, **spec: Any) -> None:
    made.upsert(gang(name, "q", rank=len(made.tasks)))
    one = pod(name, name, rank=len(made.tasks), **spec)
    one.metadata.labels.update(labels or {})
    made.upsert(one)


def places(made: World, policy: Policy | None = None) -> dict[str, str]:
    return {bind.pod: bind.node for bind in cycle(made, policy or Policy(), START).binds}


def test_equal_nodes_without_soft_taints_come_first() -> None:
    made = cluster(node("n0", taints=SOFT), node("n1"))
    add(made, "p", gpus=1)
    assert places(made) == {"p": "n1"}


def test_a_soft_taint_that_is_tolerated_does_not_count() -> None:
    made = cluster(node("n0", taints=SOFT), node("n1"))
    add(made, "p", gpus=1, tolerations=[{"key": "old", "operator": "Exists"}])
    assert places(made) == {"p": "n0"}


def test_what_kai_scores_goes_before_soft_taints() -> None:
    made = cluster(node("n0", taints=SOFT, gpus=4), node("n1", gpus=8))
    add(made, "p", gpus=1)
    assert places(made) == {"p": "n0"}, "binpack: the node with fewer free GPUs"


def zones(count: int) -> list[Any]:
    """Two equal nodes in every zone."""
    return [node(f"n{i}{half}", labels={ZONE: f"z{i}"}) for i in range(count) for half in "ab"]


@pytest.mark.parametrize("key", [ZONE, HOST])
def test_likes_go_where_there_are_fewest_of_them(key: str) -> None:
    """Spread over the nodes: after each pod those with most room are equal, and the constraint chooses among them."""
    made = cluster(*zones(3))
    for i in range(6):
        add(made, f"p{i}", {"app": "web"}, gpus=1, topologySpreadConstraints=[spread(key)])
    found = places(made, Policy(gpu_placement="spread"))
    assert len(found) == 6
    homes = Counter(name[:2] if key == ZONE else name for name in found.values())
    assert set(homes.values()) == {2 if key == ZONE else 1}


def test_only_pods_that_the_constraint_selects_count() -> None:
    made = cluster(*zones(2))
    add(made, "other", {"app": "db"}, cpu=1, nodeSelector={HOST: "n0a"})
    add(made, "web", {"app": "web"}, cpu=1, nodeSelector={HOST: "n0b"})
    assert len(places(made)) == 2
    add(made, "next", {"app": "web"}, gpus=1, topologySpreadConstraints=[spread()])
    assert places(made) == {"next": "n1a"}


def test_a_node_outside_the_topology_comes_last_and_is_taken_when_nothing_else_is_left() -> None:
    made = cluster(node("n0"), node("n1", labels={ZONE: "z"}))
    for name in ("first", "second"):
        add(made, name, {"app": "web"}, gpus=4, topologySpreadConstraints=[spread()])
    assert places(made) == {"first": "n1", "second": "n0"}
