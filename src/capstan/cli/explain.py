"""`capstan explain`: why a pod or a gang is where it is, or what exactly keeps it waiting."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import click
import msgspec

from capstan import kube
from capstan.api import resources
from capstan.api.core import Pod
from capstan.api.scheduling import POD_GROUP_ANNOTATION, QUEUE_LABEL, PodGroup, UnschedulableExplanation
from capstan.cli.connection import asynchronous, cluster_options, connect, output_option
from capstan.cli.output import escape, hanging, machine, show, table
from capstan.cli.usage import QueueUsage, read_usage, sentence


class HeldDevice(msgspec.Struct, rename="camel"):
    claim: str
    request: str
    device: str
    consumed: dict[str, str | int | float]


class PodExplanation(msgspec.Struct, rename="camel"):
    namespace: str
    name: str
    phase: str
    node: str
    gang: str
    reason: str
    message: str
    devices: list[HeldDevice]


class GangExplanation(msgspec.Struct, rename="camel"):
    """`name` is the PodGroup's, empty for pods without one; `workload` is who made it, e.g. `job/train`."""

    namespace: str
    name: str
    workload: str
    queue: str
    priority_class: str
    min_member: int | None
    pods: dict[str, int]
    """Phase -> number of pods."""
    reasons: list[UnschedulableExplanation]
    members: list[PodExplanation]
    usage: dict[str, list[QueueUsage]] = {}
    """What its queue and those above used of late, where shards count that: it lowers their fair shares."""


@click.command()
@click.argument("target", metavar="POD|GANG")
@click.option("-n", "--namespace", help="Default: the context's namespace.")
@output_option()
@cluster_options
@asynchronous
async def explain(
    target: str, namespace: str | None, output: str, kubeconfig: Path | None, context: str | None
) -> None:
    """Why a pod or gang runs where it runs, or why it waits.

    Name a pod, a PodGroup, or the workload that made them.

    \b
    Examples:
      capstan explain trainer-0
      capstan explain podgroup/pg-train-1234
      capstan explain job/train -n research -o yaml
    """
    async with connect(kubeconfig, context) as cluster:
        explained = await _explain(cluster.client, target, namespace or cluster.namespace)
    if output != "table":
        machine(explained, output)
    else:
        show(*_lines(explained))


async def _explain(client: kube.Client, target: str, namespace: str) -> PodExplanation | GangExplanation:
    kind, _, name = target.rpartition("/")
    kind = kind.lower()
    if kind in ("", "pod", "pods", "po"):
        try:
            return await _explain_pod(client, await client.get(resources.PODS, name, namespace))
        except kube.NotFound:
            if kind:
                raise
    groups = (await client.list(resources.POD_GROUPS, namespace)).items
    for group in groups:
        if group.metadata.name == name and kind in ("", "podgroup", "podgroups", "gang"):
            return await _explain_gang(client, group)
        if any(owner.name == name and kind in ("", owner.kind.lower()) for owner in group.metadata.owner_references):
            return await _explain_gang(client, group)
    made = [pod for pod in (await client.list(resources.PODS, namespace)).items if _made_by(pod, kind, name)]
    if made:
        return await _explain_ungrouped(client, made, target, namespace)
    raise click.ClickException(
        f"no pod, PodGroup or workload {target!r} in namespace {namespace!r}; "
        f"`kubectl get pods,podgroups -n {namespace}` lists them"
    )


def _made_by(pod: Pod, kind: str, name: str) -> bool:
    return any(owner.name == name and kind in ("", owner.kind.lower()) for owner in pod.metadata.owner_references)


async def _explain_ungrouped(client: kube.Client, pods: list[Pod], target: str, namespace: str) -> GangExplanation:
    """A workload whose pods have no PodGroup, because they are not KAI's or because the grouper refused it."""
    members = [await _explain_pod(client, pod) for pod in sorted(pods, key=lambda pod: pod.metadata.name)]
    return GangExplanation(
        namespace=namespace,
        name="",
        workload=target,
        queue=pods[0].metadata.labels.get(QUEUE_LABEL, ""),
        priority_class=pods[0].spec.priority_class_name,
        min_member=None,
        pods=dict(Counter(pod.phase for pod in members)),
        reasons=[
            UnschedulableExplanation(reason=reason, message=message)
            for reason, message in dict.fromkeys((pod.reason, pod.message) for pod in members if pod.message)
        ],
        members=members,
    )


async def _explain_pod(client: kube.Client, pod: Pod) -> PodExplanation:
    gang = pod.metadata.annotations.get(POD_GROUP_ANNOTATION, "")
    scheduled = next((c for c in pod.status.conditions if c.type == "PodScheduled"), None)
    waiting = scheduled is not None and scheduled.status == "False"
    return PodExplanation(
        namespace=pod.metadata.namespace,
        name=pod.metadata.name,
        phase=pod.status.phase,
        node=pod.spec.node_name,
        gang=gang,
        reason=scheduled.reason if waiting and scheduled else pod.status.reason,
        message=scheduled.message if waiting and scheduled else pod.status.message,
        devices=await _devices(client, pod),
    )


