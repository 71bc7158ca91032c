"""Whatever it is doing, `capstan up` stops soon when it is told to, and leaves nothing in the temp directory."""

import shutil
import signal
import subprocess
import tempfile
import time
from pathlib import Path

import pytest

pytestmark = pytest.mark.kubectl

PATIENCE_SECONDS = 10

SLEEPER = """
apiVersion: batch/v1
kind: Job
metadata: {name: sleepers, namespace: default}
spec:
  parallelism: 4
  template:
    spec:
      restartPolicy: Never
      containers:
        - {name: main, image: ubuntu, command: [sleep, infinity], resources: {limits: {nvidia.com/gpu: 1}}}
"""


@pytest.fixture
def temporary(monkeypatch):
    """A temp directory of the platform's own: short, because paths of unix sockets are."""
    directory = Path(tempfile.mkdtemp(prefix="up-"))
    monkeypatch.setenv("TMPDIR", str(directory))
    yield directory
    shutil.rmtree(directory)


def launch(platform):
    """Starts it without waiting until it is up."""
    with platform.log.open("ab") as log:
        platform.process = subprocess.Popen(platform.command, stdout=log, stderr=log, env=platform.environment())


def stopped_cleanly(platform, temporary):
    assert platform.process.wait(PATIENCE_SECONDS) == 0, platform.log.read_text()
    assert list(temporary.iterdir()) == []
    assert "Traceback" not in platform.log.read_text()


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
@pytest.mark.parametrize("delay", [0.0, 0.2, 0.5, 1.0])
def test_while_it_starts(fresh, temporary, delay, number):
    launch(fresh)
    fresh.until(lambda: "Starting" in fresh.log.read_text(), "it starts")
    time.sleep(delay)
    fresh.process.send_signal(number)
    stopped_cleanly(fresh, temporary)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_with_pods_running_and_clients_watching(fresh, temporary, number):
    fresh.start()
    fresh.kubectl("create", "-f", "-", stdin=SLEEPER)
    fresh.kubectl("wait", "pods", "-l", "job-name=sleepers", "--for=condition=Ready", "--timeout=30s")
    watching = [
        subprocess.Popen([fresh.kubectl_path, *command], stdout=subprocess.PIPE, env=fresh.environment())
        for command in (("get", "pods", "-w"), ("logs", "-f", "job/sleepers"))
    ]
    assert watching[0].stdout.readline().startswith(b"NAME")
    fresh.process.send_signal(number)
    stopped_cleanly(fresh, temporary)
    for client in watching:
        client.communicate(timeout=PATIENCE_SECONDS)


def test_when_told_twice(fresh, temporary):
    fresh.start()
    fresh.process.send_signal(signal.SIGINT)
    time.sleep(0.05)
    fresh.process.send_signal(signal.SIGINT)
    stopped_cleanly(fresh, temporary)
