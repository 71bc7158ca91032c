"""`capstan snapshot`: what the scheduler decides from, kept in a file, looked at and decided again offline."""

from __future__ import annotations

import os
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click
import msgspec

from capstan import kube, scheduling
from capstan.allocation import Inventory
from capstan.api import clock, kai, manifests
from capstan.cli.connection import asynchronous, cluster_options, connect, output_option
from capstan.cli.output import escape, hanging, machine, show, table
from capstan.controllers.scheduler import OBSERVED
from capstan.scheduling.amounts import GPU
from capstan.scheduling.snapshot import LARGEST_FILE, capture, encode, policy_document, policy_from, restore
from capstan.simulate import Replay, read

PAGE = "/snapshot"


class QueueSummary(msgspec.Struct, rename="camel"):
    name: str
    allocated: dict[str, str]
    requested: dict[str, str]
    waiting: int
    error: str


class Summary(msgspec.Struct, rename="camel"):
    taken: str
    policy: dict[str, Any]
    """What differs from the defaults."""
    objects: dict[str, int]
    pods: dict[str, int]
    """By status."""
    gpus: int
    in_flight: dict[str, int]
    queues: list[QueueSummary]


class Decided(msgspec.Struct, rename="camel"):
    """One cycle; `explanation` is that of the gang asked for."""

    cycle: int
    time: str
    binds: list[scheduling.Bind]
    evictions: list[scheduling.Eviction]
    promises: list[scheduling.Promise]
    verdicts: list[scheduling.Verdict]
    explanation: scheduling.Explanation | None = None


@click.group(invoke_without_command=True)
@click.option(
    "-o",
    "--output",
    "target",
    type=click.Path(dir_okay=False, writable=True, path_type=Path),
    help="The file to write, e.g. cluster.snapshot; only you can read it.",
)
@click.option("--shard", help="The SchedulingShard whose scheduler is asked; default: the one without a node pool.")
@cluster_options
@click.pass_context
def snapshot(
    ctx: click.Context, target: Path | None, shard: str | None, kubeconfig: Path | None, context: str | None
) -> None:
    """Keep what the scheduler sees in a file, and decide it again offline.

    A snapshot is gzip-compressed JSON: the objects that scheduling reads, its policy, past usage and decisions in
    flight at one moment. Of pods it holds no environment, command, arguments or image, and nothing of Secrets.

    \b
    Examples:
      capstan snapshot -o cluster.snapshot
      capstan snapshot show cluster.snapshot
      capstan snapshot replay cluster.snapshot --explain research/train
    """
    if ctx.invoked_subcommand is not None:
        if target is not None:
            raise click.UsageError("-o writes a new snapshot; leave it out before a subcommand", ctx)
        return
    if target is None:
        raise click.UsageError("say where to write it, with -o FILE", ctx)
    _take(target, f"/shards/{shard}{PAGE}" if shard else PAGE, kubeconfig, context)


@asynchronous
async def _take(target: Path, page: str, kubeconfig: Path | None, context: str | None) -> None:
    async with connect(kubeconfig, context) as cluster:
        answer = await cluster.client.transport.request("GET", page)
        if answer.status == 200:
            data = answer.body
        elif answer.status == 404:
            click.echo(
                f"{cluster.server} does not serve {page}: reading the objects themselves, without the scheduler's "
                "policy, usage and decisions in flight",
                err=True,
            )
            data = await _collect(cluster.client)
        else:
            raise kube.from_response(answer.status, answer.body)
    _write(target, data)
    click.echo(f"wrote {target} ({_size(len(data))})")


async def _collect(client: kube.Client) -> bytes:
    """A snapshot made of lists, one after another; kinds that the cluster does not know are left out."""
    objects: list[Any] = []
    for resource in OBSERVED:
        try:
            objects += (await client.list(resource)).items
        except kube.NotFound:
            click.echo(f"the cluster has no {resource.group_resource}", err=True)
    world = scheduling.World(Inventory())
    return encode(capture(world, time.time(), objects).snapshot())


def _size(size: int) -> str:
    """Bytes for people: `912 B`, `38 kB`, `4.1 MB`."""
    if size < 1000:
        return f"{size} B"
    return f"{size / 1e3:.0f} kB" if size < 1e6 else f"{size / 1e6:.1f} MB"


