"""`capstan completion`: the script that makes a shell complete Capstan's commands and options."""

from __future__ import annotations

import click
from click.shell_completion import get_completion_class


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
