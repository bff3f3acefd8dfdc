"""Options and argument types that several commands share."""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any, Final, TypeVar

import click
from click.shell_completion import CompletionItem

from xsproto.errors import XenStoreError

from ..client import Client

__all__ = ["PATH", "connect", "json_option", "location_of", "location_options"]

F = TypeVar("F", bound=Callable[..., Any])

#: Seconds that the shell's completion of a path may take.
_COMPLETION_TIMEOUT: Final = 1.0

_OPTIONS: Final = {"unix_socket_path": "--socket", "xen_bus_path": "--xenbus"}


def location_options(command: F) -> F:
    """Add the options that say where XenStore is. The command passes them on to `connect`."""
    command = click.option(
        "--xenbus", "xen_bus_path", metavar="PATH", help="The XenBus device of a guest."
    )(command)
    return click.option(
        "--socket",
        "unix_socket_path",
        metavar="PATH",
        help="A daemon's socket. With neither --socket nor --xenbus, XenStore is found as Client() "
        "finds it.",
    )(command)


def location_of(location: dict[str, Any]) -> tuple[str | None, str | None]:
    """Return the paths of the socket and of the device that `location_options` gave.

    Raises:
        click.UsageError: both options are given, or one is empty.
    """
    for name, option in _OPTIONS.items():
        if location[name] == "":
            raise click.UsageError(f"{option} is empty")
    if None not in location.values():
        raise click.UsageError(f"{' and '.join(_OPTIONS.values())} are both given")
    return location["unix_socket_path"], location["xen_bus_path"]


def connect(location: dict[str, Any]) -> Client:
    """Return a client for what `location_options` gave.

    Raises:
        click.UsageError: both options are given, or one is empty.
        ConnectFailed: there is no daemon, or it may not be used.
    """
    return Client(*location_of(location))


class _Path(click.ParamType):  # type: ignore[type-arg]  # it is generic in newer versions only
    """The path of a node. The shell completes it from the store."""

    name = "path"

    def convert(self, value: Any, param: Any, ctx: Any) -> bytes:
        return value if isinstance(value, bytes) else os.fsencode(value)

    def shell_complete(self, ctx: Any, param: Any, incomplete: str) -> list[CompletionItem]:
        parent, slash, _ = incomplete.rpartition("/")
        if not slash or parent.endswith("/"):
            return []
        location = (ctx.params.get(name) for name in _OPTIONS)
        try:
            with Client(*location, timeout=_COMPLETION_TIMEOUT) as client:
                names = client.list(os.fsencode(parent or "/"))
        except (XenStoreError, ValueError):
            return []
        paths = (f"{parent}/{name.decode()}" for name in names)
        return [CompletionItem(path) for path in paths if path.startswith(incomplete)]


#: The type of an argument that is the path of a node.
PATH: Final = _Path()

#: The option ``--json``.
json_option: Final = click.option("--json", "as_json", is_flag=True, help="Print JSON.")
