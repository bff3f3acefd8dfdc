"""The events of `ClientConnection.events_received`, and the requests of a `ServerConnection`.

The end of a request is an event as well: its `xsproto.client.Exchange`.
"""

from ._record import record
from .errors import XenStoreError
from .wire import Packet

__all__ = [
    "Closed",
    "Ignored",
    "RequestReceived",
    "Reset",
    "WatchFired",
]


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

    For the log only.
    """

    packet: Packet
    why: str


@record
class Closed:
    """The connection ended. This is the last event, and comes exactly once."""

    reason: XenStoreError


#: A request that a client sent: the message type, the request id, the transaction id (0 outside of
#: a transaction) and the payload. It is a plain tuple: an object would cost the daemon some 1,600
#: instructions more for each request. The payload is not parsed yet: daemons answer an unknown
#: type, a missing right or a missing transaction before they look into it. `parse_request` parses
#: it.
RequestReceived = tuple[int, int, int, bytes]
