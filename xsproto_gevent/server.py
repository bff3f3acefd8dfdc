"""A XenStore daemon on sockets, served by a hub of gevent."""

from __future__ import annotations

import os
import socket
from types import SimpleNamespace, TracebackType
from typing import Any, Final, Self

from gevent import get_hub
from gevent.monkey import get_original

from xsproto.adapters.server import PAUSE, SelectorPoller, Service
from xsproto.daemon import Daemon

from ._io.transport import READ

__all__ = ["Server"]

# The originals, also where Python is monkey-patched: nothing here waits.
_DefaultSelector: Final[Any] = get_original("selectors", "DefaultSelector")
_SOCKET: Final = SimpleNamespace(
    socket=get_original("socket", "socket"),
    AF_UNIX=socket.AF_UNIX,
    SOCK_STREAM=socket.SOCK_STREAM,
    SOL_SOCKET=socket.SOL_SOCKET,
    SO_ERROR=socket.SO_ERROR,
    SHUT_RDWR=socket.SHUT_RDWR,
)


class Server(Service):
    """Serves a daemon on the sockets that it is told to `listen` on, and on connected sockets.

    The hub of the thread that makes it serves from then on until `close`, whenever the program lets
    the hub run. No greenlet is needed. ``with`` closes it.

    Arguments:
        daemon: the daemon to serve; None for an empty one. Call `wake` after a change from outside.
    """

    def __init__(self, daemon: Daemon | None = None) -> None:
        super().__init__(daemon, os, _SOCKET, SelectorPoller(_DefaultSelector()))
        self._loop: Any = get_hub().loop
        self._watcher: Any = self._loop.io(self.poller.fileno(), READ)
        self._timer: Any = self._loop.timer(PAUSE)
        self._add_reader()

    def _add_reader(self) -> None:
        if not self.ended:
            self._watcher.start(self._ready)

    def _ready(self) -> None:
        try:
            self.step(self.poller.poll(0))
            if self.paused and not self._timer.active:
                self._timer.start(self.resume)
        except BaseException:
            # It came out of a signal handler. gevent has stopped the watcher whose callback raised.
            self._loop.run_callback(self._add_reader)
            raise

    def close(self) -> None:
        """End all connections and remove the sockets. Idempotent."""
        if not self.ended:
            self._watcher.close()
            self._timer.close()
            self.end()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()
