"""A connection that the tasks of one asyncio loop share.

The loop itself is the leader, for good: it calls ``receive`` whenever there is something to read
(see `xsproto.clients.session`). Each waiting task awaits a future of its own.
"""

from __future__ import annotations

import asyncio
import os
import select
from asyncio import get_running_loop
from collections.abc import Awaitable, Callable, Iterable
from typing import Final

from xsproto.adapters.asynchronous import EventLoopConnection
from xsproto.adapters.fork import close_all_after_fork
from xsproto.adapters.transport import ConnectionTransport
from xsproto.clients.session import Role, Session, Wait, Waiter

__all__ = ["Connection"]

# Looking a member up in its class would cost as much as a call, at each request.
_WAIT: Final = Role.WAIT


class Connection(EventLoopConnection):
    """A connection that tasks share. It belongs to the loop that runs when it is made."""

    def __init__(self, transport: ConnectionTransport, session: Session) -> None:
        super().__init__(transport, session)
        self._loop = get_running_loop()
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

    def call_receive_again(self) -> None:
        """See `EventLoopConnection`."""
        self._loop.call_soon(self.receive)

    def check_owner(self) -> None:
        """See `EventLoopConnection`."""
        try:
            if get_running_loop() is self._loop:
                return
            where = "another one is running here"
        except RuntimeError:
            where = "none is running here"
        raise self.wrong_owner(where)

    def now(self) -> float:
        """See `EventLoopConnection`."""
        return self._loop.time()

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
            self._loop.add_writer(self.transport.fileno(), self.flush)
        else:
            self._loop.remove_writer(self.transport.fileno())

    def unregister(self) -> None:
        """See `EventLoopConnection`."""
        self._loop.remove_reader(self.transport.fileno())
        self._loop.remove_writer(self.transport.fileno())


os.register_at_fork(after_in_child=close_all_after_fork)
