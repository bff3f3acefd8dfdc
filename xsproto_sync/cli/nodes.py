r"""The commands of ``xsproto`` for nodes: ``read``, ``write``, ``ls`` and the others.

Paths and values are words of the command line. In JSON a value's bytes are the characters U+0000
to U+00FF, as in `trees`; elsewhere what is no printable text is shown as ``\xNN``.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from time import monotonic
from typing import Any, Final, TypeVar

import click
from click.shell_completion import CompletionItem

from xsproto.clients.blocking import BlockingOperations
from xsproto.clients.operations import Node
from xsproto.errors import (
    AccessDenied,
    InvalidArgument,
    LocalProtocolError,
    NotFound,
    TimedOut,
    XenStoreError,
)
from xsproto.paths import is_within
from xsproto.perms import Permission
from xsproto.requests import SetPerms

from .. import _json_tree as trees
from ..client import Client

__all__ = ["EXIT_STATUSES", "NODE_COMMANDS", "PATH", "connecting", "status_of"]

F = TypeVar("F", bound=Callable[..., Any])

#: What the exit statuses of all commands mean.
EXIT_STATUSES: Final = {
    0: "done; of `exists`: there is each of the nodes",
    1: "XenStore, or the system, refused something, or the connection ended",
    2: "wrong arguments",
    3: "there is no such node",
    4: "the time is over",
    130: "interrupted, as `watch` with Ctrl-C",
}

#: Seconds that completing a path may take.
_COMPLETION_TIMEOUT: Final = 1.0


def status_of(error: Exception) -> int:
    """The exit status that tells of an error."""
    for cls, status in ((LocalProtocolError, 2), (NotFound, 3), (TimedOut, 4)):
        if isinstance(error, cls):
            return status
    return 1


def connecting(command: F) -> F:
    """Have a command take the options that say where XenStore is."""
    command = click.option(
        "--xenbus", "xen_bus_path", metavar="PATH", help="The XenBus device of a guest."
    )(command)
    return click.option(
        "--socket",
        "unix_socket_path",
        metavar="PATH",
        help="The daemon's socket. With neither, XenStore is found as by Client().",
    )(command)


class _Path(click.ParamType):  # type: ignore[type-arg]  # it is generic in newer versions only
    """A node's path. The shell completes it from the store."""

    name = "path"

    def convert(self, value: Any, param: Any, ctx: Any) -> bytes:
        return value if isinstance(value, bytes) else os.fsencode(value)

    def shell_complete(self, ctx: Any, param: Any, incomplete: str) -> list[CompletionItem]:
        parent, slash, _ = incomplete.rpartition("/")
        if not slash or parent.endswith("/"):
            return []
        where = (ctx.params.get(name) for name in ("unix_socket_path", "xen_bus_path"))
        try:
            with Client(*where, timeout=_COMPLETION_TIMEOUT) as client:
                names = client.list(os.fsencode(parent or "/"))
        except (XenStoreError, ValueError):
            return []
        paths = (f"{parent}/{name.decode()}" for name in names)
        return [CompletionItem(path) for path in paths if path.startswith(incomplete)]


#: The type of an argument that is a node's path.
PATH: Final = _Path()
_json = click.option("--json", "as_json", is_flag=True, help="Print JSON.")


def _text(value: bytes) -> str:
    """A value, or a path, for people: in a line, whatever is in it."""
    text = value.decode("utf-8", "backslashreplace")
    return "".join(each if each.isprintable() else ascii(each)[1:-1] for each in text)


def _latin(value: bytes) -> str:
    return value.decode("latin-1")


def _dump(what: Any) -> None:
    click.echo(json.dumps(what))


