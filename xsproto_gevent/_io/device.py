"""The XenBus device, for greenlets; see `xsproto.adapters.device`."""

from __future__ import annotations

import _socket
import io
import posix
import select
from types import SimpleNamespace
from typing import Final

from gevent.monkey import get_original

from xsproto.adapters.deadlines import Clock
from xsproto.adapters.device import device_session
from xsproto.adapters.device_transport import (
    DeviceTransport,
    RequestTransport,
    SystemModules,
    WatchTransport,
)

from .connection import Connection
from .transport import Transport

__all__ = ["open_requests", "open_watches"]

# The originals. Monkey-patching makes greenlets of threads, and takes epoll away.
_SELECT: Final = SimpleNamespace(poll=get_original("select", "poll"), POLLIN=select.POLLIN)
if hasattr(select, "EPOLLIN"):
    _SELECT.epoll, _SELECT.EPOLLIN = get_original("select", "epoll"), select.EPOLLIN
_MODULES: Final = SystemModules(
    io, posix, _SELECT, _socket, get_original("_thread", "start_new_thread")
)


def _transport(device: DeviceTransport) -> Transport:
    return Transport(device, device.wakeup_fds())


def open_requests(path: str, clock: Clock) -> Connection:
    """Open the device, and make the connection for requests.

    Arguments:
        path: the path of the device.
        clock: the client's time limits.

    Raises:
        ConnectFailed: there is no device at `path`, or it may not be used.
    """
    return Connection(_transport(RequestTransport(path, _MODULES)), clock, device_session())


def open_watches(path: str, clock: Clock) -> Connection:
    """Open the device, and make the connection that watches live on.

    Arguments:
        path: the path of the device.
        clock: the client's time limits.

    Raises:
        ConnectFailed: there is no device at `path`, or it may not be used, or no thread can be
            started.
    """
    return Connection(_transport(WatchTransport(path, _MODULES)), clock, device_session())
