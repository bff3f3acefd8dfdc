"""The base classes of connections, which adapters implement.

A connection is one byte stream to the daemon with its callers. A client of a socket has one. A
client of the XenBus device has two, each with a descriptor of its own: one for requests, one for
watches. The requests of a transaction stay on the connection on which it started.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from enum import Enum
from typing import Any, Final, Literal, TypeVar

from ..client import Exchange
from ..requests import Request, TransactionEnd, TransactionStart
from ..states import TRANSACTION, TransactionInput, TransactionState
from .event_queue import EventQueue, WatchEvent
from .session import Session

__all__ = [
    "DEFAULT",
    "AsyncConnection",
    "BlockingConnection",
    "ConnectionBase",
    "Timeout",
    "run_despite_interrupt",
]

T = TypeVar("T")


class Default(Enum):
    """The type of `DEFAULT`."""

    DEFAULT = "DEFAULT"

    def __repr__(self) -> str:
        return self.name


#: The timeout of a call that does not name one: the client's own holds.
DEFAULT: Final = Default.DEFAULT
#: The type of a timeout: seconds; None for no limit; or `DEFAULT`.
Timeout = float | None | Literal[Default.DEFAULT]


def run_despite_interrupt(step: Callable[..., T], *arguments: Any) -> T:
    """Call a clean-up step; call it once more if an exception leaves it, then raise that exception.

    An exception from a signal handler may leave the step half done. So `step` must be one that may
    be called again.
    """
    try:
        return step(*arguments)
    except BaseException:
        step(*arguments)
        raise


class ConnectionBase(ABC):
    """What blocking and asynchronous connections share."""

    #: The callers and the engine.
    session: Session
    #: Held around each use of `session`. No code waits for anything while it holds the guard.
    guard: AbstractContextManager[Any] = nullcontext()
    #: Whether the daemon may forget a transaction that was not ended; see `TransactionLost`.
    forgetful = False

    @abstractmethod
    def flush(self) -> None:
        """Write what can be written without waiting. The caller holds `guard`."""

    def post(self, request: Request[Any], tx_id: int = 0) -> None:
        """Send a request without waiting for its answer. A closed connection sends nothing."""
        with self.guard:
            if self.session.closed is None:
                self.session.post(request, tx_id)
                self.flush()

    def roll_back(self, tx_id: int) -> None:
        """Roll back without waiting for the answer, unless the transaction is ending or ended."""
        transactions = self.session.engine.transactions
        state = transactions.get(tx_id, TransactionState.ENDED)
        if (state, TransactionInput.ROLLBACK) in TRANSACTION:
            self.post(TransactionEnd(commit=False), tx_id)

    def unwatch(self, queue: EventQueue, watches: Sequence[tuple[bytes, bytes]]) -> None:
        """End watches, each a (path, token), without waiting for the answers."""
        with self.guard:
            self.session.unwatch(queue, watches)
            self.flush()

    def abandon(self, exchanges: Sequence[Exchange]) -> None:
        """Undo what the requests of `exchanges` began: transactions and watches."""
        with self.guard:
            for exchange in exchanges:
                self.session.engine.abandon_exchange(exchange)
            self.flush()


class BlockingConnection(ConnectionBase):
    """The connection of a blocking client.

    Attributes:
        deadline_for: takes the timeout of a call that begins now and returns its deadline: a time
            of the client's clock, or None for no limit. The methods take deadlines, since one call
            of the user may need several exchanges.
    """

    deadline_for: Callable[[Timeout], float | None]

    @abstractmethod
    def exchange(
        self, tx_id: int, requests: Sequence[Request[Any]], deadline: float | None
    ) -> Sequence[Exchange]:
        """Send requests and wait for their answers.

        Arguments:
            tx_id: the transaction that they are part of; 0 for none.
            deadline: see `deadline_for`.

        Returns:
            The exchanges, in the order of the requests.

        Raises:
            TimedOut: not all answers came by `deadline`.
        """

    def start_transaction(
        self, deadline: float | None
    ) -> tuple[BlockingConnection, Sequence[Exchange]]:
        """Start a transaction; return its connection, perhaps another one, and its exchange."""
        return self, self.exchange(0, (TransactionStart(),), deadline)

    @abstractmethod
    def take_event(self, queue: EventQueue, deadline: float | None) -> WatchEvent:
        """Wait for an event of `queue` and take it.

        Raises:
            TimedOut: there was none by `deadline`.
            XenStoreError: there will be none, and `queue.ended` is the reason.
        """


class AsyncConnection(ConnectionBase):
    """The connection of an asynchronous client."""

    @abstractmethod
    async def exchange(self, tx_id: int, requests: Sequence[Request[Any]]) -> Sequence[Exchange]:
        """Send requests and wait for their answers.

        Arguments:
            tx_id: the transaction that they are part of; 0 for none.

        Returns:
            The exchanges, in the order of the requests.
        """

    async def start_transaction(self) -> tuple[AsyncConnection, Sequence[Exchange]]:
        """Start a transaction; return its connection, perhaps another one, and its exchange."""
        return self, await self.exchange(0, (TransactionStart(),))

    @abstractmethod
    async def take_event(self, queue: EventQueue) -> WatchEvent:
        """Wait for an event of `queue` and take it.

        Raises:
            XenStoreError: there will be none, and `queue.ended` is the reason.
        """

    async def checkpoint(self) -> None:
        """Let other tasks run, where it is the loop's rule that every call does."""
