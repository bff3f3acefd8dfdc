"""A XenStore daemon on Unix sockets, served by an asyncio loop."""

from __future__ import annotations

import asyncio
import os
import select
import selectors
import socket
from types import TracebackType
from typing import Self

from xsproto.adapters.server import PAUSE, Service, make_poller
from xsproto.daemon import Daemon

__all__ = ["Server"]


class Server(Service):
    """Serves a daemon on the sockets that it is told to `listen` on.

    The loop that runs when it is made serves from then on until `close`. No task is needed.
    ``async with`` closes it.

    Arguments:
        daemon: the daemon to serve; None for an empty one. Call `wake` after a change from outside.
    """

    def __init__(self, daemon: Daemon | None = None) -> None:
        super().__init__(daemon, os, socket, make_poller(select, selectors))
        self._loop = asyncio.get_running_loop()
        self._timer: asyncio.TimerHandle | None = None
        self._loop.add_reader(self.poller.fileno(), self._ready)

    def _ready(self) -> None:
        self.step(self.poller.poll(0))
        if self.paused and self._timer is None:
            self._timer = self._loop.call_later(PAUSE, self.resume)

    def resume(self) -> None:
        """See `xsproto.adapters.server.Service.resume`."""
        self._timer = None
        super().resume()

    def close(self) -> None:
        """End all connections and remove the sockets. Idempotent. Nothing is to be awaited."""
        if not self.ended:
            self._loop.remove_reader(self.poller.fileno())
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
