"""Connections that send and receive packets."""

from __future__ import annotations

import errno
import os
import platform
import socket
import struct
from collections.abc import Iterator
from typing import Any, Final, Protocol

from xsproto.adapters.discovery import DEVICE_PATHS, SOCKET_PATHS, named_by_environment
from xsproto.wire import HEADER, HEADER_SIZE, REPLY_MAX, split_packets

from ._device import _XenBusTransport
from ._internal import Packet, received_packet
from .exceptions import ConnectionError

__all__ = ["UnixSocketConnection", "XenBusConnection"]

# Bytes of one read. A buffer of 64 KiB for each answer would take a noticeable time to make.
_READ_SIZE: Final = 16384


class _Transport(Protocol):
    """The bytes of a connection.

    A transport may also have `read`, which waits for bytes and returns all that are there;
    `shutdown`, which wakes the callers that wait in it; and `close_after_fork`, which closes it in
    a forked child.
    """

    def fileno(self) -> int: ...
    def recv(self, size: int) -> bytes: ...
    def send(self, data: bytes) -> None: ...
    def close(self) -> None: ...


class PacketConnection:
    """The base of both connections. A subclass sets `path` and makes its own transport."""

    path: Any = None
    transport: Any = None

    def __repr__(self) -> str:
        return f"{self.__class__.__name__}({self.path!r})"

    @property
    def is_connected(self) -> bool:
        """Whether the connection is open."""
        return self.transport is not None

    def create_transport(self) -> _Transport:
        """Open the transport.

        Raises:
            ConnectionError: it cannot be opened.
        """
        raise NotImplementedError

    def fileno(self) -> int:
        """Return a descriptor that is readable when `recv` should be called."""
        return int(self._transport().fileno())

    def connect(self) -> None:
        """Open the connection, unless it is open.

        Raises:
            ConnectionError: it cannot be opened.
        """
        if self.transport is None:
            self.transport = self.create_transport()

    def close(self, silent: bool = True) -> None:
        """Close the connection, unless it is closed.

        Arguments:
            silent: raise no error.

        Raises:
            ConnectionError: closing failed. The connection is closed all the same.
        """
        transport, self.transport = self.transport, None
        if transport is None:
            return
        try:
            transport.close()
        except OSError as wrong:
            if not silent:
                raise ConnectionError(wrong.args) from wrong

    def close_after_fork(self) -> None:
        """Close the connection in a forked child. The parent's stays open."""
        transport, self.transport = self.transport, None
        if transport is not None:
            getattr(transport, "close_after_fork", transport.close)()

    def send(self, packet: Packet) -> None:
        """Send a packet without checking it. Only one thread at a time may call this.

        Raises:
            ConnectionError: the packet could not be sent as a whole. The connection is shut down,
                because what followed would be taken for the rest of the packet; the thread that
                receives finds its end.
            ValueError: a number in the header has more than 32 bits. Nothing was sent.
        """
        transport = self.transport or self._transport()  # nearly always without the call
        try:
            data = HEADER.pack(packet.op, packet.rq_id, packet.tx_id, packet.size)
        except struct.error as wrong:
            raise ValueError(f"{packet!r} cannot be sent: {wrong}") from None
        try:
            transport.send(data + packet.payload)
        except OSError as wrong:
            self.shutdown()
            raise self._failed("writing to", wrong) from wrong

    def recv(self) -> Packet:
        """Wait for a packet and return it.

        No bytes beyond the packet are read, so that `select` reports the next one.

        Raises:
            ConnectionError: the connection has ended, and is closed now.
        """
        transport = self._transport()
        try:
            header = HEADER.unpack(_exactly(transport, HEADER_SIZE))
            if (size := header[3]) > REPLY_MAX:
                raise _too_long(size)
            # Never ask for 0 bytes: in a read of the device, the kernel would loop for ever.
            payload = _exactly(transport, size) if size else b""
        except OSError as wrong:
            self.close()
            raise self._failed("reading from", wrong) from wrong
        return received_packet(header, payload)

    def packets(self) -> Iterator[Packet]:
        """Wait for packets and yield them. This is faster than `recv`, since it reads many at once.

        The transport must have `read`.

        Raises:
            ConnectionError: the connection has ended, and is closed now.
        """
        transport = self._transport()
        rest = b""
        try:
            while data := transport.read():
                data = rest + data
                found, used, too_long = split_packets(data, REPLY_MAX)
                rest = data[used:]
                for header, payload in found:
                    yield received_packet(header, payload)
                if too_long is not None:
                    raise _too_long(too_long)
            raise _ended()
        except OSError as wrong:
            self.close()
            raise self._failed("reading from", wrong) from wrong

    def shutdown(self) -> None:
        """Wake other threads that send or receive: their calls fail. `close` must follow.

        This does nothing if the transport has no `shutdown`.
        """
        getattr(self.transport, "shutdown", _nothing)()

    def _transport(self) -> Any:
        transport = self.transport
        if transport is None:
            raise ConnectionError("not connected")
        return transport

    def _failed(self, doing: str, wrong: Exception) -> ConnectionError:
        return ConnectionError(f"error while {doing} {self.path!r}: {wrong}")


