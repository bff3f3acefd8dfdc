"""The XenBus device, for threads that wait."""

from __future__ import annotations

import _socket
import _thread
import io
import posix
import select
import sys
from collections.abc import Callable
from typing import Any, Final

from xsproto.adapters import device_transport
from xsproto.adapters.device_transport import SystemModules

from .transport import Transport

__all__ = ["WatchTransport", "XenBusTransport"]


def start_thread(function: Callable[..., object], arguments: tuple[Any, ...]) -> None:
    """Start a thread of the operating system, where threads have been patched to be greenlets.

    One that has to wait in the kernel would have all of them wait.
    """
    start = _thread.start_new_thread
    if (gevent := sys.modules.get("gevent.monkey")) is not None:
        start = gevent.get_original("_thread", "start_new_thread")
    elif (eventlet := sys.modules.get("eventlet.patcher")) is not None:
        start = eventlet.original("_thread").start_new_thread
    start(function, arguments)


# `posix` and `_socket`: not those which monkey-patching replaces.
#: The operating system, as `xsproto.adapters.device_transport` is to use it.
MODULES: Final = SystemModules(io, posix, select, _socket, start_thread)


class XenBusTransport(device_transport.RequestTransport, Transport):
    """An opened device, for requests."""

    def __init__(self, path: str, modules: SystemModules = MODULES) -> None:
        """See `xsproto.adapters.device_transport.RequestTransport`."""
        Transport.__init__(self, path)
        device_transport.RequestTransport.__init__(self, path, modules)

    def wait(self, timeout: float | None, write: bool) -> bool:
        """See `Transport`; the device is never ready to be written to."""
        if self._epoll is None or self.patched():
            return super().wait(timeout, False)
        return bool(self._epoll.poll(timeout, 1))

    def read(self, inbox: list[bytes]) -> None:
        """See `Transport`."""
        self.wait(None, False)
        self.read_now(inbox)


class WatchTransport(device_transport.WatchTransport, XenBusTransport):
    """An opened device, for watches."""

    def __init__(self, path: str, modules: SystemModules = MODULES) -> None:
        """See `xsproto.adapters.device_transport.WatchTransport`."""
        super().__init__(path, modules)
