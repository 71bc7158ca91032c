"""The offline commands, on the example that the documentation walks through."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from capstan.api import manifests
from capstan.cli.blueprint import blueprint

EXAMPLE = Path(__file__).parents[2] / "examples" / "blueprints" / "gpu-platform"
MIG = ("--fact", "gpu.mig=true", "--fact", "gpu.count=16", "--fact", "kubernetes.version=v1.36.0")
SLICED = ("--fact", "gpu.mig=false", "--fact", "gpu.count=4")


def run(*arguments: str) -> Result:
    return CliRunner().invoke(blueprint, list(arguments))


def rendered(*arguments: str) -> list[str]:
    result = run("render", str(EXAMPLE), "-o", "json", *arguments)
    assert result.exit_code == 0, result.output
    return [f"{manifest['kind']}/{manifest['metadata']['name']}" for manifest in json.loads(result.stdout)["manifests"]]


def test_the_example_has_no_problems() -> None:
    result = run("lint", str(EXAMPLE))
    assert (result.exit_code, result.stdout) == (0, "3 blueprints, no problems\n")


def test_facts_select_the_variant() -> None:
    assert "DeviceClass/mig-1g.5gb" in rendered(*MIG)
    assert "DeviceClass/shared-gpu" not in rendered(*MIG)
    assert "DeviceClass/shared-gpu" in rendered(*SLICED)
    assert "DeviceClass/mig-1g.5gb" not in rendered(*SLICED)


def test_rendered_yaml_can_be_read_back_in_order_of_application() -> None:
    result = run("render", str(EXAMPLE), "--for", "edge", *SLICED)
    assert result.exit_code == 0, result.output
    kinds = [manifest["kind"] for manifest in manifests.load_manifests(result.stdout)]
    assert kinds[0] == "Namespace"
    assert kinds[-1] == "ValidatingAdmissionPolicyBinding"
    (text,) = [m["data"]["text"] for m in manifests.load_manifests(result.stdout) if m["kind"] == "ConfigMap"]
    assert text == "Ask #gpu-platform for more than 1 GPUs. This cluster has 4."


def test_rendering_is_repeatable() -> None:
    assert run("render", str(EXAMPLE), *MIG).stdout == run("render", str(EXAMPLE), *MIG).stdout


def test_lint_prints_all_problems_and_exits_with_1(tmp_path: Path) -> None:
    file = tmp_path / "broken.yaml"
    file.write_text(
        "apiVersion: platform.capstan.dev/v1alpha1\nkind: Blueprint\nmetadata: {name: broken}\n"
        "spec: {version: one, addons: [{name: a, files: [nowhere.yaml]}]}\n"
    )
    result = run("lint", str(file))
    assert result.exit_code == 1
    assert [line.partition(": spec.")[0] for line in result.stderr.splitlines()] == [
        f"error: {file}: Blueprint broken",
        f"error: {file}: Blueprint broken",
    ]
    problems = json.loads(run("lint", str(file), "-o", "json").stdout)
    assert [problem["path"] for problem in problems] == ["spec.version", "spec.addons[a].files"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("render", str(EXAMPLE), "--fact", "gpu.mig"), "write name=value"),
        (
            ("render", str(EXAMPLE), "--for", "mars", *MIG),
            "the files define no Cluster 'mars'; they define: training, edge",
        ),
        (("render", str(EXAMPLE), "--blueprint", "nope", *MIG), "unknown blueprint"),
        (("render", str(EXAMPLE / "confidential.yaml"), *MIG), "choose one blueprint with --blueprint"),
        (("lint", "nowhere"), "does not exist"),
    ],
)
def test_wrong_calls_say_what_to_do(arguments: tuple[str, ...], message: str) -> None:
    result = run(*arguments)
    assert result.exit_code != 0
    assert message in result.output


def test_unreadable_yaml_names_file_and_line(tmp_path: Path) -> None:
    file = tmp_path / "broken.yaml"
    file.write_text("kind: [\n")
    result = run("lint", str(file))
    assert result.exit_code == 1
    assert f"{file}: line 2" in result.output


@pytest.mark.parametrize("command", ["lint", "render", "plan", "publish", "apply", "status", "drift", "explain"])
def test_every_command_teaches_by_example(command: str) -> None:
    result = run(command, "--help")
    assert result.exit_code == 0
    assert f"capstan blueprint {command}" in result.output
