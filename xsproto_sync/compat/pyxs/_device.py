"""The XenBus device as a stream of packets.

`xsproto.adapters.device` lists the rules of the device. Elsewhere `DeviceEngine` and the adapter
keep some of them, but these take requests, and users of pyxs send packets: with ids of their own,
and any number before the first answer. A router waits on one descriptor for whatever comes back. So
this module keeps those rules for packets, between the router and the kernel:

- There is a transport for requests, and one for watches, which is opened with the first of them.
  What a transport does not take, because its descriptors are busy, waits here in a queue.
- The kernel does not answer some requests, or answers them unlike a daemon on a socket. They are
  not sent. Their answer, an error packet, is put into the buffer of received bytes.
- An epoll descriptor stands for all of it. It is readable while the buffer has bytes, or the
  transport of either connection has something to read.
"""

from __future__ import annotations

import errno
import os
import threading
from collections.abc import Callable
from typing import Any, Final

from xsproto.adapters.device import refusal
from xsproto.adapters.device_transport import DeviceTransport
from xsproto.errors import ConnectFailed
from xsproto.wire import HEADER, HEADER_SIZE, NUL, REPLY_MAX, Op, Packet, PacketReader

from ..._io.device_transport import RequestTransport, WatchTransport
from ..._io.system import SYSTEM, System, native
from ._waiting import waiter
from .exceptions import ConnectionError

__all__ = ["_XenBusTransport"]

_EPOLLIN: Final = 1

_ERROR: Final = Op.ERROR.value
_WATCH: Final = Op.WATCH.value
_UNWATCH: Final = Op.UNWATCH.value
_WATCH_EVENT: Final = Op.WATCH_EVENT.value
_TRANSACTION_END: Final = Op.TRANSACTION_END.value
_RESET_WATCHES: Final = Op.RESET_WATCHES.value


class _DeviceConnection:
    """A transport of the device, and a queue of what it does not take yet.

    Attributes:
        last: the message that the transport took last.
    """

    def __init__(self, transport: DeviceTransport) -> None:
        self.transport = transport
        self.last = b""
        self._reader = PacketReader(max_payload=REPLY_MAX)
        self._waiting: list[bytes] = []

    def descriptors(self) -> tuple[int, ...]:
        return (self.transport.fileno(), *self.transport.wakeup_fds())

    def send(self, message: bytes) -> None:
        self._waiting.append(message)
        self.send_waiting()

    def send_waiting(self) -> None:
        """Send what the transport takes. A refusal by the kernel is read as an answer."""
        waiting, self._waiting = self._waiting, []
        for message in waiting:
            if self.transport.send(message):
                self.last = message
            else:
                self._waiting.append(message)

    def receive(self) -> list[Packet]:
        """Return the packets that can be read without waiting."""
        try:
            data = self.transport.read_now()
        except BlockingIOError:
            return []
        if not data:
            raise OSError(errno.ECONNRESET, "the device has ended")
        return list(self._reader.receive_data(data))


