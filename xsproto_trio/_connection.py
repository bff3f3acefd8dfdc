"""A connection: one connection that any number of tasks share.

Of the tasks that wait for something, one, the leader, reads for all (see
`xsproto.clients.session`); the others sleep until they are rescheduled.
"""

from __future__ import annotations

import os
import select
from typing import Any, Final

import trio
from trio.lowlevel import (
    Abort,
    cancel_shielded_checkpoint,
    checkpoint,
    checkpoint_if_cancelled,
    current_task,
    current_trio_token,
    enable_ki_protection,
    notify_closing,
    reschedule,
    wait_readable,
    wait_task_rescheduled,
    wait_writable,
)

from xsproto.adapters.asynchronous import AsyncRequestConnection, EventLoopConnection
from xsproto.adapters.fork import close_all_after_fork
from xsproto.adapters.transport import Transport
from xsproto.clients.session import Role, Session, Waiter

__all__ = ["Connection", "RequestConnection"]

# To look a member up in its class costs as much as a call.
_DONE: Final = Role.DONE
_LEAD: Final = Role.LEAD

#: Seconds to wait for room to write before looking for something to read, without epoll.
_TURN: Final = 0.01


class Connection(EventLoopConnection):
    """A connection; see `EventLoopConnection`. It belongs to the run that it is made in."""

    # Ctrl-C takes effect where they wait, or after them, and not between any two lines.
    exchange = enable_ki_protection(EventLoopConnection.exchange)
    start_transaction = enable_ki_protection(EventLoopConnection.start_transaction)
    take_event = enable_ki_protection(EventLoopConnection.take_event)
    post = enable_ki_protection(EventLoopConnection.post)
    roll_back = enable_ki_protection(EventLoopConnection.roll_back)
    abandon = enable_ki_protection(EventLoopConnection.abandon)
    unwatch = enable_ki_protection(EventLoopConnection.unwatch)
    close = enable_ki_protection(EventLoopConnection.close)

    def __init__(self, transport: Transport, session: Session) -> None:
        super().__init__(transport, session)
        self._token = current_trio_token()
        self._both: Any = None  # an epoll: whether it can be read or written

    def check_owner(self) -> None:
        """See `EventLoopConnection`."""
        try:
            if current_trio_token() is self._token:
                return
            where = "this is another run of trio"
        except RuntimeError:
            where = "this is outside of trio"
        raise self.wrong_owner(where)

    async def checkpoint(self) -> None:
        """See `AsyncConnection`."""
        self.check_owner()
        await checkpoint()

    async def begin(self) -> None:
        """See `EventLoopConnection`."""
        self.check_owner()
        await checkpoint_if_cancelled()

    async def wait(self, waiter: Waiter, role: Role) -> None:
        """See `EventLoopConnection`."""
        if role is _DONE:
            await cancel_shielded_checkpoint()
        leads = role is _LEAD
        while not waiter.done:
            if leads:
                try:
                    await self._ready()
                except trio.ClosedResourceError:
                    continue  # it is done, or has to wait for something else now
                self.receive()
            else:
                await self._sleep(waiter)
                leads = self.session.leads(waiter)

    async def _ready(self) -> None:
        """Wait until there is something to read or, if something waits for that, to write."""
        fd = self.transport.fileno()
        if not self.write_blocked:
            await wait_readable(fd)
        elif hasattr(select, "epoll"):
            # A task can wait for one thing only: so for one that stands for both.
            if self._both is None:
                self._both = select.epoll()
                self._both.register(fd, select.EPOLLIN | select.EPOLLOUT)
            await wait_readable(self._both.fileno())
        else:
            with trio.move_on_after(_TURN):
                await wait_writable(fd)

    def update_write_interest(self) -> None:
        """See `EventLoopConnection`."""
        if self.write_blocked:
            # The leader may be waiting for something to read, and for nothing else.
            notify_closing(self.transport.fileno())

    async def _sleep(self, waiter: Waiter) -> None:
        def abort(_: object) -> Abort:
            waiter.handle = None
            return Abort.SUCCEEDED

        waiter.handle = current_task()
        await wait_task_rescheduled(abort)

    def wake(self, waiter: Waiter) -> None:
        """See `EventLoopConnection`."""
        task, waiter.handle = waiter.handle, None
        if task is not None:
            reschedule(task)

    def unregister(self) -> None:
        """See `EventLoopConnection`."""
        notify_closing(self.transport.fileno())
        if self._both is not None:
            notify_closing(self._both.fileno())
            self._both.close()


class RequestConnection(AsyncRequestConnection, Connection):
    """On a device, that of requests."""

    exchange = enable_ki_protection(AsyncRequestConnection.exchange)
    start_transaction = enable_ki_protection(AsyncRequestConnection.start_transaction)
    roll_back = enable_ki_protection(AsyncRequestConnection.roll_back)
    abandon = enable_ki_protection(AsyncRequestConnection.abandon)


os.register_at_fork(after_in_child=close_all_after_fork)
