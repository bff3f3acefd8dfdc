"""The Unix socket of a XenStore daemon, for threads that wait."""

from _socket import socket  # monkey-patching replaces the one of the module `socket`
from socket import (
    AF_UNIX,
    MSG_DONTWAIT,
    MSG_NOSIGNAL,
    SHUT_RDWR,
    SO_SNDTIMEO,
    SOCK_STREAM,
    SOL_SOCKET,
)
from struct import Struct
from typing import Final

from xsproto.adapters.transport import READ_SIZE
from xsproto.errors import connect_failed

from .transport import Transport

__all__ = ["UnixTransport"]

_TIMEVAL: Final = Struct("@ll")

_READ_SIZES: Final = (READ_SIZE,)
_SEND_FLAGS: Final = (MSG_DONTWAIT | MSG_NOSIGNAL,)
_RECV_NOW: Final = (MSG_DONTWAIT,)


class UnixTransport(Transport):
    """A connected Unix socket."""

    def __init__(self, path: str, timeout: float | None = None) -> None:
        """Connect to a daemon.

        Arguments:
            path: the path of the daemon's socket.
            timeout: the seconds to wait for a daemon that does not accept the connection; None for
                ever.

        Raises:
            ConnectFailed: nobody listens there, or accepts in time, or it may not be used.
        """
        super().__init__(path)
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
        except OSError as error:
            sock.close()
            raise connect_failed(path, error) from error
        except BaseException:
            sock.close()
            raise
        self._sock = sock
        self._send = sock.send
        self._recv = sock.recv

    def fileno(self) -> int:
        """See `Transport`."""
        return self._sock.fileno()

    def write(self, data: bytes | memoryview, written: list[int]) -> None:
        """See `Transport`."""
        written += map(self._send, (data,), _SEND_FLAGS)

    def read(self, inbox: list[bytes]) -> None:
        """See `Transport`."""
        if self.patched():
            self.wait(None, False)
        inbox += map(self._recv, _READ_SIZES)

    def read_now(self, inbox: list[bytes]) -> None:
        """See `Transport`."""
        inbox += map(self._recv, _READ_SIZES, _RECV_NOW)

    def shutdown(self) -> None:
        """See `Transport`."""
        try:
            self._sock.shutdown(SHUT_RDWR)
        except OSError:
            pass  # the daemon has ended it before

    def close(self) -> None:
        """See `Transport`. It must not shut the connection down: a forked child calls it, too."""
        self._sock.close()
