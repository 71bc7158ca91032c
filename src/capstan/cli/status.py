"""`capstan status`: nodes and their GPUs, queues, and what waits."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping
from pathlib import Path

import click
import msgspec

from capstan import kube
from capstan.api import quantity, resources
from capstan.api.core import Node, Pod, Quantity
from capstan.api.resource import ResourceClaim, ResourceSlice
from capstan.api.scheduling import POD_GROUP_ANNOTATION, QUEUE_LABEL, PodGroup, Queue
from capstan.cli.connection import asynchronous, cluster_options, connect, output_option
from capstan.cli.output import escape, hanging, machine, show, table
from capstan.cli.usage import QueueUsage, read_usage

_GPU_DRIVER = "gpu.nvidia.com"
_PRODUCT_LABEL = "nvidia.com/gpu.product"
_GPU_RESOURCE, _MIG_RESOURCES = "nvidia.com/gpu", "nvidia.com/mig-"


class NodeStatus(msgspec.Struct, rename="camel"):
    """`gpus_in_use` counts physical GPUs that any claim holds, whole or in part; where a device plugin offers them,
    GPUs and MIG instances that pods ask for."""

    name: str
    ready: bool
    product: str
    gpus: int
    gpus_in_use: int
    pods: int


class ProductStatus(msgspec.Struct, rename="camel"):
    """GPUs of one product; a quota of -1 is unlimited."""

    quota: float
    allocated: float
    requested: float


class QueueStatus(msgspec.Struct, rename="camel"):
    """GPUs; a quota of -1 is unlimited. `problem` says why the queue cannot be used, `warning` what is odd about it."""

    name: str
    parent: str
    quota: float
    allocated: float
    requested: float
    gpu_types: dict[str, ProductStatus]
    """By product, for those that the queue names."""
    problem: str
    warning: str
    usage: list[QueueUsage]
    """What it used of late, where shards count that."""


class WaitingGang(msgspec.Struct, rename="camel"):
    """A gang, or a pod without one. `workload` is who made it, as `capstan explain` takes it: `job/train`."""

    namespace: str
    name: str
    workload: str
    queue: str
    reason: str
    message: str


class PlatformStatus(msgspec.Struct, rename="camel"):
    """`problems` of the scheduler's settings."""

    problems: list[str]
    nodes: list[NodeStatus]
    queues: list[QueueStatus]
    waiting: list[WaitingGang]


@click.command()
@output_option()
@cluster_options
@asynchronous
async def status(output: str, kubeconfig: Path | None, context: str | None) -> None:
    """Nodes, GPUs, queues and waiting gangs at a glance.

    \b
    Examples:
      capstan status
      capstan status -o json | jq '.waiting[].message'
    """
    async with connect(kubeconfig, context) as cluster:
        found = await _read(cluster.client)
    if output != "table":
        machine(found, output)
        return
    counted = any(q.usage for q in found.queues)
    show(
        table(
            "Nodes",
            ("NAME", "READY", "GPU", "GPUS", "IN USE", "PODS"),
            [
                (n.name, "yes" if n.ready else "no", n.product or "–", n.gpus, n.gpus_in_use, n.pods)
                for n in found.nodes
            ],
        ),
        "",
        table(
            "Queues (GPUs)",
            ("NAME", "PARENT", "QUOTA", "ALLOCATED", "REQUESTED", *(["USED OF LATE"] if counted else [])),
            [row for q in found.queues for row in _rows(q, counted=counted)],
        ),
        *(hanging(f"[red]queue {q.name}[/]: {escape(q.problem)}") for q in found.queues if q.problem),
        *(hanging(f"[yellow]queue {q.name}[/]: {escape(q.warning)}") for q in found.queues if q.warning),
        *(hanging(f"[yellow]{escape(problem)}[/]") for problem in found.problems),
        "",
    )
    if not found.waiting:
        show("Nothing waits.")
        return
    show("[bold]Waiting[/]")
    for w in found.waiting:
        queue = f" in queue {w.queue}" if w.queue else ""
        show(f"[bold]{w.workload}[/] -n {w.namespace}{queue}: {w.reason}", hanging(f"[dim]{escape(w.message)}[/]"))