@click.command()
@connecting
@click.argument("paths", type=PATH, nargs=-1, required=True, metavar="PATH...")
@click.option("--raw", is_flag=True, help="Print the bytes as they are, and nothing else.")
@_json
def read(paths: tuple[bytes, ...], raw: bool, as_json: bool, **where: Any) -> None:
    """Print the values of nodes, of several as of one moment."""
    if raw and as_json:
        raise click.UsageError("--raw and --json are both given")
    with Client(**where) as client:
        if len(paths) == 1:
            values = [client.read(paths[0])]
        else:
            values = client.transact(lambda tx: [tx.read(path) for path in paths])
    if as_json:
        pairs = zip(paths, values, strict=True)
        _dump({_latin(path): _latin(value) for path, value in pairs})
    elif raw:
        click.echo(b"".join(values), nl=False)
    else:
        for value in values:
            click.echo(_text(value))


# (A value may look like an option.)
@click.command(context_settings={"ignore_unknown_options": True})
@connecting
@click.argument("words", type=PATH, nargs=-1, required=True, metavar="PATH VALUE [PATH VALUE]...")
def write(words: tuple[bytes, ...], **where: Any) -> None:
    """Set the values of nodes; make them where missing. All, or none."""
    if len(words) % 2:
        raise click.UsageError(f"{os.fsdecode(words[-1])!r} has no value")
    pairs = list(zip(words[::2], words[1::2], strict=True))

    def step(tx: BlockingOperations) -> None:
        for path, value in pairs:
            tx.write(path, value)

    with Client(**where) as client:
        if len(pairs) == 1:
            step(client)
        else:
            client.transact(step)


@click.command()
@connecting
@click.argument("top", type=PATH, default="/", metavar="[PATH]")
@click.option("-p", "--perms", "with_perms", is_flag=True, help="With permissions.")
@_json
def ls(top: bytes, with_perms: bool, as_json: bool, **where: Any) -> None:
    """Print the tree at and below PATH; in colour, on a terminal.

    Permissions are part of JSON always, which is as `dump` prints it.
    """
    with Client(**where) as client:
        if as_json:
            _dump(trees.dump(client, top))
            return
        for node in client.walk(top):
            click.echo(_line(top, node, client if with_perms else None))


def _line(top: bytes, node: Node, client: Client | None) -> str:
    depth = 0 if node.path == top else node.path.count(b"/") - top.rstrip(b"/").count(b"/")
    name = node.path if depth == 0 else node.path.rpartition(b"/")[2]
    line = "  " * depth + click.style(_text(name), fg="blue", bold=bool(node.children))
    if node.value is None:
        line += click.style(" (not readable)", fg="red")
    elif node.value:
        line += " = " + click.style(f'"{_text(node.value)}"', fg="green")
    if client is not None:
        try:
            perms = ",".join(map(str, client.get_perms(node.path)))
        except XenStoreError:
            perms = "?"
        line += click.style(f"  ({perms})", dim=True)
    return line


@click.command(name="list")
@connecting
@click.argument("path", type=PATH, default="/", metavar="[PATH]")
@_json
def list_(path: bytes, as_json: bool, **where: Any) -> None:
    """Print the names of a node's children."""
    with Client(**where) as client:
        names = client.list(path)
    if as_json:
        _dump([_latin(name) for name in names])
    else:
        for name in names:
            click.echo(_text(name))


@click.command()
@connecting
@click.argument("paths", type=PATH, nargs=-1, required=True, metavar="PATH...")
@click.pass_context
def exists(ctx: click.Context, /, paths: tuple[bytes, ...], **where: Any) -> None:
    """Tell by the exit status whether there are all of these nodes: 0, else 3."""
    with Client(**where) as client:
        if not all(client.exists(path) for path in paths):
            ctx.exit(3)


@click.command()
@connecting
@click.argument("paths", type=PATH, nargs=-1, required=True, metavar="PATH...")
def rm(paths: tuple[bytes, ...], **where: Any) -> None:
    """Remove nodes, with all below them. All, or none.

    That a node does not exist is no error, where its parent does.
    """

    def step(tx: BlockingOperations) -> None:
        for path in paths:
            tx.delete(path)

    with Client(**where) as client:
        client.transact(step)


