"""XenStore without I/O: the protocol as a pure state machine.

`ClientConnection` is the engine, for one's own event loop; the adapters (`xsproto_sync`, ...)
are for everyone else.
"""

from .client import ClientConnection
from .errors import (
    AccessDenied,
    AlreadyExists,
    Busy,
    CommitUnknown,
    ConflictError,
    ConnectFailed,
    ConnectionClosed,
    Forked,
    InvalidArgument,
    InvalidPath,
    InvalidRequest,
    InvalidType,
    LocalProtocolError,
    NotFound,
    NotSupported,
    QuotaExceeded,
    RemoteProtocolError,
    RetriesExhausted,
    TimedOut,
    TooBig,
    TransactionEnded,
    TransactionLost,
    XenStoreError,
)
from .events import Closed, ErrorReply, Event, Ignored, Reply, Reset, WatchFired
from .operations import Node
from .perms import Permission
from .requests import Request
from .session import Session, Waiter
from .watches import WatchEvent
from .wire import Op, Packet, PacketReader

__all__ = [
    "AccessDenied",
    "AlreadyExists",
    "Busy",
    "ClientConnection",
    "Closed",
    "CommitUnknown",
    "ConflictError",
    "ConnectFailed",
    "ConnectionClosed",
    "ErrorReply",
    "Event",
    "Forked",
    "Ignored",
    "InvalidArgument",
    "InvalidPath",
    "InvalidRequest",
    "InvalidType",
    "LocalProtocolError",
    "Node",
    "NotFound",
    "NotSupported",
    "Op",
    "Packet",
    "PacketReader",
    "Permission",
    "QuotaExceeded",
    "RemoteProtocolError",
    "Reply",
    "Request",
    "Reset",
    "RetriesExhausted",
    "Session",
    "TimedOut",
    "TooBig",
    "TransactionEnded",
    "TransactionLost",
    "Waiter",
    "WatchEvent",
    "WatchFired",
    "XenStoreError",
]