async def _read(client: kube.Client) -> PlatformStatus:
    nodes = (await client.list(resources.NODES)).items
    slices = (await client.list(resources.RESOURCE_SLICES)).items
    claims = (await client.list(resources.RESOURCE_CLAIMS)).items
    pods = (await client.list(resources.PODS)).items
    queues = (await client.list(resources.QUEUES)).items
    groups = (await client.list(resources.POD_GROUPS)).items
    usage = await read_usage(client)
    grouped = {group.key for group in groups}
    alone = [pod for pod in pods if (pod.metadata.namespace, _group_name(pod)) not in grouped]
    waiting = [*map(_waiting, groups), *map(_waiting_alone, alone)]
    running: dict[str, list[Pod]] = defaultdict(list)
    for pod in pods:
        if pod.spec.node_name and pod.status.phase not in ("Succeeded", "Failed"):
            running[pod.spec.node_name].append(pod)
    gpus, used = _gpus(slices, claims)
    return PlatformStatus(
        problems=await _problems(client),
        nodes=[_node(node, gpus, used, running) for node in sorted(nodes, key=lambda node: node.metadata.name)],
        queues=[
            _queue(queue, usage.get(queue.metadata.name, []))
            for queue in sorted(queues, key=lambda queue: queue.metadata.name)
        ],
        waiting=[entry for entry in waiting if entry is not None],
    )


async def _problems(client: kube.Client) -> list[str]:
    """What is wrong with the settings of the scheduler, as it says itself on their objects."""
    try:
        shards = (await client.list(resources.SCHEDULING_SHARDS)).items
        configs = (await client.list(resources.CONFIGS)).items
    except kube.NotFound:
        return ["KAI's definitions are not installed, so nothing is scheduled by Capstan"]
    if not shards:
        return ["there is no SchedulingShard, so nothing is scheduled; kubectl get schedulingshards"]
    return [
        f"{kind} {obj.metadata.name}: {condition.message}"
        for kind, objects in (("SchedulingShard", shards), ("Config", configs))
        for obj in objects
        for condition in obj.status.conditions
        if condition.type in ("Valid", "Ready") and condition.status == "False"
    ]


def _used(usage: list[QueueUsage]) -> str:
    """`25%` of the GPUs; with several shards `25% of red`."""
    parts = {entry.shard: entry.parts.get("gpu", 0.0) for entry in usage}
    if not parts:
        return "–"
    if len(parts) == 1:
        return f"{next(iter(parts.values())):.0%}"
    return ", ".join(f"{part:.0%} of {shard}" for shard, part in sorted(parts.items()))


def _gpus(slices: list[ResourceSlice], claims: list[ResourceClaim]) -> tuple[dict[str, set[str]], dict[str, set[str]]]:
    """Physical GPUs per pool, all and in use, each named by the counter set that all of its devices draw from."""
    physical: dict[tuple[str, str], str] = {}
    all_of: dict[str, set[str]] = defaultdict(set)
    for piece in slices:
        if piece.spec.driver != _GPU_DRIVER:
            continue
        pool = piece.spec.pool.name
        for device in piece.spec.devices:
            gpu = device.consumes_counters[0].counter_set if device.consumes_counters else device.name
            physical[pool, device.name] = gpu
            all_of[pool].add(gpu)
    in_use: dict[str, set[str]] = defaultdict(set)
    for claim in claims:
        results = claim.status.allocation.devices.results if claim.status.allocation else []
        for result in results:
            if (result.pool, result.device) in physical and not result.admin_access:
                in_use[result.pool].add(physical[result.pool, result.device])
    return all_of, in_use


