"""The command ``xsproto``. It needs the extra ``cli``."""

from __future__ import annotations

import json
import signal
import sys
from types import FrameType
from typing import IO, Any

try:
    import click
except ImportError:
    sys.exit("the command xsproto needs click: pip install 'xsproto[cli]'")

from xsproto.daemon import Daemon
from xsproto.errors import XenStoreError
from xsproto.location import SOCKET_PATHS
from xsproto.store import PROFILES

from . import trees
from .client import Client
from .demo import demo as tell
from .server import Server

__all__ = ["main"]

_socket = click.option(
    "--socket", "socket_path", metavar="PATH", help="The daemon's socket; else as Client finds it."
)


def _guest(ctx: Any, param: Any, values: tuple[str, ...]) -> list[tuple[int, str]]:
    guests = []
    for value in values:
        domid, colon, path = value.partition(":")
        if not (colon and path and domid.isascii() and domid.isdigit()):
            raise click.BadParameter(f"{value!r} is no DOMID:PATH, such as 7:/tmp/guest-7")
        guests.append((int(domid), path))
    return guests


@click.group()
@click.version_option(package_name="xsproto")
def commands() -> None:
    """XenStore: a first look, an embedded daemon, and trees as JSON."""


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

    before = {number: signal.signal(number, end) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        server.listen(socket_path)
        for domid, path in guests:
            daemon.add_domain(domid)
            server.listen(path, domid)
        click.echo(f"serving on {socket_path}", err=True)
        server.serve()
    finally:
        server.close()
        for number, handler in before.items():
            signal.signal(number, handler)


@commands.command()
@_socket
@click.argument("top", default="/")
def dump(socket_path: str | None, top: str) -> None:
    """Print the tree at and below TOP as JSON, with permissions."""
    with Client(socket_path) as client:
        nodes = trees.dump(client, top.encode())
    lines = ",\n ".join(json.dumps(node) for node in nodes)
    click.echo(f"[{lines}]")


@commands.command()
@_socket
@click.argument("tree", type=click.File(), default="-")
def load(socket_path: str | None, tree: IO[str]) -> None:
    """Write what `dump` printed, from the file TREE or standard input."""
    nodes = _nodes(tree)
    with Client(socket_path) as client:
        click.echo(f"{trees.load(client, nodes)} nodes", err=True)


def _nodes(tree: IO[str]) -> list[Any]:
    try:
        nodes = json.load(tree)
    except ValueError as error:
        raise click.ClickException(f"{tree.name} is no JSON: {error}") from error
    if not isinstance(nodes, list):
        raise click.ClickException(f"{tree.name} is no list of nodes")
    return nodes


def main() -> None:
    """Run the command; an error of XenStore, or of the system, is told in a line."""
    try:
        commands()
    except (XenStoreError, OSError, ValueError) as error:
        sys.exit(f"xsproto: {error}")
