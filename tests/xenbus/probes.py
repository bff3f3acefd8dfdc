"""What is asked of a XenBus device, real or not: one probe for each fact.

    python3 probes.py DEVICE [NAME...]

runs those NAMEd, or all that are harmless and need nothing, each in a process of its own, and
prints a line for each. Only Python's library is used, so that this file alone can be carried into
a machine that has nothing else. As a guest, `data` of the domain must be its own to write.

In the environment: XENBUS_DAEMON_PID, for the probes that kill the daemon.
"""

from __future__ import annotations

import asyncio
import contextlib
import ctypes
import errno
import fcntl
import io
import os
import select
import signal
import struct
import subprocess
import sys
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
    standin: bool
    #: The stand-in's modes to run it in.
    modes: str
    #: Whether the stand-in reports this rule and ends the process.
    aborts: bool
    #: What it runs on alone: "guest", "pid", or "" for anything.
    needs: str


PROBES: Final[dict[str, Probe]] = {}


def probe(
    rule: int,
    *,
    danger: str = "",
    standin: bool = False,
    modes: str = "",
    aborts: bool = False,
    needs: str = "",
) -> Callable[[Callable[[str], None]], Callable[[str], None]]:
    def decorate(run: Callable[[str], None]) -> Callable[[str], None]:
        PROBES[run.__name__] = Probe(run, rule, danger, standin, modes, aborts, needs)
        return run

    return decorate


# What the probes are written with


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


def control(name: bytes, argument: str) -> None:
    """Call one of the stand-in's controls."""
    function = getattr(ctypes.CDLL(None), f"xenbus_standin_{name.decode()}")
    check(function(ctypes.c_char_p(argument.encode())), 0, f"what {name!r} returned")


def blocks(call: Callable[[], object]) -> bool:
    """Whether `call` has not returned after a while; its thread stays behind."""
    thread = threading.Thread(target=call, daemon=True)
    thread.start()
    thread.join(SHORT)
    return thread.is_alive()


# Rule 9: one request outstanding for each descriptor


@probe(9)
def answers_bear_the_ids_of_their_requests(device: str) -> None:
    with File(device) as file:
        file.expect(WRITE, NODE + b"hello", (WRITE, OK))
        for request in 0, 1, 0xFFFFFFFF:
            check(file.request(READ, NODE, request), (READ, request, 0, b"hello"), "the answer")


@probe(9)
def descriptors_do_not_mix(device: str) -> None:
    """Requests of several may be in flight at once, even with equal ids."""
    with File(device) as one, File(device) as two:
        one.expect(WRITE, NODE + b"hello", (WRITE, OK))
        for request in range(50):
            one.send(READ, NODE, request)
            two.send(READ, BASE + b"/missing\0", request)
            check(two.receive(), (ERROR, request, 0, b"ENOENT\0"), "the second answer")
            check(one.receive(), (READ, request, 0, b"hello"), "the first answer")


@probe(9, modes="slow")
def outstanding_requests_get_the_payloads_of_later_ones(device: str) -> None:
    """All are answered, in order and with the right ids, but not all with the right values."""
    with File(device) as file:
        for number in range(20):
            body = BASE + b"/%d\0value %d" % (number, number)
            file.expect(WRITE, body, (WRITE, OK))
        for request in range(200):
            file.send(READ, BASE + b"/%d\0" % (request % 20), request)
        answers = [file.receive() for _ in range(200)]
    check([answer.request for answer in answers], list(range(200)), "the ids of the answers")
    wrong = [
        answer
        for answer in answers
        if (answer.op, answer.body) != (READ, b"value %d" % (answer.request % 20))
    ]
    assert wrong, "each of 200 requests at once has its own answer"


@probe(9, standin=True, modes="strict", aborts=True)
def a_second_request_can_be_reported(device: str) -> None:
    with File(device) as file:
        file.send(READ, NODE, 1)
        file.send(READ, NODE, 2)


@probe(9, standin=True, modes="strict")
def a_request_after_the_answer_is_not_reported(device: str) -> None:
    with File(device) as file, File(device) as other:
        for _ in range(3):
            file.send(READ, NODE)
            other.expect_alive()
            file.receive()


# Rule 10: nothing outstanding where watches are set and ended


