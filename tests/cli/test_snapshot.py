"""`capstan snapshot` against a platform over HTTPS, and offline on what it wrote."""

import gzip
import json
import stat

import anyio
import anyio.to_thread
import pytest
from click.testing import CliRunner

from capstan.api import resources
from capstan.cli import main
from capstan.embedded import Platform
from capstan.node.models import parse_fleet
from capstan.scheduling.snapshot import Snapshot, encode

GANG = {
    "apiVersion": "scheduling.run.ai/v2alpha2",
    "kind": "PodGroup",
    "metadata": {"name": "too-big", "namespace": "default"},
    "spec": {"queue": "default-queue", "minMember": 1},
}


def capstan(*arguments, code=0):
    result = CliRunner().invoke(main, [str(argument) for argument in arguments])
    assert result.exit_code == code, result.output
    return result.output


@pytest.fixture
async def taken(tmp_path):
    """A snapshot of a cluster with one GPU and a pod that wants two."""
    file = tmp_path / "cluster.snapshot"
    async with Platform(parse_fleet("1xl4x1"), data_dir=tmp_path / "data", port=0) as platform:
        client = platform.client()
        await client.create(resources.POD_GROUPS, GANG)
        container = {
            "name": "main",
            "image": "x",
            "env": [{"name": "TOKEN", "value": "hunter2"}],
            "resources": {"limits": {"nvidia.com/gpu": "2"}},
        }
        await client.create(
            resources.PODS,
            {
                "metadata": {"name": "p", "namespace": "default", "annotations": {"pod-group-name": "too-big"}},
                "spec": {"schedulerName": "kai-scheduler", "containers": [container]},
            },
        )
        with anyio.fail_after(20):
            while not await told(client):
                await anyio.sleep(0.05)
        said = await anyio.to_thread.run_sync(capstan, "snapshot", "--kubeconfig", platform.kubeconfig, "-o", file)
        assert "does not serve" not in said
        yield file


async def told(client):
    group = await client.get(resources.POD_GROUPS, "too-big", "default")
    return group.status.scheduling_conditions


@pytest.mark.anyio
async def test_a_snapshot_is_taken_shown_and_decided_again(taken, tmp_path):
    assert stat.S_IMODE(taken.stat().st_mode) == 0o600
    shown = json.loads(capstan("snapshot", "show", taken, "-o", "json"))
    assert shown["objects"]["nodes"] == 1
    assert shown["pods"] == {"Pending": 1}
    assert shown["gpus"] == 1
    assert shown["policy"]["schedulerNames"] == ["default-scheduler", "kai-scheduler"]
    assert "default-queue" in capstan("snapshot", "show", taken)
    (cycle,) = json.loads(capstan("snapshot", "replay", taken, "--cycles", 5, "-o", "json"))
    assert cycle["binds"] == []
    (verdict,) = cycle["verdicts"]
    assert (verdict["group"], verdict["reason"]) == ("too-big", "PodSchedulingErrors")
    text = capstan("snapshot", "replay", taken, "--explain", "too-big")
    assert "PodSchedulingErrors" in text
    assert "l4x1-0" in text
    policy = tmp_path / "policy.yaml"
    policy.write_text("schedulerNames: [nobody]\n")
    (cycle,) = json.loads(capstan("snapshot", "replay", taken, "--policy", policy, "-o", "json"))
    assert cycle["verdicts"] == []
    shard = tmp_path / "shard.yaml"
    shard.write_text("apiVersion: kai.scheduler/v1\nkind: SchedulingShard\nmetadata: {name: default}\nspec: {}\n")
    (cycle,) = json.loads(capstan("snapshot", "replay", taken, "--policy", shard, "-o", "json"))
    assert len(cycle["verdicts"]) == 1
    assert b"hunter2" not in gzip.decompress(taken.read_bytes())


def test_what_is_wrong_is_said_in_one_line(tmp_path):
    file = tmp_path / "file"
    file.write_bytes(b"hello")
    assert "not a gzip file" in capstan("snapshot", "show", file, code=1)
    assert "say where to write it" in capstan("snapshot", code=2)
    file.write_bytes(encode(Snapshot()))
    assert "has no gang or pod 'x'" in capstan("snapshot", "replay", file, "--explain", "x", code=1)
    assert "no RFC 3339 time" in capstan("snapshot", "replay", file, "--now", "noon", code=2)
    policy = tmp_path / "policy.yaml"
    policy.write_text("gpuPlacment: spread\n")
    assert "unknown field 'gpuPlacment'" in capstan("snapshot", "replay", file, "--policy", policy, code=1)
    policy.write_text("actions: [alocate]\n")
    assert "unknown action 'alocate'" in capstan("snapshot", "replay", file, "--policy", policy, code=1)


@pytest.fixture
def anyio_backend():
    return "asyncio"
