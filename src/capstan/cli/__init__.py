"""The `capstan` command: one module per command group, loaded when it is used. Argument parsing and printing only."""

from __future__ import annotations

import importlib
from collections.abc import Mapping

import click

from capstan import __version__

_COMMANDS: Mapping[str, tuple[str, str]] = {
    "up": ("up", "Start the whole platform on this machine."),
    "controllers": ("controllers", "Run the scheduler and the grouper against a cluster."),
    "manifests": ("manifests", "Print what a cluster needs before the controllers run in it."),
    "demo": ("demo", "Show what the platform does, step by step, each step verified."),
    "status": ("status", "Nodes, GPUs, queues and waiting gangs at a glance."),
    "explain": ("explain", "Why a pod or gang runs where it runs, or why it waits."),
    "apply": ("apply", "Apply manifests with server-side apply."),
    "blueprint": ("blueprint", "Lint, plan, apply and inspect platform blueprints."),
    "scenario": ("scenario", "Check scheduling scenarios offline."),
    "snapshot": ("snapshot", "Keep what the scheduler sees in a file, and decide it again offline."),
    "allocate": ("allocate", "Allocate devices to claims offline."),
    "completion": ("completion", "Print the shell completion script."),
}
"""name -> (module of this package, one line of help). The command is the module's attribute of the same name."""


class _Commands(click.Group):
    """Imports a command's module only when it is invoked or its own help is asked for: `--help` stays fast."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(_COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in _COMMANDS:
            return None
        module = importlib.import_module(f"capstan.cli.{_COMMANDS[cmd_name][0]}")
        command: click.Command = getattr(module, cmd_name)
        return command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Commands"):
            formatter.write_dl([(name, text) for name, (_, text) in _COMMANDS.items()])


@click.group(
    cls=_Commands,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
    epilog="Start with: capstan demo",
)
@click.version_option(__version__, prog_name="capstan")
def main() -> None:
    """Capstan: a GPU platform for Kubernetes.

    \b
    Examples:
      capstan up --nodes 2xdgx-a100,1xl4x4    start a cluster with 20 simulated GPUs
      capstan status                          see nodes, queues and what waits
      capstan explain job/train               why does it wait?
    """
