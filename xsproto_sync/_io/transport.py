"""A connection's bytes, and how a thread waits for them."""

from __future__ import annotations

import select
from abc import ABC, abstractmethod
from collections.abc import Callable
from types import BuiltinFunctionType
from typing import Any, Final

__all__ = ["Transport"]

# The function that waits as a thread of the system does; None if it was patched before this module
# was imported.
_native_select: Final = select.select if isinstance(select.select, BuiltinFunctionType) else None


class Transport(ABC):
    """What a connection reads from and writes to, with calls that wait and calls that do not.

    A call adds what it read, or how much it wrote, to the caller's list, so that no interrupt can
    lose it: `xsproto.adapters.transport` tells how.

    Arguments:
        path: the path of the socket or the device.
    """

    def __init__(self, path: str) -> None:
        #: The path of the socket or the device, for messages.
        self.path = path
        self._poll: Any = None
        self._poll_read: Any = None
        self._poll_both: Any = None

    @abstractmethod
    def fileno(self) -> int:
        """See `xsproto.adapters.transport.Transport`."""

    @abstractmethod
    def write(self, data: bytes | memoryview, written: list[int]) -> None:
        """See `xsproto.adapters.transport.Transport`."""

    @abstractmethod
    def read(self, inbox: list[bytes]) -> None:
        """Wait for bytes, without a time limit, and read them.

        It may return with nothing. After `shutdown` it returns or raises at once.

        Arguments:
            inbox: gets the bytes appended; an empty element is the end of the stream.

        Raises:
            BlockingIOError: there was nothing to read after all.
            OSError: the connection is gone.
        """

    @abstractmethod
    def read_now(self, inbox: list[bytes]) -> None:
        """See `xsproto.adapters.transport.Transport`."""

    def wait(self, timeout: float | None, write: bool) -> bool:
        """Wait until there is something to read or to write.

        Arguments:
            timeout: the seconds to wait, at most `xsproto.adapters.deadlines.WAIT_MAX`; None for
                ever.
            write: whether to wait for room to write as well.

        Returns:
            whether there is something to read, or with `write` room to write.
        """
        try:
            # Looked up at each call: gevent may patch it later, and eventlet take it away.
            poll = select.poll
        except AttributeError:
            writing = [self.fileno()] if write else []
            found = select.select([self.fileno(), *self.wakeup_fds()], writing, [], timeout)
            return bool(found[0] or found[1])
        if poll is not self._poll:
            self._poll_read = self._poller(select.POLLIN)
            self._poll_both = self._poller(select.POLLIN | select.POLLOUT)
            # Last: after an interrupt in between the next call makes both again.
            self._poll = poll
        wait = self._poll_both if write else self._poll_read
        # In milliseconds. `poll` rounds up, so it never returns too early.
        return bool(wait(timeout if timeout is None else timeout * 1000))

    def _poller(self, events: int) -> Callable[[float | None], Any]:
        poller = select.poll()
        poller.register(self.fileno(), events)
        for fd in self.wakeup_fds():
            poller.register(fd, select.POLLIN)
        return poller.poll

    def wakeup_fds(self) -> tuple[int, ...]:
        """Return more descriptors that end a wait when they become readable."""
        return ()

    @staticmethod
    def patched() -> bool:
        """Return whether threads may be greenlets, so that only `wait` lets the others run."""
        return select.select is not _native_select

    @abstractmethod
    def shutdown(self) -> None:
        """End the connection for both sides, and every wait for it. From any thread; idempotent."""

    @abstractmethod
    def close(self) -> None:
        """Close the descriptors. Idempotent."""

    def close_after_fork(self) -> None:
        """Close the descriptors in a forked child, whose parent goes on with the connection."""
        self.close()
