"""deploy/: what it grants suffices, what it starts works, and whoever leads may die at any moment."""

import json
import signal
import socket
import ssl
import subprocess
import sys
import time
import urllib.request
from collections import Counter
from pathlib import Path

import msgspec
import pytest
import yaml

from capstan import kube
from capstan.controllers.listener import Listener
from capstan.embedded.components import controllers

pytestmark = pytest.mark.kubectl
ROOT = Path(__file__).resolve().parents[2]
CAPSTAN = [sys.executable, "-m", "capstan"]
MANIFEST = ROOT / "deploy" / "controllers.yaml"
NAMESPACE = "capstan-system"
NAMES = ("scheduler", "grouper")


def deployed(kind, name):
    documents = yaml.safe_load_all(MANIFEST.read_text())
    return next(d for d in documents if d["kind"] == kind and d["metadata"]["name"] == name)


def granted(rules):
    """Every (group, resource, verb), each once."""
    return {
        (group, resource, verb)
        for rule in msgspec.to_builtins(rules)
        for group in rule["apiGroups"]
        for resource in rule["resources"]
        for verb in rule["verbs"]
    }


@pytest.mark.parametrize("name", NAMES)
def test_accounts_may_do_what_their_code_does_and_no_more(name):
    component = next(c for c in controllers({}) if c.name == name)
    everywhere, own = deployed("ClusterRole", f"capstan:{name}"), deployed("Role", f"capstan:{name}")
    assert granted(everywhere["rules"]) == granted([*component.rules, *Listener.RULES])
    assert granted(own["rules"]) == granted([*component.own_rules, *kube.LeaderElector.RULES])


class Process:
    """`capstan controllers` as a container of the manifest starts it, with the token of its account."""

    def __init__(self, platform, name, *options):
        directory = platform.data_dir.parent
        self.log = directory / f"{name}-{time.monotonic_ns()}.log"
        config = yaml.safe_load(platform.kubeconfig.read_text())
        config["users"][0]["user"] = {"token": platform.kubectl("create", "token", name, "-n", NAMESPACE).strip()}
        kubeconfig = directory / f"{name}.kubeconfig"
        kubeconfig.write_text(yaml.safe_dump(config))
        (container,) = deployed("Deployment", name)["spec"]["template"]["spec"]["containers"]
        assert container["command"] == ["capstan", "controllers"]
        # Where the manifest mounts a Secret and listens on its own address, the test has files and one address for all.
        elsewhere = {
            "0.0.0.0:8443": f"127.0.0.1:{free_port()}",
            "/tls/tls.crt": str(platform.data_dir / "pki" / "server.crt"),
            "/tls/tls.key": str(platform.data_dir / "pki" / "server.key"),
        }
        arguments = [elsewhere.get(argument, argument) for argument in container["args"]]
        self.url = f"https://{arguments[arguments.index('--listen') + 1]}"
        self.authority = platform.data_dir / "pki" / "ca.crt"
        with self.log.open("wb") as log:
            self.process = subprocess.Popen(
                [*CAPSTAN, "controllers", *arguments, *options, "--kubeconfig", str(kubeconfig)], stdout=log, stderr=log
            )
        self.identity = f"{socket.gethostname()}-{self.process.pid}"

    def get(self, path):
        context = ssl.create_default_context(cafile=str(self.authority))
        with urllib.request.urlopen(self.url + path, context=context, timeout=5) as answer:
            return answer.read().decode()

    def end(self, number=signal.SIGTERM):
        self.process.send_signal(number)
        return self.process.wait(20)


def free_port():
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        return sock.getsockname()[1]


def leader(platform):
    lease = platform.try_kubectl("get", "lease", "capstan-scheduler", "-n", NAMESPACE, "-o", "json")
    return json.loads(lease.stdout)["spec"].get("holderIdentity") if lease.returncode == 0 else None


@pytest.fixture
def cluster(make_platform, tmp_path):
    """Sixteen GPUs, nobody who schedules, and the manifest applied."""
    platform = make_platform(tmp_path / "data", "4xl4x4", "--without", "scheduler", "--without", "grouper")
    platform.start()
    platform.kubectl("apply", "--server-side", "--force-conflicts", "-f", str(MANIFEST))
    return platform


@pytest.fixture
def start(cluster):
    started = []

    def start(name, *options):
        started.append(Process(cluster, name, "--lease-seconds", "6", *options))
        return started[-1]

    yield start
    for each in started:
        if each.process.poll() is None:
            each.end(signal.SIGKILL)


