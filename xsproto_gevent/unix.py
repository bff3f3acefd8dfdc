"""Unix sockets as the hub likes them: they never wait."""

from __future__ import annotations

import os
from _socket import socket  # not that of `socket`, which monkey-patching replaces
from socket import AF_UNIX, MSG_NOSIGNAL, SOCK_STREAM
from time import monotonic
from typing import Any, Final

import gevent

from xsproto.errors import InvalidArgument, InvalidType, connect_failed

from .transport import Callback, Transport

__all__ = ["READ", "WRITE", "UnixTransport", "connect", "socket_path"]

_DEFAULT_PATHS: Final = ("/var/run/xenstored/socket", "/run/xenstored/socket")

_READ_SIZE: Final = (65536,)
_SEND_FLAGS: Final = (MSG_NOSIGNAL,)

#: The events of the loop's ``io``.
READ: Final = 1
WRITE: Final = 2

#: Seconds after which a daemon is tried again that has accepted no connection.
_PAUSE: Final = 0.01


def socket_path(path: str | os.PathLike[str] | None = None) -> str:
    """The path of the daemon's socket.

    `path` itself, if given; else the environment's ``XENSTORED_PATH``; else ``socket`` in its
    ``XENSTORED_RUNDIR``; else the first of the default paths that exists, or the first of them.

    Raises:
        InvalidType, InvalidArgument: `path` is no path.
    """
    if path is not None:
        return _checked(path, "unix_socket_path")
    if path := os.environ.get("XENSTORED_PATH"):
        return _checked(path, "XENSTORED_PATH")
    if rundir := os.environ.get("XENSTORED_RUNDIR"):
        return _checked(os.path.join(rundir, "socket"), "XENSTORED_RUNDIR")
    return next(filter(os.path.exists, _DEFAULT_PATHS), _DEFAULT_PATHS[0])


def _checked(path: str | os.PathLike[str], origin: str) -> str:
    if not isinstance(path, str | os.PathLike):
        raise InvalidType(f"{origin} must be a path, not {type(path).__name__}: {path!r}")
    text = os.fspath(path)
    if not isinstance(text, str) or not text or "\0" in text:
        raise InvalidArgument(f"{origin} is no path: {text!r}")
    return text


class UnixTransport(Transport):
    """A connected socket; see `Transport`."""

    def __init__(self, sock: socket, path: str) -> None:
        self.path = path
        self._sock = sock
        self._send = sock.send
        self._recv = sock.recv
        loop: Any = gevent.get_hub().loop
        self._reader = loop.io(sock.fileno(), READ)
        self._writer = loop.io(sock.fileno(), WRITE)

    def write(self, data: bytes | memoryview, written: list[int]) -> None:
        """See `Transport`."""
        written += map(self._send, (data,), _SEND_FLAGS)

    def read(self, inbox: list[bytes]) -> None:
        """See `Transport`."""
        inbox += map(self._recv, _READ_SIZE)

    def attend(self, readable: Callback, writable: Callback) -> None:
        """See `Transport`."""
        for watcher, callback in (self._reader, readable), (self._writer, writable):
            if callback is None:
                watcher.stop()
            elif not watcher.active:
                watcher.start(callback)

    @property
    def attended(self) -> bool:
        """See `Transport`."""
        active: bool = self._reader.active
        return active

    def close(self) -> None:
        """See `Transport`."""
        # Before the descriptor, which the loop would look at otherwise.
        self._reader.close()
        self._writer.close()
        self._sock.close()

    def forget(self) -> None:
        """See `Transport`."""
        # The loop's own descriptor is still the parent's: what it looks at must not be changed.
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
