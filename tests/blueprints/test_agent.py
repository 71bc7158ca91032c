"""The agent against the embedded API server: applies, finds drift, repairs, prunes, and survives restarts."""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import msgspec
import pytest

from capstan import blueprints, kube, local
from capstan.api import manifests, resources
from capstan.api.platform import Cluster
from capstan.controllers.blueprint_agent import BlueprintAgent

ROOT = Path(__file__).parents[2]
CRDS = ROOT / "src" / "capstan" / "api" / "crds"
MAPS = resources.CONFIG_MAPS
MAP = resources.unstructured("", "v1", "configmaps", "ConfigMap", namespaced=True)

pytestmark = pytest.mark.anyio


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


AGENT = local.service_account("capstan-system", "blueprint-agent")


class Administrator(kube.Client):
    """Who may do everything; also knows how an agent connects, with no more rights than it states."""

    def __init__(self, server: local.Server) -> None:
        super().__init__(server.transport(), "tester")
        self.agent = kube.Client(server.transport(AGENT), "agent")


async def allow_agent(client: kube.Client) -> None:
    metadata = {"name": "blueprint-agent"}
    await client.create(
        resources.CLUSTER_ROLES, {"metadata": metadata, "rules": msgspec.to_builtins(BlueprintAgent.RULES)}
    )
    role = {"apiGroup": "rbac.authorization.k8s.io", "kind": "ClusterRole", "name": "blueprint-agent"}
    subject = {"kind": "ServiceAccount", "namespace": "capstan-system", "name": "blueprint-agent"}
    await client.create(resources.CLUSTER_ROLE_BINDINGS, {"metadata": metadata, "roleRef": role, "subjects": [subject]})


@pytest.fixture
async def client() -> AsyncIterator[Administrator]:
    """A client of a fresh server that serves our own kinds."""
    server = local.Server()
    await server.start()
    client = Administrator(server)
    await allow_agent(client)
    discovery = kube.Discovery(client)
    for file in sorted(CRDS.glob("platform.capstan.dev_*.yaml")):
        for definition in manifests.load_manifests(file.read_bytes(), file.name):
            resource = await discovery.resource(definition["apiVersion"], definition["kind"])
            await client.apply(resource, definition, force=True)
    await eventually(lambda: serves(client, "Cluster"))
    yield client
    await server.stop()


async def serves(client: kube.Client, kind: str) -> bool:
    try:
        await kube.Discovery(client).resource("platform.capstan.dev/v1alpha1", kind)
    except kube.UnknownKind:
        return False
    return True


async def eventually(look: Callable[[], Awaitable[Any]], seconds: float = 10.0) -> Any:
    deadline = asyncio.get_running_loop().time() + seconds
    while not (seen := await look()):
        assert asyncio.get_running_loop().time() < deadline, "it did not happen in time"
        await asyncio.sleep(0.01)
    return seen


@asynccontextmanager
async def running(client: Administrator) -> AsyncIterator[BlueprintAgent]:
    agent = BlueprintAgent(client.agent, "local")
    task = asyncio.create_task(agent.run())
    try:
        yield agent
        assert not task.done(), task
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


def config_map(name: str, **data: str) -> dict[str, Any]:
    metadata = {"name": name, "namespace": "default"}
    return {"apiVersion": "v1", "kind": "ConfigMap", "metadata": metadata, "data": data}


def frozen(version: str, *items: dict[str, Any], **spec: Any) -> dict[str, Any]:
    document = {
        "apiVersion": "platform.capstan.dev/v1alpha1",
        "kind": "Blueprint",
        "metadata": {"name": "bp"},
        "spec": {"version": version, "addons": [{"name": "maps", "manifests": list(items)}], **spec},
    }
    return blueprints.published(blueprints.Library([blueprints.Source("bp.yaml", document)]), "bp")


async def publish(client: kube.Client, version: str, *items: dict[str, Any], **spec: Any) -> None:
    await client.create(resources.BLUEPRINT_VERSIONS, frozen(version, *items, **spec))


