"""The asyncio client."""

from __future__ import annotations

import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

from xsproto.adapters.asynchronous import AsyncClientBase
from xsproto.clients.reconnect import ReconnectPolicy

from ._backend import BACKEND
from ._bridge import Stream

__all__ = ["Client", "open_client"]


class Client(AsyncClientBase):
    """A client of XenStore, which `open_client` makes. Any number of tasks may use it at once.

    ::

        async with open_client() as client:
            await client.write(b"/tool/example", b"hello")

    =============  ==============================================================================
    nodes          `read`, `write`, `list`, `exists`, `delete`, `mkdir`, `walk`, `read_many`,
                   `get_perms`, `set_perms`
    watches        `watch`, `monitor`, `wait`, `reset_watches`
    transactions   `transaction`, `transact`
    text, numbers  `read_text`, `write_text`, `read_int`
    trees          `read_tree`, `write_tree`
    the client     `close`, `closed`
    domains        `domains`, `watch_domains`, `get_domain_path`, `is_domain_introduced`,
                   `introduce_domain`, `release_domain`, `resume_domain`, `set_target`
    devices        `device`
    the daemon     `control`, `get_feature`, `set_feature`, `get_quota`, `set_quota`
    =============  ==============================================================================

    It belongs to the event loop that opened it. Any call may be cancelled, as ``asyncio.timeout``
    does. There is no background task: the loop itself reads, so that watch events are taken from
    the daemon even while no task waits for one.
    """


@asynccontextmanager
async def open_client(
    unix_socket_path: str | os.PathLike[str] | None = None,
    xen_bus_path: str | os.PathLike[str] | None = None,
    *,
    sock: Any = None,
    transport: Stream | None = None,
    host: str | None = None,
    reconnect: bool | ReconnectPolicy = False,
) -> AsyncIterator[Client]:
    """Connect to XenStore, for ``async with``, whose end closes the client.

    Arguments:
        unix_socket_path (str | os.PathLike[str] | None): the socket of a daemon; or another host,
            as ``ssh://[user@]host[:port][/path/of/socket]``.
        xen_bus_path (str | os.PathLike[str] | None): the XenBus device of a guest, where only time
            limits of yours tell of a dead daemon.
        sock (socket.socket | None): a connected stream socket of any kind, TLS included. The client
            takes it over, and closes it.
        transport (tuple[StreamReader, StreamWriter] | None): any other byte stream, as a reader and
            a writer, which the client takes over as well. A task carries its bytes, and closes it
            soon after the client's end.
        host (str | None): another host to reach by ssh, as ``[user@]host``, within
            `xsproto.adapters.ssh.CONNECT_TIMEOUT` seconds. If none of these is given,
            `xsproto.adapters.discovery.locate` finds XenStore.
        reconnect (bool | ReconnectPolicy): whether to connect again when the daemon has ended the
            connection, as after its restart; or when.

    Raises:
        ConnectFailed: no daemon listens there, or this process may not connect.
        InvalidArgument, InvalidType: `sock` or `transport` is none that is connected; or more than
            one place is given.
    """
    place = BACKEND.find(unix_socket_path, xen_bus_path, sock, transport, host)
    client = Client(*await BACKEND.open_connections(place, reconnect))
    try:
        yield client
    finally:
        client.close()