def _nothing() -> None:
    pass


def _exactly(transport: Any, size: int) -> bytes:
    data: bytes = transport.recv(size)
    if len(data) != size:
        raise _ended()
    return data


def _ended() -> OSError:
    return OSError(errno.ECONNRESET, "the daemon has closed the connection")


def _too_long(size: int) -> OSError:
    return OSError(errno.EMSGSIZE, f"a packet of {size} bytes, more than the {REPLY_MAX} allowed")


class _UnixSocketTransport:
    def __init__(self, path: str) -> None:
        # Looked up in `socket` at each call, because monkey-patching replaces it.
        self.sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            self.sock.settimeout(None)  # else `socket.setdefaulttimeout` would count
            self.sock.connect(path)
        except OSError as wrong:
            self.sock.close()
            raise ConnectionError(f"error connecting to {path!r}: {wrong}") from wrong
        except BaseException:
            self.sock.close()
            raise

    def fileno(self) -> int:
        return self.sock.fileno()

    def recv(self, size: int) -> bytes:
        data = bytearray()
        while len(data) < size and (part := self.sock.recv(size - len(data))):
            data += part
        return bytes(data)

    def read(self) -> bytes:
        return self.sock.recv(_READ_SIZE)

    def send(self, data: bytes) -> None:
        # The call that sends also adds to the list. So no interrupt can come between the two.
        sent: list[int] = []
        rest = data
        try:
            while rest:
                sent += map(self.sock.send, (rest,))
                rest = data[sum(sent) :]
        except BaseException:
            if 0 < sum(sent) < len(data):
                self.shutdown()  # the next message would be taken for the rest of this one
            raise

    def shutdown(self) -> None:
        try:
            self.sock.shutdown(socket.SHUT_RDWR)
        except OSError:
            pass  # the daemon has closed the connection

    def close(self) -> None:
        self.shutdown()  # wakes a thread in `send`, which `close` does not
        self.sock.close()

    def close_after_fork(self) -> None:
        self.sock.close()


class UnixSocketConnection(PacketConnection):
    """A connection to a daemon's Unix socket.

    Arguments:
        path: of the socket. The default is ``XENSTORED_PATH`` of the environment, else ``socket``
            in the directory ``XENSTORED_RUNDIR``, else ``/var/run/xenstored/socket``.
    """

    def __init__(self, path: str | None = None) -> None:
        self.path = path or _get_unix_socket_path()

    def create_transport(self) -> _Transport:
        """See `PacketConnection`."""
        return _UnixSocketTransport(self.path)


def _get_unix_socket_path() -> str:
    named = named_by_environment(os)
    return SOCKET_PATHS[0] if named is None else named.path


class XenBusConnection(PacketConnection):
    """A connection through the XenBus device of a guest.

    Watches have a descriptor of their own. On each descriptor a request waits until the one before
    it is answered. `xsproto.adapters.device` has the rules that ask for this.

    Arguments:
        path: of the device. The default is the system's.
    """

    def __init__(self, path: str | None = None) -> None:
        self.path = path or _get_xenbus_path()

    def create_transport(self) -> _Transport:
        """See `PacketConnection`."""
        return _XenBusTransport(self.path)


def _get_xenbus_path() -> str:
    known = DEVICE_PATHS.get(platform.system(), ("/dev/xen/xenbus",))
    for path in known[:-1]:
        if os.access(path, os.R_OK):
            return path
    return known[-1]
