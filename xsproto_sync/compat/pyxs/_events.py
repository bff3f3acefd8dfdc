"""The queue of a monitor's events."""

from __future__ import annotations

import queue
import threading
from collections import deque
from time import monotonic

from ._internal import Event
from .exceptions import ConnectionError

__all__ = ["Events"]


class Events:
    """A queue as those of `queue`, without a bound, that can also fail.

    Once it has failed, whoever finds it empty gets a `ConnectionError`. (It is none of `queue`'s,
    since eventlet replaces those by others.)
    """

    def __init__(self) -> None:
        self._events: deque[Event] = deque()
        self._failure: str | None = None
        self._changed = threading.Condition()

    def fail(self, why: str) -> None:
        """Have everyone who waits, or will wait, get a `ConnectionError`."""
        with self._changed:
            self._failure = why
            self._update_signal()
            self._changed.notify_all()

    def check(self) -> None:
        """Raise that `ConnectionError` if it has failed."""
        if self._failure is not None:
            raise ConnectionError(self._failure)

    def forked(self, why: str) -> None:
        """As `fail`, in a forked child: another thread may have been in here."""
        self._changed = threading.Condition()
        self.fail(why)

    def put(self, event: Event, block: bool = True, timeout: float | None = None) -> None:
        """Add an event. It never waits."""
        with self._changed:
            self._events.append(event)
            self._update_signal()
            self._changed.notify()

    def put_nowait(self, event: Event) -> None:
        """The same as `put`."""
        self.put(event)

    def get(self, block: bool = True, timeout: float | None = None) -> Event:
        """Take an event; with `block`, wait for it.

        Arguments:
            timeout: seconds; None for ever.

        Raises:
            queue.Empty: there is none, or there was none in time.
            ConnectionError: there is none, and there will be none.
        """
        ends = None if timeout is None else monotonic() + timeout
        with self._changed:
            while not self._events:
                self.check()
                left = None if ends is None else ends - monotonic()
                if not block or (left is not None and left <= 0):
                    raise queue.Empty
                self._changed.wait(left)
            event = self._events.popleft()
            self._update_signal()
            return event

    def get_nowait(self) -> Event:
        """Take an event that is there."""
        return self.get(block=False)

    def empty(self) -> bool:
        """Whether there is no event."""
        return not self._events

    def full(self) -> bool:
        """Never."""
        return False

    def qsize(self) -> int:
        """How many events there are."""
        return len(self._events)

    def _update_signal(self) -> None:
        """What else is to be told, under the lock, of each change."""
