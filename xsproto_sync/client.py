"""The blocking, thread-safe client.

There is no background thread. Of the threads that wait for something, one, the leader, reads for
all (see `xsproto.session`); the others sleep, each on a lock of its own. `_lock` guards the session
and is held over nothing that waits; a write is under it, as it never does. But where several
threads are at work, one, the writer, writes for all, outside of the lock: else each would run into
the lock of the one that is writing.

Every wait is in a ``try`` whose end, `_cancel`, leaves the session whole: an exception may come
out of a signal handler at any point, even a second time while the first is dealt with.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from time import monotonic
from types import TracebackType
from typing import Any, Final, Self
from weakref import WeakSet

from xsproto.blocking import DEFAULT, BlockingClient, Timeout, insist
from xsproto.client import Exchange
from xsproto.errors import (
    ConnectionClosed,
    Forked,
    InvalidArgument,
    InvalidType,
    TimedOut,
    XenStoreError,
)
from xsproto.operations import nothing_watched
from xsproto.requests import Request
from xsproto.session import Role, Session, Waiter
from xsproto.watches import EventQueue, WatchEvent

from .readiness import Readiness
from .unix import WAIT_MAX, UnixTransport, socket_path

__all__ = ["Client"]

# To look a member up in its class costs as much as a call.
_LEAD: Final = Role.LEAD
_WAIT: Final = Role.WAIT

# Once its time is over, a call takes what is there already. More is what a daemon sends without
# end: a socket's buffer is a fraction of this many reads.
_LATE_READS: Final = 16


class _Deadline(threading.local):
    """When the calls of this thread must be over: the innermost `Client.deadline`."""

    at: float | None = None


class Client(BlockingClient):
    """A connection to a XenStore daemon. Any number of threads may use it at once.

    Arguments:
        unix_socket_path: the daemon's socket; None: see `xsproto_sync.unix.socket_path`.
        timeout: seconds that each call may take, if it is not told otherwise, and connecting;
            None for ever.
        reader: have a background thread read, so that watch events are taken from the daemon even
            while nobody waits for one.

    It is connected at once, and is a context manager that closes it. Do not use it in a signal
    handler that may interrupt a call of the same client: it would wait for itself, for ever.

    Raises:
        ConnectFailed: nobody listens there, or it may not be used.
    """

    def __init__(
        self,
        unix_socket_path: str | os.PathLike[str] | None = None,
        *,
        timeout: float | None = None,
        reader: bool = False,
    ) -> None:
        self._timeout = _checked(timeout)
        self._deadline = _Deadline()
        self._deadlines = False  # whether `deadline` was ever used
        self._stuck = False  # whether the daemon did not take all that there was to write
        self._ended = False  # whether `close` was called
        self._lock = self._guard = threading.Lock()
        self._writer: Waiter | None = None
        self._session = Session()
        self._transport = UnixTransport(socket_path(unix_socket_path), self._timeout)
        self._readiness = Readiness()
        _clients.add(self)
        if reader:
            thread = threading.Thread(target=self._read_for_all, name="xsproto reader", daemon=True)
            try:
                thread.start()
            except BaseException:
                self.close()  # it may be running already
                raise

    def __repr__(self) -> str:
        closed = f", closed: {self._session.closed}" if self._session.closed else ""
        return f"<{type(self).__module__}.{type(self).__qualname__} {self._transport.path}{closed}>"

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    def close(self) -> None:
        """Close the connection; the daemon ends its watches and transactions. Idempotent.

        From any thread: whoever waits gets `ConnectionClosed`.
        """
        self._end(ConnectionClosed("the client was closed"))

    @property
    def closed(self) -> XenStoreError | None:
        """Why the connection is over; None while it is not, as far as is known."""
        return self._session.closed

    # Timeouts

    @contextmanager
    def deadline(self, seconds: float) -> Iterator[None]:
        """Within ``with``, all calls of this thread together may take `seconds`.

        A shorter `timeout` of a call, and an outer deadline, hold as well.
        """
        self._deadlines = True
        outer = self._deadline.at
        seconds = WAIT_MAX if (limit := _checked(seconds)) is None else limit
        at = monotonic() + seconds
        self._deadline.at = at if outer is None else min(at, outer)
        try:
            yield
        finally:
            self._deadline.at = outer

    def _ends_at(self, timeout: Timeout) -> float | None:
        """The time when a call that begins now must be over."""
        seconds = self._timeout if timeout is DEFAULT else _checked(timeout)
        at = None if seconds is None else monotonic() + seconds
        if self._deadlines and (limit := self._deadline.at) is not None:
            return limit if at is None else min(at, limit)
        return at

    def _until(self, timeout: Timeout) -> Callable[[], Timeout]:
        at = self._ends_at(timeout)
        return lambda: None if at is None else max(0.0, at - monotonic())

    # Exchanges

    def _exchange_in(
        self, tx_id: int, requests: Sequence[Request[Any]], timeout: Timeout
    ) -> Sequence[Exchange]:
        if timeout is not DEFAULT or self._deadlines:
            at = self._ends_at(timeout)
        else:
            at = None if self._timeout is None else monotonic() + self._timeout
        waiter = Waiter(threading.get_ident())
        session = self._session
        try:
            with self._lock:
                session.submit(waiter, requests, tx_id)
                if session.leader is None:
                    self._flush()
                    role = session.enter(waiter)
                    if session.wakeable:
                        self._wake()
                else:
                    if self._writer is None or self._writer.caller == waiter.caller:
                        self._writer = waiter
                    role = self._enter(waiter)
            if self._writer is waiter:
                self._write_for_all()
            if role is _LEAD or (role is _WAIT and self._follow(waiter, at)):
                self._lead(waiter, at)
            return waiter.exchanges
        except BaseException as error:
            # As `insist` does, but without a call before the `try`: another interrupt might hit it,
            # and leave a dead leader.
            try:
                sent = self._cancel(waiter)
            except BaseException:
                self._cancel(waiter)
                raise
            if isinstance(error, TimedOut):
                raise self._timed_out(requests, sent) from None
            raise

    def _timed_out(self, requests: Sequence[Request[Any]], sent: bool) -> TimedOut:
        what = repr(requests[0]) if len(requests) == 1 else f"{len(requests)} requests"
        fate = "sent and not answered" if sent else "not sent: the daemon takes no more"
        return TimedOut(
            f"no answer in time from {self._transport.path}; {what}: {fate}",
            sent=sent,
            path=getattr(requests[0], "path", None),
            request=requests[0],
        )

    def _take_event(self, queue: EventQueue, timeout: Timeout) -> WatchEvent:
        at = self._ends_at(timeout)
        taken: list[WatchEvent] = []
        waiter = Waiter(threading.get_ident(), queue)
        try:
            while True:
                self._wait(waiter, at)
                with self._lock:
                    if queue:
                        queue.take(taken)
                        self._readiness.update(self._session)
                        return taken[0]
                    if (ended := queue.ended or self.closed) is not None:
                        raise ended.with_traceback(None)
                    if not queue.watches:
                        raise nothing_watched()
                waiter = Waiter(threading.get_ident(), queue)  # another consumer was faster
        except BaseException as error:
            insist(self._put_back, queue, taken, waiter)
            if isinstance(error, TimedOut):
                # In a copy: other threads may set watches meanwhile.
                watched = ", ".join(sorted(repr(path) for path, _ in list(queue.watches)))
                raise TimedOut(f"no event in time of {watched or 'no watch'}") from None
            raise

    def _put_back(self, queue: EventQueue, taken: list[WatchEvent], waiter: Waiter) -> None:
        with self._lock:
            queue.put_back(taken)
            self._session.fired = True
        self._cancel(waiter)

    def _write_for_all(self) -> None:
        """Write, and then what others have added meanwhile; be the writer no more."""
        connection = self._session.connection
        with self._lock:
            data = connection.outgoing()
            written = connection.written
            connection.writing = True
        try:
            if data:
                self._transport.write(data, written)
        except OSError:
            pass  # as `_flush` will find out
        with self._lock:
            self._writer = None
            self._flush()
            if connection.closed is not None:
                self._dispose()

    def _flush(self) -> None:
        """Write what the daemon takes now, unless a writer does; `_lock` is held."""
        if self._writer is not None:
            if self._writer.caller != threading.get_ident():
                return
            # That call of this thread died of interrupts upon interrupts.
            self._writer = None
        connection, write = self._session.connection, self._transport.write
        connection.writing = False
        while data := connection.outgoing():
            written = connection.written
            try:
                write(data, written)
            except BlockingIOError:
                self._stuck = True
                return
            except OSError:
                break  # the reader learns the reason, after the last replies
            if written[-1] == len(data) and data.__class__ is bytes:
                break
        self._stuck = False

    def _wait(self, waiter: Waiter, at: float | None) -> None:
        """Wait until `waiter` is done; `TimedOut` if it is not by `at`."""
        with self._lock:
            role = self._enter(waiter)
        if role is _LEAD or (role is _WAIT and self._follow(waiter, at)):
            self._lead(waiter, at)

    def _enter(self, waiter: Waiter) -> Role:
        """Begin to wait; `_lock` is held."""
        session = self._session
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
        if session.wakeable:
            self._wake()
        return role

    def _follow(self, waiter: Waiter, at: float | None) -> bool:
        """Sleep until `waiter` is done, or must lead: then True."""
        while True:
            left = -1 if at is None else max(0, at - monotonic())
            waiter.handle.acquire(timeout=left)
            if waiter.done and waiter.queue is None and not self._session.leads(waiter):
                return False  # whoever woke it has seen to the rest
            with self._lock:
                if waiter.done:
                    self._leave(waiter)
                    return False
                if self._session.leads(waiter):
                    return True
            if left == 0:
                raise TimedOut("not in time")

    def _lead(self, waiter: Waiter, at: float | None) -> None:
        """Receive for all until `waiter` is done."""
        session, transport = self._session, self._transport
        connection = session.connection
        late = 0
        while True:
            try:
                if connection.outstanding > 1:
                    # Else each answer would interrupt the daemon in giving the next one.
                    os.sched_yield()
                if at is None and not self._stuck:
                    transport.read(session.inbox)
                    in_time = True
                else:
                    left = None if at is None else at - monotonic()
                    if left is not None and left <= 0:
                        left = 0.0
                        late += 1
                    ready = transport.wait(left, self._stuck)
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
                if self._stuck or connection.held_back:
                    self._flush()
                if session.wakeable:
                    self._wake()
                if session.fired:
                    self._readiness.update(session)
                if connection.closed is not None:
                    self._dispose()
            if waiter.done:
                return
            if not in_time:
                raise TimedOut("not in time")

    def _wake(self) -> None:
        """Wake those who are done, and the new leader; `_lock` is held."""
        wakeable = self._session.wakeable
        while wakeable:
            gate = wakeable[-1].handle
            if gate is not None and gate.locked():
                gate.release()
            wakeable.pop()

    def _cancel(self, waiter: Waiter) -> bool:
        """Make the session whole after an exception; say whether anything was sent."""
        session = self._session
        with self._lock:
            if self._writer is waiter:
                self._writer = None
                session.connection.writing = False
            sent = session.cancel(waiter)
            self._flush()
            self._leave(waiter)
        return sent

    def _leave(self, waiter: Waiter) -> None:
        """Wait no more; `_lock` is held."""
        session = self._session
        session.leave(waiter)
        self._wake()
        if session.fired:
            self._readiness.update(session)
        if session.closed is not None:
            self._dispose()

    # For foreign loops

    def fileno(self) -> int:
        """A descriptor to poll: readable while there is something to `pump`, or an event to get.

        It stays the same until `close`, and is not the connection's own; where the daemon ends the
        connection, it stays readable (see `closed`). -1 after `close`.

        Raises:
            NotSupported: this system has no epoll.
        """
        with self._lock:
            return self._readiness.fileno(self._session, self._transport.fileno())

    def pump(self) -> None:
        """Read what is there, without waiting: events go to the queues of their watches.

        Take them with ``get(timeout=0)``. Raises nothing over the connection's end: the next
        call does.
        """
        waiter = Waiter(threading.get_ident())
        with suppress(TimedOut):
            try:
                self._wait(waiter, monotonic())
            except BaseException:
                insist(self._cancel, waiter)
                raise

    def _read_for_all(self) -> None:
        waiter = Waiter(threading.get_ident())
        while self._session.closed is None:
            try:
                self._wait(waiter, None)
            except BaseException:
                insist(self._cancel, waiter)
                raise

    # The end

    def _end(self, reason: XenStoreError) -> None:
        with self._lock:
            self._ended = True
            self._session.close(reason)
            self._transport.shutdown()
            self._wake()
            self._dispose()

    def _dispose(self) -> None:
        """Close the descriptor once nobody uses it; `_lock` is held."""
        if self._session.leader is None and self._writer is None:
            # A foreign loop that polls it would not be told of its own descriptor's end.
            if self._ended:
                self._readiness.close()
            self._transport.close()

    def _forget(self) -> None:
        """Become useless, in a forked child: the connection is the parent's."""
        self._lock = self._guard = threading.Lock()
        self._writer = None
        self._session = Session()
        self._session.close(
            Forked(
                f"this client of {self._transport.path} was made before fork(), by the parent "
                "process; open another one in this process"
            )
        )
        self._readiness.close()
        self._transport.close()


_clients: WeakSet[Client] = WeakSet()


def _after_fork() -> None:
    for client in list(_clients):
        client._forget()


os.register_at_fork(after_in_child=_after_fork)


def _checked(timeout: Any) -> float | None:
    """`timeout`, if it is one; more than `WAIT_MAX` is for ever."""
    if timeout is None:
        return None
    if not isinstance(timeout, int | float) or isinstance(timeout, bool):
        raise InvalidType(f"timeout must be seconds or None, not {timeout!r}")
    if not timeout >= 0:
        raise InvalidArgument(f"invalid timeout {timeout!r}: it must not be negative")
    return timeout if timeout <= WAIT_MAX else None