def _write(target: Path, data: bytes) -> None:
    """Whole or not at all."""
    part = target.with_name(f".{target.name}.part")
    try:
        with open(os.open(part, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "wb") as file:
            file.write(data)
        part.replace(target)
    except OSError as error:
        part.unlink(missing_ok=True)
        raise click.ClickException(f"{target} cannot be written: {error}") from error


_FILE = click.Path(exists=True, dir_okay=False, readable=True, path_type=Path)
_now_option: Callable[[Any], Any] = click.option(
    "--now", "moment", metavar="TIME", help="RFC 3339; the time to decide at. Default: when the snapshot was taken."
)


@snapshot.command("show")
@click.argument("file", type=_FILE)
@_now_option
@output_option()
def show_(file: Path, moment: str | None, output: str) -> None:
    """What is in a snapshot FILE, ours or KAI Scheduler's (a zip file).

    \b
    Examples:
      capstan snapshot show cluster.snapshot
      capstan snapshot show kai-snapshot.zip -o yaml
    """
    summary = _summary(_load(file, moment))
    if output != "table":
        machine(summary, output)
        return
    lines = [f"taken [bold]{summary.taken}[/], {summary.gpus} GPUs"]
    lines.append(", ".join(f"{count} {kind}" for kind, count in summary.objects.items() if count) or "no objects")
    if summary.pods:
        lines.append("pods: " + ", ".join(f"{count} {status}" for status, count in sorted(summary.pods.items())))
    for name, value in summary.policy.items():
        lines.append(f"policy {name}: {escape(str(value))}")
    rows = [
        (q.name, q.allocated["nvidia.com/gpu"], q.requested["nvidia.com/gpu"], q.waiting, q.error or "–")
        for q in summary.queues
    ]
    show(*lines, table("", ("QUEUE", "GPUS ALLOCATED", "REQUESTED", "GANGS WAITING", "ERROR"), rows))


@snapshot.command()
@click.argument("file", type=_FILE)
@click.option(
    "--cycles",
    type=click.IntRange(1, 10_000),
    default=1,
    show_default=True,
    help="How many to decide; between them what was decided is carried out. Ends when there is nothing left to do.",
)
@click.option(
    "--policy",
    "policy_file",
    type=_FILE,
    help="Another policy: a SchedulingShard of KAI, or fields of a policy as `show -o yaml` prints them.",
)
@click.option("--explain", "gang", metavar="[NAMESPACE/]GANG", help="Say all that is known about a gang, or a pod's.")
@_now_option
@output_option()
def replay(
    file: Path, cycles: int, policy_file: Path | None, gang: str | None, moment: str | None, output: str
) -> None:
    """Decide again from a snapshot FILE, ours or KAI Scheduler's (a zip file). Nothing is written to any cluster.

    \b
    Examples:
      capstan snapshot replay cluster.snapshot
      capstan snapshot replay cluster.snapshot --cycles 20 --policy spread.yaml
      capstan snapshot replay kai-snapshot.zip --explain research/train -o yaml
    """
    taken = _load(file, moment)
    try:
        player = Replay(taken, _policy(policy_file, taken) if policy_file is not None else None)
        decided = _play(player, cycles, gang)
    except (scheduling.InvalidSnapshot, scheduling.UnknownAction) as wrong:
        raise click.ClickException(f"{policy_file or file}: {wrong}") from wrong
    if gang is not None and decided[-1].explanation is None:
        raise click.ClickException(f"the snapshot has no gang or pod {gang!r}; write NAMESPACE/NAME")
    if output != "table":
        machine(decided, output)
        return
    for each in decided:
        show(*_lines(each))


def _play(player: Replay, cycles: int, gang: str | None) -> list[Decided]:
    decided = []
    for number in range(1, cycles + 1):
        at = clock.render(player.now)
        plan = player.step()
        told = _explain(player.world, gang, plan) if gang is not None else None
        decided.append(Decided(number, at, plan.binds, plan.evictions, plan.promises, plan.verdicts, told))
        if not (plan.binds or plan.evictions or plan.promises):
            break
        player.settle(plan)
    return decided


def _explain(world: scheduling.World, gang: str, plan: scheduling.Plan) -> scheduling.Explanation | None:
    namespace, _, name = gang.rpartition("/")
    spaces = [namespace] if namespace else sorted({key[0] for key in world.gangs})
    found = (scheduling.explain(world, space, name, tuple(plan.verdicts)) for space in spaces)
    return next((each for each in found if each is not None), None)


def _load(file: Path, moment: str | None) -> scheduling.Snapshot:
    try:
        now = clock.parse(moment) if moment else None
    except ValueError as error:
        raise click.BadParameter(
            f"{moment!r} is no RFC 3339 time, e.g. 2026-05-01T12:00:00Z", param_hint="--now"
        ) from error
    if file.stat().st_size > LARGEST_FILE:
        raise click.ClickException(f"{file}: larger than {LARGEST_FILE >> 20} MiB; no snapshot is")
    try:
        return read(file.read_bytes(), now)
    except scheduling.InvalidSnapshot as wrong:
        raise click.ClickException(f"{file}: {wrong}") from wrong


def _policy(file: Path, taken: scheduling.Snapshot) -> scheduling.Policy:
    """The policy of a file, on top of the snapshot's own."""
    try:
        documents = manifests.load_all(file.read_text("utf-8"), str(file))
    except (manifests.InvalidManifest, UnicodeDecodeError) as wrong:
        raise click.ClickException(str(wrong)) from wrong
    if len(documents) != 1 or not isinstance(documents[0], dict):
        raise click.ClickException(f"{file}: expected one document with the fields of a policy or a SchedulingShard")
    document = documents[0]
    if document.get("kind") != "SchedulingShard":
        return policy_from(taken.policy | document.get("policy", document))
    try:
        shard = msgspec.convert(document, kai.SchedulingShard)
    except msgspec.ValidationError as wrong:
        raise click.ClickException(f"{file}: {wrong}") from wrong
    settings = scheduling.shard_settings(shard, scheduling.installation(None), policy_from(taken.policy))
    for problem in settings.problems:
        click.echo(f"{file}: {problem.field}: {problem.message}", err=True)
    return settings.policy


def _summary(taken: scheduling.Snapshot) -> Summary:
    world = restore(taken)
    world.refresh(taken.now)
    usual = policy_document(scheduling.Policy())
    counts = {kind: len(getattr(taken.objects, kind)) for kind in taken.objects.__struct_fields__}
    return Summary(
        taken=taken.taken,
        policy={name: value for name, value in policy_document(world.policy).items() if value != usual[name]},
        objects={kind.replace("_", " "): count for kind, count in counts.items()},
        pods=dict(Counter(task.status.name.capitalize() for task in world.tasks.values())),
        gpus=world.total[2] // GPU,
        in_flight={"binds": len(world.binds), "evictions": len(world.evictions)},
        queues=[
            QueueSummary(name, status.allocated, status.requested, len(world.queues[name].pending), status.error)
            for name, status in world.queue_status().items()
        ],
    )


def _lines(decided: Decided) -> list[object]:
    lines: list[object] = [f"[bold]cycle {decided.cycle}[/] at {decided.time}"]
    rows = [("bind", f"{b.namespace}/{b.pod}", b.node, "") for b in decided.binds]
    rows += [
        ("evict", f"{e.namespace}/{e.pod}", e.node, f"{e.action} for {e.for_group}: {e.reason}")
        for e in decided.evictions
    ]
    rows += [("promise", f"{p.namespace}/{p.pod}", p.node, "once its node is free") for p in decided.promises]
    rows += [
        ("wait", f"{v.namespace}/{v.group or ', '.join(v.pods)}", "–", f"{v.reason}: {v.message}")
        for v in decided.verdicts
    ]
    lines.append(table("", ("DECISION", "OF", "NODE", "WHY"), rows) if rows else hanging("nothing to decide"))
    if decided.explanation is not None:
        lines += _told(decided.explanation)
    return lines


def _told(told: scheduling.Explanation) -> list[object]:
    name = told.group or ", ".join(pod for pod, _, _ in told.pods)
    path = " > ".join(told.queue_path) or told.queue or "no queue"
    kind = "preemptible" if told.preemptible else "not preemptible"
    lines: list[object] = [f"[bold]{told.namespace}/{escape(name)}[/] in {path}, priority {told.priority}, {kind}"]
    if told.verdict is not None:
        lines.append(hanging(f"waits: [bold]{told.verdict.reason}[/]: {escape(told.verdict.message)}"))
    groups = [
        (g.path or "all", g.minimum, g.running, g.waiting, g.gated, "yes" if g.satisfied else "no") for g in told.groups
    ]
    lines.append(table("", ("GROUP", "NEEDS", "RUNNING", "WAITING", "GATED", "SATISFIED"), groups))
    lines.append(table("", ("POD", "STATUS", "NODE"), [(p, s, n or "–") for p, s, n in told.pods]))
    if told.nodes:
        lines.append(table("", ("NODE", "WHY NOT THE NEXT POD"), sorted(told.nodes.items())))
    return lines
