"""A snapshot decides as the World it was taken from, says nothing that scheduling does not read, and has limits."""

from __future__ import annotations

import sys
import zlib
from pathlib import Path

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from capstan.api.core import Pod
from capstan.scheduling import InvalidSnapshot, Policy, World, cycle, snapshot
from capstan.scheduling.canonical import dump

sys.path.insert(0, str(Path(__file__).parent))
from clusters import START, clusters, gang, node, pod, queue
from test_properties import several


def taken(world: World, objects: object, now: float = START) -> snapshot.Snapshot:
    return snapshot.decode(snapshot.encode(snapshot.capture(world, now, objects).snapshot()))  # type: ignore[arg-type]


@several
@given(clusters(), st.booleans())
def test_a_restored_world_decides_as_the_one_it_was_taken_from(cluster, in_flight):
    policy, world = Policy(), cluster.build()
    plan = cycle(world, policy, START)
    if not in_flight:
        cluster.carry_out(world, plan)
    restored = snapshot.restore(taken(world, cluster.objects.values()))
    world.begin(START + 1)
    restored.begin(START + 1)
    assert dump(restored) | {"inventory": None} == dump(world) | {"inventory": None}
    again, other = cycle(world, policy, START + 1), cycle(restored, policy, START + 1)
    for part in ("binds", "evictions", "promises", "verdicts"):
        assert getattr(other, part) == getattr(again, part)


def test_pods_keep_no_environment_command_image_or_other_annotations():
    secret = "hunter2"
    talkative = msgspec.convert(
        {
            "metadata": {
                "name": "p",
                "namespace": "default",
                "uid": "p",
                "annotations": {
                    "pod-group-name": "g",
                    "gpu-fraction": "0.5",
                    "kubectl.kubernetes.io/last-applied-configuration": secret,
                },
            },
            "spec": {
                "schedulerName": "kai-scheduler",
                "containers": [
                    {
                        "name": "main",
                        "image": secret,
                        "command": [secret],
                        "args": [secret],
                        "env": [{"name": "TOKEN", "value": secret}],
                        "resources": {"requests": {"cpu": "1"}},
                    }
                ],
                "initContainers": [{"name": "init", "env": [{"name": "TOKEN", "value": secret}]}],
                "volumes": [{"name": "v", "configMap": {"name": secret}}],
            },
            "status": {"message": secret, "containerStatuses": [{"name": "main", "state": {"waiting": {"m": secret}}}]},
        },
        Pod,
    )
    world = World()
    world.upsert(talkative)
    text = snapshot.unpack(snapshot.encode(snapshot.capture(world, START, [talkative]).snapshot()))
    assert secret.encode() not in text
    (kept,) = snapshot.decode(snapshot.encode(snapshot.capture(world, START, [talkative]).snapshot())).objects.pods
    assert kept.metadata.annotations == {"pod-group-name": "g", "gpu-fraction": "0.5"}
    assert kept.spec.containers[0].resources.requests == {"cpu": "1"}


def test_what_the_engine_knows_of_a_gang_and_has_not_written_is_in_it():
    objects = [node("n"), queue("q"), gang("g", "q"), pod("p", "g", gpus=1)]
    world = World()
    for obj in objects:
        world.upsert(obj)
    cycle(world, Policy(), START)
    restored = snapshot.restore(taken(world, objects))
    assert restored.gangs["default", "g"].last_start == START


def test_a_policy_is_written_and_read_in_the_words_of_files():
    policy = Policy(gpu_placement="spread", stale_grace=5.0, queue_depth={"reclaim": 3}, node_pool="a")
    document = msgspec.json.decode(msgspec.json.encode(snapshot.policy_document(policy)))
    assert document["gpuPlacement"] == "spread"
    assert snapshot.policy_from(document) == policy


@pytest.mark.parametrize(
    ("document", "named"),
    [
        ({"gpuPlacment": "spread"}, "gpuPlacment"),
        ({"gpuPlacement": "sideways"}, "sideways"),
        ({"staleGrace": "soon"}, "float"),
        ({"kValue": float("nan")}, "kValue"),
        ({"starvingAfter": float("inf")}, "starvingAfter"),
    ],
)
def test_a_policy_that_makes_no_sense_is_refused_by_name(document, named):
    with pytest.raises(InvalidSnapshot, match=named):
        snapshot.policy_from(document)


def test_a_time_that_cannot_be_is_refused_by_the_name_of_its_object():
    broken = pod("p", "g", gpus=1)
    broken.metadata.creation_timestamp = "yesterday"
    objects = snapshot.Objects(nodes=[node("n")], pods=[broken])
    with pytest.raises(InvalidSnapshot, match=r"Pod default/p.*yesterday"):
        snapshot.restore(snapshot.Snapshot(objects=objects))


def test_files_that_are_no_snapshots_are_refused(monkeypatch):
    good = snapshot.encode(snapshot.Snapshot())
    wrong_kind = snapshot.encode(snapshot.Snapshot(kind="ConfigMap"))
    deep = zlib.compressobj(wbits=31)
    nested = deep.compress(b'{"policy":{"a":' + b"[" * 100_000) + deep.flush()
    for data, message in (
        (b"", "cut off"),
        (b"hello", "not a gzip file"),
        (good[:-9], "cut off"),
        (wrong_kind, "found a ConfigMap"),
        (nested, r"nested too deeply|not a snapshot"),
        (zlib.compress(b"{}", wbits=31)[:4] + b"\xff" * 40, "damaged"),
        (_gzip(b"not json"), "not a snapshot"),
        (_gzip(b'{"objects":{"pods":[{"metadata":7}]}}'), r"\$\.objects\.pods\[0\]\.metadata"),
    ):
        with pytest.raises(InvalidSnapshot, match=message):
            snapshot.decode(data)
    monkeypatch.setattr(snapshot, "LARGEST_TEXT", 10 << 20)
    with pytest.raises(InvalidSnapshot, match="unpacks to more"):
        snapshot.decode(_gzip(b" " * (11 << 20)))


@given(st.binary(max_size=200), st.integers(0, 400))
def test_no_damage_raises_anything_else(noise, position):
    good = snapshot.encode(snapshot.Snapshot(policy=snapshot.policy_document(Policy())))
    damaged = good[:position] + noise + good[position + len(noise) :]
    try:
        snapshot.decode(damaged)
    except InvalidSnapshot:
        pass


def _gzip(text: bytes) -> bytes:
    return zlib.compress(text, wbits=31)
