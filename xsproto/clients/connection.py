"""The base classes of connections, which adapters implement.

A connection is one byte stream to the daemon with its callers. A client of a socket has one. A
client of the XenBus device has two, each with a descriptor of its own: one for requests, one for
watches. The requests of a transaction stay on the connection on which it started.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Awaitable, Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from enum import Enum
from typing import Any, Final, Literal, Protocol, Self

from ..client import Exchange
from ..errors import XenStoreError
from ..requests import Request, TransactionEnd
from ..states import TRANSACTION, TransactionInput, TransactionState
from .event_queue import EventQueue, WatchEvent
from .session import Session, Wait, Waiter

__all__ = [
    "DEFAULT",
    "AsyncConnection",
    "BlockingConnection",
    "Clock",
    "ConnectionBase",
    "Timeout",
]


class Default(Enum):
    """The type of `DEFAULT`."""

    DEFAULT = "DEFAULT"

    def __repr__(self) -> str:
        return self.name


#: The timeout of a call that does not name one: the client's own holds.
DEFAULT: Final = Default.DEFAULT
#: The type of a timeout: seconds; None for no limit; or `DEFAULT`.
Timeout = float | None | Literal[Default.DEFAULT]


class Clock(Protocol):
    """The clock of a blocking client; see `xsproto.adapters.deadlines.Clock`.

    Attributes:
        endless: whether a call without a time limit of its own may take for ever.
    """

    endless: bool

    def now(self) -> float:
        """Return the time in seconds, of a clock that is never put back."""

    def deadline_for(self, timeout: Timeout) -> float | None:
        """Return the deadline of a call that begins now: a time of the clock; None for never.

        The methods of connections take deadlines, since one call of the user may need several
        exchanges.
        """


class ConnectionBase(ABC):
    """What blocking and asynchronous connections share."""

    #: The callers and the engine.
    session: Session
    #: Held around each use of `session`. No code waits for anything while it holds the guard.
    guard: AbstractContextManager[Any] = nullcontext()
    #: Returns the time in seconds, of a clock that is never put back.
    now: Callable[[], float]
    #: Whether the daemon may forget a transaction that was not ended; see `TransactionLost`.
    forgetful = False

    @property
    def closed(self) -> XenStoreError | None:
        """Why the connection is over; None while it is not."""
        return self.session.closed

    def for_transaction(self, waiter: Waiter) -> Self:
        """Return the connection for the requests of a transaction.

        Arguments:
            waiter: the wait for the start of the transaction, which was given to `exchange`.
        """
        return self

    def inherit(self, old: Self) -> None:
        """Feed the queues of a connection that has ended, before this one is used.

        Arguments:
            old: the connection, whose guard is held.
        """
        self.session.share_listeners(old.session)

    @abstractmethod
    def flush(self) -> None:
        """Write what can be written without waiting. The caller holds `guard`."""

    def random(self) -> float:
        """Return a random number from 0 to 1. A test may replace it."""
        from random import random  # most programs need none of it

        return random()

    def begin_step(self) -> Session:
        """Begin a step of bookkeeping, under `guard`: set `Session.changing`.

        The caller clears it at the end of the step.

        Returns:
            the session. If an earlier step was interrupted, it is closed.
        """
        session = self.session
        if session.changing:
            session.break_off()
        session.changing = True
        return session

    def step(self, act: Callable[[Session], object]) -> None:
        """Do a step of bookkeeping, then write what there is to write.

        Arguments:
            act: changes the session, or raises a `XenStoreError` before it has changed anything.

        Raises:
            XenStoreError: raised by `act`.
        """
        try:
            with self.guard:
                session = self.begin_step()
                try:
                    act(session)
                except XenStoreError:
                    session.changing = False
                    raise
                self.flush()
                session.changing = False
        except XenStoreError as error:
            error.__traceback__ = None  # the frames of the step tell a user nothing
            raise
        except BaseException:
            self.defer(self.end_step, ())
            raise

    def end_step(self) -> None:
        """Close the connection if a step was interrupted."""
        with self.guard:
            self.begin_step().changing = False

    def defer(self, function: Callable[..., object], arguments: tuple[Any, ...]) -> object:
        """Call a function that cleans up, where no interrupt reaches it if there is such a place.

        Arguments:
            function: what to call; it need not have returned when this returns.
            arguments: what to call it with.
        """
        return function(*arguments)

    def roll_back(self, tx_id: int) -> None:
        """Roll back without waiting for the answer, unless the transaction is ending or ended."""

        def roll_back(session: Session) -> None:
            # Looked up in the step: after an interrupt, the clean-up of another thread may have
            # rolled it back meanwhile.
            state = session.engine.transactions.get(tx_id, TransactionState.ENDED)
            if (state, TransactionInput.ROLLBACK) in TRANSACTION:
                session.post(TransactionEnd(commit=False), tx_id)

        self.step(roll_back)

    def unwatch(self, queue: EventQueue, watches: Sequence[tuple[bytes, bytes]]) -> None:
        """End watches, each a (path, token), without waiting for the answers."""
        self.step(lambda session: session.unwatch(queue, watches))

    def abandon(self, waiter: Wait) -> None:
        """Undo what the requests of `waiter` began: transactions and watches."""
        self.step(lambda session: session.cancel(waiter))


class BlockingConnection(ConnectionBase):
    """The connection of a blocking client.

    Attributes:
        clock: says when a call that begins now must be over.
        sleep: lets other callers run for so many seconds.
    """

    clock: Clock
    sleep: Callable[[float], object]

    def now(self) -> float:
        """See `ConnectionBase`."""
        return self.clock.now()

    @abstractmethod
    def exchange(
        self,
        request: Request[Any],
        tx_id: int,
        deadline: float | None,
        waiter: Waiter | None = None,
    ) -> Exchange:
        """Send a request and wait for its answer.

        Arguments:
            request: the request.
            tx_id: the transaction that it is part of; 0 for none.
            deadline: see `Clock.deadline_for`.
            waiter: the wait, from a caller that must be able to `abandon` the request whatever
                happens; None for a new one.

        Returns:
            The exchange, which is done.

        Raises:
            TimedOut: no answer came by `deadline`.
        """

    @abstractmethod
    def exchange_all(
        self, requests: Sequence[Request[Any]], tx_id: int, deadline: float | None
    ) -> Sequence[Exchange]:
        """Send requests, without waiting for each, and wait for all answers.

        Arguments:
            requests: the requests, none of which begins or ends a transaction or a watch.
            tx_id: the transaction that they are part of; 0 for none.
            deadline: see `Clock.deadline_for`.

        Returns:
            The exchanges, in the order of the requests. They are done.

        Raises:
            TimedOut: not all answers came by `deadline`.
        """

    @abstractmethod
    def take_event(self, queue: EventQueue, deadline: float | None) -> WatchEvent[Any]:
        """Wait for an event of `queue` and take it.

        Raises:
            TimedOut: there was none by `deadline`.
            XenStoreError: there will be none, and `queue.ended` is the reason.
        """


class AsyncConnection(ConnectionBase):
    """The connection of an asynchronous client.

    Attributes:
        sleep: lets other tasks run for so many seconds.
    """

    sleep: Callable[[float], Awaitable[object]]

    @abstractmethod
    async def exchange(
        self, request: Request[Any], tx_id: int, waiter: Waiter | None = None
    ) -> Exchange:
        """Send a request and wait for its answer.

        Arguments:
            request: the request.
            tx_id: the transaction that it is part of; 0 for none.
            waiter: see `BlockingConnection.exchange`.

        Returns:
            The exchange, which is done.
        """

    @abstractmethod
    async def exchange_all(
        self, requests: Sequence[Request[Any]], tx_id: int
    ) -> Sequence[Exchange]:
        """Send requests, without waiting for each, and wait for all answers.

        Arguments:
            requests: the requests, none of which begins or ends a transaction or a watch.
            tx_id: the transaction that they are part of; 0 for none.

        Returns:
            The exchanges, in the order of the requests. They are done.
        """

    @abstractmethod
    async def take_event(self, queue: EventQueue) -> WatchEvent[Any]:
        """Wait for an event of `queue` and take it.

        Raises:
            XenStoreError: there will be none, and `queue.ended` is the reason.
        """

    async def checkpoint(self) -> None:
        """Let other tasks run, where it is the loop's rule that every call does."""