async def use(client: kube.Client, version: str, **spec: Any) -> None:
    body = {"metadata": {"name": "local"}, "spec": {"blueprint": {"name": "bp", "version": version}, **spec}}
    await client.apply(resources.CLUSTERS, body, force=True)


async def reported(client: kube.Client, wanted: Callable[[Cluster], Any]) -> Cluster:
    """The Cluster object once it is as wanted."""

    async def look() -> Cluster | None:
        cluster = await client.get(resources.CLUSTERS, "local")
        return cluster if wanted(cluster) else None

    found: Cluster = await eventually(look)
    return found


def condition(cluster: Cluster, kind: str) -> str:
    return next((f"{each.status} {each.reason}" for each in cluster.status.conditions if each.type == kind), "")


def ready(version: str) -> Callable[[Cluster], bool]:
    return lambda cluster: cluster.status.version == version and condition(cluster, "Ready") == "True Applied"


async def data(client: kube.Client, name: str) -> dict[str, str] | None:
    try:
        found = await client.get(MAP, name, "default")
    except kube.NotFound:
        return None
    content: dict[str, str] = found.get("data", {})
    return content


async def test_a_blueprint_is_applied_and_reported(client: Administrator) -> None:
    await publish(client, "1.0.0", config_map("a", x="1"), config_map("b", y="2"))
    await use(client, "1.0.0", labels={"region": "eu"})
    async with running(client):
        cluster = await reported(client, ready("1.0.0"))
    assert (cluster.status.blueprint, cluster.status.objects) == ("bp", 2)
    assert cluster.status.digest.startswith("sha256:")
    assert cluster.status.facts["labels"] == {"region": "eu"}
    assert cluster.metadata.labels["applyset.kubernetes.io/id"] == blueprints.cluster_set("local")
    assert cluster.metadata.annotations["applyset.kubernetes.io/contains-group-kinds"] == "ConfigMap"
    live = await client.get(MAP, "a", "default")
    assert live["metadata"]["labels"]["applyset.kubernetes.io/part-of"] == blueprints.cluster_set("local")
    assert live["metadata"]["managedFields"][0]["manager"] == blueprints.MANAGER


async def test_a_settled_cluster_is_not_written_to(client: Administrator) -> None:
    await publish(client, "1.0.0", config_map("a", x="1"))
    await use(client, "1.0.0")
    async with running(client) as agent:
        before = await reported(client, ready("1.0.0"))
        version = (await client.get(MAP, "a", "default"))["metadata"]["resourceVersion"]
        for _ in range(3):
            await agent.reconcile("local")
    after = await client.get(resources.CLUSTERS, "local")
    assert after.metadata.resource_version == before.metadata.resource_version
    assert (await client.get(MAP, "a", "default"))["metadata"]["resourceVersion"] == version


async def test_drift_is_repaired_and_named(client: Administrator) -> None:
    await publish(client, "1.0.0", config_map("a", x="1"))
    await use(client, "1.0.0")
    editor = kube.Client(client.transport, "kubectl-edit")
    async with running(client):
        await reported(client, ready("1.0.0"))
        await editor.patch(MAPS, "a", "default", patch={"data": {"x": "9", "foreign": "stays"}})
        cluster = await reported(client, lambda each: each.status.drift)
    (entry,) = cluster.status.drift
    assert (entry.object, entry.path, entry.kind, entry.manager) == (
        "ConfigMap/default/a",
        "data.x",
        "changed",
        "kubectl-edit",
    )
    assert (entry.expected, entry.found) == ("1", "9")
    assert entry.repaired >= entry.first_seen
    assert await data(client, "a") == {"x": "1", "foreign": "stays"}
    events = await client.list(resources.EVENTS)
    assert "DriftRepaired" in {event.reason for event in events.items}


