"""The completion scripts do what they promise, asked as the shells ask."""

import os
import subprocess
import sys

import pytest

ASK = """
source <(capstan completion bash)
COMP_WORDS=(capstan {words})
COMP_CWORD=$((${{#COMP_WORDS[@]}} - 1))
$(complete -p capstan | sed 's/.*-F \\([^ ]*\\).*/\\1/') capstan
echo "${{COMPREPLY[*]}}"
"""


@pytest.fixture
def environment(tmp_path):
    """`capstan` is the first on PATH, whether or not it is installed as a script."""
    script = tmp_path / "capstan"
    script.write_text(
        f'#!/bin/sh\nexec {sys.executable} -c "from capstan.cli import main; main(prog_name=\'capstan\')" "$@"\n'
    )
    script.chmod(0o755)
    return os.environ | {"PATH": f"{tmp_path}:{os.environ['PATH']}"}


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        ("st", {"status"}),
        ("blueprint dr", {"drift"}),
        ("up --n", {"--nodes", "--no-demo-queues"}),
        ("status -o ''", {"table", "json", "yaml"}),
        ("completion ''", {"bash", "zsh", "fish"}),
    ],
)
def test_bash_completes_what_was_begun(environment, words, expected):
    done = subprocess.run(
        ["bash", "-c", ASK.format(words=words)], env=environment, capture_output=True, text=True, timeout=60
    )
    assert (set(done.stdout.split()), done.stderr) == (expected, "")


@pytest.mark.parametrize(
    ("shell", "variables"),
    [
        ("zsh", {"COMP_WORDS": "capstan st", "COMP_CWORD": "1"}),
        ("fish", {"COMP_WORDS": "capstan st", "COMP_CWORD": "st"}),
    ],
)
def test_other_shells_are_answered_in_their_way(environment, shell, variables):
    """What the sourced script of each shell runs; the shells themselves need not be installed."""
    asked = environment | variables | {"_CAPSTAN_COMPLETE": f"{shell}_complete"}
    done = subprocess.run(["capstan"], env=asked, capture_output=True, text=True, timeout=60)
    assert "status" in done.stdout
    assert "Nodes, GPUs" in done.stdout
    assert done.stderr == ""
