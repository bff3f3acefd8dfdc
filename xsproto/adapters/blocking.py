"""What the adapters share whose callers wait: a client of one connection or, on a device, of two.

How a connection waits is the adapter's. The rules of the device are told in
`xsproto.adapters.device`.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from types import TracebackType
from typing import Any, Generic, NamedTuple, Self, TypeVar
from weakref import WeakMethod

from ..client import Exchange
from ..clients.blocking import BlockingClient
from ..clients.connection import DEFAULT, BlockingConnection, Timeout, run_despite_interrupt
from ..errors import XenStoreError
from ..requests import Request, TransactionStart
from . import device
from .deadlines import Clock
from .device import ClientBase, Requests, Retired, RetiringConnection, merged, moved
from .discovery import Location

__all__ = ["AdapterConnection", "Backend", "BlockingClientBase", "RequestConnection"]


class AdapterConnection(BlockingConnection):
    """A connection."""

    def check_owner(self) -> None:
        """Raise `LocalProtocolError` if this thread may not use the connection."""

    @abstractmethod
    def close(self, reason: XenStoreError) -> None:
        """End the connection: whoever waits for something gets `reason`. Idempotent."""


class RequestConnection(RetiringConnection, AdapterConnection):
    """The connection of a device that requests go to; see `RetiringConnection`.

    A mixin: an adapter's is ``class RequestConnection(waiting.RequestConnection, Connection)``, in
    this order, so that ``super()`` here is the adapter's own connection.
    """

    successor: RequestConnection | None = None

    def exchange(
        self, tx_id: int, requests: Sequence[Request[Any]], deadline: float | None
    ) -> Sequence[Exchange]:
        """See `BlockingConnection`."""
        exchanges = self._attempt(tx_id, requests, deadline)
        if self.successor is None:
            return exchanges
        run_despite_interrupt(self.end_if_idle)
        again = moved(exchanges) if exchanges else requests
        if not again:
            return exchanges
        later = self.successor.exchange(tx_id, again, deadline)
        return merged(exchanges, later) if exchanges else later

    def start_transaction(
        self, deadline: float | None
    ) -> tuple[RequestConnection, Sequence[Exchange]]:
        """See `BlockingConnection`."""
        connection = self
        while True:
            exchanges = connection._attempt(0, (TransactionStart(),), deadline)
            # What was started is returned with no call before that, here and in `_attempt`: an
            # interrupt must not lose it.
            if exchanges and not exchanges[0].withdrawn:
                return connection, exchanges
            run_despite_interrupt(connection.end_if_idle)
            assert connection.successor is not None
            connection = connection.successor

    def _attempt(
        self, tx_id: int, requests: Sequence[Request[Any]], deadline: float | None
    ) -> Sequence[Exchange]:
        """As `exchange`, on this connection alone; what must go to the successor is withdrawn.

        Or, if that is so from the beginning, there are no exchanges.
        """
        self.check_owner()
        try:
            # (mypy sees the abstract one, not the adapter's.)
            exchanges = super().exchange(tx_id, requests, deadline)  # type: ignore[safe-super]
            if exchanges and not exchanges[0].withdrawn:
                self.answered = True
            return exchanges
        except Retired:
            return ()
        except BaseException:
            run_despite_interrupt(self._give_up)
            raise

    def _give_up(self) -> None:
        with self.guard:
            retired = self.retire_if_given_up()
        if retired:
            self.end_if_idle()


L = TypeVar("L", bound=AdapterConnection)


class Backend(NamedTuple, Generic[L]):
    """What an adapter's clients are made of.

    Attributes:
        clock: of a client with that timeout.
        connect: makes the connection of a socket at a path,
        open_requests: or those of a device, a `RequestConnection` (the last argument is its
            `replace`),
        open_watches: and that of watches.
    """

    clock: Callable[[float | None], Clock]
    connect: Callable[[str, Clock], L]
    open_requests: Callable[[str, Clock, WeakMethod[Any]], Any]
    open_watches: Callable[[str, Clock], L]


class BlockingClientBase(ClientBase, BlockingClient, Generic[L]):
    """A client of one connection or, on a device, of two. It is connected at once.

    Arguments:
        location: where XenStore is.
        timeout: seconds that each call may take, if it is not told otherwise, and connecting;
            None for ever. By default that is for ever on a socket, and `device.TIMEOUT` on a
            device.
        parts: the adapter's.

    Raises:
        ConnectFailed: nobody listens there, or it may not be used.
    """

    _connection: L
    #: Taken over the opening of connections.
    _opening: AbstractContextManager[Any] = nullcontext()

    def __init__(self, location: Location, timeout: Timeout, backend: Backend[L]) -> None:
        path, on_device = location.path, location.kind == "device"
        if timeout is DEFAULT:
            timeout = device.TIMEOUT if on_device else None
        self._path = path
        self._backend = backend
        self._clock = clock = backend.clock(timeout)
        self._ended = False  # whether `close` was called
        self._requests = None
        self._watches: L | None = None
        if on_device:
            open_requests, replace = backend.open_requests, WeakMethod(self._replace)
            self._requests = Requests(lambda: open_requests(path, clock, replace))
            self._connection = self._requests.current
        else:
            self._connection = self._watches = backend.connect(path, clock)

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

        Whoever waits gets `ConnectionClosed`.
        """
        self._connection.check_owner()
        self._ended = True  # first: whoever opens a connection now looks at it afterwards
        self._close_connections()

    def deadline(self, seconds: float) -> AbstractContextManager[None]:
        """Within ``with``, all calls of this thread, or greenlet, together may take `seconds`.

        A shorter `timeout` of a call, and an outer deadline, hold as well.
        """
        return self._clock.deadline(seconds)

    def _watch_connection(self) -> L:
        if self._watches is None:
            if self._connection.session.closed is not None:
                return self._connection  # which says why
            self._connection.check_owner()
            with self._opening:
                if self._watches is None:
                    self._watches = self._backend.open_watches(self._path, self._clock)
            if self._ended:
                self.close()
        return self._watches

    def _replace(self, connection: RequestConnection) -> RequestConnection | None:
        with self._opening:
            successor: RequestConnection | None = super()._replace(connection)
        if self._ended and successor is not None:
            self._close_connection(successor)
        return successor
