"""The lane of a device that requests go to; see `xsproto.device`."""

from __future__ import annotations

from typing import Any
from weakref import WeakMethod

from xsproto import waiting
from xsproto.clock import Clock
from xsproto.device import DeviceSession

from .lane import Lane
from .xenbus import XenBusTransport

__all__ = ["RequestLane"]


class RequestLane(waiting.RequestLane, Lane):
    """See `xsproto.waiting.RequestLane`."""

    transport: XenBusTransport
    session: DeviceSession

    def __init__(self, path: str, clock: Clock, replace: WeakMethod[Any]) -> None:
        super().__init__(XenBusTransport(path), clock, DeviceSession())
        self.replace = replace

    def wake_all(self) -> None:
        """See `xsproto.device.RetiringLane`."""
        self._wake()
        self.transport.poke()
