"""One descriptor that tells a foreign event loop when a client has something for it."""

import os
import select
from io import FileIO

from xsproto.clients.session import Session
from xsproto.errors import NotSupported

__all__ = ["Readiness"]


class Readiness:
    """A descriptor that says whether there is something to do.

    It is readable while the connection is readable or has ended, or an event waits. It is an epoll
    of the connection and of an eventfd, which stands for the queues and for the end. Both are made
    only once a program asks for the descriptor. Every call is made under the lock of the
    connection.
    """

    def __init__(self) -> None:
        self._epoll: select.epoll | None = None
        # A list of one: an interrupt cannot lose the descriptor; see `xsproto.adapters.transport`.
        self._eventfd: list[FileIO] = []

    def fileno(self, session: Session, connection: int) -> int:
        """Return the descriptor, and make it at the first call.

        Arguments:
            session: whose queues count.
            connection: the connection's own descriptor; -1 if it is closed.

        Returns:
            the descriptor; -1 if it was not made before the connection was closed.

        Raises:
            NotSupported: this system has no epoll.
        """
        if self._epoll is None:
            if connection < 0:
                return -1
            if not hasattr(select, "epoll"):
                raise NotSupported("fileno() needs epoll, which this system does not have")
            if not self._eventfd:
                flags = os.EFD_NONBLOCK | os.EFD_CLOEXEC
                self._eventfd.extend(map(FileIO, map(os.eventfd, (0,), (flags,)), ("r+",)))
            self.update(session)
            epoll = select.epoll()
            epoll.register(connection, select.EPOLLIN)
            epoll.register(self._eventfd[0], select.EPOLLIN)
            self._epoll = epoll
        return self._epoll.fileno()

    def update(self, session: Session) -> None:
        """Have the descriptor follow the queues and the end of the connection.

        Arguments:
            session: whose queues count; its `Session.fired` is set to False.
        """
        if self._eventfd:
            if session.events_waiting or session.closed is not None:
                os.eventfd_write(self._eventfd[0].fileno(), 1)
            else:
                try:
                    os.eventfd_read(self._eventfd[0].fileno())
                except BlockingIOError:
                    pass
        # Last: after an interrupt the next thread that sees it set does all of this again.
        session.fired = False

    def close(self) -> None:
        """Close the descriptors. Idempotent."""
        if self._epoll is not None:
            self._epoll.close()
            self._epoll = None
        while self._eventfd:
            self._eventfd[0].close()
            self._eventfd.clear()
