"""A connection that any number of threads share.

**The leader.** No background thread is needed. One of the threads that wait, the leader, reads the
connection on behalf of all; the others sleep, each on a lock of its own, until the leader wakes
them. `xsproto.clients.session` tells how they take turns.

**The lock.** ``_lock`` guards the session. It is held over each step of the session and over
nothing that waits. A write may be made under it, since a write never waits: the socket takes what
it has room for, and the rest is left for later. The leader reads without it: what it receives goes
into the session's inbox, to which it may add while another thread acts on what is there.

**The writer.** A thread that is alone writes under the lock, which costs nothing. If several
threads did so, each would run into the lock that another one holds over its ``send``. So where
there is a leader already, the first thread that comes becomes the writer. The others only queue
their requests under the lock, and sleep. The writer writes outside of the lock; it then takes the
lock and writes once more what the others have queued meanwhile. While it writes, the engine's
``writing`` is set, and nothing that was handed out can be withdrawn.

**Late answers.** A call whose time is over looks once more before it raises `TimedOut`: what is
there already counts as in time. A daemon that sends without end must not keep it, so there is a
bound on those reads.

**Interrupts.** A signal handler may raise an exception between any two lines here, and a second one
while the first is dealt with. Every wait is in a ``try`` whose end calls ``_cancel``. That
withdraws or abandons the requests and passes the lead on; if an exception cuts it short, it is done
once more. What is read and written is added to lists that outlive the call: see
`xsproto.adapters.transport`. If a call dies of one exception upon another all the same, its waiter
stays behind, as the leader or the writer. A thread waits once at a time: so when a thread finds a
waiter of its own in the session, it ends that wait before it begins another one.

**The end.** Any thread may call ``close`` while others wait. It shuts the connection down, which
wakes the leader. While a leader or a writer uses the descriptor, it is left open, so that its
number is not given to another file; the last of these closes it.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Sequence
from contextlib import suppress
from time import monotonic
from typing import Any, Final

from xsproto.adapters.blocking import AdapterConnection
from xsproto.adapters.deadlines import Clock
from xsproto.adapters.fork import close_all_after_fork, register_for_fork
from xsproto.adapters.transport import write_now
from xsproto.client import Exchange
from xsproto.clients.connection import run_despite_interrupt
from xsproto.clients.event_queue import EventQueue, WatchEvent
from xsproto.clients.messages import forked, no_answer, no_event, nothing_watched
from xsproto.clients.session import Role, Session, Waiter
from xsproto.errors import ConnectionClosed, TimedOut, XenStoreError
from xsproto.requests import Request

from .readiness import Readiness
from .transport import Transport

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

    def __init__(self, transport: Transport, clock: Clock, session: Session) -> None:
        self.transport = transport
        self.session = session
        self.deadline_for = clock.deadline_for
        self._write_blocked = False  # whether there is more to write than the daemon has room for
        self._ended = False  # whether `close` was called
        self._lock = self.guard = threading.Lock()
        self._writer: Waiter | None = None  # the wait whose thread writes outside of the lock
        self._readiness = Readiness()
        register_for_fork(self)

    # Exchanges

    def exchange(
        self, tx_id: int, requests: Sequence[Request[Any]], deadline: float | None
    ) -> Sequence[Exchange]:
        """See `BlockingConnection`."""
        waiter = Waiter(threading.get_ident())
        session = self.session
        try:
            with self._lock:
                session.submit(waiter, requests, tx_id)
                if session.leader is None:
                    self.flush()
                    role = session.enter(waiter)
                    if session.to_wake:
                        self._wake()
                else:
                    if self._writer is None or self._writer.caller == waiter.caller:
                        self._writer = waiter
                    role = self._enter(waiter)
            if self._writer is waiter:
                self._write_for_all()
            if role is _LEAD or (role is _WAIT and self._follow(waiter, deadline)):
                self._lead(waiter, deadline)
            return waiter.exchanges
        except BaseException as error:
            # What `run_despite_interrupt` does, written out: a second interrupt might come at the
            # start of that call, before its `try`, and the dead leader would never be replaced.
            try:
                sent = self._cancel(waiter)
            except BaseException:
                self._cancel(waiter)
                raise
            if isinstance(error, TimedOut):
                busy = session.engine.outstanding > 0
                raise no_answer(self.transport.path, requests, sent, busy) from None
            if isinstance(error, XenStoreError):
                error.__traceback__ = None  # the frames of the engine tell a user nothing
            raise

    def take_event(self, queue: EventQueue, deadline: float | None) -> WatchEvent:
        """See `BlockingConnection`."""
        taken: list[WatchEvent] = []
        waiter = Waiter(threading.get_ident(), queue)
        try:
            while True:
                self._wait(waiter, deadline)
                with self._lock:
                    if queue:
                        queue.take(taken)
                        self._readiness.update(self.session)
                        return taken[0]
                    if (ended := queue.ended or self.session.closed) is not None:
                        raise ended.with_traceback(None)
                    if not queue.watches:
                        raise nothing_watched()
                # Another thread took the event first: wait for the next one.
                waiter = Waiter(threading.get_ident(), queue)
        except BaseException as error:
            run_despite_interrupt(self._put_back, queue, taken, waiter)
            if isinstance(error, TimedOut):
                # A copy: other threads may set watches while the error is made.
                raise no_event(list(queue.watches)) from None
            raise

    def _put_back(self, queue: EventQueue, taken: list[WatchEvent], waiter: Waiter) -> None:
        """Give back an event that an interrupt kept from being returned. May be done again."""
        with self._lock:
            queue.put_back(taken)
            self.session.fired = True
        self._cancel(waiter)

    def _write_for_all(self) -> None:
        """Write without the lock, then with it what others have queued; stop being the writer."""
        engine = self.session.engine
        with self._lock:
            data = engine.outgoing()
            written = engine.written
            engine.writing = True
        try:
            if data:
                self.transport.write(data, written)
        except OSError:
            pass  # the leader gets the error as well, after the daemon's last answers
        with self._lock:
            self._writer = None
            self.flush()
            if engine.closed is not None:
                self._dispose()

    def flush(self) -> None:
        """Write what the daemon takes now, unless a writer is at work; ``_lock`` is held."""
        if self._writer is not None:
            if self._writer.caller != threading.get_ident():
                return
            # An earlier call of this very thread was the writer, and died of one interrupt upon
            # another.
            self._writer = None
        self.session.engine.writing = False
        self._write_blocked = write_now(self.session, self.transport)

    def _wait(self, waiter: Waiter, deadline: float | None) -> None:
        """Wait until `waiter` is done; raise `TimedOut` if it is not by `deadline`."""
        with self._lock:
            role = self._enter(waiter)
        if role is _LEAD or (role is _WAIT and self._follow(waiter, deadline)):
            self._lead(waiter, deadline)

    def _enter(self, waiter: Waiter) -> Role:
        """Begin to wait; say what must be done; ``_lock`` is held."""
        session = self.session
        if session.leader is not None:
            # A thread waits once at a time. So a waiter of this very thread is left from a call
            # that died of one interrupt upon another before it could pass the lead on.
            for dead in session.waiters_of(waiter.caller):
                session.cancel(dead)
                session.leave(dead)
        role = session.enter(waiter)
        if role is _WAIT:
            # The thread sleeps by taking this lock again. `_wake` releases it.
            gate = threading.Lock()
            gate.acquire()
            waiter.handle = gate
        if session.to_wake:
            self._wake()
        return role

    def _follow(self, waiter: Waiter, deadline: float | None) -> bool:
        """Sleep until `waiter` is done or leads; return whether it leads.

        Raises:
            TimedOut: it is neither by `deadline`.
        """
        while True:
            left = -1 if deadline is None else max(0, deadline - monotonic())
            waiter.handle.acquire(timeout=left)
            if waiter.done and waiter.queue is None and not self.session.leads(waiter):
                # The thread that woke it has taken it off the session: nothing is left to do under
                # the lock, which other threads want now.
                return False
            with self._lock:
                if waiter.done:
                    self._leave(waiter)
                    return False
                if self.session.leads(waiter):
                    return True
            if left == 0:
                raise TimedOut("not in time")

    def _lead(self, waiter: Waiter, deadline: float | None) -> None:
        """Receive on behalf of all until `waiter` is done; then leave.

        Raises:
            TimedOut: it is not done by `deadline`.
        """
        session, transport = self.session, self.transport
        engine = session.engine
        late = 0
        while True:
            try:
                if engine.outstanding > 1:
                    # Offer the CPU: else each answer would interrupt the daemon in giving the next
                    # one, where both share a CPU.
                    os.sched_yield()
                if deadline is None and not self._write_blocked:
                    in_time = True
                    transport.read(session.inbox)
                else:
                    left = None if deadline is None else deadline - monotonic()
                    # Once the time is over, count each read, and stop when nothing is there.
                    if left is not None and left <= 0:
                        left = 0.0
                        late += 1
                    ready = transport.wait(left, self._write_blocked)
                    in_time = left != 0 or (ready and late < _LATE_READS)
                    transport.read_now(session.inbox)
            except BlockingIOError:
                pass
            except OSError as error:
                in_time = True
                with self._lock:
                    session.close(ConnectionClosed(f"{transport.path}: {error}"))
            with self._lock:
                session.received()
                if waiter.done:
                    session.leave(waiter)
                if self._write_blocked or engine.window_full:
                    self.flush()
                if session.to_wake:
                    self._wake()
                if session.fired:
                    self._readiness.update(session)
                if engine.closed is not None:
                    self._dispose()
            if waiter.done:
                return
            if not in_time:
                raise TimedOut("not in time")

    def _wake(self) -> None:
        """Wake the threads in `Session.to_wake`; ``_lock`` is held."""
        to_wake = self.session.to_wake
        while to_wake:
            gate = to_wake[-1].handle
            if gate is not None and gate.locked():
                gate.release()
            to_wake.pop()

    def _cancel(self, waiter: Waiter) -> bool:
        """Give up a wait after an exception. May be done again after an interrupt.

        Returns:
            whether the daemon may have seen any of its requests.
        """
        session = self.session
        with self._lock:
            if self._writer is waiter:
                self._writer = None
                session.engine.writing = False
            sent = session.cancel(waiter)
            self.flush()
            self._leave(waiter)
        return sent

    def _leave(self, waiter: Waiter) -> None:
        """End a wait, and wake the next leader; ``_lock`` is held."""
        session = self.session
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
        waiter = Waiter(threading.get_ident())
        with suppress(TimedOut):
            try:
                self._wait(waiter, monotonic())
            except BaseException:
                run_despite_interrupt(self._cancel, waiter)
                raise

    def read_for_all(self) -> None:
        """Receive whenever no other caller does, until the connection ends: a reader thread."""
        waiter = Waiter(threading.get_ident())
        while self.session.closed is None:
            try:
                self._wait(waiter, None)
            except BaseException:
                run_despite_interrupt(self._cancel, waiter)
                raise

    # The end

    def close(self, reason: XenStoreError) -> None:
        """See `AdapterConnection`."""
        with self._lock:
            self._ended = True
            self.session.close(reason)
            self.transport.shutdown()
            self._wake()
            self._dispose()

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
        self._lock = self.guard = threading.Lock()
        self._writer = None
        self.session = Session()
        self.session.close(forked(self.transport.path))
        self._readiness.close()
        self.transport.close_after_fork()


os.register_at_fork(after_in_child=close_all_after_fork)
