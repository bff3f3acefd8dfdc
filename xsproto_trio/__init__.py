"""XenStore for trio: a client, and a daemon for tests, on Unix sockets."""

from typing import TYPE_CHECKING, Any

try:
    import trio as _trio  # noqa: F401  # here, since the message below says what to install
except ModuleNotFoundError as error:
    if error.name != "trio":
        raise  # something that trio itself imports is missing
    raise ImportError(
        "xsproto_trio needs trio: pip install 'xsproto[trio]' (in a clone: pip install '.[trio]')",
        name="trio",
    ) from None

from xsproto.clients.asynchronous import Device, DomainWatch, Monitor, Transaction, View, Watch

from .client import Client, open_client

if TYPE_CHECKING:
    from .server import Server, serve

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
    "serve",
]


def __getattr__(name: str) -> Any:
    # Only a program that serves a store pays for importing one.
    if name in ("Server", "serve"):
        from . import server

        return getattr(server, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
