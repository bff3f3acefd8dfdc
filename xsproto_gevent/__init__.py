"""XenStore for gevent: a client that greenlets share, and a daemon, without monkey-patching."""

from typing import TYPE_CHECKING, Any

try:
    import gevent as _gevent  # noqa: F401  # here, since the message below says what to install
except ModuleNotFoundError as error:
    if error.name != "gevent":
        raise  # something that gevent itself imports is missing
    raise ImportError(
        "xsproto_gevent needs gevent: pip install 'xsproto[gevent]' "
        "(in a clone: pip install '.[gevent]')",
        name="gevent",
    ) from None

from xsproto.clients.blocking import Device, DomainWatch, Monitor, Transaction, View, Watch

from .client import Client

if TYPE_CHECKING:
    from .server import Server

__all__ = ["Client", "Device", "DomainWatch", "Monitor", "Server", "Transaction", "View", "Watch"]


def __getattr__(name: str) -> Any:
    # Only a program that serves a store pays for importing one.
    if name == "Server":
        from .server import Server

        return Server
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
