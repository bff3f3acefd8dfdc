"""The events of `ClientConnection.events_received` and `ServerConnection.next_event`."""

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
    """A request succeeded; `value` is the value of its reply."""

    rq_id: int
    request: Request[Any]
    value: Any


@define(eq=False, repr=False)
class ErrorReply(Record):
    """A request failed: it was refused, answered with nonsense, or the connection ended first."""

    rq_id: int
    request: Request[Any]
    error: XenStoreError


@define(eq=False, repr=False)
class WatchFired(Record):
    """Something changed at `path`, which lies at or below the path watched with `token`.

    The daemon may have merged identical events, and the node may be gone by now. `stale` says that
    no watch with this token is set or being set.
    """

    path: bytes
    token: bytes
    stale: bool = False


@define(eq=False, repr=False)
class Reset(Record):
    """RESET_WATCHES took place and ended these watches, as (path, token), and transactions."""

    watches: tuple[tuple[bytes, bytes], ...]
    transactions: tuple[int, ...]


@define(eq=False, repr=False)
class Ignored(Record):
    """A packet that no request waits for, and why. It is for the log, and changes nothing."""

    packet: Packet
    why: str


@define(eq=False, repr=False)
class RequestReceived(Record):
    """A client sent a request.

    The payload is not parsed yet: daemons answer an unknown type, a missing right or a missing
    transaction before they look into it. `parse_request` parses it.
    """

    op: int
    rq_id: int
    tx_id: int
    payload: bytes


@define(eq=False, repr=False)
class Closed(Record):
    """The connection ended. This is the last event, and comes exactly once."""

    reason: XenStoreError


Event = Reply | ErrorReply | WatchFired | Reset | Ignored | Closed
