"""`capstan controllers`: the scheduler and the grouper against a cluster that somebody else runs."""

from __future__ import annotations

import asyncio
import logging
import os
import signal
import socket
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import click

from capstan.api.feature_gates import FeatureGates
from capstan.cli.connection import asynchronous, cluster_options, connect
from capstan.cli.feature_gates import feature_gates_option

if TYPE_CHECKING:
    from capstan import kube
    from capstan.controllers.listener import Listener, Page

NAMES = ("scheduler", "grouper")


@click.command()
@click.option("--only", type=click.Choice(NAMES), multiple=True, help="Run only this one; may be given twice.")
@click.option(
    "--listen",
    default="127.0.0.1:8443",
    show_default=True,
    metavar="HOST:PORT",
    help="Where /metrics, /snapshot and /healthz are served. Beyond this machine it takes a certificate.",
)
@click.option(
    "--tls-cert",
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
    help="PEM certificate chain; read again every minute.",
)
@click.option("--tls-key", type=click.Path(exists=True, dir_okay=False, path_type=Path), help="Its private key.")
@feature_gates_option("Features of Kubernetes that the cluster's API server has.")
@click.option(
    "--lease-seconds",
    type=click.IntRange(min=3),
    default=15,
    show_default=True,
    help="How long after a leader has died another takes over.",
)
@click.option(
    "--log-level", type=click.Choice(["debug", "info", "warning", "error"]), default="info", show_default=True
)
@cluster_options
def controllers(
    only: tuple[str, ...],
    listen: str,
    tls_cert: Path | None,
    tls_key: Path | None,
    gates: FeatureGates,
    lease_seconds: int,
    log_level: str,
    kubeconfig: Path | None,
    context: str | None,
) -> None:
    """Run the scheduler and the grouper against a cluster, until Ctrl-C.

    In a pod they act as its service account. Several of these processes may run: each controller works in the one that
    holds its Lease in the namespace capstan-system. Pages are served to those who may `get` their path in the cluster.

    \b
    Examples:
      capstan controllers --kubeconfig admin.conf
      capstan controllers --only scheduler --listen 0.0.0.0:8443 --tls-cert tls.crt --tls-key tls.key
    """
    logging.basicConfig(level=log_level.upper(), format="%(asctime)s %(levelname)s %(name)s: %(message)s")
    host, _, port = listen.rpartition(":")
    if not host or not port.isdigit() or int(port) > 65535:
        raise click.BadParameter(f"{listen!r} is not HOST:PORT, e.g. 127.0.0.1:8443", param_hint="--listen")
    if (tls_cert is None) != (tls_key is None):
        raise click.UsageError("--tls-cert and --tls-key belong together")
    _work(only or NAMES, gates, host.strip("[]"), int(port), tls_cert, tls_key, lease_seconds, kubeconfig, context)


@asynchronous
async def _work(
    names: tuple[str, ...],
    gates: FeatureGates,
    host: str,
    port: int,
    certificate: Path | None,
    key: Path | None,
    lease_seconds: int,
    kubeconfig: Path | None,
    context: str | None,
) -> None:
    from capstan import kube
    from capstan.controllers.listener import CannotListen, Listener

    pages: dict[str, Page] = {}

    async def until_stopped(client: kube.Client) -> None:
        try:
            listener = Listener(client, pages, host=host, port=port, certificate=certificate, key=key)
        except ValueError as wrong:
            raise click.UsageError(str(wrong)) from wrong
        work = asyncio.ensure_future(run(client, names, gates, pages, listener, lease_seconds))
        for number in (signal.SIGINT, signal.SIGTERM):
            asyncio.get_running_loop().add_signal_handler(number, work.cancel)
        try:
            await work
        except asyncio.CancelledError:
            click.echo("Stopping …")
        except ExceptionGroup as failed:
            refused = failed.subgroup(CannotListen)
            if refused is None:
                raise
            raise click.ClickException(f"{refused.exceptions[0]}; choose another --listen, or other files") from failed

    if kubeconfig is None and os.environ.get("KUBERNETES_SERVICE_HOST"):
        client = kube.Client(kube.in_cluster(), field_manager="capstan")
        try:
            await until_stopped(client)
        finally:
            await client.close()
        return
    async with connect(kubeconfig, context) as cluster:
        await until_stopped(cluster.client)


async def run(
    client: kube.Client,
    names: tuple[str, ...],
    gates: FeatureGates,
    pages: dict[str, Page],
    listener: Listener,
    lease_seconds: int,
) -> None:
    """Until cancelled, or one of them fails: then the process ends, and whoever started it starts it again."""
    from capstan import allocation, kube, scheduling
    from capstan.embedded import accounts
    from capstan.embedded.components import controllers as components

    identity = f"{socket.gethostname()}-{os.getpid()}"
    async with asyncio.TaskGroup() as group:
        group.create_task(listener.run())
        for component in components(pages, scheduling.Policy(features=allocation.Features.under(gates))):
            if component.name in names:
                elector = kube.LeaderElector(
                    client,
                    f"capstan-{component.name}",
                    accounts.NAMESPACE,
                    identity,
                    lease_seconds=lease_seconds,
                    renew_seconds=lease_seconds * 2 / 3,
                    retry_seconds=lease_seconds * 2 / 15,
                )
                group.create_task(elector.run(partial(component.run, elector.fenced(client))))
