"""The commands that talk to a cluster, against a server and an agent that run in a thread of their own."""

from __future__ import annotations

import asyncio
import json
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from capstan import kube
from capstan.api import resources
from capstan.cli.blueprint import DIFFERENT, blueprint
from capstan.controllers.blueprint_agent import BlueprintAgent

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tools"))
from served import Served

BLUEPRINT = """
apiVersion: platform.capstan.dev/v1alpha1
kind: Blueprint
metadata: {name: bp}
spec:
  version: %s
  values: {size: %d}
  addons:
  - name: maps
    manifests:
    - {apiVersion: v1, kind: ConfigMap, metadata: {name: a, namespace: default}, data: {size: "is ${values.size}"}}
"""


@pytest.fixture
def cluster(tmp_path: Path) -> Iterator[Served]:
    with Served(tmp_path / "state", lambda client: BlueprintAgent(client, "local")) as embedded:
        yield embedded


@pytest.fixture
def run(cluster: Served) -> Callable[..., Result]:
    def invoke(*arguments: str) -> Result:
        environment = {"KUBECONFIG": str(cluster.kubeconfig)}
        return CliRunner().invoke(blueprint, list(arguments), env=environment)

    return invoke


def write(folder: Path, version: str, size: int) -> str:
    file = folder / "bp.yaml"
    file.write_text(BLUEPRINT % (version, size))
    return str(file)


def test_from_plan_to_apply_to_drift_to_explain(cluster: Served, run: Callable[..., Result], tmp_path: Path) -> None:
    file = write(tmp_path, "1.0.0", 1)

    planned = run("plan", file, "--exit-code")
    assert planned.exit_code == DIFFERENT, planned.output
    assert planned.stdout.splitlines() == [
        "bp 1.0.0",
        "+ ConfigMap/default/a  (maps: create)",
        "1 to create, 0 to update, 0 to prune, 0 unchanged, 0 protected",
    ]

    applied = run("apply", file)
    assert applied.exit_code == 0, applied.output
    assert "cluster local uses bp 1.0.0" in applied.stdout
    assert "ready: 1 objects" in applied.stdout
    again = run("plan", file, "--exit-code")
    assert again.exit_code == 0, again.output

    file = write(tmp_path, "1.1.0", 2)
    fields = json.loads(run("plan", file, "-o", "json").stdout)["changes"][0]["fields"]
    assert fields == [{"path": "data.size", "live": "is 1", "desired": "is 2", "change": "changed"}]

    assert run("drift").stdout == "cluster local is as its blueprint says\n"
    cluster.edit(lambda client: client.patch(resources.CONFIG_MAPS, "a", "default", patch={"data": {"size": "9"}}))

    async def repaired(client: kube.Client) -> None:
        while not (await client.get(resources.CLUSTERS, "local")).status.drift:
            await asyncio.sleep(0.01)

    cluster.edit(repaired)
    (entry,) = json.loads(run("drift", "-o", "json").stdout)
    assert (entry["path"], entry["found"], entry["manager"]) == ("data.size", "9", "kubectl-edit")

    explained = json.loads(run("explain", "local", "values", "size", "-o", "json").stdout)
    assert [(setting["layer"], setting["value"]) for setting in explained] == [(f"blueprint bp ({file})", 1)]
    status = run("status", "local")
    assert status.exit_code == 0, status.output
    assert "maps" in status.stdout


def test_a_published_version_cannot_be_changed(run: Callable[..., Result], tmp_path: Path) -> None:
    assert "published" in run("publish", write(tmp_path, "1.0.0", 1)).stdout
    assert "published already" in run("publish", write(tmp_path, "1.0.0", 1)).stdout
    refused = run("publish", write(tmp_path, "1.0.0", 2))
    assert refused.exit_code == 1
    assert "raise spec.version" in refused.output


def test_a_cluster_without_a_blueprint_and_an_unknown_one(cluster: Served, run: Callable[..., Result]) -> None:
    assert run("drift", "mars").exit_code == 1
    cluster.edit(lambda client: client.create(resources.CLUSTERS, {"metadata": {"name": "local"}, "spec": {}}))
    result = run("explain", "local", "values", "size")
    assert result.exit_code == 1
    assert "has no blueprint" in result.output


def test_apply_says_what_is_missing_when_the_cluster_does_not_become_ready(
    run: Callable[..., Result], tmp_path: Path
) -> None:
    result = run("apply", write(tmp_path, "1.0.0", 1), "--cluster", "elsewhere", "--timeout", "0.1")
    assert result.exit_code == 1
    assert "no agent has reported on it" in result.output
