"""The writes between wanted and actual ResourceSlices, and when a pool's generation goes up."""

from __future__ import annotations

import copy
from typing import Any

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from capstan.api.resource import ResourceSlice
from capstan.node import models
from capstan.node.inventory import slice_specs
from capstan.node.publish import Create, Delete, PoolIdentity, Publisher, Update, diff, dropped_fields, without
from capstan.node.simulated import SimulatedNvml

IDENTITY = PoolIdentity("node-0", "node-uid")
Body = dict[str, Any]


def specs(model: str = "a100x4") -> list[Body]:
    return slice_specs(SimulatedNvml("node-0", models.node_model(model)).host(), "node-0")


def small(*contents: str) -> list[Body]:
    """Specs with one device each, named as told."""
    base = {"driver": "gpu.nvidia.com", "nodeName": "node-0", "pool": {"name": "node-0"}}
    return [base | {"devices": [{"name": content}]} for content in contents]


class Server:
    """Applies writes as an API server would."""

    def __init__(self) -> None:
        self.slices: dict[str, ResourceSlice] = {}
        self.version = 0
        self.generation = 0

    def apply(self, writes: list[Any]) -> None:
        for write in writes:
            self.version += 1
            if isinstance(write, Delete):
                assert self.slices.pop(write.name).metadata.uid == write.uid
                continue
            body = copy.deepcopy(write.body)
            metadata = body["metadata"]
            if isinstance(write, Create):
                metadata["name"] = f"{metadata['generateName']}{self.version:05d}"
                metadata["uid"] = f"uid-{self.version}"
            else:
                known = self.slices[metadata["name"]].metadata
                assert metadata["resourceVersion"] == known.resource_version
                metadata["uid"] = known.uid
            metadata["resourceVersion"] = str(self.version)
            for device in body["spec"].get("devices", ()):
                for taint in device.get("taints", ()):
                    taint.setdefault("timeAdded", f"2026-01-01T00:00:{self.version % 60:02d}Z")
            self.slices[metadata["name"]] = msgspec.convert(body, ResourceSlice)

    def reach(self, desired: list[Body]) -> list[Any]:
        writes = diff(desired, list(self.slices.values()), IDENTITY, self.generation)
        self.apply(writes)
        (self.generation,) = self.generations
        return writes

    @property
    def generations(self) -> set[int]:
        return {found.spec.pool.generation for found in self.slices.values()}


@pytest.fixture
def server() -> Server:
    return Server()


def test_names_put_the_slices_in_order_and_the_node_owns_them(server: Server) -> None:
    server.reach(specs())
    names = sorted(server.slices)
    assert [name.rpartition("-")[0] for name in names] == [f"{i:05x}-gpu.nvidia.com-node-0" for i in range(len(names))]
    first = server.slices[names[0]]
    assert first.spec.shared_counters and not first.spec.devices, "counters come first, devices refer to them"
    (owner,) = first.metadata.owner_references
    assert (owner.kind, owner.name, owner.uid) == ("Node", "node-0", "node-uid")
    assert all(found.spec.pool.resource_slice_count == len(names) for found in server.slices.values())


def test_what_is_there_already_is_not_written(server: Server) -> None:
    server.reach(specs())
    assert server.reach(specs()) == []


def test_one_changed_slice_keeps_the_generation(server: Server) -> None:
    server.reach(small("a", "b", "c"))
    (write,) = server.reach(small("a", "B", "c"))
    assert isinstance(write, Update) and server.generations == {1}


def test_two_changed_slices_make_a_new_generation_of_all(server: Server) -> None:
    server.reach(small("a", "b", "c"))
    writes = server.reach(small("A", "B", "c"))
    assert len(writes) == 3 and server.generations == {2}


def test_one_slice_more_or_less_makes_a_new_generation_of_all(server: Server) -> None:
    server.reach(small("a", "b"))
    server.reach(small("a", "b", "c"))
    assert server.generations == {2}
    writes = server.reach(small("a"))
    assert [type(write) for write in writes] == [Delete, Delete, Update], "obsolete slices go first"
    assert server.generations == {3}


