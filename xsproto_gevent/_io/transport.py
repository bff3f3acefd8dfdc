"""How the hub learns that a connection can go on."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Final

from gevent import get_hub

from xsproto.adapters import transport

__all__ = ["READ", "WRITE", "Callback", "Transport"]

#: What the hub calls; None: it need not look.
Callback = Callable[[], None] | None

#: The events of the loop's ``io``.
READ: Final = 1
WRITE: Final = 2


class Transport:
    """A connection's bytes, as `xsproto.adapters.transport.Transport`, which the hub looks at.

    Arguments:
        bytes_: those of the connection.
        wakeup_fds: more descriptors that become readable.
    """

    def __init__(self, bytes_: transport.Transport, wakeup_fds: Sequence[int] = ()) -> None:
        self.path = bytes_.path
        self.fileno = bytes_.fileno
        self.write = bytes_.write
        self.read_now = bytes_.read_now
        self._bytes = bytes_
        #: As `close`, in a forked child. (The loop's own descriptor is still the parent's: what it
        #: looks at must not be changed.)
        self.close_after_fork = bytes_.close_after_fork
        loop: Any = get_hub().loop
        fileno = self.fileno()
        self._reader = loop.io(fileno, READ)
        # Each with whether it is for `readable` or `writable`.
        self._watchers = [
            (self._reader, 0),
            (loop.io(fileno, WRITE), 1),
            *((loop.io(fd, READ), 0) for fd in wakeup_fds),
        ]

    def set_callbacks(self, readable: Callback, writable: Callback) -> None:
        """From now on, have the hub call these while there is something to read, room to write."""
        callbacks = readable, writable
        for watcher, of in self._watchers:
            if (callback := callbacks[of]) is None:
                watcher.stop()
            elif not watcher.active:
                watcher.start(callback)

    @property
    def has_reader(self) -> bool:
        """Whether the hub looks for something to read."""
        active: bool = self._reader.active
        return active

    def close(self) -> None:
        """See `xsproto.adapters.transport.Transport`."""
        # Before it is closed: the loop would look at it otherwise.
        for watcher, _ in self._watchers:
            watcher.close()
        self._bytes.close()