@click.command()
@connecting
@click.argument("path", type=PATH)
@click.argument("modes", nargs=-1, required=True, metavar="MODE...")
@click.option("-r", "--recurse", is_flag=True, help="And of all nodes below it.")
def chmod(path: bytes, modes: tuple[str, ...], recurse: bool, **where: Any) -> None:
    """Set the permissions of a node.

    A MODE is one of n (nothing), r (read), w (write), b (both), and a domain id, such as r5. The
    first names the owner, and what all others may do.
    """
    perms = [Permission.parse(os.fsencode(mode)) for mode in modes]
    SetPerms(path, perms).payload()  # wrong arguments end here

    def step(tx: BlockingOperations) -> None:
        for node in list(tx.walk(path)):
            tx.set_perms(node.path, perms)

    with Client(**where) as client:
        if recurse:
            client.transact(step)
        else:
            client.set_perms(path, perms)


@click.command()
@connecting
@click.argument("paths", type=PATH, nargs=-1, required=True, metavar="PATH...")
@click.option("--values", "with_values", is_flag=True, help="Read each node that an event names.")
@click.option("--depth", type=click.IntRange(0), help="How far below the paths (Xen 4.22).")
@click.option("-n", "--number", type=click.IntRange(1), help="End after so many events.")
@click.option("--timeout", type=click.FloatRange(0), help="Seconds to wait for each event.")
@_json
def watch(
    paths: tuple[bytes, ...],
    with_values: bool,
    depth: int | None,
    number: int | None,
    timeout: float | None,
    as_json: bool,
    **where: Any,
) -> None:
    """Print the path of each change, in a line; of each PATH once at first.

    With --json each line is an object with path, value (only with --values; null if there is none,
    or it may not be read) and overflow: true, if more changed than could be told, and all must be
    read again.
    """
    with Client(**where) as client, client.monitor() as monitor:
        for path in paths:
            monitor.watch(path, depth=depth)
        told = 0
        while number is None or told < number:
            event = monitor.get(timeout=timeout)
            told += 1
            shown: dict[str, Any] = {"path": _latin(event.path), "overflow": event.overflow}
            line = _text(event.path) + (" and all below" if event.overflow else "")
            if with_values:
                value, without = _value_at(client, event.path)
                shown["value"] = None if value is None else _latin(value)
                line += f" ({without})" if value is None else f' = "{_text(value)}"'
            click.echo(json.dumps(shown) if as_json else line)


def _value_at(client: Client, path: bytes) -> tuple[bytes | None, str]:
    """What a node has that an event names; or None, and why."""
    try:
        return (None if path.startswith(b"@") else client.read(path, None)), "gone"
    except AccessDenied:  # also of one that is gone, from a parent that may not be read
        return None, "not readable"


@click.command()
@connecting
@click.argument("path", type=PATH)
@click.argument("value", required=False)
@click.option("--timeout", type=click.FloatRange(0), help="Seconds; else for ever.")
def wait(path: bytes, value: str | None, timeout: float | None, **where: Any) -> None:
    """Wait until a node has the value VALUE; without VALUE, until it exists.

    Also for one that may not be read, which a line on the standard error tells: it may be made
    readable, and where its parent is not, the daemon says the same of one that does not exist.

    The exit status is 4 if that takes longer than the timeout.
    """
    wanted = None if value is None else os.fsencode(value)
    if path.startswith(b"@"):
        raise InvalidArgument(f"{path!r} has no value to wait for", path=path)
    end = None if timeout is None else monotonic() + timeout
    told = False
    with Client(**where) as client, client.watch(path) as changes:
        while True:
            event = changes.get(timeout=None if end is None else max(0.0, end - monotonic()))
            if not is_within(path, event.path) and not event.overflow:
                continue  # of a node below
            found, why = _value_at(client, path)
            if found is not None and wanted in (None, found):
                return
            if found is None and why != "gone" and not told:
                click.echo(f"xsproto: {_latin(path)} is {why}; waiting all the same", err=True)
                told = True


#: All of them.
NODE_COMMANDS: Final = (read, write, ls, list_, exists, rm, chmod, watch, wait)
