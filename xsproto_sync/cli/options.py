"""Options and argument types that several commands share."""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any, Final, TypeVar

import click
from click.shell_completion import CompletionItem

from xsproto.errors import XenStoreError

from ..client import Client

__all__ = [
    "PATH",
    "connect",
    "is_located",
    "json_option",
    "location_of",
    "location_options",
]

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


def is_located(location: dict[str, Any]) -> bool:
    """Return whether the options of `location_options` say where XenStore is."""
    return any(location.get(name) is not None for name in _OPTIONS)


def location_of(location: dict[str, Any]) -> tuple[str | None, str | None]:
    """Return the paths of the socket and of the device that `location_options` gave.

    The options may stand before the name of the command, too. Those behind it count if there are
    any.

    Raises:
        click.UsageError: both options are given, or one is empty.
    """
    if not is_located(location):
        location = click.get_current_context().find_root().params
    for name, option in _OPTIONS.items():
        if location.get(name) == "":
            raise click.UsageError(f"{option} is empty")
    if all(location.get(name) for name in _OPTIONS):
        raise click.UsageError(f"{' and '.join(_OPTIONS.values())} are both given")
    return location.get("unix_socket_path"), location.get("xen_bus_path")


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
        params = ctx.params if is_located(ctx.params) else ctx.find_root().params
        location = (params.get(name) for name in _OPTIONS)
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
