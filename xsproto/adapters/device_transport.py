"""The bytes of the XenBus device. What they obey, and who sees to it: `xsproto.adapters.device`.

All that is asked of the operating system goes through modules that the adapter hands in.
"""

from __future__ import annotations

import errno
from collections.abc import Callable
from functools import partial
from itertools import repeat
from typing import Any, Final, NamedTuple

from ..errors import ConnectFailed
from ..wire import HEADER_SIZE, Op, Packet
from .device import refusal
from .transport import READ_SIZE

__all__ = ["RequestTransport", "SystemModules", "WatchTransport"]

# Reads after which others have their turn, however much there is.
_READS: Final = 16

_HARMLESS_READ: Final = Packet(Op.READ, 1, 0, b"/\0").encode()


class SystemModules(NamedTuple):
    """The operating system.

    They must be the real ones where gevent or eventlet have patched others: nothing here waits but
    the thread of `WatchTransport`, which must be a thread.

    Attributes:
        io: of that name.
        os: ``posix``.
        select: of that name; without ``epoll``, `RequestTransport.wakeup_fds` is to be polled as
            well.
        socket: ``_socket``.
        start_thread: starts a thread with a function and its arguments, as
            ``_thread.start_new_thread``.
    """

    io: Any
    os: Any
    select: Any
    socket: Any
    start_thread: Callable[[Callable[..., object], tuple[Any, ...]], object]


class RequestTransport:
    """An opened device, for requests. No call waits.

    Beside the device there is a wake-up socket, since neither `close` nor anything else wakes who
    waits for the device. What it carries are packets, too: those that a failed ``write()`` stands
    for.

    What is read and written is added to the caller's list in one step, for the sake of interrupts.
    """

    def __init__(self, path: str, modules: SystemModules) -> None:
        """Open the device at `path`.

        Raises:
            ConnectFailed: there is none, or it may not be used.
        """
        #: Where it leads to.
        self.path = path
        os, socket = modules.os, modules.socket
        self._modules = modules
        self._closed = False
        self._epoll: Any = None
        # Kept by objects that close them, whatever interrupts this.
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
        fd = self._file.fileno()
        self._send_now = (socket.MSG_DONTWAIT | socket.MSG_NOSIGNAL,)
        self._receive_now = (socket.MSG_DONTWAIT,)
        # One read takes all that is queued. (Of 0 bytes, the kernel would loop for ever.)
        self._read_one = partial(map, os.read, (fd,), (READ_SIZE,))
        self._write_one = partial(map, os.write, (fd,))

    def _open(self) -> Any:
        # (An opener of ours could be interrupted between its `open` and its `return`.)
        file = self._modules.io.FileIO(self.path, "r+")
        self._modules.os.set_blocking(file.fileno(), False)
        return file

    def fileno(self) -> int:
        """The descriptor that is readable while `read_now` has something to do; -1 once closed."""
        if self._closed:
            return -1
        fd: int = (self._epoll or self._file).fileno()
        return fd

    def wakeup_fds(self) -> tuple[int, ...]:
        """What must be polled beside `fileno`, as there is no epoll."""
        return () if self._epoll or self._closed else (self._wakeup.fileno(),)

    def write(self, data: bytes | memoryview, written: list[int]) -> None:
        """Write one whole message, and add its length to `written`.

        That the kernel refuses it is an answer to it. (Linux before 4.11 waits here for the
        answer.)
        """
        try:
            written += self._write_one((data,))
        except OSError as error:
            self._wakeup_sender.send(refusal(bytes(data), error.errno), *self._send_now)
            written.append(len(data))
        if len(data) == HEADER_SIZE:
            self._send_another_request()

    def _send_another_request(self) -> None:
        """Have the daemon get more bytes: oxenstored answers an empty request only then.

        On a descriptor of its own, as another request is outstanding here.
        """
        try:
            with self._open() as file:
                self._modules.os.write(file.fileno(), _HARMLESS_READ)
        except OSError:
            pass  # then the next request of anyone is one

    def read_now(self, inbox: list[bytes]) -> None:
        """Add what is there to `inbox`.

        Raises:
            BlockingIOError: that is all, if anything at all.
            OSError: it is closed.
        """
        if self._closed:
            raise _is_closed()
        try:
            # One answer, since one request is outstanding.
            inbox += self._read_one()
        except BlockingIOError:
            # Nothing more is queued: here a message has ended, and a refusal may follow.
            self._read_wakeup(inbox)

    def _read_wakeup(self, inbox: list[bytes]) -> None:
        # Empty ones are from `wake` and `shutdown`; in the inbox they would be the end.
        inbox += filter(None, map(self._wakeup.recv, (READ_SIZE,), self._receive_now))

    def wake(self) -> None:
        """Wake whoever waits, for nothing."""
        try:
            self._wakeup_sender.send(b"", *self._send_now)
        except OSError:
            pass  # so many wake-ups are there already, or it is closed

    def shutdown(self) -> None:
        """Wake whoever waits, for good. Idempotent."""
        try:
            self._wakeup.shutdown(self._modules.socket.SHUT_RDWR)
        except OSError:
            pass  # closed already

    def close(self) -> None:
        """Give the descriptors back. Idempotent."""
        self._closed = True
        if self._epoll is not None:
            self._epoll.close()
        self._wakeup.close()
        self._release()

    def _release(self) -> None:
        self._file.close()
        self._wakeup_sender.close()

    def close_after_fork(self) -> None:
        """As `close`, in a forked child."""
        self.close()


