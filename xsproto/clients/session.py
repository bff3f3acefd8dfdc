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

**The order of calls.** For each call of its user an adapter does these steps, each under its lock
if it has threads:

1. `ClientConnection.send`, whose `Exchange` is what the caller waits for. Several requests at once
   take `Session.send_all` and a `Waiter`, and so does an event: its waiter has a queue, which
   `Session.listen` feeds.
2. `ClientConnection.data_to_send`, and write, for as long as bytes can be written without waiting.
3. `Session.enter`. ``LEAD``: this caller must receive. ``WAIT``: it must sleep until it is woken.
   ``DONE``: its wait is over already.
4. The leader receives and calls `Session.received`, again and again, until its waiter is done. A
   follower that has been woken is done, or has become the leader: `Session.leads` says so.
5. `Session.leave`, whatever has happened. After an error, a timeout or a cancellation
   `Session.cancel` comes first.

After each step the adapter wakes every waiter in `Session.to_wake`. Receiving itself needs no lock.

**The window.** At most `WINDOW` messages are unanswered at once; the others wait in the engine. No
caller ever waits for room to write without receiving as well: what the daemon does not take now is
kept, for a later step. So the client and the daemon cannot dead-lock with the buffers of both
directions full, each waiting until the other one reads.

**Wake-ups.** A follower is woken when it is done and when it becomes the leader. A wake-up may come
twice, and for nothing. So a woken caller looks at its waiter before it believes anything.

**The invariant.** If a waiter has entered and is not done, there is a leader; and that leader
receives, or its wake-up is in `Session.to_wake` or on its way. A session that broke it would have a
caller that sleeps while nobody receives, for ever.

**Interrupts.** A signal handler may raise an exception between any two lines of Python, as that of
Ctrl-C does. The contract is this:

1. While a call waits, an interrupt is safe. The request is withdrawn or abandoned, the lead is
   passed on, and the client goes on.
2. In a step of bookkeeping, an interrupt ends the connection, with a reason that says so. Every
   caller gets that reason. Nothing half done is ever acted upon.
3. The bytes of a ``recv`` that waits are stored by the very call that receives them. So an
   interrupt finds them in the kernel or in the store: see "The recv idiom" in
   `xsproto.adapters.transport`.

