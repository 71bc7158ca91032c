"""`capstan explain`: why a pod or a gang is where it is, or what exactly keeps it waiting."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TypeVar

import click
import msgspec

from capstan import kube
from capstan.api import quantity, resources
from capstan.api.core import Pod
from capstan.api.resource import ResourceClaim
from capstan.api.scheduling import (
    CLAIMED_BY_ONE,
    POD_GROUP_ANNOTATION,
    STALE_SINCE,
    PodGroup,
    UnschedulableExplanation,
)
from capstan.cli.completion import names_in_cluster, namespaces
from capstan.cli.connection import asynchronous, cluster_options, connect, output_option
from capstan.cli.output import escape, hanging, machine, show, table
from capstan.cli.usage import QueueUsage, read_usage, sentence

T = TypeVar("T")
_PODS = ("pod", "pods", "po")
_GANGS = ("podgroup", "podgroups", "pg", "gang")


class HeldDevice(msgspec.Struct, rename="camel"):
    claim: str
    request: str
    device: str
    consumed: dict[str, str | int | float]
    """What it takes of the device's capacity, where it does not hold the whole device."""


class PodExplanation(msgspec.Struct, rename="camel"):
    """`reason` and `message` are those of its gang, if it waits for that."""

    namespace: str
    name: str
    phase: str
    node: str
    gang: str
    reason: str
    message: str
    warnings: list[str]
    """What is odd about it although it need not wait for that: two PodGroups claim it."""
    devices: list[HeldDevice]


class GangExplanation(msgspec.Struct, rename="camel"):
    """`name` is the PodGroup's; `workload` is who made it, e.g. `job/train`."""

    namespace: str
    name: str
    workload: str
    queue: str
    priority_class: str
    min_member: int | None
    pods: dict[str, int]
    """Phase -> number of pods."""
    reasons: list[UnschedulableExplanation]
    below_minimum_since: str | None
    """It runs with fewer pods than its minimum, and ends after its grace period (`stalenessGracePeriod`)."""
    members: list[PodExplanation]
    usage: dict[str, list[QueueUsage]] = {}
    """What its queue and those above used of late, where shards count that: it lowers their fair shares."""


class WorkloadExplanation(msgspec.Struct, rename="camel"):
    """An object that made pods, directly or through others."""

    namespace: str
    workload: str
    gangs: list[GangExplanation]
    pods: list[PodExplanation]
    """Those without a PodGroup, because they are not KAI's or because the grouper refused them."""


Explained = PodExplanation | GangExplanation | WorkloadExplanation


@click.command()
@click.argument("target", nargs=-1, required=True, metavar="[KIND] NAME", shell_complete=names_in_cluster)
@click.option("-n", "--namespace", help="Default: the context's namespace.", shell_complete=namespaces)
@output_option()
@cluster_options
@asynchronous
async def explain(
    target: tuple[str, ...], namespace: str | None, output: str, kubeconfig: Path | None, context: str | None
) -> None:
    """Why a pod or gang runs where it runs, or why it waits.

    Name a pod, a PodGroup, or any workload that made them, as kubectl takes it: by kind, plural or short name, with
    its group where that is needed.

    \b
    Examples:
      capstan explain trainer-0
      capstan explain job/train -n research -o yaml
      capstan explain rayjob train
      capstan explain pytorchjobs.kubeflow.org/bert
      capstan explain podgroup/pg-train-1234
    """
    if len(target) > 2:
        raise click.UsageError(f"one thing at a time: {' '.join(target)!r} is neither NAME nor KIND/NAME nor KIND NAME")
    kind, _, name = "/".join(target).rpartition("/")
    if not name:
        raise click.UsageError(f"{'/'.join(target)!r} names nothing; write KIND/NAME")
    async with connect(kubeconfig, context) as cluster:
        explained = await _explain(cluster.client, kind.lower(), name, namespace or cluster.namespace)
    if output != "table":
        machine(explained, output)
    else:
        show(*_lines(explained))


# -- finding what is meant ---------------------------------------------------------------------------------------------


