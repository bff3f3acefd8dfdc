"""Rules 11, 13 and 17: descriptors, reading and readiness."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import fcntl
import io
import os
import select
import signal
import subprocess
import sys
import threading

from .device import (
    BASE,
    END,
    HEADER,
    LONG,
    NODE,
    OK,
    READ,
    RM,
    SHORT,
    UNWATCH,
    File,
    blocks,
    check,
    pack,
    probe,
    refused,
)

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


# Rule 17: how it is opened


@probe(17)
def it_is_opened_unbuffered(device: str) -> None:
    try:
        open(device, "rb+").close()
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
