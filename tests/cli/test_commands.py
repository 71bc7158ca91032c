"""What a newcomer finds: help that teaches by example, completion, and errors that say what to do."""

import click
import pytest
from click.testing import CliRunner

from capstan.cli import main


def commands(group=main, path=()):
    """Every command with its path, groups included."""
    context = click.Context(group)
    for name in group.list_commands(context):
        command = group.get_command(context, name)
        yield (*path, name), command
        if isinstance(command, click.Group):
            yield from commands(command, (*path, name))


@pytest.mark.parametrize(
    ("path", "command"), list(commands()), ids=lambda value: " ".join(value) if isinstance(value, tuple) else ""
)
def test_every_command_has_help_with_an_example(path, command):
    result = CliRunner().invoke(main, [*path, "--help"])
    assert result.exit_code == 0, result.output
    assert f"capstan {' '.join(path)}" in result.output.partition("Options:")[0].replace("Usage:", "", 1), (
        "the help shows an example"
    )


def test_the_overview_lists_every_command_with_one_line():
    output = CliRunner().invoke(main, ["--help"]).output
    for path, command in commands():
        if len(path) == 1:
            assert path[0] in output
            assert command.help


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_completion_scripts(shell):
    result = CliRunner().invoke(main, ["completion", shell])
    assert result.exit_code == 0
    assert "_CAPSTAN_COMPLETE" in result.output


def test_without_a_cluster_the_error_says_how_to_get_one(tmp_path):
    environment = {"KUBECONFIG": str(tmp_path / "none"), "HOME": str(tmp_path)}
    result = CliRunner().invoke(main, ["status"], env=environment)
    assert result.exit_code == 1
    assert "capstan up" in result.output


def test_an_unknown_node_model_names_the_token_and_the_models():
    result = CliRunner().invoke(main, ["up", "--nodes", "2xdgx-a100,1xvax"])
    assert result.exit_code == 2
    assert "vax" in result.output
    assert "dgx-h100" in result.output


def test_apply_reads_everything_before_it_sends_anything(tmp_path):
    (tmp_path / "good.yaml").write_text("{apiVersion: v1, kind: ConfigMap, metadata: {name: a}}")
    (tmp_path / "bad.yaml").write_text("apiVersion: v1\nkind: [")
    result = CliRunner().invoke(main, ["apply", "-f", str(tmp_path)])
    assert result.exit_code == 1
    assert "bad.yaml: line 3" in result.output