`Session.changing` is how the second rule is kept. An adapter sets it at the beginning of a step, or
of several in a row, and clears it at the end. If it is found set by the clean-up of the call that
was interrupted, or at the beginning of the next step, the step did not come to its end, and
`Session.break_off` closes the connection.
"""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Iterable, Sequence
from enum import Enum
from itertools import count
from typing import Any, Final

from .._log import CLIENT, INFO, WARNING, log
from ..client import ClientConnection, Exchange, already_watched
from ..errors import ConnectionClosed, XenStoreError
from ..events import Closed, Ignored, Reset, WatchFired
from ..paths import is_within, upwards
from ..requests import Request, TransactionEnd, Unwatch, Watch
from ..states import TransactionState, WatchState
from . import messages
from .event_queue import EventQueue

__all__ = ["WINDOW", "Role", "Session", "Wait", "Waiter"]

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
_WAIT: Final = Role.WAIT


class Waiter:
    """One wait of a caller for something else than the answer to one request.

    It waits for an event in `queue`; without a queue, for the answers to all of `exchanges`; with
    neither, for the end of the connection.

    Attributes:
        queue: the queue whose next event ends the wait; None to wait for answers.
        exchanges: the requests whose answers end the wait.
        unanswered: how many of `exchanges` have no answer yet.
        handle: what the adapter wakes the caller with, such as a lock, a future or a task. The
            session does not use it.
        done: whether the wait is over: what was waited for is there, or will never come.
    """

    def __init__(self, queue: EventQueue | None = None) -> None:
        self.queue = queue
        self.exchanges: Sequence[Exchange] = ()
        self.unanswered = 0
        self.handle: Any = None
        self.done = False


#: A wait of a caller. For one request its `Exchange` serves, which has `handle` and `done` as well.
Wait = Exchange | Waiter


class Session:
    """The callers of one connection, and what each of them waits for.

    Not thread-safe: an adapter with threads takes a lock over each call.

    Arguments:
        engine: the engine that they share; None for a new one with a window of `WINDOW`.
    """

    def __init__(self, engine: ClientConnection | None = None) -> None:
        #: Where the connection leads to, for the log.
        self.name = "XenStore"
        #: The engine, to send with, to look at and to write from.
        self.engine = engine or ClientConnection(max_outstanding=WINDOW)
        #: Whether a step of bookkeeping has begun and not ended: see "Interrupts" above.
        self.changing = False
        #: The waiter that receives on behalf of all; None while nobody waits.
        self.leader: Wait | None = None
        # The followers. A dict keeps them in the order in which they came.
        self._waiting: dict[Wait, None] = {}
        # The queues that take the events of a token, by the watched path.
        self._listeners: dict[bytes, dict[bytes, EventQueue]] = {}
        # How many watches feed each of these queues.
        self._queues: dict[EventQueue, int] = {}
        # The queues that take the events of all other tokens.
        self._rest: list[EventQueue] = []
        self._tokens = count(1)
        #: The waiters to wake now.
        self.to_wake: list[Wait] = []
        #: Whether events were queued, or the connection ended, since this was last set to False.
        self.fired = False
        #: The last packets that nobody waited for, and why they were ignored.
        self.ignored: deque[Ignored] = deque(maxlen=64)

    @property
    def closed(self) -> XenStoreError | None:
        """Why the connection is over; None while it is not."""
        return self.engine.closed

    def break_off(self) -> None:
        """Close the connection, because a step of bookkeeping was interrupted.

        The caller clears `changing` once it has told all waiters. May be called again.
        """
        reason = ConnectionClosed(
            "the connection was closed: an exception, as of a signal handler, interrupted its "
            "bookkeeping"
        )
        self.close(reason)
        # If the interrupted step was the end of the connection, `close` has done nothing.
        self._end(self.closed or reason)

    # Requests

    def send_all(
        self, waiter: Waiter, requests: Sequence[Request[Any]], tx_id: int = 0
    ) -> list[Exchange]:
        """Queue a batch of requests in the engine: all of them, or none.

        Arguments:
            waiter: the wait for their answers; its `exchanges` are set here. With no requests, it
                is done at once.
            requests: the requests, none of which begins or ends a transaction or a watch.
            tx_id: the transaction that they belong to; 0 for none.

        Raises:
            LocalProtocolError, ConnectionClosed: see `ClientConnection.send_all`.
        """
        waiter.exchanges = exchanges = self.engine.send_all(requests, tx_id, waiter)
        waiter.unanswered = len(exchanges)
        waiter.done = not exchanges
        return exchanges

    def post(self, request: Request[Any], tx_id: int = 0) -> None:
        """Queue a request whose answer nobody will wait for.

        Arguments:
            request: the request.
            tx_id: the transaction that it belongs to; 0 for none.

        Raises:
            LocalProtocolError, AlreadyExists, ConnectionClosed: see `ClientConnection.send`.
        """
        self.engine.abandon(self.engine.send(request, tx_id))

    # Watches

    def new_token(self) -> bytes:
        """Return a token that this session has not used yet."""
        return b"xsproto-%d" % next(self._tokens)

    def listen(self, queue: EventQueue, path: bytes, token: bytes) -> None:
        """Feed a queue from a watch that is about to be set.

        Arguments:
            queue: gets the events of the watch from now on.
            path: the watched path.
            token: the watch's token.

        Raises:
            AlreadyExists: there is a watch with this path and token already.
        """
        if path in self._listeners.get(token, ()):
            raise already_watched(Watch(path, token))
        queue.watches.add((path, token))
        self._listeners.setdefault(token, {})[path] = queue
        self._queues[queue] = self._queues.get(queue, 0) + 1

    def listen_to_rest(self, queue: EventQueue) -> None:
        """Feed a queue with every event whose token no other queue listens for.

        It does so until the connection ends. It is for callers that set watches with requests of
        their own, and know their tokens.
        """
        self._rest.append(queue)

    def listeners(self) -> list[tuple[tuple[bytes, bytes], EventQueue]]:
        """Return the watches that feed a queue, each a (path, token), with the queue."""
        return [
            ((path, token), queue)
            for token, queues in self._listeners.items()
            for path, queue in queues.items()
        ]

    def share_listeners(self, old: Session) -> None:
        """Feed the queues of a session that is over; choose no token that it has chosen.

        What the old session does to its listeners, it does to those of this one.
        """
        self._listeners = old._listeners
        self._queues = old._queues
        # An interrupted step may have counted wrong.
        self._queues.clear()
        self._queues.update(Counter(queue for _, queue in self.listeners()))
        self._rest = old._rest
        self._tokens = old._tokens

    def forget_listeners(self) -> None:
        """Feed no queue any more; their watches stay as they are."""
        self._listeners = {}
        self._queues = {}
        self._rest = []

    def resume(self) -> None:
        """Have the queues that another session fed begin with an overflow of each watch."""
        for queue in self._queues:
            queue.ended = None
            queue.collapse()
            self._wake_waiters(queue)
        self.fired = True

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
        queues = self._listeners.get(token, {})
        if queues.get(path) is not queue:
            return
        self._queues[queue] = self._queues.get(queue, 0) - 1
        if self._queues[queue] <= 0:
            del self._queues[queue]
        del queues[path]
        if not queues:
            del self._listeners[token]

    def unwatch(self, queue: EventQueue, watches: Iterable[tuple[bytes, bytes]]) -> None:
        """End watches, with an UNWATCH for each that is set or being set.

        Do not wait for the answers. May be called again.

        Arguments:
            queue: the queue that they feed.
            watches: the watches, as (path, token).
        """
        watches = list(watches)
        if self.closed is None:
            for path, token in watches:
                if self.engine.watch_state(path, token) in (WatchState.SETTING, WatchState.SET):
                    self.post(Unwatch(path, token))
        self.unlisten(queue, watches)

    @property
    def events_waiting(self) -> bool:
        """Whether any queue is ready: it has an event to take, or has ended."""
        return any(queue.ready for queue in (*self._queues, *self._rest))

    # The leader and its followers

    def enter(self, waiter: Wait) -> Role:
        """Begin to wait.

        Returns:
            what the caller must do. ``LEAD``: it is the leader now, and must receive until `waiter`
            is done. ``WAIT``: another one leads, and this caller must sleep until it is woken.
            ``DONE``: `waiter` is done already.
        """
        if isinstance(waiter, Waiter):
            if (queue := waiter.queue) is not None:
                waiter.done = queue.ready
            if waiter.done or self.engine.closed is not None:
                waiter.done = True
                return Role.DONE
            if queue is not None:
                queue.waiters.add(waiter)
        if self.leader is None:
            self.leader = waiter
            return _LEAD
        self._waiting[waiter] = None
        return _WAIT

    def leads(self, waiter: Wait) -> bool:
        """Whether `waiter` is the leader, which must receive."""
        return self.leader is waiter

    @property
    def waiting(self) -> int:
        """The number of followers: waiters that have entered, without the leader."""
        return len(self._waiting)

    def leave(self, waiter: Wait) -> None:
        """End the wait of `waiter`; if it leads, pass the lead to the follower that came first.

        May be called again, or for a waiter that never entered.
        """
        if self._waiting:
            self._waiting.pop(waiter, None)
        if isinstance(waiter, Waiter) and waiter.queue is not None:
            waiter.queue.waiters.discard(waiter)
        if self.leader is waiter:
            if self._waiting:
                self.leader = next_leader = next(iter(self._waiting))
                self.to_wake.append(next_leader)
                del self._waiting[next_leader]
            else:
                self.leader = None

    def cancel(self, waiter: Wait) -> bool:
        """Give up the requests of `waiter`; `leave` must follow.

        Requests that were not handed out are withdrawn, except a rollback, which must take place. A
        rollback takes the place of a commit that is withdrawn.
        The others are abandoned: the engine drops their late answers, and ends the transactions and
        watches that they began. May be called again.

        Returns:
            whether the daemon may have seen any of the requests.
        """
        engine = self.engine
        sent = False
        for exchange in waiter.exchanges if isinstance(waiter, Waiter) else (waiter,):
            exchange.owner = None
            # A rollback must take place though nobody waits for it.
            if exchange.request == _ROLLBACK or not engine.withdraw(exchange):
                engine.abandon(exchange)
                sent = True
            elif (
                isinstance(exchange.request, TransactionEnd)
                and engine.transactions.get(exchange.tx_id) is TransactionState.DOOMED
            ):
                # The caller may have looked already, and found its transaction about to end.
                self.post(_ROLLBACK, exchange.tx_id)
        return sent

    # What the daemon sends

    def received(self, data: bytes) -> None:
        """Act on bytes from the daemon: complete exchanges, queue events, note waiters to wake.

        A leader that has its answers and no followers leads no more.

        Arguments:
            data: the bytes; empty at the end of the stream.
        """
        engine = self.engine
        if data:
            engine.receive_data(data)
        else:
            engine.receive_eof()
        events, engine.events = engine.events, []
        for event in events:
            if event is self.leader and not self._waiting and engine.closed is None:
                # As `leave` does. (At the end of the connection the leader may be receiving.)
                self.leader = None
            elif event.__class__ is not Exchange:
                self._take(event)
            elif (waiter := event.owner) is not None:
                event.owner = None  # else there would be a cycle for the garbage collector
                waiter.unanswered -= 1
                if not waiter.unanswered:
                    waiter.done = True
                    self._wake(waiter)
            elif event in self._waiting:  # as `_wake`, without the call
                self.to_wake.append(event)
                del self._waiting[event]

    def close(self, reason: XenStoreError) -> None:
        """End the connection: every unanswered request and every watch ends with `reason`.

        All waiters are done after it. Does nothing more once the connection is over.
        """
        self.engine.close(reason)
        self.received(b"")  # this is no news to a closed engine, whose events are dealt with

    def _wake(self, waiter: Wait) -> None:
        """Have a waiter that is done woken, if it sleeps."""
        if waiter in self._waiting:
            self.to_wake.append(waiter)
            del self._waiting[waiter]

    def _end_wait(self, waiter: Wait) -> None:
        if isinstance(waiter, Waiter):
            waiter.done = True
        self._wake(waiter)

    def _take(self, event: Any) -> None:
        """Act on an event of the engine that is no answer."""
        if isinstance(event, WatchFired):
            for queue in self._listening(event):
                if queue.put(event.path, event.token):
                    log(CLIENT, WARNING, "%s: %s", self.name, messages.overflow(queue))
                self.fired = True
                self._wake_waiters(queue)
        elif isinstance(event, Reset):
            reason = ConnectionClosed("RESET_WATCHES ended every watch of the connection")
            for path, token in event.watches:
                if (ended := self._listeners.get(token, {}).get(path)) is not None:
                    ended.ended = reason
                    self._wake_waiters(ended)
                    self._detach(ended, path, token)
        elif isinstance(event, Closed):
            log(CLIENT, INFO, "%s: closed: %s", self.name, event.reason)
            self._end(event.reason)
        else:
            self.ignored.append(event)
            log(CLIENT, WARNING, "%s: %s", self.name, messages.ignored(event))

    def _listening(self, event: WatchFired) -> Sequence[EventQueue]:
        """Return the queues that take an event."""
        queues = self._listeners.get(event.token)
        if queues is None:
            return self._rest
        # There may be very many watches with one token, or very many parents of one path.
        if len(queues) <= event.path.count(b"/"):
            return [queue for path, queue in queues.items() if is_within(event.path, path)]
        return [queues[path] for path in upwards(event.path) if path in queues]

    def _end(self, reason: XenStoreError) -> None:
        """End every wait. May be called again."""
        self.fired = True
        # Not `_queues`, of which an interrupted step may have left one out.
        for queue in (*(queue for _, queue in self.listeners()), *self._rest):
            queue.ended = reason
            self._wake_waiters(queue)
        leader = () if self.leader is None else (self.leader,)
        for waiter in (*leader, *self._waiting):
            # An interrupted step may have left an exchange without an answer.
            for exchange in waiter.exchanges if isinstance(waiter, Waiter) else (waiter,):
                if exchange.answer is None and not exchange.withdrawn:
                    exchange.answer = reason
            self._end_wait(waiter)

    def _wake_waiters(self, queue: EventQueue) -> None:
        for waiter in queue.waiters:
            self._end_wait(waiter)
        queue.waiters.clear()
