"""A connection: one connection that any number of threads share.

There is no background thread. Of the threads that wait for something, one, the leader, reads for
all (see `xsproto.clients.session`); the others sleep, each on a lock of its own. `_lock` guards the
session and is held over nothing that waits; a write is under it, as it never does. But where
several
threads are at work, one, the writer, writes for all, outside of the lock: else each would run into
the lock of the one that is writing.

Every wait is in a ``try`` whose end, `_cancel`, leaves the session whole: an exception may come
out of a signal handler at any point, even a second time while the first is dealt with.
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

# To look a member up in its class costs as much as a call.
_LEAD: Final = Role.LEAD
_WAIT: Final = Role.WAIT

# Once its time is over, a call takes what is there already. More is what a daemon sends without
# end: a socket's buffer is a fraction of this many reads.
_LATE_READS: Final = 16


class Connection(AdapterConnection):
    """A connection.

    Arguments:
        transport: how its bytes come and go; it is the connection's to close.
        clock: the client's time limits.
        session: the protocol's side.
    """

    def __init__(self, transport: Transport, clock: Clock, session: Session) -> None:
        self.transport = transport
        self.session = session
        self.deadline_for = clock.deadline_for
        self._write_blocked = False  # whether the daemon did not take all that there was to write
        self._ended = False  # whether `close` was called
        self._lock = self.guard = threading.Lock()
        self._writer: Waiter | None = None
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
            # As `run_despite_interrupt` does, but without a call before the `try`: another
            # interrupt might hit it, and leave a dead leader.
            try:
                sent = self._cancel(waiter)
            except BaseException:
                self._cancel(waiter)
                raise
            if isinstance(error, TimedOut):
                busy = session.engine.outstanding > 0
                raise no_answer(self.transport.path, requests, sent, busy) from None
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
                waiter = Waiter(threading.get_ident(), queue)  # another consumer was faster
        except BaseException as error:
            run_despite_interrupt(self._put_back, queue, taken, waiter)
            if isinstance(error, TimedOut):
                # In a copy: other threads may set watches meanwhile.
                raise no_event(list(queue.watches)) from None
            raise

    def _put_back(self, queue: EventQueue, taken: list[WatchEvent], waiter: Waiter) -> None:
        with self._lock:
            queue.put_back(taken)
            self.session.fired = True
        self._cancel(waiter)

    def _write_for_all(self) -> None:
        """Write, and then what others have added meanwhile; be the writer no more."""
        engine = self.session.engine
        with self._lock:
            data = engine.outgoing()
            written = engine.written
            engine.writing = True
        try:
            if data:
                self.transport.write(data, written)
        except OSError:
            pass  # as `flush` will find out
        with self._lock:
            self._writer = None
            self.flush()
            if engine.closed is not None:
                self._dispose()

    def flush(self) -> None:
        """Write what the daemon takes now, unless a writer does; `_lock` is held."""
        if self._writer is not None:
            if self._writer.caller != threading.get_ident():
                return
            # That call of this thread died of interrupts upon interrupts.
            self._writer = None
        self.session.engine.writing = False
        self._write_blocked = write_now(self.session, self.transport)

    def _wait(self, waiter: Waiter, deadline: float | None) -> None:
        """Wait until `waiter` is done; `TimedOut` if it is not by `deadline`."""
        with self._lock:
            role = self._enter(waiter)
        if role is _LEAD or (role is _WAIT and self._follow(waiter, deadline)):
            self._lead(waiter, deadline)

    def _enter(self, waiter: Waiter) -> Role:
        """Begin to wait; `_lock` is held."""
        session = self.session
        if session.leader is not None:
            # If this very thread waits, and yet is here, that call died of interrupts upon
            # interrupts, before it could pass the lead on.
            for dead in session.waiters_of(waiter.caller):
                session.cancel(dead)
                session.leave(dead)
        role = session.enter(waiter)
        if role is _WAIT:
            gate = threading.Lock()
            gate.acquire()
            waiter.handle = gate
        if session.to_wake:
            self._wake()
        return role

    def _follow(self, waiter: Waiter, deadline: float | None) -> bool:
        """Sleep until `waiter` is done, or must lead: then True."""
        while True:
            left = -1 if deadline is None else max(0, deadline - monotonic())
            waiter.handle.acquire(timeout=left)
            if waiter.done and waiter.queue is None and not self.session.leads(waiter):
                return False  # whoever woke it has seen to the rest
            with self._lock:
                if waiter.done:
                    self._leave(waiter)
                    return False
                if self.session.leads(waiter):
                    return True
            if left == 0:
                raise TimedOut("not in time")

    def _lead(self, waiter: Waiter, deadline: float | None) -> None:
        """Receive for all until `waiter` is done."""
        session, transport = self.session, self.transport
        engine = session.engine
        late = 0
        while True:
            try:
                if engine.outstanding > 1:
                    # Else each answer would interrupt the daemon in giving the next one.
                    os.sched_yield()
                if deadline is None and not self._write_blocked:
                    in_time = True
                    transport.read(session.inbox)
                else:
                    left = None if deadline is None else deadline - monotonic()
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
        """Wake those who are done, and the new leader; `_lock` is held."""
        to_wake = self.session.to_wake
        while to_wake:
            gate = to_wake[-1].handle
            if gate is not None and gate.locked():
                gate.release()
            to_wake.pop()

    def _cancel(self, waiter: Waiter) -> bool:
        """Make the session whole after an exception; say whether anything was sent."""
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
        """Wait no more; `_lock` is held."""
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
        """Read until the end: what a reader thread does."""
        waiter = Waiter(threading.get_ident())
        while self.session.closed is None:
            try:
                self._wait(waiter, None)
            except BaseException:
                run_despite_interrupt(self._cancel, waiter)
                raise

    # The end

    def close(self, reason: XenStoreError) -> None:
        """End the connection: whoever waits for something gets `reason`. Idempotent."""
        with self._lock:
            self._ended = True
            self.session.close(reason)
            self.transport.shutdown()
            self._wake()
            self._dispose()

    def _dispose(self) -> None:
        """Close the descriptor once nobody uses it; `_lock` is held."""
        if self.session.leader is None and self._writer is None:
            # A foreign loop that polls it would not be told of its own descriptor's end.
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
