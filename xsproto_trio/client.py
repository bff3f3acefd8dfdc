"""The trio client."""

from __future__ import annotations

import _socket
import _thread
import io
import os
import posix
import select
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import trio

from xsproto.adapters.asynchronous import AsyncClientBase, Backend, open_connections
from xsproto.adapters.device_transport import SystemModules
from xsproto.adapters.discovery import locate

from ._connection import Connection, RequestConnection

__all__ = ["Client", "open_client"]

_MODULES = SystemModules(io, posix, select, _socket, _thread.start_new_thread)
_BACKEND = Backend(Connection, trio.sleep, socket, RequestConnection, _MODULES)


class Client(AsyncClientBase):
    """A connection to XenStore, as `open_client` makes it. Any number of tasks may use it at once.

    It belongs to the run of trio that opened it. Every call is a checkpoint, and may be cancelled.
    There is no background task: a task that waits for something reads for all. What comes while
    nobody waits for anything, such as events of watches, stays with the daemon until somebody does.
    """


@asynccontextmanager
async def open_client(
    unix_socket_path: str | os.PathLike[str] | None = None,
    xen_bus_path: str | os.PathLike[str] | None = None,
) -> AsyncIterator[Client]:
    """Connect to XenStore, for ``async with``, at whose end the client is closed.

    Arguments:
        unix_socket_path: the socket of a daemon.
        xen_bus_path: the XenBus device of a guest, where only limits of yours tell of a dead
            daemon. With neither: see `xsproto.adapters.discovery.locate`.

    Raises:
        ConnectFailed: nobody listens there, or it may not be used.
    """
    location = locate(unix_socket_path, xen_bus_path, os)
    client = Client(*await open_connections(location, _BACKEND))
    try:
        yield client
    finally:
        client.close()
