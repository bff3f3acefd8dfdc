"""Unix sockets as the hub likes them: they never wait."""

from __future__ import annotations

from _socket import socket  # not that of `socket`, which monkey-patching replaces
from socket import AF_UNIX, MSG_NOSIGNAL, SOCK_STREAM
from time import monotonic
from typing import Final

import gevent

from xsproto.errors import connect_failed

from .transport import Transport

__all__ = ["UnixTransport", "connect"]

_READ_SIZE: Final = (65536,)
_SEND_FLAGS: Final = (MSG_NOSIGNAL,)

#: Seconds after which a daemon is tried again that has accepted no connection.
_PAUSE: Final = 0.01


class UnixTransport(Transport):
    """A connected socket; see `Transport`."""

    def __init__(self, sock: socket, path: str) -> None:
        super().__init__(path, sock.fileno())
        self._sock = sock
        self._send = sock.send
        self._recv = sock.recv

    def write(self, data: bytes | memoryview, written: list[int]) -> None:
        """See `Transport`."""
        written += map(self._send, (data,), _SEND_FLAGS)

    def read(self, inbox: list[bytes]) -> None:
        """See `Transport`."""
        inbox += map(self._recv, _READ_SIZE)

    def close(self) -> None:
        """See `Transport`."""
        super().close()
        self._sock.close()

    def forget(self) -> None:
        """See `Transport`."""
        self._sock.close()


def connect(path: str, timeout: float | None = None) -> UnixTransport:
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
                return UnixTransport(sock, path)
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