@probe(10)
def watches_are_set_on_one_descriptor_while_requests_are_out_on_another(device: str) -> None:
    with File(device) as file, File(device) as watches:
        for _ in range(100):
            file.send(READ, NODE)
            watches.watch(BASE, b"t")
            file.receive()
            file.send(READ, NODE)
            watches.unwatch(BASE, b"t")
            file.receive()


@probe(10, danger="the device of the domain", aborts=True)
def watching_with_a_request_outstanding_is_a_dead_lock(device: str) -> None:
    with File(device) as file:
        for _ in range(300):
            file.send(READ, NODE)
            file.send(WATCH, BASE + b"\0t\0")


@probe(10, danger="the device of the domain", aborts=True)
def unwatching_with_a_request_outstanding_is_a_dead_lock(device: str) -> None:
    with File(device) as file:
        for _ in range(300):
            file.watch(BASE, b"t")
            file.send(READ, NODE)
            file.send(UNWATCH, BASE + b"\0t\0")
            for _ in range(2):
                file.receive()


# Rule 11: no read of nothing


@probe(11)
def a_read_of_nothing_blocks(device: str) -> None:
    with File(device) as file:
        assert blocks(lambda: os.read(file.fd, 0)), "it returned"
    # There never is anything to read for the thread, so that this process can end.


@probe(11)
def a_nonblocking_read_of_nothing_is_refused(device: str) -> None:
    with File(device, os.O_NONBLOCK) as file, refused(errno.EAGAIN):
        os.read(file.fd, 0)


@probe(11, danger="the processor", aborts=True)
def a_read_of_nothing_loops_when_something_is_queued(device: str) -> None:
    with File(device) as file:
        file.send(READ, NODE)
        assert file.readable()
        os.read(file.fd, 0)


# Rule 12: one message for each write()


@probe(12)
def the_rest_of_a_write_is_dropped(device: str) -> None:
    with File(device) as file:
        file.expect(WRITE, NODE + b"hello", (WRITE, OK))
        file.write(pack(READ, NODE, 1) + pack(READ, NODE, 2) + pack(READ, NODE, 3))
        check(file.receive(), (READ, 1, 0, b"hello"), "the answer to the first")
        check(file.request(READ, NODE, 4), (READ, 4, 0, b"hello"), "the answer to the fourth")


@probe(12)
def a_message_may_be_split(device: str) -> None:
    with File(device) as file:
        file.expect(WRITE, NODE + b"hello", (WRITE, OK))
        for byte in pack(READ, NODE):
            file.write(bytes([byte]))
        check(file.receive(), (READ, 7, 0, b"hello"), "the answer")
        message = pack(READ, NODE)
        check(os.writev(file.fd, [message[:16], message[16:]]), len(message), "writev")
        check(file.receive(), (READ, 7, 0, b"hello"), "the answer")


@probe(12)
def nothing_may_be_written(device: str) -> None:
    with File(device) as file:
        file.write(b"")
        file.write(pack(READ, NODE)[:5])
        file.write(b"")
        file.write(pack(READ, NODE)[5:])
        check(file.receive().request, 7, "the answer's id")


@probe(12)
def the_longest_payload_has_4080_bytes(device: str) -> None:
    with File(device) as file:
        for split in False, True:
            message = pack(WRITE, NODE.ljust(PAYLOAD_MAX, b"x"))
            for part in [message[:16], message[16:]] if split else [message]:
                file.write(part)
            # Some daemons refuse the value.
            answer = file.receive()
            assert answer.op in (WRITE, ERROR), f"{answer} came"
            check(answer.request, 7, "the answer's id")


@probe(12)
def a_longer_write_is_refused(device: str) -> None:
    with File(device) as file:
        for size in PAYLOAD_MAX + 1, 4096, 8192:
            with refused(errno.EINVAL):
                os.write(file.fd, pack(WRITE, NODE.ljust(size, b"x")))
            file.expect_alive()


@probe(12)
def a_header_that_announces_more_is_refused(device: str) -> None:
    with File(device) as file:
        for size in PAYLOAD_MAX + 1, 4096, 4097, 0xFFFFFFF0 - 16:
            with refused(errno.E2BIG):
                os.write(file.fd, HEADER.pack(WRITE, 7, 0, size))
            file.expect_alive()


@probe(12)
def a_refused_write_takes_the_part_before_with_it(device: str) -> None:
    with File(device) as file:
        file.write(HEADER.pack(WRITE, 7, 0, 100))
        with refused(errno.EINVAL):
            os.write(file.fd, bytes(PAYLOAD_MAX + 1))
        file.expect_alive()


