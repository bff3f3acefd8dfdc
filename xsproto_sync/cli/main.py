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
from .options import is_located, location_options
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
            try:
                sys.stdout.flush()
            except OSError:  # at its end, Python would try again, and change the exit status
                sys.stdout = open(os.devnull, "w")  # noqa: SIM115
            ctx.exit(status_of(error))
        except KeyboardInterrupt:
            ctx.exit(130)


_STATUSES = "\n\n".join(f"{number}  {meaning}" for number, meaning in EXIT_STATUSES.items())


@click.group(
    cls=_Commands,
    context_settings={"help_option_names": ["-h", "--help"]},
    epilog=f"Exit statuses:\n\n{_STATUSES}",
)
@location_options
@click.version_option(package_name="xsproto")
@click.pass_context
def commands(ctx: click.Context, /, **location: Any) -> None:
    """Read, change and watch the nodes of a XenStore, or serve one that needs no Xen.

    --socket and --xenbus may stand before or behind the name of a command that uses a XenStore.
    """
    if os.environ.get("NO_COLOR"):
        ctx.color = False
    used = commands.commands.get(ctx.invoked_subcommand or "")
    if is_located(location) and used and all(p.name != "xen_bus_path" for p in used.params):
        raise click.UsageError(f"{used.name!r} uses no XenStore: its options stand behind it")


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
    # Descriptors that the caller closed, in this order: else a connection would get their numbers.
    if sys.stdin is None:
        sys.stdin = open(os.devnull, encoding="utf-8")  # noqa: SIM115
    if sys.stdout is None:  # to write there is an error, as if it were closed
        sys.stdout = open(os.open(os.devnull, os.O_RDONLY), "w", encoding="utf-8")  # noqa: SIM115
    if sys.stderr is None:
        sys.stderr = open(os.devnull, "w", encoding="utf-8")  # noqa: SIM115
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            # Without this, a character that the locale lacks would raise.
            stream.reconfigure(errors="backslashreplace")
    commands()
