"""`capstan up`: the whole platform in one process, until Ctrl-C."""

from __future__ import annotations

import asyncio
import gc
import logging
import os
import resource
import signal
import threading
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING

import click

from capstan.api.feature_gates import FeatureGates
from capstan.cli.connection import state_directory
from capstan.cli.feature_gates import feature_gates_option

if TYPE_CHECKING:
    from capstan.embedded import Platform

STOP_SECONDS = 8.0
DEFAULT_NODES = "2xdgx-a100,1xl4x4"


@click.command()
@click.option(
    "--nodes",
    default=DEFAULT_NODES,
    show_default=True,
    metavar="FLEET",
    help="Simulated nodes as [COUNTx]MODEL, separated by commas. --list-models names the models.",
)
@click.option("--list-models", is_flag=True, help="Print the node models and exit.")
@click.option(
    "--data-dir",
    type=click.Path(file_okay=False, path_type=Path),
    help="Where the state lives; a restart resumes there. Default: $XDG_STATE_HOME/capstan or ~/.local/state/capstan.",
)
@click.option("--port", type=click.IntRange(0, 65535), default=6443, show_default=True, help="0 picks a free port.")
@click.option(
    "--demo-queues/--no-demo-queues",
    default=True,
    show_default=True,
    help="Create default-parent-queue and default-queue.",
)
@feature_gates_option("Features of Kubernetes that the API server and the scheduler have.")
@click.option(
    "--without",
    type=click.Choice(["scheduler", "grouper"]),
    multiple=True,
    help="Leave this controller to `capstan controllers`; may be given twice.",
)
@click.option(
    "--log-level", type=click.Choice(["debug", "info", "warning", "error"]), default="warning", show_default=True
)
def up(
    nodes: str,
    list_models: bool,
    data_dir: Path | None,
    port: int,
    demo_queues: bool,
    gates: FeatureGates,
    without: tuple[str, ...],
    log_level: str,
) -> None:
    """Start a whole platform on this machine: API server, GPU nodes, node driver, scheduler, blueprint agent.

    It serves a Kubernetes API on loopback and writes a kubeconfig that only you can read. Ctrl-C stops it; what was
    acknowledged is there again after the next start.

    \b
    Examples:
      capstan up
      capstan up --nodes 1xdgx-h100,2xl4x4 --port 0
      capstan up --data-dir /tmp/try --no-demo-queues
      capstan up --feature-gates DRASharedConsumableCapacity=true,DRADerivedAttributes=true
      capstan up --without scheduler --without grouper
    """
    os.environ.setdefault("GRPC_VERBOSITY", "ERROR")  # read when grpc is imported; it reports each closed connection
    import uvloop

    from capstan.embedded import Platform, PlatformError
    from capstan.node import NodeError, models

    if list_models:
        click.echo("\n".join(models.KNOWN_MODELS))
        return
    logging.basicConfig(level=log_level.upper(), format="%(asctime)s %(levelname)s %(name)s: %(message)s")
    raise_file_limit()
    collect_garbage_less()
    try:
        fleet = models.parse_fleet(nodes)
    except NodeError as error:
        raise click.BadParameter(str(error), param_hint="--nodes") from error
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, _leave)  # until the event loop takes over
    click.echo(f"Starting {len(fleet)} {'node' if len(fleet) == 1 else 'nodes'} …")
    platform = Platform(
        fleet,
        data_dir=data_dir or state_directory(),
        port=port,
        demo_queues=demo_queues,
        gates=gates,
        without=without,
    )
    try:
        uvloop.run(_serve(platform))
    except PlatformError as error:
        raise click.ClickException(str(error)) from error


async def _serve(platform: Platform) -> None:
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(number, stop.set)
    async with platform:
        click.echo(
            f"Capstan is up: {platform.summary}\n"
            f"  API server   {platform.url}\n"
            f"  kubeconfig   {platform.kubeconfig}\n\n"
            f"Try, in another terminal:\n"
            f"  export KUBECONFIG={platform.kubeconfig}\n"
            f"  kubectl get nodes\n"
            f"  capstan status\n\n"
            f"Ctrl-C stops it."
        )
        await stop.wait()
        click.echo("Stopping …")
        watchdog = threading.Timer(STOP_SECONDS, _give_up, [loop])
        watchdog.daemon = True
        watchdog.start()


def _leave(number: int, frame: FrameType | None) -> None:
    raise SystemExit(0)


def _give_up(loop: asyncio.AbstractEventLoop) -> None:
    """The last resort against a part that does not end; everything acknowledged is on disk."""
    names = sorted({task.get_name() for task in asyncio.all_tasks(loop)})
    click.echo(f"Gave up waiting after {STOP_SECONDS:g} s for: {', '.join(names)}. No data is lost.", err=True)
    os._exit(1)


def collect_garbage_less() -> None:
    """The defaults of the cyclic collector cost a platform an eighth of its time: it makes many objects and few cycles.

    What is loaded by now stays until the end and need not be looked at.
    """
    gc.collect()
    gc.freeze()
    gc.set_threshold(20_000, 50, 100)


def raise_file_limit() -> None:
    """A fleet needs a few sockets per node; most systems start processes with room for 1,024."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
