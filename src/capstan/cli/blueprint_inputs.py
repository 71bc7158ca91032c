"""What the blueprint commands read: files with blueprints and clusters, and the state of a live cluster."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import click
import msgspec

from capstan import blueprints, kube
from capstan.api import manifests, resources
from capstan.api.platform import API_VERSION, Cluster

Manifest = dict[str, Any]


@dataclass(frozen=True)
class Files:
    """`clusters` are the Cluster documents by name with the file they stand in."""

    library: blueprints.Library
    clusters: dict[str, tuple[str, Manifest]] = field(default_factory=dict)

    def overrides(self) -> list[blueprints.Override]:
        return [
            blueprints.Override(name, (document.get("spec") or {}).get("override") or {}, file)
            for name, (file, document) in self.clusters.items()
        ]

    def chosen(self, name: str | None) -> str:
        """The blueprint that a command is about: the named one, or the only one that has a version."""
        candidates = [known for known in self.library.names if self.library.version(known)]
        if name is not None:
            return name
        if len(candidates) != 1:
            known = ", ".join(candidates) or "none has a version"
            raise click.UsageError(f"choose one blueprint with --blueprint; the files define: {known}")
        return candidates[0]


def read(paths: Sequence[Path]) -> Files:
    """Blueprints and clusters of files and directories; other files in a directory's subdirectories are attachments."""
    sources: list[blueprints.Source] = []
    clusters: dict[str, tuple[str, Manifest]] = {}
    for path in paths:
        files = sorted(f for f in path.iterdir() if f.suffix in (".yaml", ".yml", ".json")) if path.is_dir() else [path]
        for file in files:
            for document in _documents(file):
                if document.get("kind") == "Cluster" and document.get("apiVersion") == API_VERSION:
                    clusters[str(document["metadata"].get("name", ""))] = (str(file), document)
                else:
                    sources.append(blueprints.Source(str(file), document, _attached(file, document)))
    if not sources:
        raise click.ClickException(
            f"no Blueprint in {', '.join(map(str, paths))}; name its files, or a directory that holds them directly"
        )
    return Files(blueprints.Library(sources), clusters)


def _documents(file: Path) -> list[Manifest]:
    try:
        return manifests.load_manifests(file.read_bytes(), str(file))
    except (OSError, manifests.InvalidManifest) as error:
        raise click.ClickException(str(error)) from error


def _attached(file: Path, document: Manifest) -> dict[str, list[Manifest]]:
    """The files that exist; lint reports the others with the place that names them."""
    found = {name: file.parent / name for name in blueprints.attachments(document)}
    return {name: _documents(path) for name, path in found.items() if path.is_file()}


def parse_facts(file: Path | None, pairs: Sequence[str]) -> dict[str, Any]:
    """Facts from a file and from `name=value` pairs, whose values are YAML."""
    facts: dict[str, Any] = {}
    try:
        if file is not None:
            for document in manifests.load_all(file.read_bytes(), str(file)):
                facts |= document
        for pair in pairs:
            name, separator, text = pair.partition("=")
            if not separator:
                raise click.UsageError(f"--fact {pair!r}: write name=value, for example gpu.mig=true")
            # Label keys may hold dots; the names of other facts are nested by them.
            path = ("labels", name.removeprefix("labels.")) if name.startswith("labels.") else tuple(name.split("."))
            (value,) = manifests.load_all(text, f"--fact {name}") or [None]
            below = facts
            for part in path[:-1]:
                below = below.setdefault(part, {})
            below[path[-1]] = value
    except (OSError, manifests.InvalidManifest) as error:
        raise click.ClickException(str(error)) from error
    return facts


async def cluster_or_none(client: kube.Client, name: str) -> Cluster | None:
    try:
        return await client.get(resources.CLUSTERS, name)
    except kube.NotFound:
        return None


async def compile_for(client: kube.Client, cluster: Cluster) -> blueprints.Compiled:
    """What the cluster's blueprint means for the cluster, from its published version and reported facts."""
    reference = cluster.spec.blueprint
    if reference is None:
        raise click.ClickException(
            f"cluster {cluster.metadata.name} has no blueprint; see: capstan blueprint apply --help"
        )
    version = await client.get(resources.BLUEPRINT_VERSIONS, f"{reference.name}-{reference.version}")
    layers = blueprints.layers_of(msgspec.to_builtins(version.spec))
    override = blueprints.Override(cluster.metadata.name, cluster.spec.override)
    return blueprints.compile(layers, cluster.status.facts, override)


async def live_state(
    client: kube.Client, cluster: str, desired: Sequence[blueprints.Item]
) -> tuple[dict[str, Manifest], list[Manifest]]:
    """(live objects by identity as far as desired, all members of the cluster's set)."""
    discovery = kube.Discovery(client)
    live: dict[str, Manifest] = {}
    kinds: set[kube.Unstructured] = set()
    for item in desired:
        manifest = item.manifest
        try:
            resource = await discovery.resource(manifest["apiVersion"], manifest["kind"])
        except kube.UnknownKind:
            continue  # its definition is part of the plan
        kinds.add(resource)
        metadata = manifest["metadata"]
        try:
            live[item.identity] = await client.get(resource, metadata["name"], metadata.get("namespace", ""))
        except kube.NotFound:
            continue
    parent = await cluster_or_none(client, cluster)
    if parent is not None:
        earlier = set(blueprints.group_kinds({"annotations": parent.metadata.annotations}))
        earlier -= {(resource.group, resource.kind) for resource in kinds}
        if earlier:
            everything = await discovery.all("list")
            kinds |= {resource for resource in everything if (resource.group, resource.kind) in earlier}
    members: list[Manifest] = []
    selector = f"applyset.kubernetes.io/part-of={blueprints.cluster_set(cluster)}"
    for resource in kinds:
        members += (await client.list(resource, labels=selector)).items
    return live, members
