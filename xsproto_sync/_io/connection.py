"""A connection that any number of threads share.

**The leader.** No background thread is needed. One of the threads that wait, the leader, reads the
connection on behalf of all; the others sleep, each on a lock of its own, until the leader wakes
them. `xsproto.clients.session` tells how they take turns.

**The lock.** ``_lock`` guards the session. It is held over each step of bookkeeping and over
nothing that waits. A write may be made under it, since a write never waits: the socket takes what
it has room for, and the rest is left for later. The leader waits for the connection without it.
``with`` costs as much as two calls, so the steps of nearly every request call ``acquire`` and
``release``. An interrupt can come after the one and skip the other. So the lock is an RLock, which
knows its owner, and each clean-up begins with ``_unlock``.

**The writer.** A thread that is alone writes under the lock, which costs nothing. If several
threads did so, each would run into the lock that another one holds over its ``send``. So where
there is a leader already, the first thread that comes becomes the writer. The others only queue
their requests under the lock, and sleep. The writer writes outside of the lock; it then takes the
lock and writes once more what the others have queued meanwhile.

**Late answers.** A call whose time is over looks once more before it raises `TimedOut`: what is
there already counts as in time. A daemon that sends without end must not keep it, so there is a
bound on those reads.

**Interrupts.** `xsproto.clients.session` has the contract. Each step sets ``session.changing``
under the lock, and clears it before it gives the lock back. Every wait is in a ``try`` whose end
calls ``_give_up``. That withdraws or abandons the requests and passes the lead on, or closes the
connection if it finds a step interrupted. If an interrupt cuts it short, a new thread calls it once
more, since only the main thread runs the handlers of signals.

**The end.** Any thread may call ``close`` while others wait. It shuts the connection down, which
wakes the leader. While a leader or a writer uses the descriptor, it is left open, so that its
number is not given to another file; the last of these closes it.
"""

from __future__ import annotations

import _thread
import os
import threading
from collections.abc import Sequence
from contextlib import suppress
from time import monotonic, sleep
from typing import Any, Final, Self

from xsproto.adapters.blocking import AdapterConnection
from xsproto.adapters.deadlines import Clock
from xsproto.adapters.fork import close_all_after_fork, register_for_fork
from xsproto.adapters.transport import READ_SIZES, read_now
from xsproto.client import Exchange
from xsproto.clients.event_queue import EventQueue, WatchEvent
from xsproto.clients.messages import forked, no_answer, no_event, nothing_watched
from xsproto.clients.session import Role, Session, Wait, Waiter
from xsproto.errors import ConnectionClosed, TimedOut, XenStoreError
from xsproto.requests import Request

from .readiness import Readiness
from .transport import SocketTransport, WaitingTransport

__all__ = ["Connection"]

# Looking a member up in its class would cost as much as a call, at each request.
_LEAD: Final = Role.LEAD
_WAIT: Final = Role.WAIT

# The number of reads that a call makes once its time is over, to take what is there already. A
# socket's buffer is a fraction of this many reads: more comes only from a daemon that sends without
# end.
_LATE_READS: Final = 16


