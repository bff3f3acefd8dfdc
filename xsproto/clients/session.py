"""Let many callers share one connection. It never waits, and does no I/O.

A `Session` has one `ClientConnection`, its engine. A caller is a thread, a task or a greenlet that
sends requests and waits for their answers, or waits for an event of its watches. The session hands
each answer to its caller, and says which caller receives and which callers to wake. An adapter
moves the bytes, puts callers to sleep and wakes them up.

**Leader and followers.** There is no need for a background reader, that is, a thread or a task that
only receives. One of the waiting callers, the leader, receives from the connection on behalf of
all. The others, its followers, sleep until the leader wakes them. A leader whose own wait is over
(it has its answers, its time is over, it was cancelled) passes the lead to the follower that has
waited longest. While nobody waits, nobody receives, and the events of watches stay with the daemon.
An event loop that calls back when there is something to read can lead for good: it enters with a
waiter of its own that waits for nothing, and tasks are followers only.

**The order of calls.** For each call of its user an adapter makes a `Waiter`. It then does these
steps, each under its lock if it has threads:

1. `Session.submit` with the waiter and the requests. (A waiter for an event has a queue instead,
   which `Session.listen` feeds.)
2. `ClientConnection.outgoing`, and write, for as long as bytes can be written without waiting.
3. `Session.enter`. ``LEAD``: this caller must receive. ``WAIT``: it must sleep until it is woken.
   ``DONE``: its wait is over already.
4. The leader receives into `Session.inbox` and calls `Session.received`, again and again, until its
   waiter is done. A follower that has been woken is done, or has become the leader: `Session.leads`
   says so.
5. `Session.leave`, whatever has happened. After an error, a timeout or a cancellation
   `Session.cancel` comes first.

After each step the adapter wakes every waiter in `Session.to_wake`, and takes a waiter off that
list only once it is woken. Receiving itself needs no lock: the leader may add to the inbox while
another thread is in one of the steps.

**The window.** At most `WINDOW` messages are unanswered at once; the others wait in the engine. No
caller ever waits for room to write without receiving as well: what the daemon does not take now is
left in the engine, for a later step. So the client and the daemon cannot dead-lock with the buffers
of both directions full, each waiting until the other one reads.

**Wake-ups.** A follower is woken when it is done and when it becomes the leader. A wake-up may come
twice, and for nothing. So a woken caller looks at its waiter before it believes anything.

**The invariant.** If a waiter has entered and is not done, there is a leader; and that leader
receives, or its wake-up is in `Session.to_wake` or on its way. A session that broke it would have a
caller that sleeps while nobody receives, for ever.

**Interrupts.** A signal handler may raise an exception between any two lines of Python. `received`,
`cancel`, `leave` and `unwatch` may be cut short anywhere by that and be called again; they then
complete what was begun. That holds since the bytes received stay in the inbox until all that they
say is done, since doing it again does nothing more, and since a waiter is put into `to_wake` before
the state changes for which it is woken.
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

#: The number of messages that may be unanswered at once on a socket. It bounds what is in the
#: daemon's and the kernel's buffers, to 64 * 4112 bytes.
WINDOW: Final = 64


_ROLLBACK: Final = TransactionEnd(commit=False)


class Role(Enum):
    """What a caller must do next, as `Session.enter` says."""

    LEAD = "receive, on behalf of all that wait"
    WAIT = "sleep until woken"
    DONE = "nothing: the wait is over already"


# Looking a member up in its class would cost as much as a call, at each request.
_LEAD: Final = Role.LEAD


@define(eq=False, repr=False)
class Waiter:
    """One wait of a caller.

    It waits for an event in `queue`; without a queue, for the answers to all of `exchanges`; with
    neither, for the end of the connection.

    Attributes:
        caller: what the adapter knows the caller by, such as the identifier of a thread, for
            `Session.waiters_of`; None where callers need not be told apart.
        queue: the queue whose next event ends the wait; None to wait for answers.
        exchanges: the requests whose answers end the wait; `Session.submit` sets it.
        handle: what the adapter wakes the caller with, such as a lock, a future or a task. The
            session does not use it.
        done: whether the wait is over: what was waited for is there, or will never come.
    """

    caller: Any = None
    queue: EventQueue | None = None
    exchanges: Sequence[Exchange] = ()
    handle: Any = None
    done: bool = False


class Session:
    """The callers of one connection, and what each of them waits for.

    Not thread-safe: an adapter with threads takes a lock over each call.

    Arguments:
        engine: the engine that they share; None for a new one with a window of `WINDOW`.
    """

    def __init__(self, engine: ClientConnection | None = None) -> None:
        #: The engine, to look at and to write from.
        self.engine = engine or ClientConnection(max_outstanding=WINDOW)
        #: The waiter that receives on behalf of all; None while nobody waits.
        self.leader: Waiter | None = None
        # The followers. A dict keeps them in the order in which they came.
        self._waiting: dict[Waiter, None] = {}
        # The queues that take the events of a token, each with the watched path. The queues under
        # None take the events of all tokens that are not here.
        self._listeners: dict[bytes | None, list[tuple[bytes | None, EventQueue]]] = {}
        self._tokens = 0
        #: Where the leader puts the bytes that it receives; an empty element is the end of the
        #: stream.
        self.inbox = self.engine.inbox
        #: The waiters to wake now. Take each off only once it is woken: an interrupt in between
        #: then wakes it twice, and not never.
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
        """Queue requests in the engine: all of them, or none.

        Arguments:
            waiter: the wait for their answers; its `exchanges` are set here.
            requests: one request, or several that neither begin nor end transactions and watches.
                With none, `waiter` is done at once.
            tx_id: the transaction that they belong to; 0 for none.

        Raises:
            LocalProtocolError: a batch has a request that begins or ends a transaction or a watch;
                or see `ClientConnection.send`.
            AlreadyExists, ConnectionClosed: see `ClientConnection.send`.
        """
        engine = self.engine
        # The waiter knows its exchanges before the engine does: after an interrupt in between,
        # `cancel` finds them all.
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
        """Queue a request whose answer nobody will wait for.

        Arguments:
            request: the request.
            tx_id: the transaction that it belongs to; 0 for none.

        Raises:
            LocalProtocolError, AlreadyExists, ConnectionClosed: see `ClientConnection.send`.
        """
        self.engine.abandon_exchange(self.engine.submit(request, tx_id, None))

    # Watches

    def new_token(self) -> bytes:
        """Return a token that this session has not used yet."""
        self._tokens += 1
        return b"xsproto-%d" % self._tokens

    def listen(self, queue: EventQueue, path: bytes, token: bytes) -> None:
        """Feed a queue from a watch that is about to be set.

        Arguments:
            queue: gets the events of the watch from now on.
            path: the watched path.
            token: the watch's token.

        Raises:
            AlreadyExists: there is a watch with this path and token already.
        """
        if any(watched == path for watched, _ in self._listeners.get(token, ())):
            raise already_watched(Watch(path, token))
        queue.watches.add((path, token))
        self._listeners.setdefault(token, []).append((path, queue))

    def listen_to_rest(self, queue: EventQueue) -> None:
        """Feed a queue with every event whose token no other queue listens for.

        It does so until the connection ends. It is for callers that set watches with requests of
        their own, and know their tokens.
        """
        self._listeners.setdefault(None, []).append((None, queue))

    def unlisten(self, queue: EventQueue, watches: Iterable[tuple[bytes, bytes]]) -> None:
        """Feed a queue from some of its watches no more, and drop their events that it holds.

        Arguments:
            queue: the queue. If it has no watch left, the callers that wait for its events are
                done.
            watches: the watches, as (path, token).
        """
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
        """End watches, with an UNWATCH for each that is set or being set.

        Do not wait for the answers. May be called again after an interrupt.

        Arguments:
            queue: the queue that they feed.
            watches: the watches, as (path, token).
        """
        watches = list(watches)
        # Before `unlisten`: after an interrupt in between, `queue` lists the watches still, so that
        # a second call gets the same ones.
        if self.closed is None:
            for path, token in watches:
                if self.engine.watch_state(path, token) in (WatchState.SETTING, WatchState.SET):
                    self.post(Unwatch(path, token))
        self.unlisten(queue, watches)

    @property
    def events_waiting(self) -> bool:
        """Whether any queue is ready: it has an event to take, or has ended."""
        return any(queue.ready for listeners in self._listeners.values() for _, queue in listeners)

    # The leader and its followers

    def enter(self, waiter: Waiter) -> Role:
        """Begin to wait.

        Returns:
            what the caller must do. ``LEAD``: it is the leader now, and must receive until `waiter`
            is done. ``WAIT``: another one leads, and this caller must sleep until it is woken.
            ``DONE``: `waiter` is done already.
        """
        if self.inbox:
            # An interrupt may have kept an earlier leader from acting on what it received.
            self.received()
        if waiter.queue is not None or self.engine.closed is not None:
            self._update_done(waiter)
        if waiter.done:
            return Role.DONE
        if self.leader is None:
            self.leader = waiter
            return _LEAD
        self._waiting[waiter] = None
        return Role.WAIT

    def leads(self, waiter: Waiter) -> bool:
        """Whether `waiter` is the leader, which must receive."""
        return self.leader is waiter

    def waiters_of(self, caller: Any) -> list[Waiter]:
        """Return the waiters that have entered, the leader included, and belong to `caller`."""
        leader = () if self.leader is None else (self.leader,)
        return [waiter for waiter in (*leader, *self._waiting) if waiter.caller == caller]

    @property
    def waiting(self) -> int:
        """The number of followers: waiters that have entered, without the leader."""
        return len(self._waiting)

    def leave(self, waiter: Waiter) -> None:
        """End the wait of `waiter`; if it leads, pass the lead to the follower that came first.

        May be called again, after an interrupt or for a waiter that never entered.
        """
        if self._waiting:
            self._waiting.pop(waiter, None)
        if waiter.queue is not None:
            waiter.queue.waiters.discard(waiter)
        if self.leader is waiter:
            if self._waiting:
                next_leader = next(iter(self._waiting))
                # First of all: an interrupt after it costs a needless wake-up, while a leader that
                # nobody wakes would leave all the others asleep.
                self.to_wake.append(next_leader)
                self.leader = next_leader
                del self._waiting[next_leader]
            else:
                self.leader = None

    def cancel(self, waiter: Waiter) -> bool:
        """Give up the requests of `waiter`; `leave` must follow.

        Requests that have not begun to go out are withdrawn, except a rollback, which must take
        place. The others are abandoned: the engine drops their late answers, and ends the
        transactions and watches that they began. May be called again after an interrupt.

        Returns:
            whether the daemon may have seen any of the requests.
        """
        # An interrupted leader may have left answers in the inbox.
        self.received()
        sent = False
        for exchange in waiter.exchanges:
            if exchange.withdrawn:
                continue
            if (
                exchange.answer is None
                and not exchange.abandoned
                and exchange.request != _ROLLBACK  # it must take place though nobody waits for it
                and self.engine.withdraw(exchange.rq_id)
            ):
                continue
            sent = True
            # Also an exchange that counts as abandoned: an interrupt may have cut that short.
            self.engine.abandon_exchange(exchange)
        return sent

    # What the daemon sends

    def received(self) -> None:
        """Act on the bytes in `inbox`: complete exchanges, queue events, note waiters to wake.

        May be called at any time, and again after an interrupt.
        """
        engine = self.engine
        engine.process()
        events = engine.events
        for item in events:
            if item.__class__ is Exchange:
                waiter: Waiter | None = item.owner
                if waiter is None:
                    continue
                # To look at every exchange of a batch after each answer would take the square of
                # their number. The last request is nearly always the last one answered.
                if waiter.exchanges[-1].answer is not None:
                    if waiter is self.leader and len(waiter.exchanges) == 1:
                        waiter.done = True
                    else:
                        self._update_done(waiter)
                # Without this line each request would leave a cycle for the garbage collector,
                # since the waiter refers to the exchange as well.
                item.owner = None
            else:
                self._take(item)
        events.clear()

    def close(self, reason: XenStoreError) -> None:
        """End the connection: every unanswered request and every watch ends with `reason`.

        All waiters are done after it. Does nothing more once the connection is over.
        """
        self.engine.close(reason)
        self.received()

    def _update_done(self, waiter: Waiter) -> None:
        """Find out whether `waiter` is done; if it is, and sleeps, put it into `to_wake`."""
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
        """Act on an event of the engine that is no answer."""
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
                    self._update_done(waiter)
        else:
            self.ignored.append(event)

    def _wake_waiters(self, queue: EventQueue) -> None:
        for waiter in list(queue.waiters):
            self._update_done(waiter)
            queue.waiters.discard(waiter)
