"""The client of one hub."""

from __future__ import annotations

import os
from time import monotonic

from gevent.local import local

from xsproto.adapters.blocking import Backend, BlockingClientBase
from xsproto.adapters.deadlines import Clock
from xsproto.adapters.discovery import locate
from xsproto.clients.connection import DEFAULT, Timeout
from xsproto.clients.session import Session

from ._io.connection import Connection
from ._io.device import RequestConnection, open_watches
from ._io.sockets import connect

__all__ = ["Client"]


class _Deadline(local):
    """See `xsproto.adapters.deadlines.Deadline`."""

    time: float | None = None


def _clock(timeout: float | None) -> Clock:
    return Clock(timeout, monotonic, _Deadline())


def _connect(path: str, clock: Clock) -> Connection:
    return Connection(connect(path, clock.timeout), clock, Session())


_BACKEND = Backend(_clock, _connect, RequestConnection, open_watches)


class Client(BlockingClientBase[Connection]):
    """A connection to XenStore. Any number of greenlets may use it at once.

    It belongs to the hub of the thread that makes it, and lets others run while it waits. A
    `gevent.Timeout` or a kill may end any of its calls: the client is usable after it.

    Arguments:
        unix_socket_path: the socket of a daemon.
        xen_bus_path: the XenBus device of a guest. With neither: see
            `xsproto.adapters.discovery.locate`.
        timeout: seconds that each call may take, if it is not told otherwise, and connecting;
            None for ever. By default that is for ever on a socket, and
            `xsproto.adapters.device.TIMEOUT` on the device, where nothing else tells that the
            daemon is dead.

    It is connected at once, and is a context manager that closes it.

    Raises:
        ConnectFailed: nobody listens there, or it may not be used.
        LocalProtocolError: from any call, in another thread than the one it was made in.
    """

    def __init__(
        self,
        unix_socket_path: str | os.PathLike[str] | None = None,
        xen_bus_path: str | os.PathLike[str] | None = None,
        *,
        timeout: Timeout = DEFAULT,
    ) -> None:
        super().__init__(locate(unix_socket_path, xen_bus_path, os), timeout, _BACKEND)
