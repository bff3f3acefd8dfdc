"""What gevent's adapter gives to the shared code; see `xsproto.adapters.backend`."""

from __future__ import annotations

import _socket
import fcntl
import io
import os
import posix
import select
from time import monotonic
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any, Final

import gevent
import gevent.event
import gevent.lock
from gevent.local import local
from gevent.monkey import get_original

from xsproto.adapters.blocking import BlockingBackend
from xsproto.adapters.deadlines import Clock
from xsproto.adapters.device_transport import RequestTransport, WatchTransport
from xsproto.adapters.streams import Stream, Wrapper, own_socket
from xsproto.adapters.transport import ConnectionTransport, SocketTransport
from xsproto.clients.connection import Timeout
from xsproto.clients.session import Session
from xsproto.errors import XenStoreError, connect_failed

from .connection import Connection

if TYPE_CHECKING:
    from xsproto.adapters.ssh import SshProcess

__all__ = ["BACKEND"]

# The originals. Monkey-patching makes greenlets of threads, and takes poll and epoll away.
_SELECT: Final = SimpleNamespace(poll=get_original("select", "poll"), POLLIN=select.POLLIN)
if hasattr(select, "EPOLLIN"):
    _SELECT.epoll, _SELECT.EPOLLIN = get_original("select", "epoll"), select.EPOLLIN
_SELECTORS: Final = SimpleNamespace(DefaultSelector=get_original("selectors", "DefaultSelector"))
# The class of the module `_socket` cannot accept.
_SOCKET: Final = SimpleNamespace(**vars(_socket) | {"socket": get_original("socket", "socket")})

# The seconds between two attempts to connect to a daemon whose backlog is full.
_PAUSE: Final = 0.01


class _Deadline(local):
    """The deadline of each greenlet; see `xsproto.adapters.deadlines.Deadline`."""

    time: float | None = None


class GeventBackend(BlockingBackend[Connection]):
    """Connections of greenlets. None of their sockets waits."""

    fcntl, io, os, posix = fcntl, io, os, posix
    select, selectors, socket = _SELECT, _SELECTORS, _SOCKET
    now = staticmethod(monotonic)
    start_thread = staticmethod(get_original("_thread", "start_new_thread"))
    new_deadline = _Deadline

    def new_lock(self) -> Any:
        """See `BlockingBackend`."""
        return gevent.lock.RLock()

    def new_event(self) -> Any:
        """See `BlockingBackend`."""
        return gevent.event.Event()

    def make_connection(
        self, transport: ConnectionTransport, clock: Clock, session: Session
    ) -> Connection:
        """See `BlockingBackend`."""
        return Connection(transport, clock, session)

    def connect(self, path: str, timeout: float | None) -> SocketTransport:
        """See `BlockingBackend`. Other greenlets run while it waits."""
        try:
            sock = _socket.socket(_socket.AF_UNIX, _socket.SOCK_STREAM)
        except OSError as error:
            raise connect_failed(path, error) from error
        try:
            sock.setblocking(False)
            ends = None if timeout is None else monotonic() + timeout
            while True:
                try:
                    sock.connect(path)
                    return SocketTransport(sock, path, _socket.MSG_NOSIGNAL)
                except BlockingIOError:
                    # The daemon's backlog is full. Nothing tells when there is room again.
                    if ends is not None and monotonic() >= ends:
                        raise
                    gevent.sleep(_PAUSE)
        except OSError as error:
            sock.close()
            raise connect_failed(path, error) from error
        except BaseException:
            sock.close()
            raise

    def open_stream(self, stream: Stream) -> SocketTransport:
        """See `BlockingBackend`."""
        if isinstance(stream.sock, Wrapper):
            return SocketTransport(stream.sock, stream.name, 0)
        own = own_socket(stream.sock, _socket.socket)
        own.setblocking(False)
        return SocketTransport(own, stream.name, _socket.MSG_NOSIGNAL)

    def open_requests(self, path: str) -> RequestTransport:
        """See `BlockingBackend`."""
        return RequestTransport(path, self)

    def open_watches(self, path: str) -> WatchTransport:
        """See `BlockingBackend`."""
        return WatchTransport(path, self)

    def open_ssh(self, where: str, timeout: Timeout) -> SshProcess:
        """See `BlockingBackend`. A thread of the hub's pool waits, and other greenlets run."""
        from xsproto.adapters.ssh import start_ssh  # most programs need none of it

        process = start_ssh(where, self, timeout=timeout)
        try:
            error = gevent.get_hub().threadpool.apply(_connect, (process,))
        except BaseException:
            process.kill()  # which ends the wait of the thread, too
            raise
        if error is not None:
            raise error
        return process


def _connect(process: SshProcess) -> XenStoreError | None:
    """Return the error: the hub would print what its thread raises."""
    try:
        process.connect()
    except XenStoreError as error:
        return error
    return None


#: The one backend.
BACKEND: Final = GeventBackend()
