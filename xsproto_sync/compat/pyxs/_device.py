"""The XenBus device as a stream of packets. Its rules: `xsproto.adapters.device`.

What sends may have any number of requests under way, and what receives waits for one descriptor.
So the rules are kept between them: each of two descriptors, one for requests and one for watches,
has one request outstanding, and the others wait in a queue. What the kernel would not answer, or
otherwise than a daemon on a socket, is answered here.
"""

from __future__ import annotations

import errno
import os
import threading
from collections import deque
from collections.abc import Callable
from typing import Any, Final

from xsproto.adapters.device import refusal
from xsproto.errors import ConnectFailed
from xsproto.wire import HEADER, HEADER_SIZE, NUL, REPLY_MAX, Op, Packet, PacketReader

from ..._io.device_transport import WatchTransport, XenBusTransport
from ._waiting import native, waiter
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
    """A descriptor with one request outstanding."""

    def __init__(self, transport: XenBusTransport) -> None:
        self.transport = transport
        self.reader = PacketReader(max_payload=REPLY_MAX)
        self.outstanding: bytes | None = None
        self.waiting: deque[bytes] = deque()

    def descriptors(self) -> tuple[int, ...]:
        return (self.transport.fileno(), *self.transport.wakeup_fds())

    def send(self, message: bytes) -> None:
        self.waiting.append(message)
        self.send_next()

    def send_next(self) -> None:
        if self.outstanding is None and self.waiting:
            self.outstanding = self.waiting.popleft()
            # A refusal is not raised: it comes as an answer.
            self.transport.write(self.outstanding, [])

    def receive(self) -> list[Packet]:
        """What is there."""
        inbox: list[bytes] = []
        try:
            self.transport.read_now(inbox)
        except BlockingIOError:
            pass
        if b"" in inbox:
            raise OSError(errno.ECONNRESET, "the device has ended")
        return list(self.reader.receive_data(b"".join(inbox)))

    def answers(self, packet: Packet) -> bytes | None:
        """The request that `packet` answers, which is outstanding no more, or None.

        Whatever its id is: old kernels send a wrong one.
        """
        request = self.outstanding
        if request is None or packet.op not in (HEADER.unpack_from(request)[0], _ERROR):
            return None
        self.outstanding = None
        packet.rq_id = HEADER.unpack_from(request)[1]
        self.send_next()
        return request


class _XenBusTransport:
    def __init__(self, path: str) -> None:
        self._path = path
        self._lock = threading.Lock()
        self._ended = False
        self._buffer = bytearray()
        self._watched: set[bytes] = set()
        self._requests: _DeviceConnection | None = None
        self._watches: _DeviceConnection | None = None
        # It waits for nothing here, so that it may be the real one under monkey-patching.
        epoll = native("select", "epoll")
        if epoll is None:
            raise ConnectionError(f"{path!r} needs epoll, which this system does not have")
        self._epoll = epoll()
        # Readable while the buffer has something.
        self._more = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
        self._epoll.register(self._more, _EPOLLIN)
        try:
            self._requests = self._open(XenBusTransport)
        except BaseException:
            self.close()
            raise

    def _open(self, transport: Callable[[str], Any]) -> _DeviceConnection:
        opened = None
        try:
            opened = transport(self._path)
            connection = _DeviceConnection(opened)
            for descriptor in connection.descriptors():
                self._epoll.register(descriptor, _EPOLLIN)
        except (ConnectFailed, OSError) as wrong:  # the latter for what is no device
            if opened is not None:
                opened.close()
            raise ConnectionError(f"error while opening {self._path!r}: {wrong}") from wrong
        return connection

    def fileno(self) -> int:
        return int(self._epoll.fileno())

    def send(self, data: bytes) -> None:
        """Send a whole message, or put it into the queue."""
        with self._lock:
            op, _, tx_id, _ = HEADER.unpack_from(data)
            if op in (_WATCH, _UNWATCH):
                code = self._refuse_watch(op, data[HEADER_SIZE:])
            elif op == _TRANSACTION_END and not tx_id:
                code = errno.ENOENT  # the kernel would not answer
            elif op == _RESET_WATCHES:
                code = errno.ENOSYS  # those of the kernel itself would end
            else:
                code = 0
            if code:
                self._buffer += refusal(data, code)
                self._update_signal()
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
        """What is wrong with a watch, as a daemon on a socket would see it; 0 if nothing is."""
        if names.count(NUL) != 2 or names[-1:] != NUL:
            return errno.EINVAL  # such as a depth, which would be ignored
        if op == _WATCH:
            return errno.EEXIST if names in self._watched else 0  # the kernel would have two
        return 0 if names in self._watched else errno.ENOENT

    def recv(self, size: int) -> bytes:
        """Wait for `size` bytes; there are less once it has ended."""
        while len(self._buffer) < size and not self._ended:
            self._receive()
        return self._take(size)

    def read(self) -> bytes:
        """Wait for bytes, and take all that are there; there are none once it has ended."""
        while not self._buffer and not self._ended:
            self._receive()
        return self._take(len(self._buffer))

    def _take(self, size: int) -> bytes:
        with self._lock:
            data = bytes(self._buffer[:size])
            del self._buffer[:size]
            self._update_signal()
        return data

    def _update_signal(self) -> None:
        if self._buffer or self._ended:
            os.eventfd_write(self._more, 1)
        else:
            try:
                os.eventfd_read(self._more)
            except BlockingIOError:
                pass

    def _receive(self) -> None:
        waiter(self.fileno())()
        with self._lock:
            for connection in (self._requests, self._watches):
                if connection is not None:
                    for packet in connection.receive():
                        self._receive_packet(connection, packet)
            self._update_signal()

    def _receive_packet(self, connection: _DeviceConnection, packet: Packet) -> None:
        if packet.op != _WATCH_EVENT:
            request = connection.answers(packet)
            if request is not None and connection is self._watches:
                is_watch = HEADER.unpack_from(request)[0] == _WATCH
                if is_watch == (packet.op == _ERROR):  # a refused WATCH, or an UNWATCH
                    self._watched.discard(request[HEADER_SIZE:])
        self._buffer += packet.encode()

    def shutdown(self) -> None:
        """Have whoever receives find the end."""
        self._ended = True
        with self._lock:
            if self._more >= 0:
                os.eventfd_write(self._more, 1)

    def close(self) -> None:
        """Give everything back, the second device when the kernel lets go of its thread."""
        self._end("close")

    def close_after_fork(self) -> None:
        self._lock = threading.Lock()  # a thread may have held it that is not in this process
        self._end("close_after_fork")

    def _end(self, how: str) -> None:
        with self._lock:
            self._epoll.close()
            if self._more >= 0:
                os.close(self._more)
                self._more = -1
            for connection in (self._requests, self._watches):
                if connection is not None:
                    connection.transport.shutdown()
                    getattr(connection.transport, how)()
