"""The commands that save a tree and write it back: ``dump`` and ``load``."""

from __future__ import annotations

import json
from typing import IO, Any

import click

from xsproto.errors import CommitUnknown, QuotaExceeded, XenStoreError

from .. import _json_tree as json_tree
from ..client import Client
from .errors import message_of
from .options import PATH, connect, location_options
from .output import printable

__all__ = ["dump", "load", "read_tree", "readable_tree"]


@click.command()
@location_options
@click.argument("top", type=PATH, default="/")
@click.pass_context
def dump(ctx: click.Context, /, top: bytes, **location: Any) -> None:
    """Print the tree at and below TOP as JSON, with permissions.

    Nodes that may not be read are left out. Each is named on standard error, and the exit status is
    1.
    """
    with connect(location) as client:
        nodes, status = readable_tree(client, top)
    lines = ",\n ".join(json.dumps(node) for node in nodes)
    click.echo(f"[{lines}]")
    ctx.exit(status)


def readable_tree(client: Client, top: bytes) -> tuple[list[dict[str, Any]], int]:
    """Return the nodes for JSON that may be read; name the others on standard error.

    Returns:
        the nodes, and the exit status.
    """
    left_out: list[bytes] = []
    nodes = json_tree.dump(client, top, unreadable=left_out.append)
    for path in left_out:
        click.echo(f"xsproto: {printable(path)}: not readable, and left out", err=True)
    return nodes, int(bool(left_out))


@click.command()
@location_options
@click.argument("tree", type=click.File(encoding="utf-8"), default="-")
@click.option(
    "--chunk",
    type=click.IntRange(1),
    metavar="NODES",
    help="Write at most so many nodes in one transaction, for a daemon that limits transactions.",
)
def load(tree: IO[str], chunk: int | None, **location: Any) -> None:
    """Write a tree that `dump` printed, from the file TREE or from standard input.

    Either all nodes are written, or none. With --chunk, that is true of each chunk; if one is
    refused, a line says how many nodes were written before. Nobody can read a value before the
    node has its permissions.
    """
    nodes = read_tree(tree)
    done = 0

    def written(number: int) -> None:
        nonlocal done
        done = number

    with connect(location) as client:
        try:
            json_tree.load(client, nodes, chunk=chunk, written=written)
        except XenStoreError as error:
            click.echo(f"xsproto: {_progress(done, len(nodes), error)}", err=True)
            raise
    click.echo(f"{done} nodes", err=True)


def _progress(done: int, number: int, error: XenStoreError) -> str:
    text = f"{done} of {number} nodes have been written"
    if isinstance(error, CommitUnknown):
        text += ", and perhaps those of one more transaction"
    elif isinstance(error, QuotaExceeded):
        text += "; if the daemon limits transactions, --chunk uses more of them"
    return text


def read_tree(tree: IO[str]) -> list[Any]:
    """Return the nodes of a file that ``xsproto dump`` wrote.

    Raises:
        click.ClickException: the file is no JSON, or no list. (The entries are checked later.)
    """
    try:
        return json_tree.parse(tree.read())
    except ValueError as error:
        raise click.ClickException(f"{tree.name}: {message_of(error)}") from error
