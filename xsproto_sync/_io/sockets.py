"""Connect to the Unix socket of a XenStore daemon, or adopt a stream, for threads that wait."""

from _socket import socket  # monkey-patching replaces the one of the module `socket`
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
from typing import Any, Final

from xsproto.adapters.streams import Wrapper, own_socket
from xsproto.errors import ConnectFailed, connect_failed

from .transport import PolledTransport, SocketTransport, WaitingTransport

__all__ = ["adopt", "connect"]

_TIMEVAL: Final = Struct("@ll")

# The bytes that a Unix socket must have room for, so that whole messages go out; see
# `PolledTransport`.
_ROOM: Final = 8192


def connect(path: str, timeout: float | None = None) -> SocketTransport:
    """Connect to a daemon.

    Arguments:
        path: the path of the daemon's socket.
        timeout: the seconds to wait for a daemon that does not accept the connection; None for
            ever.

    Raises:
        ConnectFailed: nobody listens there, or accepts in time, or it may not be used.
    """
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


def adopt(sock: Any, name: str) -> WaitingTransport:
    """Take over a connected stream.

    Arguments:
        sock: a plain socket or a `Wrapper`; see `xsproto.adapters.streams.Stream`.
        name: its name, for messages.

    Raises:
        ConnectFailed: there can be no more descriptors. The stream is closed.
    """
    stream, flags = own_socket(sock, socket), 0
    if not isinstance(stream, Wrapper):
        if stream.family == AF_UNIX and stream.getsockopt(SOL_SOCKET, SO_SNDBUF) >= _ROOM:
            stream.setsockopt(SOL_SOCKET, SO_RCVTIMEO, _TIMEVAL.pack(0, 0))
            stream.setblocking(True)
            return SocketTransport(stream, name)
        stream.setblocking(False)
        flags = MSG_NOSIGNAL
    try:
        return PolledTransport(stream, name, flags)
    except OSError as error:
        stream.close()
        raise ConnectFailed(f"cannot use {name}: {error.strerror}") from error
