"""The demonstration: the four pillars on two embedded clusters, every step verified by reading the clusters back.

`training` is a cluster with one machine of eight H100, `edge` one with four L4: the same blueprint becomes a MIG layout
on the first and time-slicing on the second.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from importlib.resources import files as package_files
from pathlib import Path
from typing import Any

from capstan import blueprints, isolation, kube
from capstan.api import manifests, resources
from capstan.api.core import Pod
from capstan.api.platform import Cluster, Drift
from capstan.api.resource import ResourceClaim, ResourceSlice
from capstan.api.scheduling import POD_GROUP_ANNOTATION, PodGroup
from capstan.embedded.platform import Platform
from capstan.embedded.story import NotShown, Step, Story, until
from capstan.node.models import parse_fleet

NAMESPACE = "demo"

SIMULATED = "simulated GPUs; real API, driver, scheduler"


@dataclass(frozen=True, slots=True)
class Stage:
    """The clusters the story is told on, with an administrator's client of each."""

    training: Platform
    edge: Platform
    h100: kube.Client
    l4: kube.Client


@asynccontextmanager
async def stage(scratch: Path) -> AsyncIterator[Stage]:
    """Two clusters that last as long as the context; their files are under `scratch`."""
    training = Platform(
        parse_fleet("1xdgx-h100"),
        data_dir=scratch / "training",
        port=None,
        name="training",
        labels={"dgx-h100-0": isolation.node_labels(gpu=True, tee="snp")},
        extended={"dgx-h100-0": {"sev-snp.amd.com/esids": 509}},
    )
    edge = Platform(parse_fleet("1xl4x4"), data_dir=scratch / "edge", port=None, name="edge")
    async with training, edge:
        h100, l4 = training.client("capstan-demo"), edge.client("capstan-demo")
        for client in (h100, l4):
            await client.create(resources.NAMESPACES, {"metadata": {"name": NAMESPACE}})
        yield Stage(training, edge, h100, l4)


def job(name: str, *, pods: int, gpus: int, queue: str, gang: int | None = None) -> dict[str, Any]:
    """A batch Job of `pods` pods with `gpus` whole GPUs each that runs until deleted; `gang` pods start together."""
    annotations = {"kai.scheduler/batch-min-member": str(gang)} if gang else {}
    return {
        "apiVersion": "batch/v1",
        "kind": "Job",
        "metadata": {"name": name, "namespace": NAMESPACE, "annotations": annotations},
        "spec": {
            "parallelism": pods,
            "completions": pods,
            "template": {
                "metadata": {"labels": {"kai.scheduler/queue": queue, "priorityClassName": "train", "demo": name}},
                "spec": pod_spec(gpus=gpus),
            },
        },
    }


def pod_spec(*, gpus: int = 0, **fields: Any) -> dict[str, Any]:
    container: dict[str, Any] = {
        "name": "main",
        "image": "ubuntu:22.04",
        "command": ["bash", "-c"],
        "args": ["nvidia-smi -L; sleep infinity"],
        "resources": {"requests": {"cpu": "500m", "memory": "1Gi"}},
    }
    if gpus:
        container["resources"]["limits"] = {"nvidia.com/gpu": str(gpus)}
    return {
        "schedulerName": "kai-scheduler",
        "restartPolicy": "Never",
        "terminationGracePeriodSeconds": 0,
        "containers": [container],
    } | fields


async def pods_of(client: kube.Client, label: str) -> list[Pod]:
    return (await client.list(resources.PODS, NAMESPACE, labels=f"demo={label}")).items


async def running(client: kube.Client, label: str, count: int) -> list[Pod]:
    """Wait until exactly so many pods of a demo workload run."""

    async def look() -> list[Pod] | None:
        pods = [pod for pod in await pods_of(client, label) if pod.status.phase == "Running"]
        return pods if len(pods) == count else None

    return await until(look, f"{count} pods of {label} run")


