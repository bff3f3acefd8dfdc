"""A connection of threads that is followed by others."""

from __future__ import annotations

from contextlib import suppress
from typing import NoReturn

from xsproto.adapters.reconnecting import BlockingReconnecting
from xsproto.clients.operations import PROBE
from xsproto.errors import ConnectionClosed, NotSupported

from .connection import Connection

__all__ = ["ReconnectingConnection"]


class ReconnectingConnection(BlockingReconnecting):
    """A connection that threads share, which is followed by another one when it ends."""

    def read_for_all(self) -> None:
        """See `Connection`. The reader thread reconnects as well, until the client is closed."""
        with suppress(ConnectionClosed):
            while self.closed is None:
                connection: Connection = self.current
                connection.read_for_all()
                if self.closed is None:
                    # Not at once: nothing else slows it down where each new connection ends soon.
                    self._reconnect(connection, None, 1, [PROBE], False)

    def fileno(self) -> NoReturn:
        """Raise the error of `Client.fileno`."""
        raise NotSupported(
            "a client with reconnect= has no fileno() and no pump(): reconnecting waits. Have a "
            "thread take the events of its watches"
        )

    pump = fileno
