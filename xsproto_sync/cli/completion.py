"""The command ``completion``: the code that makes a shell complete commands and paths."""

from __future__ import annotations

import click
from click.shell_completion import get_completion_class

__all__ = ["completion"]


@click.command()
@click.argument("shell", type=click.Choice(["bash", "zsh", "fish"]))
@click.pass_context
def completion(ctx: click.Context, /, shell: str) -> None:
    """Print code for SHELL that completes commands, options and the paths of nodes.

    For bash: eval "$(xsproto completion bash)"
    """
    cls = get_completion_class(shell)
    assert cls is not None
    commands = ctx.find_root().command
    click.echo(cls(commands, {}, "xsproto", "_XSPROTO_COMPLETE").source())
