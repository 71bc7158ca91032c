"""`capstan explain` finds what people name as kubectl does, and says of it what its gang is told."""

import json
import sys
from pathlib import Path

import pytest
from click.testing import CliRunner

from capstan import kube
from capstan.cli import main

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tools"))
from served import Served

ANY = {"openAPIV3Schema": {"type": "object", "x-kubernetes-preserve-unknown-fields": True}}


def definition(group: str, kind: str, short: str) -> dict:
    names = {"kind": kind, "plural": f"{kind.lower()}s", "singular": kind.lower(), "shortNames": [short]}
    versions = [{"name": "v1", "served": True, "storage": True, "schema": ANY}]
    return {
        "apiVersion": "apiextensions.k8s.io/v1",
        "kind": "CustomResourceDefinition",
        "metadata": {"name": f"{names['plural']}.{group}"},
        "spec": {"group": group, "scope": "Namespaced", "names": names, "versions": versions},
    }


class Maker:
    """Makes objects of any kind that own each other."""

    def __init__(self, client: kube.Client) -> None:
        self.client, self._discovery = client, kube.Discovery(client)

    async def make(self, api_version: str, kind: str, name: str, owner: dict | None = None, **body: object) -> dict:
        meta = {"name": name, "namespace": "default", **body.pop("metadata", {})}
        if owner is not None:
            meta["ownerReferences"] = [owner]
        resource = await self._discovery.resource(api_version, kind)
        status = body.pop("status", None)
        made = await self.client.create(resource, {"apiVersion": api_version, "kind": kind, "metadata": meta, **body})
        if status:
            await self.client.patch(resource, name, "default", patch={"status": status}, subresource="status")
        uid = made["metadata"]["uid"]
        return {"apiVersion": api_version, "kind": kind, "name": name, "uid": uid, "controller": True}

    async def pod(self, name: str, owner: dict | None = None, *, group: str = "", **status: object) -> None:
        notes = {"pod-group-name": group} if group else {}
        spec = {"containers": [{"name": "m", "image": "x"}]}
        await self.make("v1", "Pod", name, owner, metadata={"annotations": notes}, spec=spec, status=status)

    async def group(self, name: str, owner: dict | None = None, *, reason: str = "", **spec: object) -> None:
        said = {"reason": reason, "message": f"why it is {reason}"}
        condition = {"type": "UnschedulableOnNodePool", "status": "True", "reason": "Unschedulable", "reasons": [said]}
        status = {"schedulingConditions": [condition]} if reason else {}
        await self.make("scheduling.run.ai/v2alpha2", "PodGroup", name, owner, spec=spec, status=status)


UNSCHEDULABLE = [{"type": "PodScheduled", "status": "False", "reason": "Unschedulable", "message": "old"}]


async def furnish(client: kube.Client) -> None:
    maker = Maker(client)
    kinds = (("ray.io", "RayJob", "rj"), ("ray.io", "RayCluster", "rc"), ("x.io", "Deployment", "xd"))
    definitions = await kube.Discovery(client).find("crd")
    for each in kinds:
        await client.create(definitions, definition(*each))
    job = await maker.make("ray.io/v1", "RayJob", "train")
    cluster = await maker.make("ray.io/v1", "RayCluster", "train-x7", job)
    await maker.group("pg-ray", cluster, reason="OverLimit", queue="a", minMember=2)
    for name in ("head", "worker"):
        await maker.pod(name, cluster, group="pg-ray", conditions=UNSCHEDULABLE)
    template = {"metadata": {"labels": {"a": "b"}}, "spec": {"containers": [{"name": "m", "image": "x"}]}}
    spec = {"selector": {"matchLabels": {"a": "b"}}, "template": template}
    web = await maker.make("apps/v1", "Deployment", "web", spec=spec)
    replicas = await maker.make("apps/v1", "ReplicaSet", "web-1", web, spec=spec)
    for i in range(3):
        await maker.group(f"pg-{i}", reason="NotReady" if i else "", minMember=1)
        await maker.pod(f"web-{i}", replicas, group=f"pg-{i}")
    await maker.make("x.io/v1", "Deployment", "web")
    await maker.pod("refused", conditions=[{**UNSCHEDULABLE[0], "reason": "InvalidWorkload", "message": "lower it"}])


