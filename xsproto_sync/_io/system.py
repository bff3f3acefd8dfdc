"""The operating system, for the shared code; see `xsproto.adapters.backend`.

A program may have gevent or eventlet patch Python, so that its threads are greenlets, and may do so
before or after this module is imported. The modules below have the original functions all the same.
What waits looks the patched ones up at each call, so that the other greenlets run.
"""

from __future__ import annotations

import _socket
import _thread  # noqa: F401  # for `native`
import fcntl
import io
import os
import posix
import select
import selectors
import socket  # noqa: F401  # for `native`
import sys
from collections.abc import Callable, Collection, Sequence
from time import monotonic
from types import SimpleNamespace
from typing import Any, Final

from xsproto.adapters.backend import Backend, make_poller, wait_readable

__all__ = ["SYSTEM", "System", "native"]


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


class _Select:
    """The module ``select``, also where gevent or eventlet have taken functions away."""

    EPOLLIN = POLLIN = select.POLLIN if hasattr(select, "POLLIN") else 1

    def __getattr__(self, name: str) -> Any:
        if (found := native("select", name)) is None:
            raise AttributeError(name)
        return found


# The class of the module `_socket` cannot accept.
_SOCKET: Final = SimpleNamespace(**vars(_socket) | {"socket": native("socket", "socket")})


class System(Backend):
    """The system, for a server and the drop-ins. Clients have a backend that is derived from it."""

    fcntl, io, os, posix, selectors = fcntl, io, os, posix, selectors
    select, socket = _Select(), _SOCKET
    now = staticmethod(monotonic)

    @staticmethod
    def start_thread(function: Callable[..., object], arguments: tuple[Any, ...]) -> object:
        """See `Backend`."""
        return native("_thread", "start_new_thread")(function, arguments)

    def wait(self, fds: Sequence[int], timeout: float | None) -> Collection[int]:
        """See `Backend`."""
        return wait_readable(select, fds, timeout)

    def new_poller(self) -> Any:
        """See `Backend`. Where Python is patched, greenlets run while a server waits."""
        return make_poller(select, selectors)


#: The one system.
SYSTEM: Final = System()