def test_a_deleted_slice_is_made_again_in_a_new_generation(server: Server) -> None:
    server.reach(small("a", "b"))
    del server.slices[max(server.slices)]
    server.reach(small("a", "b"))
    assert server.generations == {2} and len(server.slices) == 2


def test_slices_with_strange_names_and_of_other_pools_are_removed(server: Server) -> None:
    server.reach(small("a"))
    (ours,) = server.slices.values()
    for name, pool in (("random-name", "node-0"), ("00000-gpu.nvidia.com-node-0-old", "other")):
        stray = copy.deepcopy(ours)
        stray.metadata.name, stray.spec.pool.name, stray.metadata.uid = name, pool, name
        server.slices[name] = stray
    server.reach(small("a"))
    assert list(server.slices) == [ours.metadata.name]


def test_a_taint_keeps_the_time_it_was_added(server: Server) -> None:
    def tainted(*values: str) -> list[Body]:
        (spec,) = small("a")
        taints = [{"key": "xid", "value": value, "effect": "NoSchedule"} for value in values]
        return [spec | {"devices": [{"name": "a", "taints": taints}]}]

    server.reach(tainted("79"))
    (found,) = server.slices.values()
    added = found.spec.devices[0].taints[0].time_added
    assert added
    assert server.reach(tainted("79")) == []
    server.reach(tainted("79", "48"))
    (found,) = server.slices.values()
    assert found.spec.devices[0].taints[0].time_added == added


@settings(deadline=None, max_examples=150)
@given(st.lists(st.lists(st.sampled_from("abcdef"), min_size=1, max_size=6), min_size=1, max_size=6), st.data())
def test_any_history_converges_in_one_go_and_then_rests(history: list[list[str]], data: st.DataObject) -> None:
    server = Server()
    generation = 0
    for contents in history:
        if server.slices and data.draw(st.booleans()):
            del server.slices[data.draw(st.sampled_from(sorted(server.slices)))]
        server.reach(small(*contents))
        assert server.reach(small(*contents)) == []
        found = sorted(server.slices.values(), key=lambda s: s.metadata.name)
        assert [s.spec.devices[0].name for s in found] == contents
        (now,) = server.generations
        assert now >= generation
        generation = now


def test_dropped_fields_are_named_by_path() -> None:
    sent = {"devices": [{"name": "a", "consumesCounters": [{"x": 1}], "taints": []}], "sharedCounters": [1]}
    got = {"devices": [{"name": "a"}]}
    assert set(dropped_fields(sent, got, "spec")) == {"spec.devices[].consumesCounters", "spec.sharedCounters"}
    assert list(dropped_fields(sent, sent, "spec")) == []


def test_dropped_fields_can_be_left_out() -> None:
    spec = {"devices": [{"name": "a", "allowMultipleAllocations": True}], "nodeName": "n"}
    assert without(spec, frozenset({"spec.devices[].allowMultipleAllocations"})) == {
        "devices": [{"name": "a"}],
        "nodeName": "n",
    }


@pytest.mark.anyio
async def test_the_publisher_tells_the_versions_it_wrote_and_tries_again_after_a_conflict(api: Any) -> None:
    publisher = Publisher(api.client(), IDENTITY)
    done = await publisher.publish(small("a", "b"))
    assert done.writes == 2 and done.dropped == frozenset()
    assert done.versions == {name: body["metadata"]["resourceVersion"] for name, body in api.slices.items()}

    request = api.request

    async def raced(method: str, path: str, **more: Any) -> Any:
        if method == "PUT" and api.request is raced:
            api.request = request
            name = path.rsplit("/", 1)[1]
            api.tamper(name, copy.deepcopy(api.slices[name]))
        return await request(method, path, **more)

    api.request = raced
    await publisher.publish(small("a", "B"))
    assert api.devices().keys() == {"a", "B"}
