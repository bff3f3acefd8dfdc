"""A lane: one connection that any number of tasks share.

Of the tasks that wait for something, one, the leader, reads for all (see `xsproto.session`); the
others sleep until they are rescheduled.
"""

from __future__ import annotations

import os
from typing import Final

import trio
from trio.lowlevel import (
    Abort,
    cancel_shielded_checkpoint,
    checkpoint_if_cancelled,
    current_task,
    current_trio_token,
    notify_closing,
    reschedule,
    wait_readable,
    wait_task_rescheduled,
)

from xsproto.loops import LoopLane, Transport, forget_all
from xsproto.session import Role, Session, Waiter

__all__ = ["Lane"]

# To look a member up in its class costs as much as a call.
_DONE: Final = Role.DONE
_LEAD: Final = Role.LEAD


class Lane(LoopLane):
    """A connection; see `LoopLane`. It belongs to the run that it is made in."""

    def __init__(self, transport: Transport, session: Session) -> None:
        super().__init__(transport, session)
        self._token = current_trio_token()

    def check(self) -> None:
        """See `LoopLane`."""
        try:
            if current_trio_token() is self._token:
                return
            where = "this is another run of trio"
        except RuntimeError:
            where = "this is outside of trio"
        raise self.misplaced(where)

    async def begin(self) -> None:
        """See `LoopLane`."""
        self.check()
        await checkpoint_if_cancelled()

    async def wait(self, waiter: Waiter, role: Role) -> None:
        """See `LoopLane`."""
        if role is _DONE:
            await cancel_shielded_checkpoint()
        leads = role is _LEAD
        while not waiter.done:
            if not leads:
                await self._sleep(waiter)
                leads = self.session.leads(waiter)
                continue
            try:
                await wait_readable(self.transport.fileno())
            except trio.ClosedResourceError:
                continue
            self.receive()

    async def _sleep(self, waiter: Waiter) -> None:
        def abort(_: object) -> Abort:
            waiter.handle = None
            return Abort.SUCCEEDED

        waiter.handle = current_task()
        await wait_task_rescheduled(abort)

    def wake(self, waiter: Waiter) -> None:
        """See `LoopLane`."""
        task, waiter.handle = waiter.handle, None
        if task is not None:
            reschedule(task)

    def unregister(self) -> None:
        """See `LoopLane`."""
        notify_closing(self.transport.fileno())


os.register_at_fork(after_in_child=forget_all)
