"""`capstan blueprint`: from files that people review to clusters that stay as they say."""

from __future__ import annotations

import asyncio
import functools
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, ParamSpec, TypeVar

import click
import msgspec

from capstan import blueprints, fields, kube
from capstan.api import manifests, resources
from capstan.api.platform import Cluster, Drift
from capstan.cli import blueprint_inputs as inputs
from capstan.cli.connection import asynchronous, cluster_options, connect, output_option
from capstan.cli.output import machine, show, table

P = ParamSpec("P")
R = TypeVar("R")

DIFFERENT = 2
"""Exit code of `plan` and `drift` with --exit-code when something differs; 1 is always an error."""
DEFAULT_CLUSTER = "local"

_paths = click.argument("paths", nargs=-1, required=True, type=click.Path(exists=True, path_type=Path))
_blueprint = click.option("--blueprint", help="Which blueprint of the files; default: the only one with a version.")
_cluster = click.option("--cluster", default=DEFAULT_CLUSTER, show_default=True, help="The name of the Cluster object.")
_exit_code = click.option("--exit-code", is_flag=True, help=f"Exit with {DIFFERENT} if anything differs.")


def _fact_options(command: Callable[P, R]) -> Callable[P, R]:
    command = click.option("--fact", "pairs", multiple=True, metavar="NAME=VALUE", help="One fact, e.g. gpu.mig=true.")(
        command
    )
    return click.option(
        "--facts", "facts_file", type=click.Path(exists=True, dir_okay=False, path_type=Path), help="Facts as YAML."
    )(command)


def _readable_problems(command: Callable[P, R]) -> Callable[P, R]:
    """What is wrong with a blueprint goes to standard error, one line each, and ends with exit code 1."""

    @functools.wraps(command)
    def run(*args: P.args, **kwargs: P.kwargs) -> R:
        try:
            return command(*args, **kwargs)
        except blueprints.BlueprintError as error:
            for problem in error.problems:
                click.echo(f"error: {problem}", err=True)
            raise click.exceptions.Exit(1) from error
        except blueprints.NothingLeft as error:
            raise click.ClickException(f"{error}; {error.hint}") from error

    return run


@click.group(epilog="Layers, lowest precedence first: " + " < ".join(blueprints.PRECEDENCE))
def blueprint() -> None:
    """Specify whole clusters in files, apply them, and see what drifts.

    \b
    Examples:
      capstan blueprint lint examples/blueprints/gpu-platform
      capstan blueprint render examples/blueprints/gpu-platform --fact gpu.mig=true --fact gpu.count=8
      capstan blueprint plan examples/blueprints/gpu-platform
      capstan blueprint apply examples/blueprints/gpu-platform
      capstan blueprint explain local queues values.queues.research.gpu.quota
    """


@blueprint.command()
@_paths
@output_option()
@_readable_problems
def lint(paths: tuple[Path, ...], output: str) -> None:
    """Check blueprints without a cluster. All problems at once, in every variant and override.

    Exit code 0: nothing is wrong; 1: problems were found.

    \b
    Example:
      capstan blueprint lint platform-base.yaml gpu-platform.yaml -o json
    """
    files = inputs.read(paths)
    problems = blueprints.lint(files.library, files.overrides())
    if output != "table":
        machine(problems, output)
    else:
        for problem in problems:
            click.echo(f"error: {problem}", err=True)
        if not problems:
            click.echo(f"{len(files.library.names)} blueprints, no problems")
    if problems:
        raise click.exceptions.Exit(1)


@blueprint.command()
@_paths
@_blueprint
@_fact_options
@click.option("--for", "cluster", help="Also use the labels and override of this Cluster document of the files.")
@click.option("-o", "--output", type=click.Choice(["yaml", "json"]), default="yaml", show_default=True)
@_readable_problems
def render(
    paths: tuple[Path, ...],
    blueprint: str | None,
    facts_file: Path | None,
    pairs: tuple[str, ...],
    cluster: str | None,
    output: str,
) -> None:
    """Print the manifests that a cluster with given facts would get.

    \b
    Examples:
      capstan blueprint render gpu-platform/ --fact gpu.mig=true --fact gpu.count=16 | kubectl diff -f -
      capstan blueprint render gpu-platform/ --for edge --facts facts.yaml -o json
    """
    files = inputs.read(paths)
    facts = inputs.parse_facts(facts_file, pairs)
    override = None
    if cluster is not None:
        if cluster not in files.clusters:
            raise click.UsageError(f"the files define no Cluster {cluster!r}; they define: {', '.join(files.clusters)}")
        file, document = files.clusters[cluster]
        spec = document.get("spec") or {}
        facts = {"labels": spec.get("labels") or {}, **facts}
        override = blueprints.Override(cluster, spec.get("override") or {}, file)
    compiled = blueprints.compile(files.library.layers(files.chosen(blueprint)), facts, override)
    rendered = [item.manifest for item in compiled.items]
    if output == "json":
        machine({"variant": compiled.variant, "digest": compiled.digest, "manifests": rendered}, output)
    else:
        variant = f", variant {compiled.variant}" if compiled.variant else ""
        click.echo(f"# {compiled.blueprint} {compiled.version or 'draft'}{variant}, {compiled.digest}")
        click.echo("---\n".join(manifests.dump(manifest) for manifest in rendered), nl=False)


