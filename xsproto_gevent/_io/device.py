"""The XenBus device, for greenlets; see `xsproto.adapters.device`."""

from __future__ import annotations

import _socket
import io
import posix
import select
from types import SimpleNamespace
from typing import Any, Final
from weakref import WeakMethod

from gevent.monkey import get_original

from xsproto.adapters.blocking import BlockingRequestConnection
from xsproto.adapters.deadlines import Clock
from xsproto.adapters.device import DeviceSession
from xsproto.adapters.device_transport import RequestTransport, SystemModules, WatchTransport

from .connection import Connection
from .transport import Transport

__all__ = ["RequestConnection", "open_watches"]

# The originals. Monkey-patching makes greenlets of threads, and takes epoll away.
_SELECT: Any = select
if hasattr(select, "EPOLLIN"):
    _SELECT = SimpleNamespace(epoll=get_original("select", "epoll"), EPOLLIN=select.EPOLLIN)
_MODULES: Final = SystemModules(
    io, posix, _SELECT, _socket, get_original("_thread", "start_new_thread")
)


def _transport(device: RequestTransport) -> Transport:
    return Transport(device, device.wakeup_fds())


class RequestConnection(BlockingRequestConnection, Connection):
    """The connection for requests on the device; see `BlockingRequestConnection`.

    Arguments:
        path: the path of the device.
        clock: the client's time limits.
        replace: see `xsproto.adapters.device.RetiringConnection`.

    Raises:
        ConnectFailed: there is no device at `path`, or it may not be used.
    """

    session: DeviceSession

    def __init__(self, path: str, clock: Clock, replace: WeakMethod[Any]) -> None:
        transport = _transport(RequestTransport(path, _MODULES))
        super().__init__(transport, clock, DeviceSession())
        self.replace = replace

    def wake_all(self) -> None:
        """See `xsproto.adapters.device.RetiringConnection`."""
        # It has the hub wake them. The leader is the hub itself, which has no need to be woken.
        self.flush()


def open_watches(path: str, clock: Clock) -> Connection:
    """Open the device, and make the connection that watches live on.

    Arguments:
        path: the path of the device.
        clock: the client's time limits.

    Raises:
        ConnectFailed: there is no device at `path`, or it may not be used, or no thread can be
            started.
    """
    return Connection(_transport(WatchTransport(path, _MODULES)), clock, DeviceSession())
