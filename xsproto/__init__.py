"""XenStore without I/O: the protocol as a pure state machine.

`ClientConnection` is the engine, for one's own event loop; the adapters (`xsproto_sync`, ...)
are for everyone else. `ServerConnection` is its other end, and `Daemon` a XenStore without sockets.
"""

from typing import TYPE_CHECKING

from ._version import __version__
from .client import ClientConnection, Event, Exchange
from .clients.event_queue import WatchEvent
from .clients.operations import Node
from .clients.session import Session, Waiter
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
    InvalidValue,
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
from .events import (
    Closed,
    Ignored,
    RequestReceived,
    Reset,
    WatchFired,
)
from .perms import Permission
from .requests import Request
from .wire import Op, Packet, PacketReader

if TYPE_CHECKING:
    from .clients.devices import XenbusState
    from .clients.domains import Domain, DomainEvent
    from .clients.reconnect import ReconnectPolicy
    from .daemon.daemon import Daemon
    from .daemon.store import PROFILE_4_17, PROFILE_CURRENT, PROFILES, Profile
    from .server import ServerConnection
else:
    # What only some programs need costs only them: the others start without it. (Type checkers look
    # at the branch above.)
    def __getattr__(name):
        if name == "XenbusState":
            from .clients import devices as module
        elif name in ("Domain", "DomainEvent"):
            from .clients import domains as module
        elif name == "Daemon":
            from .daemon import daemon as module
        elif name == "ServerConnection":
            from . import server as module
        elif name in ("PROFILE_CURRENT", "PROFILE_4_17", "PROFILES", "Profile"):
            from .daemon import store as module
        elif name == "ReconnectPolicy":
            from .clients import reconnect as module
        else:
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        value = globals()[name] = getattr(module, name)
        return value

    def __dir__():
        return sorted({*globals(), *__all__})


__all__ = [
    "PROFILES",
    "PROFILE_4_17",
    "PROFILE_CURRENT",
    "AccessDenied",
    "AlreadyExists",
    "Busy",
    "ClientConnection",
    "Closed",
    "CommitUnknown",
    "ConflictError",
    "ConnectFailed",
    "ConnectionClosed",
    "Daemon",
    "Domain",
    "DomainEvent",
    "Event",
    "Exchange",
    "Forked",
    "Ignored",
    "InvalidArgument",
    "InvalidPath",
    "InvalidRequest",
    "InvalidType",
    "InvalidValue",
    "LocalProtocolError",
    "Node",
    "NotFound",
    "NotSupported",
    "Op",
    "Packet",
    "PacketReader",
    "Permission",
    "Profile",
    "QuotaExceeded",
    "ReconnectPolicy",
    "RemoteProtocolError",
    "Request",
    "RequestReceived",
    "Reset",
    "RetriesExhausted",
    "ServerConnection",
    "Session",
    "TimedOut",
    "TooBig",
    "TransactionEnded",
    "TransactionLost",
    "Waiter",
    "WatchEvent",
    "WatchFired",
    "XenStoreError",
    "XenbusState",
    "__version__",
]
