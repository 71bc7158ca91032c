"""Plain claims get from memory exactly what the search would choose, on whatever node and in whatever state."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from capstan.allocation import Allocation, Features, Inventory, NodeView, Refusal, allocate, allocator

NODES = ("n0", "n1", "n2")
SEARCHED = Features()
"""Whoever names features is answered by a search: what is remembered holds for the usual ones."""


def allocated(inventory: Inventory, claim: Any, node: str) -> Allocation | Refusal:
    """The answer, which has to be that of a search."""
    searched = allocate(inventory, [claim], NodeView(node), features=SEARCHED)
    answer = allocate(inventory, [claim], NodeView(node))
    assert answer == searched
    assert allocate(inventory, [claim], NodeView(node)) == searched, "when it is asked for the second time"
    return answer


SORTS = ("whole", "shared", "partitioned", "partitioned")
GPU = st.fixed_dictionaries(
    {
        "memory": st.sampled_from([40, 80, 80]),
        "sort": st.sampled_from(SORTS),
        "tainted": st.sampled_from([False] * 9 + [True]),
    },
    optional={place: st.integers(0, 1) for place in ("numa", "nvlink", "pcie")},
)


@st.composite
def almost_alike(draw: st.DrawFn) -> list[list[dict[str, Any]]]:
    """The GPUs of every node: the same, but for one thing about one GPU of one node."""
    alike = draw(st.lists(GPU, min_size=1, max_size=4))
    nodes = [[dict(gpu) for gpu in alike] for _ in NODES]
    odd = draw(st.sampled_from(draw(st.sampled_from(nodes))))
    name, value = draw(
        st.one_of(
            st.tuples(st.sampled_from(["numa", "nvlink", "pcie"]), st.integers(0, 2)),
            st.tuples(st.just("memory"), st.sampled_from([40, 80])),
            st.tuples(st.just("sort"), st.sampled_from(SORTS)),
            st.tuples(st.just("tainted"), st.booleans()),
        )
    )
    odd[name] = value
    return nodes


def published(make: Any, node: str, gpus: list[dict[str, Any]]) -> Any:
    """Whole GPUs, shared ones, and some that are there as a whole and in halves."""
    devices, counters = [], {}
    for number, gpu in enumerate(gpus):
        places = {place: gpu[place] for place in ("numa", "nvlink", "pcie") if place in gpu}
        name, memory = f"gpu-{number}", gpu["memory"]
        sort = make.shared if gpu["sort"] == "shared" else make.gpu
        devices.append(sort(name, f"{memory}Gi", uuid=f"{node}-{name}", half=False, **places))
        if gpu["tainted"]:
            devices[-1]["taints"] = [{"key": "worn", "effect": "NoSchedule"}]
        if gpu["sort"] == "partitioned":
            counters[name] = {"memory": f"{memory}Gi"}
            halves = [make.gpu(f"{name}-{i}", f"{memory // 2}Gi", half=True, **places) for i in range(2)]
            for device, amount in ((devices[-1], memory), *((half, memory // 2) for half in halves)):
                taken = {"memory": {"value": f"{amount}Gi"}}
                device["consumesCounters"] = [{"counterSet": name, "counters": taken}]
            devices += halves
    return make.slice(devices, node=node, counters=counters)


WISH = st.fixed_dictionaries(
    {"class": st.sampled_from(["whole", "whole", "half", "gpu.nvidia.com"]), "count": st.sampled_from([1, 1, 2, 3])},
    optional={
        "capacity": st.just({"requests": {"memory": "10Gi"}}),
        "tolerations": st.just([{"key": "worn", "operator": "Exists"}]),
    },
)


@given(nodes=almost_alike(), wishes=st.lists(st.tuples(WISH, st.sampled_from([*NODES, "", "", ""])), max_size=6))
@settings(max_examples=200)
def test_what_is_remembered_is_what_the_search_would_choose(
    make: Any, nodes: list[list[dict[str, Any]]], wishes: list[tuple[dict[str, Any], str]]
) -> None:
    kinds = {"whole": "false", "half": "true"}
    classes = [make.device_class(n, f"device.attributes['gpu.nvidia.com'].half == {v}") for n, v in kinds.items()]
    slices = [published(make, node, gpus) for node, gpus in zip(NODES, nodes, strict=True)]
    inventory = make.inventory(*classes, *slices)
    for number, (wish, only) in enumerate([*wishes, ({"class": "whole", "count": 1}, "")]):
        exactly = {name: value for name, value in wish.items() if name != "class"}
        for node in NODES:
            if only in ("", node):
                claim = make.claim(f"{node}-{number}", make.request("gpu", wish["class"], **exactly))
                answer = allocated(inventory, claim, node)
                if isinstance(answer, Allocation):
                    inventory.assume(claim.key, answer.results[claim.key])


def test_nodes_that_are_alike_are_searched_once(make: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """They differ in names and UUIDs only. What is free on each counts, and so does what a claim says about itself."""
    found = [{"memory": 80, "numa": i // 2, "sort": "partitioned", "tainted": False} for i in range(4)]
    inventory = make.inventory(*(published(make, node, found) for node in NODES))
    pair = make.request("gpu", count=2)
    first = allocate(inventory, [make.claim("a", pair)], NodeView("n0"))

    searches = []
    search = allocator.Search
    monkeypatch.setattr(allocator, "Search", lambda *given, **more: searches.append(given) or search(*given, **more))
    second = allocate(inventory, [make.claim("b", pair)], NodeView("n1"))
    assert make.devices(second) == make.devices(first)
    assert {result.pool for held in second.results.values() for result in held.devices.results} == {"n1"}
    assert not searches

    inventory.assume(("ns", "b"), second.results["ns", "b"])
    allocate(inventory, [make.claim("c", pair)], NodeView("n1"))
    assert len(searches) == 1, "less is free"
    allocate(
        inventory, [make.claim("d", pair, constraints=[{"matchAttribute": "gpu.nvidia.com/uuid"}])], NodeView("n0")
    )
    assert len(searches) == 2, "a constraint is more than a number of devices"
