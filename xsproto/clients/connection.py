"""What an adapter provides: connections. A connection is a byte stream and its callers.

A client of a socket has one connection. A client of the XenBus device has two, each with a
descriptor of its own: requests go to one, watches to the other. Requests that belong together, such
as those of a transaction, stay on the connection on which the first of them went out.
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
    """The client's own timeout."""

    DEFAULT = "DEFAULT"


#: The time limit that the client has.
DEFAULT: Final = Default.DEFAULT
#: Seconds; None for ever; or `DEFAULT`.
Timeout = float | None | Literal[Default.DEFAULT]


def run_despite_interrupt(step: Callable[..., T], *arguments: Any) -> T:
    """Do `step`, a piece of cleaning up that may be done again, in spite of an interrupt.

    An exception out of a signal handler may cut it short: then it is done once more.
    """
    try:
        return step(*arguments)
    except BaseException:
        step(*arguments)
        raise


class ConnectionBase(ABC):
    """What a `BlockingConnection` and an `AsyncConnection` have in common."""

    session: Session
    #: Taken over each use of `session`. Nothing waits under it.
    guard: AbstractContextManager[Any] = nullcontext()
    #: Whether a transaction may be forgotten though nobody ended it; see `TransactionLost`.
    forgetful = False

    @abstractmethod
    def flush(self) -> None:
        """Write what can be written without waiting; `guard` is held."""

    def post(self, request: Request[Any], tx_id: int = 0) -> None:
        """Send a request whose answer nobody waits for; nothing, where the connection is over."""
        with self.guard:
            if self.session.closed is None:
                self.session.post(request, tx_id)
                self.flush()

    def roll_back(self, tx_id: int) -> None:
        """Roll back without waiting for the answer, unless the transaction ends or has ended."""
        transactions = self.session.engine.transactions
        state = transactions.get(tx_id, TransactionState.ENDED)
        if (state, TransactionInput.ROLLBACK) in TRANSACTION:
            self.post(TransactionEnd(commit=False), tx_id)

    def unwatch(self, queue: EventQueue, watches: Sequence[tuple[bytes, bytes]]) -> None:
        """Take watches back without waiting for the answers."""
        with self.guard:
            self.session.unwatch(queue, watches)
            self.flush()

    def abandon(self, exchanges: Sequence[Exchange]) -> None:
        """Have what came of `exchanges` undone."""
        with self.guard:
            for exchange in exchanges:
                self.session.engine.abandon_exchange(exchange)
            self.flush()


class BlockingConnection(ConnectionBase):
    """The connection of a client that waits.

    Attributes:
        deadline_for: the time, by the client's clock, when a call must be over that begins now and
            may take so long; None for never. That is what the others take as `deadline`: one call
            of the user's may need several of them.
    """

    deadline_for: Callable[[Timeout], float | None]

    @abstractmethod
    def exchange(
        self, tx_id: int, requests: Sequence[Request[Any]], deadline: float | None
    ) -> Sequence[Exchange]:
        """Send requests, of a transaction or (0) of none; return them with what came of each.

        Raises:
            TimedOut: not all answers came by `deadline`.
        """

    def start_transaction(
        self, deadline: float | None
    ) -> tuple[BlockingConnection, Sequence[Exchange]]:
        """Start a transaction; return its connection (maybe another one) and exchange."""
        return self, self.exchange(0, (TransactionStart(),), deadline)

    @abstractmethod
    def take_event(self, queue: EventQueue, deadline: float | None) -> WatchEvent:
        """Wait for an event; `TimedOut` if there is none by `deadline`, `queue.ended` if never."""


class AsyncConnection(ConnectionBase):
    """The connection of a client that is awaited."""

    @abstractmethod
    async def exchange(self, tx_id: int, requests: Sequence[Request[Any]]) -> Sequence[Exchange]:
        """Send requests, of a transaction or (0) of none; return them with what came of each."""

    async def start_transaction(self) -> tuple[AsyncConnection, Sequence[Exchange]]:
        """Start a transaction; return its connection (maybe another one) and exchange."""
        return self, await self.exchange(0, (TransactionStart(),))

    @abstractmethod
    async def take_event(self, queue: EventQueue) -> WatchEvent:
        """Wait for an event; `queue.ended` if there will be none."""

    async def checkpoint(self) -> None:
        """Let others run, in a loop whose rule is that every call does, though it need not wait."""
