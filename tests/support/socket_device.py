"""A device that is a daemon's socket, for tests within the process: no fake device.

What is particular to the real device is told on the fake device, in `tests/device`.
"""

from __future__ import annotations

import fcntl
import os
import posix
import select
import socket
import threading
from collections.abc import Callable
from time import monotonic
from types import SimpleNamespace
from typing import Any, Final

import pytest

from xsproto.adapters.backend import Backend

__all__ = ["SYSTEM", "SocketFile", "take_sockets_for_devices"]


class SocketFile:
    """What `io.FileIO` gives of a device: a connection to the socket of that path."""

    def __init__(self, path: str, mode: str) -> None:
        self._sock = socket.socket(socket.AF_UNIX)
        try:
            self._sock.connect(path)
        except BaseException:
            self._sock.close()
            raise
        self.fileno, self.close = self._sock.fileno, self._sock.close

    def __enter__(self) -> SocketFile:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def _start_thread(function: Callable[..., object], arguments: tuple[Any, ...]) -> None:
    # Not by `_thread`, as adapters do: coverage would not see it.
    threading.Thread(target=function, args=arguments, daemon=True).start()


class SocketSystem(Backend):
    """A system whose devices are sockets."""

    io, os, posix, select, socket = SimpleNamespace(FileIO=SocketFile), os, posix, select, socket
    fcntl = fcntl
    now, start_thread = staticmethod(monotonic), staticmethod(_start_thread)


#: What opens such a device.
SYSTEM: Final = SocketSystem()


def take_sockets_for_devices(backend: Backend, monkeypatch: pytest.MonkeyPatch) -> None:
    """Have the clients of an adapter do so, until the end of the test."""
    for name in ("io", "posix", "select", "socket", "start_thread"):
        monkeypatch.setattr(backend, name, getattr(SYSTEM, name))