@blueprint.command()
@_paths
@_blueprint
@_cluster
@_fact_options
@_exit_code
@output_option()
@cluster_options
@_readable_problems
@asynchronous
async def plan(
    paths: tuple[Path, ...],
    blueprint: str | None,
    cluster: str,
    facts_file: Path | None,
    pairs: tuple[str, ...],
    exit_code: bool,
    output: str,
    kubeconfig: Path | None,
    context: str | None,
) -> None:
    """Show field by field what applying the files would change.

    Changes nothing.

    Facts and override come from the Cluster object; --fact and --facts replace single facts.

    \b
    Example:
      capstan blueprint plan gpu-platform/ --exit-code || echo "not applied yet"
    """
    files = inputs.read(paths)
    async with connect(kubeconfig, context) as connected:
        client = connected.client
        known = await inputs.cluster_or_none(client, cluster)
        document = files.clusters.get(cluster, ("", {}))[1].get("spec")
        facts = (known.status.facts if known is not None else {}) or await _observed(client)
        facts = {**facts, **inputs.parse_facts(facts_file, pairs)}
        body = (document or {}).get("override") if document else known.spec.override if known is not None else None
        override = blueprints.Override(cluster, body or {}, files.clusters.get(cluster, ("", {}))[0])
        compiled = blueprints.compile(files.library.layers(files.chosen(blueprint)), facts, override)
        stamp = blueprints.cluster_set(cluster)
        desired = [
            msgspec.structs.replace(item, manifest=blueprints.stamped(item.manifest, stamp)) for item in compiled.items
        ]
        live, members = await inputs.live_state(client, cluster, desired)
    result = blueprints.plan(desired, live, members)
    if output != "table":
        machine(_plain_plan(compiled, result), output)
    else:
        _print_plan(compiled, result)
    if exit_code and not result.is_empty:
        raise click.exceptions.Exit(DIFFERENT)


@blueprint.command()
@_paths
@_blueprint
@cluster_options
@_readable_problems
@asynchronous
async def publish(paths: tuple[Path, ...], blueprint: str | None, kubeconfig: Path | None, context: str | None) -> None:
    """Freeze a blueprint, with all it extends, as a BlueprintVersion.

    Publishing the same content again does nothing; other content under the same version is refused.

    \b
    Example:
      capstan blueprint publish examples/blueprints/gpu-platform
    """
    files = inputs.read(paths)
    frozen = _frozen(files, blueprint)
    async with connect(kubeconfig, context) as connected:
        click.echo(await _publish(connected.client, frozen))


@blueprint.command()
@_paths
@_blueprint
@_cluster
@click.option("--mode", type=click.Choice(["enforce", "warn"]), help="Repair drift, or only report it.")
@click.option("--wait/--no-wait", default=True, help="Wait until the agent reports that everything is ready.")
@click.option("--timeout", type=float, default=60.0, show_default=True, help="Seconds to wait.")
@cluster_options
@_readable_problems
@asynchronous
async def apply(
    paths: tuple[Path, ...],
    blueprint: str | None,
    cluster: str,
    mode: str | None,
    wait: bool,
    timeout: float,
    kubeconfig: Path | None,
    context: str | None,
) -> None:
    """Publish a blueprint and point a cluster at it. The agent in the cluster does the rest.

    A Cluster document of that name in the files gives labels, mode and override.

    \b
    Examples:
      capstan blueprint apply examples/blueprints/gpu-platform
      capstan blueprint apply gpu-platform/ --cluster edge --mode warn --no-wait
    """
    files = inputs.read(paths)
    frozen = _frozen(files, blueprint)
    reference = {"name": frozen["spec"]["blueprint"], "version": frozen["spec"]["version"]}
    spec: dict[str, Any] = dict((files.clusters.get(cluster, ("", {}))[1]).get("spec") or {})
    spec["blueprint"] = reference
    if mode is not None:
        spec["mode"] = mode
    async with connect(kubeconfig, context) as connected:
        client = connected.client
        click.echo(await _publish(client, frozen))
        written = await client.apply(resources.CLUSTERS, {"metadata": {"name": cluster}, "spec": spec}, force=True)
        click.echo(f"cluster {cluster} uses {reference['name']} {reference['version']}")
        if wait:
            found = await _settled(client, cluster, reference, written["metadata"]["generation"], timeout)
            variant = f", variant {found.status.variant}" if found.status.variant else ""
            click.echo(f"ready: {found.status.objects} objects{variant}, {found.status.digest}")


