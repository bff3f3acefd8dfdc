"""The lane of a device that requests go to; see `xsproto.device`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any
from weakref import WeakMethod

from xsproto.client import Exchange
from xsproto.device import DeviceSession, Retired, merged, moved
from xsproto.errors import TransactionEnded
from xsproto.lanes import Timeout, insist
from xsproto.requests import Request, TransactionStart

from .clock import Clock
from .lane import Lane
from .xenbus import XenBusTransport

__all__ = ["RequestLane"]


class RequestLane(Lane):
    """Is retired, and goes on in a successor, once a request is given up that was sent.

    Arguments:
        replace: a method that is called with the lane to be retired, at most once with success,
            and makes its successor; None if there can be none. Weak, so that a client that nobody
            has any more needs no garbage collector.
    """

    forgetful = True
    transport: XenBusTransport
    session: DeviceSession

    def __init__(
        self,
        path: str,
        clock: Clock,
        replace: WeakMethod[Any],
    ) -> None:
        super().__init__(XenBusTransport(path), clock, DeviceSession())
        self._replace = replace
        self._successor: RequestLane | None = None
        #: Whether the daemon has answered a request on it.
        self.answered = False

    def exchange(
        self, tx_id: int, requests: Sequence[Request[Any]], timeout: Timeout
    ) -> Sequence[Exchange]:
        """See `BlockingLane`."""
        left = self.until(timeout)
        exchanges = self._attempt(tx_id, requests, left())
        if self._successor is None:
            return exchanges
        insist(self.end_if_idle)
        again = moved(exchanges) if exchanges else requests
        if not again:
            return exchanges
        later = self._successor.exchange(tx_id, again, left())
        return merged(exchanges, later) if exchanges else later

    def start_transaction(self, timeout: Timeout) -> tuple[RequestLane, Sequence[Exchange]]:
        """See `BlockingLane`."""
        left = self.until(timeout)
        lane = self
        while True:
            exchanges = lane._attempt(0, (TransactionStart(),), left())
            if exchanges and not exchanges[0].withdrawn:
                return lane, exchanges  # as above
            insist(lane.end_if_idle)
            assert lane._successor is not None
            lane = lane._successor

    def _attempt(
        self, tx_id: int, requests: Sequence[Request[Any]], timeout: Timeout
    ) -> Sequence[Exchange]:
        """As `exchange`, on this lane alone; what must go to the successor is withdrawn.

        Or, if that is so from the beginning, there are no exchanges.
        """
        try:
            exchanges = super().exchange(tx_id, requests, timeout)
            # With no call from here on: an interrupt must not lose what was started.
            if exchanges and not exchanges[0].withdrawn:
                self.answered = True
            return exchanges
        except Retired:
            return ()
        except BaseException:
            insist(self._give_up)
            raise

    def roll_back(self, tx_id: int) -> None:
        """See `BlockingLane`."""
        super().roll_back(tx_id)
        if self._successor is not None:
            self.end_if_idle()

    def disown(self, exchanges: Sequence[Exchange]) -> None:
        """See `BlockingLane`."""
        super().disown(exchanges)
        if self._successor is not None:
            self.end_if_idle()

    def _give_up(self) -> None:
        """Retire, if what was given up is a request that the daemon has seen."""
        with self._lock:
            if self.session.closed is not None:
                return
            if self._successor is None and self.session.forsaken:
                replace = self._replace()
                self._successor = None if replace is None else replace(self)
            if self._successor is None:
                return
            self.session.retire()
            self._wake()
            # The leader waits for the device; it may be one whose requests have moved.
            self.transport.poke()
        self.end_if_idle()

    def end_if_idle(self) -> None:
        """Close, if nobody needs this lane any more."""
        with self._lock:
            idle = self.session.idle
            if idle:
                self.session.retire()  # if an interrupt kept it from that
        if idle:
            # Nobody can see this but who goes on with a transaction that is over.
            self.close(TransactionEnded("a request got no answer: its descriptor was given up"))
