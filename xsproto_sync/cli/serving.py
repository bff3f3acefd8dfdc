"""The command ``serve``: an embedded XenStore as a process of its own."""

from __future__ import annotations

import signal
import time
from types import FrameType
from typing import IO, Any
from uuid import uuid4

import click

from xsproto.adapters.discovery import SOCKET_PATHS
from xsproto.daemon import Daemon
from xsproto.daemon.guests import add_guest, guest_home
from xsproto.daemon.store import PROFILES

from .. import _json_tree as json_tree
from ..server import Server
from .trees import read_tree

__all__ = ["serve"]


def _guests(ctx: Any, param: Any, values: tuple[str, ...]) -> list[tuple[int, str]]:
    guests = []
    for value in values:
        domid, colon, path = value.partition(":")
        if not (colon and path and domid.isascii() and domid.isdigit()):
            raise click.BadParameter(f"{value!r} is no DOMID:PATH, such as 7:/tmp/guest-7")
        guests.append((int(domid), path))
    return guests


@click.command()
@click.option(
    "--socket",
    "socket_path",
    default=SOCKET_PATHS[0],
    show_default=True,
    metavar="PATH",
    help="The socket whose clients act as dom0.",
)
@click.option(
    "--guest",
    "guests",
    callback=_guests,
    metavar="DOMID:PATH",
    multiple=True,
    help="A socket whose clients act as a guest, with the nodes that libxl makes for one unless "
    "--load has some. May be given several times.",
)
@click.option(
    "--domain",
    "domains",
    callback=_guests,
    metavar="DOMID:PATH",
    multiple=True,
    help="A socket whose clients act as a domain that has no nodes. May be given several times.",
)
@click.option(
    "--load",
    "tree",
    type=click.File(encoding="utf-8"),
    help="Start with a tree that `dump` printed.",
)
@click.option(
    "--profile",
    type=click.Choice(list(PROFILES)),
    default="c",
    show_default=True,
    help="The version of C xenstored to behave as.",
)
def serve(
    socket_path: str,
    guests: list[tuple[int, str]],
    domains: list[tuple[int, str]],
    tree: IO[str] | None,
    profile: str,
) -> None:
    """Serve an embedded XenStore until SIGTERM or SIGINT."""
    daemon = Daemon(PROFILES[profile])
    if tree is not None:
        json_tree.fill(daemon, read_tree(tree))
    server = Server(daemon)

    def end(number: int, frame: FrameType | None) -> None:
        server.close()

    signals = (signal.SIGTERM, signal.SIGINT)
    # Blocked while `listen` makes the sockets: a signal in between would leave one behind.
    signal.pthread_sigmask(signal.SIG_BLOCK, signals)
    before = {number: signal.signal(number, end) for number in signals}
    try:
        server.listen(socket_path)
        for domid, path in (*domains, *guests):
            server.listen(path, domid)
        for domid, _path in guests:
            if guest_home(domid) not in daemon.store.nodes:
                name, uuid = b"guest-%d" % domid, str(uuid4())
                add_guest(daemon, domid, name=name, uuid=uuid, start_time=time.time())
        click.echo(f"serving on {socket_path}", err=True)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, signals)
        server.serve()
    finally:
        signal.pthread_sigmask(signal.SIG_UNBLOCK, signals)
        server.close()
        for number, handler in before.items():
            signal.signal(number, handler)
