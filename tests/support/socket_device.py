"""A device that is a daemon's socket, for tests within the process: no fake device.

What is particular to the real device is told on the fake device, in `tests/device`.
"""

from __future__ import annotations

import _socket
import posix
import select
import socket
import threading
import types
from collections.abc import Callable
from typing import Any, Final

from xsproto.adapters.device_transport import SystemModules

__all__ = ["MODULES", "SocketFile"]


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


#: What opens such a device.
MODULES: Final = SystemModules(
    types.SimpleNamespace(FileIO=SocketFile), posix, select, _socket, _start_thread
)
