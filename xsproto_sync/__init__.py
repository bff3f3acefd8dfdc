"""XenStore for blocking programs: a thread-safe client, and a daemon for tests, on Unix sockets."""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from xsproto.clients.blocking import Device, DomainWatch, Monitor, Transaction, View, Watch

    from ._faults import Faults
    from .client import Client
    from .embedded import EmbeddedXenStore, Guest
    from .server import Server
else:
    # Each name is imported when it is used first: a program with a client need not load a daemon,
    # and pytest, which looks for its plugin in this package, need not load a client. (Type checkers
    # look at the branch above.)
    def __getattr__(name):
        if name in ("Device", "DomainWatch", "Monitor", "Transaction", "View", "Watch"):
            from xsproto.clients import blocking

            value = getattr(blocking, name)
        elif name == "Client":
            from . import client

            value = client.Client
        elif name == "Faults":
            from . import _faults

            value = _faults.Faults
        elif name in ("EmbeddedXenStore", "Guest"):
            from . import embedded

            value = getattr(embedded, name)
        elif name == "Server":
            from . import server

            value = server.Server
        else:
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        globals()[name] = value
        return value

    def __dir__():
        return sorted({*globals(), *__all__})


__all__ = [
    "Client",
    "Device",
    "DomainWatch",
    "EmbeddedXenStore",
    "Faults",
    "Guest",
    "Monitor",
    "Server",
    "Transaction",
    "View",
    "Watch",
]
