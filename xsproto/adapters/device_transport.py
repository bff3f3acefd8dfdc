"""Open, read and write the XenBus device. `xsproto.adapters.device` has the rules of the device.

Every call to the operating system goes through modules that the adapter hands in.
"""

from __future__ import annotations

import errno
from abc import abstractmethod
from collections.abc import Callable, Iterable
from contextlib import suppress
from typing import Any, Final, NamedTuple

from ..client import ClientConnection
from ..errors import ConnectFailed
from ..wire import HEADER, HEADER_SIZE, NUL, PAYLOAD_MAX, REPLY_MAX, Op, Packet, split_packets
from .device import POOL_MAX, refusal
from .transport import READ_SIZE, ConnectionTransport

__all__ = ["RequestTransport", "SystemModules", "WatchTransport"]

# The most reads in a row. After them other callers have their turn, however much there is to read.
_READS: Final = 16

# The digits of the highest transaction id.
_DIGITS_MAX: Final = 10

_HARMLESS_READ: Final = Packet(Op.READ, 1, 0, b"/\0").encode()


class SystemModules(NamedTuple):
    """The operating system, as the device's transports use it.

    Where gevent or eventlet have patched Python, these must be the original functions. Nothing here
    waits but the thread of `WatchTransport`, and that must be a thread of the system.

    Attributes:
        io: the module ``io``.
        os: the module ``posix``.
        select: the module ``select``. If it has no ``epoll``, the adapter must poll
            `DeviceTransport.wakeup_fds` as well.
        socket: the module ``_socket``.
        start_thread: starts a thread with a function and its arguments, as
            ``_thread.start_new_thread``. May raise ``RuntimeError``.
    """

    io: Any
    os: Any
    select: Any
    socket: Any
    start_thread: Callable[[Callable[..., object], tuple[Any, ...]], object]


class DeviceTransport(ConnectionTransport):
    """The device, opened; what the transports of requests and of watches share.

    Beside the device there is a pair of wake-up sockets. A caller polls one of them together with
    the device, since neither `close` nor anything else wakes a caller that polls the device. The
    pair carries packets, too: the answers that a failed ``write()`` stands for.
    """

    def __init__(self, path: str, modules: SystemModules) -> None:
        """Open the device.

        Arguments:
            path: the path of the device.
            modules: the operating system.

        Raises:
            ConnectFailed: there is no device at `path`, or it may not be used.
        """
        super().__init__(path)
        self._modules = modules
        self._closed = False
        self._epoll: Any = None
        socket = modules.socket
        # Descriptors are kept by objects that close them when they are freed: an interrupt,
        # wherever it comes, leaves none open.
        kept: list[Any] = []
        try:
            kept.append(self._open())
            kept += _pair(socket)
            if hasattr(modules.select, "epoll"):
                kept.append(modules.select.epoll())
                for of in kept[:2]:
                    kept[3].register(of, modules.select.EPOLLIN)
                self._epoll = kept[3]
        except OSError as error:
            for one in kept:
                one.close()
            raise _failed(path, error) from error
        self._file, self._wakeup, self._wakeup_sender = kept[:3]

    def _open(self) -> Any:
        # Not with an opener in Python: an interrupt between its `open` and its `return` would leave
        # the descriptor open.
        file = self._modules.io.FileIO(self.path, "r+")
        self._modules.os.set_blocking(file.fileno(), False)
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

    @abstractmethod
    def send(self, message: bytes) -> None:
        """Write one message. An error comes as an answer."""

    def wakeup_fds(self) -> tuple[int, ...]:
        """Return the descriptors to poll beside `fileno`: none where there is an epoll."""
        return () if self._epoll or self._closed else (self._wakeup.fileno(),)

    def _read_wakeup(self) -> bytes:
        """Return the packet of a refusal; empty if something else has woken the caller.

        Raises:
            BlockingIOError: there is nothing.
        """
        data: bytes = self._wakeup.recv(READ_SIZE, self._modules.socket.MSG_DONTWAIT)
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
            self._wakeup.shutdown(self._modules.socket.SHUT_RDWR)
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


class _Asked(NamedTuple):
    """The request that is unanswered on a descriptor."""

    op: int
    rq_id: int
    tx_id: int


