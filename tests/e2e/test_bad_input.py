"""Bad input through kubectl, `capstan` and plain HTTP: a clear error, nothing half-applied, and work goes on."""

import asyncio
import json

import pytest

from capstan import kube

pytestmark = pytest.mark.kubectl

MAPS = "/api/v1/namespaces/default/configmaps"
QUEUES = "/apis/scheduling.run.ai/v2/queues"


def http(platform, method, path, body, content_type="application/json", **query):
    """(status, message) of a raw request."""

    async def ask():
        transport = kube.kubeconfig(platform.kubeconfig).transport()
        try:
            answer = await transport.request(
                method, path, query=query, body=body, headers={"Content-Type": content_type}
            )
        finally:
            await transport.close()
        return answer.status, json.loads(answer.body).get("message", "")

    return asyncio.run(ask())


def refused(done, *words):
    """A command failed, with these words and without a trace of our inside."""
    said = done.stdout + done.stderr
    assert done.returncode != 0, said
    for word in words:
        assert word in said
    assert "Traceback" not in said
    return said


UNREADABLE = [
    ("application/json", b'{"apiVersion": "v1", "kind": "ConfigMap",', 400, "not JSON"),
    ("application/json", b"[]", 400, "must be an object with apiVersion and kind"),
    ("application/json", b"", 400, "no body"),
    ("application/json", b'{"a":"\xff"}', 400, "not JSON"),
    ("application/json", b'{"a":' * 100_000 + b"1" + b"}" * 100_000, 400, "recursion"),
    ("application/json", b'{"metadata": {"name": "x"}, "data": {"a": NaN}}', 400, "not JSON"),
    ("application/yaml", b"a: [1\nb: 2", 400, "line 2, column 2"),
    ("application/yaml", b"metadata: {name: x}\nmetadata: {name: y}", 400, "stands twice"),
    ("application/yaml", b"a: 1\n---\nb: 2", 400, "2 YAML documents"),
    ("text/plain", b"x", 415, "application/json"),
    ("application/json", b'{"data": {"a": "' + b"x" * (4 << 20) + b'"}}', 413, "limit is 3145728"),
]


@pytest.mark.parametrize(("content_type", "body", "status", "message"), UNREADABLE, ids=lambda value: str(value)[:20])
def test_a_body_that_cannot_be_read_says_why(dgx, content_type, body, status, message):
    answer = http(dgx, "POST", MAPS, body, content_type)
    assert answer[0] == status
    assert message in answer[1]


@pytest.mark.parametrize("number", ["NaN", "1e400", "-Infinity"])
def test_numbers_without_a_value_are_refused_in_json(dgx, number):
    queue = f'{{"metadata": {{"name": "endless"}}, "spec": {{"resources": {{"gpu": {{"quota": {number}}}}}}}}}'
    status, message = http(dgx, "POST", QUEUES, queue.encode())
    assert (status, "not JSON" in message) == (400, True)


def test_numbers_without_a_value_are_refused_in_yaml_with_their_line(dgx):
    endless = queue("resources: {gpu: {quota: .nan}}", "endless").removesuffix("---\n").encode()
    for method, path, kind, query in (
        ("POST", QUEUES, "application/yaml", {}),
        ("PATCH", f"{QUEUES}/endless", "application/apply-patch+yaml", {"fieldManager": "me"}),
    ):
        status, message = http(dgx, method, path, endless, kind, **query)
        assert status == 400
        assert "line 4" in message
        assert ".nan is no number" in message
    assert dgx.try_kubectl("get", "queue", "endless").returncode != 0


def test_malformed_yaml_names_file_line_and_column(dgx, tmp_path):
    good, bad = tmp_path / "a-good.yaml", tmp_path / "b-bad.yaml"
    good.write_text("{apiVersion: v1, kind: ConfigMap, metadata: {name: first-of-two}}")
    bad.write_text("apiVersion: v1\nkind: ConfigMap\nmetadata: {name: x\n")
    refused(dgx.capstan("apply", "-f", str(tmp_path), check=False), f"{bad}: line 4")
    refused(dgx.try_kubectl("apply", "-f", str(bad)), "b-bad.yaml", "line")
    assert dgx.try_kubectl("get", "configmap", "first-of-two").returncode != 0, "nothing is applied of a bad set"


