"""What the adapters share whose callers wait: a client of one lane or, on a device, of two.

How a lane waits is the adapter's. The rules of the device are told in `xsproto.adapters.device`.
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
from ..clients.connection import DEFAULT, BlockingLane, Timeout, insist
from ..errors import XenStoreError
from ..requests import Request, TransactionStart
from . import device
from .deadlines import Clock
from .device import LaneHolder, Requests, Retired, RetiringLane, merged, moved
from .discovery import Location

__all__ = ["LaneClient", "Parts", "RequestLane", "WaitingLane"]


class WaitingLane(BlockingLane):
    """A connection."""

    def check(self) -> None:
        """Raise `LocalProtocolError` if this thread may not use the lane."""

    @abstractmethod
    def close(self, reason: XenStoreError) -> None:
        """End the connection: whoever waits for something gets `reason`. Idempotent."""


class RequestLane(RetiringLane, WaitingLane):
    """The lane of a device that requests go to; see `RetiringLane`.

    A mixin: an adapter's is ``class RequestLane(waiting.RequestLane, Lane)``, in this order, so
    that ``super()`` here is the adapter's own lane.
    """

    successor: RequestLane | None = None

    def exchange(
        self, tx_id: int, requests: Sequence[Request[Any]], at: float | None
    ) -> Sequence[Exchange]:
        """See `BlockingLane`."""
        exchanges = self._attempt(tx_id, requests, at)
        if self.successor is None:
            return exchanges
        insist(self.end_if_idle)
        again = moved(exchanges) if exchanges else requests
        if not again:
            return exchanges
        later = self.successor.exchange(tx_id, again, at)
        return merged(exchanges, later) if exchanges else later

    def start_transaction(self, at: float | None) -> tuple[RequestLane, Sequence[Exchange]]:
        """See `BlockingLane`."""
        lane = self
        while True:
            exchanges = lane._attempt(0, (TransactionStart(),), at)
            # What was started is returned with no call before that, here and in `_attempt`: an
            # interrupt must not lose it.
            if exchanges and not exchanges[0].withdrawn:
                return lane, exchanges
            insist(lane.end_if_idle)
            assert lane.successor is not None
            lane = lane.successor

    def _attempt(
        self, tx_id: int, requests: Sequence[Request[Any]], at: float | None
    ) -> Sequence[Exchange]:
        """As `exchange`, on this lane alone; what must go to the successor is withdrawn.

        Or, if that is so from the beginning, there are no exchanges.
        """
        self.check()
        try:
            # (mypy sees the abstract one, not the adapter's.)
            exchanges = super().exchange(tx_id, requests, at)  # type: ignore[safe-super]
            if exchanges and not exchanges[0].withdrawn:
                self.answered = True
            return exchanges
        except Retired:
            return ()
        except BaseException:
            insist(self._give_up)
            raise

    def _give_up(self) -> None:
        with self.guard:
            retired = self.retire_if_given_up()
        if retired:
            self.end_if_idle()


L = TypeVar("L", bound=WaitingLane)


class Parts(NamedTuple, Generic[L]):
    """What an adapter's clients are made of.

    Attributes:
        clock: of a client with that timeout.
        connect: makes the lane of a socket at a path,
        open_requests: or those of a device, a `RequestLane` (the last argument is its `replace`),
        open_watches: and that of watches.
    """

    clock: Callable[[float | None], Clock]
    connect: Callable[[str, Clock], L]
    open_requests: Callable[[str, Clock, WeakMethod[Any]], Any]
    open_watches: Callable[[str, Clock], L]


class LaneClient(LaneHolder, BlockingClient, Generic[L]):
    """A client of one lane or, on a device, of two. It is connected at once.

    Arguments:
        location: where XenStore is.
        timeout: seconds that each call may take, if it is not told otherwise, and connecting;
            None for ever. By default that is for ever on a socket, and `device.TIMEOUT` on a
            device.
        parts: the adapter's.

    Raises:
        ConnectFailed: nobody listens there, or it may not be used.
    """

    _lane: L
    #: Taken over the opening of lanes.
    _opening: AbstractContextManager[Any] = nullcontext()

    def __init__(self, location: Location, timeout: Timeout, parts: Parts[L]) -> None:
        path, on_device = location.path, location.kind == "device"
        if timeout is DEFAULT:
            timeout = device.TIMEOUT if on_device else None
        self._path = path
        self._parts = parts
        self._clock = clock = parts.clock(timeout)
        self._ended = False  # whether `close` was called
        self._requests = None
        self._watches: L | None = None
        if on_device:
            open_requests, replace = parts.open_requests, WeakMethod(self._replace)
            self._requests = Requests(lambda: open_requests(path, clock, replace))
            self._lane = self._requests.current
        else:
            self._lane = self._watches = parts.connect(path, clock)

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
        self._lane.check()
        self._ended = True  # first: whoever opens a lane now looks at it afterwards
        self._close_lanes()

    def deadline(self, seconds: float) -> AbstractContextManager[None]:
        """Within ``with``, all calls of this thread, or greenlet, together may take `seconds`.

        A shorter `timeout` of a call, and an outer deadline, hold as well.
        """
        return self._clock.deadline(seconds)

    def _watch_lane(self) -> L:
        if self._watches is None:
            if self._lane.session.closed is not None:
                return self._lane  # which says why
            self._lane.check()
            with self._opening:
                if self._watches is None:
                    self._watches = self._parts.open_watches(self._path, self._clock)
            if self._ended:
                self.close()
        return self._watches

    def _replace(self, lane: RequestLane) -> RequestLane | None:
        with self._opening:
            successor: RequestLane | None = super()._replace(lane)
        if self._ended and successor is not None:
            self._close_lane(successor)
        return successor
