"""XenStore for trio: a client, and a daemon for tests, on Unix sockets."""

from typing import TYPE_CHECKING, Any

from xsproto.clients.asynchronous import AsyncMonitor as Monitor
from xsproto.clients.asynchronous import AsyncTransaction as Transaction
from xsproto.clients.asynchronous import AsyncWatch as Watch

from .client import Client, open_client

if TYPE_CHECKING:
    from .server import serve

__all__ = ["Client", "Monitor", "Transaction", "Watch", "open_client", "serve"]


def __getattr__(name: str) -> Any:
    # Only who serves a store pays for importing one.
    if name == "serve":
        from .server import serve

        return serve
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
