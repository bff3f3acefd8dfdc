"""A XenStore daemon on sockets: one thread, one poller, any number of clients."""

from __future__ import annotations

import os
import socket
import threading
from types import TracebackType
from typing import Self

from xsproto.adapters.server import PAUSE, Service
from xsproto.adapters.transport import READ_SIZE
from xsproto.daemon import Daemon
from xsproto.errors import LocalProtocolError

from ._io.system import SYSTEM

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

    def __init__(self, daemon: Daemon | None = None) -> None:
        super().__init__(daemon, SYSTEM)
        #: Held over each use of the daemon.
        self.lock = threading.Lock()
        # What each step waits for before it begins, and for how long; see `delay`.
        self._delay: tuple[threading.Event, float] | None = None
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
        poll, waited = self.poller.poll, None
        self._serving = True
        try:
            while not self._over:
                ready = poll(0 if self.busy else PAUSE if self.paused else None)
                with self.lock:
                    if self._over:
                        return
                    delay = self._delay
                    if delay is waited:  # mostly None
                        waited = None
                        self.step(ready)
                        continue
                # Without the lock. What is ready stays ready, so the next poll returns it again.
                if delay is not None:
                    delay[0].wait(delay[1])
                waited = delay
        finally:
            with self.lock:
                self.end()

    def delay(self, seconds: float) -> None:
        """Wait so long before each step, which serves all clients that are ready.

        From the return of this method on, no step begins earlier.

        Arguments:
            seconds: how long; 0 for no wait, ``math.inf`` for one until the next `delay`.
        """
        before = self._delay
        wait = min(seconds, threading.TIMEOUT_MAX)
        self._delay = (threading.Event(), wait) if seconds > 0 else None
        if before is not None:
            before[0].set()
        with self.lock:
            pass  # a step that has begun is over

    def close(self) -> None:
        """End all connections and remove the sockets. Idempotent.

        A signal handler may call it in the thread that serves.
        """
        self._over = True
        if self._delay is not None:
            self._delay[0].set()
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
