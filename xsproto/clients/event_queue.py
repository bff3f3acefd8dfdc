"""Hold watch events until they are taken: merged, bounded, never lost silently."""

from __future__ import annotations

from collections.abc import Iterable, Set
from typing import TYPE_CHECKING, Any, Final, Generic, TypeVar

from .._record import record
from ..errors import InvalidArgument, InvalidType, XenStoreError
from ..paths import as_given, encode, upwards

__all__ = ["QUEUE_MAX", "EventQueue", "WatchEvent", "as_watched"]

#: The type in which a caller gave a path, and gets the paths that belong to it.
if TYPE_CHECKING:
    PathT = TypeVar("PathT", bytes, str, default=bytes)  # pyright: ignore[reportGeneralTypeIssues]
else:  # the default, which type checkers know, is new in Python 3.13
    PathT = TypeVar("PathT", bytes, str)

#: The number of events that a queue holds before it collapses.
QUEUE_MAX: Final = 1024


@record(frozen=True)
class WatchEvent(Generic[PathT]):
    """Something changed at `path`, which is, or is below, the path watched with `token`.

    An event carries no data, and the node may be gone: read it again.

    Attributes:
        path: where something changed, as bytes or str, as the watched path was given.
        token: the token of the watch.
        overflow: whether more changed than the queue could hold. Then `path` is the watched path:
            read everything at and below it again.
    """

    path: PathT
    token: bytes
    overflow: bool = False


def as_watched(event: WatchEvent, texts: Set[bytes]) -> Any:
    """Return an event with its path in the type of the watched path.

    Arguments:
        event: an event of an `EventQueue`, whose paths are bytes.
        texts: the tokens of the watches whose path was given as str.
    """
    if event.token not in texts:
        return event
    return WatchEvent(as_given([event.path], "")[0], event.token, event.overflow)


class EventQueue:
    """The events of some watches that nobody has taken yet.

    An event says no more than "look here". So the queue does not add an event that it holds
    already. When more than `limit` events wait, they all collapse to one event for each watch, on
    the watched path, with `overflow`. While such events wait, they leave room for `limit` others,
    or for as many as there are watches, if those are more: else each further event would cost as
    much as there are watches.

    Arguments:
        limit: the number of events that may wait, at least 1.

    Raises:
        InvalidType: `limit` is no whole number.
        InvalidArgument: `limit` is less than 1.
    """

    def __init__(self, limit: int = QUEUE_MAX) -> None:
        # Here, and not at the first event: that error would come out of a call of another thread,
        # the one that leads then.
        if not isinstance(limit, int) or isinstance(limit, bool):
            raise InvalidType(f"limit must be a number of events, not {limit!r}")
        if limit < 1:
            raise InvalidArgument(f"invalid limit {limit!r}: there must be room for an event")
        #: The number of events that may wait.
        self.limit = limit
        self._events: dict[tuple[bytes, bytes], WatchEvent] = {}
        # The paths of these events, by token.
        self._paths: dict[bytes, dict[bytes, None]] = {}
        self._overflows = 0  # how many of these events tell of an overflow
        self._collapsed: set[bytes] = set()
        #: The watches that feed the queue, as (path, token).
        self.watches: set[tuple[bytes, bytes]] = set()
        #: The tokens of the watches whose path was given as str, and whose events have such paths.
        self.texts: set[bytes] = set()
        #: Why no more events will come; None while they may.
        self.ended: XenStoreError | None = None
        #: The waiters for an event; `Session` adds and removes them.
        self.waiters: set[Any] = set()

    @property
    def ready(self) -> bool:
        """Whether a wait would be over at once: an event is here, or none will ever come."""
        return bool(self._events) or self.ended is not None or not self.watches

    def __len__(self) -> int:
        return len(self._events)

    def put(self, path: bytes, token: bytes) -> bool:
        """Add an event, unless an equal one or an overflow of its watch waits already.

        A full queue collapses instead.

        Arguments:
            path: where something changed.
            token: the token of the watch.

        Returns:
            Whether the queue has collapsed.
        """
        key = (path, token)
        if key in self._events or token in self._collapsed:
            return False
        room = self.limit
        if self._overflows:
            room = self._overflows + max(room, len(self.watches))
        if len(self._events) < room:
            self._events[key] = WatchEvent(path, token)
            self._paths.setdefault(token, {})[path] = None
            return False
        self.collapse()
        return True

    def collapse(self) -> None:
        """Replace all events by one for each watch, on the watched path, with ``overflow``."""
        self._collapsed = {of for _, of in self.watches}
        self._paths = {}
        self._events = {
            (top, of): WatchEvent(top, of, overflow=True) for top, of in sorted(self.watches)
        }
        self._index()

    def _index(self) -> None:
        """Note again of all events what is noted of them."""
        self._paths = {}
        for path, token in self._events:
            self._paths.setdefault(token, {})[path] = None
        self._overflows = sum(event.overflow for event in self._events.values())

    def _pop(self, path: bytes, token: bytes) -> WatchEvent[Any]:
        """Remove an event."""
        # An interrupted step may have left an event without its path; none without its event.
        paths = self._paths.get(token, {})
        paths.pop(path, None)
        if not paths:
            self._paths.pop(token, None)
        self._overflows -= self._events[path, token].overflow
        return self._events.pop((path, token))

    def take(self) -> WatchEvent[Any]:
        """Take the oldest event. The queue must not be empty."""
        key = next(iter(self._events))
        # The caller is told of the overflow now, so that later events of its watch count again.
        self._collapsed.discard(key[1])
        # Here, where an interrupt ends the connection; later it would lose the event.
        return as_watched(self._pop(*key), self.texts)  # type: ignore[no-any-return]

    def put_back(self, event: WatchEvent[Any]) -> None:
        """Undo `take`: the event is the oldest again."""
        event = WatchEvent(encode(event.path), event.token, event.overflow)
        key = (event.path, event.token)
        self._events = {key: event} | self._events
        if event.overflow:
            self._events[key] = event  # an equal event without it may have come meanwhile
            self._collapsed.add(event.token)
        self._index()

    def discard(self, path: bytes, token: bytes) -> None:
        """Drop an event that waits, unless it tells of an overflow."""
        event = self._events.get((path, token))
        if event is not None and not event.overflow:
            self._pop(path, token)

    def clear(self) -> None:
        """Drop all events that wait."""
        self._paths = {}
        self._events.clear()
        self._collapsed.clear()
        self._overflows = 0

    def drop(self, watches: Iterable[tuple[bytes, bytes]]) -> None:
        """Remove watches, and the waiting events that no other watch covers.

        Arguments:
            watches: the watches, as (path, token).
        """
        watches = list(watches)
        self.watches.difference_update(watches)
        for token in {token for _, token in watches}:
            paths = self._paths.get(token, {})
            overflow = False
            for path in list(paths):
                if not any((top, token) in self.watches for top in upwards(path)):
                    self._pop(path, token)
                else:
                    overflow = overflow or self._events[path, token].overflow
            if not overflow:
                self._collapsed.discard(token)
