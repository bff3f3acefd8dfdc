"""A connection's bytes, and what the hub looks at to know that it can go on."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any

__all__ = ["Transport"]


class Transport(ABC):
    """What a lane reads from and writes to. Nothing here waits.

    What `read` got, and how much `write` wrote, is added to the caller's list in the very call that
    did it, so that an exception out of a signal handler cannot come in between.

    Attributes:
        path: where it leads to.
        reader: a watcher of the hub's loop, that calls back while there is something to read.
        writer: one that does so while there is room to write.
    """

    path: str
    reader: Any
    writer: Any

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
    def close(self) -> None:
        """Give the descriptor and the watchers back. Idempotent; a forked child may call it."""
