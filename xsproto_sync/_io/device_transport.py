"""The XenBus device, for threads that wait."""

from __future__ import annotations

import select
from typing import Any

from xsproto.adapters import device_transport

from .transport import NATIVE_SELECT, WaitingTransport

__all__ = ["WatchTransport", "XenBusTransport"]


class XenBusTransport(device_transport.RequestTransport, WaitingTransport):
    """The device, opened for requests, for threads that wait."""

    def wait(self, timeout: float | None, write: bool) -> bool:
        """See `WaitingTransport`. `write` is not used: the device is never ready to be written."""
        return _wait(self, timeout)


class WatchTransport(device_transport.WatchTransport, WaitingTransport):
    """The device, opened for watches, for threads that wait."""

    def wait(self, timeout: float | None, write: bool) -> bool:
        """See `WaitingTransport`. `write` is not used: the device is never ready to be written."""
        return _wait(self, timeout)


def _wait(transport: Any, timeout: float | None) -> bool:
    if transport._epoll is None or select.select is not NATIVE_SELECT:
        return WaitingTransport.wait(transport, timeout, False)
    return bool(transport._epoll.poll(timeout, 1))
