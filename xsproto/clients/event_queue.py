"""Watch events on their way to whoever watches: merged, bounded, never lost silently."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, Final

from .._record import record
from ..errors import InvalidArgument, InvalidType, XenStoreError
from ..paths import is_within

__all__ = ["QUEUE_MAX", "EventQueue", "WatchEvent"]

#: Events that a queue holds before it collapses.
QUEUE_MAX: Final = 1024


@record(frozen=True)
class WatchEvent:
    """Something changed at `path`, which is, or is below, the path watched with `token`.

    It carries no data, and the node may be gone: read it again. With `overflow`, more changed
    than the queue could hold: read everything at and below `path` again.
    """

    path: bytes
    token: bytes
    overflow: bool = False


class EventQueue:
    """The events of some watches, which wait to be taken.

    Since an event says no more than "look here", one that is waiting already is not added again.
    Beyond `limit`, all of them collapse to one event a watch, on the watched path, with
    `overflow`.

    Raises:
        InvalidType, InvalidArgument: `limit` is no number of at least 1.
    """

    def __init__(self, limit: int = QUEUE_MAX) -> None:
        # Found out only at an event, it would hit whichever thread reads then.
        if not isinstance(limit, int) or isinstance(limit, bool):
            raise InvalidType(f"limit must be a number of events, not {limit!r}")
        if limit < 1:
            raise InvalidArgument(f"invalid limit {limit!r}: there must be room for an event")
        self._limit = limit
        self._events: dict[tuple[bytes, bytes], WatchEvent] = {}
        self._collapsed: set[bytes] = set()
        #: The watches that feed the queue, as (path, token).
        self.watches: set[tuple[bytes, bytes]] = set()
        #: Why no more events will come; None while they may.
        self.ended: XenStoreError | None = None
        #: The waiters for an event; `Session` keeps them.
        self.waiters: set[Any] = set()

    @property
    def ready(self) -> bool:
        """Whether there is no point in waiting: an event is here, or none will ever come."""
        return bool(self._events) or self.ended is not None or not self.watches

    def __len__(self) -> int:
        return len(self._events)

    def put(self, path: bytes, token: bytes) -> None:
        """Add an event, merge it, or collapse the queue."""
        key = (path, token)
        if key in self._events or token in self._collapsed:
            return
        if len(self._events) < self._limit:
            self._events[key] = WatchEvent(path, token)
            return
        self._collapsed = {of for _, of in self.watches}
        self._events = {
            (top, of): WatchEvent(top, of, overflow=True) for top, of in sorted(self.watches)
        }

    def take(self, taken: list[WatchEvent]) -> None:
        """Move the oldest event to `taken`; the queue must not be empty.

        An interrupt finds the event either here or there; after one, `put_back` it.
        """
        key = next(iter(self._events))
        # Once an overflow is told, later events of its watch count again.
        self._collapsed.discard(key[1])
        taken.extend(map(self._events.pop, (key,)))

    def put_back(self, taken: list[WatchEvent]) -> None:
        """Undo `take`."""
        events = {(event.path, event.token): event for event in taken}
        self._events = events | self._events | events
        self._collapsed |= {event.token for event in taken if event.overflow}

    def drop(self, watches: Iterable[tuple[bytes, bytes]]) -> None:
        """Forget `watches`, and their events that wait."""
        self.watches.difference_update(watches)
        self._events = {
            (path, token): event
            for (path, token), event in self._events.items()
            if any(token == of and is_within(path, top) for top, of in self.watches)
        }
        self._collapsed = {token for (_, token), event in self._events.items() if event.overflow}