async def test_a_deleted_object_and_a_lost_label_are_drift_too(client: Administrator) -> None:
    await publish(client, "1.0.0", config_map("a", x="1"), config_map("b", x="1"))
    await use(client, "1.0.0")
    label = "applyset.kubernetes.io/part-of"
    async with running(client):
        await reported(client, ready("1.0.0"))
        await client.delete(MAPS, "a", "default")
        await reported(client, lambda each: len(each.status.drift) == 1)
        await client.patch(MAPS, "b", "default", patch={"metadata": {"labels": {label: None}}})
        cluster = await reported(client, lambda each: len(each.status.drift) == 2)
    assert {(entry.object, entry.kind) for entry in cluster.status.drift} == {
        ("ConfigMap/default/a", "deleted"),
        ("ConfigMap/default/b", "removed"),
    }
    assert await data(client, "a") == {"x": "1"}
    assert label in (await client.get(MAP, "b", "default"))["metadata"]["labels"]


async def test_mode_warn_reports_and_leaves_alone_until_it_is_put_right(client: Administrator) -> None:
    await publish(client, "1.0.0", config_map("a", x="1"))
    await use(client, "1.0.0", mode="warn")
    async with running(client):
        await reported(client, ready("1.0.0"))
        await client.patch(MAPS, "a", "default", patch={"data": {"x": "9"}})
        cluster = await reported(client, lambda each: condition(each, "Drifted") == "True FieldsDiffer")
        assert cluster.status.drift[0].repaired == ""
        assert await data(client, "a") == {"x": "9"}
        await use(client, "1.0.0", mode="enforce")
        cluster = await reported(client, lambda each: condition(each, "Drifted") == "False AsApplied")
        assert cluster.status.drift[0].repaired
        assert await data(client, "a") == {"x": "1"}


async def test_a_new_version_updates_and_prunes_but_spares_the_protected(client: Administrator) -> None:
    protected = config_map("kept", x="1")
    protected["metadata"]["annotations"] = {"platform.capstan.dev/prune": "false"}
    await publish(client, "1.0.0", config_map("a", x="1", y="1"), config_map("gone", x="1"), protected)
    await publish(client, "1.1.0", config_map("a", x="2"))
    await use(client, "1.0.0")
    async with running(client):
        await reported(client, ready("1.0.0"))
        await use(client, "1.1.0")
        cluster = await reported(client, ready("1.1.0"))
    assert await data(client, "a") == {"x": "2"}
    assert await data(client, "gone") is None
    assert await data(client, "kept") == {"x": "1"}
    assert cluster.status.drift == []


async def test_drift_while_the_agent_was_away_is_found_at_its_start(client: Administrator) -> None:
    await publish(client, "1.0.0", config_map("a", x="1"))
    await use(client, "1.0.0")
    async with running(client):
        await reported(client, ready("1.0.0"))
    await client.patch(MAPS, "a", "default", patch={"data": {"x": None}})
    async with running(client):
        cluster = await reported(client, lambda each: each.status.drift)
    assert [(entry.path, entry.kind) for entry in cluster.status.drift] == [("data.x", "removed")]
    assert await data(client, "a") == {"x": "1"}


async def test_objects_of_a_kind_that_comes_later_wait_without_holding_up_the_rest(client: Administrator) -> None:
    widget = {"apiVersion": "example.com/v1", "kind": "Widget", "metadata": {"name": "w"}, "spec": {"size": 1}}
    await publish(client, "1.0.0", widget, config_map("a", x="1"))
    await use(client, "1.0.0")
    async with running(client):
        await reported(client, lambda each: condition(each, "Progressing") == "True Waiting")
        assert await data(client, "a") == {"x": "1"}
        definition = {
            "apiVersion": "apiextensions.k8s.io/v1",
            "kind": "CustomResourceDefinition",
            "metadata": {"name": "widgets.example.com"},
            "spec": {
                "group": "example.com",
                "scope": "Cluster",
                "names": {"plural": "widgets", "singular": "widget", "kind": "Widget", "listKind": "WidgetList"},
                "versions": [
                    {
                        "name": "v1",
                        "served": True,
                        "storage": True,
                        "schema": {
                            "openAPIV3Schema": {
                                "type": "object",
                                "x-kubernetes-preserve-unknown-fields": True,
                            }
                        },
                    }
                ],
            },
        }
        resource = await kube.Discovery(client).resource("apiextensions.k8s.io/v1", "CustomResourceDefinition")
        await client.create(resource, definition)
        await reported(client, ready("1.0.0"))


