"""What the connections yield: `ClientConnection.events_received`, `ServerConnection.next_event`."""

from typing import Any

from attrs import define

from ._record import Record
from .errors import XenStoreError
from .requests import Request
from .wire import Packet

__all__ = [
    "Closed",
    "ErrorReply",
    "Event",
    "Ignored",
    "Reply",
    "RequestReceived",
    "Reset",
    "WatchFired",
]


@define(eq=False, repr=False)
class Reply(Record):
    """A request succeeded; `value` is what its reply says."""

    rq_id: int
    request: Request[Any]
    value: Any


@define(eq=False, repr=False)
class ErrorReply(Record):
    """A request failed: refused, answered with nonsense, or cut off by the connection's end."""

    rq_id: int
    request: Request[Any]
    error: XenStoreError


@define(eq=False, repr=False)
class WatchFired(Record):
    """Something changed at `path`, which lies at or below the path watched with `token`.

    `stale`: no such watch is set, or no longer. Identical events may have been merged by the
    daemon, and the node may be gone by now.
    """

    path: bytes
    token: bytes
    stale: bool = False


@define(eq=False, repr=False)
class Reset(Record):
    """RESET_WATCHES took place: these watches, as (path, token), and transactions are no more."""

    watches: tuple[tuple[bytes, bytes], ...]
    transactions: tuple[int, ...]


@define(eq=False, repr=False)
class Ignored(Record):
    """A packet that nothing waits for, and why. For the log; nothing else follows from it."""

    packet: Packet
    why: str


@define(eq=False, repr=False)
class RequestReceived(Record):
    """A client asks.

    What the payload says is for `requests.parse_request` to read: daemons answer an unknown type,
    a missing right or a missing transaction before they look into it.
    """

    op: int
    rq_id: int
    tx_id: int
    payload: bytes


@define(eq=False, repr=False)
class Closed(Record):
    """The connection is over. Always the last event, exactly once."""

    reason: XenStoreError


Event = Reply | ErrorReply | WatchFired | Reset | Ignored | Closed
