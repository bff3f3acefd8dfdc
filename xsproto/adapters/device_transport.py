"""Open, read and write the XenBus device. `xsproto.adapters.device` has the rules of the device.

Every call to the operating system goes through the adapter's `Backend`.
"""

from __future__ import annotations

import errno
from abc import abstractmethod
from collections.abc import Iterable
from contextlib import suppress
from typing import Any, Final

from ..client import ClientConnection
from ..errors import ConnectFailed, RemoteProtocolError
from ..requests import TransactionStart
from ..wire import HEADER, HEADER_SIZE, REPLY_MAX, Op, Packet, split_packets
from .backend import Backend
from .device import POOL_MAX, DeviceEngine, refusal
from .transport import READ_SIZE, ConnectionTransport

__all__ = ["RequestTransport", "WatchTransport"]

# The most reads in a row. After them other callers have their turn, however much there is to read.
_READS: Final = 16

_HARMLESS_READ: Final = Packet(Op.READ, 1, 0, b"/\0").encode()

# To look a member up in its class would cost as much as a call, at each request.
_EVENT: Final = Op.WATCH_EVENT.value
_START: Final = Op.TRANSACTION_START.value
_END: Final = Op.TRANSACTION_END.value


class DeviceTransport(ConnectionTransport):
    """The device, opened; what the transports of requests and of watches share.

    Beside the device there is a pair of wake-up sockets. A caller polls one of them together with
    the device, since neither `close` nor anything else wakes a caller that polls the device. The
    pair carries packets, too: the answers that a failed ``write()`` stands for.
    """

    def __init__(self, path: str, backend: Backend) -> None:
        """Open the device.

        Arguments:
            path: the path of the device.
            backend: what the adapter gives.

        Raises:
            ConnectFailed: there is no device at `path`, or it may not be used.
        """
        if backend.io is None:
            raise ConnectFailed(
                f"XenStore is at {path}, a XenBus device, which this adapter cannot use; "
                "xsproto_sync can"
            )
        super().__init__(path)
        self._backend = backend
        self._closed = False
        self._epoll: Any = None
        self._file_poll: Any = None  # of the device; only where there is no epoll
        socket, select = backend.socket, backend.select
        # Descriptors are kept by objects that close them when they are freed: an interrupt,
        # wherever it comes, leaves none open.
        kept: list[Any] = []
        try:
            kept.append(self._open())
            kept += _packet_sockets(socket)
            if hasattr(select, "epoll"):
                kept.append(select.epoll())
                for of in kept[:2]:
                    kept[3].register(of, select.EPOLLIN)
                self._epoll = kept[3]
            else:
                self._file_poll = select.poll()
                self._file_poll.register(kept[0], select.POLLIN)
        except OSError as error:
            for one in kept:
                one.close()
            raise _failed(path, error) from error
        self._file, self._wakeup, self._wakeup_sender = kept[:3]

    def _open(self) -> Any:
        # Not with an opener in Python: an interrupt between its `open` and its `return` would leave
        # the descriptor open.
        file = self._backend.io.FileIO(self.path, "r+")
        self._backend.posix.set_blocking(file.fileno(), False)
        return file

    def fileno(self) -> int:
        """Return the descriptor to poll; -1 once closed.

        It is readable while `read_now` has something to read, or after `shutdown`. It is an epoll;
        without epoll it is the device, and `wakeup_fds` must be polled as well.
        """
        if self._closed:
            return -1
        fd: int = (self._epoll or self._file).fileno()
        return fd

    def write(self, engine: ClientConnection) -> None:
        """Write what `engine` has to send, each message on a descriptor that is idle.

        The error of a ``write()`` comes as an answer.

        Arguments:
            engine: a `DeviceEngine`.
        """
        if self._closed:
            return
        assert isinstance(engine, DeviceEngine)
        for exchange in engine.waiting():
            descriptor = self._choose(exchange.tx_id)
            if descriptor is not None:
                self._write_to(descriptor, engine.hand_out(exchange))
            elif not exchange.tx_id:
                break  # none is idle

    def send(self, message: bytes) -> bool:
        """Write one message, for a user without an engine; see `write`.

        Returns:
            whether it was written: False if its descriptor is busy, or all of them are.
        """
        descriptor = self._choose(HEADER.unpack_from(message)[2])
        if descriptor is not None:
            self._write_to(descriptor, message)
        return descriptor is not None

    @abstractmethod
    def _choose(self, tx_id: int) -> _Descriptor | None:
        """Return an idle descriptor for a request; None if the request must wait."""

    @abstractmethod
    def _write_to(self, descriptor: _Descriptor, message: bytes) -> None:
        """Write one message to an idle descriptor. An error comes as an answer."""

    def wakeup_fds(self) -> tuple[int, ...]:
        """Return the descriptors to poll beside `fileno`: none where there is an epoll."""
        return () if self._epoll or self._closed else (self._wakeup.fileno(),)

    def _read_wakeup(self) -> bytes:
        """Return what the wake-up sockets carry; empty after `shutdown`.

        Raises:
            BlockingIOError: there is nothing.
        """
        data: bytes = self._wakeup.recv(READ_SIZE, self._backend.socket.MSG_DONTWAIT)
        return data

    def _check_closed(self) -> None:
        """Raise the error of a read after `close`.

        A loop may read once more. The number of the descriptor may be another file's by then, so
        the read must not reach the kernel.
        """
        if self._closed:
            raise OSError(errno.EBADF, "it is closed")

    def shutdown(self) -> None:
        """Make `fileno` readable for good. From any thread; idempotent."""
        try:
            self._wakeup.shutdown(self._backend.socket.SHUT_RDWR)
        except OSError:
            pass  # closed already

    def close(self) -> None:
        """Close the descriptors. Idempotent."""
        self._closed = True
        if self._epoll is not None:
            self._epoll.close()
        self._wakeup.close()
        self._release()

    def _release(self) -> None:
        self._file.close()
        self._wakeup_sender.close()


