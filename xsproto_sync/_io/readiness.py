"""One descriptor that tells a foreign loop that a client has something for it."""

import os
import select
from io import FileIO

from xsproto.clients.session import Session
from xsproto.errors import NotSupported

__all__ = ["Readiness"]


class Readiness:
    """Readable while the connection is, or has ended, or an event waits in a queue.

    Made of an eventfd and the connection, in an epoll, and only once it is asked for. All calls
    are under the client's lock.
    """

    def __init__(self) -> None:
        self._epoll: select.epoll | None = None
        self._eventfd: list[FileIO] = []  # filled in C: an interrupt cannot lose it

    def fileno(self, session: Session, connection: int) -> int:
        """The descriptor; -1 if there is none, and the `connection`'s is closed.

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
        """Look at the queues again."""
        if self._eventfd:
            if session.events_waiting or session.closed is not None:
                os.eventfd_write(self._eventfd[0].fileno(), 1)
            else:
                try:
                    os.eventfd_read(self._eventfd[0].fileno())
                except BlockingIOError:
                    pass
        # Last: after an interrupt it is done again.
        session.fired = False

    def close(self) -> None:
        """Give the descriptors back."""
        if self._epoll is not None:
            self._epoll.close()
            self._epoll = None
        while self._eventfd:
            self._eventfd[0].close()
            self._eventfd.clear()
