"""The asyncio client."""

from __future__ import annotations

import asyncio
import os
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from xsproto.loops import LoopClient, SocketTransport, connect
from xsproto.session import Session

from .lane import Lane
from .location import socket_path

__all__ = ["Client", "open_client"]


class Client(LoopClient):
    """A connection to XenStore, as `open_client` makes it. Any number of tasks may use it at once.

    It belongs to the event loop that opened it. Every call may be cancelled, as ``asyncio.timeout``
    does. There is no background task: the loop reads by itself, so that events of watches are taken
    from the daemon even while nobody waits for one.
    """


@asynccontextmanager
async def open_client(
    unix_socket_path: str | os.PathLike[str] | None = None,
) -> AsyncIterator[Client]:
    """Connect to a XenStore daemon, for ``async with``, at whose end the client is closed.

    Arguments:
        unix_socket_path: the daemon's socket; None: see `xsproto_sync.unix.socket_path`.

    Raises:
        ConnectFailed: nobody listens there, or it may not be used.
    """
    path = socket_path(unix_socket_path)
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as sock:
        sock.setblocking(False)
        await connect(sock, path, asyncio.sleep)
        client = Client(Lane(SocketTransport(sock, path, socket.MSG_NOSIGNAL), Session()))
        try:
            yield client
        finally:
            client.close()
