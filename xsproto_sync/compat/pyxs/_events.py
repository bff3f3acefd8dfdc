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
    """A queue with the methods of `queue.Queue` and without a bound, which can also fail.

    After `fail`, `get` still returns the events that are there; then it raises `ConnectionError`.
    (It is no subclass of `queue.Queue`, because eventlet replaces that class.)
    """

    def __init__(self) -> None:
        self._events: deque[Event] = deque()
        self._failure: str | None = None
        self._changed = threading.Condition()

    def fail(self, why: str) -> None:
        """Have all callers that wait, now or later, get a `ConnectionError` that says `why`."""
        with self._changed:
            self._failure = why
            self._on_change()
            self._changed.notify_all()

    def check(self) -> None:
        """Raise a `ConnectionError` if the queue has failed."""
        if self._failure is not None:
            raise ConnectionError(self._failure)

    def forked(self, why: str) -> None:
        """Fail in a forked child, where a thread of the parent may have held the lock."""
        self._changed = threading.Condition()
        self.fail(why)

    def put(self, event: Event, block: bool = True, timeout: float | None = None) -> None:
        """Add an event. The other arguments have no effect: this never waits."""
        with self._changed:
            self._events.append(event)
            self._on_change()
            self._changed.notify()

    def put_nowait(self, event: Event) -> None:
        """The same as `put`."""
        self.put(event)

    def get(self, block: bool = True, timeout: float | None = None) -> Event:
        """Remove an event and return it; with `block`, wait for one.

        Arguments:
            timeout: seconds; None waits for ever.

        Raises:
            queue.Empty: there is no event, or none came in time.
            ConnectionError: there is no event, and the queue has failed.
        """
        deadline = None if timeout is None else monotonic() + timeout
        with self._changed:
            while not self._events:
                self.check()
                left = None if deadline is None else deadline - monotonic()
                if not block or (left is not None and left <= 0):
                    raise queue.Empty
                self._changed.wait(left)
            event = self._events.popleft()
            self._on_change()
            return event

    def get_nowait(self) -> Event:
        """The same as ``get(block=False)``."""
        return self.get(block=False)

    def empty(self) -> bool:
        """Return whether there is no event."""
        return not self._events

    def full(self) -> bool:
        """Return False: the queue has no bound."""
        return False

    def qsize(self) -> int:
        """Return the number of events."""
        return len(self._events)

    def _on_change(self) -> None:
        """Called under the lock after each change. A subclass may do something here."""
