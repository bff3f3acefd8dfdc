"""Open, read and write the XenBus device. `xsproto.adapters.device` has the rules of the device.

Every call to the operating system goes through modules that the adapter hands in. Results that an
interrupt must not lose are added to a list in the step that makes them, as
`xsproto.adapters.transport` tells.
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

# The most reads in a row. After them other callers have their turn, however much there is to read.
_READS: Final = 16

_HARMLESS_READ: Final = Packet(Op.READ, 1, 0, b"/\0").encode()


class SystemModules(NamedTuple):
    """The operating system, as the device's transports use it.

    Where gevent or eventlet have patched Python, these must be the original functions. Nothing here
    waits but the thread of `WatchTransport`, and that must be a thread of the system.

    Attributes:
        io: the module ``io``.
        os: the module ``posix``.
        select: the module ``select``. If it has no ``epoll``, the adapter must poll
            `RequestTransport.wakeup_fds` as well.
        socket: the module ``_socket``.
        start_thread: starts a thread with a function and its arguments, as
            ``_thread.start_new_thread``. May raise ``RuntimeError``.
    """

    io: Any
    os: Any
    select: Any
    socket: Any
    start_thread: Callable[[Callable[..., object], tuple[Any, ...]], object]


class RequestTransport:
    """The device, opened for requests; a `Transport`. No call waits, on Linux 4.11 and newer.

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
        #: The path of the device, for messages.
        self.path = path
        os, socket = modules.os, modules.socket
        self._modules = modules
        self._closed = False
        self._epoll: Any = None
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
        fd = self._file.fileno()
        self._send_now = (socket.MSG_DONTWAIT | socket.MSG_NOSIGNAL,)
        self._receive_now = (socket.MSG_DONTWAIT,)
        # One read takes all that is queued. (Of 0 bytes, the kernel would loop for ever.)
        self._read_one = partial(map, os.read, (fd,), (READ_SIZE,))
        self._write_one = partial(map, os.write, (fd,))

    def _open(self) -> Any:
        # Not with an opener in Python: an interrupt between its `open` and its `return` would leave
        # the descriptor open.
        file = self._modules.io.FileIO(self.path, "r+")
        self._modules.os.set_blocking(file.fileno(), False)
        return file

    def fileno(self) -> int:
        """Return the descriptor to poll; -1 once closed.

        It is readable while `read_now` has something to read, or after `wake` and `shutdown`. It is
        an epoll; without epoll it is the device, and `wakeup_fds` must be polled as well.
        """
        if self._closed:
            return -1
        fd: int = (self._epoll or self._file).fileno()
        return fd

    def wakeup_fds(self) -> tuple[int, ...]:
        """Return the descriptors to poll beside `fileno`: none where there is an epoll."""
        return () if self._epoll or self._closed else (self._wakeup.fileno(),)

    def write(self, data: bytes | memoryview, written: list[int]) -> None:
        """Write one message. Linux before 4.11 waits here for the answer.

        If the kernel refuses the message, `read_now` reads an ERROR as its answer.

        Arguments:
            data: one message, whole.
            written: gets its length appended.
        """
        try:
            written += self._write_one((data,))
        except OSError as error:
            self._wakeup_sender.send(refusal(bytes(data), error.errno), *self._send_now)
            written.append(len(data))
        if len(data) == HEADER_SIZE:
            self._send_another_request()

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

    def read_now(self, inbox: list[bytes]) -> None:
        """Read what is there.

        Arguments:
            inbox: gets the bytes appended.

        Raises:
            BlockingIOError: there is nothing more to read.
            OSError: this is closed.
        """
        if self._closed:
            raise _is_closed()
        try:
            # One read is enough: one request is outstanding, so there is one answer at most.
            inbox += self._read_one()
        except BlockingIOError:
            # Only now: the device has nothing more queued, so that the packet of a refusal is not
            # put into the middle of a message.
            self._read_wakeup(inbox)

    def _read_wakeup(self, inbox: list[bytes]) -> None:
        # `wake` and `shutdown` send empty messages. In the inbox they would mean the end of the
        # stream.
        inbox += filter(None, map(self._wakeup.recv, (READ_SIZE,), self._receive_now))

    def wake(self) -> None:
        """Make `fileno` readable once, so that the caller that polls it looks around."""
        try:
            self._wakeup_sender.send(b"", *self._send_now)
        except OSError:
            pass  # so many wake-ups are there already that there is no room; or this is closed

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

    def close_after_fork(self) -> None:
        """Close the descriptors in a forked child, whose parent goes on with the device."""
        self.close()


class WatchTransport(RequestTransport):
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
        ends: tuple[Any, ...] = ()
        try:
            ends = self._orders, orders = _pair(modules.socket)
            self._send_order = partial(map, self._orders.send)
            modules.start_thread(_write_orders, (orders, self._file, self._wakeup_sender, modules))
        except (OSError, RuntimeError) as error:  # RuntimeError: there are too many threads
            for one in (*ends, self._epoll, self._wakeup, self._file, self._wakeup_sender):
                if one is not None:
                    one.close()
            raise _failed(path, error) from error

    def write(self, data: bytes | memoryview, written: list[int]) -> None:
        """Have the thread write one message. The result comes as an answer; see `RequestTransport`.

        Arguments:
            data: one message, whole.
            written: gets its length appended.

        Raises:
            BlockingIOError: the thread has not taken earlier ones, and there is no room for more.
            OSError: this is closed.
        """
        written += self._send_order((data,), self._send_now)

    def read_now(self, inbox: list[bytes]) -> None:
        """See `RequestTransport`. It reads until nothing is left, but ``_READS`` times at most."""
        if self._closed:
            raise _is_closed()
        try:
            fds, sizes = repeat(self._file.fileno(), _READS), repeat(READ_SIZE)
            inbox += map(self._modules.os.read, fds, sizes)
        except BlockingIOError:
            self._read_wakeup(inbox)

    def _release(self) -> None:
        # The thread sees the end of its orders. It then closes the device and its other end.
        self._orders.close()

    def close_after_fork(self) -> None:
        """See `RequestTransport`. A forked child has no such thread to close the device."""
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


def _is_closed() -> OSError:
    """Return the error of a read after `close`.

    A loop may read once more. The number of the descriptor may be another file's by then, so the
    read must not reach the kernel.
    """
    return OSError(errno.EBADF, "it is closed")


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