class WatchTransport(RequestTransport):
    """An opened device, for watches.

    WATCH and UNWATCH wait within ``write()`` until the daemon has answered, and nothing can end
    that: no signal, no `close`, not even the end of the process. So a thread writes, which is left
    alone with its fate. It ends, and closes the device, when its `write` returns and this is gone.
    """

    def __init__(self, path: str, modules: SystemModules) -> None:
        """See `RequestTransport`; where no thread can be started, it is `ConnectFailed` as well."""
        super().__init__(path, modules)
        ends: tuple[Any, ...] = ()
        try:
            ends = self._orders, orders = _pair(modules.socket)
            self._send_order = partial(map, self._orders.send)
            modules.start_thread(_write_orders, (orders, self._file, self._wakeup_sender, modules))
        except (OSError, RuntimeError) as error:  # the latter where there are too many threads
            for one in (*ends, self._epoll, self._wakeup, self._file, self._wakeup_sender):
                if one is not None:
                    one.close()
            raise _failed(path, error) from error

    def write(self, data: bytes | memoryview, written: list[int]) -> None:
        """See `RequestTransport`; the thread is to write it."""
        written += self._send_order((data,), self._send_now)

    def read_now(self, inbox: list[bytes]) -> None:
        """See `RequestTransport`."""
        if self._closed:
            raise _is_closed()
        try:
            fds, sizes = repeat(self._file.fileno(), _READS), repeat(READ_SIZE)
            inbox += map(self._modules.os.read, fds, sizes)
        except BlockingIOError:
            self._read_wakeup(inbox)

    def _release(self) -> None:
        self._orders.close()  # which the thread is told, and then closes the rest

    def close_after_fork(self) -> None:
        """See `RequestTransport`; in this process there is no such thread."""
        self.close()
        super()._release()


def _write_orders(orders: Any, file: Any, wakeup_sender: Any, modules: SystemModules) -> None:
    """Write each message that comes from `orders`, until its other end is closed.

    All that it is given is its own to close.
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
                pass  # closed: nobody wants to know
    for resource in (file, wakeup_sender, orders):
        resource.close()


def _pair(socket: Any) -> tuple[Any, Any]:
    """Two ends that keep messages apart, and wait whatever ``socket.setdefaulttimeout`` says."""
    one, other = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    one.setblocking(True)
    other.setblocking(True)
    return one, other


def _is_closed() -> OSError:
    """What a loop is told that looks once more, when the number may be another file's."""
    return OSError(errno.EBADF, "it is closed")


def _failed(path: str, error: OSError | RuntimeError) -> ConnectFailed:
    hint = ""
    if isinstance(error, FileNotFoundError):
        hint = "; is this a Xen guest?"
    elif isinstance(error, PermissionError):
        hint = "; it is usually root's alone"
    why = getattr(error, "strerror", None) or error
    failed = ConnectFailed(f"cannot open the XenBus device {path}: {why}{hint}")
    failed.errno = getattr(error, "errno", None)
    return failed
