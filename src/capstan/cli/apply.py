"""`capstan apply`: manifests to the cluster by server-side apply, each object's outcome on a line."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import click

from capstan import kube
from capstan.api import manifests
from capstan.cli.connection import asynchronous, cluster_options, connect


@click.command()
@click.option("-f", "--filename", "sources", multiple=True, required=True, metavar="FILE|DIR|-", help="What to apply.")
@click.option("-n", "--namespace", help="For objects that name none.")
@click.option("--dry-run", is_flag=True, help="Ask the server what would happen; change nothing.")
@click.option("--force-conflicts", is_flag=True, help="Take over fields that other managers own.")
@cluster_options
@asynchronous
async def apply(
    sources: tuple[str, ...],
    namespace: str | None,
    dry_run: bool,
    force_conflicts: bool,
    kubeconfig: Path | None,
    context: str | None,
) -> None:
    """Apply manifests with server-side apply. Nothing is sent unless every file can be read.

    \b
    Examples:
      capstan apply -f queues.yaml
      capstan apply -f examples/workloads --dry-run
      kubectl create job x --image=ubuntu --dry-run=client -o yaml | capstan apply -f -
    """
    objects = [manifest for source in sources for manifest in _read(source)]
    failed = 0
    async with connect(kubeconfig, context) as cluster:
        discovery = kube.Discovery(cluster.client)
        for manifest in objects:
            try:
                outcome = await _apply(
                    cluster.client, discovery, manifest, namespace or cluster.namespace, dry_run, force_conflicts
                )
                click.echo(f"{outcome}{' (dry run)' if dry_run else ''}")
            except (kube.ApiError, kube.UnknownKind) as error:
                failed += 1
                name = manifest.get("metadata", {}).get("name", "")
                click.echo(f"{manifest['kind']}/{name}: {error}", err=True)
    if failed:
        raise click.exceptions.Exit(1)


async def _apply(
    client: kube.Client,
    discovery: kube.Discovery,
    manifest: manifests.Manifest,
    namespace: str,
    dry_run: bool,
    force: bool,
) -> str:
    resource = await discovery.resource(manifest["apiVersion"], manifest["kind"])
    metadata: dict[str, Any] = dict(manifest.get("metadata", {}))
    if resource.namespaced:
        metadata.setdefault("namespace", namespace)
    if not metadata.get("name"):
        raise click.ClickException(f"{manifest['kind']}: metadata.name: missing; server-side apply needs a name")
    try:
        before = await client.get(resource, metadata["name"], metadata.get("namespace", ""))
    except kube.NotFound:
        before = None
    after = await client.apply(resource, manifest | {"metadata": metadata}, force=force, dry_run=dry_run, strict=True)
    label = f"{resource.group_resource}/{metadata['name']}"
    if before is None:
        return f"{label} created"
    same = before["metadata"].get("resourceVersion") == after["metadata"].get("resourceVersion")
    return f"{label} {'unchanged' if same else 'configured'}"


def _read(source: str) -> list[manifests.Manifest]:
    try:
        if source == "-":
            return manifests.load_manifests(sys.stdin.buffer.read(), "standard input")
        path = Path(source)
        if path.is_dir():
            files = sorted(f for f in path.iterdir() if f.suffix in (".yaml", ".yml", ".json"))
            return [manifest for file in files for manifest in manifests.load_manifests(file.read_bytes(), str(file))]
        return manifests.load_manifests(path.read_bytes(), source)
    except OSError as error:
        raise click.ClickException(f"{source}: {error.strerror}") from error
    except manifests.InvalidManifest as error:
        raise click.ClickException(str(error)) from error
