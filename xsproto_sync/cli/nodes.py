"""The commands that read and change nodes: ``read``, ``write``, ``ls`` and the others."""

from __future__ import annotations

import os
import sys
from typing import Any

import click

from xsproto.clients.blocking import BlockingOperations
from xsproto.clients.operations import Node
from xsproto.errors import XenStoreError
from xsproto.perms import Permission
from xsproto.requests import SetPerms

from .. import _json_tree as json_tree
from ..client import Client
from .errors import message_of
from .options import PATH, connect, json_option, location_options
from .output import print_json, printable
from .trees import readable_tree

__all__ = ["chmod", "exists", "list_", "ls", "read", "rm", "write"]


@click.command()
@location_options
@click.argument("paths", type=PATH, nargs=-1, required=True, metavar="PATH...")
@click.option("--raw", is_flag=True, help="Print the bytes as they are, and add no line ends.")
@json_option
@click.pass_context
def read(
    ctx: click.Context, /, paths: tuple[bytes, ...], raw: bool, as_json: bool, **location: Any
) -> None:
    """Print the values of nodes. The values of several nodes are those of one moment.

    If some of several nodes cannot be read, the values of the others are printed, and the exit
    status is 1.
    """
    if raw and as_json:
        raise click.UsageError("--raw and --json are both given")
    with connect(location) as client:
        if len(paths) == 1:
            results: list[bytes | XenStoreError] = [client.read(paths[0])]
        else:
            results = client.transact(lambda tx: tx.read_many(paths))
    values = []
    for path, result in zip(paths, results, strict=True):
        if isinstance(result, XenStoreError):
            click.echo(f"xsproto: {message_of(result)}", err=True)
        else:
            values.append((path, result))
    if as_json:
        print_json({printable(path): json_tree.to_json(value) for path, value in values})
    elif raw:
        click.echo(b"".join(value for _, value in values), nl=False)
    else:
        for _, value in values:
            click.echo(printable(value))
    ctx.exit(int(len(values) < len(paths)))


# Unknown options are taken as arguments, because a value may begin with a dash.
@click.command(context_settings={"ignore_unknown_options": True})
@location_options
@click.argument("words", type=PATH, nargs=-1, required=True, metavar="PATH VALUE [PATH VALUE]...")
def write(words: tuple[bytes, ...], **location: Any) -> None:
    """Set the values of nodes, and create missing nodes. Either all are set, or none.

    If VALUE is a single dash, the value is what standard input has, to the last byte.
    """
    if len(words) % 2:
        raise click.UsageError(f"{os.fsdecode(words[-1])!r} has no value")
    values = list(words[1::2])
    if values.count(b"-") > 1:
        raise click.UsageError("standard input is the value of one node only")
    if b"-" in values:
        values[values.index(b"-")] = sys.stdin.buffer.read()
    pairs = list(zip(words[::2], values, strict=True))

    def step(tx: BlockingOperations) -> None:
        for path, value in pairs:
            tx.write(path, value)

    with connect(location) as client:
        if len(pairs) == 1:
            step(client)
        else:
            client.transact(step)


@click.command()
@location_options
@click.argument("top", type=PATH, default="/", metavar="[PATH]")
@click.option("-p", "--perms", "with_perms", is_flag=True, help="Print permissions, too.")
@json_option
@click.pass_context
def ls(ctx: click.Context, /, top: bytes, with_perms: bool, as_json: bool, **location: Any) -> None:
    """Print the tree at and below PATH, in colour on a terminal.

    With --json the output is that of `dump`, which always has the permissions.
    """
    with connect(location) as client:
        if as_json:
            nodes, status = readable_tree(client, top)
            print_json(nodes)
            ctx.exit(status)
        for node in client.walk(top):
            click.echo(_line(top, node, client if with_perms else None))


def _line(top: bytes, node: Node, client: Client | None) -> str:
    depth = 0 if node.path == top else node.path.count(b"/") - top.rstrip(b"/").count(b"/")
    name = node.path if depth == 0 else node.path.rpartition(b"/")[2]
    line = "  " * depth + click.style(printable(name), fg="blue", bold=bool(node.children))
    if node.value is None:
        line += click.style(" (not readable)", fg="red")
    elif node.value:
        line += " = " + click.style(f'"{printable(node.value)}"', fg="green")
    if client is not None:
        try:
            perms = ",".join(map(str, client.get_perms(node.path)))
        except XenStoreError:
            perms = "?"
        line += click.style(f"  ({perms})", dim=True)
    return line


@click.command(name="list")
@location_options
@click.argument("path", type=PATH, default="/", metavar="[PATH]")
@json_option
def list_(path: bytes, as_json: bool, **location: Any) -> None:
    """Print the names of a node's children."""
    with connect(location) as client:
        names = client.list(path)
    if as_json:
        print_json([json_tree.to_json(name) for name in names])
    else:
        for name in names:
            click.echo(printable(name))


@click.command()
@location_options
@click.argument("paths", type=PATH, nargs=-1, required=True, metavar="PATH...")
@click.pass_context
def exists(ctx: click.Context, /, paths: tuple[bytes, ...], **location: Any) -> None:
    """Exit with status 0 if all of the nodes exist, and with 3 if one does not."""
    with connect(location) as client:
        if not all(client.exists(path) for path in paths):
            ctx.exit(3)


@click.command()
@location_options
@click.argument("paths", type=PATH, nargs=-1, required=True, metavar="PATH...")
def rm(paths: tuple[bytes, ...], **location: Any) -> None:
    """Remove nodes and everything below them. Either all are removed, or none.

    A missing node is no error if its parent exists.
    """

    def step(tx: BlockingOperations) -> None:
        for path in paths:
            tx.delete(path)

    with connect(location) as client:
        client.transact(step)


@click.command()
@location_options
@click.argument("path", type=PATH)
@click.argument("modes", nargs=-1, required=True, metavar="MODE...")
@click.option("-r", "--recurse", is_flag=True, help="Change all nodes below it, too.")
def chmod(path: bytes, modes: tuple[str, ...], recurse: bool, **location: Any) -> None:
    """Set the permissions of a node.

    A MODE is a letter, n (nothing), r (read), w (write) or b (both), and a domain id, such as r5.
    The first MODE names the owner, and its letter says what all other domains may do.
    """
    perms = [Permission.parse(os.fsencode(mode)) for mode in modes]
    SetPerms(path, perms).payload()  # refuses wrong arguments before there is a connection

    def step(tx: BlockingOperations) -> None:
        for node in list(tx.walk(path)):
            tx.set_perms(node.path, perms)

    with connect(location) as client:
        if recurse:
            client.transact(step)
        else:
            client.set_perms(path, perms)
