"""XenStore for blocking programs: a thread-safe client, and a daemon for tests, on Unix sockets."""

from typing import TYPE_CHECKING, Any

from xsproto.blocking import BlockingMonitor as Monitor
from xsproto.blocking import BlockingTransaction as Transaction
from xsproto.blocking import BlockingWatch as Watch

from .client import Client

if TYPE_CHECKING:
    from .embedded import EmbeddedXenStore
    from .server import Server

__all__ = ["Client", "EmbeddedXenStore", "Monitor", "Server", "Transaction", "Watch"]


def __getattr__(name: str) -> Any:
    # Only who serves a store pays for importing one.
    if name == "EmbeddedXenStore":
        from .embedded import EmbeddedXenStore

        return EmbeddedXenStore
    if name == "Server":
        from .server import Server

        return Server
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