@blueprint.command()
@click.argument("cluster", required=False)
@output_option()
@cluster_options
@asynchronous
async def status(cluster: str | None, output: str, kubeconfig: Path | None, context: str | None) -> None:
    """Which blueprint each cluster runs, and whether all is well.

    \b
    Examples:
      capstan blueprint status
      capstan blueprint status local -o yaml
    """
    async with connect(kubeconfig, context) as connected:
        if cluster is None:
            found = (await connected.client.list(resources.CLUSTERS)).items
        else:
            found = [await connected.client.get(resources.CLUSTERS, cluster)]
    if output != "table":
        machine(found if cluster is None else found[0], output)
        return
    columns = ("CLUSTER", "BLUEPRINT", "VERSION", "VARIANT", "OBJECTS", "READY", "DRIFTED")
    show(table("", columns, (_status_row(each) for each in found)))
    for each in found if cluster is not None else ():
        rows = [(a.name, a.phase, f"{a.ready}/{a.objects}", a.message) for a in each.status.addons]
        show(table("\nAdd-ons", ("NAME", "PHASE", "READY", "MESSAGE"), rows))
        states = [(c.type, c.status, c.reason, c.message) for c in each.status.conditions]
        show(table("\nConditions", ("TYPE", "STATUS", "REASON", "MESSAGE"), states))


@blueprint.command()
@click.argument("cluster", default=DEFAULT_CLUSTER)
@_exit_code
@output_option()
@cluster_options
@asynchronous
async def drift(cluster: str, exit_code: bool, output: str, kubeconfig: Path | None, context: str | None) -> None:
    """What was changed by hand: which field, by whom, when repaired.

    \b
    Examples:
      capstan blueprint drift
      capstan blueprint drift edge --exit-code
    """
    async with connect(kubeconfig, context) as connected:
        found = (await connected.client.get(resources.CLUSTERS, cluster)).status.drift
    if output != "table":
        machine(found, output)
    elif not found:
        click.echo(f"cluster {cluster} is as its blueprint says")
    else:
        for each in found:
            click.echo(_drift_line(each))
    if exit_code and any(not each.repaired for each in found):
        raise click.exceptions.Exit(DIFFERENT)


@blueprint.command()
@click.argument("cluster")
@click.argument("addon")
@click.argument("path", default="")
@output_option()
@cluster_options
@_readable_problems
@asynchronous
async def explain(
    cluster: str, addon: str, path: str, output: str, kubeconfig: Path | None, context: str | None
) -> None:
    """Why an add-on has a value: who set it, and which layer won.

    PATH is inside of the add-on, e.g. values.queues.research.gpu.quota; ADDON `values` means the blueprint's own
    values.

    \b
    Examples:
      capstan blueprint explain local queues values.queues.research.gpu.quota
      capstan blueprint explain local values quota.research
    """
    full = f"values.{path}" if addon == "values" else f"addons[{addon}].{path}"
    parsed = blueprints.parse_path(full.rstrip("."))
    if parsed is None:
        raise click.UsageError(f"{path!r} is not a path; write for example values.queues.research.gpu.quota")
    async with connect(kubeconfig, context) as connected:
        known = await connected.client.get(resources.CLUSTERS, cluster)
        compiled = await inputs.compile_for(connected.client, known)
    settings = blueprints.explain(compiled.resolved, parsed)
    if not settings:
        raise click.ClickException(f"no layer of {compiled.blueprint} {compiled.version} sets {full}")
    if output != "table":
        machine(settings, output)
        return
    click.echo(f"precedence: {' < '.join(blueprints.PRECEDENCE)}")
    place = ""
    for setting in settings:
        if setting.path != place:
            place = setting.path
            click.echo(place)
        click.echo(f"  {setting.layer}: {_text(setting.value)}{'  <- effective' if setting.effective else ''}")


def _frozen(files: inputs.Files, name: str | None) -> dict[str, Any]:
    problems = blueprints.lint(files.library, files.overrides())
    if problems:
        raise blueprints.BlueprintError(problems)
    return blueprints.published(files.library, files.chosen(name))


