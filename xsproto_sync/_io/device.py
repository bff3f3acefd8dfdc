"""The connection of a device that requests go to; see `xsproto.adapters.device`."""

from __future__ import annotations

from typing import Any
from weakref import WeakMethod

from xsproto.adapters.blocking import BlockingRequestConnection
from xsproto.adapters.deadlines import Clock
from xsproto.adapters.device import DeviceSession

from .connection import Connection
from .device_transport import XenBusTransport

__all__ = ["RequestConnection"]


class RequestConnection(BlockingRequestConnection, Connection):
    """See `xsproto.adapters.blocking.BlockingRequestConnection`."""

    transport: XenBusTransport
    session: DeviceSession

    def __init__(self, path: str, clock: Clock, replace: WeakMethod[Any]) -> None:
        super().__init__(XenBusTransport(path), clock, DeviceSession())
        self.replace = replace

    def wake_all(self) -> None:
        """See `xsproto.adapters.device.RetiringConnection`."""
        self._wake()
        self.transport.wake()
