"""The command ``xsproto``. It needs the extra ``cli``."""

from __future__ import annotations

import io
import json
import os
import signal
import sys
from types import FrameType
from typing import IO, Any

try:
    import click
except ImportError:
    sys.exit("the command xsproto needs click: pip install 'xsproto[cli]'")
from click.shell_completion import get_completion_class

from xsproto.adapters.discovery import SOCKET_PATHS
from xsproto.daemon import Daemon
from xsproto.daemon.store import PROFILES
from xsproto.errors import XenStoreError

from .. import _json_tree as trees
from ..client import Client
from ..server import Server
from .demo import demo as tell
from .nodes import EXIT_STATUSES, NODE_COMMANDS, PATH, connecting, status_of

__all__ = ["main"]


def _guest(ctx: Any, param: Any, values: tuple[str, ...]) -> list[tuple[int, str]]:
    guests = []
    for value in values:
        domid, colon, path = value.partition(":")
        if not (colon and path and domid.isascii() and domid.isdigit()):
            raise click.BadParameter(f"{value!r} is no DOMID:PATH, such as 7:/tmp/guest-7")
        guests.append((int(domid), path))
    return guests


class _Commands(click.Group):
    """Tells an error of XenStore, or of the system, in a line and by the exit status."""

    def invoke(self, ctx: click.Context) -> Any:
        try:
            return super().invoke(ctx)
        except BrokenPipeError:
            raise  # click ends quietly
        except (XenStoreError, OSError, ValueError) as error:
            click.echo(f"xsproto: {error}", err=True)
            ctx.exit(status_of(error))
        except KeyboardInterrupt:
            ctx.exit(130)


_STATUSES = "\n\n".join(f"{number}  {meaning}" for number, meaning in EXIT_STATUSES.items())


@click.group(cls=_Commands, epilog=f"Exit statuses:\n\n{_STATUSES}")
@click.version_option(package_name="xsproto")
def commands() -> None:
    """XenStore: its nodes, an embedded daemon, trees as JSON, and a first look."""


for _command in NODE_COMMANDS:
    commands.add_command(_command)


@commands.command()
@click.argument("shell", type=click.Choice(["bash", "zsh", "fish"]))
def completion(shell: str) -> None:
    """Print what makes SHELL complete commands, options and nodes' paths.

    For bash: eval "$(xsproto completion bash)"
    """
    cls = get_completion_class(shell)
    assert cls is not None
    click.echo(cls(commands, {}, "xsproto", "_XSPROTO_COMPLETE").source())


@commands.command()
def demo() -> None:
    """Show XenStore in a minute, on an embedded store."""
    tell(click.echo)


@commands.command()
@click.option(
    "--socket",
    "socket_path",
    default=SOCKET_PATHS[0],
    show_default=True,
    metavar="PATH",
    help="Where dom0's clients connect.",
)
@click.option(
    "--guest",
    "guests",
    callback=_guest,
    metavar="DOMID:PATH",
    multiple=True,
    help="A socket whose clients act as a guest domain; may be repeated.",
)
@click.option("--load", "tree", type=click.File(), help="Begin with a tree that `dump` made.")
@click.option(
    "--profile",
    type=click.Choice(list(PROFILES)),
    default="c",
    show_default=True,
    help="Which C xenstored to be.",
)
def serve(
    socket_path: str, guests: list[tuple[int, str]], tree: IO[str] | None, profile: str
) -> None:
    """Serve an embedded XenStore until SIGTERM or SIGINT."""
    daemon = Daemon(PROFILES[profile])
    if tree is not None:
        trees.fill(daemon, _nodes(tree))
    server = Server(daemon)

    def end(number: int, frame: FrameType | None) -> None:
        server.close()

    signals = (signal.SIGTERM, signal.SIGINT)
    # Not while it listens: half-made sockets would be left.
    signal.pthread_sigmask(signal.SIG_BLOCK, signals)
    before = {number: signal.signal(number, end) for number in signals}
    try:
        server.listen(socket_path)
        for domid, path in guests:
            server.listen(path, domid)
        click.echo(f"serving on {socket_path}", err=True)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, signals)
        server.serve()
    finally:
        signal.pthread_sigmask(signal.SIG_UNBLOCK, signals)
        server.close()
        for number, handler in before.items():
            signal.signal(number, handler)


@commands.command()
@connecting
@click.argument("top", type=PATH, default="/")
def dump(top: bytes, **where: Any) -> None:
    """Print the tree at and below TOP as JSON, with permissions."""
    with Client(**where) as client:
        nodes = trees.dump(client, top)
    lines = ",\n ".join(json.dumps(node) for node in nodes)
    click.echo(f"[{lines}]")


@commands.command()
@connecting
@click.argument("tree", type=click.File(), default="-")
def load(tree: IO[str], **where: Any) -> None:
    """Write what `dump` printed, from the file TREE or standard input."""
    nodes = _nodes(tree)
    with Client(**where) as client:
        click.echo(f"{trees.load(client, nodes)} nodes", err=True)


def _nodes(tree: IO[str]) -> list[Any]:
    try:
        return trees.parse(tree.read())
    except ValueError as error:
        raise click.ClickException(f"{tree.name}: {error}") from error


def main() -> None:
    """Run the command."""
    if sys.stdin is None:  # it was closed
        sys.stdin = open(os.devnull, encoding="utf-8")  # noqa: SIM115
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")  # what the locale has no character for
    commands()
