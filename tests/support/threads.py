"""What tests of clients that have threads need: callers, daemons by hand, children."""

from __future__ import annotations

import os
import socket
import threading
import traceback
from collections.abc import Callable
from typing import Any

from xsproto.wire import HEADER

__all__ = ["PATIENCE", "Caller", "ScriptedDaemon", "in_child"]

#: Seconds after which something hangs.
PATIENCE = 30


class Caller(threading.Thread):
    """Calls something in a thread of its own."""

    def __init__(self, function: Callable[..., Any], *arguments: Any) -> None:
        super().__init__(daemon=True)
        self._call = (function, arguments)
        self._outcome: Any = None
        self.start()

    def run(self) -> None:
        function, arguments = self._call
        try:
            self._outcome = function(*arguments)
        except BaseException as error:
            self._outcome = error

    def result(self) -> Any:
        self.join(PATIENCE)
        assert not self.is_alive(), "it hangs"
        if isinstance(self._outcome, BaseException):
            raise self._outcome
        return self._outcome


class ScriptedDaemon:
    """A daemon that does what a test says."""

    def __init__(self, directory: str) -> None:
        self._listener = socket.socket(socket.AF_UNIX)
        self.path = f"{directory}/peer"
        self._listener.bind(self.path)
        self._listener.listen()
        self.connection = self._listener

    def __enter__(self) -> ScriptedDaemon:
        return self

    def __exit__(self, *_: object) -> None:
        self.connection.close()
        self._listener.close()

    def accept(self) -> None:
        self.connection, _ = self._listener.accept()

    def request(self) -> tuple[int, int, int, bytes]:
        """The next request: type, id, transaction, payload."""
        op, rq_id, tx_id, size = HEADER.unpack(self._exactly(16))
        return op, rq_id, tx_id, self._exactly(size)

    def _exactly(self, size: int) -> bytes:
        data = b""
        while len(data) < size:
            part = self.connection.recv(size - len(data))
            assert part, "the client has closed the connection"
            data += part
        return data

    def say(self, op: int, rq_id: int, tx_id: int, payload: bytes) -> None:
        self.connection.sendall(HEADER.pack(op, rq_id, tx_id, len(payload)) + payload)

    def answer(self, payload: bytes, op: int | None = None, tx_id: int | None = None) -> int:
        """Take a request, and answer it; return its type."""
        asked, rq_id, tx, _ = self.request()
        self.say(asked if op is None else op, rq_id, tx if tx_id is None else tx_id, payload)
        return asked


def in_child(function: Callable[[], object]) -> None:
    """Call it in a forked child, which must be well."""
    pid = os.fork()
    if not pid:
        try:
            function()
            os._exit(0)
        except BaseException:
            traceback.print_exc()
        finally:
            os._exit(1)
    assert os.waitpid(pid, 0)[1] == 0
