"""Pods that are gangs of their own carry the name of their PodGroup from their first version on."""

import pytest

from capstan import kube, local
from capstan.api import resources
from capstan.embedded import marks

pytestmark = pytest.mark.anyio


@pytest.fixture
async def client(tmp_path):
    server = local.Server(tmp_path)
    server.admission.mutating.insert(0, marks.mark)
    await server.start()
    yield kube.Client(server.transport())
    await server.stop()


def pod(scheduler="kai-scheduler", **metadata):
    return {
        "metadata": {"name": "p", "namespace": "default", **metadata},
        "spec": {"schedulerName": scheduler, "containers": [{"name": "m", "image": "x"}]},
    }


async def mark_of(client, body):
    made = await client.create(resources.PODS, body)
    return made["metadata"].get("annotations", {}).get("pod-group-name"), made["metadata"]["uid"]


async def test_a_lone_pod_names_the_group_that_the_grouper_will_write(client):
    name, uid = await mark_of(client, pod())
    assert name == f"pg-p-{uid}"


async def test_executors_of_one_spark_application_name_the_same_group(client):
    first, _ = await mark_of(client, pod(labels={"spark-app-selector": "etl"}))
    second, _ = await mark_of(client, pod(name="q", labels={"spark-app-selector": "etl"}))
    assert first == second == "pg-etl"


@pytest.mark.parametrize(
    "body",
    [
        pytest.param(pod("default-scheduler"), id="another scheduler"),
        pytest.param(pod(annotations={"kai.scheduler/skip-podgrouper": "true"}), id="who opts out"),
        pytest.param(
            pod(ownerReferences=[{"apiVersion": "batch/v1", "kind": "Job", "name": "j", "uid": "u"}]),
            id="with an owner",
        ),
    ],
)
async def test_other_pods_are_left_alone(client, body):
    assert (await mark_of(client, body))[0] is None


async def test_the_group_that_a_user_names_stays(client):
    assert (await mark_of(client, pod(annotations={"pod-group-name": "mine"})))[0] == "mine"
