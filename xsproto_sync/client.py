"""The blocking, thread-safe client."""

from __future__ import annotations

import os
import threading
from contextlib import AbstractContextManager
from types import TracebackType
from typing import Self

from xsproto.blocking import BlockingClient
from xsproto.errors import ConnectionClosed, XenStoreError
from xsproto.session import Session

from .clock import Clock
from .lane import Lane
from .unix import UnixTransport, socket_path

__all__ = ["Client"]


class Client(BlockingClient):
    """A connection to a XenStore daemon. Any number of threads may use it at once.

    Arguments:
        unix_socket_path: the daemon's socket; None: see `xsproto_sync.unix.socket_path`.
        timeout: seconds that each call may take, if it is not told otherwise, and connecting;
            None for ever.
        reader: have a background thread read, so that watch events are taken from the daemon even
            while nobody waits for one.

    It is connected at once, and is a context manager that closes it. Do not use it in a signal
    handler that may interrupt a call of the same client: it would wait for itself, for ever.

    Raises:
        ConnectFailed: nobody listens there, or it may not be used.
    """

    def __init__(
        self,
        unix_socket_path: str | os.PathLike[str] | None = None,
        *,
        timeout: float | None = None,
        reader: bool = False,
    ) -> None:
        self._clock = Clock(timeout)
        transport = UnixTransport(socket_path(unix_socket_path), self._clock.timeout)
        self._lane: Lane = Lane(transport, self._clock, Session())
        if reader:
            read = self._lane.read_for_all
            thread = threading.Thread(target=read, name="xsproto reader", daemon=True)
            try:
                thread.start()
            except BaseException:
                self.close()  # it may be running already
                raise

    def __repr__(self) -> str:
        closed = f", closed: {self.closed}" if self.closed else ""
        name = f"{type(self).__module__}.{type(self).__qualname__}"
        return f"<{name} {self._lane.transport.path}{closed}>"

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    def close(self) -> None:
        """Close the connection; the daemon ends its watches and transactions. Idempotent.

        From any thread: whoever waits gets `ConnectionClosed`.
        """
        self._lane.close(ConnectionClosed("the client was closed"))

    @property
    def closed(self) -> XenStoreError | None:
        """Why the connection is over; None while it is not, as far as is known."""
        return self._lane.session.closed

    # Timeouts

    def deadline(self, seconds: float) -> AbstractContextManager[None]:
        """Within ``with``, all calls of this thread together may take `seconds`.

        A shorter `timeout` of a call, and an outer deadline, hold as well.
        """
        return self._clock.deadline(seconds)

    # For foreign loops

    def fileno(self) -> int:
        """A descriptor to poll: readable while there is something to `pump`, or an event to get.

        It stays the same until `close`, and is not the connection's own; where the daemon ends the
        connection, it stays readable (see `closed`). -1 after `close`.

        Raises:
            NotSupported: this system has no epoll.
        """
        return self._lane.fileno()

    def pump(self) -> None:
        """Read what is there, without waiting: events go to the queues of their watches.

        Take them with ``get(timeout=0)``. Raises nothing over the connection's end: the next
        call does.
        """
        self._lane.pump()
