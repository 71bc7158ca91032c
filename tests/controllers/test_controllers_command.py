"""`capstan controllers`: scheduler and grouper of a cluster that runs without them, each under its Lease."""

import asyncio
import json
import socket

import pytest
from click.testing import CliRunner

from capstan.api import resources
from capstan.api.feature_gates import FeatureGates
from capstan.cli import main
from capstan.cli.controllers import NAMES, run
from capstan.controllers.listener import Listener

pytestmark = pytest.mark.anyio
SHARD = {"apiVersion": "kai.scheduler/v1", "kind": "SchedulingShard", "metadata": {"name": "default"}, "spec": {}}


async def test_they_group_schedule_and_serve_pages(house):
    await house.client.create(resources.SCHEDULING_SHARDS, SHARD)
    await house.node("n1", gpus=1)
    pages = {}
    listener = Listener(house.client, pages, port=0)
    working = asyncio.create_task(run(house.client, NAMES, FeatureGates(), pages, listener, lease_seconds=15))
    try:
        await house.pod("p", gpus=1)
        await house.until(lambda: house.bound("p"), "the pod is grouped and bound")
        lease = await house.client.get(resources.LEASES, "capstan-scheduler", "capstan-system")
        assert lease.spec.holder_identity
        assert set(pages) == {"/metrics", "/snapshot"}
    finally:
        working.cancel()
        await asyncio.gather(working, return_exceptions=True)


def test_an_address_that_is_taken_is_named(tmp_path):
    config = tmp_path / "config"
    cluster = {"name": "c", "cluster": {"server": "http://127.0.0.1:1"}}
    chosen = {"name": "x", "context": {"cluster": "c", "user": "u"}}
    users = [{"name": "u", "user": {}}]
    config.write_text(json.dumps({"clusters": [cluster], "users": users, "contexts": [chosen], "current-context": "x"}))
    with socket.create_server(("127.0.0.1", 0)) as taken:
        address = f"127.0.0.1:{taken.getsockname()[1]}"
        result = CliRunner().invoke(main, ["controllers", "--kubeconfig", str(config), "--listen", address])
    assert result.exit_code == 1
    assert f"{address} cannot be listened on" in result.output


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--listen", "8443"], "is not HOST:PORT"),
        (["--only", "cook"], "'cook' is not one of"),
    ],
)
def test_what_is_wrong_is_said(arguments, said):
    result = CliRunner().invoke(main, ["controllers", *arguments])
    assert result.exit_code == 2
    assert said in result.output