class _Descriptor:
    """A descriptor of the device, with one unanswered request at most.

    Attributes:
        file: the device.
        asked: the header of the request that is unanswered on it; None while it is idle.
        transactions: how many open transactions were started on it.
    """

    def __init__(self, file: Any) -> None:
        self.file = file
        self.asked: tuple[int, int, int, int] | None = None
        self.transactions = 0
        self._rest = b""  # the start of a packet

    def receive_data(self, data: bytes) -> list[bytes]:
        """Split what was read into packets; note an answer.

        Returns:
            the packets. What is no watch event is the answer to the request, and gets its id,
            because old kernels send a wrong one.
        """
        data = self._rest + data
        packets, used, too_long = split_packets(data, REPLY_MAX)
        self._rest = data[used:]
        taken = []
        for (op, rq_id, tx_id, size), payload in packets:
            if op != _EVENT and self.asked is not None:
                rq_id = self.asked[1]
                self.asked = None
            taken.append(HEADER.pack(op, rq_id, tx_id, size) + payload)
        if too_long is not None:
            taken.append(self._rest)  # the engine ends the connection for it
        return taken


class RequestTransport(DeviceTransport):
    """The device, opened for requests. No call waits, on Linux 4.11 and newer.

    It has up to `POOL_MAX` descriptors; see "The pool" in `xsproto.adapters.device`. Linux before
    4.11, and FreeBSD, wait for the answer where a request is written.
    """

    def __init__(self, path: str, backend: Backend) -> None:
        """Open the device.

        Arguments:
            path: the path of the device.
            backend: what the adapter gives.

        Raises:
            ConnectFailed: there is no device at `path`, or it may not be used.
        """
        super().__init__(path, backend)
        self._descriptors = {self._file.fileno(): _Descriptor(self._file)}
        self._transactions: dict[int, _Descriptor] = {}  # by id
        self._refusals: list[bytes] = []

    def _choose(self, tx_id: int) -> _Descriptor | None:
        """See `DeviceTransport`. It may open another descriptor."""
        if (bound := self._transactions.get(tx_id)) is not None:
            return bound if bound.asked is None else None
        # One with an open transaction comes last: the next request of that would have to wait.
        last = None
        for descriptor in self._descriptors.values():
            if descriptor.asked is None:
                if not descriptor.transactions:
                    return descriptor
                last = descriptor
        return self._open_another() or last

    def _open_another(self) -> _Descriptor | None:
        """Return a new descriptor; None if there may be no more."""
        if self._epoll is None or len(self._descriptors) == POOL_MAX:
            return None
        file = None
        try:
            file = self._open()
            self._epoll.register(file, self._backend.select.EPOLLIN)
        except OSError:  # for example, the process has too many
            if file is not None:
                file.close()
            return None
        self._descriptors[file.fileno()] = descriptor = _Descriptor(file)
        return descriptor

    def _write_to(self, descriptor: _Descriptor, message: bytes) -> None:
        """See `DeviceTransport`."""
        header = HEADER.unpack_from(message)
        try:
            self._backend.posix.write(descriptor.file.fileno(), message)
        except OSError as error:
            if not self._refusals:  # one wakes the caller that reads
                socket = self._backend.socket
                self._wakeup_sender.send(b"\0", socket.MSG_DONTWAIT | socket.MSG_NOSIGNAL)
            self._refusals.append(refusal(message, error.errno))
            return
        descriptor.asked = header
        if not header[3]:
            self._send_another_request()

    def _send_another_request(self) -> None:
        """Send a harmless request behind one without a payload.

        oxenstored answers such a one only once more bytes come. The harmless one goes to a
        descriptor of its own, since a request is outstanding on this one.
        """
        try:
            with self._open() as file:
                self._backend.posix.write(file.fileno(), _HARMLESS_READ)
        except OSError:
            pass  # the next request of any program serves as well

    def read_now(self) -> bytes:
        """Read the answers that are there.

        Raises:
            BlockingIOError: there is nothing to read now.
            OSError: this is closed.
        """
        self._check_closed()
        answers: list[bytes] = []
        ended = False
        for descriptor in self._readable():
            try:
                # One read is enough: one request is outstanding, so there is one answer at most.
                data = self._backend.posix.read(descriptor.file.fileno(), READ_SIZE)
            except BlockingIOError:
                continue
            ended = ended or not data
            asked = descriptor.asked
            packets = descriptor.receive_data(data)
            answers += packets
            if asked is not None and descriptor.asked is None:
                self._note_transaction(descriptor, asked, packets[0])
        if self._refusals:
            self._read_wakeup()
            answers += self._refusals
            self._refusals.clear()
        if not (answers or ended):
            raise BlockingIOError
        return b"".join(answers)

    def _readable(self) -> Iterable[_Descriptor]:
        """Return the descriptors that may have something to read."""
        if self._epoll is None:
            # FreeBSD's ``read()`` would wait if there is nothing.
            return self._descriptors.values() if self._file_poll.poll(0) else ()
        if len(self._descriptors) == 1:
            return self._descriptors.values()
        ready = [fd for fd, _ in self._epoll.poll(0)]
        return [self._descriptors[fd] for fd in ready if fd in self._descriptors]

    def _note_transaction(
        self, descriptor: _Descriptor, asked: tuple[int, int, int, int], answer: bytes
    ) -> None:
        """Note on which descriptor a transaction lives, from the answers that begin and end it."""
        op, _, tx_id, _ = asked
        if op == _END:
            self._forget_transaction(tx_id)
        elif op == _START == HEADER.unpack_from(answer)[0]:
            try:
                tx_id = TransactionStart().parse_reply(answer[HEADER_SIZE:])
            except RemoteProtocolError:
                return  # the engine says so
            self._forget_transaction(tx_id)  # after a resume, an old id comes once more
            self._transactions[tx_id] = descriptor
            descriptor.transactions += 1

    def _forget_transaction(self, tx_id: int) -> None:
        if (descriptor := self._transactions.pop(tx_id, None)) is not None:
            descriptor.transactions -= 1

    def _release(self) -> None:
        super()._release()
        for descriptor in self._descriptors.values():
            descriptor.file.close()


