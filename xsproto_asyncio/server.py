"""A XenStore daemon on sockets, served by an asyncio loop."""

from __future__ import annotations

import asyncio
import socket
from types import TracebackType
from typing import Any, Self

from xsproto.adapters.server import PAUSE, Service
from xsproto.daemon import Daemon

from ._backend import BACKEND
from ._bridge import Stream, bridge, check_stream, was_reset

__all__ = ["Server"]


class Server(Service):
    """Serves a daemon on the sockets that it is told to `listen` on, and on connected sockets.

    The loop that runs when it is made serves from then on until `close`. No task is needed.
    ``async with`` closes it.

    If a signal handler raises an exception while the server serves a request, a change may be half
    done. Then the server closes, as by `close`. While it waits, it goes on.

    Arguments:
        daemon: the daemon to serve; None for an empty one. Call `wake` after a change from outside.
    """

    def __init__(self, daemon: Daemon | None = None) -> None:
        super().__init__(daemon, BACKEND)
        self._loop = asyncio.get_running_loop()
        # The next call of `_go_on`: when there is more to do at once, or listening sockets paused.
        self._next: asyncio.Handle | None = None
        self._bridges: set[asyncio.Task[Any]] = set()
        self._loop.add_reader(self.poller.fileno(), self._ready)

    def _ready(self) -> None:
        try:
            self.step(self.poller.poll(0))
            if self.busy:
                if self._next is not None:
                    self._next.cancel()
                self._next = self._loop.call_soon(self._go_on)
            elif self.paused and self._next is None:
                self._next = self._loop.call_later(PAUSE, self._go_on)
        except BaseException:
            self.close()  # it came out of a signal handler
            raise

    def wake(self) -> None:
        """See `xsproto.adapters.server.Service.wake`."""
        try:
            super().wake()
        except BaseException:
            self.close()
            raise

    def _go_on(self) -> None:
        self._next = None
        self._ready()

    def serve_connection(self, sock: socket.socket | Stream, domid: int = 0) -> None:
        """Serve a connected socket or stream, whose client acts as a domain.

        Everything that `xsproto.adapters.server.Service.serve_connection` says holds for streams,
        too. The server closes the stream at the end of the connection. Nothing else may close it
        before.

        Arguments:
            sock: a socket; or a pair ``(StreamReader, StreamWriter)`` of the server's loop.
            domid: the domain, which must exist.
        """
        if not isinstance(sock, tuple):
            super().serve_connection(sock, domid)
            return
        if was_reset(sock):
            sock[1].close()
            return
        writer = check_stream(sock)
        near, far = socket.socketpair()
        try:
            super().serve_connection(near, domid)
        except BaseException:
            near.close()
            far.close()
            raise
        task = self._loop.create_task(bridge(sock, far))

        def ended(_: object) -> None:
            self._bridges.discard(task)
            far.close()  # a task that was cancelled before it ran has closed neither
            writer.transport.abort()

        self._bridges.add(task)
        task.add_done_callback(ended)

    def close(self) -> None:
        """End all connections and remove the sockets. Idempotent. Nothing is to be awaited."""
        if not self.ended:
            self._loop.remove_reader(self.poller.fileno())
            if self._next is not None:
                self._next.cancel()
            for task in self._bridges:
                task.cancel()
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
        if self._bridges:
            await asyncio.wait(self._bridges)