# Rule 13: readiness, and how reads end


@probe(13)
def it_is_never_writable(device: str) -> None:
    both = select.POLLIN | select.POLLOUT
    with File(device) as file, select.epoll() as epoll:
        poll = select.poll()
        poll.register(file.fd, both)
        epoll.register(file.fd, both)
        check(poll.poll(0), [], "poll() of an idle device")
        check(epoll.poll(0), [], "epoll of an idle device")
        check(select.select([file.fd], [file.fd], [], 0), ([], [], []), "select()")
        file.send(READ, NODE)
        assert file.readable()
        check(poll.poll(0), [(file.fd, select.POLLIN)], "poll() with an answer there")
        check(epoll.poll(0), [(file.fd, select.EPOLLIN)], "epoll with an answer there")
        os.read(file.fd, HEADER.size)
        check(poll.poll(0), [(file.fd, select.POLLIN)], "poll() after the header was read")
        os.read(file.fd, 65536)
        check(poll.poll(0), [], "poll() after all was read")
        check(epoll.poll(0), [], "epoll after all was read")


@probe(13)
def asyncio_can_read_and_never_write(device: str) -> None:
    async def main(file: File) -> None:
        loop = asyncio.get_running_loop()
        loop.add_writer(file.fd, lambda: called.append("writer"))
        answer = loop.create_future()
        loop.add_reader(file.fd, lambda: answer.set_result(file.receive()))
        file.send(READ, BASE + b"/missing\0")
        check((await asyncio.wait_for(answer, LONG)).body, b"ENOENT\0", "the answer")
        loop.remove_reader(file.fd)
        loop.remove_writer(file.fd)

    called: list[str] = []
    with File(device, os.O_NONBLOCK) as file:
        asyncio.run(main(file))
    check(called, [], "what asyncio called")


@probe(13)
def a_nonblocking_read_of_an_idle_device_is_refused(device: str) -> None:
    with File(device, os.O_NONBLOCK) as file:
        with refused(errno.EAGAIN):
            os.read(file.fd, 16)
        file.expect_alive()
    with File(device) as file:
        os.set_blocking(file.fd, False)
        with refused(errno.EAGAIN):
            os.read(file.fd, 16)
        fcntl.fcntl(file.fd, fcntl.F_SETFL, 0)
        assert os.get_blocking(file.fd)
        file.expect_alive()


@probe(13)
def one_read_returns_all_messages(device: str) -> None:
    with File(device) as file:
        file.expect(RM, BASE + b"\0", (RM, OK))
        file.unwatch(BASE, b"none")
        for _ in range(3):
            file.send(UNWATCH, BASE + b"\0none\0")
        check(os.read(file.fd, 65536), 3 * pack(UNWATCH, OK), "what one read returned")


@probe(13)
def reads_cross_messages_and_stop_anywhere(device: str) -> None:
    with File(device) as file:
        for _ in range(2):
            file.send(UNWATCH, BASE + b"\0none\0")
        message = pack(UNWATCH, OK)
        check(os.read(file.fd, 20), (2 * message)[:20], "the first 20 bytes")
        rest = b"".join(os.read(file.fd, 1) for _ in range(2 * len(message) - 20))
        check(rest, (2 * message)[20:], "the rest, byte by byte")
        file.expect_alive()


@probe(13)
def a_blocked_reader_gets_what_another_thread_asks_for(device: str) -> None:
    got: list[bytes] = []
    with File(device) as file:
        thread = threading.Thread(target=lambda: got.append(os.read(file.fd, 65536)))
        thread.start()
        file.send(UNWATCH, BASE + b"\0none\0")
        thread.join(LONG)
    check(got, [pack(UNWATCH, OK)], "what the reader got")


@probe(13)
def closing_does_not_wake_a_blocked_reader(device: str) -> None:
    file = File(device)
    assert blocks(lambda: os.read(file.fd, 16)), "it did not block"
    reader = next(thread for thread in threading.enumerate() if thread.daemon)
    file.close()
    reader.join(SHORT)
    assert reader.is_alive(), "the reader returned"