async def _devices(client: kube.Client, pod: Pod) -> list[HeldDevice]:
    names = [claim.resource_claim_name for claim in pod.spec.resource_claims if claim.resource_claim_name]
    names += [made.resource_claim_name for made in pod.status.resource_claim_statuses if made.resource_claim_name]
    if pod.status.extended_resource_claim_status:
        names.append(pod.status.extended_resource_claim_status.resource_claim_name)
    held: list[HeldDevice] = []
    for name in names:
        try:
            claim = await client.get(resources.RESOURCE_CLAIMS, name, pod.metadata.namespace)
        except kube.NotFound:
            continue
        held += [
            HeldDevice(name, result.request, f"{result.pool}/{result.device}", result.consumed_capacity)
            for result in (claim.status.allocation.devices.results if claim.status.allocation else [])
        ]
    return held


async def _explain_gang(client: kube.Client, group: PodGroup) -> GangExplanation:
    pods = [
        pod
        for pod in (await client.list(resources.PODS, group.metadata.namespace)).items
        if pod.metadata.annotations.get(POD_GROUP_ANNOTATION) == group.metadata.name
    ]
    owners = group.metadata.owner_references
    reasons = [
        reason
        for condition in group.status.scheduling_conditions
        if condition.status == "True"
        for reason in condition.reasons
        or [UnschedulableExplanation(reason=condition.reason, message=condition.message)]
    ]
    return GangExplanation(
        namespace=group.metadata.namespace,
        name=group.metadata.name,
        workload=f"{owners[0].kind.lower()}/{owners[0].name}" if owners else f"podgroup/{group.metadata.name}",
        queue=group.spec.queue,
        priority_class=group.spec.priority_class_name,
        min_member=group.spec.min_member,
        pods=dict(Counter(pod.status.phase for pod in pods)),
        reasons=reasons,
        members=[await _explain_pod(client, pod) for pod in sorted(pods, key=lambda pod: pod.metadata.name)],
        usage=await _usage_of(client, group.spec.queue) if reasons else {},
    )


async def _usage_of(client: kube.Client, queue: str) -> dict[str, list[QueueUsage]]:
    """Of a queue and those above it, leaf first. It only adds to the reasons: nothing for those who may not read it."""
    try:
        usage = await read_usage(client)
    except kube.Forbidden:
        return {}
    if not usage:
        return {}
    parents = {found.metadata.name: found.spec.parent_queue for found in (await client.list(resources.QUEUES)).items}
    path: list[str] = []
    while queue and queue not in path:
        path.append(queue)
        queue = parents.get(queue, "")
    return {name: usage[name] for name in path if name in usage}


def _lines(explained: PodExplanation | GangExplanation) -> list[object]:
    if isinstance(explained, GangExplanation):
        needs = f", needs {explained.min_member} together" if explained.min_member else ""
        queue = f" in queue {explained.queue}" if explained.queue else ""
        head = f"[bold]{explained.workload}[/] in namespace {explained.namespace}{queue}{needs}"
        counts = ", ".join(f"{count} {phase}" for phase, count in sorted(explained.pods.items())) or "no pods"
        verdicts = [hanging(f"waits: [bold]{r.reason}[/]: {escape(r.message)}") for r in explained.reasons]
        verdicts += [hanging(sentence(name, entry)) for name, found in explained.usage.items() for entry in found]
        members = table(
            "",
            ("POD", "PHASE", "NODE", "DEVICES"),
            [
                (m.name, m.phase, m.node or "–", ", ".join(d.device for d in m.devices) or "–")
                for m in explained.members
            ],
        )
        gang = [hanging(f"gang: {explained.name}")] if explained.name else []
        return [f"{head}: {counts}", *gang, *verdicts, members]
    where = f" on node {explained.node}" if explained.node else ""
    lines: list[object] = [f"[bold]{explained.namespace}/{explained.name}[/] is {explained.phase}{where}"]
    if explained.gang:
        lines.append(hanging(f"gang: {explained.gang}"))
    if explained.reason or explained.message:
        verb = "waits" if explained.phase == "Pending" else "ended"
        lines.append(hanging(f"{verb}: [bold]{explained.reason}[/]: {escape(explained.message)}"))
    for device in explained.devices:
        share = ", ".join(f"{name} {amount}" for name, amount in device.consumed.items())
        lines.append(hanging(f"holds {device.device} (request {device.request}{'; ' + share if share else ''})"))
    return lines
