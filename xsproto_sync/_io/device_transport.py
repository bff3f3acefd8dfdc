"""The XenBus device, for threads that wait."""

from __future__ import annotations

import select
from typing import Any

from xsproto.adapters import device_transport

from .transport import NATIVE_SELECT, WaitingTransport

__all__ = ["RequestTransport", "WatchTransport"]


class _Waiting(WaitingTransport):
    """How threads wait for the device."""

    _epoll: Any  # of `device_transport.DeviceTransport`

    def wait(self, timeout: float | None, write: bool) -> bool:
        """See `WaitingTransport`. `write` is not used: the device is never ready to be written."""
        if self._epoll is None or select.select is not NATIVE_SELECT:
            return super().wait(timeout, False)
        return bool(self._epoll.poll(timeout, 1))


class RequestTransport(device_transport.RequestTransport, _Waiting):
    """The device, opened for requests, for threads that wait."""


class WatchTransport(device_transport.WatchTransport, _Waiting):
    """The device, opened for watches, for threads that wait."""
