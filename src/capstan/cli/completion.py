"""`capstan completion`: what makes a shell complete commands, options, and names in the cluster."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterable
from typing import TYPE_CHECKING

import click
from click.shell_completion import get_completion_class

if TYPE_CHECKING:
    from capstan.cli.connection import Cluster

_PATIENCE = 2.0
"""Seconds after which a shell gets no names rather than late ones."""


@click.command()
@click.argument("shell", type=click.Choice(["bash", "zsh", "fish"]))
@click.pass_context
def completion(ctx: click.Context, shell: str) -> None:
    """Print the completion script of a SHELL.

    \b
    Examples:
      source <(capstan completion bash)
      capstan completion zsh > ~/.zfunc/_capstan
      capstan completion fish > ~/.config/fish/completions/capstan.fish
    """
    implementation = get_completion_class(shell)
    assert implementation is not None, "click knows the three shells"
    click.echo(implementation(ctx.find_root().command, {}, "capstan", "_CAPSTAN_COMPLETE").source())


def names_in_cluster(ctx: click.Context, param: click.Parameter, incomplete: str) -> list[str]:
    """Pods and the workloads of gangs; after `KIND/` (or `KIND `) the objects of that kind."""
    from capstan import kube
    from capstan.api import resources

    before = ctx.params.get(str(param.name)) or ()
    kind, slash, _ = "/".join([*before, incomplete]).rpartition("/")

    async def read(cluster: Cluster) -> Iterable[str]:
        namespace = ctx.params.get("namespace") or cluster.namespace
        if slash:
            resource = await kube.Discovery(cluster.client).find(kind)
            found = (await cluster.client.list(resource, namespace)).items
            return [("" if before else f"{kind}/") + obj["metadata"]["name"] for obj in found]
        pods = (await cluster.client.list(resources.PODS, namespace)).items
        groups = (await cluster.client.list(resources.POD_GROUPS, namespace)).items
        owners = [owner for group in groups for owner in group.metadata.owner_references if owner.kind != "Pod"]
        return [*(f"{o.kind.lower()}/{o.name}" for o in owners), *(pod.metadata.name for pod in pods)]

    return _from_cluster(ctx, incomplete, read)


def namespaces(ctx: click.Context, param: click.Parameter, incomplete: str) -> list[str]:
    from capstan.api import resources

    async def read(cluster: Cluster) -> Iterable[str]:
        return [obj.metadata.name for obj in (await cluster.client.list(resources.NAMESPACES)).items]

    return _from_cluster(ctx, incomplete, read)


def _from_cluster(
    ctx: click.Context, incomplete: str, read: Callable[[Cluster], Awaitable[Iterable[str]]]
) -> list[str]:
    """What begins with `incomplete`; a shell that completes is told nothing of a cluster that does not answer."""
    from capstan import kube
    from capstan.cli.connection import connect

    async def ask() -> Iterable[str]:
        async with connect(ctx.params.get("kubeconfig"), ctx.params.get("context")) as cluster:
            return await read(cluster)

    try:
        found = asyncio.run(asyncio.wait_for(ask(), _PATIENCE))
    except (kube.ApiError, kube.ConfigError, kube.UnknownResource, TimeoutError):
        return []
    return sorted({name for name in found if name.startswith(incomplete)})
