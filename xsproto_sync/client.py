"""The blocking, thread-safe client."""

from __future__ import annotations

import os
import threading

from xsproto.adapters.blocking import Backend, BlockingClientBase
from xsproto.adapters.deadlines import Clock
from xsproto.adapters.device import DeviceSession
from xsproto.adapters.discovery import locate
from xsproto.clients.connection import DEFAULT, Timeout
from xsproto.clients.session import Session

from ._io import deadlines
from ._io.connection import Connection
from ._io.device import RequestConnection
from ._io.device_transport import WatchTransport
from ._io.sockets import UnixTransport

__all__ = ["Client"]


def _connect(path: str, clock: Clock) -> Connection:
    return Connection(UnixTransport(path, clock.timeout), clock, Session())


def _open_watches(path: str, clock: Clock) -> Connection:
    return Connection(WatchTransport(path), clock, DeviceSession())


_BACKEND = Backend(deadlines.Clock, _connect, RequestConnection, _open_watches)


class Client(BlockingClientBase[Connection]):
    """A connection to XenStore. Any number of threads may use it at once.

    Arguments:
        unix_socket_path: the socket of a daemon.
        xen_bus_path: the XenBus device of a guest. With neither: see
            `xsproto.adapters.discovery.locate`.
        timeout: seconds that each call may take, if it is not told otherwise, and connecting;
            None for ever. By default that is for ever on a socket, and
            `xsproto.adapters.device.TIMEOUT` on the device, where nothing else tells that the
            daemon is dead.
        reader: have a background thread read, so that watch events are taken from the daemon even
            while nobody waits for one.

    It is connected at once, and is a context manager that closes it. Do not use it in a signal
    handler that may interrupt a call of the same client: it would wait for itself, for ever.

    Raises:
        ConnectFailed: nobody listens there, or it may not be used.
    """

    def __init__(
        self,
        unix_socket_path: str | os.PathLike[str] | None = None,
        xen_bus_path: str | os.PathLike[str] | None = None,
        *,
        timeout: Timeout = DEFAULT,
        reader: bool = False,
    ) -> None:
        self._opening = threading.Lock()
        super().__init__(locate(unix_socket_path, xen_bus_path, os), timeout, _BACKEND)
        if reader:
            read = self._watch_connection().read_for_all
            thread = threading.Thread(target=read, name="xsproto reader", daemon=True)
            try:
                thread.start()
            except BaseException:
                self.close()  # it may be running already
                raise

    # For foreign loops

    def fileno(self) -> int:
        """A descriptor to poll: readable while there is something to `pump`, or an event to get.

        It stays the same until `close`, and is not the connection's own; where the daemon ends the
        connection, it stays readable (see `closed`). -1 after `close`.

        Raises:
            NotSupported: this system has no epoll.
        """
        return self._watch_connection().fileno()

    def pump(self) -> None:
        """Read what is there, without waiting: events go to the queues of their watches.

        Take them with ``get(timeout=0)``. Raises nothing over the connection's end: the next
        call does.
        """
        self._watch_connection().pump()
