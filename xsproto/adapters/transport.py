"""A connection's bytes, in steps that never wait, and how a session takes and gives them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final, Protocol

from ..clients.session import Session
from ..errors import ConnectionClosed

__all__ = ["READ_SIZE", "SocketTransport", "Transport", "read_now", "write_now"]

#: The most bytes that one read takes from a connection.
READ_SIZE: Final = 65536

_READ_SIZES: Final = (READ_SIZE,)


class Transport(Protocol):
    """A connection's bytes. No call waits.

    Attributes:
        path: where it leads to.
    """

    path: str

    def fileno(self) -> int:
        """The descriptor that becomes readable, and writable; -1 once closed."""

    def write(self, data: bytes | memoryview, written: list[int]) -> None:
        """Write what can be written at once; add how much it was to `written`.

        Raises:
            BlockingIOError: nothing can be written now.
            OSError: the connection is gone.
        """

    def read_now(self, inbox: list[bytes]) -> None:
        """Add the bytes that are there to `inbox`; an empty element is the end of the stream.

        Raises:
            BlockingIOError: there is nothing to read.
            OSError: the connection is gone.
        """

    def close(self) -> None:
        """Give the descriptor back. Idempotent."""

    def close_after_fork(self) -> None:
        """As `close`, in a forked child."""


class SocketTransport:
    """A connected, non-blocking socket; see `Transport`.

    Arguments:
        sock: the socket, of the adapter's own kind.
        path: where it leads to.
        flags: for ``send``.
    """

    def __init__(self, sock: Any, path: str, flags: int) -> None:
        self.path = path
        self.fileno: Callable[[], int] = sock.fileno
        self.close: Callable[[], None] = sock.close
        self.close_after_fork: Callable[[], None] = sock.close
        self._send = sock.send
        self._recv = sock.recv
        self._flags = (flags,)

    # In one step each, so that an interrupt, where a loop has any, cannot lose what came of it.

    def write(self, data: bytes | memoryview, written: list[int]) -> None:
        """See `Transport`."""
        written += map(self._send, (data,), self._flags)

    def read_now(self, inbox: list[bytes]) -> None:
        """See `Transport`."""
        inbox += map(self._recv, _READ_SIZES)


def write_now(session: Session, transport: Any) -> bool:
    """Write what is taken now of that which `session` has to say.

    Arguments:
        transport: has `Transport.write`.

    Returns:
        whether there is more, which must wait until there is room.
    """
    engine, write = session.engine, transport.write
    while data := engine.outgoing():
        written = engine.written
        try:
            write(data, written)
        except BlockingIOError:
            return True
        except OSError:
            break  # who reads learns the reason, after the last replies
        if written[-1] == len(data) and data.__class__ is bytes:
            break
    return False


def read_now(session: Session, transport: Transport) -> bool:
    """Have `session` act on what has come; on the end of the connection, too.

    Returns:
        whether anything had come.
    """
    there = True
    try:
        transport.read_now(session.inbox)
    except BlockingIOError:
        there = False
    except OSError as error:
        session.close(ConnectionClosed(f"{transport.path}: {error}"))
    session.received()
    return there