async def _publish(client: kube.Client, frozen: dict[str, Any]) -> str:
    name, digest = frozen["metadata"]["name"], frozen["spec"]["digest"]
    try:
        await client.create(resources.BLUEPRINT_VERSIONS, frozen)
    except kube.AlreadyExists:
        existing = await client.get(resources.BLUEPRINT_VERSIONS, name)
        if existing.spec.digest != digest:
            raise click.ClickException(
                f"{name} is published with {existing.spec.digest} and immutable; raise spec.version of the blueprint"
            ) from None
        return f"{name} is published already, {digest}"
    return f"{name} published, {digest}"


async def _observed(client: kube.Client) -> dict[str, Any]:
    """Facts of a cluster that no agent has reported yet."""
    answer = await client.request("GET", "/version")
    version = msgspec.json.decode(answer.body)["gitVersion"]
    slices = (await client.list(blueprints.SLICES)).items
    runtimes = (await client.list(resources.RUNTIME_CLASSES)).items
    return blueprints.observe(version, map(blueprints.devices, slices), runtimes)


async def _settled(
    client: kube.Client, name: str, reference: dict[str, str], generation: int, timeout: float
) -> Cluster:
    """The cluster once its agent reports it ready. Raises ClickException with what is missing after the timeout."""
    deadline = time.monotonic() + timeout
    while True:
        cluster = await client.get(resources.CLUSTERS, name)
        reported = cluster.status
        ready = next((each for each in reported.conditions if each.type == "Ready"), None)
        current = (
            reported.observed_generation >= generation
            and reported.blueprint == reference["name"]
            and reported.version == reference["version"]
        )
        if current and ready is not None and ready.status == "True":
            return cluster
        if time.monotonic() > deadline:
            seen = f"{ready.reason}: {ready.message}" if ready is not None else "no agent has reported on it"
            raise click.ClickException(f"cluster {name} is not ready after {timeout:g} s: {seen}")
        await asyncio.sleep(0.1)


def _status_row(cluster: Cluster) -> tuple[object, ...]:
    reported = cluster.status
    states = {condition.type: condition.status for condition in reported.conditions}
    return (
        cluster.metadata.name,
        reported.blueprint,
        reported.version,
        reported.variant or "-",
        reported.objects,
        states.get("Ready", "Unknown"),
        states.get("Drifted", "Unknown"),
    )


def _plain_plan(compiled: blueprints.Compiled, plan: blueprints.Plan) -> dict[str, Any]:
    return {
        "blueprint": compiled.blueprint,
        "version": compiled.version,
        "variant": compiled.variant,
        "digest": compiled.digest,
        "changes": [
            {
                "action": change.action,
                "addon": change.addon,
                "object": change.identity,
                "fields": [
                    {
                        "path": fields.readable(each.path),
                        "live": None if each.old is fields.ABSENT else each.old,
                        "desired": None if each.new is fields.ABSENT else each.new,
                        "change": each.change,
                    }
                    for each in change.fields
                ],
            }
            for change in plan.changes
        ],
    }


def _print_plan(compiled: blueprints.Compiled, plan: blueprints.Plan) -> None:
    signs = {"create": "+", "update": "~", "prune": "-", "protected": "!"}
    variant = f", variant {compiled.variant}" if compiled.variant else ""
    click.echo(f"{compiled.blueprint} {compiled.version or 'draft'}{variant}")
    for change in plan.changes:
        if change.action != "unchanged":
            click.echo(f"{signs[change.action]} {change.identity}  ({change.addon}: {change.action})")
            for each in change.fields:
                click.echo(f"    {each}")
    counts = (f"{plan.count(action)} to {action}" for action in ("create", "update", "prune"))
    click.echo(f"{', '.join(counts)}, {plan.count('unchanged')} unchanged, {plan.count('protected')} protected")


def _drift_line(entry: Drift) -> str:
    state = f"repaired {entry.repaired}" if entry.repaired else "LASTS"
    since = f"first seen {entry.first_seen}, {state}"
    by = f" by {entry.manager}" if entry.manager else ""
    match entry.kind:
        case "deleted":
            what = f"deleted{by}"
        case "removed":
            what = f"{entry.path}: removed{by}, expected {_text(entry.expected)}"
        case "taken":
            what = f"{entry.path}: right value, but owned{by or ' by nobody'}"
        case _:
            what = f"{entry.path}: {_text(entry.found)}{by}, expected {_text(entry.expected)}"
    return f"{entry.object} {what} ({since})"


def _text(value: Any) -> str:
    return value if isinstance(value, str) else msgspec.json.encode(value).decode()
