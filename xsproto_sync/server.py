"""A XenStore daemon on sockets: one thread, one poller, any number of clients."""

from __future__ import annotations

import os
import select
import selectors
import socket
import threading
from time import monotonic
from types import TracebackType
from typing import Self

from xsproto.adapters.server import PAUSE, Service, make_poller
from xsproto.adapters.transport import READ_SIZE
from xsproto.daemon import Daemon
from xsproto.errors import LocalProtocolError

__all__ = ["Server"]


class Server(Service):
    """Serves a daemon on the sockets that it is told to `listen` on, and on connected sockets.

    `start` serves in a thread of its own until `close`; `serve` serves in the calling thread.
    ``with`` starts the server, and its end closes it. `listen`, `serve_connection`, `wake`, `start`
    and `close` may be called from any thread.

    Arguments:
        daemon: the daemon to serve; None for an empty one. Use it under `lock` only, and call
            `wake` after a change.
    """

    now = staticmethod(monotonic)

    def __init__(self, daemon: Daemon | None = None) -> None:
        super().__init__(daemon, os, socket, make_poller(select, selectors))
        #: Held over each use of the daemon.
        self.lock = threading.Lock()
        self._wakeup_sender, self._wakeup = socket.socketpair()
        self._wakeup.setblocking(False)
        self._wakeup_sender.setblocking(False)
        self._add_callback(self._wakeup, self._drain_wakeup)
        self._thread: threading.Thread | None = None
        self._serving = False
        self._over = False

    # Sockets

    def listen(self, path: str | os.PathLike[str], domid: int = 0) -> None:
        """See `xsproto.adapters.server.Service.listen`."""
        with self.lock:
            super().listen(path, domid)
        self.wake()

    def serve_connection(self, sock: socket.socket, domid: int = 0) -> None:
        """See `xsproto.adapters.server.Service.serve_connection`."""
        with self.lock:
            super().serve_connection(sock, domid)

    def wake(self) -> None:
        """Have the server look at its daemon again, after a change from outside."""
        try:
            self._wakeup_sender.send(b"\0")
        except (BlockingIOError, OSError):
            pass  # the server is awake already, or closed

    def _drain_wakeup(self) -> None:
        self._wakeup.recv(READ_SIZE)

    # Serving

    def start(self) -> Self:
        """Serve in a thread of its own. Does nothing if it has started already.

        The thread does not keep a program from ending.

        Returns:
            the server.

        Raises:
            LocalProtocolError: the server is closed.
        """
        if self._over:
            raise LocalProtocolError("the server is closed")
        if self._thread is None:
            self._thread = threading.Thread(target=self.serve, name="xsproto server", daemon=True)
            self._thread.start()
        return self

    def serve(self) -> None:
        """Serve in the calling thread until another thread or a signal handler calls `close`."""
        poll = self.poller.poll
        self._serving = True
        try:
            while not self._over:
                ready = poll(PAUSE if self.paused else None)
                with self.lock:
                    if self._over:
                        return
                    self.step(ready)
                    if self.paused:
                        self.resume()
        finally:
            with self.lock:
                self.end()

    def close(self) -> None:
        """End all connections and remove the sockets. Idempotent.

        A signal handler may call it in the thread that serves.
        """
        self._over = True
        self.wake()
        thread = self._thread
        if thread is not None:
            if thread is not threading.current_thread():
                thread.join()
        elif not self._serving:
            with self.lock:
                self.end()

    def __enter__(self) -> Self:
        return self.start()

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    def end(self) -> None:
        """See `xsproto.adapters.server.Service.end`; `lock` is held."""
        super().end()
        self._wakeup_sender.close()
        self._wakeup.close()