def test_an_object_over_three_mebibytes_is_refused_whichever_way_it_comes(dgx, tmp_path):
    file = tmp_path / "big.json"
    big = {"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "big"}, "data": {"a": "x" * (4 << 20)}}
    file.write_text(json.dumps(big))
    for arguments in (("create",), ("apply", "--server-side")):
        refused(dgx.try_kubectl(*arguments, "-f", str(file)), "too large: limit is 3145728")
    refused(dgx.capstan("apply", "-f", str(file), check=False), "big", "too large: limit is 3145728")
    assert dgx.try_kubectl("get", "configmap", "big").returncode != 0


def test_an_unknown_kind_names_the_kind(dgx):
    unknown = "apiVersion: v1\nkind: Podd\nmetadata: {name: a}"
    refused(dgx.try_kubectl("apply", "-f", "-", stdin=unknown), 'no matches for kind "Podd" in version "v1"')
    refused(dgx.capstan("apply", "-f", "-", stdin=unknown, check=False), "Podd", "CustomResourceDefinition")


MISSPELT = """
apiVersion: v1
kind: Pod
metadata: {name: misspelt, namespace: default}
spec:
  restartPolcy: Never
  containers: [{name: main, image: x, comand: [a]}]
"""


def test_unknown_fields_are_errors_warnings_or_ignored_as_asked(dgx):
    for done in (
        dgx.try_kubectl("create", "-f", "-", stdin=MISSPELT),
        dgx.try_kubectl("apply", "--server-side", "-f", "-", stdin=MISSPELT),
        dgx.capstan("apply", "-f", "-", stdin=MISSPELT, check=False),
    ):
        refused(done, 'unknown field "spec.restartPolcy"', 'unknown field "spec.containers[0].comand"')
    assert dgx.try_kubectl("get", "pod", "misspelt").returncode != 0
    warned = dgx.try_kubectl("create", "--validate=warn", "--dry-run=server", "-f", "-", stdin=MISSPELT)
    assert warned.returncode == 0
    assert 'Warning: unknown field "spec.restartPolcy"' in warned.stderr
    ignored = dgx.try_kubectl("create", "--validate=ignore", "--dry-run=server", "-f", "-", stdin=MISSPELT)
    assert (ignored.returncode, ignored.stderr) == (0, "")


def claim(request, more=""):
    return f"""
apiVersion: resource.k8s.io/v1
kind: ResourceClaim
metadata: {{name: refused}}
spec: {{devices: {{requests: [{{name: gpu, {request}}}]{more}}}}}
"""


def selector(expression):
    return claim(
        f"exactly: {{deviceClassName: gpu.nvidia.com, selectors: [{{cel: {{expression: {json.dumps(expression)}}}}}]}}"
    )


def group(name, spec):
    return (
        "apiVersion: scheduling.run.ai/v2alpha2\nkind: PodGroup\n"
        f"metadata: {{name: {name}}}\nspec: {{queue: default-queue, {spec}}}\n---\n"
    )


def queue(spec, name="refused"):
    return f"apiVersion: scheduling.run.ai/v2\nkind: Queue\nmetadata: {{name: {name}}}\nspec: {{{spec}}}\n---\n"


def pod(name, labels="kai.scheduler/queue: default-queue", annotations="", spec="", container=""):
    return f"""
apiVersion: v1
kind: Pod
metadata: {{name: {name}, labels: {{{labels}}}, annotations: {{{annotations}}}}}
spec:
  schedulerName: kai-scheduler
  terminationGracePeriodSeconds: 0
  containers: [{{name: main, image: ubuntu, command: [sleep, infinity]{container}}}]
  {spec}
---
"""


REFUSED = {
    "text for a number": (pod("refused", container=", ports: [{containerPort: http}]"), "spec.containers[0].ports[0]"),
    "text for a quota": (queue("resources: {gpu: {quota: four}}"), "spec.resources.gpu.quota", "number"),
    "a negative quota": (queue("resources: {gpu: {quota: -3}}"), "spec.resources.gpu.quota", "-1 for unlimited"),
    "a field of a custom resource": (queue("resources: {gpu: {lmit: 2}}"), 'unknown field "spec.resources.gpu.lmit"'),
    "a class whose CEL has no such field": (
        """
apiVersion: resource.k8s.io/v1
kind: DeviceClass
metadata: {name: refused}
spec: {selectors: [{cel: {expression: "true &&\\n device.atributes['x'].y == 1"}}]}
""",
        "spec.selectors[0].cel.expression",
        ":2:8: undefined field 'atributes'",
    ),
    "a claim whose CEL has a syntax error": (
        selector("device.driver ="),
        "spec.devices.requests[0].exactly.selectors[0].cel.expression",
        ":1:15: Syntax error",
    ),
    "a claim whose CEL is no condition": (selector("1 + 1"), ":1:1: must evaluate to bool"),
    "both kinds of request": (
        claim("exactly: {deviceClassName: a}, firstAvailable: [{name: b, deviceClassName: c}]"),
        "spec.devices.requests[0]",
        "exactly one of",
    ),
    "a count of all": (
        claim("exactly: {deviceClassName: a, allocationMode: All, count: 3}"),
        "spec.devices.requests[0].exactly.count",
    ),
    "a constraint on a request that is not there": (
        claim("exactly: {deviceClassName: a}", ", constraints: [{requests: [nope], matchAttribute: a/b}]"),
        "spec.devices.constraints[0].requests[0]",
        "nope",
    ),
    "a limit below the request": (
        pod("refused", container=", resources: {requests: {cpu: 4}, limits: {cpu: 2}}"),
        "spec.containers[0].resources.requests",
        "cpu",
    ),
    "a claim that is not declared": (
        pod("refused", container=", resources: {claims: [{name: nope}]}"),
        "spec.containers[0].resources.claims[0]",
        "nope",
    ),
    "a claim and a template at once": (
        pod("refused", spec="resourceClaims: [{name: a, resourceClaimName: b, resourceClaimTemplateName: c}]"),
        "spec.resourceClaims[0]",
        "resourceClaimTemplateName",
    ),
    "an unknown restart policy": (pod("refused", spec="restartPolicy: Sometimes"), "spec.restartPolicy", "OnFailure"),
    "an unknown runtime class": (pod("refused", spec="runtimeClassName: none"), '"none" not found', "RuntimeClass"),
    "an unknown priority class": (pod("refused", spec="priorityClassName: none"), "none", "PriorityClass"),
    "a gang of less than none": (
        """
apiVersion: scheduling.run.ai/v2alpha2
kind: PodGroup
metadata: {name: refused}
spec: {minMember: -3}
""",
        "spec.minMember",
        "-3",
    ),
    "a gang with two kinds of minimum": (group("refused", "minMember: 2, minSubGroup: 1"), "spec", "keep one of them"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_an_object_that_cannot_be_meant_is_refused_with_its_field(dgx, case):
    manifest, *words = REFUSED[case]
    refused(dgx.try_kubectl("create", "-f", "-", stdin=manifest), *words)
    assert dgx.try_kubectl("get", "-f", "-", stdin=manifest).returncode != 0, "nothing is stored of it"


def test_cyclic_blueprint_layers_are_named_with_their_file(dgx, tmp_path):
    for name, base in (("a", "b"), ("b", "c"), ("c", "a")):
        (tmp_path / f"{name}.yaml").write_text(
            "apiVersion: platform.capstan.dev/v1alpha1\nkind: Blueprint\n"
            f"metadata: {{name: layer-{name}}}\nspec: {{version: 1.0.0, extends: layer-{base}}}\n"
        )
    done = dgx.capstan("blueprint", "lint", str(tmp_path), check=False)
    refused(done, str(tmp_path / "a.yaml"), "layer-a", "layer-b", "layer-c")


WAITING = {
    "in-orphan": (
        pod("in-orphan", "kai.scheduler/queue: orphan"),
        "queue orphan cannot be used: its parent queue nobody does not exist",
    ),
    "in-ring": (pod("in-ring", "kai.scheduler/queue: ring-a"), "queue ring-a cannot be used", "circle"),
    "in-unknown": (pod("in-unknown", "kai.scheduler/queue: nowhere"), "queue nowhere does not exist"),
    "too-much": (
        pod("too-much", annotations='gpu-fraction: "1.5"'),
        "too-much",
        "gpu-fraction is '1.5'; write a decimal number above 0 and below 1",
    ),
    "no-number": (pod("no-number", annotations="gpu-memory: lots"), "gpu-memory is 'lots'; write a whole number"),
    "two-shares": (
        pod("two-shares", annotations='gpu-fraction: "0.5", gpu-memory: "1000"'),
        "gpu-fraction and gpu-memory; remove one of them",
    ),
    "whole-and-share": (
        pod(
            "whole-and-share", annotations='gpu-fraction: "0.5"', container=", resources: {limits: {nvidia.com/gpu: 1}}"
        ),
        "remove one of them",
    ),
    "no-group": (pod("no-group", annotations="pod-group-name: nobody"), "PodGroup", "nobody", "does not exist"),
    "no-claim": (
        pod("no-claim", spec="resourceClaims: [{name: gpu, resourceClaimName: nobody}]"),
        "nobody",
        "does not exist",
    ),
    "no-class": (
        claim("exactly: {deviceClassName: gpu.example.com}").replace("refused", "of-unknown-class")
        + "---"
        + pod("no-class", spec="resourceClaims: [{name: gpu, resourceClaimName: of-unknown-class}]"),
        "of-unknown-class",
        "request gpu",
        "gpu.example.com",
    ),
    "no-resource": (
        pod("no-resource", container=", resources: {limits: {example.com/tpu: 1}}"),
        "no node offers example.com/tpu",
    ),
    "no-share": (
        pod("no-share", annotations='gpu-fraction: "0"'),
        "gpu-fraction is '0'; write a decimal number above 0",
    ),
    "nine-gpus": (
        pod("nine-gpus", container=", resources: {limits: {nvidia.com/gpu: 9}}"),
        "a pod needs 9 GPUs, the largest node has 8 GPUs",
    ),
    "no-topology": (
        group("no-topology", "topologyConstraint: {topology: nowhere, requiredTopologyLevel: rack}")
        + pod("no-topology", annotations="pod-group-name: no-topology"),
        "topology nowhere does not exist",
    ),
    "only-a-level": (
        group("only-a-level", "topologyConstraint: {requiredTopologyLevel: rack}")
        + pod("only-a-level", annotations="pod-group-name: only-a-level"),
        "the level rack needs the topology it belongs to",
    ),
    "stray": (
        group("stray", "minSubGroup: 1, subGroups: [{name: a, minMember: 1}]")
        + pod("stray", annotations="pod-group-name: stray"),
        "pod stray has no label kai.scheduler/subgroup-name; the subgroups with pods are a",
    ),
    "job/half-said": (
        """
apiVersion: batch/v1
kind: Job
metadata: {name: half-said, annotations: {kai.scheduler/batch-min-member: two}}
spec:
  template:
    metadata: {labels: {kai.scheduler/queue: default-queue}}
    spec:
      restartPolicy: Never
      schedulerName: kai-scheduler
      terminationGracePeriodSeconds: 0
      containers: [{name: main, image: ubuntu, command: [sleep, infinity]}]
---
""",
        "Job bad/half-said",
        "kai.scheduler/batch-min-member",
        "'two' is no positive number",
    ),
}

BAD_QUEUES = {
    "orphan": ("parentQueue: nobody, resources: {gpu: {quota: 1}}", "its parent queue nobody does not exist"),
    "ring-a": ("parentQueue: ring-b, resources: {gpu: {quota: 1}}", "circle: ring-a, ring-b, ring-a"),
    "ring-b": ("parentQueue: ring-a, resources: {gpu: {quota: 1}}", "circle"),
}


@pytest.fixture(scope="module")
def bad(dgx):
    """Everything at once that is accepted and cannot run."""
    queues = "".join(queue(spec, name) for name, (spec, _) in BAD_QUEUES.items())
    dgx.kubectl("create", "namespace", "bad")
    dgx.kubectl("create", "-f", "-", stdin=queues)
    dgx.kubectl("create", "-n", "bad", "-f", "-", stdin="".join(manifest for manifest, *_ in WAITING.values()))
    yield dgx
    dgx.gone("bad")
    dgx.kubectl("delete", "queues", *BAD_QUEUES)


@pytest.mark.parametrize("name", WAITING)
def test_what_cannot_run_waits_and_says_what_to_do(bad, name):
    words = WAITING[name][1:]

    def told():
        said = bad.capstan("explain", name, "-n", "bad").stdout
        return all(word in " ".join(said.split()) for word in words)

    bad.until(told, f"{name} says {words}", patience=20)
    if "/" not in name:
        status = bad.get("pod", name, "-n", "bad")["status"]
        assert status["phase"] == "Pending"
        (condition,) = [c for c in status["conditions"] if c["type"] == "PodScheduled"]
        assert condition["status"] == "False"


@pytest.mark.parametrize("name", BAD_QUEUES)
def test_a_queue_that_cannot_be_used_says_so_in_its_status(bad, name):
    def told():
        conditions = bad.get("queue", name).get("status", {}).get("conditions", [])
        return [c for c in conditions if c["status"] == "True" and BAD_QUEUES[name][1] in c["message"]]

    bad.until(told, "the condition")
    assert f"queue {name}: " in bad.capstan("status").stdout


def test_what_is_right_runs_beside_what_is_wrong(bad):
    bad.kubectl(
        "create", "-n", "bad", "-f", "-", stdin=pod("right", container=", resources: {limits: {nvidia.com/gpu: 1}}")
    )
    bad.kubectl("wait", "pod/right", "-n", "bad", "--for=condition=Ready", "--timeout=30s")


def test_a_corrected_workload_runs(bad):
    bad.kubectl("annotate", "job/half-said", "-n", "bad", "--overwrite", "kai.scheduler/batch-min-member=1")
    bad.kubectl("wait", "pods", "-l", "job-name=half-said", "-n", "bad", "--for=condition=Ready", "--timeout=30s")