@pytest.mark.parametrize(
    ("version", "spec", "reason"),
    [
        ("9.9.9", {}, "VersionNotFound"),
        ("1.0.0", {"override": {"addons": [{"name": "maps", "enabled": False}]}}, "NothingLeft"),
        ("1.0.0", {"override": {"values": {"locked": 2}}}, "InvalidBlueprint"),
    ],
)
async def test_an_unusable_wish_leaves_the_cluster_as_it_is(
    client: Administrator, version: str, spec: dict[str, Any], reason: str
) -> None:
    await publish(client, "1.0.0", config_map("a", x="1"), locked=["values.locked"], values={"locked": 1})
    await use(client, "1.0.0")
    async with running(client):
        before = await reported(client, ready("1.0.0"))
        await use(client, version, **spec)
        cluster = await reported(client, lambda each: condition(each, "Degraded") == f"True {reason}")
    assert cluster.status.digest == before.status.digest
    assert await data(client, "a") == {"x": "1"}


async def test_a_paused_cluster_is_left_alone(client: Administrator) -> None:
    await publish(client, "1.0.0", config_map("a", x="1"))
    await use(client, "1.0.0", paused=True)
    async with running(client):
        await reported(client, lambda each: condition(each, "Paused") == "True Paused")
        assert await data(client, "a") is None
        await use(client, "1.0.0", paused=False)
        await reported(client, ready("1.0.0"))
    assert await data(client, "a") == {"x": "1"}


def devices(node: str, *kinds: str) -> dict[str, Any]:
    """A ResourceSlice of a node whose devices are of these types."""
    return {
        "apiVersion": "resource.k8s.io/v1",
        "kind": "ResourceSlice",
        "metadata": {"name": f"{node}-gpu"},
        "spec": {
            "driver": "gpu.nvidia.com",
            "nodeName": node,
            "pool": {"name": node, "generation": 1, "resourceSliceCount": 1},
            "devices": [
                {
                    "name": f"dev-{number}",
                    "attributes": {"type": {"string": kind}, "productName": {"string": "NVIDIA A100"}},
                    "capacity": {"memory": {"value": "40Gi"}},
                }
                for number, kind in enumerate(kinds)
            ],
        },
    }


async def test_the_hardware_selects_the_variant_and_a_change_of_hardware_changes_it(client: Administrator) -> None:
    variants = [
        {"name": "mig", "when": {"gpu.mig": True}, "addons": [{"name": "mode", "manifests": [config_map("mig")]}]},
        {"name": "whole", "when": {"gpu.mig": False}, "addons": [{"name": "mode", "manifests": [config_map("whole")]}]},
    ]
    await publish(client, "1.0.0", config_map("a", text="${facts.gpu.count} GPUs"), variants=variants)
    await use(client, "1.0.0")
    async with running(client):
        await reported(client, lambda each: ready("1.0.0")(each) and each.status.variant == "")
        await client.create(resources.RESOURCE_SLICES, devices("n1", "gpu", "gpu"))
        await reported(client, lambda each: ready("1.0.0")(each) and each.status.variant == "whole")
        assert await data(client, "whole") is not None
        await client.create(resources.RESOURCE_SLICES, devices("n2", "gpu", "mig", "mig"))
        cluster = await reported(client, lambda each: ready("1.0.0")(each) and each.status.variant == "mig")
    assert await data(client, "a") == {"text": "3 GPUs"}
    assert await data(client, "mig") is not None
    assert await data(client, "whole") is None
    assert cluster.status.facts["gpu"] == {"count": 3, "product": ["NVIDIA A100"], "mig": True, "memory": 40}


async def test_the_example_is_accepted_by_the_api(client: Administrator) -> None:
    discovery = kube.Discovery(client)
    for file in sorted((ROOT / "examples" / "blueprints" / "gpu-platform").glob("*.yaml")):
        for document in manifests.load_manifests(file.read_bytes(), file.name):
            resource = await discovery.resource(document["apiVersion"], document["kind"])
            path, query = resource.path(), {"fieldValidation": "Strict"}
            body = msgspec.json.encode(document)
            answer = await client.request("POST", path, query=query, body=body)
            assert answer.status == 201


