"""`capstan manifests`: what a cluster needs before the controllers run in it."""

from __future__ import annotations

import click


@click.command()
def manifests() -> None:
    """Print what the controllers need in a cluster: CRDs, priority and device classes, the default shard.

    `capstan up` installs the same. KAI's kinds come with the fields that only Capstan knows.

    \b
    Examples:
      capstan manifests | kubectl apply --server-side -f -
      capstan manifests > capstan.yaml
    """
    from capstan.api import crds
    from capstan.api import manifests as documents
    from capstan.embedded.platform import packaged

    everything = [*crds.load(), *packaged("platform.yaml")]
    click.echo("---\n".join(map(documents.dump, everything)), nl=False)
