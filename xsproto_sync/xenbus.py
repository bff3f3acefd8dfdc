"""The XenBus device of a guest's kernel. Its rules, and who keeps them: `xsproto.device`."""

from __future__ import annotations

import _thread
import os
import sys
from _socket import socket, socketpair  # not those of `socket`, which monkey-patching replaces
from functools import partial
from io import FileIO
from itertools import repeat
from posix import read, write  # not those of `os`: eventlet's wait for what would not wait
from socket import AF_UNIX, MSG_DONTWAIT, MSG_NOSIGNAL, SHUT_RDWR, SOCK_SEQPACKET
from typing import Any, Final

from xsproto.device import refusal
from xsproto.errors import ConnectFailed
from xsproto.wire import HEADER_SIZE, Op, Packet

from .transport import Transport

__all__ = ["WatchTransport", "XenBusTransport"]

# One read takes all that is queued; never 0 bytes, with which the kernel loops for ever.
_READ_SIZE: Final = 65536
# Reads after which others have their turn, however much there is.
_READS: Final = 16

_NUDGE: Final = Packet(Op.READ, 1, 0, b"/\0").encode()
_SEND_NOW: Final = (MSG_DONTWAIT | MSG_NOSIGNAL,)
_RECV_NOW: Final = (MSG_DONTWAIT,)


class XenBusTransport(Transport):
    """An opened device, for requests.

    Beside it there is an alarm, a socket, since neither `close` nor anything else wakes who waits
    for the device. What it carries are packets, too: those that a failed ``write()`` stands for.
    """

    def __init__(self, path: str) -> None:
        """Open the device at `path`.

        Raises:
            ConnectFailed: there is none, or it may not be used.
        """
        super().__init__(path)
        try:
            # Kept by an object that closes it, whatever interrupts this.
            self._file = FileIO(path, "r+", opener=_opener)
        except OSError as error:
            raise _failed(path, error) from error
        try:
            self._alarm, self._bell = _pair()
        except OSError as error:
            self._file.close()
            raise _failed(path, error) from error
        fd = (self._file.fileno(),)
        self._read_one = partial(map, read, fd, (_READ_SIZE,))
        self._write_one = partial(map, write, fd)

    def fileno(self) -> int:
        """See `Transport`."""
        return -1 if self._file.closed else self._file.fileno()

    def write(self, data: bytes | memoryview, written: list[int]) -> None:
        """See `Transport`; one whole message. That the kernel refuses it is an answer to it.

        (Linux before 4.11 waits here for the answer.)
        """
        try:
            written += self._write_one((data,))
        except OSError as error:
            self._bell.send(refusal(bytes(data), error.errno), *_SEND_NOW)
            written.append(len(data))
        if len(data) == HEADER_SIZE:
            self._nudge()

    def _nudge(self) -> None:
        """Have the daemon get more bytes: oxenstored answers an empty request only then.

        On a descriptor of its own, as another request is outstanding here.
        """
        try:
            with FileIO(self.path, "r+", opener=_opener) as file:
                write(file.fileno(), _NUDGE)
        except OSError:
            pass  # then the next request of anyone is one

    def read(self, inbox: list[bytes]) -> None:
        """See `Transport`."""
        self.wait(None, False)
        self.read_now(inbox)

    def read_now(self, inbox: list[bytes]) -> None:
        """See `Transport`."""
        try:
            # One answer, since one request is outstanding.
            inbox += self._read_one()
        except BlockingIOError:
            self._read_alarm(inbox)

    def _read_alarm(self, inbox: list[bytes]) -> None:
        # Empty ones are from `poke` and `shutdown`; in the inbox they would be the end.
        inbox += filter(None, map(self._alarm.recv, (_READ_SIZE,), _RECV_NOW))

    def _alarms(self) -> tuple[int, ...]:
        return (self._alarm.fileno(),)

    def poke(self) -> None:
        """Wake whoever waits, for nothing."""
        try:
            self._bell.send(b"", *_SEND_NOW)
        except OSError:
            pass  # so many wake-ups are there already, or it is closed

    def shutdown(self) -> None:
        """See `Transport`."""
        try:
            self._alarm.shutdown(SHUT_RDWR)
        except OSError:
            pass  # closed already

    def close(self) -> None:
        """See `Transport`."""
        self._file.close()
        self._alarm.close()
        self._bell.close()


class WatchTransport(XenBusTransport):
    """An opened device, for watches.

    WATCH and UNWATCH wait within ``write()`` until the daemon has answered, and nothing can end
    that: no signal, no `close`, not even the end of the process. So a thread writes, which is left
    alone with its fate. It ends, and closes the device, when its `write` returns and this is gone.
    """

    def __init__(self, path: str) -> None:
        """See `XenBusTransport`; also where no thread can be started, it raises `ConnectFailed`."""
        super().__init__(path)
        self._closed = False
        try:
            self._orders, orders = _pair()
        except OSError as error:
            super().close()
            raise _failed(path, error) from error
        self._send_order = partial(map, self._orders.send)
        try:
            _start_thread(_write_orders, (orders, self._file, self._bell))
        except RuntimeError as error:  # there are too many
            for end in (self._orders, orders):
                end.close()
            super().close()
            raise _failed(path, error) from error

    def fileno(self) -> int:
        """See `Transport`."""
        return -1 if self._closed else super().fileno()

    def write(self, data: bytes | memoryview, written: list[int]) -> None:
        """See `Transport`; one whole message, which the thread is to write."""
        written += self._send_order((data,), _SEND_NOW)

    def read_now(self, inbox: list[bytes]) -> None:
        """See `Transport`."""
        try:
            inbox += map(read, repeat(self._file.fileno(), _READS), repeat(_READ_SIZE))
        except BlockingIOError:
            # Nothing more is queued: here a message has ended, and a refusal may follow.
            self._read_alarm(inbox)

    def close(self) -> None:
        """See `Transport`; the thread closes the device, as soon as it can."""
        self._closed = True
        self._orders.close()
        self._alarm.close()

    def forget(self) -> None:
        """See `Transport`; in this process there is no such thread."""
        self.close()
        super().close()


def _write_orders(orders: socket, file: FileIO, bell: socket) -> None:
    """Write each message that comes from `orders`, until its other end is closed.

    All that it is given is its own to close.
    """
    while message := orders.recv(_READ_SIZE):
        try:
            write(file.fileno(), message)
        except OSError as error:
            try:
                bell.send(refusal(message, error.errno), *_SEND_NOW)
            except OSError:
                pass  # closed: nobody wants to know
    for resource in (file, bell, orders):
        resource.close()


def _pair() -> tuple[socket, socket]:
    """Two ends that keep messages apart, and wait whatever ``socket.setdefaulttimeout`` says."""
    one, other = socketpair(AF_UNIX, SOCK_SEQPACKET)
    one.setblocking(True)
    other.setblocking(True)
    return one, other


def _opener(path: str, flags: int) -> int:
    return os.open(path, flags | os.O_NONBLOCK | os.O_CLOEXEC)


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


def _start_thread(function: Any, arguments: tuple[Any, ...]) -> None:
    """Start a thread of the operating system, where threads have been patched to be greenlets.

    One that has to wait in the kernel would have all of them wait.
    """
    start = _thread.start_new_thread
    if (gevent := sys.modules.get("gevent.monkey")) is not None:
        start = gevent.get_original("_thread", "start_new_thread")
    elif (eventlet := sys.modules.get("eventlet.patcher")) is not None:
        start = eventlet.original("_thread").start_new_thread
    start(function, arguments)
