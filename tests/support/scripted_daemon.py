"""A daemon by hand: what it answers, and when, is up to the test."""

from __future__ import annotations

import socket

from xsproto.wire import HEADER

__all__ = ["ScriptedDaemon"]


class ScriptedDaemon:
    """A daemon of which a test says what it receives and what it sends.

    It accepts one connection at a time, and does nothing by itself.

    Arguments:
        directory: where its socket is made.
    """

    def __init__(self, directory: str) -> None:
        self._listener = socket.socket(socket.AF_UNIX)
        self.path = f"{directory}/socket"
        self._listener.bind(self.path)
        self._listener.listen()
        self.connection = self._listener

    def __enter__(self) -> ScriptedDaemon:
        return self

    def __exit__(self, *_: object) -> None:
        self.connection.close()
        self._listener.close()

    def accept(self) -> None:
        """Accept a client's connection, in the place of the one before."""
        self.connection, _ = self._listener.accept()

    def request(self) -> tuple[int, int, int, bytes]:
        """Receive the next request: type, id, transaction, payload."""
        op, rq_id, tx_id, size = HEADER.unpack(self._exactly(16))
        return op, rq_id, tx_id, self._exactly(size)

    def _exactly(self, size: int) -> bytes:
        data = b""
        while len(data) < size:
            part = self.connection.recv(size - len(data))
            assert part, "the client has closed the connection"
            data += part
        return data

    def send(self, op: int, rq_id: int, tx_id: int, payload: bytes) -> None:
        """Send a packet: an answer or an event."""
        self.connection.sendall(HEADER.pack(op, rq_id, tx_id, len(payload)) + payload)

    def answer(self, payload: bytes, op: int | None = None, tx_id: int | None = None) -> int:
        """Receive a request, and answer it; return its type."""
        asked, rq_id, tx, _ = self.request()
        self.send(asked if op is None else op, rq_id, tx if tx_id is None else tx_id, payload)
        return asked