class _XenBusTransport:
    """The device as the transport of a `XenBusConnection`.

    Arguments:
        path: of the device.

    Raises:
        ConnectionError: the device cannot be opened, or this system has no epoll.
    """

    def __init__(self, path: str) -> None:
        self._path = path
        self._lock = threading.Lock()
        self._ended = False
        self._buffer = bytearray()
        self._watched: set[bytes] = set()
        self._requests: _DeviceConnection | None = None
        self._watches: _DeviceConnection | None = None
        # `epoll.poll` is never called: `waiter` polls its descriptor. So it may be the real one
        # under monkey-patching.
        epoll = native("select", "epoll")
        if epoll is None:
            raise ConnectionError(f"{path!r} needs epoll, which this system does not have")
        self._epoll = epoll()
        # Readable while the buffer has bytes, and for good after the end.
        self._buffered = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
        self._epoll.register(self._buffered, _EPOLLIN)
        try:
            self._requests = self._open(RequestTransport)
        except BaseException:
            self.close()
            raise

    def _open(self, transport: Callable[[str, System], Any]) -> _DeviceConnection:
        opened = None
        try:
            opened = transport(self._path, SYSTEM)
            connection = _DeviceConnection(opened)
            for descriptor in connection.descriptors():
                self._epoll.register(descriptor, _EPOLLIN)
        except (ConnectFailed, OSError) as wrong:  # the latter by `register`, for what is no device
            if opened is not None:
                opened.close()
            raise ConnectionError(f"error while opening {self._path!r}: {wrong}") from wrong
        return connection

    def fileno(self) -> int:
        return int(self._epoll.fileno())

    def send(self, data: bytes) -> None:
        """Send a whole message, or add it to the queue of its connection."""
        with self._lock:
            op, _, tx_id, _ = HEADER.unpack_from(data)
            if op in (_WATCH, _UNWATCH):
                code = self._refuse_watch(op, data[HEADER_SIZE:])
            elif op == _TRANSACTION_END and not tx_id:
                code = errno.ENOENT  # the kernel does not answer this
            elif op == _RESET_WATCHES:
                code = errno.ENOSYS  # this would end the watches of the kernel itself
            else:
                code = 0
            if code:
                self._buffer += refusal(data, code)
                self._update_buffered()
            elif op in (_WATCH, _UNWATCH):
                if self._watches is None:
                    self._watches = self._open(WatchTransport)
                if op == _WATCH:
                    self._watched.add(data[HEADER_SIZE:])
                self._watches.send(data)
            else:
                assert self._requests is not None
                self._requests.send(data)

    def _refuse_watch(self, op: int, names: bytes) -> int:
        """Return the errno to refuse a WATCH or an UNWATCH with; 0 to send it."""
        if names.count(NUL) != 2 or names[-1:] != NUL:
            return errno.EINVAL  # for example a depth, which the kernel would ignore
        if op == _WATCH:
            return errno.EEXIST if names in self._watched else 0  # the kernel would set it twice
        return 0 if names in self._watched else errno.ENOENT

    def recv(self, size: int) -> bytes:
        """Wait for `size` bytes and return them.

        After `shutdown` it does not wait, and may return fewer.
        """
        while len(self._buffer) < size and not self._ended:
            self._receive()
        return self._take(size)

    def read(self) -> bytes:
        """Wait for bytes and return all that are there.

        After `shutdown` it does not wait, and may return none.
        """
        while not self._buffer and not self._ended:
            self._receive()
        return self._take(len(self._buffer))

    def _take(self, size: int) -> bytes:
        with self._lock:
            data = bytes(self._buffer[:size])
            del self._buffer[:size]
            self._update_buffered()
        return data

    def _update_buffered(self) -> None:
        if self._buffer or self._ended:
            os.eventfd_write(self._buffered, 1)
        else:
            try:
                os.eventfd_read(self._buffered)
            except BlockingIOError:
                pass

    def _receive(self) -> None:
        waiter(self.fileno())()
        with self._lock:
            for connection in (self._requests, self._watches):
                if connection is not None:
                    for packet in connection.receive():
                        if connection is self._watches and packet.op != _WATCH_EVENT:
                            self._note_answer(connection.last, packet)
                        self._buffer += packet.encode()
                    connection.send_waiting()
            self._update_buffered()

    def _note_answer(self, request: bytes, answer: Packet) -> None:
        """Forget a watch that could not be set, or that was unset."""
        is_watch = HEADER.unpack_from(request)[0] == _WATCH
        if is_watch == (answer.op == _ERROR):
            self._watched.discard(request[HEADER_SIZE:])

    def shutdown(self) -> None:
        """Wake the caller that receives. From now on `recv` and `read` do not wait."""
        self._ended = True
        with self._lock:
            if self._buffered >= 0:
                os.eventfd_write(self._buffered, 1)

    def close(self) -> None:
        """Close everything. The kernel may hold the descriptor for watches, and its thread, longer.

        `xsproto.adapters.device_transport.WatchTransport` says why.
        """
        self._end("close")

    def close_after_fork(self) -> None:
        """Close everything in a forked child."""
        self._lock = threading.Lock()  # a thread of the parent may have held the old one
        self._end("close_after_fork")

    def _end(self, how: str) -> None:
        with self._lock:
            self._epoll.close()
            if self._buffered >= 0:
                os.close(self._buffered)
                self._buffered = -1
            for connection in (self._requests, self._watches):
                if connection is not None:
                    connection.transport.shutdown()
                    getattr(connection.transport, how)()
