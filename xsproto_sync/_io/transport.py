"""A connection's bytes, and how to wait for them."""

from __future__ import annotations

import select
from abc import ABC, abstractmethod
from collections.abc import Callable
from types import BuiltinFunctionType
from typing import Any, Final

__all__ = ["Transport"]

# What waits for the whole thread, if it is not patched already.
_native_select: Final = select.select if isinstance(select.select, BuiltinFunctionType) else None


class Transport(ABC):
    """What a connection reads from and writes to.

    What `read` got, and how much `write` wrote, is added to the caller's list in the very call that
    did it, so that an exception out of a signal handler cannot come in between (with
    ``data = sock.recv(n)`` it can: the bytes are lost).
    """

    def __init__(self, path: str) -> None:
        #: Where it leads to.
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
        """Wait for bytes and add them to `inbox`; an empty element is the end of the stream.

        May return with nothing, as after `shutdown`, which ends it.

        Raises:
            OSError: the connection is gone.
        """

    @abstractmethod
    def read_now(self, inbox: list[bytes]) -> None:
        """See `xsproto.adapters.transport.Transport`."""

    def wait(self, timeout: float | None, write: bool) -> bool:
        """Wait until there is something to read or, with `write`, room to write.

        Arguments:
            timeout: seconds, at most `WAIT_MAX`; None for ever.

        Returns:
            whether there is.
        """
        try:
            # Looked up at each call: gevent patches it, eventlet takes it away.
            poll = select.poll
        except AttributeError:
            writing = [self.fileno()] if write else []
            found = select.select([self.fileno(), *self.wakeup_fds()], writing, [], timeout)
            return bool(found[0] or found[1])
        if poll is not self._poll:
            self._poll_read = self._poller(select.POLLIN)
            self._poll_both = self._poller(select.POLLIN | select.POLLOUT)
            self._poll = poll  # last, since an interrupt may come in between
        wait = self._poll_both if write else self._poll_read
        # Milliseconds, which it rounds up.
        return bool(wait(timeout if timeout is None else timeout * 1000))

    def _poller(self, events: int) -> Callable[[float | None], Any]:
        poller = select.poll()
        poller.register(self.fileno(), events)
        for fd in self.wakeup_fds():
            poller.register(fd, select.POLLIN)
        return poller.poll

    def wakeup_fds(self) -> tuple[int, ...]:
        """More descriptors, whose becoming readable ends a wait."""
        return ()

    @staticmethod
    def patched() -> bool:
        """Whether threads may be greenlets, so that only `wait` lets the others run."""
        return select.select is not _native_select

    @abstractmethod
    def shutdown(self) -> None:
        """End the connection for both sides, from any thread. Idempotent."""

    @abstractmethod
    def close(self) -> None:
        """Give the descriptor back."""

    def close_after_fork(self) -> None:
        """Give it back in a forked child, whose parent goes on with the connection."""
        self.close()
