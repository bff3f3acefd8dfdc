"""The commands that wait for changes: ``watch`` and ``wait``."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import click

from xsproto.errors import AccessDenied, InvalidArgument

from .._json_tree import to_json
from ..client import Client
from .options import PATH, connect, json_option, location_options
from .output import printable

if TYPE_CHECKING:
    from xsproto.clients.blocking import View

__all__ = ["wait", "watch"]


@click.command()
@location_options
@click.argument("paths", type=PATH, nargs=-1, required=True, metavar="PATH...")
@click.option("--values", "with_values", is_flag=True, help="Print the value of the changed node.")
@click.option("--depth", type=click.IntRange(0), help="Levels below PATH to watch (Xen 4.22).")
@click.option("-n", "--number", type=click.IntRange(1), help="Exit after this many events.")
@click.option("--timeout", type=click.FloatRange(0), help="Seconds to wait for each event.")
@json_option
def watch(
    paths: tuple[bytes, ...],
    with_values: bool,
    depth: int | None,
    number: int | None,
    timeout: float | None,
    as_json: bool,
    **location: Any,
) -> None:
    """Print a line with the path of each node that changes; at first each PATH once.

    With --json each line is an object with `path`, `overflow` and, with --values, `value`. `value`
    is null if the node does not exist or may not be read. `overflow` is true if there were too many
    changes to report: read everything below the path again.
    """
    with connect(location) as client, client.monitor() as monitor:
        for path in paths:
            monitor.watch(path, depth=depth)
        printed = 0
        while number is None or printed < number:
            event = monitor.get(timeout=timeout)
            printed += 1
            fields: dict[str, Any] = {"path": to_json(event.path), "overflow": event.overflow}
            line = printable(event.path) + (" and all below" if event.overflow else "")
            if with_values:
                value, why = _value_at(client, event.path)
                fields["value"] = None if value is None else to_json(value)
                line += f" ({why})" if value is None else f' = "{printable(value)}"'
            click.echo(json.dumps(fields) if as_json else line)


def _value_at(client: Client, path: bytes) -> tuple[bytes | None, str]:
    """Return the value of the node that an event names; or None, and in words why."""
    try:
        return (None if path.startswith(b"@") else client.read(path, None)), "gone"
    except AccessDenied:  # also for a missing node, if its parent may not be read
        return None, "not readable"


@click.command()
@location_options
@click.argument("terms", type=PATH, nargs=-1, required=True, metavar="PATH [VALUE]...")
@click.option("--gone", is_flag=True, help="Wait until the nodes do not exist.")
@click.option("--any", "any_of", is_flag=True, help="Wait for one of several PATHs, not for all.")
@click.option("--timeout", type=click.FloatRange(0), help="Seconds to wait. Default: for ever.")
def wait(
    terms: tuple[bytes, ...], gone: bool, any_of: bool, timeout: float | None, **location: Any
) -> None:
    """Wait until a node has one of the VALUEs. Without VALUE, wait until it exists.

    The first argument, and each one that begins with a slash, is a PATH. The others are values of
    the PATH before them. PATH=VALUE is another way to write a value, also one that begins with a
    slash. With several PATHs, wait until all of them are as wanted at once.

    A node that may not be read is waited for as well, because it may become readable; a line on
    standard error says so. The daemon gives the same answer for a missing node whose parent may not
    be read.

    The exit status is 4 if the timeout passes.
    """
    wanted = _wanted(terms)
    if gone and any(wanted.values()):
        raise click.UsageError("with --gone there are no values to wait for")
    unreadable: set[bytes] = set()

    def is_as_wanted(view: View, path: bytes) -> bool:
        try:
            value = view.read(path, None)
        except AccessDenied:  # also for a missing node, if its parent may not be read
            if path not in unreadable:
                unreadable.add(path)
                click.echo(
                    f"xsproto: {printable(path)} is not readable; waiting all the same", err=True
                )
            return False
        if gone or value is None:
            return gone and value is None
        return not wanted[path] or value in wanted[path]

    def condition(view: View) -> bool:
        return (any if any_of else all)(is_as_wanted(view, path) for path in wanted)

    with connect(location) as client:
        client.wait(condition, timeout=timeout)


def _wanted(terms: tuple[bytes, ...]) -> dict[bytes, set[bytes]]:
    """Return the values that are wanted, by path; none stand for any."""
    wanted: dict[bytes, set[bytes]] = {}
    path = b""
    for term in terms:
        if wanted and not term.startswith(b"/"):
            wanted[path].add(term)
            continue
        path, equals, value = term.partition(b"=")
        if path.startswith(b"@"):
            raise InvalidArgument(f"{path!r} has no value to wait for", path=path)
        wanted.setdefault(path, set())
        if equals:
            wanted[path].add(value)
    return wanted
