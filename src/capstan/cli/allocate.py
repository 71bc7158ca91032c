"""`capstan allocate`: the allocator offline, on plain Kubernetes objects in files."""

from __future__ import annotations

from pathlib import Path

import click
import msgspec

from capstan import allocation
from capstan.api import quantity
from capstan.api.feature_gates import FeatureGates
from capstan.api.resource import AllocationResult
from capstan.cli.allocate_inputs import Group, Inputs, read
from capstan.cli.connection import output_option
from capstan.cli.feature_gates import feature_gates_option
from capstan.cli.output import machine, show, table


class Allocated(msgspec.Struct, rename="camel", omit_defaults=True):
    namespace: str
    name: str
    node: str
    allocation: AllocationResult
    node_resources: dict[str, str] = {}
    """What the devices take of their node's own CPU and memory for a pod with one container (KEP-5517)."""


class Refused(msgspec.Struct, rename="camel"):
    """`error`: something is wrong with an object, as opposed to too little being free."""

    group: str
    node: str
    reason: str
    message: str
    error: bool
    claim: str = ""
    request: str = ""


class Answer(msgspec.Struct, rename="camel"):
    outcome: str = "allocated"
    """allocated; refused: not here, or not now; error: an object must be corrected, or a pool completed, first."""
    allocations: list[Allocated] = []
    refusals: list[Refused] = []
    problems: list[allocation.Problem] = []
    """Pools that contradict themselves and were ignored."""
    explanation: list[str] = []


_HINTS = {
    "UnknownDeviceClass": "give the DeviceClass in either file",
    "BudgetExhausted": "neither found nor ruled out",
}
_EXIT = {"allocated": 0, "refused": 1, "error": 2}


_File = click.Path(exists=True, dir_okay=False, readable=True, path_type=Path, allow_dash=True)


@click.command()
@click.option(
    "--claims", type=_File, required=True, help="ResourceClaims to allocate, or pods with their claim templates."
)
@click.option(
    "--slices", type=_File, required=True, help="ResourceSlices, DeviceClasses, Nodes, and claims that hold devices."
)
@click.option(
    "--node", metavar="NAME", help="Allocate on this node. Default: of all, the first or the best for each pod."
)
@click.option(
    "--policy",
    type=click.Choice(["best-fit", "kubernetes"]),
    default="best-fit",
    show_default=True,
    help="kubernetes: the devices that kube-scheduler picks.",
)
@click.option("--explain", is_flag=True, help="Say for every device why it was taken.")
@feature_gates_option("Features of Kubernetes to switch on or off.")
@output_option()
def allocate(
    claims: Path,
    slices: Path,
    node: str | None,
    policy: allocation.Policy,
    explain: bool,
    gates: FeatureGates,
    output: str,
) -> None:
    """Allocate devices to claims offline, from Kubernetes objects in files.

    Claims of one pod are allocated together, claims without a pod all together. Both files are YAML or JSON, `-` is
    standard input, and one file may be both. A claim that has an allocation in its status keeps it, and holds the
    devices in it. Nodes that are not given have no labels.

    `-o json` has the answer as it goes into the status.allocation of each claim.

    Exits with 0 if everything was allocated, with 1 if something cannot be allocated on the node (or any node), and
    with 2 if a file or an object is in error: unreadable, an unknown class, a selector that fails, an incomplete pool.

    \b
    Examples:
      kubectl get nodes,resourceslices,deviceclasses,resourceclaims -A -o json > cluster.json
      capstan allocate --claims pod.yaml --slices cluster.json --explain
      capstan allocate --claims claim.yaml --slices cluster.json --node gpu-7 --policy kubernetes -o json
      kubectl get resourceslices,deviceclasses -o json | capstan allocate --claims claim.yaml --slices -
      capstan allocate --claims c.yaml --slices s.yaml --feature-gates DRASharedConsumableCapacity=true
    """
    inputs = read(claims, slices, allocation.Features.under(gates))
    answer = Answer(problems=inputs.inventory.problems())
    for group in inputs.groups:
        _allocate(inputs, group, _views(inputs, node), policy, answer)
    if not explain:
        answer.explanation = []
    if answer.refusals:
        answer.outcome = "error" if any(refusal.error for refusal in answer.refusals) else "refused"
    if output == "table":
        if node is not None and node not in inputs.nodes:
            click.echo(f"note: the files describe no node {node}; it has no labels and no devices of its own", err=True)
        elif not inputs.nodes:
            click.echo("note: the files describe no node; only devices for all nodes count. Give Nodes", err=True)
        _show(answer)
    else:
        machine(answer, output)
    if answer.refusals:
        raise SystemExit(_EXIT[answer.outcome])


def _views(inputs: Inputs, node: str | None) -> list[allocation.NodeView]:
    if node is not None:
        return [inputs.nodes.get(node) or allocation.NodeView(node)]
    return list(inputs.nodes.values()) or [allocation.NodeView("")]


def _allocate(
    inputs: Inputs,
    group: Group,
    nodes: list[allocation.NodeView],
    policy: allocation.Policy,
    answer: Answer,
) -> None:
    """Tries every node; the first one that satisfies the group wins, with best-fit the one of least cost."""
    best: tuple[int, allocation.NodeView, allocation.Allocation] | None = None
    refused: list[Refused] = []
    for node in nodes:
        found = allocation.allocate(inputs.inventory, group.claims, node, policy)
        if isinstance(found, allocation.Refusal):
            claim = "/".join(found.claim) if found.claim else ""
            refused.append(
                Refused(group.name, node.name, found.reason, found.message, found.is_error, claim, found.request)
            )
            continue
        cost = sum(choice.cost for choice in found.explanation)
        if best is None or cost < best[0]:
            best = (cost, node, found)
        if policy == "kubernetes":
            break
    if best is None:
        answer.refusals += refused
        return
    _, node, found = best
    for (namespace, name), result in found.results.items():
        inputs.inventory.assume((namespace, name), result)
        taken = allocation.node_resources(inputs.inventory, result)
        amounts = {resource: quantity.render(amount) for resource, amount in taken.items()}
        answer.allocations.append(Allocated(namespace, name, node.name, result, amounts))
    answer.explanation += [str(choice) for choice in found.explanation]


def _show(answer: Answer) -> None:
    rows = [
        (f"{held.namespace}/{held.name}", result.request, held.node, f"{result.driver}/{result.pool}/{result.device}")
        for held in answer.allocations
        for result in held.allocation.devices.results
    ]
    if not (answer.allocations or answer.refusals):
        click.echo("Nothing in the claims file asks for devices.", err=True)
    if rows:
        show(table("", ("CLAIM", "REQUEST", "NODE", "DEVICE"), rows))
    for line in answer.explanation:
        click.echo(line)
    for refusal in answer.refusals:
        hint = _HINTS.get(refusal.reason)
        click.echo(f"{refusal.group}: {refusal.reason}: {refusal.message}{f' ({hint})' if hint else ''}", err=True)
    for problem in answer.problems:
        click.echo(f"ignored the pool {problem.driver}/{problem.pool}: {problem.reason}", err=True)
