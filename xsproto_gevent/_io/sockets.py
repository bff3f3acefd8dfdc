"""The Unix socket of a XenStore daemon, for greenlets: no call on it waits."""

from __future__ import annotations

from _socket import socket  # monkey-patching replaces the one of the module `socket`
from socket import AF_UNIX, MSG_NOSIGNAL, SOCK_STREAM
from time import monotonic
from typing import Any, Final

import gevent

from xsproto.adapters.streams import Wrapper, own_socket
from xsproto.adapters.transport import SocketTransport
from xsproto.errors import connect_failed

from .transport import Transport

__all__ = ["adopt", "connect"]

# The seconds between two attempts to connect to a daemon whose backlog is full.
_PAUSE: Final = 0.01


def connect(path: str, timeout: float | None = None) -> Transport:
    """Connect to a daemon. Other greenlets run while it waits.

    Arguments:
        path: the path of the daemon's socket.
        timeout: the seconds to wait for a daemon that does not accept the connection; None for
            ever.

    Raises:
        ConnectFailed: nobody listens there, or accepts in time, or it may not be used.
    """
    sock = socket(AF_UNIX, SOCK_STREAM)
    try:
        sock.setblocking(False)
        ends = None if timeout is None else monotonic() + timeout
        while True:
            try:
                sock.connect(path)
                return Transport(SocketTransport(sock, path, MSG_NOSIGNAL))
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


def adopt(sock: Any, name: str) -> Transport:
    """Take over a connected stream.

    Arguments:
        sock: a plain socket or a `Wrapper`; see `xsproto.adapters.streams.Stream`.
        name: its name, for messages.
    """
    if isinstance(sock, Wrapper):
        return Transport(SocketTransport(sock, name, 0))
    own = own_socket(sock, socket)
    own.setblocking(False)
    return Transport(SocketTransport(own, name, MSG_NOSIGNAL))
