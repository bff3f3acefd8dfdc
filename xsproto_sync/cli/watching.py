"""The commands that wait for changes: ``watch`` and ``wait``."""

from __future__ import annotations

import json
import os
from time import monotonic
from typing import Any

import click

from xsproto.errors import AccessDenied, InvalidArgument
from xsproto.paths import is_within

from ..client import Client
from .options import PATH, connect, json_option, location_options
from .output import latin, printable

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
            fields: dict[str, Any] = {"path": latin(event.path), "overflow": event.overflow}
            line = printable(event.path) + (" and all below" if event.overflow else "")
            if with_values:
                value, why = _value_at(client, event.path)
                fields["value"] = None if value is None else latin(value)
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
@click.argument("path", type=PATH)
@click.argument("value", required=False)
@click.option("--timeout", type=click.FloatRange(0), help="Seconds to wait. Default: for ever.")
def wait(path: bytes, value: str | None, timeout: float | None, **location: Any) -> None:
    """Wait until a node has the value VALUE. Without VALUE, wait until it exists.

    A node that may not be read is waited for as well, because it may become readable; a line on
    standard error says so. The daemon gives the same answer for a missing node whose parent may not
    be read.

    The exit status is 4 if the timeout passes.
    """
    wanted = None if value is None else os.fsencode(value)
    if path.startswith(b"@"):
        raise InvalidArgument(f"{path!r} has no value to wait for", path=path)
    deadline = None if timeout is None else monotonic() + timeout
    warned = False
    with connect(location) as client, client.watch(path) as changes:
        while True:
            left = None if deadline is None else max(0.0, deadline - monotonic())
            event = changes.get(timeout=left)
            if not is_within(path, event.path) and not event.overflow:
                continue  # a node below changed
            found, why = _value_at(client, path)
            if found is not None and wanted in (None, found):
                return
            if found is None and why != "gone" and not warned:
                click.echo(f"xsproto: {latin(path)} is {why}; waiting all the same", err=True)
                warned = True
