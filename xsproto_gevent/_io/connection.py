"""A connection: one connection that the greenlets of one hub share.

The hub reads: as long as anybody waits, it calls `_ready` when there is something to read, and
switches to those whose answers or events it was. Only `_sleep` lets others run; all the rest is one
step to them, so that nothing needs a lock. Whatever ends a wait, as a `gevent.Timeout` or a kill,
goes through `_cancel`, which leaves the session whole.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from time import monotonic
from types import TracebackType
from typing import Any, Final

from gevent import get_hub
from gevent.hub import Hub
from gevent.hub import Waiter as Gate

from xsproto.adapters.blocking import AdapterConnection
from xsproto.adapters.deadlines import Clock
from xsproto.adapters.fork import close_all_after_fork, register_for_fork
from xsproto.adapters.transport import read_now, write_now
from xsproto.client import Exchange
from xsproto.clients.connection import run_despite_interrupt
from xsproto.clients.event_queue import EventQueue, WatchEvent
from xsproto.clients.messages import forked, no_answer, no_event, nothing_watched
from xsproto.clients.session import Role, Session, Waiter
from xsproto.errors import LocalProtocolError, TimedOut, XenStoreError
from xsproto.requests import Request

from .transport import Transport

__all__ = ["Connection"]

# To look a member up in its class costs as much as a call.
_DONE: Final = Role.DONE

# Once its time is over, a call takes what is there already. More is what a daemon sends without
# end: a socket's buffer is a fraction of this many reads.
_LATE_READS: Final = 16

#: Seconds; libuv's loop complains of less.
_SHORTEST: Final = 0.001


class _Guard:
    """Makes sure that it is the client's own thread that uses the session."""

    def __init__(self, hub: Hub, session: Session, path: str) -> None:
        self._hub = hub
        self._session = session
        self._path = path

    def __enter__(self) -> None:
        if get_hub() is not self._hub and self._session.closed is None:
            raise LocalProtocolError(
                f"this client of {self._path} belongs to the hub of another thread (or one that "
                "was destroyed): open another client here, or leave the call to a greenlet there"
            )

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        pass


