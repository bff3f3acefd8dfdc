"""The entry point of the command ``xsproto``, and the group that has all commands."""

from __future__ import annotations

import io
import os
import sys
from typing import Any

try:
    import click
except ImportError:
    sys.exit("the command xsproto needs click: pip install 'xsproto[cli]'")

from xsproto.errors import XenStoreError

from . import nodes, trees, watching
from .completion import completion
from .demo import demo
from .errors import EXIT_STATUSES, message_of, status_of
from .serving import serve
from .stdio import stdio

__all__ = ["main"]


class _Commands(click.Group):
    """A group that reports an error of XenStore, or of the system, in one line and by status."""

    def invoke(self, ctx: click.Context) -> Any:
        try:
            return super().invoke(ctx)
        except BrokenPipeError:
            raise  # click ends the command without a message
        except (XenStoreError, OSError, ValueError) as error:
            click.echo(f"xsproto: {message_of(error)}", err=True)
            ctx.exit(status_of(error))
        except KeyboardInterrupt:
            ctx.exit(130)


_STATUSES = "\n\n".join(f"{number}  {meaning}" for number, meaning in EXIT_STATUSES.items())


@click.group(cls=_Commands, epilog=f"Exit statuses:\n\n{_STATUSES}")
@click.version_option(package_name="xsproto")
def commands() -> None:
    """Read, change and watch the nodes of a XenStore, or serve one that needs no Xen."""


for _command in (
    nodes.read,
    nodes.write,
    nodes.ls,
    nodes.list_,
    nodes.exists,
    nodes.rm,
    nodes.chmod,
    watching.watch,
    watching.wait,
    trees.dump,
    trees.load,
    serve,
    stdio,
    demo,
    completion,
):
    commands.add_command(_command)


def main() -> None:
    """Run the command."""
    if sys.stdin is None:  # the caller closed descriptor 0
        sys.stdin = open(os.devnull, encoding="utf-8")  # noqa: SIM115
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            # Without this, a character that the locale lacks would raise.
            stream.reconfigure(errors="backslashreplace")
    commands()