@probe(13)
def a_signal_wakes_a_blocked_reader(device: str) -> None:
    def handler(number: int, frame: object) -> None:
        raise InterruptedError

    signal.signal(signal.SIGALRM, handler)
    with File(device) as file:
        # Again and again, for the first may come before the read.
        signal.setitimer(signal.ITIMER_REAL, 0.05, 0.05)
        try:
            with contextlib.suppress(InterruptedError):
                os.read(file.fd, 16)
                raise AssertionError("read() returned")
        finally:
            signal.setitimer(signal.ITIMER_REAL, 0)
        file.expect_alive()


# Rule 14: watches are the kernel's


@probe(14)
def the_first_event_comes_before_or_after_the_answer(device: str) -> None:
    orders = set()
    with File(device) as file:
        for number in range(200):
            orders.add(tuple(file.watch(BASE, b"t%d" % number)))
    check(orders, {(WATCH, EVENT), (EVENT, WATCH)}, "the orders seen")


@probe(14)
def a_change_by_anybody_fires(device: str) -> None:
    with File(device) as file:
        file.watch(BASE, b"t")
        change(device, BASE + b"/sub")
        file.expect_events(BASE + b"/sub\0t\0")


@probe(14)
def a_refused_watch_is_an_errno(device: str) -> None:
    with File(device) as file:
        for path in b"data//x", b"data/\x7f(":
            with refused(errno.EINVAL):
                os.write(file.fd, pack(WATCH, path + b"\0t\0"))
            file.expect_alive()


@probe(14)
def a_malformed_watch_is_an_answer(device: str) -> None:
    with File(device) as file:
        for op in WATCH, UNWATCH:
            for body in b"", b"x", BASE + b"\0", BASE + b"\0t":
                file.expect(op, body, (ERROR, b"EINVAL\0"))
        file.expect_alive()


@probe(14)
def the_same_watch_twice_is_two(device: str) -> None:
    with File(device) as file:
        file.watch(BASE, b"t")
        file.watch(BASE, b"t")
        change(device, BASE + b"/one")
        file.expect_events(BASE + b"/one\0t\0", BASE + b"/one\0t\0")
        file.unwatch(BASE, b"t")
        change(device, BASE + b"/two")
        change(device, BASE + b"/three")
        file.expect_events(BASE + b"/two\0t\0", BASE + b"/three\0t\0")
        file.expect_silence()


@probe(14)
def each_descriptor_has_its_own_watches(device: str) -> None:
    with File(device) as one, File(device) as two:
        one.watch(BASE, b"t")
        two.watch(BASE, b"t")
        change(device, BASE + b"/sub")
        one.expect_events(BASE + b"/sub\0t\0")
        two.expect_events(BASE + b"/sub\0t\0")
        one.unwatch(BASE, b"t")
        change(device, BASE + b"/again")
        two.expect_events(BASE + b"/again\0t\0")
        one.expect_silence()


@probe(14)
def an_unknown_watch_can_be_ended(device: str) -> None:
    with File(device) as file, File(device) as other:
        file.unwatch(BASE, b"unknown")
        other.watch(BASE, b"t")
        file.unwatch(BASE, b"t")
        change(device, BASE + b"/sub")
        other.expect_events(BASE + b"/sub\0t\0")


@probe(14)
def nothing_comes_after_the_answer_to_unwatch(device: str) -> None:
    with File(device) as file:
        file.watch(BASE, b"t")
        for number in range(20):
            change(device, BASE + b"/%d" % number)
        file.send(UNWATCH, BASE + b"\0t\0")
        while file.receive().op == EVENT:
            pass
        file.expect_silence()


@probe(14)
def depth_is_ignored(device: str) -> None:
    with File(device) as file:
        # To a daemon that knows it, depth 0 means the node alone.
        file.send(WATCH, BASE + b"\0t\0" + b"0\0")
        check(sorted([file.receive().op, file.receive().op]), [WATCH, EVENT], "what came")
        change(device, BASE + b"/sub")
        file.expect_events(BASE + b"/sub\0t\0")


@probe(14)
def tokens_may_be_long_or_empty(device: str) -> None:
    with File(device) as file:
        for token in b"", b"t" * 1024, b"t" * 4000:
            file.watch(BASE, token)


@probe(14, needs="guest")
def a_guest_has_its_quota_as_an_errno(device: str) -> None:
    with File(device) as file, refused(errno.E2BIG, errno.EINVAL, errno.ENOSPC):
        for number in range(300):
            file.watch(BASE, b"%d" % number)


