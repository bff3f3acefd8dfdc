"""The Unix socket of a XenStore daemon."""

from _socket import socket  # not that of `socket`, which monkey-patching replaces
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
    """A connected Unix socket; see `Transport`."""

    def __init__(self, path: str, timeout: float | None = None) -> None:
        """Connect to the socket at `path`.

        Arguments:
            timeout: seconds to wait for a daemon that does not accept connections; None for ever.

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
                # Of a Unix socket, this alone limits `connect` (0 would be for ever). All that is
                # written later has `MSG_DONTWAIT`.
                seconds, rest = divmod(max(1, round(timeout * 1_000_000)), 1_000_000)
                sock.setsockopt(SOL_SOCKET, SO_SNDTIMEO, _TIMEVAL.pack(seconds, rest))
            sock.connect(path)
            # A signal while the backlog is full: Python takes the wait for over, though it is not.
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
            pass  # the daemon was first

    def close(self) -> None:
        """See `Transport`; nothing more than that: a forked child closes only its copy."""
        self._sock.close()
