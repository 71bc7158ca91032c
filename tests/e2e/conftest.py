"""`capstan up` as its own process, driven by a real kubectl."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tools"))
import kubectl as kubectl_tool

ROOT = Path(__file__).resolve().parents[2]
INPUTS = ROOT.parent / "shared" / "inputs"
CAPSTAN = [sys.executable, "-m", "capstan"]


class Failed(AssertionError):
    """A command that should have worked did not; the message has what it printed."""


class Platform:
    """A running `capstan up`."""

    def __init__(self, data_dir: Path, nodes: str, *options: str) -> None:
        self.data_dir = data_dir
        self.kubeconfig = data_dir / "kubeconfig"
        data_dir.parent.mkdir(parents=True, exist_ok=True)
        self.log = data_dir.parent / "capstan-up.log"
        self.command = [*CAPSTAN, "up", "--nodes", nodes, "--data-dir", str(data_dir), "--port", "0", *options]
        self.process: subprocess.Popen[bytes] | None = None
        found = kubectl_tool.find()
        if found is None:
            pytest.fail("no kubectl of 1.30 or newer: run `make kubectl`")
        self.kubectl_path = found

    def start(self) -> None:
        with self.log.open("ab") as log:
            before = log.tell()
            self.process = subprocess.Popen(self.command, stdout=log, stderr=log, env=self.environment())
        deadline = time.monotonic() + 90
        while "Capstan is up" not in self.log.read_bytes()[before:].decode():
            if self.process.poll() is not None or time.monotonic() > deadline:
                raise Failed(f"capstan up did not come up:\n{self.log.read_text()[-4000:]}")
            time.sleep(0.05)

    def stop(self, number: int = signal.SIGINT, patience: float = 30) -> int:
        assert self.process is not None
        self.process.send_signal(number)
        try:
            return self.process.wait(patience)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
            raise Failed(f"capstan up did not stop:\n{self.log.read_text()[-4000:]}") from None

    def kill(self) -> None:
        assert self.process is not None
        self.process.kill()
        self.process.wait()

    def environment(self) -> dict[str, str]:
        home = str(self.data_dir.parent)
        return os.environ | {"KUBECONFIG": str(self.kubeconfig), "HOME": home, "NO_COLOR": "1", "COLUMNS": "160"}

    def run(
        self, *arguments: str, stdin: str | None = None, check: bool = True, timeout: float = 60
    ) -> subprocess.CompletedProcess[str]:
        done = subprocess.run(
            arguments, input=stdin, capture_output=True, text=True, timeout=timeout, env=self.environment()
        )
        if check and done.returncode != 0:
            raise Failed(f"{' '.join(arguments)} exited {done.returncode}:\n{done.stdout}\n{done.stderr}")
        return done

    def kubectl(self, *arguments: str, stdin: str | None = None, check: bool = True) -> str:
        done = self.try_kubectl(*arguments, stdin=stdin)
        if check and done.returncode != 0:
            raise Failed(f"kubectl {' '.join(arguments)} exited {done.returncode}:\n{done.stdout}\n{done.stderr}")
        return done.stdout

    def try_kubectl(self, *arguments: str, stdin: str | None = None) -> subprocess.CompletedProcess[str]:
        return self.run(self.kubectl_path, *arguments, stdin=stdin, check=False)

    def capstan(
        self, *arguments: str, check: bool = True, stdin: str | None = None
    ) -> subprocess.CompletedProcess[str]:
        return self.run(*CAPSTAN, *arguments, check=check, stdin=stdin)

    def get(self, *arguments: str) -> dict:
        return json.loads(self.kubectl("get", *arguments, "-o", "json"))

    def items(self, *arguments: str) -> list[dict]:
        return self.get(*arguments)["items"]

    def until(self, look, what: str, patience: float = 40):
        """Look until the answer is true; returns it."""
        deadline = time.monotonic() + patience
        while True:
            seen = look()
            if seen:
                return seen
            if time.monotonic() > deadline:
                pods = self.kubectl("get", "pods,podgroups,resourceclaims", "-A", "-o", "wide", check=False)
                events = self.kubectl("get", "events", "-A", check=False)
                raise Failed(f"not seen within {patience} s: {what}\n{pods}\n{events}\n{self.log.read_text()[-3000:]}")
            time.sleep(0.2)

    def phases(self, namespace: str, selector: str = "") -> dict[str, str]:
        options = ["-l", selector] if selector else []
        return {p["metadata"]["name"]: p["status"]["phase"] for p in self.items("pods", "-n", namespace, *options)}

    def devices(self, namespace: str) -> dict[str, list[tuple[str, str]]]:
        """Pod name -> (pool, device) it holds by any claim."""
        held: dict[str, list[tuple[str, str]]] = {}
        for claim in self.items("resourceclaims", "-n", namespace):
            results = claim.get("status", {}).get("allocation", {}).get("devices", {}).get("results", [])
            for user in claim.get("status", {}).get("reservedFor", []):
                held.setdefault(user["name"], []).extend((r["pool"], r["device"]) for r in results)
        return held

    def gone(self, namespace: str) -> None:
        """Delete a namespace and wait until it and its content are gone."""
        self.kubectl("delete", "namespace", namespace, "--wait=false", "--ignore-not-found")
        self.kubectl("delete", "pods", "--all", "-n", namespace, "--grace-period=1", "--wait=false")
        self.until(lambda: self.try_kubectl("get", "namespace", namespace).returncode != 0, f"{namespace} is gone")


@pytest.fixture(scope="session", autouse=True)
def temporary_directory():
    """Platforms that are killed leave files behind; they go with this directory. Short: paths of unix sockets are."""
    with tempfile.TemporaryDirectory(prefix="e2e-") as directory, pytest.MonkeyPatch.context() as patch:
        patch.setenv("TMPDIR", directory)
        yield


@pytest.fixture(scope="session")
def inputs() -> Path:
    if not INPUTS.is_dir():
        pytest.skip("the upstream manifests are not beside this checkout (../shared/inputs)")
    return INPUTS


def _running(directory: Path, nodes: str, *options: str):
    platform = Platform(directory, nodes, *options)
    platform.start()
    yield platform
    if platform.process.poll() is None:
        platform.stop()


@pytest.fixture(scope="session")
def dgx(tmp_path_factory):
    """Two A100 machines of eight GPUs and one with four L4."""
    yield from _running(tmp_path_factory.mktemp("dgx") / "data", "2xdgx-a100,1xl4x4")


@pytest.fixture(scope="session")
def one_gpu(tmp_path_factory):
    """One node with one GPU."""
    yield from _running(tmp_path_factory.mktemp("one") / "data", "1xl4x1")


@pytest.fixture
def make_platform():
    """Platforms of a test's own, not started, killed at its end: for tests that stop, kill or place them."""
    made = []

    def make(data_dir: Path, nodes: str, *options: str) -> Platform:
        made.append(Platform(data_dir, nodes, *options))
        return made[-1]

    yield make
    for platform in made:
        if platform.process is not None and platform.process.poll() is None:
            platform.kill()


@pytest.fixture
def fresh(make_platform, tmp_path):
    """A platform with one A100 machine, not started."""
    return make_platform(tmp_path / "data", "1xdgx-a100")


@pytest.fixture
def pair(make_platform, tmp_path):
    """A platform with two nodes of four L4 each, not started."""
    return make_platform(tmp_path / "data", "2xl4x4")
