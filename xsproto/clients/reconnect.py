"""What a client does when its connection has ended and it may open another one. It does no I/O.

A client that reconnects has a `Reconnecting` where other clients have a connection. That holds the
connection of the moment, and an adapter's part of it (`xsproto.adapters.reconnecting`) opens the
next one. This module says what follows from the end of a connection:

**Requests.** A request that was not sent is sent on the next connection. So is one that was sent
and not answered, if it does no harm twice: it only reads, or what it changes ends with its
connection, as a watch does. Any other request that was sent and not answered may have taken place,
and nobody can tell. The caller gets `ConnectionClosed` with ``sent=True``, and the daemon does not
get the request again.

**Transactions.** They end with their connection, and nothing of them takes place. The ids of the
next daemon begin anew, so an id does not tell of which connection it is. Therefore a transaction
stays with the connection on which it began: see `Reconnecting.for_transaction`. Its next request
raises `TransactionLost`, on which `transact` starts over. A commit that was sent and not answered
raises `CommitUnknown`, as without reconnecting.

**Watches.** Watch queues belong to the caller, so they move to the next session: it shares the
listeners of the one before it. The watches are set again before anybody else uses the new
connection. Whatever happened meanwhile, nobody knows, so each queue collapses to one event with
``overflow`` for each of its watches. A WATCH that was under way is noted before it is sent. Else
its answer could come, and the connection end, before the caller notes it, and nobody would set the
watch again. If the daemon refuses a watch that it had before, the queue ends with that error.

**Lists.** A long list of children is read in parts, each from an offset in the list that the daemon
has then. The generation count of another daemon may happen to be the same. So the part after a
reconnect is one of a list that has changed, and the listing begins again.

**Who reconnects.** There is no background task. The caller that finds the connection gone opens the
next one; the others wait for it, each as long as its own time limit says. Attempts follow each
other with exponential backoff and full jitter: a random time between nothing and a window that
doubles. So a hundred clients of a daemon that comes back do not all come at once, again and again.

**The XenBus device** tells nothing when the daemon dies: requests just get no answer. There a
connection counts as ended when it has had no answer for `ReconnectPolicy.silence` seconds while one
was due. A caller that waits for events asks a harmless question that often.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from contextlib import AbstractContextManager
from types import NoneType
from typing import Any, Final

from .._record import record
from ..client import Exchange
from ..errors import (
    ConnectionClosed,
    Forked,
    InvalidArgument,
    InvalidType,
    LocalProtocolError,
    XenStoreError,
)
from ..requests import DirectoryPart, Part, Request, TransactionEnd, Unwatch, Watch
from ..states import WatchState
from ..wire import OK, Op
from .connection import ConnectionBase
from .event_queue import EventQueue
from .messages import client_closed, transaction_gone
from .session import Session, Wait, Waiter

__all__ = [
    "SILENT",
    "ReconnectPolicy",
    "Reconnecting",
    "TransactionConnection",
    "answered",
    "check_can_reconnect",
    "is_repeatable",
    "policy_of",
]

# Requests that may be sent twice: they read, or what they change ends with the connection.
_HARMLESS_TWICE: Final = frozenset(
    {
        *(Op.READ, Op.DIRECTORY, Op.DIRECTORY_PART, Op.GET_PERMS, Op.GET_DOMAIN_PATH),
        *(Op.IS_DOMAIN_INTRODUCED, Op.GET_FEATURE, Op.GET_QUOTA),
        *(Op.WATCH, Op.UNWATCH, Op.RESET_WATCHES, Op.TRANSACTION_START),
    }
)

#: Why a connection to the XenBus device counts as ended.
SILENT: Final = "the XenBus device has given no answer for too long"

# After so many attempts the window grows no more, so that no number gets too large.
_DOUBLINGS_MAX: Final = 32


@record(frozen=True)
class ReconnectPolicy:
    """When a client tries to connect again.

    The first attempt comes at once. Before each later one it waits for a random time between 0 and
    a window, which doubles each time. There is no last attempt: the time limits of calls, and
    `close`, end their waits.

    Attributes:
        first: the first window, in seconds.
        longest: the longest window, in seconds.
        silence: for the XenBus device, how many seconds without an answer mean that the daemon is
            gone.
    """

    first: float = 0.05
    longest: float = 5.0
    silence: float = 30.0

    def __attrs_post_init__(self) -> None:
        for name in ("first", "longest", "silence"):
            value = getattr(self, name)
            if not isinstance(value, (int, float)) or isinstance(value, bool):
                raise InvalidType(f"{name} must be a number of seconds, not {value!r}")
            if not 0 < value < float("inf"):
                raise InvalidArgument(f"invalid {name} {value!r}: it must be more than 0 seconds")

    def delay(self, attempt: int, random: float) -> float:
        """Return the seconds to wait before an attempt.

        Arguments:
            attempt: its number; 0 is the one that comes at once.
            random: a random number from 0 to 1.
        """
        if attempt == 0:
            return 0.0
        window = self.first * 2.0 ** min(attempt - 1, _DOUBLINGS_MAX)
        return random * min(window, self.longest)


def policy_of(reconnect: object) -> ReconnectPolicy | None:
    """Return the policy that the argument `reconnect` of a client stands for; None for none.

    Raises:
        InvalidType: it is neither a bool nor a `ReconnectPolicy`.
    """
    if isinstance(reconnect, ReconnectPolicy):
        return reconnect
    if not isinstance(reconnect, bool):
        raise InvalidType(f"reconnect must be a bool or a ReconnectPolicy, not {reconnect!r}")
    return ReconnectPolicy() if reconnect else None


def check_can_reconnect(stream: str | None) -> None:
    """Check that what a client was given can be opened again.

    Arguments:
        stream: the name of a connected stream that was handed in; None if there is none.

    Raises:
        InvalidArgument: it cannot.
    """
    if stream is not None:
        raise InvalidArgument(
            f"a client of {stream} cannot reconnect, because only the program can make another "
            "one: leave out reconnect=, or give a path or a host"
        )


def is_repeatable(request: Request[Any], sent: bool) -> bool:
    """Return whether a request without an answer may be sent on the next connection.

    Arguments:
        sent: whether the daemon may have seen it.
    """
    return not sent or request.op in _HARMLESS_TWICE


def answered(request: Request[Any], answer: bytes = OK) -> Exchange:
    """Return an exchange that is done.

    Arguments:
        answer: the payload of its reply.
    """
    exchange = Exchange()
    exchange.id = 0
    exchange.request = request
    exchange.message = None
    exchange.plain_op = -1
    exchange.answer = answer
    return exchange


class _DelegatingConnection(ConnectionBase):
    """A connection that does what another one does, for an adapter to add its exchanges.

    Attributes:
        current: the other connection. It may have ended.
    """

    def __init__(self, current: Any) -> None:
        self.current = current
        self.now = current.now
        self.sleep = current.sleep

    # Properties, because a connection may replace its own, as in a forked child.

    @property
    def session(self) -> Session:  # type: ignore[override]  # read only
        """See `ConnectionBase`."""
        session: Session = self.current.session
        return session

    @property
    def guard(self) -> AbstractContextManager[Any]:  # type: ignore[override]  # read only
        """See `ConnectionBase`."""
        guard: AbstractContextManager[Any] = self.current.guard
        return guard

    @property
    def forgetful(self) -> bool:  # type: ignore[override]  # read only
        """See `ConnectionBase`."""
        return bool(self.current.forgetful)

    @property
    def transport(self) -> Any:
        """The transport of the other connection."""
        return self.current.transport

    def check_owner(self) -> None:
        """Check that the current thread, or loop, may use the connection."""
        self.current.check_owner()

    def flush(self) -> None:
        """See `ConnectionBase`."""
        self.current.flush()

    def step(self, act: Callable[[Session], object]) -> None:
        """See `ConnectionBase`."""
        with self.guard:  # so that no connection follows before it is done
            self.current.step(act)

    def defer(self, function: Callable[..., object], arguments: tuple[Any, ...]) -> object:
        """See `ConnectionBase`."""
        result: object = self.current.defer(function, arguments)
        return result


class TransactionConnection(_DelegatingConnection):
    """The connection of a transaction of a client that reconnects. No other one follows it.

    Arguments:
        client: the connection of the client.
        current: the connection on which the transaction began.
    """

    def __init__(self, client: Reconnecting, current: Any) -> None:
        super().__init__(current)
        self._client = client

    def outcome(self, exchange: Exchange) -> Exchange:
        """Return an exchange that is done; see `after_end` if the connection has ended it."""
        if isinstance(exchange.answer, ConnectionClosed):
            return self.after_end(exchange.request, exchange.tx_id, exchange.answer)
        return exchange

    def after_end(self, request: Request[Any], tx_id: int, error: ConnectionClosed) -> Exchange:
        """Say what the end of the connection makes of a request that got no answer.

        Arguments:
            request: the request.
            tx_id: the transaction.
            error: the error that the request got instead.

        Returns:
            for a rollback, an exchange that is done: it has taken place.

        Raises:
            ConnectionClosed: the client was closed, or a commit may have taken place.
            TransactionLost: nothing of the transaction took place.
        """
        if isinstance(request, TransactionEnd) and not request.commit:
            return answered(request)
        if self._client.ended is not None or (isinstance(request, TransactionEnd) and error.sent):
            raise error
        raise transaction_gone(tx_id, error)


class Reconnecting(_DelegatingConnection):
    """A connection that is followed by another one when it ends.

    A connection takes over the guard and the watch queues of the one before it.

    Arguments:
        connection: the first connection.
        policy: when to try again.
        on_device: whether it is the XenBus device.
        requests: for the device's connection of watches, that of requests.
    """

    def __init__(
        self,
        connection: Any,
        policy: ReconnectPolicy,
        *,
        on_device: bool = False,
        requests: Any = None,
    ) -> None:
        super().__init__(connection)
        self.policy = policy
        self.on_device = on_device
        self.requests = requests
        if requests is not None:
            requests._watching = self
        # The connection of watches that follows this one of requests.
        self._watching: Reconnecting | None = None
        # On the device: since when an answer is due, and none has come.
        self._asked = float("inf")
        #: Why there will be no other connection; None while there may.
        self.ended: XenStoreError | None = None
        # The watches that are set or about to be set, as (path, token).
        self._watches: dict[tuple[bytes, bytes], Watch] = {}

    def abandon(self, waiter: Wait) -> None:
        """See `ConnectionBase`. It concerns the connection that the request was sent on."""
        waiter.handle.abandon(waiter)

    def unwatch(self, queue: EventQueue, watches: Iterable[tuple[bytes, bytes]]) -> None:
        """See `ConnectionBase`."""
        watches = list(watches)
        for watch in watches:
            self._watches.pop(watch, None)
        super().unwatch(queue, watches)

    @property
    def closed(self) -> XenStoreError | None:
        """See `ConnectionBase`. A connection that has ended by itself does not count."""
        closed = self.session.closed
        return closed if isinstance(closed, Forked) else self.ended

    # What came of a request

    def prepare(
        self, connection: Any, request: Request[Any], attempt: int, waiter: Waiter | None
    ) -> Exchange | None:
        """Prepare for sending a request.

        Arguments:
            connection: the connection to send it on, which was that of the moment.
            request: the request.
            attempt: how often it was sent, or about to be sent, before.
            waiter: see `BlockingConnection.exchange`; its `handle` is set to the connection.

        Returns:
            an exchange that is done, if the request need not be sent; None if it must be.

        Raises:
            ConnectionClosed: the client was closed.
        """
        if waiter is not None:
            waiter.handle = connection
        if self.ended is not None:
            raise client_closed(self.ended, request, sent=False)
        if isinstance(request, Watch):
            key = request.path, request.token
            if attempt and connection.session.engine.watch_state(*key) is WatchState.SET:
                return answered(request)
            # Only now: a connection that comes after `connection` is given the watch.
            self._watches[key] = request
        elif attempt and isinstance(request, DirectoryPart) and request.offset:
            return answered(request, request.encode_reply(Part(0, [b""], final=True)))
        return None

    def must_repeat(self, connection: Any, request: Request[Any], error: ConnectionClosed) -> bool:
        """Return whether a request that was not answered must be sent on the next connection.

        Arguments:
            connection: the connection that has ended.
            error: the error that it got instead.
        """
        return self._may_follow(connection) and is_repeatable(request, error.sent)

    def take_answers(
        self,
        connection: Any,
        missing: Sequence[int],
        exchanges: Sequence[Exchange],
        results: list[Exchange],
    ) -> list[int]:
        """Take what came of a part of a batch.

        Arguments:
            connection: the connection that it was sent on.
            missing: the places of its requests in the whole batch.
            exchanges: what came of them.
            results: the exchanges of the whole batch, which are replaced.

        Returns:
            the places of those that must be sent on the next connection.
        """
        for at, exchange in zip(missing, exchanges, strict=True):
            results[at] = exchange
        return [
            at
            for at in missing
            if isinstance(error := results[at].answer, ConnectionClosed)
            and self.must_repeat(connection, results[at].request, error)
        ]

    def must_listen_again(self, connection: Any, queue: EventQueue) -> bool:
        """Return whether a wait for an event that failed must go on, on the next connection.

        Arguments:
            connection: the connection on which it failed.
            queue: the queue of the event.
        """
        return self._may_follow(connection) and bool(queue.watches)

    def _may_follow(self, connection: Any) -> bool:
        """Return whether a connection has ended and another one may follow it."""
        closed = connection.session.closed
        # (In a forked child, the parent's connection is closed by a `LocalProtocolError`.)
        return self.ended is None and not isinstance(closed, LocalProtocolError | NoneType)

    # The next connection

    def adopt(self, connection: Any) -> list[tuple[Watch, EventQueue]]:
        """Have a new connection feed the queues of the one that has ended.

        Returns:
            the watches to set on it, each with its queue.
        """
        with self.guard:
            connection.inherit(self.current)
            return [
                (watch, queue)
                for key, queue in self.session.listeners()
                if (watch := self._watches.get(key)) is not None
            ]

    def refused(self, connection: Any, queue: EventQueue, error: XenStoreError) -> None:
        """End a queue, because the daemon has refused to set one of its watches again."""
        with self.guard:
            for key in queue.watches:
                self._watches.pop(key, None)
            connection.unwatch(queue, queue.watches)
            queue.ended = error

    def succeed(self, connection: Any) -> None:
        """Put a new connection, on which the watches are set, in the place of the current one.

        Raises:
            XenStoreError: the client was closed meanwhile.
        """
        with self.guard:
            if self.ended is not None:
                raise self.ended

            def resume(session: Session) -> None:
                kept = {key for key, _ in session.listeners()}
                for key in session.engine.watches:
                    if key not in kept:  # its queue was closed meanwhile
                        session.post(Unwatch(*key))
                session.resume()

            connection.step(resume)
            self.session.forget_listeners()
            self.current = connection
        self._asked = float("inf")
        if self._watching is not None:
            self._watching.current.close(ConnectionClosed(SILENT))