async def remove(client: kube.Client, label: str) -> None:
    """Delete a demo workload and wait until its pods are gone."""
    for pod in await pods_of(client, label):
        owner = pod.metadata.controller()
        if owner is None:
            await client.delete(resources.PODS, pod.metadata.name, NAMESPACE)
        elif await _exists(client, owner.name):
            await client.delete(resources.JOBS, owner.name, NAMESPACE, propagation="Background")

    async def look() -> bool:
        return not await pods_of(client, label)

    await until(look, f"the pods of {label} are gone")


async def _exists(client: kube.Client, name: str) -> bool:
    try:
        await client.get(resources.JOBS, name, NAMESPACE)
    except kube.NotFound:
        return False
    return True


async def devices_of(client: kube.Client, pods: Sequence[Pod]) -> dict[str, list[ResourceClaim]]:
    """Pod name -> the claims that are reserved for it."""
    claims = (await client.list(resources.RESOURCE_CLAIMS, NAMESPACE)).items
    uids = {pod.metadata.uid: pod.metadata.name for pod in pods}
    held: dict[str, list[ResourceClaim]] = {name: [] for name in uids.values()}
    for claim in claims:
        for user in claim.status.reserved_for:
            if user.uid in uids:
                held[uids[user.uid]].append(claim)
    return held


async def group_of(client: kube.Client, pods: Sequence[Pod]) -> PodGroup:
    names = {pod.metadata.annotations.get(POD_GROUP_ANNOTATION, "") for pod in pods}
    if len(names) != 1 or not (name := names.pop()):
        raise NotShown(f"the pods are not one gang but {len(names)}")
    return await client.get(resources.POD_GROUPS, name, NAMESPACE)


async def one_blueprint_two_clusters(stage: Stage) -> list[str]:
    text = (package_files("capstan.embedded") / "manifests" / "demo-blueprint.yaml").read_text()
    (document,) = manifests.load_manifests(text, "demo-blueprint.yaml")
    frozen = blueprints.published(
        blueprints.Library([blueprints.Source("demo-blueprint.yaml", document)]), document["metadata"]["name"]
    )
    reference = {"name": frozen["spec"]["blueprint"], "version": frozen["spec"]["version"]}
    lines = [f"published {frozen['metadata']['name']}, {frozen['spec']['digest'][:19]}…"]
    for platform, client, variant, device_class in (
        (stage.training, stage.h100, "mig", "mig-1g.10gb"),
        (stage.edge, stage.l4, "time-slicing", "shared-gpu"),
    ):
        await client.create(resources.BLUEPRINT_VERSIONS, frozen)
        body = {"metadata": {"name": platform.name}, "spec": {"blueprint": reference, "mode": "enforce"}}
        await client.apply(resources.CLUSTERS, body, force=True)

        async def look(client: kube.Client = client, name: str = platform.name) -> Cluster | None:
            cluster = await client.get(resources.CLUSTERS, name)
            ready = any(c.type == "Ready" and c.status == "True" for c in cluster.status.conditions)
            return cluster if ready and cluster.status.variant else None

        cluster = await until(look, f"the blueprint is ready on {platform.name}")
        if cluster.status.variant != variant:
            raise NotShown(f"{platform.name} got the variant {cluster.status.variant!r}, not {variant!r}")
        await client.get(resources.DEVICE_CLASSES, device_class)
        lines.append(f"{platform.name}: variant {variant}, {cluster.status.objects} objects, class {device_class}")
    return lines


async def slices_are_published(stage: Stage) -> list[str]:
    lines = []
    for name, client in ((stage.training.name, stage.h100), (stage.edge.name, stage.l4)):

        async def look(client: kube.Client = client) -> list[ResourceSlice] | None:
            slices = (await client.list(resources.RESOURCE_SLICES)).items
            return slices if any(piece.spec.devices for piece in slices) else None

        slices = await until(look, f"the driver of {name} publishes ResourceSlices")
        devices = [device for piece in slices for device in piece.spec.devices]
        kinds = Counter((device.attributes["type"].string or "?") for device in devices)
        lines.append(f"{name}: {len(slices)} slices, " + ", ".join(f"{n} {kind}" for kind, n in sorted(kinds.items())))
    return lines


