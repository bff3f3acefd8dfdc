"""XenStore for asyncio: a client, and a daemon for tests, on Unix sockets."""

from typing import TYPE_CHECKING, Any

from xsproto.clients.asynchronous import Device, DomainWatch, Monitor, Transaction, View, Watch

from .client import Client, open_client

if TYPE_CHECKING:
    from .server import Server

__all__ = [
    "Client",
    "Device",
    "DomainWatch",
    "Monitor",
    "Server",
    "Transaction",
    "View",
    "Watch",
    "open_client",
]


def __getattr__(name: str) -> Any:
    # Only a program that serves a store pays for importing one.
    if name == "Server":
        from .server import Server

        return Server
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
