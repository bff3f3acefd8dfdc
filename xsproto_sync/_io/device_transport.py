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


class XenBusTransport(device_transport.RequestTransport, Transport):
    """The device, opened for requests, for threads that wait."""

    def __init__(self, path: str, modules: SystemModules = MODULES) -> None:
        """Open the device; see `xsproto.adapters.device_transport.RequestTransport`."""
        Transport.__init__(self, path)
        device_transport.RequestTransport.__init__(self, path, modules)

    def wait(self, timeout: float | None, write: bool) -> bool:
        """See `Transport`. `write` is not used: the device is never ready to be written to."""
        if self._epoll is None or self.patched():
            return super().wait(timeout, False)
        return bool(self._epoll.poll(timeout, 1))

    def read(self, inbox: list[bytes]) -> None:
        """See `Transport`."""
        self.wait(None, False)
        self.read_now(inbox)


class WatchTransport(device_transport.WatchTransport, XenBusTransport):
    """The device, opened for watches, for threads that wait."""

    def __init__(self, path: str, modules: SystemModules = MODULES) -> None:
        """Open the device; see `xsproto.adapters.device_transport.WatchTransport`."""
        super().__init__(path, modules)