class _Descriptor:
    """A descriptor of the device.

    Attributes:
        file: the device.
        asked: the request that is unanswered on it; None while it is idle.
        transactions: how many open transactions were started on it.
    """

    def __init__(self, file: Any) -> None:
        self.file = file
        self.asked: _Asked | None = None
        self.transactions = 0
        self._rest = b""  # the start of a packet

    def take(self, data: bytes) -> list[tuple[bytes, _Asked | None]]:
        """Take apart what was read.

        Returns:
            each packet, with the request that it answers, if it does. The id of an answer is set to
            that of the request, because old kernels send a wrong one.
        """
        data = self._rest + data
        packets, used, too_long = split_packets(data, REPLY_MAX)
        self._rest = data[used:]
        taken = [self._take_packet(header, payload) for header, payload in packets]
        if too_long is not None:
            taken.append((data[used:], None))  # the engine ends the connection for it
        return taken

    def _take_packet(
        self, header: tuple[int, int, int, int], payload: bytes
    ) -> tuple[bytes, _Asked | None]:
        op, rq_id, tx_id, size = header
        asked = self.asked
        if asked is not None and (op in (asked.op, Op.ERROR) or rq_id == asked.rq_id):
            rq_id, self.asked = asked.rq_id, None
        else:
            asked = None
        return HEADER.pack(op, rq_id, tx_id, size) + payload, asked


