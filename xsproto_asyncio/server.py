"""A XenStore daemon on Unix sockets, in an event loop."""

from __future__ import annotations

import asyncio
import os
import selectors
import socket
from types import TracebackType
from typing import Self

from xsproto.adapters.server import PAUSE, Service
from xsproto.daemon import Daemon

__all__ = ["Server"]


class Server(Service):
    """Serves `daemon` on the sockets that it is told to `listen` on.

    It does so from the begin until `close`, in the loop that runs when it is made. It needs no
    task. ``async with`` closes it.

    Arguments:
        daemon: what to serve; None: an empty one. After a change from outside, `wake` the server.
    """

    def __init__(self, daemon: Daemon | None = None) -> None:
        super().__init__(daemon, os, socket, selectors)
        self._loop = asyncio.get_running_loop()
        self._timer: asyncio.TimerHandle | None = None
        self._loop.add_reader(self.selector.fileno(), self._ready)

    def _ready(self) -> None:
        self.step(self.selector.select(0))
        if self.paused and self._timer is None:
            self._timer = self._loop.call_later(PAUSE, self.resume)

    def resume(self) -> None:
        """See `Service`."""
        self._timer = None
        super().resume()

    def close(self) -> None:
        """End all connections and remove the sockets. Idempotent; nothing is to be awaited."""
        if not self.ended:
            self._loop.remove_reader(self.selector.fileno())
            if self._timer is not None:
                self._timer.cancel()
            self.end()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()
