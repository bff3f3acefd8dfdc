"""What a wait for a condition has read, what it must watch, and when it must look again.

A condition is a function that takes a view of the store, reads through it, and returns something
true once it holds. `wait` runs it again when something that it has read may have changed.

**No change is missed.** A wait watches each path before it reads it for the first time. So a change
comes either before the read, which sees it, or after the watch was set, and then there is an event.
Nothing is polled.

**Which watches.** A watch also tells of changes below its path. So a wait sets none for a path
below one that it watches already: a walk needs one watch. After each run of the condition it takes
back those that the run has not needed. A watch begins with an event that says nothing. It comes
before the first read is sent, or soon after. In the first case it is dropped, in the second case
the condition runs once more.

**Which events count.** A node that was read changes if an event names it, or a node above it, which
was removed. An event below it counts if the node was missing, since the daemon makes all parents of
a node without an event of their own; or if its children were listed. An event with ``overflow``
says that anything may have changed, so it always counts.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final

from ..client import Exchange
from ..errors import InvalidArgument, LocalProtocolError
from ..paths import is_special, is_within, upwards
from ..requests import Request
from ..wire import NUL, Op, op_name
from .event_queue import WatchEvent

__all__ = ["Reads"]

# What a condition may send.
_READING: Final = (Op.READ, Op.GET_PERMS, Op.DIRECTORY, Op.DIRECTORY_PART)


class Reads:
    """What a condition has read, and the watches that tell of its changes."""

    def __init__(self) -> None:
        #: The paths that are watched. The caller adds to them once a watch is set.
        self.watched: set[bytes] = set()
        # The paths that the current or last run has read, and whether changes below them count.
        self._read: dict[bytes, bool] = {}
        self._needed: set[bytes] = set()  # the watches that cover these paths

    def begin(self) -> None:
        """Note that the condition begins to run again."""
        self._read = {}
        self._needed = set()

    def note(self, requests: Sequence[Request[Any]]) -> list[bytes]:
        """Note what is about to be read.

        Returns:
            the paths to watch first.

        Raises:
            LocalProtocolError: a request does not read nodes.
            InvalidArgument, InvalidType: the protocol cannot carry a request.
        """
        new: dict[bytes, None] = {}
        for request in requests:
            if request.op not in _READING:
                raise LocalProtocolError(
                    f"a condition only reads nodes: its view does not send {op_name(request.op)}",
                    request=request,
                )
            path = _path_of(request)
            if is_special(path):  # its permissions change without an event
                raise InvalidArgument(f"{path!r} is no node to wait for", path=path)
            self._read.setdefault(path, False)
            for top in upwards(path):
                if top in self.watched or top in new:
                    self._needed.add(top)
                    break
            else:
                new[path] = None
                self._needed.add(path)
        return list(new)

    def answered(
        self, requests: Sequence[Request[Any]], exchanges: Sequence[Exchange] | None
    ) -> None:
        """Note what came of requests.

        Arguments:
            requests: those that were given to `note`.
            exchanges: what came of them; None if they were given up.
        """
        for at, request in enumerate(requests):
            found = exchanges is not None and exchanges[at].answer.__class__ is bytes
            if not found or request.op in (Op.DIRECTORY, Op.DIRECTORY_PART):
                self._read[_path_of(request)] = True

    def concerns(self, event: WatchEvent) -> bool:
        """Return whether `event` may change what the last run has read."""
        return event.overflow or any(
            is_within(path, event.path) or (below and is_within(event.path, path))
            for path, below in self._read.items()
        )

    def unneeded(self) -> list[bytes]:
        """Return the watched paths that the last run has not needed; count them no more."""
        unneeded = self.watched - self._needed
        self.watched -= unneeded
        return sorted(unneeded)


def _path_of(request: Request[Any]) -> bytes:
    # From the payload, which checks the path as well.
    return request.payload().partition(NUL)[0]