@pytest.fixture(scope="module")
def cluster(tmp_path_factory):
    with Served(tmp_path_factory.mktemp("explain") / "state") as served:
        served.edit(furnish)
        yield served


@pytest.fixture
def run(cluster):
    def invoke(*arguments: str, code: int = 0) -> str:
        result = CliRunner().invoke(main, list(arguments), env={"KUBECONFIG": str(cluster.kubeconfig)})
        assert result.exit_code == code, result.output
        return result.output

    return invoke


@pytest.mark.parametrize(
    "target",
    [
        ("rayjob/train",),
        ("rayjobs", "train"),
        ("RayJob/train",),
        ("rj/train",),
        ("rayjob.ray.io/train",),
        ("rayjobs.v1.ray.io", "train"),
        ("raycluster/train-x7",),
    ],
)
def test_a_workload_is_found_as_kubectl_finds_it_and_leads_to_its_gang(run, target):
    said = run("explain", *target)
    name = "raycluster/train-x7" if "raycluster" in target[0] else "rayjob/train"
    assert said.startswith(f"{name} in namespace default in queue a, needs 2 together: 2 Pending")
    assert "waits: OverLimit: why it is OverLimit" in said
    assert "head" in said and "worker" in said


def test_a_group_in_the_kind_tells_apart_what_is_called_the_same(run):
    assert "deployment/web in namespace default: 3 gangs, 3 Pending" in run("explain", "deploy/web")
    assert "deployment/web in namespace default: no pods" in run("explain", "deployments.x.io/web")


def test_gangs_of_a_workload_that_wait_for_the_same_are_told_once(run):
    said = run("explain", "deployment", "web")
    assert said.count("why it is NotReady") == 1
    assert "2 gangs wait: NotReady: why it is NotReady" in said
    made = json.loads(run("explain", "deployment/web", "-o", "json"))
    assert [(gang["name"], gang["pods"]) for gang in made["gangs"]] == [(f"pg-{i}", {"Pending": 1}) for i in range(3)]


def test_a_pod_is_told_what_its_gang_is_told(run):
    said = json.loads(run("explain", "head", "-o", "json"))
    assert (said["reason"], said["message"]) == ("OverLimit", "why it is OverLimit")
    assert "waits: InvalidWorkload: lower it" in run("explain", "pod/refused")


@pytest.mark.parametrize(
    ("target", "code", "words"),
    [
        (("web",), 1, "name a workload by its kind, as in deployment/web"),
        (("deployment/nope",), 1, "no deployment 'nope' in namespace 'default'"),
        (("pod/nope",), 1, "no pod 'nope' in namespace 'default'"),
        (("pg/nope",), 1, "no PodGroup 'nope' in namespace 'default'"),
        (("rocket/nope",), 1, "serves nothing called 'rocket'; `kubectl api-resources` lists them"),
        (("job/",), 2, "write KIND/NAME"),
        (("a", "b", "c"), 2, "neither NAME nor KIND/NAME nor KIND NAME"),
    ],
)
def test_what_is_not_there_says_what_to_write(run, target, code, words):
    assert words in run("explain", *target, code=code)


def test_lines_for_pipes_are_whole_and_plain(run):
    for line in run("explain", "rayjob/train").splitlines():
        assert line == line.rstrip()
        assert "\x1b" not in line


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        ("h", {"head"}),
        ("ray", {"raycluster/train-x7"}),
        ("rj/", {"rj/train"}),
        ("rayjob ''", {"train"}),
        ("-n def", {"default"}),
        ("rocket/", set()),
    ],
)
def test_names_in_the_cluster_are_completed(run, cluster, words, expected):
    begun = ["capstan", "explain", *words.split()]
    asked = {"_CAPSTAN_COMPLETE": "bash_complete", "COMP_WORDS": f"capstan explain {words}"}
    done = CliRunner().invoke(
        main,
        prog_name="capstan",
        env={"KUBECONFIG": str(cluster.kubeconfig), "COMP_CWORD": str(len(begun) - 1), **asked},
    )
    assert {line.partition(",")[2] for line in done.output.split("\n") if line} == expected
