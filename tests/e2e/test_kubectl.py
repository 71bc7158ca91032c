"""What people do with kubectl every day, against the embedded platform."""

import json
import subprocess
import time

import pytest

pytestmark = pytest.mark.kubectl

DEPLOYMENT = """
apiVersion: apps/v1
kind: Deployment
metadata: {name: web, namespace: daily, labels: {app: web}}
spec:
  replicas: 2
  selector: {matchLabels: {app: web}}
  template:
    metadata: {labels: {app: web}}
    spec:
      terminationGracePeriodSeconds: 1
      containers:
        - {name: web, image: "nginx:1.27", command: [sleep, infinity], resources: {requests: {cpu: 100m}}}
"""


@pytest.fixture(scope="module")
def daily(dgx):
    dgx.kubectl("create", "namespace", "daily")
    dgx.kubectl("apply", "-f", "-", stdin=DEPLOYMENT)
    dgx.kubectl("rollout", "status", "deployment/web", "-n", "daily", "--timeout=60s")
    yield dgx
    dgx.gone("daily")


def table(text):
    """Header and rows of a kubectl table, cells split at two or more spaces."""
    lines = [line.split() for line in text.strip().splitlines()]
    return lines[0], lines[1:]


def test_get_prints_the_columns_users_know(daily):
    header, rows = table(daily.kubectl("get", "nodes"))
    assert header == ["NAME", "STATUS", "ROLES", "AGE", "VERSION"]
    assert {row[1] for row in rows} == {"Ready"}
    header, rows = table(daily.kubectl("get", "deploy", "-n", "daily"))
    assert header == ["NAME", "READY", "UP-TO-DATE", "AVAILABLE", "AGE"]
    assert rows[0][:4] == ["web", "2/2", "2", "2"]
    header, rows = table(daily.kubectl("get", "pods", "-n", "daily", "-o", "wide"))
    assert header[:7] == ["NAME", "READY", "STATUS", "RESTARTS", "AGE", "IP", "NODE"]
    assert all(row[1:3] == ["1/1", "Running"] for row in rows)
    header, _ = table(daily.kubectl("get", "pods", "-A"))
    assert header[0] == "NAMESPACE"
    assert table(daily.kubectl("get", "resourceslices"))[0] == ["NAME", "NODE", "DRIVER", "POOL", "AGE"]


def test_output_formats(daily):
    assert "kind: Deployment" in daily.kubectl("get", "deploy/web", "-n", "daily", "-o", "yaml")
    assert json.loads(daily.kubectl("get", "deploy/web", "-n", "daily", "-o", "json"))["spec"]["replicas"] == 2
    path = "jsonpath={.items[*].status.phase}"
    assert daily.kubectl("get", "pods", "-n", "daily", "-o", path).split() == ["Running", "Running"]
    custom = daily.kubectl("get", "deploy", "-n", "daily", "-o", "custom-columns=N:.metadata.name,R:.spec.replicas")
    assert custom.split() == ["N", "R", "web", "2"]
    assert daily.kubectl("get", "deploy", "-n", "daily", "-o", "name").strip() == "deployment.apps/web"
    assert daily.kubectl("get", "pods", "-n", "daily", "-l", "app=other", "-o", "name") == ""
    running = daily.kubectl("get", "pods", "-A", "--field-selector", "status.phase=Running", "-o", "name")
    assert "pod/web-" in running


def test_watch_streams_changes(daily):
    watching = subprocess.Popen(
        [daily.kubectl_path, "get", "configmaps", "-n", "daily", "-w", "--output-watch-events"],
        stdout=subprocess.PIPE,
        text=True,
        env=daily.environment(),
    )
    try:
        time.sleep(1)
        daily.kubectl("create", "configmap", "seen", "-n", "daily", "--from-literal=a=1")
        daily.kubectl("delete", "configmap", "seen", "-n", "daily")
        lines = []
        deadline = time.monotonic() + 15
        while time.monotonic() < deadline and not any("DELETED" in line for line in lines):
            lines.append(watching.stdout.readline())
        kinds = [line.split()[0] for line in lines if "seen" in line]
        assert kinds == ["ADDED", "DELETED"]
    finally:
        watching.terminate()
        watching.wait(10)


def test_describe_shows_pods_and_their_events(daily):
    pod = daily.items("pods", "-n", "daily")[0]["metadata"]["name"]
    described = daily.kubectl("describe", "pod", pod, "-n", "daily")
    assert "Status:" in described
    assert "Started" in described.partition("Events:")[2]
    assert "Allocatable:" in daily.kubectl("describe", "node", "dgx-a100-0")
    assert "NewReplicaSet:" in daily.kubectl("describe", "deployment", "web", "-n", "daily")
    assert "default-queue" in daily.kubectl("describe", "queue", "default-queue")


def test_server_side_apply_conflicts_are_named(daily):
    base = "apiVersion: v1\nkind: ConfigMap\nmetadata: {name: owned, namespace: daily}\ndata: {a: '%s'}\n"
    daily.kubectl("apply", "--server-side", "-f", "-", stdin=base % 1)
    daily.kubectl("apply", "--server-side", "--field-manager=other", "--force-conflicts", "-f", "-", stdin=base % 2)
    refused = daily.try_kubectl("apply", "--server-side", "-f", "-", stdin=base % 3)
    assert refused.returncode != 0
    assert 'conflict with "other": .data.a' in refused.stderr
    assert daily.get("configmap", "owned", "-n", "daily")["data"] == {"a": "2"}


