"""What the adapter of threads gives to the shared code; see `xsproto.adapters.backend`."""

from __future__ import annotations

import threading
from _socket import socket  # monkey-patching replaces the one of the module `socket`
from collections.abc import Callable
from socket import (
    AF_UNIX,
    MSG_NOSIGNAL,
    SO_RCVTIMEO,
    SO_SNDBUF,
    SO_SNDTIMEO,
    SOCK_STREAM,
    SOL_SOCKET,
)
from struct import Struct
from typing import TYPE_CHECKING, Any, Final

from xsproto.adapters.blocking import BlockingBackend
from xsproto.adapters.deadlines import Clock
from xsproto.adapters.streams import Stream, Wrapper, own_socket
from xsproto.clients.session import Session
from xsproto.errors import ConnectFailed, connect_failed

from .connection import Connection
from .device_transport import RequestTransport, WatchTransport
from .system import System
from .transport import PolledTransport, SocketTransport, WaitingTransport

if TYPE_CHECKING:
    from xsproto.clients.reconnect import ReconnectPolicy

__all__ = ["BACKEND"]

_TIMEVAL: Final = Struct("@ll")

# The bytes that a Unix socket must have room for, so that whole messages go out; see
# `PolledTransport`.
_ROOM: Final = 8192


class _Deadline(threading.local):
    """The deadline of each thread; see `xsproto.adapters.deadlines.Deadline`."""

    time: float | None = None


class ThreadBackend(System, BlockingBackend[Connection]):
    """Connections of threads."""

    new_deadline = _Deadline

    def make_connection(
        self, transport: WaitingTransport, clock: Clock, session: Session
    ) -> Connection:
        """See `BlockingBackend`."""
        return Connection(transport, clock, session)

    def new_lock(self) -> Any:
        """See `BlockingBackend`."""
        return threading.RLock()

    def new_event(self) -> threading.Event:
        """See `BlockingBackend`."""
        return threading.Event()

    def make_reconnecting(
        self,
        connection: Connection,
        policy: ReconnectPolicy,
        open_next: Callable[[float | None], Connection],
        clock: Clock,
        **on_device: Any,
    ) -> Any:
        """See `BlockingBackend`."""
        from .reconnecting import ReconnectingConnection  # most programs need none of it

        return ReconnectingConnection(connection, policy, open_next, self, clock, **on_device)

    def connect(self, path: str, timeout: float | None) -> SocketTransport:
        """See `BlockingBackend`."""
        try:
            sock = socket(AF_UNIX, SOCK_STREAM)
        except OSError as error:
            raise connect_failed(path, error) from error
        sock.setblocking(True)  # whatever `socket.setdefaulttimeout` says
        try:
            if timeout is not None:
                # Nothing else limits the `connect` of a Unix socket. 0 would be for ever. Later
                # writes never wait: they have MSG_DONTWAIT.
                seconds, rest = divmod(max(1, round(timeout * 1_000_000)), 1_000_000)
                sock.setsockopt(SOL_SOCKET, SO_SNDTIMEO, _TIMEVAL.pack(seconds, rest))
            sock.connect(path)
            # If a signal comes while the backlog is full, Python returns from `connect` as if it
            # had connected. This raises unless it has.
            sock.getpeername()
            return SocketTransport(sock, path)
        except OSError as error:
            sock.close()
            raise connect_failed(path, error) from error
        except BaseException:
            sock.close()
            raise

    def open_stream(self, stream: Stream) -> WaitingTransport:
        """See `BlockingBackend`."""
        own, flags = own_socket(stream.sock, socket), 0
        if not isinstance(own, Wrapper):
            if own.family == AF_UNIX and own.getsockopt(SOL_SOCKET, SO_SNDBUF) >= _ROOM:
                own.setsockopt(SOL_SOCKET, SO_RCVTIMEO, _TIMEVAL.pack(0, 0))
                own.setblocking(True)
                return SocketTransport(own, stream.name)
            own.setblocking(False)
            flags = MSG_NOSIGNAL
        try:
            return PolledTransport(own, stream.name, flags)
        except OSError as error:
            own.close()
            raise ConnectFailed(f"cannot use {stream.name}: {error.strerror}") from error

    def open_requests(self, path: str) -> RequestTransport:
        """See `BlockingBackend`."""
        return RequestTransport(path, self)

    def open_watches(self, path: str) -> WatchTransport:
        """See `BlockingBackend`."""
        return WatchTransport(path, self)


#: The one backend.
BACKEND: Final = ThreadBackend()