async def _explain(client: kube.Client, kind: str, name: str, namespace: str) -> Explained:
    if kind in ("", *_PODS):
        try:
            return await _explain_pod(client, await client.get(resources.PODS, name, namespace))
        except kube.NotFound:
            if kind:
                raise _missing(f"pod {name!r}", namespace) from None
    groups = (await client.list(resources.POD_GROUPS, namespace)).items
    if kind in ("", *_GANGS, f"podgroups.{resources.POD_GROUPS.group}", f"podgroup.{resources.POD_GROUPS.group}"):
        group = next((group for group in groups if group.metadata.name == name), None)
        if group is not None:
            return await _explain_gang(client, group)
        if kind:
            raise _missing(f"PodGroup {name!r}", namespace)
    pods = (await client.list(resources.PODS, namespace)).items
    workload, made = await _made_by(client, kind, name, namespace, [*pods, *groups])
    return await _explain_workload(
        client,
        WorkloadExplanation(namespace, workload, [], []),
        [pod for pod in pods if pod.metadata.uid in made],
        [group for group in groups if group.metadata.uid in made],
        {group.metadata.name: group for group in groups},
    )


async def _made_by(
    client: kube.Client, kind: str, name: str, namespace: str, objects: list[Pod | PodGroup]
) -> tuple[str, set[str]]:
    """A workload as `kind/name`, and the UIDs of what it made among `objects`. Without a kind, or when the workload
    itself is gone, by what those say of their owners."""
    if kind:
        discovery = kube.Discovery(client)
        resource = await discovery.find(kind)
        try:
            workload = await client.get(resource, name, namespace if resource.namespaced else "")
        except kube.NotFound:
            kind = resource.kind.lower()
        else:
            return f"{resource.kind.lower()}/{name}", await kube.owned(
                client, discovery, workload["metadata"]["uid"], objects
            )
    owned = {
        obj.metadata.uid: owner.kind.lower()
        for obj in objects
        for owner in obj.metadata.owner_references
        if owner.name == name and kind in ("", owner.kind.lower())
    }
    if not owned:
        if kind:
            raise _missing(f"{kind} {name!r}", namespace)
        raise _missing(f"pod or PodGroup {name!r}", namespace, f"name a workload by its kind, as in deployment/{name}")
    return f"{next(iter(owned.values()))}/{name}", set(owned)


def _missing(what: str, namespace: str, hint: str = "-n names another namespace") -> click.ClickException:
    lists = f"`kubectl get pods,podgroups -n {namespace}` lists what there is"
    return click.ClickException(f"no {what} in namespace {namespace!r}; {lists}; {hint}")


# -- explaining it -----------------------------------------------------------------------------------------------------


async def _explain_pod(client: kube.Client, pod: Pod) -> PodExplanation:
    namespace, gang = pod.metadata.namespace, pod.metadata.annotations.get(POD_GROUP_ANNOTATION, "")
    claims = await _present(client, resources.RESOURCE_CLAIMS, _claims_of(pod), namespace)
    groups = await _present(client, resources.POD_GROUPS, [gang], namespace)
    return _pod(pod, next(iter(groups), None), {claim.metadata.name: claim for claim in claims})


async def _present(
    client: kube.Client, resource: resources.Resource[T], names: Iterable[str], namespace: str
) -> list[T]:
    found = await asyncio.gather(*(client.get(resource, n, namespace) for n in names if n), return_exceptions=True)
    for missing in found:
        if isinstance(missing, BaseException) and not isinstance(missing, kube.NotFound):
            raise missing
    return [obj for obj in found if not isinstance(obj, BaseException)]


async def _explain_gang(client: kube.Client, group: PodGroup) -> GangExplanation:
    namespace, name = group.metadata.namespace, group.metadata.name
    pods = (await client.list(resources.PODS, namespace)).items
    members = [pod for pod in pods if pod.metadata.annotations.get(POD_GROUP_ANNOTATION) == name]
    gang = _gang(group, members, await _claims(client, namespace))
    gang.usage = await _usage_of(client, group.spec.queue) if gang.reasons else {}
    return gang


