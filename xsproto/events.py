"""What the connections yield: `ClientConnection.events_received`, `ServerConnection.next_event`."""

from typing import Any

from ._record import record
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


@record
class Reply:
    """A request succeeded; `value` is what its reply says."""

    rq_id: int
    request: Request[Any]
    value: Any


@record
class ErrorReply:
    """A request failed: refused, answered with nonsense, or cut off by the connection's end."""

    rq_id: int
    request: Request[Any]
    error: XenStoreError


@record
class WatchFired:
    """Something changed at `path`, which lies at or below the path watched with `token`.

    `stale`: no such watch is set, or no longer. Identical events may have been merged by the
    daemon, and the node may be gone by now.
    """

    path: bytes
    token: bytes
    stale: bool = False


@record
class Reset:
    """RESET_WATCHES took place: these watches, as (path, token), and transactions are no more."""

    watches: tuple[tuple[bytes, bytes], ...]
    transactions: tuple[int, ...]


@record
class Ignored:
    """A packet that nothing waits for, and why. For the log; nothing else follows from it."""

    packet: Packet
    why: str


@record
class RequestReceived:
    """A client asks.

    What the payload says is for `requests.parse_request` to read: daemons answer an unknown type,
    a missing right or a missing transaction before they look into it.
    """

    op: int
    rq_id: int
    tx_id: int
    payload: bytes


@record
class Closed:
    """The connection is over. Always the last event, exactly once."""

    reason: XenStoreError


Event = Reply | ErrorReply | WatchFired | Reset | Ignored | Closed