@probe(14)
def a_watch_with_a_transaction_is_set(device: str) -> None:
    with File(device) as file:
        file.send(WATCH, BASE + b"\0t\0", 7, 12345)
        answer = min(file.receive(), file.receive())
        check(answer, (WATCH, 7, 12345, OK), "the answer")


# Rule 15, and transactions


@probe(15)
def the_end_of_no_transaction_is_never_answered(device: str) -> None:
    with File(device) as file:
        file.send(END, b"T\0", 9)
        file.expect_silence()
        file.expect_alive()


@probe(15, danger="the watches of the kernel", aborts=True)
def resetting_watches_takes_those_of_others(device: str) -> None:
    with File(device) as file, File(device) as other:
        other.watch(BASE, b"t")
        file.expect(RESET_WATCHES, b"\0", (RESET_WATCHES, OK))


@probe(15)
def transactions_commit_and_roll_back(device: str) -> None:
    with File(device) as file:
        for end, value in (b"F\0", b"before"), (b"T\0", b"after"):
            file.expect(WRITE, NODE + b"before", (WRITE, OK))
            tx = file.start()
            file.expect(WRITE, NODE + b"after", (WRITE, OK), tx)
            file.expect(END, end, (END, OK), tx)
            file.expect(READ, NODE, (READ, value))


@probe(15)
def a_transaction_belongs_to_its_descriptor(device: str) -> None:
    with File(device) as file, File(device) as other:
        tx = file.start()
        other.expect(READ, NODE, (ERROR, b"ENOENT\0"), tx)
        other.expect(END, b"T\0", (ERROR, b"ENOENT\0"), tx)
        file.expect(END, b"T\0", (END, OK), tx)
        file.expect(READ, NODE, (ERROR, b"ENOENT\0"), tx)


@probe(15)
def a_malformed_end_leaves_the_transaction(device: str) -> None:
    with File(device) as file:
        tx = file.start()
        for body in b"X\0", b"T", b"", b"T\0\0":
            file.expect(END, body, (ERROR, b"EINVAL\0"), tx)
        file.expect(END, b"F\0", (END, OK), tx)


@probe(15)
def closing_ends_transactions(device: str) -> None:
    # More than a guest may have.
    for _ in range(60):
        with File(device) as file:
            file.start()


# Rule 16: the daemon's death


@probe(16, danger="the daemon", needs="pid")
def nobody_is_told_of_the_daemons_death(device: str) -> None:
    with File(device) as file:
        file.expect_alive()
        daemon = os.pidfd_open(int(os.environ["XENBUS_DAEMON_PID"]))
        signal.pidfd_send_signal(daemon, signal.SIGKILL)
        select.select([daemon], [], [])
        file.expect_silence()
        file.send(READ, NODE)
        file.expect_silence()
    other = File(device)
    assert blocks(lambda: os.write(other.fd, pack(WATCH, BASE + b"\0t\0"))), "WATCH returned"
    other.close()


@probe(16, standin=True)
def a_daemon_can_be_made_to_seem_dead(device: str) -> None:
    with File(device) as file, File(device) as watches:
        file.expect_alive()
        control(b"modes", "dead")
        file.send(READ, NODE)
        file.expect_silence()
        assert blocks(lambda: os.write(watches.fd, pack(WATCH, BASE + b"\0t\0"))), "WATCH returned"
        control(b"modes", "")
        check(file.receive().body, b"alive", "the answer, at last")
        check(sorted([watches.receive().op, watches.receive().op]), [WATCH, EVENT], "what came")


# Rule 17: how it is opened


@probe(17)
def it_is_opened_unbuffered(device: str) -> None:
    try:
        open(device, "rb+").close()  # noqa: SIM115
    except io.UnsupportedOperation:
        pass
    else:
        raise AssertionError("a buffered file was made of it")
    with open(device, "rb+", buffering=0) as file:
        file.write(pack(UNWATCH, BASE + b"\0none\0"))
        check(file.read(65536), pack(UNWATCH, OK), "the answer")


@probe(17)
def it_cannot_be_sought(device: str) -> None:
    with File(device) as file, refused(errno.ESPIPE):
        os.lseek(file.fd, 0, os.SEEK_SET)


@probe(17)
def duplicates_are_the_same(device: str) -> None:
    with File(device) as file:
        copy = File.__new__(File)
        copy.__dict__.update(fd=os.dup(file.fd), _received=b"")
        file.send(UNWATCH, BASE + b"\0none\0")
        check(copy.receive().body, OK, "the answer, on the duplicate")
        tx = copy.start()
        file.close()
        copy.expect(END, b"F\0", (END, OK), tx)
        copy.close()


