"""Move a connection's bytes in steps that do not wait, and lose none to an interrupt.

A `Transport` is a connection's bytes, and anyone may bring one. Adapters use it through a
`ConnectionTransport`, which writes what an engine has to send, keeps what is not taken at once, and
reads. `SocketTransport` is the one of any connected stream socket. A call that cannot go on raises
``BlockingIOError``: no call waits.

**The recv idiom.** CPython runs the Python code of a signal handler in the main thread, between two
of its bytecode instructions, and that code may raise: `KeyboardInterrupt` on Ctrl-C, or whatever
exception a program has its handler raise. A thread that waits in ``recv`` must survive that (see
"Interrupts" in `xsproto.clients.session`). Written like this ::

    data = recv(65536)
    inbox.append(data)

there are instructions between the return of ``recv`` and the end of ``append``. An exception there
loses the bytes: the kernel has given them out, and no list has them. The next packet would then be
parsed from its middle, and no later answer could be trusted. Here one instruction does all of it ::

    inbox.extend(map(recv, (65536,)))

``map`` calls the C function ``recv``, and the list's own C code appends its result. The interpreter
looks for signals before it and after it, and never in between. Within ``recv`` it looks for them
only where the system call was interrupted; then nothing was received. So an interrupt finds the
bytes in the kernel or in the list, and the call's clean-up takes them from there.

The idiom has two conditions. What is mapped must be a C function, such as the method of a socket
that no Python code overrides: a function in Python could be interrupted within. And the list must
outlive the step. Everything else that reads is done in two steps: the caller waits for the
descriptor, which loses nothing, and then calls `ConnectionTransport.read_now` in a step of
bookkeeping, which an interrupt ends with the connection.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import Any, Final, Protocol

from ..client import ClientConnection
from ..clients.session import Session
from ..errors import ConnectionClosed

__all__ = [
    "READ_SIZE",
    "READ_SIZES",
    "ConnectionTransport",
    "SocketTransport",
    "Transport",
    "read_now",
]

#: The most bytes that one read takes from a connection.
READ_SIZE: Final = 65536
#: The arguments of one ``recv``, for the recv idiom.
READ_SIZES: Final = (READ_SIZE,)


class Transport(Protocol):
    """A connection's bytes, as a user hands them in.

    No call waits: one that does holds up all callers and their time limits. Calls never overlap.
    What a call raises, and a result that makes no sense, ends the connection.
    """

    def fileno(self) -> int:
        """Return the descriptor to wait for: to read and, after `send` could not go on, to write.

        It must be readable whenever `recv` has something to return.
        """

    def send(self, data: bytes | memoryview, /) -> int:
        """Write as much of `data` as can be written at once.

        Arguments:
            data: what to write, not empty.

        Returns:
            the number of bytes that were written.

        Raises:
            BlockingIOError: nothing can be written now.
            OSError: the connection is gone.
        """

    def recv(self, size: int, /) -> bytes:
        """Read the bytes that are there.

        Arguments:
            size: the most bytes to return.

        Returns:
            the bytes; empty at the end of the stream.

        Raises:
            BlockingIOError: there is nothing to read now.
            OSError: the connection is gone.
        """

    def close(self) -> None:
        """Close the descriptor. Idempotent."""


class ConnectionTransport(ABC):
    """A transport, as the connection of an adapter uses it.

    Arguments:
        path: the path of the socket or the device, or another name of the connection, for messages.
    """

    def __init__(self, path: str) -> None:
        self.path = path
        #: Whether more must be written once there is room.
        self.write_blocked = False

    @abstractmethod
    def fileno(self) -> int:
        """Return the descriptor to wait for, to read and to write; -1 once it is closed."""

    def wakeup_fds(self) -> tuple[int, ...]:
        """Return more descriptors that end a wait when they become readable."""
        return ()

    @abstractmethod
    def write(self, engine: ClientConnection) -> None:
        """Write what `engine` has to send, as far as that can be done at once.

        `write_blocked` then says whether there is more. An error is not reported here: the call
        that reads gets it as well, and gets the daemon's last answers first.

        Arguments:
            engine: whose messages go out. Nothing else may use it meanwhile.
        """

    @abstractmethod
    def read_now(self) -> bytes:
        """Read bytes that are there.

        Returns:
            the bytes; empty at the end of the stream.

        Raises:
            BlockingIOError: there is nothing to read now.
            OSError: the connection is gone.
        """

    @abstractmethod
    def close(self) -> None:
        """Close the descriptors. Idempotent."""

    def close_after_fork(self) -> None:
        """Close the descriptors in a forked child, whose parent goes on with the connection."""
        self.close()


class SocketTransport(ConnectionTransport):
    """A connected, non-blocking stream socket.

    Arguments:
        sock: the socket, of the adapter's own kind; it is closed with this.
        path: the path that it is connected to, or another name, for messages.
        flags: the flags of each ``send``, such as ``MSG_NOSIGNAL``.
    """

    def __init__(self, sock: Any, path: str, flags: int) -> None:
        super().__init__(path)
        self.sock = sock
        self._send: Callable[[bytes | memoryview, int], int] = sock.send
        self._recv: Callable[[int], bytes] = sock.recv
        self._flags = flags
        #: What an engine has handed out and the socket has not taken; nothing unless
        #: `write_blocked`.
        self.rest: bytes | memoryview = b""

    def fileno(self) -> int:
        """See `ConnectionTransport`."""
        fd: int = self.sock.fileno()
        return fd

    def write(self, engine: ClientConnection) -> None:
        """See `ConnectionTransport`."""
        if self.write_blocked:
            self.rest = self.send(self.rest)
            if self.rest:
                return
            self.write_blocked = False
        data = engine.data_to_send()
        if data:
            try:
                count = self._send(data, self._flags)
            except OSError as error:
                # A request that was not sent can be withdrawn, and its error can say so. If the
                # connection is gone, `read_now` will say why, after the daemon's last answers.
                engine.take_back(data)
                self.write_blocked = isinstance(error, BlockingIOError)
                return
            if count < len(data):
                self.rest = memoryview(data)[count:]
                self.write_blocked = True

    def send(self, data: bytes | memoryview) -> bytes | memoryview:
        """Write as much of `data` as can be written at once; return what is left.

        It changes nothing here, so that a thread may write while others use the transport.
        """
        while data:
            try:
                count = self._send(data, self._flags)
            except OSError:
                break  # if the connection is gone, `read_now` will say why
            if not count:
                break
            data = memoryview(data)[count:]
        return data

    def read_now(self) -> bytes:
        """See `ConnectionTransport`."""
        return self._recv(READ_SIZE)

    def close(self) -> None:
        """See `ConnectionTransport`."""
        self.sock.close()


def read_now(session: Session, transport: ConnectionTransport) -> bool:
    """Read what is there, and have the session act on it, as a part of a step of bookkeeping.

    Arguments:
        session: gets the bytes. An error of the transport ends its connection, with
            `ConnectionClosed`. Nothing else may use the session meanwhile.
        transport: what to read from.

    Returns:
        whether there may be more to read: False once the transport has nothing left.
    """
    try:
        data = transport.read_now()
    except BlockingIOError:
        return False
    except OSError as error:
        session.close(ConnectionClosed(f"{transport.path}: {error}"))
        return True
    session.received(data)
    return True