class RequestTransport(DeviceTransport):
    """The device, opened for requests. No call waits, on Linux 4.11 and newer.

    It has up to `POOL_MAX` descriptors, each with one unanswered request at most; see "The pool" in
    `xsproto.adapters.device`. Without epoll, which is what they are polled with, it has one.
    """

    def __init__(self, path: str, modules: SystemModules) -> None:
        """Open the device.

        Arguments:
            path: the path of the device.
            modules: the operating system.

        Raises:
            ConnectFailed: there is no device at `path`, or it may not be used.
        """
        super().__init__(path, modules)
        self._descriptors = {self._file.fileno(): _Descriptor(self._file)}
        self._transactions: dict[int, _Descriptor] = {}  # by id
        self._waiting: list[bytes] = []  # messages for which no descriptor was idle

    def write(self, engine: ClientConnection) -> None:
        """Write what `engine` has to send, each message on a descriptor that is idle.

        If the kernel refuses a message, `read_now` reads an ERROR as its answer. Linux before 4.11
        waits here for the answer.
        """
        if not self._closed and (data := engine.data_to_send()):
            packets, _, _ = split_packets(data, PAYLOAD_MAX)
            for header, payload in packets:
                self.send(HEADER.pack(*header) + payload)

    def send(self, message: bytes) -> None:
        """Write one message; see `write`."""
        if self._waiting or not self._write_one(message):
            self._waiting.append(message)

    def _write_one(self, message: bytes) -> bool:
        """Write a message; return False if its descriptor is busy, or all of them are."""
        op, rq_id, tx_id, size = HEADER.unpack_from(message)
        descriptor = self._choose(tx_id)
        if descriptor is None:
            return False
        descriptor.asked = _Asked(op, rq_id, tx_id)
        try:
            self._modules.os.write(descriptor.file.fileno(), message)
        except OSError as error:
            socket = self._modules.socket
            flags = socket.MSG_DONTWAIT | socket.MSG_NOSIGNAL
            self._wakeup_sender.send(refusal(message, error.errno), flags)
        if not size:
            self._send_another_request()
        return True

    def _choose(self, tx_id: int) -> _Descriptor | None:
        """Return an idle descriptor for a request; None if it must wait."""
        if (bound := self._transactions.get(tx_id)) is not None:
            return bound if bound.asked is None else None
        idle = [one for one in self._descriptors.values() if one.asked is None]
        # One with an open transaction comes last: the next request of that would have to wait.
        for descriptor in idle:
            if not descriptor.transactions:
                return descriptor
        if self._epoll is not None and len(self._descriptors) < POOL_MAX:
            try:
                file = self._open()
                self._epoll.register(file, self._modules.select.EPOLLIN)
            except OSError:
                pass  # there are too many descriptors: those that there are must do
            else:
                self._descriptors[file.fileno()] = descriptor = _Descriptor(file)
                return descriptor
        return idle[0] if idle else None

    def _send_another_request(self) -> None:
        """Send a harmless request behind one without a payload.

        oxenstored answers such a one only once more bytes come. The harmless one goes to a
        descriptor of its own, since a request is outstanding on this one.
        """
        try:
            with self._open() as file:
                self._modules.os.write(file.fileno(), _HARMLESS_READ)
        except OSError:
            pass  # the next request of any program serves as well

    def read_now(self) -> bytes:
        """Read the answers that are there, and write what has waited for a descriptor.

        Raises:
            BlockingIOError: there is nothing to read now.
            OSError: this is closed.
        """
        self._check_closed()
        answers = []
        for descriptor in self._ready():
            try:
                # One read is enough: one request is outstanding, so there is one answer at most.
                data = self._modules.os.read(descriptor.file.fileno(), READ_SIZE)
            except BlockingIOError:
                continue
            if not data:
                return b""  # no device of Linux does that
            for packet, asked in descriptor.take(data):
                answers.append(packet)
                if asked is not None:
                    self._note(descriptor, asked, packet)
        with suppress(BlockingIOError):
            if refused := self._read_wakeup():
                rq_id = HEADER.unpack_from(refused)[1]
                for descriptor in self._descriptors.values():
                    if descriptor.asked is not None and descriptor.asked.rq_id == rq_id:
                        descriptor.take(refused)
                answers.append(refused)
        if self._waiting:
            self._waiting = [message for message in self._waiting if not self._write_one(message)]
        if not answers:
            raise BlockingIOError
        return b"".join(answers)

    def _ready(self) -> Iterable[_Descriptor]:
        """Return the descriptors that may have something to read."""
        if len(self._descriptors) == 1:
            return self._descriptors.values()
        ready = [fd for fd, _ in self._epoll.poll(0)]
        return [self._descriptors[fd] for fd in ready if fd in self._descriptors]

    def _note(self, descriptor: _Descriptor, asked: _Asked, packet: bytes) -> None:
        """Note on which descriptor a transaction lives, from the answers that begin and end it."""
        op = HEADER.unpack_from(packet)[0]
        if op == Op.TRANSACTION_START:
            number = packet[HEADER_SIZE:].rstrip(NUL)
            if number.isdigit() and len(number) <= _DIGITS_MAX:
                self._forget(int(number))  # after a resume, an old id comes once more
                self._transactions[int(number)] = descriptor
                descriptor.transactions += 1
        elif asked.op == Op.TRANSACTION_END:
            self._forget(asked.tx_id)

    def _forget(self, tx_id: int) -> None:
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

    def __init__(self, path: str, modules: SystemModules) -> None:
        """Open the device, and start the thread.

        Arguments:
            path: the path of the device.
            modules: the operating system.

        Raises:
            ConnectFailed: there is no device at `path`, or it may not be used, or no thread can be
                started.
        """
        super().__init__(path, modules)
        self._descriptor = _Descriptor(self._file)
        ends: tuple[Any, ...] = ()
        try:
            ends = self._orders, orders = _pair(modules.socket)
            modules.start_thread(_write_orders, (orders, self._file, self._wakeup_sender, modules))
        except (OSError, RuntimeError) as error:  # RuntimeError: there are too many threads
            for one in (*ends, self._epoll, self._wakeup, self._file, self._wakeup_sender):
                if one is not None:
                    one.close()
            raise _failed(path, error) from error

    def write(self, engine: ClientConnection) -> None:
        """Have the thread write what `engine` has to send: one message, since one is unanswered.

        The result comes as an answer; see `RequestTransport.write`.
        """
        if not self._closed and (message := engine.data_to_send()):
            self.send(message)

    def send(self, message: bytes) -> None:
        """Have the thread write one message, while none is unanswered."""
        self._descriptor.asked = _Asked(*HEADER.unpack_from(message)[:3])
        # There is room: the thread took the message before this one, which was answered.
        self._orders.send(message, self._modules.socket.MSG_NOSIGNAL)

    def read_now(self) -> bytes:
        """See `RequestTransport`. It reads until nothing is left, but ``_READS`` times at most."""
        self._check_closed()
        pieces = []
        try:
            for _ in range(_READS):
                pieces.append(self._modules.os.read(self._file.fileno(), READ_SIZE))
        except BlockingIOError:
            # Only now: the device has nothing more queued, so that the packet of a refusal is not
            # put into the middle of a message.
            with suppress(BlockingIOError):
                pieces.append(self._read_wakeup())
        if not (data := b"".join(pieces)):
            raise BlockingIOError
        return b"".join([packet for packet, _ in self._descriptor.take(data)])

    def _release(self) -> None:
        # The thread sees the end of its orders. It then closes the device and its other end.
        self._orders.close()

    def close_after_fork(self) -> None:
        """See `DeviceTransport`. A forked child has no such thread to close the device."""
        self.close()
        super()._release()


def _write_orders(orders: Any, file: Any, wakeup_sender: Any, modules: SystemModules) -> None:
    """Write messages to the device until there will be no more; the thread of a `WatchTransport`.

    Arguments:
        orders: the socket that messages come from, until its other end is closed.
        file: the device.
        wakeup_sender: the socket that takes the answer to a message that the kernel has refused.
        modules: the operating system.

    All three are closed at the end.
    """
    socket, write = modules.socket, modules.os.write
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


def _pair(socket: Any) -> tuple[Any, Any]:
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
