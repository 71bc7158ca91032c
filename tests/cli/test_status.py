"""`capstan status` on clusters of all kinds."""

import json

import anyio.to_thread
import pytest
from click.testing import CliRunner

from capstan.api import resources
from capstan.cli import main
from capstan.embedded import Platform

pytestmark = pytest.mark.anyio


async def test_gpus_and_mig_instances_of_a_device_plugin_are_in_use_when_pods_ask_for_them(tmp_path):
    async with Platform([], data_dir=tmp_path / "data", port=0) as platform:
        client = platform.client()
        for name, offers in (
            ("whole", {"nvidia.com/gpu": "8"}),
            ("mig", {"nvidia.com/mig-1g.5gb": "7", "nvidia.com/mig-3g.20gb": "2"}),
        ):
            await client.create(resources.NODES, {"metadata": {"name": name}})
            status = {"allocatable": {"cpu": "8", "pods": "10", **offers}}
            await client.patch(resources.NODES, name, patch={"status": status}, subresource="status")
        for node, resource, count in (("whole", "nvidia.com/gpu", "3"), ("mig", "nvidia.com/mig-1g.5gb", "2")):
            container = {"name": "main", "image": "x", "resources": {"limits": {resource: count}}}
            spec = {"nodeName": node, "containers": [container]}
            await client.create(resources.PODS, {"metadata": {"name": node, "namespace": "default"}, "spec": spec})
        arguments = ["status", "-o", "json", "--kubeconfig", str(platform.kubeconfig)]
        result = await anyio.to_thread.run_sync(CliRunner().invoke, main, arguments)
    assert result.exit_code == 0, result.output
    nodes = {node["name"]: (node["gpus"], node["gpusInUse"]) for node in json.loads(result.output)["nodes"]}
    assert nodes == {"whole": (8, 3), "mig": (9, 2)}