@probe(17)
def child_processes_do_it_no_harm(device: str) -> None:
    with File(device) as file:
        tx = file.start()
        check(subprocess.call([sys.executable, "-c", ""], close_fds=True), 0, "a program")
        child = os.fork()
        if not child:
            file.close()
            with File(device) as other:
                other.expect_alive()
            os._exit(0)
        check(os.waitpid(child, 0)[1], 0, "the status of the child")
        file.expect(END, b"T\0", (END, OK), tx)


# What only a stand-in can be told to do


@probe(0, standin=True, aborts=True)
def an_inherited_descriptor_is_not_used(device: str) -> None:
    file = File(device)
    child = os.fork()
    if not child:
        file.expect_alive()
        os._exit(0)
    os.kill(os.getpid(), -os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))


@probe(14, standin=True, modes="event-first")
def the_event_can_be_made_to_be_first(device: str) -> None:
    with File(device) as file:
        for number in range(20):
            check(file.watch(BASE, b"%d" % number), [EVENT, WATCH], "the order")


@probe(14, standin=True, modes="ack-first")
def the_answer_can_be_made_to_be_first(device: str) -> None:
    with File(device) as file:
        for number in range(20):
            check(file.watch(BASE, b"%d" % number), [WATCH, EVENT], "the order")


@probe(14, standin=True, modes="old-kernel")
def an_old_kernel_acknowledges_without_ids(device: str) -> None:
    with File(device, os.O_NONBLOCK) as file:
        file.send(UNWATCH, BASE + b"\0t\0", 7, 8)
        check(file.receive(), (UNWATCH, 0, 0, OK), "the answer")
        file.send(READ, BASE + b"/missing\0", 9)
        # Its write() has waited for the answer.
        check(os.read(file.fd, 100), pack(ERROR, b"ENOENT\0", 9), "what is there at once")


@probe(14, standin=True, modes="wrong-ids")
def ids_can_be_wrong(device: str) -> None:
    with File(device) as file:
        check(file.request(READ, BASE + b"/missing\0", 9), (ERROR, 8, 0, b"ENOENT\0"), "it")
        check(file.request(UNWATCH, BASE + b"\0t\0", 9), (UNWATCH, 8, 0, OK), "it")


@probe(15, standin=True)
def a_suspend_ends_transactions_and_fires_watches(device: str) -> None:
    with File(device) as file, File(device) as other, File(device) as watches:
        watches.watch(BASE, b"one")
        watches.watch(BASE + b"/node", b"two")
        committed, rolled_back = file.start(), other.start()
        control(b"suspend", device)
        # oxenstored has its own name for a transaction that it does not know.
        answer = file.request(READ, NODE, 7, committed)
        assert answer[2:] in ((committed, b"ENOENT\0"), (committed, b"EIO\0")), f"{answer} came"
        file.expect(END, b"T\0", (ERROR, b"EAGAIN\0"), committed)
        other.expect(END, b"F\0", (END, OK), rolled_back)
        watches.expect_events(BASE + b"\0one\0", BASE + b"/node\0two\0")
        file.expect_alive()
        watches.expect_events(BASE + b"/node\0one\0", BASE + b"/node\0two\0")
        file.expect(END, b"T\0", (END, OK), file.start())


def main(device: str, *names: str) -> int:
    """Run one probe here, or several in processes of their own."""
    if len(names) == 1:
        with File(device) as file:
            file.send(RM, BASE + b"\0")
            file.receive()
            file.expect(WRITE, BASE + b"\0", (WRITE, OK))
        PROBES[names[0]].run(device)
        # Not a longer way out: threads may be blocked for ever.
        sys.stdout.flush()
        os._exit(0)
    harmless = [n for n, p in PROBES.items() if not (p.danger or p.standin or p.needs)]
    failed = 0
    for name in names or harmless:
        command = [sys.executable, __file__, device, name]
        ended = subprocess.run(command, capture_output=True, text=True, check=False)
        failed += ended.returncode != 0
        print("FAILED" if ended.returncode else "ok    ", f"rule {PROBES[name].rule}:", name)
        print(ended.stderr, end="", flush=True)
    print(f"{failed} of {len(names or harmless)} failed")
    return bool(failed)


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
