"""The XenBus device, for threads that wait."""

from __future__ import annotations

import _socket
import _thread  # noqa: F401  # for `native`
import io
import posix
import select
import sys
from collections.abc import Callable
from typing import Any, Final

from xsproto.adapters import device_transport
from xsproto.adapters.device_transport import SystemModules

from .transport import NATIVE_SELECT, WaitingTransport

__all__ = ["WatchTransport", "XenBusTransport", "native"]


def native(module: str, name: str) -> Any:
    """Return a function of the system, also where gevent or eventlet have patched its module.

    Arguments:
        module: the name of the module, which has been imported.
        name: the name of the function.

    Returns:
        the function; None if the module has none of that name.
    """
    if (gevent := sys.modules.get("gevent.monkey")) is not None:
        try:
            return gevent.get_original(module, name)
        except AttributeError:
            return None
    if (eventlet := sys.modules.get("eventlet.patcher")) is not None:
        return getattr(eventlet.original(module), name, None)
    return getattr(sys.modules[module], name, None)


def start_thread(function: Callable[..., object], arguments: tuple[Any, ...]) -> None:
    """Start a thread of the operating system, also where gevent or eventlet have patched threads.

    A greenlet that waits in the kernel would keep all the others waiting.

    Arguments:
        function: what the thread calls.
        arguments: what it calls that with.

    Raises:
        RuntimeError: there can be no more threads.
    """
    native("_thread", "start_new_thread")(function, arguments)


class _Select:
    """The module ``select``, also where gevent or eventlet have taken functions away."""

    EPOLLIN = POLLIN = select.POLLIN if hasattr(select, "POLLIN") else 1

    def __getattr__(self, name: str) -> Any:
        if (found := native("select", name)) is None:
            raise AttributeError(name)
        return found


#: The operating system, for `xsproto.adapters.device_transport`. Monkey-patching replaces ``os``
#: and ``socket``, but not ``posix`` and ``_socket``.
MODULES: Final = SystemModules(io, posix, _Select(), _socket, start_thread)


class XenBusTransport(device_transport.RequestTransport, WaitingTransport):
    """The device, opened for requests, for threads that wait."""

    def __init__(self, path: str, modules: SystemModules = MODULES) -> None:
        """Open the device; see `xsproto.adapters.device_transport.RequestTransport`."""
        super().__init__(path, modules)

    def wait(self, timeout: float | None, write: bool) -> bool:
        """See `WaitingTransport`. `write` is not used: the device is never ready to be written."""
        return _wait(self, timeout)


class WatchTransport(device_transport.WatchTransport, WaitingTransport):
    """The device, opened for watches, for threads that wait."""

    def __init__(self, path: str, modules: SystemModules = MODULES) -> None:
        """Open the device; see `xsproto.adapters.device_transport.WatchTransport`."""
        super().__init__(path, modules)

    def wait(self, timeout: float | None, write: bool) -> bool:
        """See `WaitingTransport`. `write` is not used: the device is never ready to be written."""
        return _wait(self, timeout)


def _wait(transport: Any, timeout: float | None) -> bool:
    if transport._epoll is None or select.select is not NATIVE_SELECT:
        return WaitingTransport.wait(transport, timeout, False)
    return bool(transport._epoll.poll(timeout, 1))