class WatchTransport(DeviceTransport):
    """The device, opened for watches, with a thread that writes.

    WATCH and UNWATCH wait within ``write()`` until the daemon has answered, and nothing can end
    that: no signal, no `close`, not even the end of the process. So a thread writes. Callers send
    it messages, its orders, over a socket pair, and never wait for it. It owns the device. It ends,
    and closes the device, once this transport is closed or freed and its last ``write()`` has
    returned. If the daemon is dead that is never: the thread stays, and so does its descriptor of
    the device.
    """

    def __init__(self, path: str, backend: Backend) -> None:
        """Open the device, and start the thread.

        Arguments:
            path: the path of the device.
            backend: what the adapter gives.

        Raises:
            ConnectFailed: there is no device at `path`, or it may not be used, or no thread can be
                started.
        """
        super().__init__(path, backend)
        self._descriptor = _Descriptor(self._file)
        ends: tuple[Any, ...] = ()
        try:
            ends = self._orders, orders = _packet_sockets(backend.socket)
            backend.start_thread(_write_orders, (orders, self._file, self._wakeup_sender, backend))
        except (OSError, RuntimeError) as error:  # RuntimeError: there are too many threads
            for one in (*ends, self._epoll, self._wakeup, self._file, self._wakeup_sender):
                if one is not None:
                    one.close()
            raise _failed(path, error) from error

    def _choose(self, tx_id: int) -> _Descriptor | None:
        """See `DeviceTransport`."""
        return self._descriptor if self._descriptor.asked is None else None

    def _write_to(self, descriptor: _Descriptor, message: bytes) -> None:
        """Have the thread write one message."""
        descriptor.asked = HEADER.unpack_from(message)
        # There is room: the thread took the message before this one, which was answered.
        self._orders.send(message, self._backend.socket.MSG_NOSIGNAL)

    def read_now(self) -> bytes:
        """See `RequestTransport`. It reads until nothing is left, but ``_READS`` times at most."""
        self._check_closed()
        pieces = []
        try:
            for _ in range(_READS):
                # FreeBSD's ``read()`` would wait if there is nothing.
                if self._file_poll is not None and not self._file_poll.poll(0):
                    raise BlockingIOError
                pieces.append(self._backend.posix.read(self._file.fileno(), READ_SIZE))
        except BlockingIOError:
            # Only now: the device has nothing more queued, so that the packet of a refusal is not
            # put into the middle of a message.
            with suppress(BlockingIOError):
                pieces.append(self._read_wakeup())
        if not (data := b"".join(pieces)):
            raise BlockingIOError
        return b"".join(self._descriptor.receive_data(data))

    def _release(self) -> None:
        # The thread sees the end of its orders. It then closes the device and its other end.
        self._orders.close()

    def close_after_fork(self) -> None:
        """See `DeviceTransport`. A forked child has no such thread to close the device."""
        self.close()
        super()._release()


