"""Every command of the README's tour runs, in order, as a newcomer would type it."""

import os
import re
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
pytestmark = pytest.mark.kubectl


def blocks(kind):
    return re.findall(rf"^```{kind}\n(.*?)^```", (ROOT / "README.md").read_text(), re.MULTILINE | re.DOTALL)


def test_the_tour(make_platform, tmp_path):
    (start,) = blocks("sh background")
    nodes = re.search(r"--nodes (\S+)", start)[1]
    tour = "\n".join(blocks("sh"))
    platform = make_platform(tmp_path / ".local" / "state" / "capstan", nodes)
    platform.start()
    kubectl = Path(platform.kubectl_path).parent
    environment = os.environ | {"HOME": str(tmp_path), "PATH": f"{kubectl}:{os.environ['PATH']}", "COLUMNS": "160"}
    done = subprocess.run(
        ["bash", "-euxc", tour], cwd=ROOT, env=environment, capture_output=True, text=True, timeout=200
    )
    assert done.returncode == 0, f"{done.stdout}\n{done.stderr}\n{platform.log.read_text()[-2000:]}"
    assert "GPU 1: NVIDIA A100" in done.stdout, "a worker of the gang sees its two GPUs"
    assert "needs" in done.stdout, "the gang that does not fit says what it lacks"
    assert "MIG 1g.5gb" in done.stdout, "the pod with a slice sees it"
    assert "Queue.scheduling.run.ai/serving spec.resources.gpu.quota: 8 by kubectl-patch" in done.stdout
