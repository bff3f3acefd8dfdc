"""The events of `ClientConnection.events_received`, and the requests of a `ServerConnection`."""

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
    """A request succeeded; `value` is the value of its reply."""

    rq_id: int
    request: Request[Any]
    value: Any


@record
class ErrorReply:
    """A request failed: it was refused, answered with nonsense, or the connection ended first."""

    rq_id: int
    request: Request[Any]
    error: XenStoreError


@record
class WatchFired:
    """Something changed at `path`, which lies at or below the path watched with `token`.

    The daemon may have merged identical events, and the node may be gone by now. `stale` says that
    no watch with this token is set or being set.
    """

    path: bytes
    token: bytes
    stale: bool = False


@record
class Reset:
    """RESET_WATCHES took place and ended these watches, as (path, token), and transactions."""

    watches: tuple[tuple[bytes, bytes], ...]
    transactions: tuple[int, ...]


@record
class Ignored:
    """A packet with an unknown request id, or a watch event that is nonsense, and why.

    For the log only. With a `max_outstanding` of 1, the packet may have been taken as the
    answer to the one request; then `why` says so.
    """

    packet: Packet
    why: str


@record
class Closed:
    """The connection ended. This is the last event, and comes exactly once."""

    reason: XenStoreError


Event = Reply | ErrorReply | WatchFired | Reset | Ignored | Closed

#: A request that a client sent: the message type, the request id, the transaction id (0 outside of
#: a transaction) and the payload. It is a plain tuple, which is made ten times faster than an
#: object. The payload is not parsed yet: daemons answer an unknown type, a missing right or a
#: missing transaction before they look into it. `parse_request` parses it.
RequestReceived = tuple[int, int, int, bytes]
