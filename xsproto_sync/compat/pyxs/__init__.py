"""A drop-in for pyxs 0.4: ``import xsproto_sync.compat.pyxs as pyxs``, or `install`.

Names, arguments and behaviour are those of pyxs. "Migrating" in the documentation lists what
differs, and why.
"""

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from types import ModuleType
from typing import Any, Final

from . import _compat, _internal, client, connection, exceptions, helpers
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
    "install",
    "monitor",
    "xs",
]

_MODULES: Final = (_compat, _internal, client, connection, exceptions, helpers)


def install() -> ModuleType:
    """Make ``import pyxs``, and ``from pyxs.client import Router`` and the like, find this drop-in.

    Call it before the program's own imports. It counts also if pyxs itself is installed.

    Returns:
        this package, which is the module ``pyxs`` from now on.

    Raises:
        ImportError: pyxs itself was imported before, so some module may use it already.
    """
    ours = sys.modules[__name__]
    if sys.modules.setdefault("pyxs", ours) is not ours:
        raise ImportError("pyxs itself was imported before install(): call it earlier", name="pyxs")
    for module in _MODULES:
        sys.modules["pyxs" + module.__name__.removeprefix(__name__)] = module
    return ours


@contextmanager
def monitor(*args: Any, **kwargs: Any) -> Iterator[Monitor]:
    """A `Monitor` with a `Client` of its own; the arguments are those of `Client`."""
    with Client(*args, **kwargs) as client, client.monitor() as opened:
        yield opened
