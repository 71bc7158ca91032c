"""`capstan demo` as a user runs it."""

import json
import os
import subprocess
import sys

PILLARS = ("blueprint", "ResourceSlices", "does not fit", "freed", "starved", "share", "confidential", "hand edit")


def demo(tmp_path, *options):
    return subprocess.run(
        [sys.executable, "-m", "capstan", "demo", *options],
        capture_output=True,
        text=True,
        timeout=120,
        env=os.environ | {"HOME": str(tmp_path), "COLUMNS": "120"},
    )


def test_every_step_is_verified_and_named_for_machines(tmp_path):
    done = demo(tmp_path, "--json")
    outcome = json.loads(done.stdout)
    assert done.returncode == 0, done.stdout + done.stderr
    assert outcome["verified"]
    titles = [step["title"] for step in outcome["steps"]]
    for pillar in PILLARS:
        assert any(pillar.lower() in title.lower() for title in titles), pillar
    assert all(step["verified"] and step["evidence"] and step["parts"] for step in outcome["steps"])
    assert outcome["seconds"] < 60
    assert not list(tmp_path.iterdir()), "nothing is left behind"


def test_people_see_each_step_and_a_table(tmp_path):
    done = demo(tmp_path)
    assert done.returncode == 0
    assert "steps verified" in done.stdout
    assert "RAN ON" in done.stdout
    assert "simulated GPUs" in done.stdout
