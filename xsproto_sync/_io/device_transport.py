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

from .transport import NATIVE_SELECT, WaitingTransport

__all__ = ["WatchTransport", "XenBusTransport"]


def start_thread(function: Callable[..., object], arguments: tuple[Any, ...]) -> None:
    """Start a thread of the operating system, also where gevent or eventlet have patched threads.

    A greenlet that waits in the kernel would keep all the others waiting.

    Arguments:
        function: what the thread calls.
        arguments: what it calls that with.

    Raises:
        RuntimeError: there can be no more threads.
    """
    start = _thread.start_new_thread
    if (gevent := sys.modules.get("gevent.monkey")) is not None:
        start = gevent.get_original("_thread", "start_new_thread")
    elif (eventlet := sys.modules.get("eventlet.patcher")) is not None:
        start = eventlet.original("_thread").start_new_thread
    start(function, arguments)


#: The operating system, for `xsproto.adapters.device_transport`. Monkey-patching replaces ``os``
#: and ``socket``, but not ``posix`` and ``_socket``.
MODULES: Final = SystemModules(io, posix, select, _socket, start_thread)


class XenBusTransport(device_transport.RequestTransport, WaitingTransport):
    """The device, opened for requests, for threads that wait."""

    def __init__(self, path: str, modules: SystemModules = MODULES) -> None:
        """Open the device; see `xsproto.adapters.device_transport.RequestTransport`."""
        WaitingTransport.__init__(self, path)
        device_transport.RequestTransport.__init__(self, path, modules)

    def wait(self, timeout: float | None, write: bool) -> bool:
        """See `WaitingTransport`. `write` is not used: the device is never ready to be written."""
        return _wait(self, timeout)


class WatchTransport(device_transport.WatchTransport, WaitingTransport):
    """The device, opened for watches, for threads that wait."""

    def __init__(self, path: str, modules: SystemModules = MODULES) -> None:
        """Open the device; see `xsproto.adapters.device_transport.WatchTransport`."""
        WaitingTransport.__init__(self, path)
        device_transport.WatchTransport.__init__(self, path, modules)

    def wait(self, timeout: float | None, write: bool) -> bool:
        """See `WaitingTransport`. `write` is not used: the device is never ready to be written."""
        return _wait(self, timeout)


def _wait(transport: Any, timeout: float | None) -> bool:
    if transport._epoll is None or select.select is not NATIVE_SELECT:
        return WaitingTransport.wait(transport, timeout, False)
    return bool(transport._epoll.poll(timeout, 1))
