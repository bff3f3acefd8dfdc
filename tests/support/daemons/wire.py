"""XenStore packets, spelled out with `struct`: no code under test is used here."""

from __future__ import annotations

import enum
import os
import socket
import struct
from types import TracebackType
from typing import NamedTuple, Self

HEADER = struct.Struct("=IIII")
PAYLOAD_MAX = 4096
TIMEOUT = 10.0


class Op(enum.IntEnum):
    """Message types."""

    CONTROL = 0
    DIRECTORY = 1
    READ = 2
    GET_PERMS = 3
    WATCH = 4
    UNWATCH = 5
    TRANSACTION_START = 6
    TRANSACTION_END = 7
    INTRODUCE = 8
    RELEASE = 9
    GET_DOMAIN_PATH = 10
    WRITE = 11
    MKDIR = 12
    RM = 13
    SET_PERMS = 14
    WATCH_EVENT = 15
    ERROR = 16
    IS_DOMAIN_INTRODUCED = 17
    RESUME = 18
    SET_TARGET = 19
    RESET_WATCHES = 21
    DIRECTORY_PART = 22
    GET_FEATURE = 23
    SET_FEATURE = 24
    GET_QUOTA = 25
    SET_QUOTA = 26


class Packet(NamedTuple):
    """One message; `op` is an int, as daemons may send types not in `Op`."""

    op: int
    request: int
    transaction: int
    body: bytes

    def encode(self) -> bytes:
        head = HEADER.pack(self.op, self.request, self.transaction, len(self.body))
        return head + self.body


def take_packet(buffer: bytearray) -> Packet | None:
    """Remove the first packet from `buffer`; None, removing nothing, if it is not all there.

    A length above `PAYLOAD_MAX` raises ValueError.
    """
    if len(buffer) < HEADER.size:
        return None
    op, request, transaction, length = HEADER.unpack_from(buffer)
    if length > PAYLOAD_MAX:
        raise ValueError(f"a packet with {length} bytes of payload")
    end = HEADER.size + length
    if len(buffer) < end:
        return None
    body = bytes(buffer[HEADER.size : end])
    del buffer[:end]
    return Packet(op, request, transaction, body)


class Connection:
    """A client of the Unix socket at `path`; connected when made.

    Whatever takes longer than `timeout` seconds raises TimeoutError, and a
    connection that the other side closed raises ConnectionError.
    """

    def __init__(self, path: str | os.PathLike[str], timeout: float = TIMEOUT) -> None:
        self._buffer = bytearray()
        self._last_request = 0
        self._socket = socket.socket(socket.AF_UNIX)
        try:
            self._socket.settimeout(timeout)
            self._socket.connect(os.fspath(path))
        except BaseException:
            self._socket.close()
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    def close(self) -> None:
        self._socket.close()

    def settimeout(self, timeout: float) -> None:
        self._socket.settimeout(timeout)

    def send(self, packet: Packet) -> None:
        self.send_bytes(packet.encode())

    def send_bytes(self, data: bytes) -> None:
        self._socket.sendall(data)

    def receive(self) -> Packet:
        """Return the next packet, be it a reply or an event."""
        while (packet := take_packet(self._buffer)) is None:
            data = self._socket.recv(65536)
            if not data:
                raise ConnectionResetError("the other side closed the connection")
            self._buffer += data
        return packet

    def request(self, op: int, body: bytes, transaction: int = 0) -> tuple[int, bytes]:
        """Send a request and return (op, body) of its reply.

        Anything received before it, events and replies to requests that were
        given up, is dropped.
        """
        self._last_request += 1
        self.send(Packet(op, self._last_request, transaction, body))
        while True:
            reply = self.receive()
            if reply.op != Op.WATCH_EVENT and reply.request == self._last_request:
                return reply.op, reply.body
