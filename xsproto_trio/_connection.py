"""A connection that the tasks of one run of trio share.

**The leader.** There is no background task. One of the waiting tasks, the leader, waits for the
descriptor and receives on behalf of all; the others sleep until they are rescheduled. (See
`xsproto.clients.session`.) So the client needs no nursery.

**Checkpoints.** Every call is one, as trio asks for. ``checkpoint_if_cancelled`` raises at once in
a task that is cancelled already, before anything is sent. A call that waits is a checkpoint by
that. A call whose wait is over as it begins lets other tasks run. ``checkpoint`` is for calls that
send nothing.

**Ctrl-C.** By default trio may raise `KeyboardInterrupt` between any two lines of a task in the
main thread. Here it must not: half-done bookkeeping would be left to the other tasks. So every
method that uses the session is protected with ``enable_ki_protection``. Ctrl-C then takes effect
where the call waits, which cleans up as after a cancellation, or after the call, and not between
any two lines.

**Writing.** A task can wait for one thing only. While the daemon does not take all that there is to
write, the leader waits for an epoll, which is readable when the socket is readable or writable.
Without epoll it waits for room to write for a short time, and then looks for something to read.
"""

from __future__ import annotations

import select
from collections.abc import Iterable
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

from xsproto.adapters.asynchronous import EventLoopConnection
from xsproto.adapters.transport import ConnectionTransport
from xsproto.clients.session import Role, Session, Wait

__all__ = ["Connection"]

# Looking a member up in its class would cost as much as a call, at each request.
_DONE: Final = Role.DONE
_LEAD: Final = Role.LEAD

# The seconds that the leader waits for room to write before it looks for something to read, on a
# system without epoll.
_WRITE_WAIT: Final = 0.01


class Connection(EventLoopConnection):
    """A connection that tasks share. It belongs to the run of trio that it is made in."""

    # Ctrl-C takes effect where these wait, or after them, and not between any two of their lines.
    exchange = enable_ki_protection(EventLoopConnection.exchange)
    exchange_all = enable_ki_protection(EventLoopConnection.exchange_all)
    take_event = enable_ki_protection(EventLoopConnection.take_event)
    roll_back = enable_ki_protection(EventLoopConnection.roll_back)
    abandon = enable_ki_protection(EventLoopConnection.abandon)
    unwatch = enable_ki_protection(EventLoopConnection.unwatch)
    close = enable_ki_protection(EventLoopConnection.close)

    def __init__(self, transport: ConnectionTransport, session: Session) -> None:
        super().__init__(transport, session)
        self._token = current_trio_token()
        # The epoll that is readable when the socket is readable or writable, once it was needed.
        self._read_or_write: Any = None

    sleep = staticmethod(trio.sleep)

    def now(self) -> float:
        """See `ConnectionBase`."""
        self.check_owner()
        return trio.current_time()

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

    checkpoint_if_cancelled = staticmethod(checkpoint_if_cancelled)

    async def wait(self, waiter: Wait, role: Role) -> None:
        """See `EventLoopConnection`."""
        if role is _DONE:
            await cancel_shielded_checkpoint()
        leads = role is _LEAD
        while not waiter.done:
            if leads:
                try:
                    await self._ready()
                except trio.ClosedResourceError:
                    # `update_write_interest` or `unregister` has woken it: it is done, or has to
                    # wait for something else now.
                    continue
                self.receive()
            else:
                await self._sleep(waiter)
                leads = self.session.leads(waiter)

    async def _ready(self) -> None:
        """Wait until there is something to read or, while `write_blocked`, room to write."""
        fd = self.transport.fileno()
        if not self.write_blocked:
            await wait_readable(fd)
        elif hasattr(select, "epoll"):
            if self._read_or_write is None:
                self._read_or_write = select.epoll()
                self._read_or_write.register(fd, select.EPOLLIN | select.EPOLLOUT)
            await wait_readable(self._read_or_write.fileno())
        else:
            with trio.move_on_after(_WRITE_WAIT):
                await wait_writable(fd)

    def update_write_interest(self) -> None:
        """See `EventLoopConnection`."""
        if self.write_blocked:
            # The leader may be waiting for something to read only. This wakes it with
            # ClosedResourceError, and it waits for both.
            notify_closing(self.transport.fileno())

    async def _sleep(self, waiter: Wait) -> None:
        """Sleep until `wake`, or until the task is cancelled."""

        def abort(_: object) -> Abort:
            waiter.handle = None
            return Abort.SUCCEEDED

        waiter.handle = current_task()
        await wait_task_rescheduled(abort)

    def wake(self, waiters: Iterable[Wait]) -> None:
        """See `EventLoopConnection`."""
        for waiter in waiters:
            task, waiter.handle = waiter.handle, None
            if task is not None:
                reschedule(task)

    def unregister(self) -> None:
        """See `EventLoopConnection`."""
        notify_closing(self.transport.fileno())
        if self._read_or_write is not None:
            notify_closing(self._read_or_write.fileno())
            self._read_or_write.close()
