"""The connection for requests on the device, for threads; see `xsproto.adapters.device`."""

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
    """The connection for requests on the device; see `BlockingRequestConnection`.

    Arguments:
        path: the path of the device.
        clock: the client's time limits.
        replace: see `xsproto.adapters.device.RetiringConnection`.

    Raises:
        ConnectFailed: there is no device at `path`, or it may not be used.
    """

    transport: XenBusTransport
    session: DeviceSession

    def __init__(self, path: str, clock: Clock, replace: WeakMethod[Any]) -> None:
        super().__init__(XenBusTransport(path), clock, DeviceSession())
        self.replace = replace

    def wake_all(self) -> None:
        """See `xsproto.adapters.device.RetiringConnection`."""
        self._wake()
        self.transport.wake()  # the leader: it waits for the device
