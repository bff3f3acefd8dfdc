"""XenStore for gevent: a client that greenlets share, and a daemon, without monkey-patching."""

from typing import TYPE_CHECKING, Any

from xsproto.clients.blocking import BlockingMonitor as Monitor
from xsproto.clients.blocking import BlockingTransaction as Transaction
from xsproto.clients.blocking import BlockingWatch as Watch

from .client import Client

if TYPE_CHECKING:
    from .server import Server

__all__ = ["Client", "Monitor", "Server", "Transaction", "Watch"]


def __getattr__(name: str) -> Any:
    # Only who serves a store pays for importing one.
    if name == "Server":
        from .server import Server

        return Server
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