def test_dry_run_and_diff_change_nothing(daily):
    changed = DEPLOYMENT.replace("replicas: 2", "replicas: 7")
    dry = daily.kubectl("apply", "--dry-run=server", "-f", "-", stdin=changed)
    assert "configured (server dry run)" in dry
    diff = daily.try_kubectl("diff", "-f", "-", stdin=changed)
    assert diff.returncode == 1
    assert "+  replicas: 7" in diff.stdout
    assert daily.get("deploy", "web", "-n", "daily")["spec"]["replicas"] == 2


def test_edit(daily):
    daily.kubectl("create", "configmap", "edited", "-n", "daily", "--from-literal=a=before")
    environment = daily.environment() | {"KUBE_EDITOR": "sed -i s/before/after/"}
    done = subprocess.run(
        [daily.kubectl_path, "edit", "configmap", "edited", "-n", "daily"],
        env=environment,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    assert daily.get("configmap", "edited", "-n", "daily")["data"] == {"a": "after"}


@pytest.mark.parametrize(
    ("kind", "patch"),
    [
        ("strategic", '{"metadata":{"labels":{"strategic":"yes"}}}'),
        ("merge", '{"metadata":{"labels":{"merge":"yes"}}}'),
        ("json", '[{"op":"add","path":"/metadata/labels/json","value":"yes"}]'),
    ],
)
def test_patch(daily, kind, patch):
    daily.kubectl("patch", "deploy", "web", "-n", "daily", "--type", kind, "-p", patch)
    assert daily.get("deploy", "web", "-n", "daily")["metadata"]["labels"][kind] == "yes"


def test_label_and_annotate(daily):
    daily.kubectl("label", "deploy", "web", "-n", "daily", "team=a")
    daily.kubectl("annotate", "deploy", "web", "-n", "daily", "note=b")
    metadata = daily.get("deploy", "web", "-n", "daily")["metadata"]
    assert (metadata["labels"]["team"], metadata["annotations"]["note"]) == ("a", "b")
    daily.kubectl("label", "deploy", "web", "-n", "daily", "team-")
    assert "team" not in daily.get("deploy", "web", "-n", "daily")["metadata"]["labels"]


def test_scale_wait_and_rollout(daily):
    daily.kubectl("scale", "deploy/web", "-n", "daily", "--replicas=3")
    daily.kubectl("rollout", "status", "deploy/web", "-n", "daily", "--timeout=60s")
    daily.kubectl("wait", "pods", "-l", "app=web", "-n", "daily", "--for=condition=Ready", "--timeout=60s")
    assert len(daily.items("pods", "-n", "daily", "-l", "app=web")) == 3
    daily.kubectl("set", "image", "deploy/web", "-n", "daily", "web=nginx:1.28")
    daily.kubectl("rollout", "status", "deploy/web", "-n", "daily", "--timeout=60s")
    pods = [p for p in daily.items("pods", "-n", "daily", "-l", "app=web") if "deletionTimestamp" not in p["metadata"]]
    assert {p["spec"]["containers"][0]["image"] for p in pods} == {"nginx:1.28"}
    daily.kubectl("rollout", "undo", "deploy/web", "-n", "daily")
    daily.kubectl("rollout", "status", "deploy/web", "-n", "daily", "--timeout=60s")
    assert (
        daily.get("deploy", "web", "-n", "daily")["spec"]["template"]["spec"]["containers"][0]["image"] == "nginx:1.27"
    )


def test_delete_waits_for_the_end(daily):
    daily.kubectl(
        "create", "-f", "-", stdin=DEPLOYMENT.replace("name: web,", "name: gone,").replace("app: web", "app: gone")
    )
    daily.kubectl("rollout", "status", "deploy/gone", "-n", "daily", "--timeout=60s")
    daily.kubectl("delete", "deploy", "gone", "-n", "daily", "--cascade=foreground", "--timeout=60s")
    assert daily.items("pods", "-n", "daily", "-l", "app=gone") == []


def test_api_resources_and_explain(daily):
    listed = daily.kubectl("api-resources")
    for kind in ("Pod", "Deployment", "Job", "ResourceClaim", "DeviceClass", "Queue", "PodGroup", "RuntimeClass"):
        assert f" {kind}\n" in listed or listed.rstrip().endswith(kind), kind
    assert "containers" in daily.kubectl("explain", "pod.spec")
    assert "FIELD: replicas" in daily.kubectl("explain", "deployment.spec.replicas")


def test_auth_can_i(daily):
    assert daily.kubectl("auth", "can-i", "create", "pods").strip() == "yes"
    denied = daily.try_kubectl("auth", "can-i", "create", "pods", "--as=system:serviceaccount:daily:default")
    assert denied.stdout.strip() == "no"
    assert "kubernetes-admin" in daily.kubectl("auth", "whoami")


def test_unknown_fields_are_refused_by_name(daily):
    wrong = DEPLOYMENT.replace("replicas: 2", "replicaz: 2")
    refused = daily.try_kubectl("apply", "-f", "-", stdin=wrong)
    assert refused.returncode != 0
    assert 'unknown field "spec.replicaz"' in refused.stderr
    warned = daily.try_kubectl("apply", "--validate=warn", "--dry-run=server", "-f", "-", stdin=wrong)
    assert 'unknown field "spec.replicaz"' in warned.stderr


def test_what_is_not_implemented_says_so(daily):
    pod = daily.items("pods", "-n", "daily")[0]["metadata"]["name"]
    executed = daily.try_kubectl("exec", "-n", "daily", pod, "--", "true")
    assert executed.returncode != 0
    assert "error" in executed.stderr.lower()
    assert daily.try_kubectl("get", "nonsense").returncode != 0
    assert daily.try_kubectl("top", "nodes").returncode != 0
