"""Many callers on one connection: who writes, who reads, who is woken. Synchronous and pure.

There is no background thread or task: whoever waits for something reads for all. An adapter
calls, in this order and each under its lock, if it has threads:

1. `submit` (or `listen`) with a `Waiter` that it made;
2. `outgoing`, as long as there is something to write without waiting;
3. `enter`: ``LEAD`` if the caller must receive, ``WAIT`` if somebody else does;
4. the leader puts what it receives into `inbox` and calls `received`, until its waiter is done;
   whoever waits sleeps until it is woken, then is done or has become the leader: `leads`;
5. `leave`, in any case; after an error, a timeout or a cancellation `cancel` first.

After each of these, whoever is in `to_wake` must be woken.

The invariant: if a waiter has entered and is not done, there is a leader, or one about to wake.

Interrupts: `received`, `cancel`, `leave` and `unwatch` may be left by an exception between any
two lines and be called again; they then complete what was begun. A wake-up may come twice, and for
nothing.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Sequence
from enum import Enum
from typing import Any, Final

from attrs import define

from ..client import ClientConnection, Exchange, already_watched
from ..errors import ConnectionClosed, LocalProtocolError, XenStoreError
from ..events import Closed, Ignored, Reset, WatchFired
from ..paths import is_within
from ..requests import Request, TransactionEnd, Unwatch, Watch
from ..states import WatchState
from .event_queue import EventQueue

__all__ = ["WINDOW", "Role", "Session", "Waiter"]

#: Messages that may be unanswered at once on a socket. It bounds what is in the daemon's and the
#: kernel's buffers (64 * 4112 bytes); a dead-lock of full buffers cannot be, as nobody waits to
#: write without reading.
WINDOW: Final = 64


_ROLLBACK: Final = TransactionEnd(commit=False)


class Role(Enum):
    """What `Session.enter` says to do."""

    LEAD = "receive, for all who wait"
    WAIT = "sleep until woken"
    DONE = "nothing: it is there already"


# To look a member up in its class costs as much as a call.
_LEAD: Final = Role.LEAD


@define(eq=False, repr=False)
class Waiter:
    """One who waits for the answers to `exchanges`, for an event in `queue`, or for the end.

    Attributes:
        caller: the adapter's own, to know whose it is.
        handle: the adapter's own, to wake it with.
        done: what was waited for is there, or will never come.
    """

    caller: Any = None
    queue: EventQueue | None = None
    exchanges: Sequence[Exchange] = ()
    handle: Any = None
    done: bool = False


class Session:
    """Callers of one `ClientConnection`."""

    def __init__(self, engine: ClientConnection | None = None) -> None:
        #: The connection, to look at and to write from.
        self.engine = engine or ClientConnection(max_outstanding=WINDOW)
        #: Who receives.
        self.leader: Waiter | None = None
        self._waiting: dict[Waiter, None] = {}
        # By token. Under None there are those who take what nobody else does.
        self._listeners: dict[bytes | None, list[tuple[bytes | None, EventQueue]]] = {}
        self._tokens = 0
        #: Where the leader puts what it receives; an empty element is the end of the stream.
        self.inbox = self.engine.inbox
        #: Those to wake now. Take each off only when it is woken.
        self.to_wake: list[Waiter] = []
        #: Whether events were queued, or the connection ended, since this was last set to False.
        self.fired = False
        #: The last packets that nobody waited for, and why they were ignored.
        self.ignored: deque[Ignored] = deque(maxlen=64)

    @property
    def closed(self) -> XenStoreError | None:
        """Why the connection is over; None while it is not."""
        return self.engine.closed

    # Requests

    def submit(self, waiter: Waiter, requests: Sequence[Request[Any]], tx_id: int = 0) -> None:
        """Queue `requests`, whose answers `waiter` will wait for. All of them, or none.

        Raises:
            LocalProtocolError, AlreadyExists, ConnectionClosed: see `ClientConnection.send`.
        """
        engine = self.engine
        if len(requests) == 1:
            exchange = engine.prepare(requests[0], tx_id, waiter)
            waiter.exchanges = (exchange,)
            engine.enqueue(exchange)
            return
        if any(request.changes_state for request in requests):
            raise LocalProtocolError("transactions and watches cannot be part of a batch")
        exchanges = [engine.prepare(request, tx_id, waiter) for request in requests]
        waiter.exchanges = exchanges
        waiter.done = not exchanges
        for exchange in exchanges:
            engine.enqueue(exchange)

    def post(self, request: Request[Any], tx_id: int = 0) -> None:
        """Queue a request whose answer nobody will wait for."""
        self.engine.abandon_exchange(self.engine.submit(request, tx_id, None))

    # Watches

    def new_token(self) -> bytes:
        """A token that this session has not used."""
        self._tokens += 1
        return b"xsproto-%d" % self._tokens

    def listen(self, queue: EventQueue, path: bytes, token: bytes) -> None:
        """Feed `queue` from the watch of `path` with `token`, which is about to be set.

        Raises:
            AlreadyExists: somebody has such a watch.
        """
        if any(watched == path for watched, _ in self._listeners.get(token, ())):
            raise already_watched(Watch(path, token))
        queue.watches.add((path, token))
        self._listeners.setdefault(token, []).append((path, queue))

    def listen_to_rest(self, queue: EventQueue) -> None:
        """Feed `queue` with every event whose token nobody listens for, until the connection ends.

        For those who set watches by requests of their own, and know their tokens.
        """
        self._listeners.setdefault(None, []).append((None, queue))

    def unlisten(self, queue: EventQueue, watches: Iterable[tuple[bytes, bytes]]) -> None:
        """Feed `queue` from `watches` no more, and drop what is in it of them."""
        watches = list(watches)
        for path, token in watches:
            self._detach(queue, path, token)
        queue.drop(watches)
        if not queue.watches:
            self._wake_waiters(queue)

    def _detach(self, queue: EventQueue, path: bytes, token: bytes) -> None:
        others = [pair for pair in self._listeners.get(token, ()) if pair != (path, queue)]
        if others:
            self._listeners[token] = others
        else:
            self._listeners.pop(token, None)

    def unwatch(self, queue: EventQueue, watches: Iterable[tuple[bytes, bytes]]) -> None:
        """Take watches back without waiting for the answers."""
        watches = list(watches)
        # First: what `queue` still lists can be taken back once more after an interrupt.
        if self.closed is None:
            for path, token in watches:
                if self.engine.watch_state(path, token) in (WatchState.SETTING, WatchState.SET):
                    self.post(Unwatch(path, token))
        self.unlisten(queue, watches)

    @property
    def events_waiting(self) -> bool:
        """Whether any queue has an event to take, or has ended."""
        return any(queue.ready for listeners in self._listeners.values() for _, queue in listeners)

    # Who reads

    def enter(self, waiter: Waiter) -> Role:
        """Begin to wait."""
        if self.inbox:
            # Perhaps an interrupt left something undone there.
            self.received()
        if waiter.queue is not None or self.engine.closed is not None:
            self._look(waiter)
        if waiter.done:
            return Role.DONE
        if self.leader is None:
            self.leader = waiter
            return _LEAD
        self._waiting[waiter] = None
        return Role.WAIT

    def leads(self, waiter: Waiter) -> bool:
        """Whether it is `waiter` that must receive."""
        return self.leader is waiter

    def waiters_of(self, caller: Any) -> list[Waiter]:
        """The leader and those who wait, as far as they are `caller`'s."""
        leader = () if self.leader is None else (self.leader,)
        return [waiter for waiter in (*leader, *self._waiting) if waiter.caller == caller]

    @property
    def waiting(self) -> int:
        """How many wait, the leader not counted."""
        return len(self._waiting)

    def leave(self, waiter: Waiter) -> None:
        """Wait no more; pass the lead on, if `waiter` had it."""
        if self._waiting:
            self._waiting.pop(waiter, None)
        if waiter.queue is not None:
            waiter.queue.waiters.discard(waiter)
        if self.leader is waiter:
            if self._waiting:
                next_leader = next(iter(self._waiting))
                self.to_wake.append(next_leader)
                self.leader = next_leader
                del self._waiting[next_leader]
            else:
                self.leader = None

    def cancel(self, waiter: Waiter) -> bool:
        """Give up: withdraw what has not begun to go out, abandon the rest.

        Returns:
            whether the daemon may have seen any of it.
        """
        self.received()
        sent = False
        for exchange in waiter.exchanges:
            if exchange.withdrawn:
                continue
            if (
                exchange.answer is None
                and not exchange.abandoned
                and exchange.request != _ROLLBACK  # which is wanted all the same
                and self.engine.withdraw(exchange.rq_id)
            ):
                continue
            sent = True
            self.engine.abandon_exchange(exchange)  # again, if it was cut short
        return sent

    # In

    def received(self) -> None:
        """Act on what is in `inbox`."""
        engine = self.engine
        engine.process()
        events = engine.events
        for item in events:
            if item.__class__ is Exchange:
                waiter: Waiter | None = item.owner
                if waiter is None:
                    continue
                # The last answer is nearly always the last to come.
                if waiter.exchanges[-1].answer is not None:
                    if waiter is self.leader and len(waiter.exchanges) == 1:
                        waiter.done = True
                    else:
                        self._look(waiter)
                item.owner = None  # else every request would be a cycle for the collector
            else:
                self._take(item)
        events.clear()

    def close(self, reason: XenStoreError) -> None:
        """End the connection: every waiter and every watch ends with `reason`."""
        self.engine.close(reason)
        self.received()

    def _look(self, waiter: Waiter) -> None:
        """See whether `waiter` is done, and have it woken."""
        if not waiter.done:
            queue = waiter.queue
            if queue is None:
                for exchange in waiter.exchanges:
                    if exchange.answer is None and not exchange.withdrawn:
                        return
            elif not queue.ready and self.closed is None:
                queue.waiters.add(waiter)
                return
        if waiter in self._waiting:
            self.to_wake.append(waiter)
            waiter.done = True
            del self._waiting[waiter]
        else:
            waiter.done = True

    def _take(self, event: Any) -> None:
        if isinstance(event, WatchFired):
            listeners = self._listeners.get(event.token) or self._listeners.get(None) or ()
            for path, queue in listeners:
                if path is None or is_within(event.path, path):
                    queue.put(event.path, event.token)
                    self.fired = True
                    self._wake_waiters(queue)
        elif isinstance(event, Reset):
            reason = ConnectionClosed("RESET_WATCHES ended every watch of the connection")
            for path, token in event.watches:
                for watched, queue in list(self._listeners.get(token, ())):
                    if watched == path:
                        queue.ended = reason
                        self._wake_waiters(queue)
                        self._detach(queue, path, token)
        elif isinstance(event, Closed):
            self.fired = True
            for listeners in self._listeners.values():
                for _, queue in listeners:
                    queue.ended = event.reason
                    self._wake_waiters(queue)
            for waiter in (*self._waiting, self.leader):
                if waiter is not None:
                    self._look(waiter)
        else:
            self.ignored.append(event)

    def _wake_waiters(self, queue: EventQueue) -> None:
        for waiter in list(queue.waiters):
            self._look(waiter)
            queue.waiters.discard(waiter)