async def gang_waits_whole(stage: Stage) -> list[str]:
    client = stage.h100
    await client.create(resources.JOBS, job("filler", pods=2, gpus=1, queue="default-queue"))
    await running(client, "filler", 2)
    await client.create(resources.JOBS, job("gang", pods=4, gpus=2, queue="default-queue", gang=4))

    async def look() -> str | None:
        pods = await pods_of(client, "gang")
        if len(pods) < 4 or not all(POD_GROUP_ANNOTATION in pod.metadata.annotations for pod in pods):
            return None
        group = await group_of(client, pods)
        return next((c.message or c.reason for c in group.status.scheduling_conditions if c.status == "True"), None)

    why = await until(look, "the gang has a verdict")
    started = [pod.metadata.name for pod in await pods_of(client, "gang") if pod.spec.node_name]
    if started:
        raise NotShown(f"{len(started)} of 4 pods were started although the gang does not fit: {started}")
    return ["8 GPUs, 2 busy; a gang of 4 pods × 2 GPUs: none of its pods is bound", f"why: {why}"]


async def gang_starts_whole(stage: Stage) -> list[str]:
    client = stage.h100
    await remove(client, "filler")
    pods = await running(client, "gang", 4)
    held = await devices_of(client, pods)
    devices = [
        (result.pool, result.device)
        for claims in held.values()
        for claim in claims
        for result in (claim.status.allocation.devices.results if claim.status.allocation else [])
    ]
    if len(devices) != 8 or len(set(devices)) != 8:
        raise NotShown(f"4 pods × 2 GPUs hold {len(set(devices))} distinct devices, not 8")
    await remove(client, "gang")
    return ["room was freed: all 4 pods run, on 8 distinct GPUs"]


async def starved_queue_reclaims(stage: Stage) -> list[str]:
    client = stage.h100
    await client.create(resources.JOBS, job("borrower", pods=8, gpus=1, queue="vision"))
    await running(client, "borrower", 8)
    await client.create(resources.JOBS, job("claimant", pods=4, gpus=1, queue="speech", gang=4))
    await running(client, "claimant", 4)
    left = await running(client, "borrower", 4)
    events = (await client.list(resources.EVENTS, NAMESPACE)).items
    why = next((event.message for event in events if event.reason == "Reclaimed"), None)
    if why is None:
        raise NotShown("pods were taken back, but no Event says why")
    for label in ("borrower", "claimant"):
        await remove(client, label)
    return [
        f"vision (quota 4) ran on all 8 GPUs; speech (quota 4) got its 4 back, vision kept {len(left)}",
        f"why: {why}",
    ]


async def two_pods_share_a_gpu(stage: Stage) -> list[str]:
    client = stage.l4
    for name in ("half-a", "half-b"):
        await client.create(
            resources.PODS,
            {
                "apiVersion": "v1",
                "kind": "Pod",
                "metadata": {
                    "name": name,
                    "namespace": NAMESPACE,
                    "labels": {"kai.scheduler/queue": "default-queue", "demo": "share"},
                    "annotations": {"gpu-fraction": "0.5"},
                },
                "spec": pod_spec(),
            },
        )
    pods = await running(client, "share", 2)
    held = await devices_of(client, pods)
    results = [
        result
        for claims in held.values()
        for claim in claims
        for result in (claim.status.allocation.devices.results if claim.status.allocation else [])
    ]
    places = {(result.pool, result.device) for result in results}
    if len(results) != 2 or len(places) != 1:
        raise NotShown(f"the two halves hold {len(results)} shares of {len(places)} GPUs, not 2 of 1")
    amounts = [str(next(iter(result.consumed_capacity.values()), "?")) for result in results]
    await remove(client, "share")
    pool, device = places.pop()
    return [f"two pods with gpu-fraction 0.5 run on {pool}/{device}, with {' and '.join(amounts)} of memory"]