def _write_orders(orders: Any, file: Any, wakeup_sender: Any, backend: Backend) -> None:
    """Write messages to the device until there will be no more; the thread of a `WatchTransport`.

    Arguments:
        orders: the socket that messages come from, until its other end is closed.
        file: the device.
        wakeup_sender: the socket that takes the answer to a message that the kernel has refused.
        backend: what the adapter gives.

    All three are closed at the end.
    """
    socket, write = backend.socket, backend.posix.write
    while message := orders.recv(READ_SIZE):
        try:
            write(file.fileno(), message)
        except OSError as error:
            try:
                wakeup_sender.send(
                    refusal(message, error.errno), socket.MSG_DONTWAIT | socket.MSG_NOSIGNAL
                )
            except OSError:
                pass  # the transport is closed: nobody waits for the answer any more
    for resource in (file, wakeup_sender, orders):
        resource.close()


def _packet_sockets(socket: Any) -> tuple[Any, Any]:
    """Make two connected sockets that keep messages apart.

    They can wait, whatever ``socket.setdefaulttimeout`` says.
    """
    one, other = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    one.setblocking(True)
    other.setblocking(True)
    return one, other


def _failed(path: str, error: OSError | RuntimeError) -> ConnectFailed:
    """Return the error of a device at `path` that cannot be opened, because of `error`."""
    hint = ""
    if isinstance(error, FileNotFoundError):
        hint = "; is this a Xen guest?"
    elif isinstance(error, PermissionError):
        hint = "; it is usually root's alone"
    why = getattr(error, "strerror", None) or error
    failed = ConnectFailed(f"cannot open the XenBus device {path}: {why}{hint}")
    failed.errno = getattr(error, "errno", None)
    return failed
