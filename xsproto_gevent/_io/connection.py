"""A connection that the greenlets of one hub share.

**The hub leads.** As long as a greenlet waits, the hub watches the connection. When there is
something to read, it calls ``_ready``, which receives on behalf of all and switches to the
greenlets whose answers or events have come. While no greenlet waits, the hub does not look.

**No locks.** Only ``_sleep`` lets other greenlets run. All the rest is one step to them.

**The end of a wait.** A ``gevent.Timeout``, a kill, or whatever else ends a wait, goes through
``_give_up``, which withdraws or abandons the requests and leaves the session whole.

**Interrupts.** `xsproto.clients.session` has the contract: an exception out of a signal handler, in
a step of bookkeeping, ends the connection. A signal handler runs in the greenlet that runs, or in
the hub. gevent stops the watcher of a descriptor for good once its callback has raised. So the
callback here is the loop's own ``run_callback``, written in C, which never raises: it schedules
``_ready``. If that is interrupted before it has read anything, the descriptor stays readable, and
the hub calls it again.

If anything has begun already, ``_again`` is started: a watcher whose callback, ``_recover``, the
hub calls in each turn, whatever it raises, until ``_recover`` itself stops it. Starting it is one
call of a C function, and the first one of an ``except`` clause, where CPython does not look for
signals. So no number of interrupts keeps the other greenlets from being told. Where the clean-up
of a call is interrupted in its turn, ``changing`` stays set, and ``_recover`` ends the connection.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from time import monotonic
from types import TracebackType
from typing import Any, Final

from gevent import get_hub
from gevent import sleep as gevent_sleep
from gevent.hub import Hub
from gevent.hub import Waiter as Gate

from xsproto.adapters.blocking import AdapterConnection
from xsproto.adapters.deadlines import Clock
from xsproto.adapters.fork import register_for_fork
from xsproto.adapters.transport import ConnectionTransport, read_now
from xsproto.client import Exchange
from xsproto.clients.event_queue import EventQueue, WatchEvent
from xsproto.clients.messages import forked, no_answer, no_event, nothing_watched
from xsproto.clients.session import Role, Session, Wait, Waiter
from xsproto.errors import LocalProtocolError, TimedOut, XenStoreError
from xsproto.requests import Request

from .transport import WatchedTransport, make_repeater

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

    def __init__(self, transport: ConnectionTransport, clock: Clock, session: Session) -> None:
        self.transport = WatchedTransport(transport)
        self._bytes = transport
        self.session = session
        # The hub leads for good, so that all greenlets are followers.
        session.leader = Waiter()
        self.clock = clock
        self._hub = get_hub()
        self.guard = _OwnerGuard(self._hub, session, transport.path)
        # While it is active, the hub calls `_recover` in each turn: see "Interrupts" above.
        self._again: Any = make_repeater(self._hub)
        self._waking = False  # whether `_wake` is at work
        self._corked = False  # whether `_wake` will write as well, so that nobody else need
        register_for_fork(self)

    def sleep(self, seconds: float, /) -> None:
        """See `BlockingConnection`."""
        gevent_sleep(max(_SHORTEST, seconds))

    def check_owner(self) -> None:
        """See `AdapterConnection`."""
        self.guard.__enter__()

    # What greenlets call

    def exchange(
        self,
        request: Request[Any],
        tx_id: int,
        deadline: float | None,
        waiter: Waiter | None = None,
    ) -> Exchange:
        """See `BlockingConnection`."""
        session, hub = self.session, self._hub
        if get_hub() is not hub:
            self.check_owner()
        exchange = None
        try:
            if session.changing:
                self.begin_step()
            session.changing = True
            exchange = session.engine.send(request, tx_id)
            if waiter is not None:
                waiter.exchanges = (exchange,)
            if not self._corked:
                self.flush()
            exchange.handle = Gate(hub)
            session.enter(exchange)
            session.changing = False
            self._sleep(exchange, deadline)
            return exchange
        except BaseException as error:
            try:
                timed_out = self._fail(error, exchange)
            except BaseException:
                session.changing = True
                self._again.start(self._recover)
                raise
            if timed_out is not None:
                raise timed_out from None
            raise

    def exchange_all(
        self, requests: Sequence[Request[Any]], tx_id: int, deadline: float | None
    ) -> Sequence[Exchange]:
        """See `BlockingConnection`."""
        self.check_owner()
        session, waiter = self.session, Waiter()
        exchanges = None
        try:
            self.begin_step()
            exchanges = session.send_all(waiter, requests, tx_id)
            if not self._corked:
                self.flush()
            waiter.handle = Gate(self._hub)
            role = session.enter(waiter)
            session.changing = False
            if role is not _DONE:
                self._sleep(waiter, deadline)
            return exchanges
        except BaseException as error:
            try:
                timed_out = self._fail(error, None if exchanges is None else waiter)
            except BaseException:
                session.changing = True
                self._again.start(self._recover)
                raise
            if timed_out is not None:
                raise timed_out from None
            raise

    def _fail(self, error: BaseException, waiter: Wait | None) -> TimedOut | None:
        """Give up a wait after an exception; return the error that tells a user of a `TimedOut`."""
        session = self.session
        if isinstance(error, XenStoreError):
            error.__traceback__ = None  # the frames of the engine tell a user nothing
            if waiter is None:
                session.changing = False  # the request was refused, and nothing was changed
                return None
        sent = self._give_up(waiter)
        if not isinstance(error, TimedOut) or waiter is None:
            return None
        busy = bool(session.engine.outstanding)
        exchanges = waiter.exchanges if isinstance(waiter, Waiter) else (waiter,)
        return no_answer(self.transport.path, [one.request for one in exchanges], sent, busy)

    def take_event(self, queue: EventQueue, deadline: float | None) -> WatchEvent[Any]:
        """See `BlockingConnection`."""
        self.check_owner()
        event = None
        session, waiter = self.session, Waiter(queue)
        try:
            while True:
                self.begin_step()
                if queue:
                    event = queue.take()
                elif (ended := queue.ended or session.closed) is not None:
                    session.changing = False
                    raise ended.with_traceback(None)
                elif not queue.watches:
                    session.changing = False
                    raise nothing_watched()
                waiter.handle = Gate(self._hub)
                role = _DONE if event is not None else session.enter(waiter)
                session.changing = False
                if event is not None:
                    return event
                if role is not _DONE:
                    self._sleep(waiter, deadline)
                # Once more from the start: another greenlet may have taken the event first.
        except BaseException as error:
            try:
                if event is not None:
                    queue.put_back(event)
                self._give_up(waiter)
            except BaseException:
                session.changing = True
                self._again.start(self._recover)
                raise
            if isinstance(error, TimedOut):
                raise no_event(queue.watches) from None
            raise

    def begin_step(self) -> Session:
        """See `ConnectionBase`."""
        if self.session.changing:
            # It will tell the greenlets, and close the descriptor.
            self._again.start(self._recover)
            self.session.break_off()
        self.session.changing = True
        return self.session

    def step(self, act: Callable[[Session], object]) -> None:
        """See `ConnectionBase`."""
        try:
            super().step(act)
        except XenStoreError:
            raise
        except BaseException:
            self._again.start(self._recover)
            raise

    def _sleep(self, waiter: Wait, deadline: float | None) -> None:
        """Let other greenlets run until `waiter` is done.

        Raises:
            TimedOut: it is not done by `deadline`.
        """
        if not self.transport.reader.active:
            self._update_callbacks()
        if deadline is None:
            waiter.handle.get()
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
        session = self.begin_step()
        for _ in range(_LATE_READS):
            if waiter.done or not self._receive():
                break
        self.flush()
        session.changing = False
        if not waiter.done:
            raise TimedOut("not in time")

    def _give_up(self, waiter: Wait | None) -> bool:
        """End a wait that an exception has ended. May be called again.

        Returns:
            whether the daemon may have seen any of its requests.
        """
        session = self.begin_step()
        sent = False
        if waiter is not None:
            sent = session.cancel(waiter)
            session.leave(waiter)
        self.flush()
        self._update_callbacks()
        session.changing = False
        return sent

    def flush(self) -> None:
        """Write what the daemon takes now; have the hub wake the greenlets in `Session.to_wake`."""
        session = self.session
        if self._corked:
            return  # `_wake` is at work, and will do both
        if session.to_wake and not self._waking:
            self._again.start(self._recover)
        bytes_ = self._bytes
        blocked = bytes_.write_blocked
        bytes_.write(session.engine)
        if bytes_.write_blocked is not blocked:
            self._update_callbacks()

    # The hub's part

    def _update_callbacks(self) -> None:
        """Have the hub watch the connection while any greenlet waits, and not otherwise."""
        if self.session.closed is None:
            reading = self._ready if self.session.waiting else None
            self.transport.set_callbacks(reading, reading if self._bytes.write_blocked else None)

    def _ready(self) -> None:
        """Receive, write and wake. The hub calls it when there may be something of that to do."""
        session = self.session
        try:
            if session.changing:
                self.begin_step()
            session.changing = True
            if len(session.engine.outstanding) > 1:
                # Offer the CPU: else each answer would interrupt the daemon in giving the next
                # one, where both share a CPU.
                os.sched_yield()
            self._receive()
            session.changing = False
            self._wake()
        except BaseException:
            self._again.start(self._recover)
            raise

    def _recover(self) -> None:
        """Do what an interrupt, or the place, kept a step from doing. The hub calls it."""
        try:
            self._again.stop()  # first: a greenlet that runs meanwhile may start it again
            self._corked = self._waking = False
            self._ready()
            session = self.begin_step()
            self.flush()
            self._update_callbacks()
            session.changing = False
        except BaseException:
            self._again.start(self._recover)
            raise

    def _receive(self) -> bool:
        """Receive what is there; return whether there was anything. Close what is over."""
        engine = self.session.engine
        # The hub may have scheduled `_ready` before the connection was closed.
        found = engine.closed is None and read_now(self.session, self._bytes)
        if engine.closed is not None:
            self.transport.close()
        return found

    def _wake(self) -> None:
        """Switch to the greenlets in `Session.to_wake`, then write what they have asked for."""
        session = self.session
        to_wake = session.to_wake
        self._waking = True
        held_back = False
        while to_wake:
            # What all but the last of them ask for next is held until the last one writes it: it
            # goes out in one piece.
            self._corked = len(to_wake) > 1
            held_back |= self._corked
            to_wake[0].handle.switch(None)
            del to_wake[0]
        self._waking = False
        if held_back or self._bytes.write_blocked or session.engine.window_full:
            self.begin_step()
            self.flush()
            session.changing = False
        if not session.waiting:
            self._update_callbacks()

    # The end

    def close(self, reason: XenStoreError) -> None:
        """See `AdapterConnection`."""
        with self.guard:
            try:
                session = self.begin_step()
                session.close(reason)
                self.transport.close()
                self.flush()
                session.changing = False
            except BaseException:
                self._again.start(self._recover)
                raise

    def close_after_fork(self) -> None:
        """See `ForkAware`."""
        self.session.close(forked(self.transport.path))
        self.transport.close_after_fork()
        if self.session.to_wake and get_hub() is self._hub:
            # Before the loop looks at its descriptors again, and finds that these are closed.
            self._hub.loop.run_callback(self._recover)
        else:  # they belong to a thread that the child does not have
            self.session.to_wake.clear()