async def test_a_published_version_is_immutable_in_the_api(client: Administrator) -> None:
    await publish(client, "1.0.0", config_map("a"))
    with pytest.raises(kube.Invalid, match="immutable"):
        await client.patch(resources.BLUEPRINT_VERSIONS, "bp-1.0.0", patch={"spec": {"version": "1.0.1"}})


async def test_a_version_whose_content_was_exchanged_is_not_applied(client: Administrator) -> None:
    version = frozen("1.0.0", config_map("a", x="1"))
    version["spec"]["layers"][0]["addons"]["maps"]["manifests"]["ConfigMap/default/a"]["data"]["x"] = "evil"
    await client.create(resources.BLUEPRINT_VERSIONS, version)
    await use(client, "1.0.0")
    async with running(client):
        cluster = await reported(client, lambda each: condition(each, "Degraded") == "True InvalidBlueprint")
    assert "changed after it was published" in cluster.status.conditions[0].message
    assert await data(client, "a") is None


async def test_a_new_version_is_applied_whole_with_what_no_comparison_shows(client: Administrator) -> None:
    def policy(*rules: dict[str, Any]) -> dict[str, Any]:
        return {
            "apiVersion": "admissionregistration.k8s.io/v1",
            "kind": "ValidatingAdmissionPolicy",
            "metadata": {"name": "p"},
            "spec": {
                "matchConstraints": {"resourceRules": list(rules)},
                "validations": [{"expression": "true", "message": "m"}],
            },
        }

    pods = {"apiGroups": [""], "apiVersions": ["v1"], "operations": ["CREATE"], "resources": ["pods"]}
    await publish(client, "1.0.0", policy({**pods, "resourceNames": ["x"]}))
    await publish(client, "2.0.0", policy(pods))
    await use(client, "1.0.0")
    resource = await kube.Discovery(client).resource("admissionregistration.k8s.io/v1", "ValidatingAdmissionPolicy")
    async with running(client):
        await reported(client, ready("1.0.0"))
        await use(client, "2.0.0")
        await reported(client, ready("2.0.0"))
    (rule,) = (await client.get(resource, "p"))["spec"]["matchConstraints"]["resourceRules"]
    assert "resourceNames" not in rule


@pytest.mark.parametrize("seed", range(6))
async def test_whatever_is_edited_ends_as_the_blueprint_says_with_foreign_fields_kept(
    client: Administrator, seed: int
) -> None:
    chance = random.Random(seed)
    names, label = ["a", "b", "c"], "applyset.kubernetes.io/part-of"
    await publish(client, "1.0.0", *(config_map(name, x="1", y="2") for name in names))
    await use(client, "1.0.0")
    foreign: dict[str, str] = {}
    async with running(client):
        await reported(client, ready("1.0.0"))
        for number in range(4):
            name = chance.choice(names)
            edits: list[dict[str, Any] | None] = [
                {"data": {"x": "9"}},
                {"data": {"x": None, "y": "9"}},
                {"data": {"x": "9", "foreign": str(number)}},
                {"metadata": {"labels": {label: None}}, "data": {"y": "8"}},
                {"metadata": {"managedFields": [{}]}},
                None,
            ]
            edit = chance.choice(edits)
            try:
                if edit is None:
                    await client.delete(MAPS, name, "default")
                    foreign.pop(name, None)
                else:
                    await client.patch(MAPS, name, "default", patch=edit)
                    if "foreign" in edit.get("data", {}):
                        foreign[name] = str(number)
            except kube.NotFound:
                continue  # deleted a moment ago and not back yet
            await asyncio.sleep(chance.choice([0, 0.001, 0.02]))

        async def restored() -> bool:
            for name in names:
                content = await data(client, name)
                if content is None or (content.get("x"), content.get("y")) != ("1", "2"):
                    return False
            return True

        await eventually(restored)
        await reported(client, lambda each: condition(each, "Drifted") == "False AsApplied")
        for name in names:
            live = await client.get(MAP, name, "default")
            assert live["metadata"]["labels"][label] == blueprints.cluster_set("local")
            assert live["data"].get("foreign") == foreign.get(name)
