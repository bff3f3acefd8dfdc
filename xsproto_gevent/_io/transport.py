"""A connection's bytes, and how a hub watches them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final

from gevent import get_hub

from xsproto.adapters.transport import ConnectionTransport

__all__ = ["READ", "WRITE", "Callback", "WatchedTransport", "make_repeater"]

#: What the hub calls; None where it need not look.
Callback = Callable[[], None] | None

#: The events of the ``io`` watchers of gevent's loop.
READ: Final = 1
WRITE: Final = 2


def make_repeater(hub: Any) -> Any:
    """Return a watcher whose callback a hub calls in each turn, whatever it raises, until it stops.

    Arguments:
        hub: the hub.
    """
    return hub.loop.idle(priority=hub.loop.MAXPRI)


class WatchedTransport:
    """A transport that the hub of the current thread can watch.

    Arguments:
        bytes_: the transport to watch. It is closed with this.
    """

    def __init__(self, bytes_: ConnectionTransport) -> None:
        self.path = bytes_.path
        #: The transport that is watched. It writes and reads.
        self.bytes = bytes_
        loop: Any = get_hub().loop
        fileno = self.fileno()
        self._schedule = loop.run_callback
        #: What watches for something to read; `reader.active` says whether the hub does.
        self.reader = loop.io(fileno, READ)
        # Each with the index of its callback among (readable, writable).
        self._watchers = [
            (self.reader, 0),
            (loop.io(fileno, WRITE), 1),
            *((loop.io(fd, READ), 0) for fd in bytes_.wakeup_fds()),
        ]

    def set_callbacks(self, readable: Callback, writable: Callback) -> None:
        """Say what the hub calls from now on.

        Arguments:
            readable: called while there is something to read, also after it has raised; None to
                call nothing.
            writable: called while there is room to write; None to call nothing.
        """
        callbacks = readable, writable
        for watcher, of in self._watchers:
            if (callback := callbacks[of]) is None:
                watcher.stop()
            elif not watcher.active:
                # Not the callback itself: gevent would stop the watcher if it raised.
                watcher.start(self._schedule, callback)

    def fileno(self) -> int:
        """See `xsproto.adapters.transport.ConnectionTransport`."""
        return self.bytes.fileno()

    def close_after_fork(self) -> None:
        """Close the descriptors in a forked child, whose parent goes on with the connection.

        It leaves the watchers alone: the child shares the loop's own descriptor with its parent,
        for which a change would count as well.
        """
        self.bytes.close_after_fork()

    def close(self) -> None:
        """See `xsproto.adapters.transport.ConnectionTransport`."""
        # Before the descriptor is closed: the loop would watch a closed one otherwise.
        for watcher, _ in self._watchers:
            watcher.close()
        self.bytes.close()
