"""Move a connection's bytes in steps that never wait, and lose none to an interrupt.

A `Transport` is a connection's bytes. `write_now` and `read_now` move them between a transport and
a session. Nothing here waits: an adapter calls when the descriptor is ready, and a call of a
transport that cannot go on raises ``BlockingIOError``.

**The recv idiom.** The transports of clients receive bytes like this::

    inbox += map(recv, (65536,))

and not like this::

    data = recv(65536)
    inbox.append(data)

Both put what ``recv`` returns at the end of a list. They differ when a signal comes. CPython runs
the Python code of a signal handler in the main thread, between two of its bytecode instructions,
and that code may raise: `KeyboardInterrupt` on Ctrl-C, or whatever exception a program has its
handler raise. In the second form there are instructions between the return of ``recv`` and the end
of ``append``. An exception there loses the bytes: the kernel has given them out, and no list has
them. The next packet would then be parsed from its middle, and no later answer could be trusted.

In the first form one instruction does all of it. ``map`` calls the C function ``recv``, and the
list's own C code appends its result. The interpreter looks for signals before it and after it, and
never in between. Within ``recv`` it looks for them only where the system call was interrupted; then
nothing was received. So an interrupt finds the bytes in the kernel or in the list, and a session
acts on the list when it is used next (`Session.received`, `Session.enter`).

The same holds for what went out. ``written += map(send, (data,))`` adds the number of bytes that
were sent to a list. If it were lost, those bytes would be sent twice. Several calls can be made in
one step, as in ``inbox += map(read, fds, sizes)``: where one of them raises, the results of those
before it stay in the list. Other results that must not be lost are kept the same way: a descriptor
that was opened, an event that was taken from its queue.

The idiom has two conditions. What is mapped must be a C function, such as the method of a socket
that no Python code overrides: a function in Python could be interrupted within. And the list must
outlive the step: it belongs to the caller, or to an object that the clean-up can reach.
"""

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
        path: the path of the socket or the device, for messages.
    """

    path: str

    def fileno(self) -> int:
        """Return the descriptor to wait for, to read and to write; -1 once it is closed."""

    def write(self, data: bytes | memoryview, written: list[int]) -> None:
        """Write as much of `data` as can be written at once.

        Arguments:
            data: what to write, not empty.
            written: gets the number of bytes that were written appended, in the step that wrote
                them.

        Raises:
            BlockingIOError: nothing can be written now; nothing was appended.
            OSError: the connection is gone.
        """

    def read_now(self, inbox: list[bytes]) -> None:
        """Read the bytes that are there.

        Arguments:
            inbox: gets them appended, in the step that read them, in one element or several. An
                empty element is the end of the stream.

        Raises:
            BlockingIOError: there is nothing more to read.
            OSError: the connection is gone.
        """

    def close(self) -> None:
        """Close the descriptors. Idempotent."""

    def close_after_fork(self) -> None:
        """Close the descriptors in a forked child, whose parent goes on with the connection."""


class SocketTransport:
    """A connected, non-blocking socket as a `Transport`.

    Arguments:
        sock: the socket, of the adapter's own kind; it is closed with this.
        path: the path that it is connected to, for messages.
        flags: the flags of each ``send``, such as ``MSG_NOSIGNAL``.
    """

    def __init__(self, sock: Any, path: str, flags: int) -> None:
        self.path = path
        self.fileno: Callable[[], int] = sock.fileno
        self.close: Callable[[], None] = sock.close
        self.close_after_fork: Callable[[], None] = sock.close
        self._send = sock.send
        self._recv = sock.recv
        self._flags = (flags,)

    def write(self, data: bytes | memoryview, written: list[int]) -> None:
        """See `Transport`."""
        written += map(self._send, (data,), self._flags)

    def read_now(self, inbox: list[bytes]) -> None:
        """See `Transport`."""
        inbox += map(self._recv, _READ_SIZES)


def write_now(session: Session, transport: Any) -> bool:
    """Write what the session has to send, as far as the transport takes it now.

    An error of the transport is not reported here: the call that reads gets it as well, and gets
    the daemon's last answers first.

    Arguments:
        session: whose requests go out. Nothing else may use it meanwhile.
        transport: what to write to, with the method `Transport.write`.

    Returns:
        whether more must be written once there is room.
    """
    engine, write = session.engine, transport.write
    while data := engine.outgoing():
        written = engine.written
        try:
            write(data, written)
        except BlockingIOError:
            return True
        except OSError:
            break  # `read_now` will say why, after the last answers
        # The whole of a `bytes` is all that the window lets out now: asking again would cost a call
        # for each request. A memoryview is the rest of an earlier batch, and more may follow it.
        if written[-1] == len(data) and data.__class__ is bytes:
            break
    return False


def read_now(session: Session, transport: Transport) -> bool:
    """Read what is there, and have the session act on it.

    Arguments:
        session: gets the bytes. An error of the transport ends its connection, with
            `ConnectionClosed`. Nothing else may use the session meanwhile.
        transport: what to read from.

    Returns:
        whether there may be more to read: False once the transport has nothing left, also if it has
        read something before.
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