class Connection(AdapterConnection):
    """A connection that threads share. Any number of them may use it at once.

    Arguments:
        transport: the connection's bytes; the connection closes it.
        clock: the client's time limits.
        session: the callers of the connection, and its engine.
    """

    def __init__(self, transport: WaitingTransport, clock: Clock, session: Session) -> None:
        self.transport = transport
        self.clock = clock
        self.session = session
        self._inbox: list[bytes] = []  # what the leader has received and the session has not
        self._ended = False  # whether `close` was called
        self._lock: Any = threading.RLock()
        self.guard = self._lock
        self._writer: Wait | None = None  # the wait whose thread writes outside of the lock
        self._readiness = Readiness()
        register_for_fork(self)

    # Only the main thread runs the handlers of signals, so that nothing interrupts this one. It is
    # called without a frame in between, in which an interrupt could keep the thread from starting.
    defer = staticmethod(_thread.start_new_thread)  # type: ignore[assignment]

    sleep = staticmethod(sleep)

    def inherit(self, old: Self) -> None:
        """See `ConnectionBase`. The lock is the same, since the queues are."""
        self._lock = self.guard = old._lock
        super().inherit(old)

    # Exchanges

    def exchange(
        self,
        request: Request[Any],
        tx_id: int,
        deadline: float | None,
        waiter: Waiter | None = None,
    ) -> Exchange:
        """See `BlockingConnection`."""
        session, lock = self.session, self._lock
        exchange = None
        try:
            lock.acquire()  # `_give_up` gives it back after an interrupt
            if session.changing:
                self._break_off()
            session.changing = True
            try:
                exchange = session.engine.send(request, tx_id)
            except XenStoreError:
                session.changing = False  # it was refused, and nothing was changed
                raise
            if waiter is not None:
                waiter.exchanges = (exchange,)
            if session.leader is None and self._writer is None:
                # As `_start`, for a caller that is alone.
                self.transport.write(session.engine)
                session.leader = exchange
                leads = True
            else:
                leads = self._start(exchange) is _LEAD
            session.changing = False
            lock.release()
            if leads or self._follow(exchange, deadline):
                self._lead(exchange, deadline)
            return exchange
        except BaseException as error:
            try:
                timed_out = self._fail(error, exchange)
            except BaseException:
                try:
                    self._unlock()
                finally:
                    self.defer(self._give_up, (exchange,))
                raise
            if timed_out is not None:
                raise timed_out from None
            raise

    def exchange_all(
        self, requests: Sequence[Request[Any]], tx_id: int, deadline: float | None
    ) -> Sequence[Exchange]:
        """See `BlockingConnection`."""
        waiter = Waiter()
        exchanges: Sequence[Exchange] | None = None
        try:
            with self._lock:
                session = self.begin_step()
                try:
                    exchanges = session.send_all(waiter, requests, tx_id)
                except XenStoreError:
                    session.changing = False  # they were refused, and nothing was changed
                    raise
                role = self._start(waiter)
                session.changing = False
            if role is _LEAD or (role is _WAIT and self._follow(waiter, deadline)):
                self._lead(waiter, deadline)
            return exchanges
        except BaseException as error:
            try:
                timed_out = self._fail(error, None if exchanges is None else waiter)
            except BaseException:
                try:
                    self._unlock()
                finally:
                    self.defer(self._give_up, (waiter,))
                raise
            if timed_out is not None:
                raise timed_out from None
            raise

    def take_event(self, queue: EventQueue, deadline: float | None) -> WatchEvent[Any]:
        """See `BlockingConnection`."""
        event = None
        waiter = Waiter(queue)
        try:
            while True:
                self._wait(waiter, deadline)
                with self._lock:
                    session = self.begin_step()
                    if queue:
                        event = queue.take()
                        self._readiness.update(session)
                    session.changing = False
                if event is not None:
                    return event
                if (ended := queue.ended or session.closed) is not None:
                    raise ended.with_traceback(None)
                if not queue.watches:
                    raise nothing_watched()
                # Another thread took the event first: wait for the next one.
        except BaseException as error:
            try:
                self._give_up(waiter, event)
            except BaseException:
                try:
                    self._unlock()
                finally:
                    self.defer(self._give_up, (waiter, event))
                raise
            if isinstance(error, TimedOut):
                # A copy: other threads may set watches while the error is made.
                raise no_event(list(queue.watches)) from None
            raise

    # Steps of an exchange

    def begin_step(self) -> Session:
        """See `ConnectionBase`."""
        if self.session.changing:
            self._break_off()
        self.session.changing = True
        return self.session

    def _break_off(self) -> None:
        """Close a connection whose bookkeeping was interrupted; ``_lock`` is held."""
        self.session.break_off()
        self.transport.shutdown()  # it wakes the leader
        self._wake()
        self._dispose()

    def _start(self, waiter: Wait) -> Role:
        """Begin a wait for answers; have the requests written. ``_lock`` is held.

        Returns:
            what the caller must do; it may be ``_writer`` now.
        """
        role = self._enter(waiter)
        if role is _LEAD or not isinstance(self.transport, SocketTransport):
            self.flush()
        elif self._writer is None and role is _WAIT:
            self._writer = waiter
        return role

    def _write_for_all(self) -> None:
        """Write without the lock, then with it what others have queued; stop being the writer."""
        transport = self.transport
        assert isinstance(transport, SocketTransport)
        with self._lock:
            # (While there is a rest, nothing may go out before it.)
            data = b"" if transport.rest else self.session.engine.data_to_send()
        rest = transport.send(data)
        with self._lock:
            session = self.begin_step()
            if rest and len(rest) == len(data):
                session.engine.take_back(data)
            elif rest:
                transport.rest, transport.write_blocked = rest, True
            self._writer = None
            self.flush()
            if session.closed is not None:
                self._dispose()
            session.changing = False

    def flush(self) -> None:
        """Write what the daemon takes now, unless a writer is at work; ``_lock`` is held."""
        if self._writer is None:
            self.transport.write(self.session.engine)

    def _wait(self, waiter: Wait, deadline: float | None) -> None:
        """Wait until `waiter` is done; raise `TimedOut` if it is not by `deadline`."""
        with self._lock:
            session = self.begin_step()
            role = self._enter(waiter)
            session.changing = False
        if role is _LEAD or (role is _WAIT and self._follow(waiter, deadline)):
            self._lead(waiter, deadline)

    def _enter(self, waiter: Wait) -> Role:
        """Begin to wait; say what must be done; ``_lock`` is held."""
        role = self.session.enter(waiter)
        if role is _WAIT:
            # The thread sleeps by taking this lock again. `_wake` releases it.
            waiter.handle = gate = threading.Lock()
            gate.acquire()
        return role

    def _follow(self, waiter: Wait, deadline: float | None) -> bool:
        """Sleep until `waiter` is done or leads; return whether it leads. The writer writes first.

        Raises:
            TimedOut: it is neither by `deadline`.
        """
        if self._writer is waiter:
            self._write_for_all()
        while True:
            left = -1 if deadline is None else max(0, deadline - monotonic())
            waiter.handle.acquire(timeout=left)
            if waiter.done and not (self.session.leads(waiter) or isinstance(waiter, Waiter)):
                # The thread that woke it has taken it off the session: nothing is left to do under
                # the lock, which other threads want now.
                return False
            with self._lock:
                if waiter.done:
                    self.begin_step()
                    self._leave(waiter)
                    self.session.changing = False
                    return False
                leads = self.session.leads(waiter)
            if leads:
                self._offer_cpu()
                return True
            if left == 0:
                raise TimedOut("not in time")

    def _lead(self, waiter: Wait, deadline: float | None) -> None:
        """Receive on behalf of all until `waiter` is done; then leave.

        Raises:
            TimedOut: it is not done by `deadline`.
        """
        session, transport, inbox, lock = self.session, self.transport, self._inbox, self._lock
        engine = session.engine
        late = 0
        while True:
            failure = None
            try:
                recv = transport.recv
                if recv is not None and deadline is None and not transport.write_blocked:
                    # The recv idiom: see `xsproto.adapters.transport`.
                    inbox.extend(map(recv, READ_SIZES))
                else:
                    left = None if deadline is None else deadline - monotonic()
                    if left is not None and left <= 0:
                        left = 0.0
                        late += 1  # once the time is over, count each read
                    ready = transport.wait(left, transport.write_blocked)
            except OSError as error:
                failure = error
            lock.acquire()  # the clean-up of the call gives it back
            if session.changing:
                self._break_off()
            session.changing = True
            if inbox:
                session.received(inbox.pop())
            elif failure is None:
                read_now(session, transport)
            else:
                session.close(ConnectionClosed(f"{transport.path}: {failure}"))
            if session.fired:
                self._readiness.update(session)
            if session.leader is None and not (session.to_wake or engine.window_full):
                # The waiter has its answers, and nobody else waits.
                session.changing = False
                lock.release()
                return
            if transport.write_blocked or engine.window_full:
                self.flush()
            if done := waiter.done:
                session.leave(waiter)
            if session.to_wake:
                self._wake()
            if engine.closed is not None:
                self._dispose()
            session.changing = False
            lock.release()
            if done:
                return
            if late and (late >= _LATE_READS or not ready):
                raise TimedOut("not in time")
            self._offer_cpu()

    def _offer_cpu(self) -> None:
        """Offer the CPU, if more answers are to come, before the leader waits for them.

        Else each answer would interrupt the daemon in giving the next one, where both share a CPU.
        """
        if len(self.session.engine.outstanding) > 1:
            os.sched_yield()

    def _wake(self) -> None:
        """Wake the threads in `Session.to_wake`; ``_lock`` is held."""
        for waiter in self.session.to_wake:
            gate = waiter.handle
            if gate is not None and gate.locked():
                gate.release()
        self.session.to_wake.clear()

    def _fail(self, error: BaseException, waiter: Wait | None) -> TimedOut | None:
        """Give up a wait after an exception; return the error that tells a user of a `TimedOut`."""
        self._unlock()
        if isinstance(error, XenStoreError):
            error.__traceback__ = None  # the frames of the engine tell a user nothing
            if waiter is None:
                return None
        sent = self._give_up(waiter)
        if not isinstance(error, TimedOut) or waiter is None:
            return None
        busy = bool(self.session.engine.outstanding)
        exchanges = waiter.exchanges if isinstance(waiter, Waiter) else (waiter,)
        return no_answer(self.transport.path, [one.request for one in exchanges], sent, busy)

    def _give_up(self, waiter: Wait | None, event: WatchEvent | None = None) -> bool:
        """End a wait that an exception has ended. May be called again.

        Arguments:
            waiter: the wait; None if the exception came before there was one.
            event: what was taken from the queue that was waited for, and was not returned.

        Returns:
            whether the daemon may have seen any of its requests.
        """
        self._unlock()
        with self._lock:
            session = self.session
            if self._writer is not None and self._writer is waiter:
                session.changing = True  # nobody knows how much it has written
                self._writer = None
            self.begin_step()
            sent = False
            if waiter is not None:
                if self._inbox and session.leads(waiter):
                    session.received(self._inbox.pop())
                sent = session.cancel(waiter)
                if event is not None and isinstance(waiter, Waiter) and waiter.queue is not None:
                    waiter.queue.put_back(event)
                    session.fired = True
            self._leave(waiter)
            self.flush()
            session.changing = False
        return sent

    def _unlock(self) -> None:
        """Give back the lock, if an exception has left this thread with it."""
        while self._lock._is_owned():
            self._lock.release()

    def _leave(self, waiter: Wait | None) -> None:
        """End a wait, if there is one, and wake the next leader; ``_lock`` is held."""
        session = self.session
        if waiter is not None:
            session.leave(waiter)
        self._wake()
        if session.fired:
            self._readiness.update(session)
        if session.closed is not None:
            self._dispose()

    # For foreign loops

    def fileno(self) -> int:
        """See `Client`."""
        with self._lock:
            return self._readiness.fileno(self.session, self.transport.fileno())

    def pump(self) -> None:
        """See `Client`."""
        waiter = Waiter()
        with suppress(TimedOut):
            self._wait_or_give_up(waiter, monotonic())

    def read_for_all(self) -> None:
        """Receive whenever no other caller does, until the connection ends: a reader thread."""
        waiter = Waiter()
        while self.session.closed is None:
            self._wait_or_give_up(waiter, None)

    def _wait_or_give_up(self, waiter: Waiter, deadline: float | None) -> None:
        try:
            self._wait(waiter, deadline)
        except BaseException:
            try:
                self._give_up(waiter)
            except BaseException:
                try:
                    self._unlock()
                finally:
                    self.defer(self._give_up, (waiter,))
                raise
            raise

    # The end

    def close(self, reason: XenStoreError) -> None:
        """See `AdapterConnection`."""
        try:
            with self._lock:
                session = self.begin_step()
                self._ended = True
                session.close(reason)
                self.transport.shutdown()
                self._wake()
                self._dispose()
                session.changing = False
        except BaseException:
            self.defer(self.end_step, ())
            raise

    def _dispose(self) -> None:
        """Close the descriptors of a connection that is over, once no thread uses them.

        ``_lock`` is held.
        """
        if self.session.leader is None and self._writer is None:
            # Only after `close`: where the daemon has ended the connection, a foreign loop that
            # polls `fileno` must see that, and would not be told that its descriptor is gone.
            if self._ended:
                self._readiness.close()
            self.transport.close()

    def close_after_fork(self) -> None:
        """See `ForkAware`."""
        self._lock = self.guard = threading.RLock()
        self._writer = None
        self.session = Session()
        self.session.close(forked(self.transport.path))
        self._readiness.close()
        self.transport.close_after_fork()


os.register_at_fork(after_in_child=close_all_after_fork)