async def _explain_workload(
    client: kube.Client,
    explained: WorkloadExplanation,
    pods: list[Pod],
    made: Iterable[PodGroup],
    groups: Mapping[str, PodGroup],
) -> WorkloadExplanation:
    claims = await _claims(client, explained.namespace)
    members: dict[str, list[Pod]] = {group.metadata.name: [] for group in made}
    for pod in pods:
        name = pod.metadata.annotations.get(POD_GROUP_ANNOTATION, "")
        if name in groups:
            members.setdefault(name, []).append(pod)
        else:
            explained.pods.append(_pod(pod, None, claims))
    explained.gangs += [_gang(groups[name], found, claims) for name, found in sorted(members.items())]
    for gang in explained.gangs:
        if gang.reasons:
            gang.usage = await _usage_of(client, gang.queue)
    return explained


def _gang(group: PodGroup, pods: list[Pod], claims: Mapping[str, ResourceClaim]) -> GangExplanation:
    owners = group.metadata.owner_references
    return GangExplanation(
        namespace=group.metadata.namespace,
        name=group.metadata.name,
        workload=f"{owners[0].kind.lower()}/{owners[0].name}" if owners else f"podgroup/{group.metadata.name}",
        queue=group.spec.queue,
        priority_class=group.spec.priority_class_name,
        min_member=group.spec.min_member,
        pods=dict(Counter(pod.status.phase for pod in pods)),
        reasons=_reasons(group),
        below_minimum_since=group.metadata.annotations.get(STALE_SINCE),
        members=[_pod(pod, group, claims) for pod in sorted(pods, key=lambda pod: pod.metadata.name)],
    )


def _reasons(group: PodGroup) -> list[UnschedulableExplanation]:
    return [
        reason
        for condition in group.status.scheduling_conditions
        if condition.status == "True"
        for reason in condition.reasons
        or [UnschedulableExplanation(reason=condition.reason, message=condition.message)]
    ]


def _pod(pod: Pod, group: PodGroup | None, claims: Mapping[str, ResourceClaim]) -> PodExplanation:
    scheduled = next((c for c in pod.status.conditions if c.type == "PodScheduled"), None)
    said: tuple[str, str] = (pod.status.reason, pod.status.message)
    if scheduled is not None and scheduled.status == "False":
        reasons = _reasons(group) if group is not None else []
        said = (reasons[0].reason, reasons[0].message) if reasons else (scheduled.reason, scheduled.message)
    return PodExplanation(
        namespace=pod.metadata.namespace,
        name=pod.metadata.name,
        phase=pod.status.phase,
        node=pod.spec.node_name,
        gang=pod.metadata.annotations.get(POD_GROUP_ANNOTATION, ""),
        reason=said[0],
        message=said[1],
        warnings=[c.message for c in pod.status.conditions if c.type == CLAIMED_BY_ONE and c.status == "False"],
        devices=[device for name in _claims_of(pod) if name in claims for device in _devices(claims[name])],
    )


def _claims_of(pod: Pod) -> list[str]:
    names = [claim.resource_claim_name for claim in pod.spec.resource_claims if claim.resource_claim_name]
    names += [made.resource_claim_name for made in pod.status.resource_claim_statuses if made.resource_claim_name]
    if pod.status.extended_resource_claim_status:
        names.append(pod.status.extended_resource_claim_status.resource_claim_name)
    return names


def _devices(claim: ResourceClaim) -> list[HeldDevice]:
    results = claim.status.allocation.devices.results if claim.status.allocation else []
    return [
        HeldDevice(
            claim.metadata.name,
            result.request,
            f"{result.pool}/{result.device}",
            {name: amount for name, amount in result.consumed_capacity.items() if quantity.parse(amount)},
        )
        for result in results
    ]


async def _claims(client: kube.Client, namespace: str) -> dict[str, ResourceClaim]:
    """By name; none in a cluster without them."""
    try:
        found = (await client.list(resources.RESOURCE_CLAIMS, namespace)).items
    except kube.NotFound:
        return {}
    return {claim.metadata.name: claim for claim in found}


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


