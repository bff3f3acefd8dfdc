"""The lane of a device that requests go to; see `xsproto.device`."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import Any
from weakref import WeakMethod

from xsproto.client import Exchange
from xsproto.device import DeviceSession, Retired
from xsproto.errors import ConnectionClosed
from xsproto.lanes import Timeout, insist
from xsproto.requests import Request

from .clock import Clock
from .lane import Lane
from .xenbus import XenBusTransport

__all__ = ["RequestLane"]


class RequestLane(Lane):
    """Is retired, and goes on in a successor, once a request is given up that was sent.

    Arguments:
        replace: a method that is called with the lane to be retired, at most once with success,
            and makes its successor; None if there can be none.
    """

    forgetful = True
    transport: XenBusTransport
    session: DeviceSession

    def __init__(
        self,
        path: str,
        clock: Clock,
        replace: Callable[[RequestLane], RequestLane | None],
    ) -> None:
        super().__init__(XenBusTransport(path), clock, DeviceSession())
        # Weak, so that a client that nobody has any more needs no garbage collector.
        self._replace = WeakMethod(replace)
        self._successor: RequestLane | None = None

    def exchange(
        self, tx_id: int, requests: Sequence[Request[Any]], timeout: Timeout
    ) -> Sequence[Exchange]:
        """See `BlockingLane`."""
        left = self.until(timeout)
        try:
            exchanges = super().exchange(tx_id, requests, left())
        except Retired:
            assert self._successor is not None
            return self._successor.exchange(tx_id, requests, left())
        except BaseException:
            insist(self._retire)
            raise
        moved = [exchange.request for exchange in exchanges if exchange.withdrawn]
        if not moved:
            return exchanges
        assert self._successor is not None
        rest = iter(self._successor.exchange(tx_id, moved, left()))
        return [next(rest) if exchange.withdrawn else exchange for exchange in exchanges]

    def _retire(self) -> None:
        with self._lock:
            if self.session.closed is not None or not self.session.forsaken:
                return
            if self._successor is None:
                replace = self._replace()
                self._successor = None if replace is None else replace(self)
            if self._successor is not None:
                self.session.retire()
                self._wake()
                # The leader waits for the device; it may be one whose requests have moved.
                self.transport.poke()

    def end_if_idle(self) -> bool:
        """Close, if nobody needs this lane any more; say whether."""
        with self._lock:
            if self.session.leader is None:
                with suppress(OSError):
                    self.transport.read_now(self.session.inbox)
                self.session.received()
                self.flush()
            idle = self.session.idle
        if idle:
            self.close(ConnectionClosed("this descriptor of the XenBus device was given up"))
        return idle
