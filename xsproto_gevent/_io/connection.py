"""A connection that the greenlets of one hub share.

**The hub leads.** As long as a greenlet waits, the hub watches the connection. When there is
something to read, it calls ``_ready``, which receives on behalf of all and switches to the
greenlets whose answers or events have come. While no greenlet waits, the hub does not look.

**No locks.** Only ``_sleep`` lets other greenlets run. All the rest is one step to them.

**The end of a wait.** A ``gevent.Timeout``, a kill, or whatever else ends a wait, goes through
``_cancel``, which withdraws or abandons the requests and leaves the session whole. An exception out
of a signal handler may come in the hub as well, in the middle of ``_ready``. gevent then stops the
watcher that called it. So ``_recover`` is scheduled, which does what may have been left undone and
starts the watcher again.
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

# Looking a member up in its class would cost as much as a call, at each request.
_DONE: Final = Role.DONE

# The number of reads that a call makes once its time is over, to take what is there already. A
# socket's buffer is a fraction of this many reads: more comes only from a daemon that sends without
# end.
_LATE_READS: Final = 16

# The seconds of the shortest timer. libuv's loop complains of a shorter one.
_SHORTEST: Final = 0.001


class _OwnerGuard:
    """The `ConnectionBase.guard` of a hub: checks that its own thread uses the session.

    There is nothing to lock.
    """

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
    """A connection that greenlets share. It belongs to the hub of the thread that makes it.

    Arguments:
        transport: the connection's bytes; the connection closes it.
        clock: the client's time limits.
        session: the callers of the connection, and its engine.
    """

    def __init__(self, transport: Transport, clock: Clock, session: Session) -> None:
        self.transport = transport
        self.session = session
        # The hub leads for good, so that all greenlets are followers.
        session.leader = Waiter()
        self.deadline_for = clock.deadline_for
        self._hub = get_hub()
        self.guard = _OwnerGuard(self._hub, session, transport.path)
        self._write_blocked = False  # whether there is more to write than the daemon has room for
        self._waking = False  # whether `_wake` is at work
        self._corked = False  # whether `_wake` will write as well, so that nobody else need
        register_for_fork(self)

    def check_owner(self) -> None:
        """See `AdapterConnection`."""
        self.guard.__enter__()

    # What greenlets call

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
            if isinstance(error, XenStoreError):
                error.__traceback__ = None  # the frames of the engine tell a user nothing
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
                # Once more from the start: another greenlet may have taken the event first.
            except BaseException as error:
                queue.put_back(taken)
                run_despite_interrupt(self._cancel, waiter)
                if isinstance(error, TimedOut):
                    raise no_event(queue.watches) from None
                raise

    def _sleep(self, waiter: Waiter, deadline: float | None) -> None:
        """Let other greenlets run until `waiter` is done.

        Raises:
            TimedOut: it is not done by `deadline`.
        """
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
        """Give up a wait after an exception. May be done again after an interrupt.

        Returns:
            whether the daemon may have seen any of its requests.
        """
        sent = self.session.cancel(waiter)
        self.session.leave(waiter)
        self.flush()
        self._update_callbacks()
        return sent

    def flush(self) -> None:
        """Write what the daemon takes now; have the hub wake the greenlets in `Session.to_wake`."""
        session = self.session
        if self._corked:
            return  # `_wake` is at work, and will do both
        if session.to_wake and not self._waking:
            self._hub.loop.run_callback(self._ready)
        write_blocked = write_now(session, self.transport)
        if write_blocked != self._write_blocked:
            self._write_blocked = write_blocked
            self._update_callbacks()

    # The hub's part

    def _update_callbacks(self) -> None:
        """Have the hub watch the connection while any greenlet waits, and not otherwise."""
        if self.session.closed is None:
            reading = self._ready if self.session.waiting else None
            self.transport.set_callbacks(reading, reading if self._write_blocked else None)

    def _ready(self) -> None:
        """Receive, write and wake. The hub calls it when there may be something of that to do."""
        try:
            if self.session.engine.outstanding > 1:
                # Offer the CPU: else each answer would interrupt the daemon in giving the next
                # one, where both share a CPU.
                os.sched_yield()
            self._receive()
            self._wake()
        except BaseException:
            # It came out of a signal handler. gevent has stopped the watcher whose callback raised.
            self._hub.loop.run_callback(self._recover)
            raise

    def _recover(self) -> None:
        """Do what an exception has kept `_ready` from, and start the watchers again."""
        self._receive()
        self._wake()
        self._update_callbacks()

    def _receive(self) -> bool:
        """Receive what is there; return whether there was anything. Close what is over."""
        found = read_now(self.session, self.transport)
        if self.session.closed is not None:
            self.transport.close()
        return found

    def _wake(self) -> None:
        """Switch to the greenlets in `Session.to_wake`, then write what they have asked for."""
        to_wake = self.session.to_wake
        self._waking = True
        while to_wake:
            # What all but the last of them ask for next is held until the last one writes it: it
            # goes out in one piece.
            self._corked = len(to_wake) > 1
            to_wake[0].handle.switch(None)
            del to_wake[0]
        self._waking = False
        self.flush()
        if not self.session.waiting:
            self._update_callbacks()

    # The end

    def close(self, reason: XenStoreError) -> None:
        """See `AdapterConnection`."""
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
        else:  # they belong to a thread that the child does not have
            self.session.to_wake.clear()


os.register_at_fork(after_in_child=close_all_after_fork)