# -- printing ----------------------------------------------------------------------------------------------------------


def _lines(explained: Explained) -> list[object]:
    match explained:
        case PodExplanation():
            return _pod_lines(explained)
        case GangExplanation():
            return _gang_lines(explained)
        case WorkloadExplanation(workload=workload, gangs=[gang], pods=[]):
            gang.workload = workload
            return _gang_lines(gang)
    return _workload_lines(explained)


def _pod_lines(pod: PodExplanation) -> list[object]:
    where = f" on node {pod.node}" if pod.node else ""
    lines: list[object] = [f"[bold]{pod.namespace}/{pod.name}[/] is {pod.phase}{where}"]
    if pod.gang:
        lines.append(hanging(f"gang: {pod.gang}"))
    if pod.reason or pod.message:
        lines.append(_because("waits" if pod.phase == "Pending" else "ended", pod.reason, pod.message))
    lines += [hanging(f"[yellow]{escape(text)}[/]") for text in pod.warnings]
    for device in pod.devices:
        share = ", ".join(f"{name} {amount}" for name, amount in device.consumed.items())
        lines.append(hanging(f"holds {device.device} (request {device.request}{'; ' + share if share else ''})"))
    return lines


def _gang_lines(gang: GangExplanation) -> list[object]:
    needs = f", needs {gang.min_member} together" if (gang.min_member or 0) > 1 else ""
    queue = f" in queue {gang.queue}" if gang.queue else ""
    head = f"[bold]{gang.workload}[/] in namespace {gang.namespace}{queue}{needs}: {_counted(gang.members)}"
    verdicts = [_because("waits", reason.reason, reason.message) for reason in gang.reasons]
    warnings = [hanging(f"[yellow]runs below its minimum since {gang.below_minimum_since}[/]")] * bool(
        gang.below_minimum_since
    )
    warnings += [
        hanging(f"[yellow]pod {member.name}: {escape(text)}[/]") for member in gang.members for text in member.warnings
    ]
    return [head, hanging(f"gang: {gang.name}"), *verdicts, *warnings, *_usage_lines([gang]), _members(gang.members)]


def _workload_lines(workload: WorkloadExplanation) -> list[object]:
    """Gangs that wait for the same are told once."""
    pods = [*workload.pods, *(member for gang in workload.gangs for member in gang.members)]
    gangs = f"{len(workload.gangs)} gangs, " if workload.gangs else ""
    head = f"[bold]{workload.workload}[/] in namespace {workload.namespace}: {gangs}{_counted(pods)}"
    waiting = Counter((r.reason, r.message) for gang in workload.gangs for r in gang.reasons)
    alone = Counter((pod.reason, pod.message) for pod in workload.pods if pod.message)
    verdicts = [_because(_plural(number, "gang"), *said) for said, number in waiting.most_common()]
    verdicts += [_because(_plural(number, "pod"), *said) for said, number in alone.most_common()]
    return [head, *verdicts, *_usage_lines(workload.gangs), *([_members(pods)] if pods else [])]


def _plural(number: int, what: str) -> str:
    return f"{number} {what} waits" if number == 1 else f"{number} {what}s wait"


def _because(verb: str, reason: str, message: str) -> object:
    return hanging(f"{verb}: [bold]{reason}[/]: {escape(message)}")


def _counted(pods: Iterable[PodExplanation]) -> str:
    return (
        ", ".join(f"{number} {phase}" for phase, number in sorted(Counter(p.phase for p in pods).items())) or "no pods"
    )


def _usage_lines(gangs: Iterable[GangExplanation]) -> list[object]:
    found = dict.fromkeys(sentence(q, entry) for gang in gangs for q, use in gang.usage.items() for entry in use)
    return [hanging(text) for text in found]


def _members(pods: Iterable[PodExplanation]) -> object:
    rows = [(p.name, p.phase, p.node or "–", ", ".join(d.device for d in p.devices) or "–") for p in pods]
    return table("", ("POD", "PHASE", "NODE", "DEVICES"), rows)
