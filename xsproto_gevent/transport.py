"""A connection's bytes, and how the hub learns that it can go on."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable

__all__ = ["Callback", "Transport"]

#: What the hub calls; None: it need not look.
Callback = Callable[[], None] | None


class Transport(ABC):
    """What a lane reads from and writes to. Nothing here waits.

    What `read` got, and how much `write` wrote, is added to the caller's list in the very call that
    did it, so that an exception out of a signal handler cannot come in between.
    """

    #: Where it leads to.
    path: str

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
            BlockingIOError: there is nothing to read.
            OSError: the connection is gone.
        """

    @abstractmethod
    def attend(self, readable: Callback, writable: Callback) -> None:
        """From now on, have the hub call these while there is something to read, room to write."""

    @property
    @abstractmethod
    def attended(self) -> bool:
        """Whether the hub looks for something to read."""

    @abstractmethod
    def close(self) -> None:
        """Give the descriptor back. Idempotent."""

    @abstractmethod
    def forget(self) -> None:
        """Give it back in a forked child, whose parent goes on with the connection."""
