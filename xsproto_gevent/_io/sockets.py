"""Unix sockets as the hub likes them: they never wait."""

from __future__ import annotations

from _socket import socket  # not that of `socket`, which monkey-patching replaces
from socket import AF_UNIX, MSG_NOSIGNAL, SOCK_STREAM
from time import monotonic
from typing import Final

import gevent

from xsproto.adapters.transport import SocketTransport
from xsproto.errors import connect_failed

from .transport import Transport

__all__ = ["connect"]

#: Seconds after which a daemon is tried again that has accepted no connection.
_PAUSE: Final = 0.01


def connect(path: str, timeout: float | None = None) -> Transport:
    """Connect to the socket at `path`.

    Arguments:
        timeout: seconds to wait for a daemon that does not accept connections; None for ever.

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
                # Its backlog is full, and nothing tells when there is room again.
                if ends is not None and monotonic() >= ends:
                    raise
                gevent.sleep(_PAUSE)
    except OSError as error:
        sock.close()
        raise connect_failed(path, error) from error
    except BaseException:
        sock.close()
        raise
