"""How every command reaches its cluster and reports what the cluster refuses."""

from __future__ import annotations

import asyncio
import functools
import os
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ParamSpec, TypeVar

import click

from capstan import kube

P = ParamSpec("P")
R = TypeVar("R")


def state_directory() -> Path:
    """Where `capstan up` keeps its state unless told otherwise."""
    base = os.environ.get("XDG_STATE_HOME") or Path.home() / ".local" / "state"
    return Path(base) / "capstan"


def default_kubeconfig() -> Path | None:
    """$KUBECONFIG wins; else the embedded platform's own; else kubectl's default (None)."""
    if os.environ.get("KUBECONFIG"):
        return None
    own = state_directory() / "kubeconfig"
    return own if own.exists() else None


def cluster_options(command: Callable[P, R]) -> Callable[P, R]:
    """The options that say which cluster a command talks to."""
    for option in (
        click.option("--context", help="The context of the kubeconfig to use; default: its current one."),
        click.option(
            "--kubeconfig",
            type=click.Path(dir_okay=False, path_type=Path),
            help="Default: $KUBECONFIG, else the cluster that `capstan up` started, else ~/.kube/config.",
        ),
    ):
        command = option(command)
    return command


def output_option(*extra: str) -> Callable[[Callable[P, R]], Callable[P, R]]:
    return click.option(
        "-o",
        "--output",
        type=click.Choice(["table", "json", "yaml", *extra]),
        default="table",
        show_default=True,
        help="How to print the answer.",
    )


def asynchronous(command: Callable[P, Coroutine[Any, Any, R]]) -> Callable[P, R]:
    """Run a coroutine command; what the cluster refuses becomes one readable line and exit code 1."""

    @functools.wraps(command)
    def run(*args: P.args, **kwargs: P.kwargs) -> R:
        try:
            return asyncio.run(command(*args, **kwargs))
        except kube.Unavailable as error:
            raise click.ClickException(f"{error}; is the cluster running? `capstan up` starts one here") from error
        except (kube.ApiError, kube.ConfigError, kube.UnknownKind, kube.UnknownResource) as error:
            raise click.ClickException(str(error)) from error

    return run


@dataclass(frozen=True)
class Cluster:
    """A connected cluster; `namespace` is the one that its context names."""

    client: kube.Client
    namespace: str
    server: str


@asynccontextmanager
async def connect(kubeconfig: Path | None, context: str | None) -> AsyncIterator[Cluster]:
    """The chosen cluster, disconnected at the end."""
    connection = kube.kubeconfig(kubeconfig or default_kubeconfig(), context)
    client = kube.Client(connection.transport(), field_manager="capstan-cli")
    try:
        yield Cluster(client, connection.namespace, connection.server)
    finally:
        await client.close()