async def confidential_pod_gets_a_vfio_gpu(stage: Stage) -> list[str]:
    client = stage.h100
    choice = isolation.select_runtime_class(
        isolation.Level.CONFIDENTIAL,
        gpu=True,
        available=[found.metadata.name for found in (await client.list(resources.RUNTIME_CLASSES)).items],
    )
    if choice.runtime_class is None or choice.device_class is None:
        raise NotShown("the cluster has no runtime class for confidential pods with GPUs")
    template = {
        "metadata": {"name": "passed-through", "namespace": NAMESPACE},
        "spec": {
            "spec": {"devices": {"requests": [{"name": "gpu", "exactly": {"deviceClassName": choice.device_class}}]}}
        },
    }
    await client.create(resources.RESOURCE_CLAIM_TEMPLATES, template)
    spec = pod_spec(
        runtimeClassName=choice.runtime_class.name,
        resourceClaims=[{"name": "gpu", "resourceClaimTemplateName": "passed-through"}],
    )
    spec["containers"][0]["resources"]["claims"] = [{"name": "gpu"}]
    labels = {"kai.scheduler/queue": "speech", "demo": "confidential"}
    body = {"metadata": {"name": "confidential", "namespace": NAMESPACE, "labels": labels}, "spec": spec}
    await client.create(resources.PODS, body)
    (pod,) = await running(client, "confidential", 1)
    problems = isolation.violations(pod, isolation.Level.CONFIDENTIAL, {"gpu": [choice.device_class]})
    if problems:
        raise NotShown("; ".join(map(str, problems)))
    if not pod.spec.overhead:
        raise NotShown("the pod does not carry the overhead of its microVM")
    (claims,) = (await devices_of(client, [pod])).values()
    results = [
        r for claim in claims for r in (claim.status.allocation.devices.results if claim.status.allocation else [])
    ]
    if not results or not all(result.device.startswith("gpu-vfio-") for result in results):
        raise NotShown(f"the pod holds {[result.device for result in results]}, not a VFIO device")
    overhead = ", ".join(f"{amount} {resource}" for resource, amount in pod.spec.overhead.items())
    label = isolation.report(isolation.Level.CONFIDENTIAL, isolation.Evidence(simulated=True, passthrough=True))
    await remove(client, "confidential")
    return [
        f"{choice.runtime_class.name} on {pod.spec.node_name}/{results[0].device}, overhead: {overhead}",
        f"reported isolation: {label}",
    ]


async def drift_is_named_and_repaired(stage: Stage) -> list[str]:
    client = stage.h100
    hand = stage.training.client("kubectl-edit")
    await hand.patch(resources.QUEUES, "vision", patch={"spec": {"resources": {"gpu": {"quota": 99}}}})

    async def look() -> Drift | None:
        cluster = await client.get(resources.CLUSTERS, stage.training.name)
        return next((d for d in cluster.status.drift if "vision" in d.object and d.repaired), None)

    drift = await until(look, "the agent finds and repairs the edited queue")
    if "gpu.quota" not in drift.path:
        raise NotShown(f"the drift names {drift.path!r}, not the edited field")
    queue = await client.get(resources.QUEUES, "vision")
    if queue.spec.resources is None or queue.spec.resources.gpu.quota != 4:
        raise NotShown("the quota was not put back to 4")
    return [f"{drift.object} {drift.path}: {drift.expected} was changed to {drift.found} by {drift.manager}; repaired"]


def story() -> Story[Stage]:
    """The steps, in the order in which they build on each other."""
    return Story(
        [
            Step("One blueprint, two clusters, two variants", "real", one_blueprint_two_clusters),
            Step("ResourceSlices of every GPU", SIMULATED, slices_are_published),
            Step("A gang that does not fit: nothing of it starts", SIMULATED, gang_waits_whole),
            Step("Room is freed: all of it starts", SIMULATED, gang_starts_whole),
            Step("A starved queue gets its GPUs back", SIMULATED, starved_queue_reclaims),
            Step("Two pods share one GPU", SIMULATED, two_pods_share_a_gpu),
            Step(
                "A confidential tenant gets a VFIO GPU in a Kata runtime class",
                "simulated GPUs and microVM; real API, driver, scheduler",
                confidential_pod_gets_a_vfio_gpu,
            ),
            Step("A hand edit is found, named and repaired", "real", drift_is_named_and_repaired),
        ]
    )