def gangs(count, size=4, seconds=3600):
    """Jobs of one GPU a pod, each all or nothing."""
    template = {
        "spec": {
            "schedulerName": "kai-scheduler",
            "restartPolicy": "Never",
            "terminationGracePeriodSeconds": 0,
            "containers": [
                {
                    "name": "main",
                    "image": "busybox",
                    "command": ["sleep", str(seconds)],
                    "resources": {"limits": {"nvidia.com/gpu": 1}},
                }
            ],
        }
    }
    labels, notes = {"kai.scheduler/queue": "default-queue"}, {"kai.scheduler/batch-min-member": str(size)}
    items = [
        {
            "apiVersion": "batch/v1",
            "kind": "Job",
            "metadata": {"name": f"gang-{i}", "labels": labels, "annotations": notes},
            "spec": {"parallelism": size, "completions": size, "template": template},
        }
        for i in range(count)
    ]
    return json.dumps({"apiVersion": "v1", "kind": "List", "items": items})


def test_the_manifest_runs_a_gang_and_reclaims_with_no_more_rights(cluster, start):
    scheduler, grouper = start("scheduler"), start("grouper")
    cluster.kubectl("create", "-f", "-", stdin=gangs(4))
    cluster.until(lambda: Counter(cluster.phases("default").values()) == {"Running": 16}, "the gangs run", 90)
    assert scheduler.get("/healthz") == "ok"
    entitled = {
        "apiVersion": "scheduling.run.ai/v2",
        "kind": "Queue",
        "metadata": {"name": "entitled"},
        "spec": {"resources": {name: {"quota": 4, "limit": -1} for name in ("gpu", "cpu", "memory")}},
    }
    cluster.kubectl("apply", "-f", "-", stdin=json.dumps(entitled))
    demo = cluster.get("queue", "default-parent-queue")
    demo["spec"]["resources"]["gpu"]["quota"] = 8
    cluster.kubectl("apply", "-f", "-", stdin=json.dumps(demo))
    wanted = json.loads(gangs(1))
    wanted["items"][0]["metadata"] |= {"name": "owner", "labels": {"kai.scheduler/queue": "entitled"}}
    cluster.kubectl("create", "-f", "-", stdin=json.dumps(wanted))
    owned = "batch.kubernetes.io/job-name=owner"
    cluster.until(lambda: list(cluster.phases("default", owned).values()) == ["Running"] * 4, "the owner's gang runs")
    for process in (scheduler, grouper):
        assert "forbidden" not in process.log.read_text().lower()
        assert process.end() == 0


@pytest.mark.parametrize(
    ("name", "verb", "what"),
    [
        ("scheduler", "create", "pods"),
        ("scheduler", "delete", "pods"),
        ("scheduler", "get", "secrets"),
        ("scheduler", "patch", "queues.scheduling.run.ai"),
        ("grouper", "delete", "podgroups.scheduling.run.ai"),
        ("grouper", "list", "secrets"),
        ("grouper", "create", "pods/binding"),
    ],
)
def test_what_the_manifest_does_not_grant(dgx, name, verb, what):
    account = f"--as=system:serviceaccount:{NAMESPACE}:{name}"
    assert dgx.try_kubectl("auth", "can-i", verb, what, account, "-A").stdout.strip() == "no"


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
def test_another_goes_on_when_the_leader_ends_in_the_middle_of_gangs(cluster, start, number):
    start("grouper")
    both = [start("scheduler"), start("scheduler")]
    cluster.until(lambda: leader(cluster) in {each.identity for each in both}, "one of them leads")
    cluster.kubectl("create", "-f", "-", stdin=gangs(12, seconds=1))
    first = next(each for each in both if each.identity == leader(cluster))
    cluster.until(lambda: cluster.items("resourceclaims", "-n", "default"), "the first gangs are being bound")
    first.end(number)
    (other,) = (each for each in both if each is not first)
    cluster.until(lambda: leader(cluster) == other.identity, "the other leads")
    cluster.until(lambda: Counter(cluster.phases("default").values()) == {"Succeeded": 48}, "all gangs run", 60)
    warnings = {e["reason"] for e in cluster.items("events", "-n", "default") if e["type"] == "Warning"}
    assert warnings <= {"FailedScheduling", "Unschedulable"}