def _node(
    node: Node, gpus: dict[str, set[str]], used: dict[str, set[str]], running: dict[str, list[Pod]]
) -> NodeStatus:
    name = node.metadata.name
    pods = running.get(name, [])
    by_claims = name in gpus
    asked = (_plugged(c.resources.requests) for pod in pods for c in pod.spec.containers)
    return NodeStatus(
        name=name,
        ready=node.ready,
        product=node.metadata.labels.get(_PRODUCT_LABEL, ""),
        gpus=len(gpus[name]) if by_claims else _plugged(node.status.allocatable),
        gpus_in_use=len(used.get(name, ())) if by_claims else sum(asked),
        pods=len(pods),
    )


def _plugged(amounts: Mapping[str, Quantity]) -> int:
    """GPUs and MIG instances of a device plugin."""
    return sum(
        quantity.whole(amount)
        for resource, amount in amounts.items()
        if resource == _GPU_RESOURCE or resource.startswith(_MIG_RESOURCES)
    )


def _rows(queue: QueueStatus, *, counted: bool) -> list[tuple[str, ...]]:
    """A row for the queue, and one for every GPU product it names."""

    def numbers(of: QueueStatus | ProductStatus) -> tuple[str, str, str]:
        return ("unlimited" if of.quota == -1 else f"{of.quota:g}", f"{of.allocated:g}", f"{of.requested:g}")

    return [
        (queue.name, queue.parent or "–", *numbers(queue), *([_used(queue.usage)] if counted else [])),
        *((f"  {product}", "", *numbers(held), *[""] * counted) for product, held in queue.gpu_types.items()),
    ]


def _queue(queue: Queue, usage: list[QueueUsage]) -> QueueStatus:
    bounds = queue.spec.resources
    said = {(condition.type, condition.status): condition.message for condition in queue.status.conditions}
    return QueueStatus(
        name=queue.metadata.name,
        parent=queue.spec.parent_queue,
        quota=bounds.gpu.quota if bounds else 0,
        allocated=float(quantity.parse(queue.status.allocated.get("nvidia.com/gpu"))),
        requested=float(quantity.parse(queue.status.requested.get("nvidia.com/gpu"))),
        gpu_types={
            product: ProductStatus(
                quota=bound.quota,
                allocated=float(quantity.parse(queue.status.allocated.get(product))),
                requested=float(quantity.parse(queue.status.requested.get(product))),
            )
            for product, bound in sorted(bounds.gpu_types.items() if bounds else ())
        },
        problem=said.get(("Orphan", "True"), ""),
        warning=said.get(("Consistent", "False"), ""),
        usage=usage,
    )


def _waiting(group: PodGroup) -> WaitingGang | None:
    condition = next((c for c in group.status.scheduling_conditions if c.status == "True"), None)
    if condition is None:
        return None
    owners = group.metadata.owner_references
    return WaitingGang(
        namespace=group.metadata.namespace,
        name=group.metadata.name,
        workload=f"{owners[0].kind.lower()}/{owners[0].name}" if owners else f"podgroup/{group.metadata.name}",
        queue=group.spec.queue,
        reason=condition.reasons[0].reason if condition.reasons else condition.reason,
        message=condition.reasons[0].message if condition.reasons else condition.message,
    )


def _waiting_alone(pod: Pod) -> WaitingGang | None:
    """A pod that no PodGroup speaks for."""
    condition = next((c for c in pod.status.conditions if c.type == "PodScheduled" and c.status == "False"), None)
    if condition is None or pod.status.phase != "Pending":
        return None
    return WaitingGang(
        namespace=pod.metadata.namespace,
        name=pod.metadata.name,
        workload=f"pod/{pod.metadata.name}",
        queue=pod.metadata.labels.get(QUEUE_LABEL, ""),
        reason=condition.reason,
        message=condition.message,
    )


def _group_name(pod: Pod) -> str:
    return pod.metadata.annotations.get(POD_GROUP_ANNOTATION, "")
