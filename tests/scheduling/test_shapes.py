"""Equal pods share a shape, and what nobody is like any more is forgotten."""

from __future__ import annotations

import sys
from pathlib import Path

import msgspec
import pytest

from capstan.api.core import Pod
from capstan.scheduling import Policy, cycle
from capstan.scheduling.shapes import Shapes

sys.path.insert(0, str(Path(__file__).parent))
from clusters import START, gang, node, pod, queue, world


def on(name: str, host: str) -> Pod:
    made = pod(name, name, gpus=1)
    selector = {"kubernetes.io/hostname": host}
    return msgspec.structs.replace(made, spec=msgspec.structs.replace(made.spec, node_selector=selector))


def test_equal_pods_share_a_shape() -> None:
    shapes = Shapes()
    assert shapes.of(pod("a", "g", gpus=1)) is shapes.of(pod("b", "h", gpus=1))
    assert shapes.of(pod("a", "g", gpus=1)) is not shapes.of(pod("b", "h", gpus=2))


def test_pods_that_are_all_different_do_not_pile_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("capstan.scheduling.shapes._MOST_KEPT", 10)
    shapes = Shapes()
    common = shapes.of(pod("a", "g", gpus=1))
    numbers = set()
    for i in range(200):
        numbers.add(shapes.of(on(f"p{i}", f"n{i}")).number)
        assert shapes.of(pod("b", "g", gpus=1)) is common, "what pods are like all the time stays"
        assert len(shapes) <= 20
    assert len(numbers - {common.number}) == 200, "a number means one shape for ever"


def test_a_cycle_decides_the_same_whatever_was_forgotten(monkeypatch: pytest.MonkeyPatch) -> None:
    def binds() -> list[tuple[str, str]]:
        made = world(*(node(f"n{i}", gpus=2) for i in range(6)), queue("q"))
        for i in range(12):
            made.upsert(gang(f"p{i}", "q", rank=i))
            made.upsert(on(f"p{i}", f"n{i % 6}") if i % 2 else pod(f"p{i}", f"p{i}", gpus=1))
        return [(bind.pod, bind.node) for bind in cycle(made, Policy(), START).binds]

    kept = binds()
    assert len(kept) > 6
    for bound in ("shapes._MOST_KEPT", "filters._MOST_REASONS", "holdings._MOST_CERTAIN"):
        monkeypatch.setattr(f"capstan.scheduling.{bound}", 1)
    assert binds() == kept
