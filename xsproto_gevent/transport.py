"""A connection's bytes, and how the hub learns that it can go on."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from typing import Any, Final

from gevent import get_hub

__all__ = ["READ", "WRITE", "Callback", "Transport"]

#: What the hub calls; None: it need not look.
Callback = Callable[[], None] | None

#: The events of the loop's ``io``.
READ: Final = 1
WRITE: Final = 2


class Transport(ABC):
    """What a lane reads from and writes to. Nothing here waits.

    What `read` got, and how much `write` wrote, is added to the caller's list in the very call that
    did it, so that an exception out of a signal handler cannot come in between.

    Arguments:
        path: where it leads to.
        fileno: the descriptor that becomes readable, and writable.
        alarms: more that become readable.
    """

    def __init__(self, path: str, fileno: int, alarms: Sequence[int] = ()) -> None:
        #: Where it leads to.
        self.path = path
        loop: Any = get_hub().loop
        self._reader = loop.io(fileno, READ)
        # Each with whether it is for `readable` or `writable`.
        self._watchers = [
            (self._reader, 0),
            (loop.io(fileno, WRITE), 1),
            *((loop.io(alarm, READ), 0) for alarm in alarms),
        ]

    @abstractmethod
    def write(self, data: bytes | memoryview, written: list[int]) -> None:
        """Write what can be written at once; add how much it was to `written`.

        Raises:
            BlockingIOError: nothing can be written now.
            OSError: the connection is gone.
        """

    @abstractmethod
    def read(self, inbox: list[bytes]) -> None:
        """Add what is there to `inbox`; an empty element is the end of the stream.

        Raises:
            BlockingIOError: there is nothing to read, or no more.
            OSError: the connection is gone.
        """

    def attend(self, readable: Callback, writable: Callback) -> None:
        """From now on, have the hub call these while there is something to read, room to write."""
        callbacks = readable, writable
        for watcher, of in self._watchers:
            if (callback := callbacks[of]) is None:
                watcher.stop()
            elif not watcher.active:
                watcher.start(callback)

    @property
    def attended(self) -> bool:
        """Whether the hub looks for something to read."""
        active: bool = self._reader.active
        return active

    def close(self) -> None:
        """Give the descriptor back. Idempotent."""
        # Before it is closed: the loop would look at it otherwise.
        for watcher, _ in self._watchers:
            watcher.close()

    @abstractmethod
    def forget(self) -> None:
        """Give it back in a forked child, whose parent goes on with the connection.

        The loop's own descriptor is still the parent's: what it looks at must not be changed.
        """
