"""A connection's bytes, and how a thread waits for them."""

from __future__ import annotations

import select
from _socket import socketpair  # monkey-patching replaces the one of the module `socket`
from abc import abstractmethod
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from socket import MSG_DONTWAIT, MSG_NOSIGNAL, SHUT_RDWR
from types import BuiltinFunctionType
from typing import Any, Final

from xsproto.adapters import transport
from xsproto.adapters.transport import READ_SIZE, ConnectionTransport
from xsproto.client import ClientConnection

__all__ = ["NATIVE_SELECT", "PolledTransport", "SocketTransport", "WaitingTransport"]

#: The ``select.select`` that waits as a thread of the system does; None if it was patched before
#: this module was imported. Where it is another one, threads may be greenlets, and only
#: `WaitingTransport.wait` lets the others run.
NATIVE_SELECT: Final = select.select if isinstance(select.select, BuiltinFunctionType) else None


class WaitingTransport(ConnectionTransport):
    """A transport that a thread can wait for.

    Arguments:
        path: the path of the socket or the device, or another name, for messages.
    """

    def __init__(self, path: str) -> None:
        super().__init__(path)
        #: A C function that waits for bytes without a time limit, for the recv idiom of
        #: `xsproto.adapters.transport`; None if there is none, so that `wait` must be used.
        self.recv: Callable[[int], bytes] | None = None
        self._poll: Any = None
        self._poll_read: Any = None
        self._poll_both: Any = None

    def wait(self, timeout: float | None, write: bool) -> bool:
        """Wait until there is something to read or to write.

        Arguments:
            timeout: the seconds to wait, at most `xsproto.adapters.deadlines.WAIT_MAX`; None for
                ever.
            write: whether to wait for room to write as well.

        Returns:
            whether there is something to read, or with `write` room to write.
        """
        poll = self._poll_both if write else self._poll_read
        try:
            # Looked up at each call: gevent may patch it later, and eventlet take it away.
            made = select.poll
            if made is not self._poll:
                poll = self._poller(write)
                self._poll = made  # last: after an interrupt in between the next call makes both
        except AttributeError:
            poll = partial(self._select, write)
        # In milliseconds. `poll` rounds up, so it never returns too early.
        return bool(poll(timeout if timeout is None else timeout * 1000))

    def _poller(self, write: bool) -> Callable[[float | None], Any]:
        """Make what `wait` calls from now on: it waits for so many milliseconds."""
        pollers = []
        for events in (select.POLLIN, select.POLLIN | select.POLLOUT):
            poller = select.poll()
            poller.register(self.fileno(), events)
            for fd in self.wakeup_fds():
                poller.register(fd, select.POLLIN)
            pollers.append(poller.poll)
        self._poll_read, self._poll_both = pollers
        return pollers[write]

    def _select(self, write: bool, milliseconds: float | None) -> bool:
        """Wait as ``poll`` does, where there is none."""
        writing = [self.fileno()] if write else []
        timeout = None if milliseconds is None else milliseconds / 1000
        found = select.select([self.fileno(), *self.wakeup_fds()], writing, [], timeout)
        return bool(found[0] or found[1])

    @abstractmethod
    def shutdown(self) -> None:
        """End the connection for both sides, and every wait for it. From any thread; idempotent."""


class SocketTransport(transport.SocketTransport, WaitingTransport):
    """A connected stream socket that waits, as those of `socket` do.

    Arguments:
        sock: the socket; it is closed with this.
        path: the path that it is connected to, or another name, for messages.
    """

    def __init__(self, sock: Any, path: str) -> None:
        super().__init__(sock, path, MSG_DONTWAIT | MSG_NOSIGNAL)
        # The method, without a call in between: the socket itself would wait.
        self.read_now = partial(sock.recv, READ_SIZE, MSG_DONTWAIT)  # type: ignore[method-assign]
        if select.select is NATIVE_SELECT:
            self.recv = self._recv

    def shutdown(self) -> None:
        """See `WaitingTransport`."""
        try:
            self.sock.shutdown(SHUT_RDWR)
        except OSError:
            pass  # the daemon has ended it before


class PolledTransport(transport.SocketTransport, WaitingTransport):
    """A stream whose callers wait for its descriptor, and never in a call of it.

    A socket that waits in ``recv`` cannot be told that there is something to write as well. A Unix
    socket need not be told: the daemon answers what it has, and that wakes the leader. Elsewhere a
    part of a message may be all that is written.

    Arguments:
        stream: a `Wrapper` of `xsproto.adapters.streams`, or a socket that does not wait; it is
            closed with this.
        name: its name, for messages.
        flags: the flags of each ``send``.

    Raises:
        OSError: there can be no more descriptors.
    """

    def __init__(self, stream: Any, name: str, flags: int) -> None:
        super().__init__(stream, name, flags)
        # Nothing else wakes a thread that polls the descriptor.
        self._wakeup, self._waker = socketpair()
        self._wakeup.setblocking(False)
        self._waker.setblocking(False)
        self._woken = False

    def wakeup_fds(self) -> tuple[int, ...]:
        """See `ConnectionTransport`."""
        return (self._wakeup.fileno(),)

    def write(self, engine: ClientConnection) -> None:
        """See `ConnectionTransport`."""
        blocked = self.write_blocked
        super().write(engine)
        if self.write_blocked and not blocked and not self._woken and self._waker.fileno() >= 0:
            # The leader may wait for something to read only.
            self._woken = True
            self._waker.send(b"\0")

    def read_now(self) -> bytes:
        """See `ConnectionTransport`."""
        if self._woken:
            self._woken = False
            with suppress(OSError):  # an interrupt came before the byte was sent
                self._wakeup.recv(1)
        return self._recv(READ_SIZE)

    def shutdown(self) -> None:
        """See `WaitingTransport`."""
        self._waker.close()

    def close(self) -> None:
        """See `ConnectionTransport`."""
        super().close()
        self._wakeup.close()
        self._waker.close()
