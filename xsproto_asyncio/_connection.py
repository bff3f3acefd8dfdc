"""A connection that the tasks of one asyncio loop share.

The loop itself is the leader, for good: it calls ``receive`` whenever there is something to read
(see `xsproto.clients.session`). Each waiting task awaits a future of its own.
"""

from __future__ import annotations

import asyncio
import select
from asyncio import get_running_loop
from collections.abc import Awaitable, Callable, Iterable
from functools import partial
from typing import Final

from xsproto.adapters.asynchronous import EventLoopConnection
from xsproto.adapters.transport import ConnectionTransport, SocketTransport
from xsproto.clients.session import Role, Session, Wait, Waiter

__all__ = ["Connection"]

# Looking a member up in its class would cost as much as a call, at each request.
_WAIT: Final = Role.WAIT


class Connection(EventLoopConnection):
    """A connection that tasks share. It belongs to the loop that runs when it is made."""

    def __init__(self, transport: ConnectionTransport, session: Session) -> None:
        super().__init__(transport, session)
        self._loop = get_running_loop()
        self.call_soon = self._loop.call_soon  # type: ignore[method-assign]
        if isinstance(transport, SocketTransport):
            # A socket nearly always has room. So the loop calls `receive` again and again, until it
            # comes to its end and closes the connection, however often that is interrupted.
            self.call_soon = partial(self._loop.add_writer, transport.fileno())  # type: ignore[method-assign]
        session.enter(Waiter())  # the loop leads
        receive: Callable[[], object] = self.receive
        if not isinstance(self._loop, asyncio.SelectorEventLoop):
            self._end_poll = select.poll()
            self._end_poll.register(transport.fileno(), 0)  # tells of errors and the end only
            receive = self._receive_to_the_end
        self._loop.add_reader(transport.fileno(), receive)

    def _receive_to_the_end(self) -> None:
        """Receive what is there, and everything up to the end where the connection is over.

        Where an error comes behind what there is to read, as when the daemon dies with requests
        unread, uvloop calls a reader once and never again.
        """
        self.receive()
        while self.session.closed is None and self._end_poll.poll(0):
            self.receive()

    sleep = staticmethod(asyncio.sleep)

    def now(self) -> float:
        """See `ConnectionBase`."""
        return self._loop.time()

    def check_owner(self) -> None:
        """See `EventLoopConnection`."""
        try:
            if get_running_loop() is self._loop:
                return
            where = "another one is running here"
        except RuntimeError:
            where = "none is running here"
        raise self.wrong_owner(where)

    def wait(self, waiter: Wait, role: Role) -> Awaitable[None]:
        """See `EventLoopConnection`."""
        waiter.handle = future = self._loop.create_future()
        if role is not _WAIT:
            future.set_result(None)
        return future

    def wake(self, waiters: Iterable[Wait]) -> None:
        """See `EventLoopConnection`."""
        for waiter in waiters:
            future: asyncio.Future[None] = waiter.handle
            if not future.done():
                future.set_result(None)

    def update_write_interest(self) -> None:
        """See `EventLoopConnection`."""
        if self.write_blocked:
            self._loop.add_writer(self.transport.fileno(), self.receive)
        else:
            self._loop.remove_writer(self.transport.fileno())

    def unregister(self) -> None:
        """See `EventLoopConnection`."""
        self.call_soon = self._loop.call_soon  # type: ignore[method-assign]  # the number may be another's soon
        self._loop.remove_reader(self.transport.fileno())
        self._loop.remove_writer(self.transport.fileno())
