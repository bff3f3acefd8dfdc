"""A XenStore daemon on sockets, served by a hub of gevent."""

from __future__ import annotations

from types import TracebackType
from typing import Any, Self

from gevent import get_hub

from xsproto.adapters.server import PAUSE, Service
from xsproto.daemon import Daemon

from ._io.backend import BACKEND
from ._io.transport import READ, make_repeater

__all__ = ["Server"]


class Server(Service):
    """Serves a daemon on the sockets that it is told to `listen` on, and on connected sockets.

    The hub of the thread that makes it serves from then on until `close`, whenever the program lets
    the hub run. No greenlet is needed. ``with`` closes it.

    If a signal handler raises an exception while the server serves a request, a change may be half
    done. Then the server closes, as by `close`. While it waits, it goes on.

    Arguments:
        daemon: the daemon to serve; None for an empty one. Call `wake` after a change from outside.
    """

    def __init__(self, daemon: Daemon | None = None) -> None:
        super().__init__(daemon, BACKEND)
        self._loop: Any = get_hub().loop
        self._watcher: Any = self._loop.io(self.poller.fileno(), READ)
        # For when listening sockets are paused; and active while there is more to do at once.
        self._timer: Any = self._loop.timer(PAUSE)
        self._going_on: Any = make_repeater(get_hub())
        # While it is active, the hub calls `close` in each turn, until that comes to its end.
        self._closing: Any = make_repeater(get_hub())
        self._add_reader()

    def _add_reader(self) -> None:
        # `run_callback` is written in C and never raises; gevent would stop the watcher for good.
        self._watcher.start(self._loop.run_callback, self._ready)

    def _ready(self) -> None:
        try:
            if self.ended:
                return
            self.step(self.poller.poll(0))
            if self.busy != self._going_on.active:
                if self.busy:
                    self._going_on.start(self._loop.run_callback, self._ready)
                else:
                    self._going_on.stop()
            if self.paused and not self._timer.active:
                self._timer.close()
                # A new one: one that has fired would fire at once when it is started again.
                self._timer = self._loop.timer(PAUSE)
                self._timer.start(self._loop.run_callback, self._ready)
        except BaseException:
            self._closing.start(self.close)  # it came out of a signal handler
            raise

    def wake(self) -> None:
        """See `xsproto.adapters.server.Service.wake`."""
        try:
            super().wake()
        except BaseException:
            self._closing.start(self.close)
            raise

    def close(self) -> None:
        """End all connections and remove the sockets. Idempotent."""
        self._watcher.close()
        self._timer.close()
        self._going_on.close()
        self.end()
        self._closing.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()
