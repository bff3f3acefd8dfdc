"""A transport that tells of each piece that it carries."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final, Literal, TypeAlias

from .streams import TlsSocket, check_socket, is_tls
from .transport import Transport

__all__ = ["Direction", "RecordingTransport", "WrappingTransport"]

#: Which way a piece went, as the client sees it.
Direction: TypeAlias = Literal["sent", "received"]

_SENT: Final = "sent"
_RECEIVED: Final = "received"


class WrappingTransport:
    """A `Transport` that is another one, or a connected socket. To derive others from.

    Arguments:
        transport: a `Transport`, or a socket, which must not wait from now on.

    Raises:
        InvalidArgument: the socket is not connected; see `xsproto.adapters.streams.check_socket`.
    """

    def __init__(self, transport: Transport | Any) -> None:
        self._tls = hasattr(transport, "setblocking") and is_tls(transport)
        if hasattr(transport, "setblocking"):
            check_socket(transport)
            transport.setblocking(False)
        self._transport: Any = TlsSocket(transport) if self._tls else transport

    def fileno(self) -> int:
        """See `Transport`."""
        fd: int = self._transport.fileno()
        return fd

    def send(self, data: bytes | memoryview, /) -> int:
        """See `Transport`."""
        count: int = self._transport.send(data, 0) if self._tls else self._transport.send(data)
        return count

    def recv(self, size: int, /) -> bytes:
        """See `Transport`."""
        data: bytes = self._transport.recv(size)
        return data

    def close(self) -> None:
        """See `Transport`."""
        self._transport.close()


class RecordingTransport(WrappingTransport):
    """A `Transport` that calls a function for each piece that was sent or received.

    ::

        Client(transport=RecordingTransport(sock, lambda direction, data: print(direction, data)))

    A piece need be no whole packet: `xsproto.PacketReader` makes packets of them.

    Arguments:
        transport: another `Transport`, or a connected socket.
        record: called with the `Direction` and the bytes. It must not wait, and must not use the
            client. What it raises ends the connection.

    Raises:
        InvalidArgument: see `WrappingTransport`.
    """

    def __init__(
        self, transport: Transport | Any, record: Callable[[Direction, bytes], object]
    ) -> None:
        super().__init__(transport)
        self._record = record

    def send(self, data: bytes | memoryview, /) -> int:
        """See `Transport`."""
        count = super().send(data)
        if count:
            self._record(_SENT, bytes(data[:count]))
        return count

    def recv(self, size: int, /) -> bytes:
        """See `Transport`."""
        data = super().recv(size)
        if data:
            self._record(_RECEIVED, data)
        return data