class Connection(AdapterConnection):
    """A connection. It belongs to the hub of the thread that makes it.

    Arguments:
        transport: how its bytes come and go; it is the connection's to close.
        clock: the client's time limits.
        session: the protocol's side.
    """

    def __init__(self, transport: Transport, clock: Clock, session: Session) -> None:
        self.transport = transport
        self.session = session
        # The hub has the lead, for good: it receives, and whoever waits is woken.
        session.leader = Waiter()
        self.deadline_for = clock.deadline_for
        self._hub = get_hub()
        self.guard = _Guard(self._hub, session, transport.path)
        self._write_blocked = False  # whether the daemon did not take all that there was to write
        self._waking = False  # whether `_wake` is at work
        self._corked = False  # whether it will write, too
        register_for_fork(self)

    def check_owner(self) -> None:
        """See `AdapterConnection`."""
        self.guard.__enter__()

    # Those who wait

    def exchange(
        self, tx_id: int, requests: Sequence[Request[Any]], deadline: float | None
    ) -> Sequence[Exchange]:
        """See `BlockingConnection`."""
        session, hub = self.session, self._hub
        if get_hub() is not hub:
            self.check_owner()
        waiter = Waiter(None, None, (), Gate(hub))
        try:
            session.submit(waiter, requests, tx_id)
            if not self._corked:
                self.flush()
            if session.enter(waiter) is not _DONE:
                self._sleep(waiter, deadline)
            return waiter.exchanges
        except BaseException as error:
            sent = run_despite_interrupt(self._cancel, waiter)
            if isinstance(error, TimedOut):
                busy = session.engine.outstanding > 0
                raise no_answer(self.transport.path, requests, sent, busy) from None
            raise

    def take_event(self, queue: EventQueue, deadline: float | None) -> WatchEvent:
        """See `BlockingConnection`."""
        self.check_owner()
        taken: list[WatchEvent] = []
        while True:
            waiter = Waiter(None, queue, (), Gate(self._hub))
            try:
                if queue:
                    queue.take(taken)
                    return taken[0]
                if (ended := queue.ended or self.session.closed) is not None:
                    raise ended.with_traceback(None)
                if not queue.watches:
                    raise nothing_watched()
                if self.session.enter(waiter) is not _DONE:
                    self._sleep(waiter, deadline)
                # Another consumer may have been faster.
            except BaseException as error:
                queue.put_back(taken)
                run_despite_interrupt(self._cancel, waiter)
                if isinstance(error, TimedOut):
                    raise no_event(queue.watches) from None
                raise

    def _sleep(self, waiter: Waiter, deadline: float | None) -> None:
        """Let others run until `waiter` is done; `TimedOut` if it is not by `deadline`."""
        if not self.transport.has_reader:
            self._update_callbacks()
        if deadline is None:
            while not waiter.done:
                waiter.handle.get()
            return
        timer = self._hub.loop.timer(max(_SHORTEST, deadline - monotonic()))
        timer.start(waiter.handle.switch, timer, update=True)
        try:
            while not waiter.done and waiter.handle.get() is not timer:
                pass
        finally:
            timer.close()
        for _ in range(_LATE_READS):
            if waiter.done or not self._receive():
                break
        self.flush()
        if not waiter.done:
            raise TimedOut("not in time")

    def _cancel(self, waiter: Waiter) -> bool:
        """Make the session whole after an exception; say whether anything was sent."""
        sent = self.session.cancel(waiter)
        self.session.leave(waiter)
        self.flush()
        self._update_callbacks()
        return sent

    def flush(self) -> None:
        """Write what the daemon takes now; have the hub wake those who are done."""
        session = self.session
        if self._corked:
            return  # `_wake` will do both
        if session.to_wake and not self._waking:
            self._hub.loop.run_callback(self._ready)
        write_blocked = write_now(session, self.transport)
        if write_blocked != self._write_blocked:
            self._write_blocked = write_blocked
            self._update_callbacks()

    # The hub's part

    def _update_callbacks(self) -> None:
        """Have the hub look at the connection for as long as somebody waits."""
        if self.session.closed is None:
            reading = self._ready if self.session.waiting else None
            self.transport.set_callbacks(reading, reading if self._write_blocked else None)

    def _ready(self) -> None:
        """There is something to read, or room to write, or somebody to wake."""
        try:
            if self.session.engine.outstanding > 1:
                # Else each answer would interrupt the daemon in giving the next one.
                os.sched_yield()
            self._receive()
            self._wake()
        except BaseException:
            # Out of a signal handler. gevent looks no more at what such a call was for.
            self._hub.loop.run_callback(self._recover)
            raise

    def _recover(self) -> None:
        self._receive()
        self._wake()
        self._update_callbacks()

    def _receive(self) -> bool:
        """Act on what is there to read; return whether there was anything."""
        found = read_now(self.session, self.transport)
        if self.session.closed is not None:
            self.transport.close()
        return found

    def _wake(self) -> None:
        """Switch to those who are done."""
        to_wake = self.session.to_wake
        self._waking = True
        while to_wake:
            # What they ask for next goes out in one piece, with that of the last of them.
            self._corked = len(to_wake) > 1
            to_wake[0].handle.switch(None)
            del to_wake[0]
        self._waking = False
        self.flush()
        if not self.session.waiting:
            self._update_callbacks()

    # The end

    def close(self, reason: XenStoreError) -> None:
        """End the connection: whoever waits for something gets `reason`. Idempotent."""
        with self.guard:
            self.session.close(reason)
            self.transport.close()
            self.flush()

    def close_after_fork(self) -> None:
        """See `ForkAware`."""
        self.session.close(forked(self.transport.path))
        self.transport.close_after_fork()
        if self.session.to_wake and get_hub() is self._hub:
            self._hub.loop.run_callback(self._ready)
        else:  # they are of a thread that is not there any more
            self.session.to_wake.clear()


os.register_at_fork(after_in_child=close_all_after_fork)
