"""What probes are written with: the table of them, messages, and an open device."""

from __future__ import annotations

import contextlib
import ctypes
import os
import select
import struct
import threading
from collections.abc import Callable, Iterator
from types import TracebackType
from typing import Final, NamedTuple, Self

HEADER: Final = struct.Struct("=IIII")
READ, WATCH, UNWATCH, START, END, WRITE, RM = 2, 4, 5, 6, 7, 11, 13
EVENT, ERROR, RESET_WATCHES = 15, 16, 21
OK: Final = b"OK\0"
PAYLOAD_MAX: Final = 4080

#: Seconds that an answer may take, and for which one that must not come is waited for.
LONG, SHORT = 10.0, 0.3

#: The node that probes work below; relative, so that it is a guest's own.
BASE: Final = b"data/probe"
NODE: Final = BASE + b"/node\0"


class Probe(NamedTuple):
    run: Callable[[str], None]
    #: The rule that it shows (see this package).
    rule: int
    #: What it would take with it on a real machine; "" if nothing.
    danger: str
    #: Whether it is about a device that is none: its modes and controls.
    fake_device: bool
    #: The fake device's modes to run it in.
    modes: str
    #: Whether the fake device reports this rule and ends the process.
    aborts: bool
    #: What it cannot run without: "guest", the daemon's "pid", or "" for nothing.
    needs: str

    @property
    def is_harmless(self) -> bool:
        """Whether it can be run on any device."""
        return not (self.danger or self.fake_device or self.needs)


PROBES: Final[dict[str, Probe]] = {}


def probe(
    rule: int,
    *,
    danger: str = "",
    fake_device: bool = False,
    modes: str = "",
    aborts: bool = False,
    needs: str = "",
) -> Callable[[Callable[[str], None]], Callable[[str], None]]:
    def decorate(run: Callable[[str], None]) -> Callable[[str], None]:
        PROBES[run.__name__] = Probe(run, rule, danger, fake_device, modes, aborts, needs)
        return run

    return decorate


class Message(NamedTuple):
    op: int
    request: int
    transaction: int
    body: bytes


def pack(op: int, body: bytes, request: int = 7, transaction: int = 0) -> bytes:
    return HEADER.pack(op, request, transaction, len(body)) + body


class File:
    """An open device; nothing is read before it is asked for."""

    def __init__(self, device: str, flags: int = 0) -> None:
        self.fd = os.open(device, os.O_RDWR | os.O_CLOEXEC | flags)
        self._received = b""

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
        if self.fd >= 0:
            os.close(self.fd)
            self.fd = -1

    def write(self, data: bytes) -> None:
        check(os.write(self.fd, data), len(data), "what write() returned")

    def send(self, op: int, body: bytes, request: int = 7, transaction: int = 0) -> None:
        self.write(pack(op, body, request, transaction))

    def readable(self, seconds: float = LONG) -> bool:
        return bool(select.select([self.fd], [], [], seconds)[0])

    def receive(self) -> Message:
        while True:
            if len(self._received) >= HEADER.size:
                op, request, transaction, size = HEADER.unpack_from(self._received)
                end = HEADER.size + size
                if len(self._received) >= end:
                    body = self._received[HEADER.size : end]
                    self._received = self._received[end:]
                    return Message(op, request, transaction, body)
            assert self.readable(), f"nothing more came after {self._received!r}"
            self._received += os.read(self.fd, 65536)

    def request(self, op: int, body: bytes, request: int = 7, transaction: int = 0) -> Message:
        self.send(op, body, request, transaction)
        return self.receive()

    def expect(self, op: int, body: bytes, answer: tuple[int, bytes], transaction: int = 0) -> None:
        got = self.request(op, body, 7, transaction)
        check(got, Message(answer[0], 7, transaction, answer[1]), f"the answer to {op} {body!r}")

    def expect_alive(self) -> None:
        """The descriptor is in a sound state, and has nothing else to say."""
        self.expect(WRITE, NODE + b"alive", (WRITE, OK))
        self.expect(READ, NODE, (READ, b"alive"))

    def expect_silence(self) -> None:
        assert not self._received, f"{self._received!r} came"
        if self.readable(SHORT):
            raise AssertionError(f"{self.receive()} came")

    def watch(self, path: bytes, token: bytes) -> list[int]:
        """Set a watch; return the types of what came for it, in its order."""
        self.send(WATCH, path + b"\0" + token + b"\0")
        got = [self.receive(), self.receive()]
        answer, event = sorted(got)
        check((answer.op, answer.body), (WATCH, OK), "the answer to WATCH")
        check((event.op, event.body), (EVENT, path + b"\0" + token + b"\0"), "the first event")
        return [message.op for message in got]

    def unwatch(self, path: bytes, token: bytes) -> None:
        self.expect(UNWATCH, path + b"\0" + token + b"\0", (UNWATCH, OK))

    def expect_events(self, *bodies: bytes) -> None:
        """Exactly these come, in any order: the rest has come when a further change is seen."""
        got = [self.receive() for _ in bodies]
        check({message.op for message in got}, {EVENT}, "what came")
        check(sorted(message.body for message in got), sorted(bodies), "the events")

    def start(self) -> int:
        answer = self.request(START, b"\0")
        check(answer.op, START, f"the answer to TRANSACTION_START, {answer}:")
        return int(answer.body.rstrip(b"\0"))


def check(got: object, wanted: object, what: str) -> None:
    if got != wanted:
        raise AssertionError(f"{what} is {got!r}, not {wanted!r}")


@contextlib.contextmanager
def refused(*numbers: int) -> Iterator[None]:
    """write() fails with one of these errnos."""
    try:
        yield
    except OSError as error:
        assert error.errno in numbers, f"write() failed with {error!r}"
    else:
        raise AssertionError(f"write() succeeded, and should have failed with {numbers}")


def change(device: str, path: bytes) -> None:
    """Have something happen to the node, on a descriptor of its own."""
    with File(device) as other:
        other.expect(WRITE, path + b"\0x", (WRITE, OK))


def blocks(call: Callable[[], object]) -> bool:
    """Whether `call` has not returned after a while; its thread stays behind."""
    thread = threading.Thread(target=call, daemon=True)
    thread.start()
    thread.join(SHORT)
    return thread.is_alive()


def is_fake() -> bool:
    """Whether devices are fake ones in this process."""
    return hasattr(ctypes.CDLL(None), "fake_device_modes")


def control(name: str, argument: str) -> None:
    """Call one of the fake device's controls."""
    function = getattr(ctypes.CDLL(None), f"fake_device_{name}")
    check(function(ctypes.c_char_p(argument.encode())), 0, f"what {name} returned")
