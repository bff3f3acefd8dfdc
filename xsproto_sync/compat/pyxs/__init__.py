"""A drop-in for pyxs 0.4: ``import xsproto_sync.compat.pyxs as pyxs``.

Names, arguments and behaviour are those of pyxs. "Migrating" in the documentation lists what
differs, and why.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from ._compat import Error, xs
from .client import Client, Monitor, Router
from .exceptions import (
    ConnectionError,
    InvalidOperation,
    InvalidPath,
    InvalidPayload,
    PyXSError,
    UnexpectedPacket,
)

__all__ = [
    "Client",
    "ConnectionError",
    "Error",
    "InvalidOperation",
    "InvalidPath",
    "InvalidPayload",
    "Monitor",
    "PyXSError",
    "Router",
    "UnexpectedPacket",
    "monitor",
    "xs",
]


@contextmanager
def monitor(*args: Any, **kwargs: Any) -> Iterator[Monitor]:
    """A `Monitor` with a `Client` of its own; the arguments are those of `Client`."""
    with Client(*args, **kwargs) as client, client.monitor() as opened:
        yield opened
